//! One recording as two feeds: what spans tell, and what recorded percentiles tell where there are no spans. Pure.
//!
//! Usage goes to both. Their windows are of different lengths and never mixed: an answer comes from one of them.

use std::collections::BTreeSet;

use sage_causal::observation::Observation;
use sage_common::{ServiceId, Timestamp};

use super::{
    callgraph::CallGraph,
    feed::{Feed, Placed},
    points::{Point, Resource},
};

/// Windows that were finished.
#[derive(Debug, Default)]
pub struct Finished {
    /// Whose latencies are of spans.
    pub spans: Vec<Observation>,
    /// Whose latencies are of metrics.
    pub metrics: Vec<Observation>,
}

/// Both feeds.
pub struct Streams {
    /// Fed by spans.
    pub spans: Feed,
    /// Fed by recorded percentiles.
    pub metrics: Feed,
    is_graph_given: bool,
}

impl Streams {
    /// Of both feeds; `graph` says who calls whom for the second. Without one, the first teaches it.
    pub fn new(spans: Feed, mut metrics: Feed, graph: Option<CallGraph>) -> Self {
        let is_graph_given = graph.is_some();
        metrics.add_graph(graph.unwrap_or_default());
        Self { spans, metrics, is_graph_given }
    }

    /// Moves time on.
    pub fn advance(&mut self, to: Timestamp) -> Finished {
        let spans = self.spans.advance(to);
        self.learn(&spans);
        Finished { spans, metrics: self.metrics.advance(to) }
    }

    /// Ends the recording.
    pub fn finish(&mut self) -> Finished {
        let spans = self.spans.finish();
        self.learn(&spans);
        Finished { spans, metrics: self.metrics.finish() }
    }

    /// Hands over one span.
    pub fn span(&mut self, placed: &Placed) {
        self.spans.span(placed);
    }

    /// Hands over the points of one request.
    pub fn points(&mut self, points: &[(Resource, Point)]) {
        if !points.is_empty() {
            self.spans.points(points);
            self.metrics.points(points);
        }
    }

    /// The name of `service` as the recording writes it.
    pub fn written(&self, service: &ServiceId) -> String {
        self.spans.written(service).or_else(|| self.metrics.written(service)).unwrap_or_else(|| service.to_string())
    }

    /// Every service seen, as written.
    pub fn services(&self) -> BTreeSet<&str> {
        self.spans.services().chain(self.metrics.services()).map(String::as_str).collect()
    }

    /// Services at which requests enter, as written.
    pub fn entries(&self) -> String {
        let names: Vec<String> = self.entered().iter().map(|service| self.written(service)).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Whether requests enter at `service`.
    pub fn has_entry(&self, service: &ServiceId) -> bool {
        self.entered().contains(service)
    }

    fn entered(&self) -> BTreeSet<ServiceId> {
        self.spans.entered().chain(self.metrics.entered()).cloned().collect()
    }

    fn learn(&mut self, finished: &[Observation]) {
        if self.is_graph_given {
            return;
        }
        let mut graph = CallGraph::default();
        for edge in finished.iter().flat_map(|window| &window.edges) {
            if let Some(caller) = &edge.key.caller {
                graph.link(caller.clone(), edge.key.callee.clone());
            }
        }
        self.metrics.add_graph(graph);
    }
}

impl Finished {
    /// Adds later windows.
    pub fn extend(&mut self, later: Self) {
        self.spans.extend(later.spans);
        self.metrics.extend(later.metrics);
    }
}
