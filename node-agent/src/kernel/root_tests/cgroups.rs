//! The cgroup knobs on version 1 hierarchies.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use sage_common::{CpuList, Knob, Setting};

use super::*;
use crate::{
    core::actuation::Before,
    kernel::{
        KernelError, KernelInterface, KernelOptions, LinuxKernel, capabilities,
        contract::{self, Case},
    },
};

fn kernel() -> LinuxKernel {
    LinuxKernel::open(&KernelOptions::default()).expect("open")
}

#[test]
#[ignore = "needs root: make test-root"]
fn the_real_kernels_cgroups_keep_the_contract() {
    let mut cgroup = TestCgroup::new("contract");
    cgroup.spawn(Stdio::null());
    let path = || cgroup.path.clone();
    let cpu = |cpu: u16| Setting::Cpus(CpuList::try_from(vec![cpu]).expect("valid"));
    let cases = [
        Case {
            knob: Knob::CpuQuota { cgroup: path() },
            settings: [333, 1_500].map(|cores| Setting::Cores(Some(cores))),
        },
        Case { knob: Knob::CpuWeight { cgroup: path() }, settings: [1, 10_000].map(Setting::Weight) },
        Case { knob: Knob::Cpuset { cgroup: path() }, settings: [cpu(0), cpu(1)] },
        Case { knob: Knob::Freeze { cgroup: path() }, settings: [Setting::Frozen(true), Setting::Frozen(true)] },
    ];
    let absent = CgroupPath::try_from("sage-test-absent/x".to_owned()).expect("valid");
    contract::holds(
        &mut kernel(),
        &cases,
        &[
            Knob::CpuQuota { cgroup: absent.clone() },
            Knob::Cpuset { cgroup: absent.clone() },
            Knob::Freeze { cgroup: absent },
        ],
    );
}

#[test]
#[ignore = "needs root: make test-root"]
fn what_our_units_round_comes_back_to_the_letter() {
    let cgroup = TestCgroup::new("exact");
    let (cpu, mut kernel) = (cgroup.dir("cpu"), kernel());
    fs::write(cpu.join("cpu.cfs_period_us"), "50000").expect("write");
    fs::write(cpu.join("cpu.cfs_quota_us"), "12345").expect("write");
    fs::write(cpu.join("cpu.shares"), "2").expect("write");
    let quota = Knob::CpuQuota { cgroup: cgroup.path.clone() };
    let weight = Knob::CpuWeight { cgroup: cgroup.path.clone() };
    for (knob, setting, file) in
        [(quota, Setting::Cores(Some(100)), "cpu.cfs_quota_us"), (weight, Setting::Weight(50), "cpu.shares")]
    {
        let text = cgroup.file("cpu", file);
        let before = kernel.capture(&knob).expect("capture");
        kernel.write(&knob, &setting).expect("write");
        assert_ne!(cgroup.file("cpu", file), text);
        kernel.restore(&knob, &before).expect("restore");
        assert_eq!(cgroup.file("cpu", file), text);
    }
    assert_eq!(cgroup.file("cpu", "cpu.cfs_period_us"), "50000");
}

#[test]
#[ignore = "needs root: make test-root"]
fn a_frozen_process_stands_still_before_the_write_returns() {
    let mut cgroup = TestCgroup::new("freeze");
    let pid = cgroup.spawn(Stdio::null());
    let (knob, mut kernel) = (Knob::Freeze { cgroup: cgroup.path.clone() }, kernel());
    kernel.write(&knob, &Setting::Frozen(true)).expect("freeze");
    assert_eq!(cgroup.file("freezer", "freezer.state"), "FROZEN");
    let state = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        status.lines().find_map(|line| line.strip_prefix("State:")).expect("state").trim().to_owned()
    };
    assert!(state(pid).starts_with('D'), "{}", state(pid));
    kernel.restore(&knob, &Before::from(Setting::Frozen(false))).expect("thaw");
    assert_eq!(cgroup.file("freezer", "freezer.state"), "THAWED");
}

