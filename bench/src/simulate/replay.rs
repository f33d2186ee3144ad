//! Writes a simulated application as a recording: OTLP JSON lines as the OpenTelemetry Collector's file exporter writes
//! them, and what happened when.
#![expect(clippy::disallowed_methods, reason = "a recording is files")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use sage_common::{Metric, Micros, PeerHint, Side, Span, Timestamp};
use serde_json::{Value, json};
use thiserror::Error;

use super::{
    engine::EPOCH,
    fault::{FaultKind, FaultPlan, Role},
    model::Model,
    sink::{Sink, UsageSecond},
};

/// Why a recording cannot be written.
#[derive(Debug, Error)]
#[error("cannot write {path}")]
pub struct ReplayError {
    path: PathBuf,
    source: io::Error,
}

type Lines = zstd::stream::write::Encoder<'static, File>;

/// A recording being written.
pub struct Replay {
    dir: PathBuf,
    nodes: Vec<String>,
    traces: Lines,
    metrics: Lines,
    /// Spans of the running second by machine and instance.
    pending: Vec<BTreeMap<(String, String), Vec<Value>>>,
    /// The first failure; what comes after it is not written.
    failed: Option<ReplayError>,
}

/// Files of a recording.
const TRACES: &str = "traces.jsonl.zst";
const METRICS: &str = "metrics.jsonl.zst";
/// Compression that keeps up with the simulation.
const LEVEL: i32 = 3;

impl Replay {
    /// A recording of the machines of `model` in the folder `dir`, which is made.
    ///
    /// # Errors
    ///
    /// [`ReplayError`].
    pub fn create(dir: &Path, model: &Model) -> Result<Self, ReplayError> {
        fs::create_dir_all(dir).map_err(|source| failed(dir, source))?;
        let open = |name: &str| {
            let path = dir.join(name);
            let file = File::create(&path).map_err(|source| failed(&path, source))?;
            Lines::new(file, LEVEL).map_err(|source| failed(&path, source))
        };
        Ok(Self {
            traces: open(TRACES)?,
            metrics: open(METRICS)?,
            dir: dir.to_owned(),
            nodes: model.machines.iter().map(ToString::to_string).collect(),
            pending: vec![BTreeMap::new(); model.machines.len()],
            failed: None,
        })
    }

    /// Writes what is left, and what happened between `from` and `to`.
    ///
    /// # Errors
    ///
    /// The first [`ReplayError`] of the whole recording.
    pub fn finish(mut self, faults: &[FaultPlan], from: Micros, to: Micros) -> Result<(), ReplayError> {
        for machine in 0..self.nodes.len() {
            self.flush(machine);
        }
        let Self { dir, traces, metrics, failed: failure, .. } = self;
        if let Some(failure) = failure {
            return Err(failure);
        }
        for (name, lines) in [(TRACES, traces), (METRICS, metrics)] {
            lines.finish().map_err(|source| failed(&dir.join(name), source))?;
        }
        let map: String = Metric::ALL.iter().map(|metric| format!("{0} {0}\n", metric.name())).collect();
        let texts = [
            ("incidents.json", json!(incidents(faults, from, to)).to_string()),
            ("normal.json", json!(normal(faults, from, to)).to_string()),
            ("metrics.map", map),
        ];
        for (name, text) in texts {
            let path = dir.join(name);
            fs::write(&path, text).map_err(|source| failed(&path, source))?;
        }
        Ok(())
    }

    fn flush(&mut self, machine: usize) {
        let resource_spans: Vec<Value> = std::mem::take(&mut self.pending[machine])
            .into_iter()
            .map(|((service, instance), spans)| {
                let resource = resource(&self.nodes[machine], Some((&service, &instance)));
                json!({"resource": resource, "scopeSpans": [{"scope": {"name": "sage-bench"}, "spans": spans}]})
            })
            .collect();
        if !resource_spans.is_empty() {
            self.write(TRACES, &json!({"resourceSpans": resource_spans}));
        }
    }

    fn write(&mut self, name: &str, value: &Value) {
        if self.failed.is_some() {
            return;
        }
        let lines = if name == TRACES { &mut self.traces } else { &mut self.metrics };
        if let Err(source) = writeln!(lines, "{value}") {
            self.failed = Some(failed(&self.dir.join(name), source));
        }
    }
}

fn failed(path: &Path, source: io::Error) -> ReplayError {
    ReplayError { path: path.to_owned(), source }
}

impl Sink for Replay {
    fn span(&mut self, machine: usize, span: &Span) {
        let instance = span.instance.as_ref().map(ToString::to_string).unwrap_or_default();
        let of_instance = self.pending[machine].entry((span.service.to_string(), instance)).or_default();
        of_instance.push(otlp(span));
    }

    fn usage(&mut self, usage: &UsageSecond) {
        self.flush(usage.machine);
        let at = nanoseconds(usage.at);
        let metrics = |values: &[(Metric, f32)]| -> Vec<Value> {
            let point = |value: f32| json!({"gauge": {"dataPoints": [{"timeUnixNano": at, "asDouble": value}]}});
            let named = |(metric, value): &(Metric, f32)| {
                let mut point = point(*value);
                point["name"] = json!(metric.name());
                point
            };
            values.iter().map(named).collect()
        };
        let node = usage.node.as_str();
        let mut all = vec![json!({
            "resource": resource(node, None),
            "scopeMetrics": [{"metrics": metrics(&usage.of_node)}]
        })];
        for one in &usage.instances {
            all.push(json!({
                "resource": resource(node, Some((one.service.as_str(), one.instance.as_str()))),
                "scopeMetrics": [{"metrics": metrics(&one.metrics)}]
            }));
        }
        self.write(METRICS, &json!({"resourceMetrics": all}));
    }
}

