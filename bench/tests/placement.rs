//! Tiers run where they are placed: in a network namespace, in a cgroup. Needs privilege and a real kernel.
#![expect(clippy::disallowed_methods, reason = "reads what the kernel says of a process")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use sage_bench::app::supervise::{App, AppSpec, Place};
use support::program;

/// A network namespace with loopback, and a cgroup for CPU; both go when dropped.
struct Ground {
    netns: String,
    cgroup: PathBuf,
}

impl Ground {
    fn new() -> Self {
        let netns = format!("sage-bench-{}", std::process::id());
        ip(&["netns", "add", &netns]);
        let mut roots = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"].map(Path::new).into_iter();
        let root = roots.find(|root| root.join("cgroup.procs").exists()).expect("a cgroup hierarchy");
        let ground = Self { cgroup: root.join(&netns), netns };
        ip(&["-n", &ground.netns, "link", "set", "lo", "up"]);
        std::fs::create_dir(&ground.cgroup).expect("may make cgroups");
        ground
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.netns]);
        support::eventually("the cgroup is empty", || std::fs::remove_dir(&self.cgroup).is_ok());
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("iproute2 is there");
    assert!(status.success(), "ip {args:?}");
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN and CAP_NET_ADMIN: make test-root"]
fn placed_tiers_serve_in_their_namespace_and_count_in_their_cgroup() {
    let ground = Ground::new();
    let mut spec = AppSpec::new(program(), "demo");
    for service in ["frontend", "checkout", "catalog", "payment", "cart-cache", "orders-db"] {
        let place =
            Place { netns: Some(ground.netns.clone()), cgroups: vec![ground.cgroup.clone()], ..Place::default() };
        spec.placement.insert(service.to_owned(), place);
    }
    let mut app = App::start(spec).expect("starts");
    let ours = std::fs::read_link("/proc/self/ns/net").expect("readable");
    let members = std::fs::read_to_string(ground.cgroup.join("cgroup.procs")).expect("readable");
    for tier in app.tiers() {
        assert_ne!(std::fs::read_link(format!("/proc/{}/ns/net", tier.pid)).expect("runs"), ours);
        assert!(members.lines().any(|pid| pid == tier.pid.to_string()), "{} is in {members:?}", tier.pid);
    }
    let load = Command::new("ip")
        .args(["netns", "exec", &ground.netns])
        .arg(program())
        .args(["load", "--rate", "20", "--duration", "2", "--target", &app.entry().to_string()])
        .output()
        .expect("runs");
    let lines = String::from_utf8(load.stdout).expect("text");
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().expect("a summary")).expect("JSON");
    assert_eq!(last["summary"]["errors"], 0, "{lines}");
    assert!(last["summary"]["completed"].as_u64().is_some_and(|completed| completed > 10), "{lines}");
    app.stop();
}
