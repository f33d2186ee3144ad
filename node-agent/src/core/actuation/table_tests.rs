//! The lease table against the recording kernel and an undo log in memory, with crashes wherever they can happen.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sage_common::{ActionId, CgroupPath, Knob, Micros, Setting, Term};
use sage_protocol::message::{Command, CommandResult, Order, Outcome, Refusal, RevertReason};

use super::*;
use crate::{
    kernel::{KernelInterface, RecordingKernel},
    policy::{CgroupState, Policy, PolicyInputs},
};

const POLICY: &str = r#"
    [defaults]
    actions_per_hour = 100000
    lease_max_ms = 60000
    [[best_effort]]
    cgroup = "app/*"
    trust = "auto"
    knobs = ["cpu_quota", "cpu_weight", "freeze"]
    cores_max = 4
"#;

const BOOT: &str = "this boot";

fn cgroup(at: usize) -> CgroupPath {
    CgroupPath::try_from(format!("app/{at}")).expect("valid")
}

fn knob(at: usize) -> Knob {
    match at % 3 {
        0 => Knob::CpuQuota { cgroup: cgroup(at) },
        1 => Knob::CpuWeight { cgroup: cgroup(at) },
        _ => Knob::Freeze { cgroup: cgroup(at) },
    }
}

fn setting(at: usize, value: u16) -> Setting {
    match at % 3 {
        0 => Setting::Cores(Some(100 + u32::from(value))),
        1 => Setting::Weight(1 + value),
        _ => Setting::Frozen(value % 2 == 1),
    }
}

fn original(at: usize) -> Setting {
    match at % 3 {
        0 => Setting::Cores(Some(2_000)),
        1 => Setting::Weight(100),
        _ => Setting::Frozen(false),
    }
}

const KNOBS: usize = 4;

/// A node: a table that may die, and a kernel and a log that outlive it.
struct Node {
    table: LeaseTable,
    kernel: RecordingKernel,
    durable: Durable,
    now: Micros,
    results: Vec<(u64, Outcome)>,
    /// Steps until the agent dies; each output is two, its effect and its answer.
    steps_left: usize,
    /// Whether somebody else changes knobs as well, so that not every change is ours to account for.
    has_others: bool,
}

#[derive(Clone, Debug, Default)]
struct Durable {
    term: Term,
    is_frozen: bool,
    live: BTreeMap<ActionId, UndoRecord>,
    finished: Vec<(ActionId, Outcome)>,
    is_failing: bool,
}

impl Durable {
    fn saved(&self) -> Saved {
        Saved {
            term: self.term,
            is_frozen: self.is_frozen,
            live: self.live.values().cloned().collect(),
            finished: self.finished.clone(),
        }
    }

    fn store(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), Failure> {
        if self.is_failing {
            return Err(Failure::other("the disk is full"));
        }
        change(self);
        Ok(())
    }
}

impl Node {
    fn new() -> Self {
        let kernel = RecordingKernel::new((0..KNOBS).map(|at| (knob(at), original(at))));
        let durable = Durable::default();
        let table = Self::boot(&durable, BOOT, Micros::ZERO);
        Self {
            table,
            kernel,
            durable,
            now: Micros::ZERO,
            results: Vec::new(),
            steps_left: usize::MAX,
            has_others: false,
        }
    }

    fn boot(durable: &Durable, boot: &str, now: Micros) -> LeaseTable {
        let policy = Policy::parse(POLICY, "test").expect("valid");
        let mut table = LeaseTable::recover(policy, boot, durable.saved(), now);
        let cgroups = (0..300).map(|at| CgroupState::new(cgroup(at), None)).collect();
        table.set_inputs(PolicyInputs { cgroups, ..PolicyInputs::default() });
        table
    }

    /// The agent dies and comes back, on the same boot of the machine or after another.
    fn restart(&mut self, boot: &str) {
        self.steps_left = usize::MAX;
        self.table = Self::boot(&self.durable, boot, self.now);
        self.pump();
    }

