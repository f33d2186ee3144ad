//! Data points of `ExportMetricsServiceRequest`, in JSON or protobuf, as plain numbers with names.
//!
//! Gauges and sums are read. Histograms, summaries, and values that are no numbers are left out and counted.

use std::borrow::Cow;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value},
    metrics::v1::{NumberDataPoint, metric::Data, number_data_point},
};
use prost::Message;
use sage_common::Timestamp;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Longest text of a name or an attribute that is looked at.
const TEXT_MAX: usize = 300;

/// Cumulative, in OTLP's numbering of temporalities.
const CUMULATIVE: i32 = 2;

/// Why a request of metrics does not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PointsError {
    /// Not JSON, or not of this shape.
    #[error("not a metrics request: {0}")]
    Json(#[from] serde_json::Error),
    /// Not protobuf, or not of this shape.
    #[error("not a metrics request: {0}")]
    Protobuf(#[from] prost::DecodeError),
}

/// What a value says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The value at that time.
    Gauge,
    /// A total since some start.
    Cumulative,
    /// A total since the point before.
    Delta,
}

/// Whose data points follow.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Resource {
    /// `service.name` as written.
    pub service: Option<String>,
    /// `service.instance.id`, else the container or pod.
    pub instance: Option<String>,
    /// `host.name`, else the node's name.
    pub host: Option<String>,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Name of the metric.
    pub name: String,
    /// Its unit as written.
    pub unit: String,
    /// Attributes as `key=value`, sorted.
    pub attributes: Vec<(String, String)>,
    /// When.
    pub at: Timestamp,
    /// The number, finite.
    pub value: f64,
    /// What it says.
    pub kind: Kind,
}

impl Point {
    /// Names the series it is of, with `whose`.
    pub fn series(&self, whose: &Resource) -> u64 {
        let parts = [&whose.service, &whose.instance, &whose.host].map(|part| part.as_deref().unwrap_or_default());
        let mut text = parts.join("\u{1}");
        text.push('\u{1}');
        text += &self.name;
        for (key, value) in &self.attributes {
            text += "\u{1}";
            text += key;
            text += "\u{2}";
            text += value;
        }
        xxh3_64(text.as_bytes())
    }
}

/// Hands every point of a request in JSON to `sink`, and says how many could not be read.
///
/// # Errors
///
/// [`PointsError::Json`]; `sink` has not been called then.
pub fn decode_json(request: &[u8], mut sink: impl FnMut(&Resource, Point)) -> Result<u64, PointsError> {
    let mut unreadable = 0;
    let request: JsonRequest<'_> = serde_json::from_slice(request)?;
    for resource in request.resource_metrics {
        let mut whose = Resource::default();
        for attribute in &resource.resource.attributes {
            whose.set(&attribute.key, &attribute.text());
        }
        for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            unreadable += metric.others();
            for (point, kind) in metric.points() {
                let (Some(value), Some(at)) = (point.value(), point.at()) else {
                    unreadable += 1;
                    continue;
                };
                let mut attributes: Vec<(String, String)> =
                    point.attributes.iter().map(|pair| (cut(&pair.key), pair.text())).collect();
                attributes.sort();
                let (name, unit) = (cut(&metric.name), cut(&metric.unit));
                sink(&whose, Point { name, unit, attributes, at, value, kind });
            }
        }
    }
    Ok(unreadable)
}

/// Hands every point of a request in protobuf to `sink`, and says how many could not be read.
///
/// # Errors
///
/// [`PointsError::Protobuf`]; `sink` has not been called then.
pub fn decode_protobuf(request: &[u8], mut sink: impl FnMut(&Resource, Point)) -> Result<u64, PointsError> {
    let mut unreadable = 0;
    let request = ExportMetricsServiceRequest::decode(request)?;
    for resource in request.resource_metrics {
        let mut whose = Resource::default();
        for pair in resource.resource.iter().flat_map(|resource| &resource.attributes) {
            whose.set(&pair.key, &text_of(pair));
        }
        for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            let (points, kind) = match metric.data {
                Some(Data::Gauge(gauge)) => (gauge.data_points, Kind::Gauge),
                Some(Data::Sum(sum)) => (sum.data_points, kind_of(sum.aggregation_temporality, sum.is_monotonic)),
                other => {
                    unreadable += others(other.as_ref());
                    continue;
                }
            };
            for point in points {
                let Some(value) = number(&point).filter(|_| point.time_unix_nano > 0) else {
                    unreadable += 1;
                    continue;
                };
                let mut attributes: Vec<(String, String)> =
                    point.attributes.iter().map(|pair| (cut(&pair.key), text_of(pair))).collect();
                attributes.sort();
                let (name, unit) = (cut(&metric.name), cut(&metric.unit));
                let at = Timestamp::from_micros(point.time_unix_nano / 1_000);
                sink(&whose, Point { name, unit, attributes, at, value, kind });
            }
        }
    }
    Ok(unreadable)
}