#[test]
#[ignore = "needs root: make test-root"]
fn what_the_kernel_refuses_comes_with_a_reason() {
    let cgroup = TestCgroup::new("refused");
    let child = CgroupPath::try_from(format!("{}/child", cgroup.path)).expect("valid");
    let child_dirs: Vec<_> = ["cpu", "cpuset"].map(|controller| cgroup.dir(controller).join("child")).into();
    for dir in &child_dirs {
        fs::create_dir(dir).expect("mkdir");
    }
    let mut kernel = kernel();
    fs::write(cgroup.dir("cpu").join("cpu.cfs_quota_us"), "50000").expect("write");
    let over_parent = kernel.write(&Knob::CpuQuota { cgroup: child.clone() }, &Setting::Cores(Some(800)));
    let no_mems = kernel.read(&Knob::Cpuset { cgroup: child });
    fs::write(cgroup.dir("cpu").join("cpu.cfs_quota_us"), "-1").expect("write");
    fs::write(cgroup.dir("cpu").join("cpu.cfs_period_us"), "2000").expect("write");
    let too_small = kernel.write(&Knob::CpuQuota { cgroup: cgroup.path.clone() }, &Setting::Cores(Some(10)));
    for dir in &child_dirs {
        fs::remove_dir(dir).expect("rmdir");
    }
    let text = |error: KernelError| error.to_string();
    assert!(text(over_parent.expect_err("over the parent's")).contains("parent"));
    assert!(text(no_mems.expect_err("no memory nodes")).contains("cpuset.mems"));
    assert!(text(too_small.expect_err("under a millisecond")).contains("1 ms"));
}

#[test]
#[ignore = "needs root: make test-root"]
fn a_cgroup_that_vanishes_while_it_is_used_is_gone_and_nothing_worse() {
    let path = CgroupPath::try_from(format!("sage-test-{}-race", std::process::id())).expect("valid");
    let dir = Path::new(CGROUP_ROOT).join("cpu").join(path.as_str());
    let (knob, mut kernel) = (Knob::CpuQuota { cgroup: path }, kernel());
    let has_ended = Arc::new(AtomicBool::new(false));
    let racer = {
        let has_ended = Arc::clone(&has_ended);
        thread::spawn(move || {
            while !has_ended.load(Ordering::Relaxed) {
                fs::create_dir(&dir).expect("mkdir");
                fs::remove_dir(&dir).expect("rmdir");
            }
        })
    };
    let mut outcomes = [0; 2];
    // Ends: the racer goes on until both outcomes have been seen often enough, or something else.
    let failure = loop {
        let results = [kernel.read(&knob).map(drop), kernel.write(&knob, &Setting::Cores(Some(500)))];
        let mut others = None;
        for result in results {
            match result {
                Ok(()) => outcomes[0] += 1,
                Err(error) if error.is_gone() => outcomes[1] += 1,
                Err(error) => others = Some(error),
            }
        }
        if others.is_some() || racer.is_finished() || outcomes.iter().all(|count| *count >= 200) {
            break others;
        }
    };
    has_ended.store(true, Ordering::Relaxed);
    racer.join().expect("racer");
    assert!(failure.is_none(), "{failure:?}");
}

#[test]
#[ignore = "needs root: make test-root"]
fn the_capability_report_tells_what_this_machine_has() {
    let found = capabilities(&KernelOptions::default());
    let shown: Vec<String> = found.iter().map(|found| format!("{}: {}", found.name, found.state)).collect();
    for name in ["cgroup CPU", "cgroup cpuset", "cgroup freezer", "tc HTB", "tc TBF", "tc u32"] {
        assert!(shown.iter().any(|line| line.starts_with(name) && line.ends_with("works")), "{name}: {shown:#?}");
    }
}
