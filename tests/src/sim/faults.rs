//! What goes wrong, on purpose.

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex},
};

use sage_common::{Micros, NodeId};
use sage_node_agent::core::actuation::Input;
use sage_protocol::message::{Command, CommandResult};

use super::{
    agent::Agent,
    aggregator::{Aggregator, Crash},
    cluster::{Cluster, Event},
    network::{ConnId, End, Payload, Weather},
};

/// Share of processes whose end is told to their peers at once; the others fall silent.
const TOLD: f64 = 0.5;

impl Cluster {
    /// Kills the aggregator's process.
    pub fn crash_aggregator(&mut self) {
        if let Some(place) = self.aggregators.len().checked_sub(1) {
            self.aggregator_is_gone(place);
        }
    }

    /// Starts an aggregator on what is on disk.
    pub fn start_aggregator(&mut self) {
        let state = self.disk().state(self.empty_state());
        let (setting, log) = self.setting();
        let now = self.now;
        self.trace.note(now, &format!("aggregator-{} starts with {} entries", setting.process, state.applied()));
        self.aggregators.push(Aggregator::start(setting, state, log));
        self.with_aggregator(None, |aggregator, trace| aggregator.settle(now, trace));
    }

    /// Starts an aggregator beside one that does not notice: the older one keeps its connections, and its log is cut off.
    pub fn start_another_aggregator(&mut self) {
        let disk = self.disk();
        for aggregator in &mut self.aggregators {
            aggregator.log.is_fenced = true;
        }
        self.log_disk = Arc::new(Mutex::new(disk));
        self.start_aggregator();
    }

    /// Lets the aggregator's process end in the middle of what it does.
    pub fn let_aggregator_crash(&mut self, crash: Crash) {
        if let Some(aggregator) = self.aggregators.last_mut() {
            aggregator.crash = Some(crash);
        }
    }

    /// Starts the aggregator after `after`, if it is down by then.
    pub fn start_aggregator_in(&mut self, after: Micros) {
        self.schedule(after, Event::StartAggregator);
    }

    pub(super) fn aggregator_is_gone(&mut self, place: usize) {
        let gone = self.aggregators.remove(place);
        self.trace.note(self.now, &format!("aggregator-{} crashes", gone.process));
        for conn in self.network.of_process(gone.process) {
            self.fall_silent(conn, End::Agent);
        }
        gone.log.crash();
    }

    /// Starts the process of agent `number`.
    pub fn start_agent(&mut self, number: usize) {
        self.with_agent(number, Agent::start);
    }

    /// Starts it after `after`, if it is down by then.
    pub fn start_agent_in(&mut self, number: usize, after: Micros) {
        self.schedule(after, Event::StartAgent(number));
    }

    /// Kills the process of agent `number`.
    pub fn crash_agent(&mut self, number: usize) {
        self.with_agent(number, Agent::crash);
    }

    /// Ends the process of agent `number` in order.
    pub fn stop_agent(&mut self, number: usize) {
        self.with_agent(number, Agent::stop);
    }

    /// Crashes the machine of agent `number` and starts it again, without its agent.
    pub fn reboot(&mut self, number: usize) {
        self.crash_agent(number);
        self.machines[number].reboot();
        self.trace.note(self.now, &format!("{} reboots", self.machines[number].node));
    }

    pub(super) fn agent_is_gone(&mut self, number: usize, conn: Option<ConnId>) {
        self.trace.note(self.now, &format!("the agent of {} is gone", self.machines[number].node));
        if let Some(conn) = conn {
            self.fall_silent(conn, End::Aggregator);
        }
    }

    fn fall_silent(&mut self, conn: ConnId, to: End) {
        if self.draw.chance(TOLD) {
            self.send(conn, to, &Payload::Over("the peer is gone".to_owned()));
        }
    }

    /// Breaks the connection of agent `number`; each end learns of it in its own time.
    pub fn cut(&mut self, number: usize) {
        let Some(conn) = self.agents[number].life.as_ref().and_then(|life| life.conn) else { return };
        self.trace.note(self.now, &format!("the connection of {} breaks", self.machines[number].node));
        for to in [End::Agent, End::Aggregator] {
            let after = self.draw.millis(0..=3_000);
            let payload = Payload::Over("broken".to_owned());
            self.schedule(after, Event::Packet { conn, to, payload });
        }
    }

    /// Sets how the network of machine `number` is.
    pub fn set_weather(&mut self, number: usize, weather: Weather) {
        self.network.weather[number] = weather;
    }

    /// Lets nothing through to machine `number` (`is_deaf`), or from it (`is_mute`).
    pub fn partition(&mut self, number: usize, is_deaf: bool, is_mute: bool) {
        let node = &self.machines[number].node;
        self.trace.note(self.now, &format!("{node} is cut off: deaf {is_deaf}, mute {is_mute}"));
        let weather = &mut self.network.weather[number];
        (weather.is_deaf, weather.is_mute) = (is_deaf, is_mute);
    }

    /// Ends the partition of machine `number`: what was held back arrives now.
    pub fn heal(&mut self, number: usize) {
        self.trace.note(self.now, &format!("{} is reachable again", self.machines[number].node));
        for (conn, to, payload) in self.network.heal(number) {
            self.deliver(conn, to, payload);
        }
    }

    /// Sets or releases the brake of machine `number` by hand.
    pub fn brake(&mut self, number: usize, is_on: bool) {
        self.with_agent(number, |agent, around| agent.actuate(around, Input::Brake(is_on)));
    }

    /// Hands a command to the lease table of `node` as if it had been on its way for long.
    pub fn command_late(&mut self, node: &NodeId, command: Command) -> Vec<CommandResult> {
        let Some(number) = self.machines.iter().position(|machine| machine.node == *node) else { return Vec::new() };
        self.with_agent(number, |agent, around| agent.actuate(around, Input::Command(command)))
    }

    /// A number from the seed, for tests that choose by chance.
    pub fn choose(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.draw.among(range)
    }

    /// A time from the seed, in milliseconds.
    pub fn choose_millis(&mut self, range: RangeInclusive<u64>) -> Micros {
        self.draw.millis(range)
    }
}