/// Data points of the kinds that are not read.
fn others(data: Option<&Data>) -> u64 {
    let count = match data {
        Some(Data::Histogram(data)) => data.data_points.len(),
        Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
        Some(Data::Summary(data)) => data.data_points.len(),
        _ => 0,
    };
    count as u64
}

impl Resource {
    fn set(&mut self, key: &str, text: &str) {
        let slot = match key {
            "service.name" => &mut self.service,
            "service.instance.id" => &mut self.instance,
            "container.id" | "k8s.pod.name" if self.instance.is_none() => &mut self.instance,
            "host.name" => &mut self.host,
            "k8s.node.name" if self.host.is_none() => &mut self.host,
            _ => return,
        };
        if !text.is_empty() {
            *slot = Some(cut(text));
        }
    }
}

fn kind_of(temporality: i32, is_monotonic: bool) -> Kind {
    match (temporality, is_monotonic) {
        (_, false) => Kind::Gauge,
        (CUMULATIVE, true) => Kind::Cumulative,
        (_, true) => Kind::Delta,
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn text_of(pair: &KeyValue) -> String {
    match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => cut(text),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(flag)) => flag.to_string(),
        _ => String::new(),
    }
}

fn number(point: &NumberDataPoint) -> Option<f64> {
    let value = match point.value? {
        number_data_point::Value::AsDouble(value) => value,
        number_data_point::Value::AsInt(value) => value as f64,
    };
    value.is_finite().then_some(value)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRequest<'a> {
    #[serde(borrow, default, alias = "resource_metrics")]
    resource_metrics: Vec<JsonResourceMetrics<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonResourceMetrics<'a> {
    #[serde(borrow, default)]
    resource: JsonResource<'a>,
    #[serde(borrow, default, alias = "scope_metrics")]
    scope_metrics: Vec<JsonScopeMetrics<'a>>,
}

#[derive(Default, Deserialize)]
struct JsonResource<'a> {
    #[serde(borrow, default)]
    attributes: Vec<JsonPair<'a>>,
}

#[derive(Deserialize)]
struct JsonScopeMetrics<'a> {
    #[serde(borrow, default)]
    metrics: Vec<JsonMetric<'a>>,
}

#[derive(Deserialize)]
struct JsonMetric<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    unit: Cow<'a, str>,
    #[serde(borrow, default)]
    gauge: Option<JsonData<'a>>,
    #[serde(borrow, default)]
    sum: Option<JsonData<'a>>,
    #[serde(default)]
    histogram: Option<JsonOther>,
    #[serde(default, alias = "exponential_histogram", rename = "exponentialHistogram")]
    exponential: Option<JsonOther>,
    #[serde(default)]
    summary: Option<JsonOther>,
}

/// Data that is only counted.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonOther {
    #[serde(default, alias = "data_points")]
    data_points: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonData<'a> {
    #[serde(borrow, default, alias = "data_points")]
    data_points: Vec<JsonPoint<'a>>,
    #[serde(default, alias = "aggregation_temporality")]
    aggregation_temporality: Value,
    #[serde(default, alias = "is_monotonic")]
    is_monotonic: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonPoint<'a> {
    #[serde(borrow, default)]
    attributes: Vec<JsonPair<'a>>,
    #[serde(default, alias = "time_unix_nano")]
    time_unix_nano: Value,
    #[serde(default, alias = "as_double")]
    as_double: Value,
    #[serde(default, alias = "as_int")]
    as_int: Value,
}

#[derive(Deserialize)]
struct JsonPair<'a> {
    #[serde(borrow, default)]
    key: Cow<'a, str>,
    #[serde(default)]
    value: Value,
}

