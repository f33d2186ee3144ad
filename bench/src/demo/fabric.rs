//! The demo's network: a namespace for the hub, one for each node, and one for the wires between them.
//!
//! ```text
//!  hub: br0 10.77.0.1        aggregator, load generator
//!   ├─ m0 ═ u0 ─ wires: w0 ─ p0 ═ eth0   node-a 10.77.0.11
//!   └─ m1 ═ u1 ─ wires: w1 ─ p1 ═ eth0   node-b 10.77.0.12
//! ```
//!
//! Each wire is a two-port bridge whose ends carry a token bucket: the line rate of the node's link, with a queue that
//! fills up as a switch port's does. It is outside the node, so the node's own queue discipline is free for the agent.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    layout::{HUB, Layout},
    shell::run,
};

/// Line rate of a node's link, Mbit/s: low enough to be filled from one core.
pub const LINK_MBIT: u32 = 100;
/// How long the queue at either end of a wire may grow before it drops.
const QUEUE_MS: u32 = 200;

/// The namespaces of one demo; dropping it removes them.
pub struct Network {
    prefix: String,
    nodes: Vec<String>,
}

impl Network {
    /// Builds the network of `layout` under names that start with `prefix`, and moves the calling thread into the hub.
    /// Must be called before other threads start, because threads inherit the namespace of the one that starts them.
    pub fn build(prefix: &str, layout: &Layout) -> Result<Self> {
        let network =
            Self { prefix: prefix.to_owned(), nodes: layout.nodes.iter().map(|node| node.name.clone()).collect() };
        for name in network.namespaces() {
            run(&format!("ip netns add {name}"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        let hub = network.hub();
        run(&format!("ip -n {hub} link add br0 type bridge"))?;
        run(&format!("ip -n {hub} addr add {HUB}/24 dev br0"))?;
        run(&format!("ip -n {hub} link set br0 up"))?;
        for (index, node) in layout.nodes.iter().enumerate() {
            network.wire(index, &node.name, &node.ip.to_string())?;
        }
        enter(&hub)?;
        Ok(network)
    }

    /// The hub's namespace.
    pub fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    /// A node's namespace.
    pub fn node(&self, node: &str) -> String {
        format!("{}-{node}", self.prefix)
    }

    fn wires(&self) -> String {
        format!("{}-wires", self.prefix)
    }

    fn namespaces(&self) -> Vec<String> {
        let mut names = vec![self.hub(), self.wires()];
        names.extend(self.nodes.iter().map(|node| self.node(node)));
        names
    }

    fn wire(&self, index: usize, node: &str, ip: &str) -> Result<()> {
        let (hub, wires, node) = (self.hub(), self.wires(), self.node(node));
        run(&format!("ip -n {wires} link add w{index} type bridge"))?;
        run(&format!("ip -n {wires} link add p{index} type veth peer name eth0 netns {node}"))?;
        run(&format!("ip -n {wires} link add u{index} type veth peer name m{index} netns {hub}"))?;
        for port in [format!("p{index}"), format!("u{index}")] {
            run(&format!("ip -n {wires} link set {port} master w{index}"))?;
            run(&format!("ip -n {wires} link set {port} up"))?;
            run(&format!(
                "tc -n {wires} qdisc add dev {port} root tbf rate {LINK_MBIT}mbit burst 64kb latency {QUEUE_MS}ms"
            ))?;
        }
        run(&format!("ip -n {wires} link set w{index} up"))?;
        run(&format!("ip -n {hub} link set m{index} master br0"))?;
        run(&format!("ip -n {hub} link set m{index} up"))?;
        run(&format!("ip -n {node} addr add {ip}/24 dev eth0"))?;
        run(&format!("ip -n {node} link set eth0 up"))?;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.namespaces() {
            // Best effort: a namespace that was never made cannot be removed.
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}

/// Moves the calling thread, and all that it starts, into a named network namespace.
fn enter(name: &str) -> Result<()> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter the network namespace {name}"))
}

/// Removes what a demo that was killed left behind: namespaces `sage-demo-PID-*` whose process is gone.
pub fn sweep() {
    let Ok(list) = run("ip netns list") else { return };
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        if super::is_left_behind(name) {
            for pid in run(&format!("ip netns pids {name}")).unwrap_or_default().split_whitespace() {
                let _ = run(&format!("kill -KILL {pid}"));
            }
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}
