//! Leases on the real kernel, through a crash.

use sage_common::{ActionId, Knob, Micros, Setting, Term};
use sage_protocol::message::{Command as Wire, Order, Outcome, RevertReason};

use super::*;
use crate::{
    kernel::{Actuator, ActuatorPaths, KernelOptions, LinuxKernel},
    policy::{CgroupState, Policy, PolicyInputs},
};

const POLICY: &str = r#"
    [[best_effort]]
    cgroup = "sage-test-*"
    trust = "auto"
    knobs = ["cpu_quota", "cpuset", "freeze", "egress_ceiling"]
    egress = { dst_ports = [5201] }
    [[link]]
    name = "v0"
    trust = "auto"
    knobs = ["egress_rate"]
"#;

fn open(dir: &Path, cgroup: &CgroupPath) -> (Actuator<LinuxKernel>, Vec<(u64, Outcome)>) {
    let paths =
        ActuatorPaths { state_dir: dir.join("state"), audit_file: dir.join("audit.jsonl"), proc_root: "/proc".into() };
    let policy = Policy::parse(POLICY, "test").expect("policy");
    let kernel = LinuxKernel::open(&KernelOptions::default()).expect("kernel");
    let (mut actuator, results) = Actuator::open(&paths, policy, kernel, Micros::ZERO).expect("open");
    let cgroups = vec![CgroupState::new(cgroup.clone(), None)];
    actuator.set_inputs(PolicyInputs { cgroups, ..PolicyInputs::default() });
    (actuator, results.into_iter().map(|result| (result.action.0, result.outcome)).collect())
}

#[test]
#[ignore = "needs root: make test-root"]
fn a_crash_with_every_limit_in_force_is_undone_by_the_next_start() {
    let mut cgroup = TestCgroup::new("crash");
    cgroup.spawn(Stdio::null());
    let dir = tempfile::tempdir().expect("temporary directory");
    in_own_namespace(move || {
        let link = veth("v0");
        let path = || cgroup.path.clone();
        let wanted = [
            (Knob::CpuQuota { cgroup: path() }, Setting::Cores(Some(200))),
            (Knob::Freeze { cgroup: path() }, Setting::Frozen(true)),
            (Knob::EgressCeiling { link: link.clone(), cgroup: path() }, Setting::Rate(Some(1_000_000))),
            (Knob::EgressRate { link: link.clone() }, Setting::Rate(Some(50_000_000))),
        ];
        let (mut actuator, left) = open(dir.path(), &cgroup.path);
        assert_eq!(left, []);
        for (action, (knob, setting)) in (1..).zip(&wanted) {
            let order = Order::Apply {
                knob: knob.clone(),
                setting: setting.clone(),
                lease: Micros::from_secs(60),
                service: "geo".parse().expect("valid"),
                reason: "test".to_owned(),
            };
            let command = Wire { term: Term(1), action: ActionId(action), order };
            let results = actuator.command(command, Micros::from_secs(1));
            assert!(matches!(results[0].outcome, Outcome::Applied { .. }), "{results:?}");
        }
        assert_eq!(cgroup.file("cpu", "cpu.cfs_quota_us"), "20000");
        assert_eq!(cgroup.file("freezer", "freezer.state"), "FROZEN");
        assert!(root_qdisc(&link).contains("htb"));

        // What a kill leaves: the files and the kernel, and nothing told to either.
        drop(actuator);
        let (mut actuator, undone) = open(dir.path(), &cgroup.path);
        let recovered = |action| (action, Outcome::Reverted(RevertReason::Recovered));
        assert_eq!(undone, [recovered(1), recovered(2), recovered(3), recovered(4)]);
        assert_eq!(cgroup.file("cpu", "cpu.cfs_quota_us"), "-1");
        assert_eq!(cgroup.file("freezer", "freezer.state"), "THAWED");
        assert!(root_qdisc(&link).contains("noqueue"), "{}", root_qdisc(&link));
        assert_eq!(actuator.leases(Micros::ZERO), []);
        assert_eq!(actuator.close(Micros::from_secs(2)), []);
        let audit = fs::read_to_string(dir.path().join("audit.jsonl")).expect("audit");
        assert_eq!(audit.matches("\"event\":\"revert\"").count(), 4, "{audit}");
    });
}
