//! The demo's page.

use super::chart::{Chart, escape};
use crate::demo::record::{FaultRecord, Point, Report};

/// Colours, for light and dark screens.
const COLOURS: &str = "
:root { color-scheme: light dark; --ink: #1c2330; --soft: #6b7686; --line: #dfe4ea; --bg: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #97a3b4; --line: #2c3440; --bg: #12161c; --card: #1a2028; } }
";

/// What the chart needs, on the page or alone.
const CHART_STYLE: &str = "
svg { background: var(--card); border-radius: 8px; font: 15px/1.5 system-ui, sans-serif; }
.grid { stroke: var(--line); } .tick { fill: var(--soft); font-size: 11px; } .caption { fill: var(--ink); font-size: 12px; font-weight: 600; }
.fault { fill: #d9822b; opacity: .13; } .target { stroke: #c0392b; stroke-width: 1.5; stroke-dasharray: 6 4; }
.sage { fill: none; stroke: #2563a8; stroke-width: 2; } .client { fill: none; stroke: #8a94a3; stroke-width: 1; opacity: .8; }
.violation { stroke: #c0392b; stroke-width: 2; } .verdict { stroke: #8e44ad; stroke-width: 7; opacity: .45; }
.applied { stroke: #1e8449; stroke-width: 2; } .reverted { stroke: #1e8449; stroke-width: 2; stroke-dasharray: 3 3; }
";

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--bg); max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } .lead { color: var(--soft); margin-top: 0; }
svg { width: 100%; height: auto; }
.key { display: flex; flex-wrap: wrap; gap: 1.2rem; color: var(--soft); font-size: 13px; margin: .6rem 0 1.6rem; } .key i { display: inline-block; width: 18px; height: 0; border-top: 3px solid; margin-right: .4rem; vertical-align: middle; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th, td { text-align: left; padding: .45rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--soft); font-weight: 600; }
.scroll { overflow-x: auto; } .good { color: #1e8449; font-weight: 600; } .bad { color: #c0392b; font-weight: 600; }
";

/// The whole page.
pub fn render(report: &Report, clients: &[Point]) -> String {
    let word =
        if report.correct { "<span class=\"good\">correct</span>" } else { "<span class=\"bad\">not correct</span>" };
    let title = format!("Sage demo: {}", escape(&report.topology));
    let lead = format!(
        "p{} of end-to-end latency, target {:.1} ms; {:.0} requests per second, seed {}; model generation {} from {} windows in {:.1} s; {word}.{}",
        report.slo.percentile,
        report.slo.latency_ms,
        report.rate_qps,
        report.seed,
        report.model_generation,
        report.windows_trained,
        report.train_seconds,
        if report.mode == "recommend" { " Without root: causes were named, nothing could be changed." } else { "" },
    );
    let rows: String = report.faults.iter().map(row).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{COLOURS}{CHART_STYLE}{STYLE}</style></head><body>\n<h1>{title}</h1><p class=\"lead\">{lead}</p>\n{}\n{}\n\
         <div class=\"scroll\"><table><thead><tr><th>fault</th><th>violation</th><th>verdict</th><th>action</th><th>recovery</th><th>p{} before, worst, after</th><th></th></tr></thead>\
         <tbody>{rows}</tbody></table></div>\n</body></html>\n",
        chart(report, clients),
        key(),
        report.slo.percentile,
    )
}

/// The chart alone, as a file of its own.
pub fn picture(report: &Report, clients: &[Point]) -> String {
    let svg = chart(report, clients);
    let (head, body) = svg.split_once('\n').unwrap_or((&svg, ""));
    format!("{head}\n<style>{COLOURS}{CHART_STYLE}</style>\n{body}")
}

fn chart(report: &Report, clients: &[Point]) -> String {
    let until = report.timeline.last().map_or(1.0, |point| point.at);
    let latencies = || report.timeline.iter().map(|point| point.latency_ms);
    let low = latencies().fold(f64::INFINITY, f64::min).min(report.slo.latency_ms) * 0.6;
    let high = latencies().fold(report.slo.latency_ms, f64::max) * 1.4;
    let mut chart =
        Chart::new(until, low, high, "Tail latency over time with faults, violations, verdicts and actions");
    for record in &report.faults {
        let end = record.withdrawn_at.unwrap_or(until);
        chart.span(record.injected_at, end, "fault", &format!("{}:{}", record.kind, record.service));
    }
    chart.level(report.slo.latency_ms, "target");
    chart.line(clients.iter().map(|point| (point.at, point.latency_ms)), "client");
    chart.line(report.timeline.iter().map(|point| (point.at, point.latency_ms)), "sage");
    for record in &report.faults {
        moments(&mut chart, record);
    }
    chart.finish()
}

fn moments(chart: &mut Chart, record: &FaultRecord) {
    if let Some(at) = record.violation_at {
        chart.moment(at, "violation", "the target is broken");
    }
    if let (Some(at), Some(verdict)) = (record.diagnosed_at, &record.verdict) {
        chart.moment(
            at,
            "verdict",
            &format!("verdict: {} ({})", verdict.services.join(", "), verdict.resource.as_deref().unwrap_or("-")),
        );
    }
    let Some(action) = &record.action else { return };
    if let Some(at) = action.applied_at {
        chart.moment(at, "applied", &format!("{} on {}: {}", action.knob, action.node, action.setting));
    }
    if let Some(at) = action.reverted_at {
        chart.moment(at, "reverted", &format!("{} on {} given back", action.knob, action.node));
    }
}

fn key() -> &'static str {
    "<div class=\"key\"><span><i style=\"color:#2563a8\"></i>latency as Sage sees it</span><span><i style=\"color:#8a94a3\"></i>p99 as clients see it</span>\
     <span><i style=\"color:#c0392b;border-top-style:dashed\"></i>target</span><span><i style=\"color:#d9822b\"></i>fault</span>\
     <span><i style=\"color:#c0392b\"></i>violation</span><span><i style=\"color:#8e44ad\"></i>verdict</span>\
     <span><i style=\"color:#1e8449\"></i>action</span><span><i style=\"color:#1e8449;border-top-style:dashed\"></i>given back</span></div>"
}

fn row(record: &FaultRecord) -> String {
    let after =
        |at: Option<f64>| at.map_or("&ndash;".to_owned(), |at| format!("after {:.1} s", at - record.injected_at));
    let verdict = record.verdict.as_ref().map_or("none".to_owned(), |verdict| {
        format!(
            "{}: <b>{}</b> ({})<br>had it been normal: {:.1} ms, P(target met) {:.2}",
            escape(&verdict.kind),
            escape(&verdict.services.join(", ")),
            escape(verdict.resource.as_deref().unwrap_or("-")),
            verdict.counterfactual_ms,
            verdict.p_restored
        )
    });
    let action = record.action.as_ref().map_or("none".to_owned(), |action| {
        format!(
            "{} on {}: {}<br>{}",
            escape(&action.knob),
            escape(&action.node),
            escape(&action.setting),
            escape(&action.state)
        )
    });
    let ms = |value: Option<f64>| value.map_or("&ndash;".to_owned(), |value| format!("{value:.1}"));
    let around = record.p99_ms;
    let mark = if record.correct { "<span class=\"good\">right</span>" } else { "<span class=\"bad\">wrong</span>" };
    format!(
        "<tr><td><b>{}:{}</b></td><td>{}</td><td>{}<br>{verdict}</td><td>{}<br>{action}</td><td>{}</td><td>{} / {} / {} ms</td><td>{mark}</td></tr>\n",
        escape(&record.kind),
        escape(&record.service),
        after(record.violation_at),
        after(record.diagnosed_at),
        after(record.action.as_ref().and_then(|action| action.applied_at)),
        after(record.recovered_at),
        ms(around.before),
        ms(around.during),
        ms(around.after),
    )
}