    fn step(&mut self) -> bool {
        self.check_write_ahead();
        self.steps_left = self.steps_left.saturating_sub(1);
        self.steps_left > 0
    }

    /// Whatever is not as it was found can be put back by whoever reads the log, and its term is durable.
    fn check_write_ahead(&self) {
        if self.has_others {
            return;
        }
        for (at, (knob, setting)) in (0..KNOBS).map(|at| (at, (knob(at), self.kernel.settings.get(&knob(at))))) {
            let is_known =
                self.durable.live.values().any(|undo| {
                    undo.knob == knob && undo.before.setting == original(at) && undo.term <= self.durable.term
                });
            assert!(setting.is_none_or(|setting| *setting == original(at)) || is_known, "{knob} has no undo record");
        }
    }

    fn pump(&mut self) {
        while let Some(output) = self.table.poll_output() {
            if !self.step() {
                return;
            }
            let answer = self.perform(output);
            if !self.step() {
                return;
            }
            if let Some(answer) = answer {
                self.table.handle_input(self.now, answer);
            }
        }
    }

    fn perform(&mut self, output: Output) -> Option<Input> {
        let Self { kernel, durable, .. } = self;
        let mut put = |knob: &Knob, setting: &Setting| {
            kernel.write(knob, setting).and_then(|()| kernel.read(knob)).map_err(Failure::from)
        };
        match output {
            Output::PersistTerm(term) => {
                Some(Input::TermPersisted(term, durable.store(|durable| durable.term = durable.term.max(term))))
            }
            Output::Capture { action, knob } => {
                Some(Input::Captured(action, kernel.capture(&knob).map_err(Failure::from)))
            }
            Output::LogUndo(undo) => {
                let action = undo.action;
                Some(Input::UndoLogged(action, durable.store(|durable| drop(durable.live.insert(action, *undo)))))
            }
            Output::Write { action, knob, setting } => Some(Input::Written(action, put(&knob, &setting))),
            Output::Read { action, knob } => Some(Input::Found(action, kernel.read(&knob).map_err(Failure::from))),
            Output::Restore { action, knob, before } => Some(Input::Restored(action, put(&knob, &before.setting))),
            Output::PersistBrake(is_on) => {
                let _ = durable.store(|durable| durable.is_frozen = is_on);
                None
            }
            Output::ForgetUndo { action, outcome } => {
                let _ = durable.store(|durable| {
                    durable.live.remove(&action);
                    durable.finished.push((action, outcome));
                });
                None
            }
            Output::Report(CommandResult { action, outcome }) => {
                self.results.push((action.0, outcome));
                None
            }
        }
    }

    fn input(&mut self, input: Input) -> Vec<(u64, Outcome)> {
        self.table.handle_input(self.now, input);
        self.pump();
        std::mem::take(&mut self.results)
    }

    fn command(&mut self, term: u64, action: u64, order: Order) -> Vec<(u64, Outcome)> {
        self.input(Input::Command(Command { term: Term(term), action: ActionId(action), order }))
    }

    fn apply(&mut self, term: u64, action: u64, at: usize, value: u16) -> Vec<(u64, Outcome)> {
        self.command(term, action, apply(at, value))
    }

    fn advance(&mut self, time: Micros) -> Vec<(u64, Outcome)> {
        self.now = self.now + time;
        self.table.handle_timeout(self.now);
        self.pump();
        std::mem::take(&mut self.results)
    }

    /// Somebody else changes a knob.
    fn interfere(&mut self, at: usize, setting: Setting) {
        self.has_others = true;
        self.kernel.settings.insert(knob(at), setting);
    }

    fn close(&mut self) {
        self.table.close();
        self.pump();
        // Knobs that were refused are tried again within a minute.
        for _ in 0..3 {
            self.advance(Micros::from_secs(61));
        }
    }

    fn current(&self, at: usize) -> &Setting {
        &self.kernel.settings[&knob(at)]
    }

    fn assert_as_found(&self) {
        for at in 0..KNOBS {
            assert_eq!(*self.current(at), original(at), "{}", knob(at));
        }
    }
}

