//! The log of a group of one, with the process or the disk taken away under it.
#![allow(clippy::disallowed_methods, reason = "these tests are about files and processes")]

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use sage_aggregator::{
    core::{ModelMeta, Proposal, Replica, ReplicaEvent, State},
    replica::SingleReplica,
};
use sage_common::{Generation, Slo, Term, Timestamp};

/// Nothing here takes a tenth of this; a hang fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// The directory of a test that runs as its own child.
const CHILD_DIR: &str = "SAGE_TEST_REPLICA_DIR";

fn entry(number: u64, bytes: usize) -> Proposal {
    let meta = ModelMeta {
        generation: Generation(number),
        trained_at: Timestamp::default(),
        windows_trained: number,
        newest_window: Timestamp::default(),
        train_seconds: 0.5,
        cards: Vec::new(),
    };
    Proposal::Generation { meta, bytes: vec![number as u8; bytes] }
}

fn open(dir: &Path) -> (SingleReplica, State, Receiver<ReplicaEvent>) {
    let (mut replica, state) = SingleReplica::open(dir, State::new(100)).expect("opens");
    let (sender, events) = channel();
    replica.subscribe(Box::new(move |event| {
        // The test may have seen enough.
        let _ = sender.send(event);
    }));
    (replica, state, events)
}

fn leading(events: &Receiver<ReplicaEvent>) -> Term {
    match events.recv_timeout(PATIENCE) {
        Ok(ReplicaEvent::Leading(term)) => term,
        other => panic!("{other:?}"),
    }
}

fn committed(events: &Receiver<ReplicaEvent>) -> (u64, Proposal) {
    match events.recv_timeout(PATIENCE) {
        Ok(ReplicaEvent::Committed { index, proposal }) => (index, proposal),
        other => panic!("{other:?}"),
    }
}

/// Waits until the log's health is as `wanted`.
fn wait_for(replica: &SingleReplica, wanted: impl Fn(&sage_aggregator::replica::Health) -> bool) {
    let mut health = replica.health();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    runtime.block_on(async {
        let waited = tokio::time::timeout(PATIENCE, health.wait_for(|health| wanted(health))).await;
        waited.expect("in time").expect("the log lives");
    });
}

#[test]
fn a_restart_gives_the_state_that_was_committed_in_a_higher_term() {
    let dir = tempfile::tempdir().expect("tmp");
    let (mut replica, mut state, events) = open(dir.path());
    let first = leading(&events);
    for number in 1..=20 {
        replica.propose(entry(number, 1_000)).expect("space");
    }
    let slo = Slo {
        name: "shop".into(),
        service: "frontend".parse().expect("valid"),
        operation: None,
        percentile: 99.0,
        target: sage_common::Micros::from_millis(50),
    };
    replica
        .propose(Proposal::SetSlos { slos: vec![slo], is_configured: true, at: Timestamp::from_micros(5) })
        .expect("space");
    for index in 1..=21 {
        let (position, proposal) = committed(&events);
        assert_eq!(position, index);
        state.apply(position, &proposal);
    }
    drop(replica);
    let (_replica, again, events) = open(dir.path());
    assert_eq!(again, state);
    assert!(leading(&events) > first);
}

#[test]
fn a_snapshot_and_the_entries_after_it_give_the_same_state_as_all_entries() {
    let dir = tempfile::tempdir().expect("tmp");
    let (mut replica, mut state, events) = open(dir.path());
    leading(&events);
    // 6 entries of 1 MiB: beyond the size from which a snapshot is worth its while.
    for number in 1..=6 {
        replica.propose(entry(number, 1 << 20)).expect("space");
        let (position, proposal) = committed(&events);
        state.apply(position, &proposal);
    }
    assert!(replica.is_compaction_due());
    replica.compact(&state).expect("space");
    assert!(!replica.is_compaction_due(), "one at a time");
    replica.propose(entry(7, 10)).expect("space");
    let (position, proposal) = committed(&events);
    state.apply(position, &proposal);
    wait_for(&replica, |health| health.snapshot_bytes > 0 && health.log_bytes < 1_000);
    assert!(!replica.is_compaction_due());
    drop(replica);
    let (_replica, again, _events) = open(dir.path());
    assert_eq!(again, state);
}

#[test]
fn a_term_can_be_raised_above_one_that_agents_have_seen() {
    let dir = tempfile::tempdir().expect("tmp");
    let (replica, _, events) = open(dir.path());
    leading(&events);
    replica.raise_term(Term(41));
    assert_eq!(leading(&events), Term(42));
    drop(replica);
    let (_replica, _, events) = open(dir.path());
    assert_eq!(leading(&events), Term(43));
}

#[test]
fn what_was_reported_committed_survives_kill_9() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        append_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().expect("tmp");
    let mut reported = 0;
    for round in 1..=5_u64 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "what_was_reported_committed_survives_kill_9", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("child");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let numbers = lines.filter_map(|line| line.expect("text").strip_prefix("committed ")?.parse::<u64>().ok());
        let last = numbers.take(usize::try_from(round * 7).expect("small")).last().expect("it commits");
        child.kill().expect("kill -9");
        child.wait().expect("dead");
        assert!(last > reported, "round {round}: it went on from where it was");
        reported = last;
        let (_replica, state, _events) = open(dir.path());
        assert!(state.applied() >= reported, "round {round}: {} of {reported} are left", state.applied());
        let model = state.model().expect("committed");
        assert!(model.meta.generation.0 >= reported, "round {round}");
        assert!(model.bytes.iter().all(|byte| *byte == model.meta.generation.0 as u8), "round {round}: mixed bytes");
    }
}