fn resource(node: &str, of: Option<(&str, &str)>) -> Value {
    let mut attributes = vec![attribute("host.name", node)];
    if let Some((service, instance)) = of {
        attributes.extend([attribute("service.name", service), attribute("service.instance.id", instance)]);
    }
    json!({ "attributes": attributes })
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn otlp(span: &Span) -> Value {
    let mut attributes =
        vec![attribute("rpc.system.name", "sage-bench"), attribute("rpc.method", span.operation.as_str())];
    if let Some(PeerHint::Service(peer) | PeerHint::Address(peer)) = &span.peer {
        attributes.push(attribute("service.peer.name", peer.as_str()));
    }
    let parent = if span.parent.0 == 0 { String::new() } else { format!("{:016x}", span.parent.0) };
    json!({
        "traceId": format!("{:032x}", span.trace.0),
        "spanId": format!("{:016x}", span.id.0),
        "parentSpanId": parent,
        "name": span.operation.as_str(),
        // SERVER and CLIENT in OTLP's numbering.
        "kind": if span.side == Side::Server { 2 } else { 3 },
        "startTimeUnixNano": nanoseconds(span.start),
        "endTimeUnixNano": nanoseconds(span.end()),
        "attributes": attributes,
        // ERROR in OTLP's numbering.
        "status": if span.is_error { json!({"code": 2}) } else { json!({}) },
        "flags": 1
    })
}

/// OTLP's JSON has 64-bit numbers as text.
fn nanoseconds(at: Timestamp) -> String {
    format!("{}000", at.as_micros())
}

/// What happened: faults that hurt, as far as they lie between two times.
fn incidents(faults: &[FaultPlan], from: Micros, to: Micros) -> Vec<Value> {
    let hurts = |fault: &&FaultPlan| fault.role == Role::Real && fault.kind != FaultKind::Surge;
    faults
        .iter()
        .filter(hurts)
        .filter(|fault| fault.overlaps(from, to))
        .enumerate()
        .map(|(number, fault)| {
            json!({
                "id": format!("incident-{}", number + 1),
                "start": rfc3339(EPOCH + fault.start.max(from)),
                "end": rfc3339(EPOCH + fault.end.min(to)),
                "services": [fault.service],
                "resource": fault.kind.resource(),
                "fault_type": fault.kind.name(),
            })
        })
        .collect()
}

/// The times between faults of any role.
fn normal(faults: &[FaultPlan], from: Micros, to: Micros) -> Vec<Value> {
    let mut sorted: Vec<&FaultPlan> = faults.iter().filter(|fault| fault.overlaps(from, to)).collect();
    sorted.sort_by_key(|fault| fault.start);
    let mut free = Vec::new();
    let mut at = from;
    for fault in sorted {
        if fault.start > at {
            free.push((at, fault.start));
        }
        at = at.max(fault.end);
    }
    if at < to {
        free.push((at, to));
    }
    free.iter().map(|(start, end)| json!({"start": rfc3339(EPOCH + *start), "end": rfc3339(EPOCH + *end)})).collect()
}

/// RFC 3339 in UTC with milliseconds.
///
/// # Source
///
/// The calendar is Howard Hinnant's `civil_from_days`, for days since 1970.
fn rfc3339(at: Timestamp) -> String {
    let seconds = at.as_micros() / 1_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let millisecond = at.as_micros() / 1_000 % 1_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::{
        simulate::{Engine, EngineOptions, Placement},
        topology::load,
    };

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        assert_eq!(rfc3339(EPOCH), "2025-01-06T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp::from_micros(951_782_400_123_000)), "2000-02-29T00:00:00.123Z");
    }

    #[test]
    fn normal_times_are_those_between_faults() {
        let faults: Vec<FaultPlan> =
            ["cpu:a@10..20", "slow:b@15..30", "cpu:c@50..60!decoy"].map(|text| text.parse().expect("valid")).to_vec();
        let free = normal(&faults, Micros::from_secs(5), Micros::from_secs(60));
        assert_eq!(free.len(), 2);
        assert_eq!(free[1]["start"], "2025-01-06T00:00:30.000Z");
        assert_eq!(incidents(&faults, Micros::ZERO, Micros::from_secs(60)).len(), 2);
    }

    #[test]
    fn a_recording_has_a_line_of_metrics_per_machine_and_second_and_every_span() {
        let dir = tempfile::tempdir().expect("a folder");
        let demo = load("demo").expect("built in");
        let model = std::sync::Arc::new(Model::new(&demo, &Placement::default()));
        let mut replay = Replay::create(dir.path(), &model).expect("writes");
        let mut engine = Engine::new(&demo, model.clone(), EngineOptions::default(), Micros::ZERO);
        engine.run_until(Micros::from_secs(3), &mut replay);
        let answered = engine.counts().answered as usize;
        replay.finish(&[], Micros::ZERO, Micros::from_secs(3)).expect("writes");
        let lines = |name: &str| -> Vec<Value> {
            let mut text = String::new();
            let file = File::open(dir.path().join(name)).expect("there");
            zstd::Decoder::new(file).expect("zstd").read_to_string(&mut text).expect("text");
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
        };
        assert_eq!(lines(METRICS).len(), 3 * model.machines.len());
        let spans: Vec<Value> = lines(TRACES)
            .iter()
            .flat_map(|line| line["resourceSpans"].as_array().cloned().unwrap_or_default())
            .flat_map(|one| one["scopeSpans"][0]["spans"].as_array().cloned().unwrap_or_default())
            .collect();
        let roots = spans.iter().filter(|span| span["parentSpanId"] == "").count();
        assert_eq!(roots, answered);
    }
}
