//! The page: our figures beside the papers', a chart per experiment, every row in a table. Made from results alone, so that
//! it can be made again.

use std::fmt::Write as _;

use super::{
    bars::{Bar, bars},
    paper::REPORTED,
    results::{Results, Row},
    seeds::purpose,
};
use crate::report::escape;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2330; --soft: #6b7686; --line: #dfe4ea; --bg: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #97a3b4; --line: #2c3440; --bg: #12161c; --card: #1a2028; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--bg); max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } .lead { color: var(--soft); margin-top: 0; }
svg { width: 100%; height: auto; background: var(--card); border-radius: 8px; margin: .4rem 0 1rem; }
.grid { stroke: var(--line); } .name { fill: var(--ink); font-size: 12px; } .tick { fill: var(--soft); font-size: 11px; }
.bar { fill: #8a94a3; } .bar.sage { fill: #2563a8; } .range { stroke: var(--ink); stroke-width: 1.5; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--soft); font-weight: 600; }
.scroll { overflow-x: auto; } summary { cursor: pointer; color: var(--soft); } .number { font-variant-numeric: tabular-nums; }
";

/// Slice, measure, caption.
type Chart = (&'static str, &'static str, &'static str);

/// What the charts of an experiment show.
const CHARTS: [(&str, &[Chart]); 8] = [
    (
        "accuracy",
        &[
            ("single", "exact", "one culprit: the named set is exactly right"),
            ("double", "acc", "two culprits: all needed named and nobody innocent"),
            ("all", "resource", "right resource of rightly named services"),
        ],
    ),
    ("sampling", &[("all", "acc", "all needed named and nobody innocent, by share of traced requests")]),
    ("instrumentation", &[("all", "acc", "all needed named and nobody innocent, by share of silent tiers")]),
    ("ablation", &[("all", "exact", "the named set is exactly right")]),
    ("counterfactuals", &[("all", "side", "imagined worlds on the right side of the target")]),
    ("markov", &[("all", "blocked", "share of the information two hops apart that the hop between blocks")]),
    ("retraining", &[("all", "acc", "all needed named and nobody innocent")]),
    ("actuation", &[("all", "met", "share of windows that met the target")]),
];

/// The whole page of `runs`, in their order.
pub fn render(runs: &[Results]) -> String {
    let mut body = String::new();
    for run in runs {
        // Writing to a string cannot fail.
        let _ = writeln!(
            body,
            "<p class=\"lead\">seed {} ({}), sources {}, {}</p>",
            run.seed,
            purpose(run.seed),
            escape(&run.commit),
            escape(&run.machine),
        );
    }
    let rows: Vec<&Row> = runs.iter().flat_map(|run| &run.rows).collect();
    body.push_str(&beside(&rows));
    let mut seen: Vec<&str> = Vec::new();
    for row in &rows {
        if !seen.contains(&row.experiment.as_str()) {
            seen.push(&row.experiment);
        }
    }
    for experiment in seen {
        let own: Vec<&Row> = rows.iter().copied().filter(|row| row.experiment == experiment).collect();
        body.push_str(&section(experiment, &own));
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Sage: evaluation</title><style>{STYLE}</style></head><body>\n<h1>Sage: evaluation</h1>\n{body}</body></html>\n"
    )
}

/// The papers' figures with ours beside them. Applications and machines differ: they are signposts, not a contest.
fn beside(rows: &[&Row]) -> String {
    let mut text = String::from(
        "<h2>Beside the papers</h2>\n<div class=\"scroll\"><table><thead><tr><th>figure</th><th>papers</th><th>ours</th></tr></thead><tbody>\n",
    );
    for reported in &REPORTED {
        let mut ours = Vec::new();
        for (system, slice, measure) in reported.ours {
            let found: Vec<String> = rows
                .iter()
                .filter(|row| row.experiment == reported.experiment && row.system == *system)
                .filter(|row| row.slice == *slice && row.measure == *measure)
                .map(|row| format!("{} {}", escape(&row.app), figure(row)))
                .collect();
            if !found.is_empty() {
                ours.push(format!("<b>{} {slice} {measure}</b>: {}", escape(system), found.join(", ")));
            }
        }
        if !ours.is_empty() {
            let (what, value) = (escape(reported.what), escape(reported.value));
            let _ = writeln!(text, "<tr><td>{what}</td><td>{value}</td><td>{}</td></tr>", ours.join("<br>"));
        }
    }
    text.push_str("</tbody></table></div>\n");
    text
}

fn section(experiment: &str, rows: &[&Row]) -> String {
    let mut text = format!("<h2>{}</h2>\n", escape(experiment));
    for (slice, measure, caption) in CHARTS.iter().find(|(name, _)| *name == experiment).map_or(&[][..], |(_, c)| c) {
        let shown: Vec<&&Row> = rows.iter().filter(|row| row.slice == *slice && row.measure == *measure).collect();
        let bar = |row: &&&Row| Bar {
            name: format!("{} · {}", row.app, row.system),
            value: row.value,
            low: row.low,
            high: row.high,
            is_sage: row.system == "sage" || row.system.starts_with("sage@"),
        };
        let drawn: Vec<Bar> = shown.iter().map(bar).collect();
        if !drawn.is_empty() {
            let _ = write!(text, "<p>{}</p>\n{}\n", escape(caption), bars(&drawn, caption));
        }
    }
    text.push_str("<details><summary>every figure</summary><div class=\"scroll\"><table><thead><tr><th>application</th><th>system</th><th>slice</th><th>measure</th><th>value</th><th>95 %</th><th>n</th></tr></thead><tbody>\n");
    for row in rows {
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{:.4}</td><td class=\"number\">{:.4} to {:.4}</td><td class=\"number\">{}</td></tr>",
            escape(&row.app),
            escape(&row.system),
            escape(&row.slice),
            escape(&row.measure),
            row.value,
            row.low,
            row.high,
            row.n,
        );
    }
    text.push_str("</tbody></table></div></details>\n");
    text
}

fn figure(row: &Row) -> String {
    let is_share =
        row.low >= 0.0 && row.high <= 1.0 && !["r2", "butfor_error", "train_seconds"].contains(&&*row.measure);
    if is_share { format!("{:.1}&nbsp;%", row.value * 100.0) } else { format!("{:.3}", row.value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(experiment: &str, system: &str, slice: &str, measure: &str, value: f64) -> Row {
        Row {
            experiment: experiment.into(),
            app: "<chain>".into(),
            system: system.into(),
            slice: slice.into(),
            measure: measure.into(),
            value,
            n: 90,
            low: value - 0.05,
            high: value + 0.05,
        }
    }

    #[test]
    fn our_figures_stand_beside_the_papers_and_names_cannot_break_out() {
        let rows =
            vec![row("accuracy", "sage", "single", "exact", 0.9), row("scale", "sage", "all", "diagnose_ms", 7.5)];
        let page = render(&[Results { machine: "m".into(), commit: "c".into(), seed: 102, rows }]);
        assert!(page.contains("over 93 %") && page.contains("90.0&nbsp;%") && page.contains("49 and 62 ms"), "{page}");
        assert!(page.contains("<svg") && page.contains("seed 102 (reporting)") && !page.contains("<chain>"), "{page}");
    }

    #[test]
    fn a_page_made_again_from_stored_results_is_the_same() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let rows =
            vec![row("accuracy", "sage", "double", "acc", 1.0 / 3.0), row("markov", "telemetry", "all", "mi", 0.7)];
        let results = Results { machine: "m".into(), commit: "c".into(), seed: 11, rows };
        results.write(folder.path()).expect("written");
        let again = Results::read(folder.path()).expect("read");
        assert_eq!(render(&[results]), render(&[again]));
    }
}
