//! `actions`, `freeze`, `thaw`.

use serde_json::Value;

use super::{
    CliError, HEALTHY, Output,
    client::{self, ClientError},
    style::{Style, table},
};
use crate::{
    config::Config,
    driver::control::{Verb, audit_tail},
};

/// Prints the end of the audit: through the agent, or from the file when there is none.
pub fn show(config: &Config, output: Output, last: usize) -> Result<u8, CliError> {
    let lines = match client::ask(&config.socket, Verb::Actions { last }) {
        Ok(Value::Array(lines)) => lines,
        Ok(other) => return Err(ClientError::Refused(format!("no list: {other}")).into()),
        Err(down @ ClientError::Down { .. }) => match audit_tail(&config.audit_file, last) {
            Ok(lines) if !lines.is_empty() => lines,
            _ => return Err(down.into()),
        },
        Err(error) => return Err(error.into()),
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&lines)?),
        Output::Table if lines.is_empty() => println!("nothing has been changed or refused here yet"),
        Output::Table => print!("{}", screen(&lines, Style::of_stdout())),
    }
    Ok(HEALTHY)
}

/// Sets or releases the brake.
pub fn brake(config: &Config, verb: Verb) -> Result<u8, CliError> {
    let answer = client::ask(&config.socket, verb)?;
    let leases = answer["leases"].as_u64().unwrap_or(0);
    match (answer["frozen"].as_bool(), leases) {
        (Some(true), 0) => println!("brake on: everything is given back, commands are refused until `sage-agent thaw`"),
        (Some(true), _) => println!("brake on: commands are refused; {leases} settings are still being given back"),
        _ => println!("brake off: commands are obeyed again, as far as policy allows"),
    }
    Ok(HEALTHY)
}

fn screen(lines: &[Value], style: Style) -> String {
    let row = |line: &Value| {
        let text = |key: &str| line.get(key).map(plain).unwrap_or_default();
        vec![time_of_day(line["at_ms"].as_u64().unwrap_or(0)), text("event"), text("action"), details(line)]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    table(style, &["TIME UTC", "EVENT", "ACTION", "DETAILS"], &rows)
}

/// Everything else that a line says.
fn details(line: &Value) -> String {
    let Some(fields) = line.as_object() else { return String::new() };
    let shown =
        fields.iter().filter(|(key, value)| !["at_ms", "event", "action"].contains(&key.as_str()) && !value.is_null());
    shown.map(|(key, value)| format!("{key}={}", plain(value))).collect::<Vec<_>>().join(" ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Time of day, UTC; the date is in `--output json`.
fn time_of_day(at_ms: u64) -> String {
    let seconds = at_ms / 1_000;
    format!("{:02}:{:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_of_the_audit_reads_as_a_sentence() {
        let lines = [json!({
            "at_ms": 1_795_297_665_000_u64, "event": "write", "action": 7,
            "knob": "cpu_quota(app/geo)", "setting": "1.50 cores", "error": null,
        })];
        let text = screen(&lines, Style::PLAIN);
        let shown = text.lines().nth(1).expect("one line");
        assert_eq!(shown, "21:47:45  write       7  knob=cpu_quota(app/geo) setting=1.50 cores");
    }
}
