//! The lists of `sagectl`: status, incidents, actions, graph, objectives. Each is a pure text of one answer.

use super::{
    answer::{Action, Card, Graph, Incident, Objective, Status, Suggestion},
    explain::state_words,
    table::{Column, Table, number, text, wrapped},
    words::{causes, culprits, date_time, millis, percent, percentile, span},
};

/// `sagectl status`: one screen.
pub fn status(status: &Status) -> String {
    let Status { name, fleet, version, term, leader, uptime_s, frozen, training, incidents_open, state, .. } = status;
    let leader = leader.as_deref().filter(|name| !name.is_empty()).unwrap_or("nobody");
    let mut out = format!("{name} of fleet {fleet}: {}\n", state.to_uppercase());
    for problem in &status.problems {
        out += &wrapped(&format!("! {problem}"), 2);
    }
    out += &format!("\nversion {version}, up {}, term {term}, leader {leader}\n", span((uptime_s * 1e3) as u64));
    let complete =
        status.windows.complete_ratio.map_or(String::new(), |ratio| format!(", {} complete", percent(ratio)));
    out += &format!("windows {}{complete}\n", status.windows.assembled);
    out += &model(status);
    let training = if *training { "a training is running" } else { "no training is running" };
    let brake = if *frozen { "ON: no action is taken (sagectl thaw)" } else { "off" };
    out += &format!("{training}; brake {brake}; open incidents {incidents_open}\n");
    out + "\n" + &nodes(status) + "\n" + &objectives(&status.slos)
}

fn model(status: &Status) -> String {
    status.model.as_ref().map_or_else(
        || "model none yet: it needs healthy windows first\n".to_owned(),
        |model| {
            format!(
                "model generation {}, learnt {} windows in {:.1} s at {}\n",
                model.generation,
                model.windows_trained,
                model.train_seconds,
                date_time(model.trained_at_ms)
            )
        },
    )
}

fn nodes(status: &Status) -> String {
    if status.nodes.is_empty() {
        return wrapped("No node has reported yet. On each machine: sage-agent doctor", 0);
    }
    let columns =
        [text("NODE"), text("AGENT"), number("WINDOWS"), number("SPOOLED"), number("LEASES"), text("LAST WINDOW")];
    let mut table = Table::new(columns);
    for node in &status.nodes {
        let agent = match (node.connected, node.frozen) {
            (true, true) => "connected, frozen",
            (true, false) => "connected",
            (false, true) => "away, frozen",
            (false, false) => "away",
        };
        table.row([
            node.node.clone(),
            agent.to_owned(),
            node.windows.to_string(),
            node.spooled.to_string(),
            node.leases.to_string(),
            node.last_window_at_ms.map_or_else(|| "-".into(), date_time),
        ]);
    }
    table.render()
}

/// `sagectl slo list`.
pub fn objectives(slos: &[Objective]) -> String {
    if slos.is_empty() {
        return wrapped("No objective is set, so nothing is ever diagnosed. Propose some: sagectl slo suggest", 0);
    }
    let mut table = objective_table("OBJECTIVE", [number("NOW"), text("STATE")]);
    for slo in slos {
        let goal = goal(&slo.name, &slo.service, slo.operation.as_deref(), slo.percentile, slo.target_ms);
        table.row(goal.into_iter().chain([millis(slo.current_ms), slo.state.clone()]));
    }
    table.render()
}

/// `sagectl slo suggest`.
pub fn suggestions(list: &[Suggestion]) -> String {
    if list.is_empty() {
        return wrapped("Nothing to suggest yet: no entry operation has been seen in enough windows.", 0);
    }
    let mut table = objective_table("NAME", [number("WINDOWS"), text("BASIS")]);
    for slo in list {
        let goal = goal(&slo.name, &slo.service, slo.operation.as_deref(), slo.percentile, slo.target_ms);
        table.row(goal.into_iter().chain([slo.windows.to_string(), slo.basis.clone()]));
    }
    format!("{}\nAdopt one: sagectl slo set NAME\n", table.render())
}

fn objective_table(name: &'static str, more: [Column; 2]) -> Table {
    let columns = [text(name), text("SERVICE"), text("OPERATION"), text("PERCENTILE"), number("TARGET")];
    Table::new([&columns[..], &more[..]].concat())
}

/// The cells that set and suggested objectives have in common.
fn goal(name: &str, service: &str, operation: Option<&str>, of: f64, target_ms: f64) -> [String; 5] {
    let operation = operation.unwrap_or("(all)").to_owned();
    [name.to_owned(), service.to_owned(), operation, percentile(of), millis(target_ms)]
}

