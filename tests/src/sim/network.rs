//! The wire between agents and aggregator processes, as QUIC makes it: a control stream in order, a stream of its own for
//! each window, everything sent again until it arrives or the connection is given up.
//!
//! A partition holds what is sent back until it heals. Beyond what QUIC does, windows may be lost and doubled.

use std::{collections::BTreeMap, ops::RangeInclusive};

use sage_common::Micros;

use super::draw::Draw;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum End {
    Agent,
    Aggregator,
}

/// What is on its way.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// A message of the control stream.
    Control(Vec<u8>),
    /// A stream with one window.
    Window(Vec<u8>),
    /// The other end has closed the connection, or is gone.
    Over(String),
}

/// A connection's number.
pub(super) type ConnId = u64;

/// How the network of one machine is.
#[derive(Clone, Debug, PartialEq)]
pub struct Weather {
    /// One way, milliseconds.
    pub delay_ms: RangeInclusive<u64>,
    /// What a window's stream takes longer, milliseconds.
    pub window_ms: RangeInclusive<u64>,
    /// Share of windows that are lost.
    pub lost: f64,
    /// Share of windows that arrive twice.
    pub doubled: f64,
    /// Nothing gets to the agent.
    pub is_deaf: bool,
    /// Nothing gets from the agent to anybody.
    pub is_mute: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Self { delay_ms: 1..=5, window_ms: 0..=20, lost: 0.0, doubled: 0.0, is_deaf: false, is_mute: false }
    }
}

impl Weather {
    /// Slow, lossy, out of order.
    pub fn stormy() -> Self {
        Self { delay_ms: 5..=400, window_ms: 0..=3_000, lost: 0.15, doubled: 0.2, ..Self::default() }
    }

    fn holds(&self, to: End) -> bool {
        if to == End::Agent { self.is_deaf } else { self.is_mute }
    }
}

/// One connection, from its first packet.
#[derive(Debug)]
pub(super) struct Connection {
    /// Number of the agent.
    pub agent: usize,
    /// Which aggregator process it leads to.
    pub process: u64,
    /// When the last message of the control stream arrives, by its direction.
    last: BTreeMap<End, Micros>,
    held: Vec<(End, Payload)>,
}

/// Every connection, and the weather at each machine.
#[derive(Debug)]
pub(super) struct Network {
    pub weather: Vec<Weather>,
    connections: BTreeMap<ConnId, Connection>,
    next: ConnId,
    draw: Draw,
}

impl Network {
    pub fn new(machines: usize, seed: u64) -> Self {
        let weather = vec![Weather::default(); machines];
        Self { weather, connections: BTreeMap::new(), next: 1, draw: Draw::new(seed, 2) }
    }

    /// A new connection of `agent` with `process`, and when it stands; `None` when its packets get nowhere.
    pub fn dial(&mut self, agent: usize, process: u64, now: Micros) -> (ConnId, Option<Micros>) {
        let id = self.next;
        self.next += 1;
        let weather = &self.weather[agent];
        let is_cut = weather.is_deaf || weather.is_mute;
        let round_trips = self.draw.millis(weather.delay_ms.clone()).saturating_mul(4);
        self.connections.insert(id, Connection { agent, process, last: BTreeMap::new(), held: Vec::new() });
        (id, (!is_cut).then_some(now + round_trips))
    }

    pub fn connection(&self, id: ConnId) -> Option<&Connection> {
        self.connections.get(&id)
    }

    /// The open connections with `process`, in order.
    pub fn of_process(&self, process: u64) -> Vec<ConnId> {
        self.connections.iter().filter(|(_, one)| one.process == process).map(|(id, _)| *id).collect()
    }

    /// When `payload` arrives: not at all, once, or twice.
    pub fn arrivals(&mut self, id: ConnId, to: End, payload: &Payload, now: Micros) -> Vec<Micros> {
        let Some(connection) = self.connections.get_mut(&id) else { return Vec::new() };
        let weather = &self.weather[connection.agent];
        let delay = self.draw.millis(weather.delay_ms.clone());
        if matches!(payload, Payload::Window(_)) {
            let copies =
                if self.draw.chance(weather.lost) { 0 } else { 1 + u64::from(self.draw.chance(weather.doubled)) };
            return (0..copies).map(|_| now + delay + self.draw.millis(weather.window_ms.clone())).collect();
        }
        let at = connection.last.get(&to).copied().unwrap_or_default().max(now + delay);
        connection.last.insert(to, at);
        vec![at]
    }

    /// What is delivered now: `payload`, unless a partition holds it back.
    pub fn pass(&mut self, id: ConnId, to: End, payload: Payload) -> Option<Payload> {
        let connection = self.connections.get_mut(&id)?;
        let is_behind = connection.held.iter().any(|(end, _)| *end == to);
        if self.weather[connection.agent].holds(to) || is_behind {
            connection.held.push((to, payload));
            return None;
        }
        Some(payload)
    }

    /// Ends the partition of `agent`; returns what it has held back, in order.
    pub fn heal(&mut self, agent: usize) -> Vec<(ConnId, End, Payload)> {
        self.weather[agent].is_deaf = false;
        self.weather[agent].is_mute = false;
        let own = self.connections.iter_mut().filter(|(_, connection)| connection.agent == agent);
        own.flat_map(|(id, one)| std::mem::take(&mut one.held).into_iter().map(|(to, payload)| (*id, to, payload)))
            .collect()
    }

    /// Forgets what nobody holds any more.
    pub fn retain(&mut self, is_held: impl Fn(ConnId) -> bool) {
        self.connections.retain(|id, _| is_held(*id));
    }
}
