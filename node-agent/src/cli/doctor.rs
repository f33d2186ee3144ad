//! `doctor`: every source and knob, with or without the daemon.

use super::{
    CliError, DEGRADED, HEALTHY, Output,
    client::{self, ClientError},
    style::Style,
};
use crate::{
    config::Config,
    driver::{control::Verb, doctor::examine, report::DoctorReport},
    kernel::sample::{Capability, host::HostFacts},
};

/// Asks the agent, or looks without it; exit code 1 when something that is needed does not work.
pub fn show(config: &Config, output: Output) -> Result<u8, CliError> {
    let report: DoctorReport = match client::ask(&config.socket, Verb::Doctor) {
        Ok(answer) => serde_json::from_value(answer)?,
        Err(ClientError::Down { .. } | ClientError::Denied { .. }) => examine(config, false),
        Err(error) => return Err(error.into()),
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print!("{}", screen(&report, &HostFacts::read(), Style::of_stdout())),
    }
    let lists = [&report.sources, &report.knobs, &report.surroundings];
    Ok(if lists.into_iter().flatten().all(|line| line.works || !line.needed) { HEALTHY } else { DEGRADED })
}

fn screen(report: &DoctorReport, host: &HostFacts, style: Style) -> String {
    let who = if report.daemon { "answered by the agent" } else { "no agent answers; looked without it" };
    let kernel = host.kernel.as_deref().unwrap_or("unknown");
    let gib = host.memory_bytes as f64 / f64::from(1_u32 << 30);
    let mut text = format!(
        "{} {}: Linux {kernel}, {} processors, {gib:.1} GiB ({who})\n",
        style.bold("node"),
        style.bold(&report.node),
        host.cpus
    );
    let lists = [("SOURCES", &report.sources), ("KNOBS", &report.knobs), ("AROUND", &report.surroundings)];
    for (title, lines) in lists {
        text += &format!("\n{}\n", style.bold(title));
        lines.iter().for_each(|line| text += &show_line(line, style));
    }
    text
}

fn show_line(line: &Capability, style: Style) -> String {
    let mark = match (line.works, line.needed) {
        (true, _) => style.good("works  "),
        (false, true) => style.bad("MISSING"),
        (false, false) => "missing".to_owned(),
    };
    let enable = line.enable.as_ref().map_or(String::new(), |enable| format!("\n           -> {enable}"));
    format!("  {mark}  {:36}  {}{enable}\n", line.name, line.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_how_to_get_it() {
        let report = DoctorReport {
            sources: vec![Capability::works("links", "eth0")],
            knobs: vec![Capability::missing("tc HTB", "no module", "modprobe sch_htb")],
            ..DoctorReport::default()
        };
        let text = screen(&report, &HostFacts::default(), Style::PLAIN);
        assert!(text.contains("works    links") && text.contains("-> modprobe sch_htb"), "{text}");
    }
}