impl JsonMetric<'_> {
    /// Data points of the kinds that are not read.
    fn others(&self) -> u64 {
        let all = [&self.histogram, &self.exponential, &self.summary];
        all.into_iter().flatten().map(|data| data.data_points.len() as u64).sum()
    }

    fn points(&self) -> impl Iterator<Item = (&JsonPoint<'_>, Kind)> {
        let gauge = self.gauge.iter().flat_map(|data| data.data_points.iter().map(|point| (point, Kind::Gauge)));
        let sum = self.sum.iter().flat_map(|data| {
            let temporality = match &data.aggregation_temporality {
                Value::String(name) if name.ends_with("CUMULATIVE") => CUMULATIVE,
                other => other.as_i64().and_then(|number| i32::try_from(number).ok()).unwrap_or(0),
            };
            let kind = kind_of(temporality, data.is_monotonic);
            data.data_points.iter().map(move |point| (point, kind))
        });
        gauge.chain(sum)
    }
}

impl JsonPoint<'_> {
    fn value(&self) -> Option<f64> {
        number_in(&self.as_double).or_else(|| number_in(&self.as_int)).filter(|value| value.is_finite())
    }

    fn at(&self) -> Option<Timestamp> {
        let nanos = match &self.time_unix_nano {
            Value::String(digits) => digits.parse::<u64>().ok()?,
            other => other.as_u64()?,
        };
        (nanos > 0).then(|| Timestamp::from_micros(nanos / 1_000))
    }
}

fn number_in(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

impl JsonPair<'_> {
    fn text(&self) -> String {
        let of = |name: &str| self.value.get(name);
        let text = of("stringValue").or_else(|| of("string_value")).and_then(Value::as_str);
        match (text, of("intValue").or_else(|| of("int_value")), of("boolValue").or_else(|| of("bool_value"))) {
            (Some(text), ..) => cut(text),
            (_, Some(Value::String(digits)), _) => cut(digits),
            (_, Some(number), _) => number.to_string(),
            (_, _, Some(flag)) => flag.to_string(),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(request: &str) -> Vec<(Resource, Point)> {
        let mut all = Vec::new();
        decode_json(request.as_bytes(), |whose, point| all.push((whose.clone(), point))).expect("valid");
        all
    }

    #[test]
    fn gauges_and_sums_come_with_whose_they_are() {
        let all = points(
            r#"{"resourceMetrics":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"cart"}},
            {"key":"host.name","value":{"stringValue":"n"}}]},"scopeMetrics":[{"metrics":[
            {"name":"a","unit":"1","gauge":{"dataPoints":[{"timeUnixNano":"5000","asDouble":0.5}]}},
            {"name":"b","sum":{"aggregationTemporality":2,"isMonotonic":true,"dataPoints":[
              {"timeUnixNano":6000,"asInt":"7","attributes":[{"key":"d","value":{"stringValue":"x"}}]}]}},
            {"name":"c","histogram":{"dataPoints":[]}}]}]}]}"#,
        );
        let seen: Vec<_> = all.iter().map(|(_, p)| (p.name.as_str(), p.at.as_micros(), p.value, p.kind)).collect();
        assert_eq!(seen, [("a", 5, 0.5, Kind::Gauge), ("b", 6, 7.0, Kind::Cumulative)]);
        assert_eq!(all[1].1.attributes, [("d".to_owned(), "x".to_owned())]);
        assert_eq!((all[0].0.service.as_deref(), all[0].0.host.as_deref()), (Some("cart"), Some("n")));
    }

    #[test]
    fn numbers_that_are_none_are_left_out_and_counted() {
        let request = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"a","gauge":{"dataPoints":[
            {"timeUnixNano":"1","asDouble":"NaN"},{"timeUnixNano":"1","asDouble":true},{"timeUnixNano":"x","asDouble":1},
            {"timeUnixNano":"1"},{"timeUnixNano":"1000","asDouble":"Infinity"}]}},
            {"name":"h","histogram":{"dataPoints":[{"count":"3"}]}}]}]}]}"#;
        let unreadable = decode_json(request.as_bytes(), |_, point| panic!("{point:?}")).expect("valid");
        assert_eq!(unreadable, 6);
    }

    #[test]
    fn wrong_types_are_an_error_of_the_line() {
        for request in ["", "[", "{\"resourceMetrics\": 3}", "{\"resourceMetrics\":[{\"resource\":7}]}"] {
            assert!(decode_json(request.as_bytes(), |_, _| {}).is_err(), "{request}");
        }
        assert!(decode_protobuf(&[0x0a, 0xff, 0xff, 0xff, 0x7f], |_, _| {}).is_err());
    }
}
