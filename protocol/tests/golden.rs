//! The bytes of every message are fixed. A change of these files is a change of the protocol's version.
//! `UPDATE_GOLDEN=1 cargo test -p sage-protocol --test golden` writes them anew.
#![expect(clippy::disallowed_methods, reason = "the golden files are files")]

mod support;

use std::{fmt::Debug, fs, path::PathBuf};

use sage_common::{ActionId, BootId, CgroupPath, Knob, Micros, Setting, Term};
use sage_protocol::{
    EncodedWindow, codec,
    frame::encode_message,
    message::{
        AgentStatus, Command, CommandResult, FromAgent, FromAggregator, HeldLease, Hello, Order, Outcome, Refusal,
        RevertReason, Welcome, WindowMessage,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use support::{full_window, name};

fn hold<T: Serialize + DeserializeOwned + PartialEq + Debug>(file: &str, message: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    let bytes = codec::encode(message).expect("short");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &bytes).expect("golden is writable");
    }
    let golden = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(bytes, golden, "{file} has other bytes than before");
    assert_eq!(&codec::decode::<T>(&golden).expect("still a message"), message, "{file} reads as another message");
}

fn quota() -> Knob {
    let cgroup: CgroupPath = name("sage-demo/node-a/batch");
    Knob::CpuQuota { cgroup }
}

#[test]
fn messages_of_agents_keep_their_bytes() {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        node: name("node-a"),
        boot: BootId(0x0123_4567_89ab_cdef),
        program: "sage-agent 0.1.0".to_owned(),
        term: Term(7),
        held: vec![HeldLease {
            action: ActionId(300),
            knob: quota(),
            setting: Setting::Cores(Some(500)),
            remaining: Micros::from_secs(42),
        }],
    };
    let status = AgentStatus { spooled: 3, leases: 1, is_frozen: true };
    for message in [
        FromAgent::Hello(hello),
        FromAgent::Heartbeat(status),
        FromAgent::Result(CommandResult { action: ActionId(300), outcome: Outcome::Renewed }),
    ] {
        let file = match &message {
            FromAgent::Hello(_) => "from_agent_hello.bin",
            FromAgent::Heartbeat(_) => "from_agent_heartbeat.bin",
            FromAgent::Result(_) => "from_agent_result.bin",
        };
        hold(file, &message);
    }
}

#[test]
fn messages_of_aggregators_keep_their_bytes() {
    let boot = BootId(9);
    let reason = "frontend p99 is late".to_owned();
    for message in [
        FromAggregator::Welcome(Welcome {
            version: 1,
            term: Term(7),
            leader: "aggregator-1".to_owned(),
            acknowledged_below: 1_000,
        }),
        FromAggregator::Redirect(Some("10.0.0.2:7443".to_owned())),
        FromAggregator::Refused(reason.clone()),
        FromAggregator::Heartbeat(Term(7)),
        FromAggregator::Acknowledged { boot, sequences: vec![0, 250, 251, 65_536] },
        FromAggregator::Command(Command { term: Term(7), action: ActionId(300), order: Order::Freeze }),
        FromAggregator::Rejected { boot, sequence: 8, reason },
    ] {
        let file = match &message {
            FromAggregator::Welcome(_) => "from_aggregator_welcome.bin",
            FromAggregator::Redirect(_) => "from_aggregator_redirect.bin",
            FromAggregator::Refused(_) => "from_aggregator_refused.bin",
            FromAggregator::Heartbeat(_) => "from_aggregator_heartbeat.bin",
            FromAggregator::Acknowledged { .. } => "from_aggregator_acknowledged.bin",
            FromAggregator::Command(_) => "from_aggregator_command.bin",
            FromAggregator::Rejected { .. } => "from_aggregator_rejected.bin",
        };
        hold(file, &message);
    }
}

#[test]
fn orders_keep_their_bytes() {
    for order in [
        Order::Apply {
            knob: quota(),
            setting: Setting::Cores(Some(250)),
            lease: Micros::from_secs(60),
            service: name("geo"),
            reason: "batch takes the cores that geo needs".to_owned(),
        },
        Order::Renew { lease: Micros::from_secs(60) },
        Order::Revoke,
        Order::Freeze,
        Order::Thaw,
    ] {
        let file = match &order {
            Order::Apply { .. } => "order_apply.bin",
            Order::Renew { .. } => "order_renew.bin",
            Order::Revoke => "order_revoke.bin",
            Order::Freeze => "order_freeze.bin",
            Order::Thaw => "order_thaw.bin",
        };
        hold(file, &order);
    }
}

#[test]
fn outcomes_keep_their_bytes() {
    for outcome in [
        Outcome::Applied { before: Setting::Cores(None), now: Setting::Cores(Some(250)) },
        Outcome::Renewed,
        Outcome::Reverted(RevertReason::Expired),
        Outcome::Drifted { found: Setting::Weight(50) },
        Outcome::Refused(Refusal::Frozen),
        Outcome::Failed("Device or resource busy".to_owned()),
        Outcome::Frozen(true),
    ] {
        let file = match &outcome {
            Outcome::Applied { .. } => "outcome_applied.bin",
            Outcome::Renewed => "outcome_renewed.bin",
            Outcome::Reverted(_) => "outcome_reverted.bin",
            Outcome::Drifted { .. } => "outcome_drifted.bin",
            Outcome::Refused(_) => "outcome_refused.bin",
            Outcome::Failed(_) => "outcome_failed.bin",
            Outcome::Frozen(_) => "outcome_frozen.bin",
        };
        hold(file, &outcome);
    }
}

#[test]
fn reasons_keep_their_bytes() {
    use RevertReason::{Expired, Frozen, Recovered, Revoked, Shutdown};
    hold("revert_reasons.bin", &vec![Expired, Revoked, Shutdown, Recovered, Frozen]);
    let refusals = vec![
        Refusal::StaleTerm(Term(8)),
        Refusal::Policy("cores_min = 0.1".to_owned()),
        Refusal::Frozen,
        Refusal::Held(ActionId(299)),
        Refusal::UnknownAction,
        Refusal::Unsupported("this kernel has no cpuset".to_owned()),
    ];
    hold("refusals.bin", &refusals);
}

#[test]
fn a_window_keeps_its_bytes_and_is_the_same_spooled_and_sent() {
    let window = full_window();
    hold("window.bin", &WindowMessage(window.clone()));
    let encoded = EncodedWindow::new(&window).expect("in order");
    assert_eq!(encoded.bytes(), &codec::encode(&WindowMessage(window.clone())).expect("short"));
    assert_eq!(EncodedWindow::from_bytes(encoded.bytes().clone()), Ok(encoded.clone()));
    assert_eq!(EncodedWindow::decode(encoded.bytes()), Ok(window));
}

#[test]
fn a_frame_keeps_its_bytes() {
    let heartbeat = encode_message(&FromAggregator::Heartbeat(Term(7))).expect("short");
    assert_eq!(heartbeat, [2, 0, 0, 0, 3, 7]);
}
