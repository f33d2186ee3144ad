//! Once a second: what the samplers of every machine read.

use super::{
    super::{arrivals::SECOND, queue::Queue, sink::Sink, usage},
    Engine, USAGE, wall,
};

impl Engine {
    pub(super) fn report_usage(&mut self, sink: &mut impl Sink) {
        if !self.is_traced {
            return;
        }
        let model = self.model.clone();
        let second = self.now / SECOND;
        self.count_connections();
        let states: Vec<usage::State<'_>> = (0..self.replicas.len()).map(|number| self.state(number)).collect();
        let seconds = usage::seconds(&model, self.key.child(USAGE), second, wall(self.now), &states);
        for one in &seconds {
            sink.usage(one);
        }
        for replica in &mut self.replicas {
            replica.counters.next_second();
        }
    }

    fn state(&self, number: usize) -> usage::State<'_> {
        let replica = &self.replicas[number];
        let backlog_ns = replica.link_free_at.saturating_sub(self.now) as f64;
        usage::State {
            counters: &replica.counters,
            effects: &replica.effects,
            serving: replica.admission.taken(),
            backlog_bytes: replica.effects.ns_per_byte.map_or(0.0, |rate| backlog_ns / rate),
        }
    }

    /// Connections of every replica: what its pools have held open in this second, and what its callers' pools have.
    fn count_connections(&mut self) {
        let model = self.model.clone();
        let peaks: Vec<u32> = self.gates.iter_mut().map(Queue::take_peak).collect();
        for edge in &model.edges {
            let (caller, callee) = (&model.tiers[edge.caller], &model.tiers[edge.callee]);
            for ordinal in 0..caller.replicas {
                let used = peaks[edge.first_gate + ordinal].max(edge.idle_min);
                let open = if edge.is_multiplexed { callee.replicas as u32 } else { used };
                self.replicas[caller.first + ordinal].counters.outbound += open;
                for number in callee.first..callee.first + callee.replicas {
                    let share = open.div_ceil(callee.replicas as u32);
                    self.replicas[number].counters.inbound += share;
                }
            }
        }
    }
}
