//! The egress knobs on veth links.

use std::net::{TcpListener, TcpStream, UdpSocket};

use sage_common::{Knob, Setting};

use super::*;
use crate::{
    kernel::{
        KernelError, KernelInterface, KernelOptions, LinuxKernel,
        contract::{self, Case},
    },
    policy::{EgressRules, EgressSettings, Pattern},
};

/// To be called in the namespace it is to act on.
fn kernel() -> LinuxKernel {
    LinuxKernel::open(&KernelOptions::default()).expect("open")
}

fn mbit(mbit: u64) -> Setting {
    Setting::Rate(Some(mbit * 1_000_000))
}

fn rate(link: &LinkName) -> Knob {
    Knob::EgressRate { link: link.clone() }
}

fn ceiling(link: &LinkName, cgroup: &TestCgroup) -> Knob {
    Knob::EgressCeiling { link: link.clone(), cgroup: cgroup.path.clone() }
}

fn port_5201() -> EgressRules {
    let everything = Pattern::try_from("sage-test-*".to_owned()).expect("valid");
    EgressRules::default()
        .with_traffic(everything, EgressSettings { dst_ports: vec![5201], ..EgressSettings::default() })
}

/// Bytes that each class of ours has sent, by minor number, as `tc` counts them.
fn sent(link: &LinkName) -> Vec<(u16, u64)> {
    let text = run(&format!("tc -s class show dev {link}"));
    let class = |class: &str| {
        let (minor, rest) = class.split_once(' ')?;
        let bytes = rest.split_once(" Sent ")?.1.split(' ').next()?;
        Some((u16::from_str_radix(minor, 16).ok()?, bytes.parse().ok()?))
    };
    text.split("class htb 5a9e:").filter_map(class).collect()
}

#[test]
#[ignore = "needs root: make test-root"]
fn the_real_kernels_links_keep_the_contract() {
    let cgroups = [TestCgroup::new("link-a"), TestCgroup::new("link-b")];
    in_own_namespace(move || {
        let (link, other) = (veth("v0"), veth("v1"));
        let mut kernel = kernel();
        kernel.set_egress_rules(&port_5201());
        let cases = [
            Case { knob: rate(&link), settings: [mbit(10), mbit(90)] },
            Case { knob: ceiling(&link, &cgroups[0]), settings: [mbit(1), mbit(2)] },
            Case { knob: ceiling(&link, &cgroups[1]), settings: [mbit(3), Setting::Rate(Some(8_000))] },
            Case { knob: ceiling(&other, &cgroups[1]), settings: [mbit(3), Setting::Rate(Some(1_000_000_000_000))] },
        ];
        let nowhere = LinkName::try_from("nowhere".to_owned()).expect("valid");
        let default = root_qdisc(&link);
        contract::holds(&mut kernel, &cases, &[rate(&nowhere), ceiling(&nowhere, &cgroups[0])]);
        assert_eq!((root_qdisc(&link), root_qdisc(&other)), (default.clone(), default.replace("v0", "v1")));
    });
}

#[test]
#[ignore = "needs root: make test-root"]
fn limits_are_in_force_as_tc_sees_them_and_leave_nothing_behind() {
    let cgroup = TestCgroup::new("tc");
    in_own_namespace(move || {
        let link = veth("v0");
        let default = root_qdisc(&link);
        assert!(default.contains("noqueue"), "{default}");
        let mut kernel = kernel();
        kernel.set_egress_rules(&port_5201().with_rate(link.clone(), 100_000_000));

        kernel.write(&ceiling(&link, &cgroup), &mbit(5)).expect("write");
        assert!(root_qdisc(&link).contains("qdisc htb 5a9e: root"), "{}", root_qdisc(&link));
        let classes = run("tc class show dev v0");
        // What was not set stands in for the link's own rate, and is not shown as a limit.
        assert!(classes.contains("rate 95Mbit ceil 100Mbit") && classes.contains("rate 5Mbit ceil 5Mbit"), "{classes}");
        assert_eq!(kernel.read(&rate(&link)).expect("read"), Setting::Rate(None));
        assert_eq!(run("tc filter show dev v0").matches("flowid 5a9e:").count(), 4);

        kernel.write(&rate(&link), &mbit(40)).expect("write");
        let classes = run("tc class show dev v0");
        assert!(classes.contains("class htb 5a9e:1 root rate 40Mbit ceil 40Mbit"), "{classes}");
        assert!(classes.contains("rate 35Mbit ceil 40Mbit"), "{classes}");

        kernel.write(&ceiling(&link, &cgroup), &Setting::Rate(None)).expect("let go");
        let classes = run("tc class show dev v0");
        assert!(classes.contains("rate 40Mbit ceil 40Mbit") && !classes.contains("5Mbit ceil 5Mbit"), "{classes}");
        assert_eq!(run("tc filter show dev v0"), "");
        kernel.write(&rate(&link), &Setting::Rate(None)).expect("lift");
        assert_eq!(root_qdisc(&link), default);
    });
}