fn apply(at: usize, value: u16) -> Order {
    Order::Apply {
        knob: knob(at),
        setting: setting(at, value),
        lease: Micros::from_secs(10),
        service: "geo".parse().expect("valid"),
        reason: "test".to_owned(),
    }
}

fn applied(action: u64, at: usize, value: u16) -> (u64, Outcome) {
    (action, Outcome::Applied { before: original(at), now: setting(at, value) })
}

fn reverted(action: u64, reason: RevertReason) -> (u64, Outcome) {
    (action, Outcome::Reverted(reason))
}

fn refused(action: u64, refusal: Refusal) -> (u64, Outcome) {
    (action, Outcome::Refused(refusal))
}

const SECOND: Micros = Micros::from_secs(1);

#[test]
fn a_lease_lasts_while_it_is_renewed_and_then_gives_back() {
    let mut node = Node::new();
    assert_eq!(node.apply(1, 7, 0, 50), [applied(7, 0, 50)]);
    assert_eq!(*node.current(0), setting(0, 50));
    assert_eq!(node.advance(Micros::from_secs(9)), []);
    let renew = Order::Renew { lease: Micros::from_secs(10) };
    assert_eq!(node.command(1, 7, renew.clone()), [(7, Outcome::Renewed)]);
    assert_eq!(node.advance(Micros::from_secs(9)), []);
    assert_eq!(node.table.held(node.now).next().expect("held").remaining, SECOND);

    assert_eq!(node.advance(SECOND), [reverted(7, RevertReason::Expired)]);
    assert_eq!(node.command(1, 7, renew), [refused(7, Refusal::UnknownAction)]);
    node.assert_as_found();
    assert!(node.durable.live.is_empty() && node.table.poll_timeout().is_none());
}

#[test]
fn a_renewal_that_comes_too_late_finds_the_lease_over() {
    let mut node = Node::new();
    node.apply(1, 7, 0, 50);
    node.now = Micros::from_secs(10);
    let late = node.command(1, 7, Order::Renew { lease: SECOND });
    assert_eq!(late, [refused(7, Refusal::UnknownAction), reverted(7, RevertReason::Expired)]);
    node.assert_as_found();
}

#[test]
fn an_older_term_changes_nothing_and_learns_the_newer_one() {
    let mut node = Node::new();
    node.apply(5, 1, 0, 50);
    for order in [apply(1, 9), Order::Revoke, Order::Renew { lease: SECOND }, Order::Freeze, Order::Thaw] {
        assert_eq!(node.command(4, 1, order), [refused(1, Refusal::StaleTerm(Term(5)))]);
    }
    assert_eq!(node.kernel.writes.len(), 1);
    node.restart(BOOT);
    node.results.clear();
    assert_eq!(node.apply(4, 2, 1, 9), [refused(2, Refusal::StaleTerm(Term(5)))]);
}

#[test]
fn nothing_is_done_in_a_term_or_a_change_that_is_not_durable() {
    let mut node = Node::new();
    node.durable.is_failing = true;
    let results = node.apply(1, 7, 0, 50);
    assert!(matches!(&results[..], [(7, Outcome::Failed(text))] if text.contains("term 1")), "{results:?}");

    node.durable.is_failing = false;
    node.command(1, 8, Order::Thaw);
    node.durable.is_failing = true;
    let results = node.apply(1, 7, 0, 50);
    assert!(matches!(&results[..], [(7, Outcome::Failed(text))] if text.contains("undo record")), "{results:?}");
    assert_eq!(node.kernel.writes, []);
    assert!(node.table.is_drained());
}

