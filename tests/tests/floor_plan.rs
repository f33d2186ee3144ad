//! The floor plan of ARCHITECTURE.md, held by reading the source: which crate and module may name what.

use sage_tests::sources::{Source, below, lines_naming, manifest};

/// Floors 0 and 1: everything that decides.
const PURE: [&str; 10] = [
    "common/src",
    "protocol/src/message.rs",
    "protocol/src/codec.rs",
    "protocol/src/frame.rs",
    "protocol/src/session",
    "node-agent/src/core",
    "node-agent/src/parse",
    "aggregator/src/core",
    "aggregator/causal/src",
    "aggregator/ctl/src/pipeline",
];

/// What a pure module may not name: clocks, files, sockets, threads, tasks, ambient randomness.
const IMPURE: [&str; 14] = [
    "tokio",
    "quinn",
    "redb",
    "ureq",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "Instant",
    "SystemTime",
    "thread_rng",
    "from_os_rng",
    "rustix",
];

/// A dependency and the only folders or files that may name it.
const DOORS: [(&str, &[&str]); 6] = [
    ("quinn", &["protocol/src/quic"]),
    ("bincode", &["protocol/src/codec.rs"]),
    ("dfdx", &["aggregator/causal/src/gvae"]),
    ("gemm", &["aggregator/causal/src/gvae"]),
    ("neli", &["node-agent/src/kernel"]),
    ("redb", &["aggregator/src/replica"]),
];

const CRATES: [&str; 8] =
    ["common", "protocol", "node-agent", "aggregator", "aggregator/causal", "aggregator/ctl", "bench", "tests"];

fn sources(folders: &[&str]) -> Vec<Source> {
    folders.iter().flat_map(|folder| below(folder)).collect()
}

#[test]
fn every_pure_folder_is_there_to_be_checked() {
    for folder in PURE {
        assert!(!below(folder).is_empty(), "{folder} holds no source: mend the list above");
    }
}

#[test]
fn what_decides_names_no_clock_file_socket_thread_or_ambient_randomness() {
    let pure = sources(&PURE);
    let found: Vec<String> = IMPURE.iter().flat_map(|word| lines_naming(&pure, word)).collect();
    assert!(found.is_empty(), "time, bytes and randomness are arguments there:\n{}", found.join("\n"));
}

#[test]
fn no_pure_module_steps_over_the_purity_fence() {
    let found = lines_naming(&sources(&PURE), "clippy::disallowed_methods");
    assert!(found.is_empty(), "only drivers may:\n{}", found.join("\n"));
}

#[test]
fn every_dependency_comes_in_by_one_door() {
    let all = sources(&[
        "common/src",
        "protocol/src",
        "node-agent/src",
        "aggregator/src",
        "aggregator/causal/src",
        "aggregator/ctl/src",
        "bench/src",
    ]);
    for (dependency, doors) in DOORS {
        let outside: Vec<Source> =
            all.iter().filter(|source| !doors.iter().any(|door| source.path.starts_with(door))).cloned().collect();
        let found = lines_naming(&outside, dependency);
        assert!(found.is_empty(), "{dependency} belongs to {doors:?}:\n{}", found.join("\n"));
        let inside: Vec<Source> = doors.iter().flat_map(|door| below(door)).collect();
        assert!(!lines_naming(&inside, dependency).is_empty(), "{dependency} is named nowhere: mend the list above");
    }
}

#[test]
fn arrows_between_crates_point_down_only() {
    let forbidden = [
        (
            "common",
            &[
                "sage-protocol",
                "sage-node-agent",
                "sage-aggregator",
                "sage-causal",
                "sage-ctl",
                "sage-bench",
                "sage-tests",
            ][..],
        ),
        ("protocol", &["sage-node-agent", "sage-aggregator", "sage-causal", "sage-bench", "sage-tests"]),
        ("node-agent", &["sage-aggregator", "sage-causal", "sage-bench", "sage-tests"]),
        ("aggregator/causal", &["sage-protocol", "sage-node-agent", "sage-aggregator", "sage-bench", "sage-tests"]),
        ("aggregator", &["sage-node-agent", "sage-ctl", "sage-bench", "sage-tests"]),
        ("aggregator/ctl", &["sage-bench", "sage-tests"]),
    ];
    for (crate_folder, names) in forbidden {
        let manifest = manifest(crate_folder);
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        for name in names {
            assert!(
                !dependencies.lines().any(|line| line.starts_with(name)),
                "{crate_folder} must not depend on {name}"
            );
        }
    }
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    for crate_folder in CRATES {
        assert!(manifest(crate_folder).contains("[lints]\nworkspace = true"), "{crate_folder}/Cargo.toml");
    }
}

#[test]
fn the_scanner_sees_what_it_should() {
    let source =
        Source { path: "x.rs".into(), code: vec![(3, "use tokio::net;".into()), (4, "let tokio_like = 1;".into())] };
    assert_eq!(lines_naming(&[source], "tokio"), ["x.rs:3: use tokio::net;"]);
}