#[test]
#[ignore = "needs root: make test-root"]
fn a_root_that_is_not_ours_is_refused_and_left_alone() {
    let cgroup = TestCgroup::new("foreign");
    in_own_namespace(move || {
        let link = veth("v0");
        let mut kernel = kernel();
        run("tc qdisc add dev v0 root handle 1: tbf rate 7mbit burst 10kb latency 50ms");
        let theirs = root_qdisc(&link);
        for knob in [rate(&link), ceiling(&link, &cgroup)] {
            assert!(matches!(kernel.capture(&knob), Err(KernelError::Foreign { .. })));
            let error = kernel.write(&knob, &mbit(1)).expect_err("foreign").to_string();
            assert!(error.contains("tbf 1") && error.contains("left alone"), "{error}");
            assert!(kernel.write(&knob, &Setting::Rate(None)).is_err());
        }
        assert_eq!(root_qdisc(&link), theirs);
    });
}

#[test]
#[ignore = "needs root: make test-root"]
fn filters_follow_the_sockets_that_a_cgroups_processes_hold() {
    let mut cgroup = TestCgroup::new("sockets");
    in_own_namespace(move || {
        let link = veth("v0");
        run("ip link set lo up");
        let mut kernel = kernel();
        let knob = ceiling(&link, &cgroup);
        kernel.write(&knob, &mbit(1)).expect("write");
        let count = || run("tc filter show dev v0").matches("flowid 5a9e:").count();
        assert_eq!(count(), 0);

        let mut connect = |address: &str| {
            let listener = TcpListener::bind(address).expect("bind");
            let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
            // The process has the connection as its standard input; our own copy is closed.
            cgroup.spawn(Stdio::from(std::os::fd::OwnedFd::from(stream)));
            listener
        };
        let listeners = [connect("127.0.0.1:0"), connect("[::1]:0")];
        kernel.refresh(std::slice::from_ref(&knob)).expect("refresh");
        assert_eq!(count(), 2);
        let shown = run("tc filter show dev v0");
        for listener in &listeners {
            let port = listener.local_addr().expect("address").port();
            assert!(shown.contains(&format!("{port:04x}/ffffffff at")), "{port:x}: {shown}");
        }

        kernel.refresh(std::slice::from_ref(&knob)).expect("refresh");
        assert_eq!((run("tc filter show dev v0"), count()), (shown, 2), "nothing has changed");
        for child in &mut cgroup.children {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        kernel.refresh(std::slice::from_ref(&knob)).expect("refresh");
        assert_eq!(count(), 0);
        kernel.write(&knob, &Setting::Rate(None)).expect("let go");
        assert!(root_qdisc(&link).contains("noqueue"));
    });
}

#[test]
#[ignore = "needs root: make test-root"]
fn only_the_held_back_traffic_is_slowed() {
    let cgroup = TestCgroup::new("slow");
    in_own_namespace(move || {
        let link = veth("v0");
        for (address, peer) in [("10.0.0.1/24", "10.0.0.2"), ("fd00::1/64", "fd00::2")] {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            run(&format!("ip address add {address} dev v0{nodad}"));
            run(&format!("ip neigh add {peer} lladdr 02:00:00:00:00:02 dev v0"));
        }
        let mut kernel = kernel();
        kernel.set_egress_rules(&port_5201());
        kernel.write(&ceiling(&link, &cgroup), &mbit(8)).expect("write");

        let offered = send_for_a_while();
        let held: u64 = sent(&link).iter().filter(|(minor, _)| *minor >= 0x100).map(|(_, bytes)| bytes).sum();
        let others: u64 = sent(&link).iter().filter(|(minor, _)| *minor == 0x10).map(|(_, bytes)| bytes).sum();
        // 8 Mbit/s are 1 MB/s: 300 kB in that time, and a burst; a slow machine may have taken longer.
        assert!(offered > 2_000_000, "only {offered} bytes were offered");
        assert!((100_000..offered / 4).contains(&held), "{held} of {offered} held-back bytes were sent");
        assert!(others > offered / 2, "{others} bytes of others, who offered {offered}");
    });
}

/// Sends to port 5201 and to another, in both IP versions, as fast as can be for 300 ms; the bytes offered to each.
fn send_for_a_while() -> u64 {
    let sender = |(from, to): (&str, &str)| {
        let socket = UdpSocket::bind(from).expect("bind");
        // A full queue is the point of it, and must not keep the others waiting.
        socket.set_nonblocking(true).expect("non-blocking");
        socket.connect(to).expect("connect");
        socket
    };
    let senders = [
        ("10.0.0.1:0", "10.0.0.2:5201"),
        ("10.0.0.1:0", "10.0.0.2:9999"),
        ("[fd00::1]:0", "[fd00::2]:5201"),
        ("[fd00::1]:0", "[fd00::2]:9999"),
    ]
    .map(sender);
    let start = std::time::Instant::now();
    let mut offered = 0;
    while start.elapsed() < Duration::from_millis(300) {
        for socket in &senders {
            let _ = socket.send(&[0; 1_200]);
        }
        offered += 2_400;
    }
    offered
}
