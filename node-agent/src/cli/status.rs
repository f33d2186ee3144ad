//! `status` on one screen.

use super::{CliError, DEGRADED, HEALTHY, Output, client, style};
use crate::{
    config::Config,
    driver::{
        control::Verb,
        report::{LeaseReport, ServiceReport, State, StatusReport},
    },
};
use style::{Style, table};

/// Lines of each list that fit on a screen together with the rest.
const LIST_MAX: usize = 12;

/// Asks and prints; the exit code says how the agent is.
pub fn show(config: &Config, output: Output) -> Result<u8, CliError> {
    let answer = client::ask(&config.socket, Verb::Status)?;
    let report: StatusReport = serde_json::from_value(answer.clone())?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Table => print!("{}", screen(&report, Style::of_stdout())),
    }
    Ok(if report.state == State::Healthy { HEALTHY } else { DEGRADED })
}

fn screen(report: &StatusReport, style: Style) -> String {
    let mut text = head(report, style);
    text += &services(&report.services, style);
    text += &leases(&report.leases, style);
    if !report.problems.is_empty() {
        text += &format!("\n{}\n", style.bold("to know"));
        for problem in &report.problems {
            text += &format!("  - {problem}\n");
        }
    }
    text
}

fn head(report: &StatusReport, style: Style) -> String {
    let state = match report.state {
        State::Healthy => style.good("healthy"),
        State::Degraded => style.bad("degraded"),
    };
    let leader = match &report.leader {
        Some(leader) => format!("connected to {leader}, term {}", report.term),
        None => format!("not connected, highest term {}", report.term),
    };
    let brake = if report.frozen { ", brake on" } else { "" };
    let (windows, intake, own) = (report.windows, report.intake, report.own);
    format!(
        "{} {}  {state}{brake}, up {}, version {}, boot {}\n\
         leader   {leader}\n\
         windows  {} sent, {} acknowledged, {} waiting\n\
         intake   {} spans ({:.1}/s), {} dropped, {} requests rejected, {:.1} % unpaired\n\
         self     {:.3} cores, {}\n",
        style.bold("node"),
        style.bold(&report.node),
        style::duration(report.uptime_s),
        report.version,
        report.boot,
        windows.sent,
        windows.acknowledged,
        windows.spooled,
        intake.spans,
        intake.spans_per_s,
        intake.dropped_spans,
        intake.rejected_requests,
        intake.unpaired_ratio * 100.0,
        own.cpu_cores,
        style::bytes(own.memory_bytes),
    )
}

fn services(services: &[ServiceReport], style: Style) -> String {
    if services.is_empty() {
        return "\nno service has been seen yet\n".to_owned();
    }
    let row = |service: &ServiceReport| {
        let p99 = service.p99_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        vec![service.name.clone(), service.instances.to_string(), format!("{:.1}", service.calls_per_s), p99]
    };
    let rows: Vec<_> = services.iter().take(LIST_MAX).map(row).collect();
    format!("\n{}{}", table(style, &["SERVICE", "INSTANCES", "CALLS/S", "P99"], &rows), more(services.len()))
}

fn leases(leases: &[LeaseReport], style: Style) -> String {
    if leases.is_empty() {
        return "\nno setting is in force\n".to_owned();
    }
    let row = |lease: &LeaseReport| {
        let left = style::duration(lease.remaining_ms.div_ceil(1_000));
        let change = format!("{} -> {}", lease.before, lease.setting);
        vec![lease.action.to_string(), lease.knob.clone(), change, left, lease.service.clone(), lease.reason.clone()]
    };
    let rows: Vec<_> = leases.iter().take(LIST_MAX).map(row).collect();
    let head = ["ACTION", "KNOB", "SETTING", "LEFT", "FOR", "WHY"];
    format!("\n{}{}", table(style, &head, &rows), more(leases.len()))
}

fn more(count: usize) -> String {
    if count > LIST_MAX { format!("  and {} more (--output json)\n", count - LIST_MAX) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_says_who_what_and_why() {
        let report = StatusReport {
            node: "node-a".into(),
            leader: Some("aggregator-1".into()),
            term: 7,
            services: vec![ServiceReport { name: "geo".into(), instances: 1, calls_per_s: 85.0, p99_ms: Some(12.25) }],
            leases: vec![LeaseReport {
                action: 3,
                knob: "cpu_quota(app/geo)".into(),
                setting: "1.50 cores".into(),
                before: "1.00 cores".into(),
                remaining_ms: 41_200,
                service: "geo".into(),
                reason: "incident 1".into(),
            }],
            problems: vec!["something".into()],
            ..StatusReport::default()
        };
        let text = screen(&report, Style::PLAIN);
        for part in [
            "node-a",
            "connected to aggregator-1, term 7",
            "12.2 ms",
            "1.00 cores -> 1.50 cores",
            "42 s",
            "- something",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn long_lists_are_cut_to_a_screen() {
        let report = StatusReport { services: vec![ServiceReport::default(); 40], ..StatusReport::default() };
        let text = screen(&report, Style::PLAIN);
        assert!(text.lines().count() < 25 && text.contains("and 28 more"), "{text}");
    }
}