#[test]
fn a_replay_changes_nothing_and_gets_the_same_answer() {
    let mut node = Node::new();
    for _ in 0..3 {
        assert_eq!(node.apply(1, 7, 0, 50), [applied(7, 0, 50)]);
    }
    assert!(matches!(&node.apply(1, 7, 0, 51)[..], [(7, Outcome::Refused(Refusal::Unsupported(_)))]));
    for _ in 0..2 {
        assert_eq!(node.command(1, 7, Order::Revoke), [reverted(7, RevertReason::Revoked)]);
        assert_eq!(node.apply(1, 7, 0, 50), [reverted(7, RevertReason::Revoked)]);
    }
    node.restart(BOOT);
    assert_eq!(node.apply(1, 7, 0, 50), [reverted(7, RevertReason::Revoked)]);
    assert_eq!(node.kernel.writes.len(), 2);
    assert_eq!(node.command(1, 99, Order::Revoke), [refused(99, Refusal::UnknownAction)]);
}

#[test]
fn a_knob_has_one_holder_and_a_node_a_bounded_number_of_leases() {
    let mut node = Node::new();
    node.apply(1, 7, 0, 50);
    assert_eq!(node.apply(1, 8, 0, 60), [refused(8, Refusal::Held(ActionId(7)))]);
    for at in 0..LEASES_MAX * 3 {
        let at = at + KNOBS;
        node.kernel.settings.insert(knob(at), original(at));
        // Cgroups 4 to 299 are there; two thirds of a thousand would not be covered by 300.
        if at < 300 {
            node.apply(1, 100 + at as u64, at, 50);
        }
    }
    assert_eq!(node.table.leases(node.now).count(), LEASES_MAX);
    let results = node.apply(1, 9_999, 1, 50);
    assert!(matches!(&results[..], [(_, Outcome::Refused(Refusal::Policy(text)))] if text.contains("256")));
}

#[test]
fn the_brake_gives_everything_back_and_outlasts_a_restart() {
    let mut node = Node::new();
    node.apply(1, 1, 0, 50);
    node.apply(1, 2, 1, 50);
    let frozen = (3, Outcome::Frozen(true));
    let mut results = node.command(1, 3, Order::Freeze);
    results.sort_by_key(|(action, _)| *action);
    assert_eq!(results, [reverted(1, RevertReason::Frozen), reverted(2, RevertReason::Frozen), frozen]);
    node.assert_as_found();

    node.restart(BOOT);
    assert_eq!(node.apply(2, 4, 0, 50), [refused(4, Refusal::Frozen)]);
    assert_eq!(node.input(Input::Brake(false)), []);
    assert_eq!(node.apply(2, 4, 0, 50), [applied(4, 0, 50)]);
    // Locally, without an aggregator.
    assert_eq!(node.input(Input::Brake(true)), [reverted(4, RevertReason::Frozen)]);
}

#[test]
fn a_knob_that_somebody_else_changes_is_left_to_them() {
    let mut node = Node::new();
    node.apply(1, 7, 0, 50);
    let theirs = Setting::Cores(Some(3_000));
    node.interfere(0, theirs.clone());
    assert_eq!(node.advance(SECOND), [(7, Outcome::Drifted { found: theirs.clone() })]);
    assert_eq!(*node.current(0), theirs);
    assert!(node.durable.live.is_empty());

    // Just before it would have been given back.
    node.apply(1, 8, 1, 50);
    node.interfere(1, Setting::Weight(999));
    assert_eq!(node.command(1, 8, Order::Revoke), [(8, Outcome::Drifted { found: Setting::Weight(999) })]);
    assert_eq!(*node.current(1), Setting::Weight(999));
}

#[test]
fn a_write_that_fails_or_reads_back_otherwise_is_undone() {
    let mut node = Node::new();
    node.kernel.ignore.insert(knob(0));
    let results = node.apply(1, 7, 0, 50);
    assert!(matches!(&results[..], [(7, Outcome::Failed(text))] if text.contains("read back")), "{results:?}");
    assert!(node.table.is_drained() && node.durable.live.is_empty());

    node.kernel.ignore.clear();
    node.kernel.refuse.insert(knob(0));
    let results = node.apply(1, 8, 0, 50);
    // The clean-up is a write as well, which a kernel that refuses writes does not take either.
    let [(8, Outcome::Failed(first)), (8, Outcome::Failed(second))] = &results[..] else { panic!("{results:?}") };
    assert!(first.contains("cannot write") && second.contains("cannot be given back yet"), "{results:?}");
    assert_eq!(node.table.leases(node.now).count(), 1);
    assert_eq!(node.apply(1, 9, 0, 60), [refused(9, Refusal::Held(ActionId(8)))]);
    node.kernel.refuse.clear();
    node.advance(SECOND);
    assert!(node.table.is_drained());
    node.assert_as_found();
}

