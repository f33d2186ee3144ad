//! Incomplete instrumentation (figure 11, table 4): some tiers report no server spans and no queue. Latency at their
//! borders, as their callers and callees see it, and their usage remain.

use std::collections::BTreeSet;

use anyhow::Result;
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use sage_causal::observation::{Observation, TraceCall};
use sage_common::ServiceId;

use crate::eval::{
    case::{Case, CaseSource, History},
    measure::Tally,
    results::Row,
    run::{Plan, table},
    seeds::derived,
    sources::Conditions,
    system::System,
    systems,
};

/// Shares of the tiers that are silent.
const SHARES: [f64; 5] = [0.0, 0.05, 0.1, 0.2, 0.5];

const SYSTEMS: [&str; 2] = ["sage", "seer"];

const COLUMNS: [(&str, &str); 5] =
    [("all", "top1"), ("all", "acc"), ("single", "exact"), ("culprit:instrumented", "acc"), ("culprit:silent", "acc")];

/// Rows of `instrumentation`: the system's name says the share of silent tiers.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut all = Tally::default();
    for app in &plan.apps {
        let source = plan.source(app, &Conditions::default())?;
        let history = source.history(plan.windows);
        for share in SHARES {
            let silent = silent(&*source, &history, share, plan.seed);
            one(plan, &*source, &history, share, &silent, &mut all)?;
        }
    }
    let rows = all.rows("instrumentation", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}

fn one(
    plan: &Plan,
    source: &dyn CaseSource,
    history: &History,
    share: f64,
    silent: &BTreeSet<ServiceId>,
    all: &mut Tally,
) -> Result<()> {
    let slo = source.slo();
    let seen: Vec<Observation> = history.windows.iter().map(|window| silenced(window, silent)).collect();
    let mut trained: Vec<Box<dyn System>> = Vec::new();
    for mut system in SYSTEMS.into_iter().filter_map(|name| systems::make(name, derived(plan.seed, 7))) {
        system.train(&seen, &slo, &history.labels)?;
        trained.push(system);
    }
    let change = |mut case: Case| {
        case.recent = case.recent.iter().map(|window| silenced(window, silent)).collect();
        Some(case)
    };
    for one in plan.answered(source, &trained, change) {
        let is_silent = one.case.truth.injected.iter().any(|injected| silent.contains(&injected.service));
        let also = if is_silent { "culprit:silent" } else { "culprit:instrumented" };
        for told in &one.told {
            let name = format!("{}@{}%silent", SYSTEMS[told.system], share * 100.0);
            all.add_answer(source.app(), &name, &one.case, &told.answer, Some(also));
        }
    }
    Ok(())
}

/// The silent tiers: a random `share` of all but the entry, at least one unless there shall be none.
fn silent(source: &dyn CaseSource, history: &History, share: f64, seed: u64) -> BTreeSet<ServiceId> {
    let entry = source.slo().service;
    let edges = history.windows.iter().flat_map(|window| &window.edges);
    let all: BTreeSet<ServiceId> = edges.map(|edge| edge.key.callee.clone()).filter(|name| *name != entry).collect();
    let mut all: Vec<ServiceId> = all.into_iter().collect();
    all.shuffle(&mut SmallRng::seed_from_u64(derived(seed, 11)));
    let count = (share * (all.len() + 1) as f64).round().max(if share > 0.0 { 1.0 } else { 0.0 });
    all.into_iter().take(count as usize).collect()
}

/// `window` as it is when the services in `silent` report nothing themselves.
fn silenced(window: &Observation, silent: &BTreeSet<ServiceId>) -> Observation {
    let mut window = window.clone();
    for edge in window.edges.iter_mut().filter(|edge| silent.contains(&edge.key.callee)) {
        (edge.server, edge.gap, edge.self_time) = (None, None, None);
    }
    window.skeletons.retain(|skeleton| !silent.contains(&skeleton.service));
    let is_silent = |call: &&mut TraceCall| silent.contains(&call.edge.callee);
    for call in window.traces.iter_mut().flat_map(|trace| &mut trace.calls).filter(is_silent) {
        (call.server_us, call.self_us) = (None, None);
    }
    window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::worlds::WorldSource;

    #[test]
    fn a_silent_tier_is_seen_by_its_callers_alone() {
        let source = WorldSource::open("world-shop", 11, 1.0).expect("known");
        let history = source.history(3);
        let silent = silent(&source, &history, 0.2, 11);
        assert_eq!(silent.len(), 1);
        let window = silenced(&history.windows[0], &silent);
        for edge in &window.edges {
            assert_eq!(edge.server.is_none(), silent.contains(&edge.key.callee), "{:?}", edge.key);
            assert!(edge.client.is_some() || edge.key.caller.is_none());
        }
        assert!(super::silent(&source, &history, 0.0, 11).is_empty());
    }
}
