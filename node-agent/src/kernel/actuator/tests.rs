//! The actuator with real files and the recording kernel.
#![expect(clippy::disallowed_methods, reason = "tests keep files")]

use std::{collections::BTreeSet, fs};

use sage_common::{CgroupPath, KnobKind};
use sage_protocol::message::{Order, Refusal, RevertReason};

use super::*;
use crate::{kernel::RecordingKernel, policy::CgroupState};

const POLICY: &str = r#"
    [[best_effort]]
    cgroup = "app/batch"
    trust = "auto"
    knobs = ["cpu_quota", "freeze"]
"#;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// A state directory, and a procfs of a machine in this boot.
    fn new(boot: &str) -> Self {
        let files = Self { dir: tempfile::tempdir().expect("temporary directory") };
        fs::create_dir_all(files.dir.path().join("proc/sys/kernel/random")).expect("mkdir");
        files.set_boot(boot);
        files
    }

    fn set_boot(&self, boot: &str) {
        fs::write(self.dir.path().join("proc/sys/kernel/random/boot_id"), format!("{boot}\n")).expect("write");
    }

    fn open(&self, kernel: RecordingKernel) -> (Actuator<RecordingKernel>, Vec<CommandResult>) {
        let paths = ActuatorPaths {
            state_dir: self.dir.path().join("state"),
            audit_file: self.dir.path().join("audit.jsonl"),
            proc_root: self.dir.path().join("proc"),
        };
        let policy = Policy::parse(POLICY, "test").expect("valid");
        Actuator::open(&paths, policy, kernel, Micros::ZERO).expect("open")
    }

    fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("audit.jsonl")).expect("audit");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

fn batch() -> CgroupPath {
    CgroupPath::try_from("app/batch".to_owned()).expect("valid")
}

fn quota() -> Knob {
    Knob::CpuQuota { cgroup: batch() }
}

fn kernel() -> RecordingKernel {
    RecordingKernel::new([(quota(), Setting::Cores(None)), (Knob::Freeze { cgroup: batch() }, Setting::Frozen(false))])
}

fn apply(action: u64, cores: u32) -> Command {
    let order = Order::Apply {
        knob: quota(),
        setting: Setting::Cores(Some(cores)),
        lease: Micros::from_secs(10),
        service: "geo".parse().expect("valid"),
        reason: "geo waits for CPU".to_owned(),
    };
    Command { term: Term(1), action: ActionId(action), order }
}

fn outcomes(results: Vec<CommandResult>) -> Vec<Outcome> {
    results.into_iter().map(|result| result.outcome).collect()
}

#[test]
fn a_change_and_its_return_are_audited_line_by_line() {
    let files = Files::new("boot");
    let (mut actuator, _) = files.open(kernel());
    actuator.command(apply(7, 500), Micros::ZERO);
    actuator.command(Command { term: Term(0), ..apply(8, 500) }, Micros::ZERO);
    let expired = outcomes(actuator.tick(Micros::from_secs(10)));
    assert_eq!(expired, [Outcome::Reverted(RevertReason::Expired)]);
    assert_eq!(outcomes(actuator.close(Micros::from_secs(11))), []);

    let audit = files.audit();
    let events: Vec<&str> = audit.iter().map(|line| line["event"].as_str().expect("event")).collect();
    assert_eq!(events, ["start", "command", "write", "result", "command", "result", "revert", "result", "stop"]);
    assert_eq!(audit[1]["order"]["Apply"]["reason"], "geo waits for CPU");
    assert_eq!((&audit[2]["setting"], &audit[2]["read_back"]), (&json!("0.50 cores"), &json!("0.50 cores")));
    assert_eq!(audit[5]["outcome"]["Refused"]["StaleTerm"], 1);
    assert_eq!(audit[6]["read_back"], "no limit");
}

#[test]
fn a_kill_is_undone_by_the_next_start_and_a_reboot_needs_no_undoing() {
    for (boot, writes) in [("boot", 2), ("another boot", 1)] {
        let files = Files::new("boot");
        let (mut actuator, _) = files.open(kernel());
        actuator.command(apply(7, 500), Micros::ZERO);
        let left = actuator.kernel.clone();
        drop(actuator);

        files.set_boot(boot);
        let (actuator, results) = files.open(left);
        assert_eq!(outcomes(results), [Outcome::Reverted(RevertReason::Recovered)]);
        assert_eq!(actuator.kernel().writes.len(), writes, "{boot}");
        drop(actuator);
        let (_, results) = files.open(kernel());
        assert_eq!(results, [], "nothing is left to a third life");
    }
}

#[test]
fn what_cannot_be_given_back_at_shutdown_is_a_problem_now_and_undone_later() {
    let files = Files::new("boot");
    let (mut actuator, _) = files.open(kernel());
    actuator.command(apply(7, 500), Micros::ZERO);
    actuator.kernel.refuse.insert(quota());
    let results = outcomes(actuator.close(Micros::from_secs(1)));
    assert!(matches!(&results[..], [Outcome::Failed(text)] if text.contains("cannot be given back yet")));
    let problems = actuator.problems(Micros::from_secs(1));
    assert!(problems.iter().any(|text| text.contains("cpu_quota(app/batch) not given back")), "{problems:?}");

    let left = RecordingKernel { refuse: BTreeSet::new(), ..actuator.kernel.clone() };
    drop(actuator);
    let (actuator, _) = files.open(left);
    assert_eq!(actuator.kernel().settings[&quota()], Setting::Cores(None));
    assert_eq!(actuator.problems(Micros::ZERO), Vec::<String>::new());
}

#[test]
fn offers_are_what_policy_names_and_this_kernel_has() {
    let files = Files::new("boot");
    let mut kernel = kernel();
    kernel.lacks.insert(KnobKind::Freeze);
    let (mut actuator, _) = files.open(kernel);
    let inputs = PolicyInputs { cgroups: vec![CgroupState::new(batch(), None)], ..PolicyInputs::default() };
    let offered: Vec<Knob> = actuator.offers(&inputs).into_iter().map(|offer| offer.knob).collect();
    assert_eq!(offered, [quota()]);

    // A kind that is lacking is refused as such, whatever the aggregator believes.
    let mut command = apply(7, 500);
    if let Order::Apply { knob, setting, .. } = &mut command.order {
        (*knob, *setting) = (Knob::Freeze { cgroup: batch() }, Setting::Frozen(true));
    }
    let results = outcomes(actuator.command(command, Micros::ZERO));
    assert!(matches!(&results[..], [Outcome::Refused(Refusal::Unsupported(_))]), "{results:?}");
}

#[test]
fn another_policy_holds_for_the_next_request() {
    let files = Files::new("boot");
    let (mut actuator, _) = files.open(kernel());
    actuator.command(apply(7, 500), Micros::ZERO);
    actuator.set_policy(Policy::default());
    assert_eq!(actuator.held(Micros::from_secs(1)).len(), 1, "what is held stays");
    actuator.tick(Micros::from_secs(10));
    let results = outcomes(actuator.command(apply(8, 500), Micros::from_secs(10)));
    assert!(matches!(&results[..], [Outcome::Refused(Refusal::Policy(_))]), "{results:?}");
}