#[test]
fn a_knob_that_is_not_given_back_is_tried_again_and_reported_once() {
    let mut node = Node::new();
    node.apply(1, 7, 0, 50);
    node.kernel.refuse.insert(knob(0));
    let results = node.command(1, 7, Order::Revoke);
    assert!(matches!(&results[..], [(7, Outcome::Failed(text))] if text.contains("cannot be given back yet")));
    let mut waits = Vec::new();
    for _ in 0..8 {
        let next = node.table.poll_timeout().expect("another attempt");
        waits.push(next.saturating_sub(node.now).get() / 1_000_000);
        assert_eq!(node.advance(next.saturating_sub(node.now)), []);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    let stuck = node.table.leases(node.now).next().expect("still there");
    assert_eq!(stuck.state, LeaseState::Stuck { attempts: 9 });

    node.kernel.refuse.clear();
    assert_eq!(node.advance(Micros::from_secs(60)), [reverted(7, RevertReason::Revoked)]);
    node.assert_as_found();
}

#[test]
fn a_knob_that_is_no_more_ends_its_lease() {
    let mut node = Node::new();
    node.apply(1, 7, 0, 50);
    node.apply(1, 8, 1, 50);
    node.kernel.settings.remove(&knob(0));
    assert!(matches!(&node.advance(SECOND)[..], [(7, Outcome::Failed(text))] if text.contains("does not exist")));
    node.kernel.settings.remove(&knob(1));
    assert_eq!(node.command(1, 8, Order::Revoke), [reverted(8, RevertReason::Revoked)]);
    assert!(node.table.is_drained() && node.durable.live.is_empty());
    assert!(matches!(&node.apply(1, 9, 0, 50)[..], [(9, Outcome::Failed(_))]));
}

#[test]
fn another_boot_of_the_machine_has_forgotten_everything() {
    let mut node = Node::new();
    node.apply(1, 7, 0, 50);
    // As the machine comes up: the same value by chance, set by somebody else.
    node.interfere(0, setting(0, 50));
    node.restart("another boot");
    assert_eq!(std::mem::take(&mut node.results).last(), Some(&reverted(7, RevertReason::Recovered)));
    assert_eq!(node.kernel.writes.len(), 1, "nothing was written");
    assert!(node.table.is_drained() && node.durable.live.is_empty());
}

#[test]
fn recovery_leaves_alone_what_somebody_else_has_changed_since() {
    let mut node = Node::new();
    node.apply(1, 7, 0, 50);
    node.interfere(0, Setting::Cores(None));
    node.results.clear();
    node.restart(BOOT);
    assert_eq!(node.results, [(7, Outcome::Drifted { found: Setting::Cores(None) })]);
    assert_eq!(*node.current(0), Setting::Cores(None));
}

#[test]
fn orders_that_cross_a_change_under_way_end_it_as_soon_as_it_stands() {
    let mut node = Node::new();
    node.command(1, 1, Order::Thaw);
    let order = |action, order| Input::Command(Command { term: Term(1), action: ActionId(action), order });
    // Both before the driver has done anything.
    node.table.handle_input(node.now, order(7, apply(0, 50)));
    node.table.handle_input(node.now, order(7, Order::Revoke));
    node.pump();
    assert_eq!(node.results, [reverted(7, RevertReason::Revoked)]);
    assert_eq!(node.kernel.writes, []);
    assert!(node.table.is_drained());
}

#[test]
fn a_crash_at_any_step_leaves_a_node_that_the_next_start_puts_right() {
    for steps in 1..60 {
        let mut node = Node::new();
        node.steps_left = steps;
        for (action, at) in [(1, 0), (2, 1), (3, 2)] {
            if node.steps_left > 0 {
                node.apply(3, action, at, 51);
            }
        }
        if node.steps_left > 0 {
            node.command(3, 1, Order::Revoke);
        }
        node.restart(BOOT);
        node.assert_as_found();
        assert!(node.durable.live.is_empty(), "{steps} steps");
        assert!(node.table.is_drained(), "{steps} steps");
        // Once more, over what the first recovery left.
        node.restart(BOOT);
        node.assert_as_found();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Order(u64, u64, Order),
    Brake(bool),
    Advance(u64),
    Refuse(usize, bool),
    Disk(bool),
    Crash(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let order = prop_oneof![
        4 => (0..KNOBS, 0_u16..3).prop_map(|(at, value)| apply(at, value)),
        2 => (1_u64..20).prop_map(|secs| Order::Renew { lease: Micros::from_secs(secs) }),
        2 => Just(Order::Revoke),
        1 => Just(Order::Freeze),
        2 => Just(Order::Thaw),
    ];
    prop_oneof![
        12 => (1_u64..5, 1_u64..8, order).prop_map(|(term, action, order)| Step::Order(term, action, order)),
        1 => any::<bool>().prop_map(Step::Brake),
        3 => (1_u64..8_000).prop_map(Step::Advance),
        2 => (0..KNOBS, any::<bool>()).prop_map(|(at, is_on)| Step::Refuse(at, is_on)),
        1 => any::<bool>().prop_map(Step::Disk),
        2 => (1_usize..12).prop_map(Step::Crash),
    ]
}

/// One step, and what must hold of it. Write-ahead is checked between any two effects, by `Node::pump`.
fn take(node: &mut Node, step: Step) {
    match step {
        Step::Order(term, action, order) => {
            // What has run out is over before, so that the rest is the order's own doing.
            node.advance(Micros::ZERO);
            let (writes, is_stale) = (node.kernel.writes.len(), Term(term) < node.table.term());
            node.command(term, action, order.clone());
            if is_stale {
                assert_eq!(node.kernel.writes.len(), writes, "an older term changed something");
            }
            let writes = node.kernel.writes.len();
            if node.steps_left == usize::MAX && node.table.is_frozen() == (order == Order::Freeze) {
                let held = node.table.held(node.now).count();
                node.command(term, action, order);
                let is_same = node.kernel.writes.len() == writes && node.table.held(node.now).count() == held;
                assert!(is_same || !node.kernel.refuse.is_empty() || node.durable.is_failing, "a replay did something");
            }
        }
        Step::Brake(is_on) => drop(node.input(Input::Brake(is_on))),
        Step::Advance(ms) => drop(node.advance(Micros::from_millis(ms))),
        Step::Refuse(at, true) => drop(node.kernel.refuse.insert(knob(at))),
        Step::Refuse(at, false) => drop(node.kernel.refuse.remove(&knob(at))),
        Step::Disk(is_failing) => node.durable.is_failing = is_failing,
        Step::Crash(steps) => node.steps_left = steps,
    }
    if node.steps_left == 0 {
        node.restart(BOOT);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_knob_ends_as_it_was_found(
        steps in prop::collection::vec(step(), 1..60),
        dies_in_the_end in any::<bool>(),
    ) {
        let mut node = Node::new();
        for step in steps {
            take(&mut node, step);
        }
        node.kernel.refuse.clear();
        node.durable.is_failing = false;
        if dies_in_the_end {
            node.restart(BOOT);
        }
        node.steps_left = usize::MAX;
        node.close();
        prop_assert!(node.table.is_drained());
        node.assert_as_found();
    }

    #[test]
    fn left_alone_every_lease_runs_out(orders in prop::collection::vec((1_u64..8, 0..KNOBS, 0_u16..3), 1..12)) {
        let mut node = Node::new();
        for (action, at, value) in orders {
            node.apply(1, action, at, value);
        }
        node.advance(Micros::from_secs(10));
        prop_assert!(node.table.is_drained());
        node.assert_as_found();
    }
}
