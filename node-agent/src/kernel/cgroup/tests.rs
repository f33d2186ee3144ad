//! Version 2 on a tree of plain files in the kernel's formats; version 1 on the real kernel is in `root_tests`.
#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::{fs, os::unix::fs::symlink, path::Path};

use sage_common::{CgroupPath, CpuList};

use super::*;

fn cgroup(path: &str) -> CgroupPath {
    CgroupPath::try_from(path.to_owned()).expect("valid")
}

/// A version 2 root with one cgroup, `app`, as a fresh kernel shows it.
fn unified() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("temporary directory");
    let app = root.path().join("app");
    fs::create_dir(&app).expect("mkdir");
    fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids").expect("write");
    for (name, text) in [
        ("cgroup.procs", ""),
        ("cpu.max", "max 100000\n"),
        ("cpu.max.burst", "0\n"),
        ("cpu.weight", "100\n"),
        ("cpuset.cpus", "\n"),
        ("cpuset.cpus.effective", "0-3\n"),
        ("cgroup.freeze", "0\n"),
        ("cgroup.events", "populated 1\nfrozen 1\n"),
    ] {
        fs::write(app.join(name), text).expect("write");
    }
    root
}

fn file(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join("app").join(name)).expect("read")
}

fn knobs() -> [(Knob, Setting, &'static str, &'static str); 4] {
    let cgroup = cgroup("app");
    let cpus = Setting::Cpus(CpuList::try_from(vec![1, 2]).expect("valid"));
    [
        (Knob::CpuQuota { cgroup: cgroup.clone() }, Setting::Cores(Some(1_500)), "cpu.max", "150000 100000\n"),
        (Knob::CpuWeight { cgroup: cgroup.clone() }, Setting::Weight(333), "cpu.weight", "333\n"),
        (Knob::Cpuset { cgroup: cgroup.clone() }, cpus, "cpuset.cpus", "1-2\n"),
        (Knob::Freeze { cgroup }, Setting::Frozen(true), "cgroup.freeze", "1\n"),
    ]
}

#[test]
fn each_controller_is_found_by_itself() {
    let root = unified();
    let v2 = Mount::V2(root.path().to_owned());
    let layout = Layout::detect(root.path());
    assert_eq!((layout.cpu().ok(), layout.cpuset().ok(), layout.freezer().ok()), (Some(&v2), Some(&v2), Some(&v2)));

    // A cgroup called "cpu" below a unified root is no version 1 hierarchy.
    fs::create_dir(root.path().join("cpu")).expect("mkdir");
    fs::write(root.path().join("cpu/cgroup.procs"), "").expect("write");
    assert_eq!(Layout::detect(root.path()), layout);

    let hybrid = tempfile::tempdir().expect("temporary directory");
    for dir in ["cpu,cpuacct", "unified"] {
        fs::create_dir(hybrid.path().join(dir)).expect("mkdir");
    }
    fs::write(hybrid.path().join("cpu,cpuacct/cgroup.procs"), "").expect("write");
    fs::write(hybrid.path().join("unified/cgroup.controllers"), "cpuset\n").expect("write");
    symlink("cpu,cpuacct", hybrid.path().join("cpu")).expect("symlink");
    let layout = Layout::detect(hybrid.path());
    let unified = Mount::V2(hybrid.path().join("unified"));
    assert_eq!(layout.cpu().ok(), Some(&Mount::V1(hybrid.path().join("cpu"))));
    assert_eq!((layout.cpuset().ok(), layout.freezer().ok()), (Some(&unified), Some(&unified)));

    let empty = tempfile::tempdir().expect("temporary directory");
    assert!(matches!(Layout::detect(empty.path()).cpu(), Err(KernelError::Unavailable { .. })));
}

#[test]
fn version_2_knobs_are_written_in_the_kernels_format_and_restored_to_the_letter() {
    let root = unified();
    let layout = Layout::detect(root.path());
    for (knob, setting, name, text) in knobs() {
        let original = file(root.path(), name);
        let before = capture(&layout, &knob).expect("capture");
        write(&layout, &knob, &setting).expect("write");
        assert_eq!(file(root.path(), name), text, "{knob}");
        assert_eq!(capture(&layout, &knob).expect("read back").setting, setting, "{knob}");
        restore(&layout, &knob, &before).expect("restore");
        assert_eq!(file(root.path(), name), original, "{knob}");
    }
}

#[test]
fn quotas_keep_the_cgroups_own_period_and_odd_values_come_back_whole() {
    let root = unified();
    let layout = Layout::detect(root.path());
    let knob = Knob::CpuQuota { cgroup: cgroup("app") };
    // No newline, an odd period, a quota that is no whole number of millicores.
    fs::write(root.path().join("app/cpu.max"), "12345 50000").expect("write");
    let before = capture(&layout, &knob).expect("capture");
    assert_eq!(before.setting, Setting::Cores(Some(247)));
    write(&layout, &knob, &Setting::Cores(Some(333))).expect("write");
    assert_eq!(file(root.path(), "cpu.max"), "16650 50000\n");
    assert_eq!(capture(&layout, &knob).expect("read").setting, Setting::Cores(Some(333)));
    restore(&layout, &knob, &before).expect("restore");
    assert_eq!(file(root.path(), "cpu.max"), "12345 50000\n");
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let root = unified();
    let layout = Layout::detect(root.path());
    let gone = capture(&layout, &Knob::CpuQuota { cgroup: cgroup("absent") }).expect_err("absent");
    assert!(gone.is_gone(), "{gone}");

    fs::remove_file(root.path().join("app/cpu.max")).expect("remove");
    let disabled = capture(&layout, &Knob::CpuQuota { cgroup: cgroup("app") }).expect_err("not enabled").to_string();
    assert!(disabled.contains("subtree_control"), "{disabled}");

    fs::write(root.path().join("app/cpu.weight"), "plenty").expect("write");
    let unknown = capture(&layout, &Knob::CpuWeight { cgroup: cgroup("app") }).expect_err("unknown").to_string();
    assert!(unknown.contains("cpu.weight") && unknown.contains("plenty"), "{unknown}");

    fs::write(root.path().join("app/cpu.weight"), "0").expect("write");
    let idle = capture(&layout, &Knob::CpuWeight { cgroup: cgroup("app") }).expect_err("idle").to_string();
    assert!(idle.contains("cpu.idle"), "{idle}");
}

#[test]
fn a_link_cannot_lead_a_knob_out_of_its_hierarchy() {
    let root = unified();
    let elsewhere = unified();
    symlink(elsewhere.path().join("app"), root.path().join("escape")).expect("symlink");
    symlink(elsewhere.path().join("app/cpu.weight"), root.path().join("app/cpu.weight.link")).expect("symlink");
    fs::rename(root.path().join("app/cpu.weight.link"), root.path().join("app/cpu.weight")).expect("rename");
    let layout = Layout::detect(root.path());
    for path in ["escape", "app"] {
        let knob = Knob::CpuWeight { cgroup: cgroup(path) };
        assert!(write(&layout, &knob, &Setting::Weight(1)).is_err(), "{path}");
    }
    assert_eq!(file(elsewhere.path(), "cpu.weight"), "100\n");
}