/// Commits entries and says so, until somebody kills it.
fn append_for_ever(dir: &Path) -> ! {
    let (mut replica, state, events) = open(dir);
    leading(&events);
    let mut out = std::io::stdout();
    let mut number = state.applied();
    loop {
        // Several at once, so that a kill finds transactions of more than one entry.
        for _ in 0..3 {
            number += 1;
            replica.propose(entry(number, 5_000)).expect("space");
        }
        for _ in 0..3 {
            let (position, _) = committed(&events);
            writeln!(out, "committed {position}").expect("the parent reads");
        }
    }
}

#[test]
fn a_copy_taken_in_the_midst_of_writing_is_a_prefix_or_is_refused() {
    let dir = tempfile::tempdir().expect("tmp");
    let (mut replica, _, events) = open(dir.path());
    leading(&events);
    let (mut refused, mut opened) = (0, 0);
    for number in 1..=60_u64 {
        replica.propose(entry(number, 20_000)).expect("space");
        if number % 6 == 0 {
            let copy = tempfile::tempdir().expect("tmp");
            std::fs::copy(dir.path().join("log.redb"), copy.path().join("log.redb")).expect("copied");
            match SingleReplica::open(copy.path(), State::new(100)) {
                Err(_) => refused += 1,
                Ok((_, state)) => {
                    opened += 1;
                    assert!(state.applied() <= number);
                    let generation = state.model().map_or(0, |model| model.meta.generation.0);
                    assert_eq!(generation, state.applied(), "every entry up to the last, and none after it");
                }
            }
        }
    }
    assert!(opened > 0, "all {refused} copies were refused");
}

#[test]
fn damage_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().expect("tmp");
    let (mut replica, _, events) = open(dir.path());
    leading(&events);
    for number in 1..=5 {
        replica.propose(entry(number, 3_000)).expect("space");
        committed(&events);
    }
    drop(replica);
    let path = dir.path().join("log.redb");
    let mut bytes = std::fs::read(&path).expect("there");
    // The payload of entry 4.
    let at = bytes.windows(100).position(|run| run.iter().all(|byte| *byte == 4)).expect("there");
    bytes[at + 50] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let error = SingleReplica::open(dir.path(), State::new(100)).err().expect("damage").to_string();
    assert!(error.contains("log.redb is damaged") && error.contains("Move the file away"), "{error}");
}

mod root_tests {
    use super::*;

    /// A small file system, gone with the test.
    struct Tiny(tempfile::TempDir);

    impl Tiny {
        fn mount(mib: u32) -> Self {
            let dir = tempfile::tempdir().expect("tmp");
            let size = format!("size={mib}m");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).status();
            assert!(mounted.expect("mount runs").success(), "needs root");
            Self(dir)
        }
    }

    impl Drop for Tiny {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        }
    }

    #[test]
    #[ignore = "needs root: make test-root"]
    fn a_full_disk_holds_entries_back_until_there_is_space_again() {
        let tiny = Tiny::mount(16);
        let dir = tiny.0.path();
        let filler = dir.join("filler");
        std::fs::write(&filler, vec![0; 12_000_000]).expect("space");
        let (mut replica, mut state, events) = open(dir);
        leading(&events);
        // More than fits beside the filler, less than fits without it.
        for number in 1..=50 {
            replica.propose(entry(number, 100_000)).expect("queued");
        }
        wait_for(&replica, |health| health.problem.is_some());
        let problem = replica.health().borrow().problem.clone().expect("told");
        assert!(problem.contains("no space left in"), "{problem}");
        assert!(replica.pending_bytes() > 0);
        std::fs::remove_file(&filler).expect("removed");
        for index in 1..=50 {
            let (position, proposal) = committed(&events);
            assert_eq!(position, index);
            state.apply(position, &proposal);
        }
        wait_for(&replica, |health| health.problem.is_none());
        assert_eq!(replica.pending_bytes(), 0);
        drop(replica);
        let (_replica, again, _events) = open(dir);
        assert_eq!(again, state);
    }

    #[test]
    #[ignore = "needs root: make test-root"]
    fn a_log_killed_on_a_full_disk_opens_with_what_was_committed() {
        let tiny = Tiny::mount(6);
        let dir = tiny.0.path();
        let (mut replica, _, events) = open(dir);
        leading(&events);
        let mut last = 0;
        for number in 1..=200 {
            replica.propose(entry(number, 100_000)).expect("queued");
        }
        wait_for(&replica, |health| health.problem.is_some());
        while let Ok(ReplicaEvent::Committed { index, .. }) = events.try_recv() {
            last = index;
        }
        assert!(last > 0, "some of it fitted");
        // As it stands on the disk, without a farewell.
        let copy = tempfile::tempdir().expect("tmp");
        std::fs::copy(dir.join("log.redb"), copy.path().join("log.redb")).expect("copied");
        let (_replica, state, _events) = open(copy.path());
        assert!(state.applied() >= last);
    }
}