/// `sagectl incidents`, newest first.
pub fn incidents(list: &[Incident]) -> String {
    if list.is_empty() {
        return "No incidents.\n".into();
    }
    let columns = [
        text("ID"),
        text("OBJECTIVE"),
        text("STATE"),
        text("OPENED"),
        number("LASTED"),
        number("LATENCY"),
        number("TARGET"),
        text("CAUSE"),
    ];
    // Most fleets label nothing; the others want to compare.
    let is_labelled = list.iter().any(|incident| incident.label.is_some());
    let mut table = Table::new(columns.into_iter().chain(is_labelled.then(|| text("TRUTH"))).collect::<Vec<_>>());
    for incident in list {
        let lasted = incident.resolved_at_ms.map(|end| span(end.saturating_sub(incident.opened_at_ms)));
        table.row([
            incident.id.clone(),
            incident.slo.clone(),
            incident.state.clone(),
            date_time(incident.opened_at_ms).trim_end_matches(" UTC").to_owned(),
            lasted.unwrap_or_else(|| "-".into()),
            millis(incident.latency_ms),
            millis(incident.target_ms),
            cause(incident),
            incident.label.as_ref().map_or_else(|| "-".into(), |label| causes(&label.causes)),
        ]);
    }
    format!("{}\nTimes are UTC. The reasoning behind one: sagectl explain ID\n", table.render())
}

fn cause(incident: &Incident) -> String {
    let Some(last) = incident.verdicts.last() else { return "not diagnosed".into() };
    let names = culprits(&last.verdict);
    if names.is_empty() { "unknown".into() } else { names }
}

/// `sagectl actions`, as the API orders them.
pub fn actions(list: &[Action]) -> String {
    if list.is_empty() {
        return "No actions.\n".into();
    }
    let columns = [
        text("ID"),
        text("INCIDENT"),
        text("NODE"),
        text("KNOB"),
        text("CHANGE"),
        text("STATE"),
        number("PREDICTED"),
        number("MEASURED"),
    ];
    let mut table = Table::new(columns);
    for action in list {
        let before = action.before.as_ref().map_or(String::new(), |before| format!("{before} → "));
        table.row([
            action.id.clone(),
            action.incident.clone(),
            action.node.clone(),
            action.knob.clone(),
            before + &action.setting,
            state_words(&action.state),
            millis(action.predicted_ms),
            millis(action.measured_ms),
        ]);
    }
    table.render()
}

/// `sagectl model`.
pub fn cards(cards: &[Card]) -> String {
    if cards.is_empty() {
        return "There is no model yet: it needs healthy windows first.\n".into();
    }
    let columns = [
        text("SERVICE"),
        text("NORMAL"),
        number("WINDOWS"),
        number("DATA AGE"),
        number("ERROR"),
        text("LEARNT AT"),
        text("WHY"),
    ];
    let mut table = Table::new(columns);
    for card in cards {
        table.row([
            card.service.clone(),
            card.kind.clone(),
            card.windows.to_string(),
            span((card.data_age_s * 1e3) as u64),
            // A difference of logarithms is a share, as long as it is small.
            card.held_out_error.map_or_else(|| "-".into(), |error| percent(error.exp_m1())),
            date_time(card.last_retrain_at_ms),
            // What follows says how it went; the JSON has it.
            card.reason.split("; ").next().unwrap_or_default().to_owned(),
        ]);
    }
    table.render()
}

/// `sagectl graph`.
pub fn graph(graph: &Graph) -> String {
    if graph.edges.is_empty() {
        return "No calls have been seen yet.\n".into();
    }
    let mut edges = Table::new([
        text("CALLER"),
        text("CALLEE"),
        text("OPERATION"),
        number("CALLS/S"),
        number("P99 AT CALLER"),
        number("P99 AT CALLEE"),
    ]);
    for edge in &graph.edges {
        edges.row([
            edge.caller.clone().unwrap_or_else(|| "(clients)".into()),
            edge.callee.clone(),
            edge.operation.clone(),
            format!("{:.1}", edge.calls_per_s),
            millis(edge.client_p99_ms),
            millis(edge.server_p99_ms),
        ]);
    }
    let mut services = Table::new([text("SERVICE"), number("REPLICAS"), text("NODES")]);
    for service in &graph.services {
        services.row([service.name.clone(), service.instances.to_string(), service.nodes.join(", ")]);
    }
    format!("{}\n{}", services.render(), edges.render())
}
