//! The agents' and the aggregator's own cores behind a simulated application: spans and usage in, observations out.

use sage_causal::observation::Observation;
use sage_common::{Micros, Slo, Span};
use sage_ctl::pipeline::{Fleet, FleetConfig, Place};

use super::{
    engine::wall,
    model::Model,
    sink::{Sink, UsageSecond},
};

/// A fleet of agents on the machines of a model.
pub struct Pipeline {
    fleet: Fleet,
}

/// A second's samples belong to the second that ends: this much before its end.
const JUST_BEFORE: Micros = Micros::new(1_000);

impl Pipeline {
    /// A fleet that has seen nothing, whose time begins at `from`. `sample_traces` traces are kept per window and node.
    pub fn new(model: &Model, slo: Slo, window: Micros, sample_traces: usize, from: Micros) -> Self {
        let mut config = FleetConfig::new(window, Micros::ZERO);
        config.nodes.clone_from(&model.machines);
        config.slos = vec![slo];
        config.sample_traces = sample_traces;
        let mut fleet = Fleet::new(config);
        // Nothing can be finished at the beginning.
        drop(fleet.advance(wall(from.get() * 1_000)));
        Self { fleet }
    }

    /// Finishes the windows that end by `at`.
    pub fn advance(&mut self, at: Micros) -> Vec<Observation> {
        self.fleet.advance(wall(at.get() * 1_000))
    }

    /// The fleet itself.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }
}

impl Sink for Pipeline {
    fn span(&mut self, machine: usize, span: &Span) {
        self.fleet.span(machine, span);
    }

    fn usage(&mut self, usage: &UsageSecond) {
        let at = usage.at - JUST_BEFORE;
        for (metric, value) in &usage.of_node {
            self.fleet.metric(usage.machine, &Place::Node, *metric, at, f64::from(*value));
        }
        for one in &usage.instances {
            let place = Place::Instance(one.service.clone(), one.instance.clone());
            for (metric, value) in &one.metrics {
                self.fleet.metric(usage.machine, &place, *metric, at, f64::from(*value));
            }
        }
    }
}
