//! Data points of `ExportMetricsServiceRequest`, in JSON or protobuf, as plain numbers with names.
//!
//! Gauges and sums are read. Histograms and summaries of latency become [their counters](super::histograms); others are
//! one point each. Values that are no numbers are left out and counted.

use std::borrow::Cow;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value},
    metrics::v1::{Metric, NumberDataPoint, metric::Data, number_data_point},
};
use prost::Message;
use sage_common::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::{histograms::Histogram, whose};

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
    /// `service.name` as written, else what its platform calls it.
    pub service: Option<String>,
    /// `service.instance.id`, else the container or pod.
    pub instance: Option<String>,
    /// `host.name`, else the node's name.
    pub host: Option<String>,
}

impl Resource {
    /// By the attributes of a resource.
    pub fn of(attributes: &[(String, String)]) -> Self {
        Self {
            service: whose::service(attributes),
            instance: whose::instance(attributes),
            host: whose::host(attributes),
        }
    }
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
    /// What it says under `key`; `None` where that is nothing.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(own, value)| own == key && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    /// Names the series it is of, with `whose`.
    pub fn series(&self, whose: &Resource) -> u64 {
        self.named(whose, |_| true)
    }

    /// Names the set of series that it is a part of: without what tells the parts of a histogram apart.
    pub fn set(&self, whose: &Resource) -> u64 {
        self.named(whose, |key| !matches!(key, "le" | "quantile"))
    }

    fn named(&self, whose: &Resource, counts: impl Fn(&str) -> bool) -> u64 {
        let parts = [&whose.service, &whose.instance, &whose.host].map(|part| part.as_deref().unwrap_or_default());
        let mut text = parts.join("\u{1}");
        text.push('\u{1}');
        text += &self.name;
        for (key, value) in self.attributes.iter().filter(|(key, _)| counts(key)) {
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
    for resource in request.resource_metrics.into_iter().flatten() {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let whose = Resource::of(&texts(attributes.as_deref()));
        let scopes = resource.scope_metrics.into_iter().flatten();
        for metric in scopes.flat_map(|scope| scope.metrics.into_iter().flatten()) {
            let (name, unit) = (cut(&metric.name), cut(&metric.unit));
            let empty =
                Point { name, unit, attributes: Vec::new(), at: Timestamp::default(), value: 0.0, kind: Kind::Gauge };
            for (point, kind) in metric.points() {
                let (Some(value), Some(at)) = (point.value(), point.at()) else {
                    unreadable += 1;
                    continue;
                };
                sink(&whose, Point { attributes: point.texts(), at, value, kind, ..empty.clone() });
            }
            for (point, kind) in metric.histograms() {
                let (Some(histogram), Some(at)) = (point.histogram(), point.at()) else {
                    unreadable += 1;
                    continue;
                };
                let whole = Point { attributes: point.texts(), at, kind, ..empty.clone() };
                histogram.tell(&whole, |point| sink(&whose, point));
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
        let attributes: Vec<KeyValue> = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let whose = Resource::of(&texts_of(&attributes));
        for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            unreadable += of_metric(metric, &mut |point| sink(&whose, point));
        }
    }
    Ok(unreadable)
}

/// Hands over the points of one metric, and says how many could not be read.
fn of_metric(metric: Metric, sink: &mut dyn FnMut(Point)) -> u64 {
    let (name, unit) = (cut(&metric.name), cut(&metric.unit));
    let point = |attributes: &[KeyValue], nanos: u64, kind| Point {
        name: name.clone(),
        unit: unit.clone(),
        attributes: texts_of(attributes),
        at: Timestamp::from_micros(nanos / 1_000),
        value: 0.0,
        kind,
    };
    let is_timed = |point: &Point| point.at > Timestamp::default();
    let mut unreadable = 0;
    let mut tell = |whole: Point, histogram: Option<Histogram>| match histogram.filter(|_| is_timed(&whole)) {
        Some(histogram) => histogram.tell(&whole, &mut *sink),
        None => unreadable += 1,
    };
    match metric.data {
        Some(Data::Histogram(data)) => {
            let kind = kind_of(data.aggregation_temporality, true);
            for own in data.data_points {
                tell(point(&own.attributes, own.time_unix_nano, kind), Histogram::of_explicit(&own));
            }
        }
        Some(Data::ExponentialHistogram(data)) => {
            let kind = kind_of(data.aggregation_temporality, true);
            for own in data.data_points {
                tell(point(&own.attributes, own.time_unix_nano, kind), Histogram::of_exponential(&own));
            }
        }
        Some(Data::Summary(data)) => {
            for own in data.data_points {
                tell(point(&own.attributes, own.time_unix_nano, Kind::Cumulative), Some(Histogram::of_summary(&own)));
            }
        }
        Some(Data::Gauge(data)) => unreadable += numbers(&data.data_points, Kind::Gauge, &point, sink),
        Some(Data::Sum(data)) => {
            let kind = kind_of(data.aggregation_temporality, data.is_monotonic);
            unreadable += numbers(&data.data_points, kind, &point, sink);
        }
        None => {}
    }
    unreadable
}

/// Hands over points that are numbers, and says how many are none.
fn numbers(
    all: &[NumberDataPoint],
    kind: Kind,
    empty: &dyn Fn(&[KeyValue], u64, Kind) -> Point,
    sink: &mut dyn FnMut(Point),
) -> u64 {
    let mut unreadable = 0;
    for own in all {
        match number(own).filter(|_| own.time_unix_nano > 0) {
            Some(value) => sink(Point { value, ..empty(&own.attributes, own.time_unix_nano, kind) }),
            None => unreadable += 1,
        }
    }
    unreadable
}

fn kind_of(temporality: i32, is_monotonic: bool) -> Kind {
    match (temporality, is_monotonic) {
        (_, false) => Kind::Gauge,
        (CUMULATIVE, true) => Kind::Cumulative,
        (_, true) => Kind::Delta,
    }
}

fn cut(text: &str) -> String {
    if text.len() <= TEXT_MAX { text.to_owned() } else { text.chars().take(TEXT_MAX).collect() }
}

/// Attributes as text, sorted.
fn texts_of(pairs: &[KeyValue]) -> Vec<(String, String)> {
    let mut texts: Vec<(String, String)> = pairs.iter().map(|pair| (cut(&pair.key), text_of(pair))).collect();
    texts.sort();
    texts
}

fn texts(pairs: Option<&[JsonPair<'_>]>) -> Vec<(String, String)> {
    let pairs = pairs.into_iter().flatten();
    let mut texts: Vec<(String, String)> = pairs.map(|pair| (cut(&pair.key), pair.text())).collect();
    texts.sort();
    texts
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
    resource_metrics: Option<Vec<JsonResourceMetrics<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonResourceMetrics<'a> {
    #[serde(borrow, default)]
    resource: Option<JsonResource<'a>>,
    #[serde(borrow, default, alias = "scope_metrics", alias = "instrumentationLibraryMetrics")]
    scope_metrics: Option<Vec<JsonScopeMetrics<'a>>>,
}

#[derive(Default, Deserialize)]
struct JsonResource<'a> {
    #[serde(borrow, default)]
    attributes: Option<Vec<JsonPair<'a>>>,
}

#[derive(Deserialize)]
struct JsonScopeMetrics<'a> {
    #[serde(borrow, default)]
    metrics: Option<Vec<JsonMetric<'a>>>,
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
    #[serde(borrow, default)]
    histogram: Option<JsonData<'a>>,
    #[serde(borrow, default, alias = "exponential_histogram", rename = "exponentialHistogram")]
    exponential: Option<JsonData<'a>>,
    #[serde(borrow, default)]
    summary: Option<JsonData<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonData<'a> {
    #[serde(borrow, default, alias = "data_points")]
    data_points: Option<Vec<JsonPoint<'a>>>,
    #[serde(default, alias = "aggregation_temporality")]
    aggregation_temporality: Value,
    #[serde(default, alias = "is_monotonic")]
    is_monotonic: Option<bool>,
}

/// A point of any kind: what it does not have is null.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonPoint<'a> {
    #[serde(borrow, default)]
    attributes: Option<Vec<JsonPair<'a>>>,
    #[serde(default, alias = "time_unix_nano")]
    time_unix_nano: Value,
    #[serde(default, alias = "as_double")]
    as_double: Value,
    #[serde(default, alias = "as_int")]
    as_int: Value,
    #[serde(default)]
    count: Value,
    #[serde(default)]
    sum: Value,
    #[serde(default, alias = "bucket_counts")]
    bucket_counts: Value,
    #[serde(default, alias = "explicit_bounds")]
    explicit_bounds: Value,
    #[serde(default)]
    scale: Value,
    #[serde(default, alias = "zero_count")]
    zero_count: Value,
    #[serde(default)]
    positive: Value,
    #[serde(default, alias = "quantile_values")]
    quantile_values: Value,
}

#[derive(Deserialize)]
struct JsonPair<'a> {
    #[serde(borrow, default)]
    key: Cow<'a, str>,
    #[serde(default)]
    value: Value,
}

impl JsonData<'_> {
    fn kind(&self, is_monotonic: bool) -> Kind {
        let temporality = match &self.aggregation_temporality {
            Value::String(name) if name.ends_with("CUMULATIVE") => CUMULATIVE,
            other => other.as_i64().and_then(|number| i32::try_from(number).ok()).unwrap_or(0),
        };
        kind_of(temporality, is_monotonic)
    }

    fn points(&self) -> impl Iterator<Item = &JsonPoint<'_>> {
        self.data_points.iter().flatten()
    }
}

impl JsonMetric<'_> {
    /// Numbers.
    fn points(&self) -> impl Iterator<Item = (&JsonPoint<'_>, Kind)> {
        let gauge = self.gauge.iter().flat_map(|data| data.points().map(|point| (point, Kind::Gauge)));
        let sum = self.sum.iter().flat_map(|data| {
            let kind = data.kind(data.is_monotonic.unwrap_or(false));
            data.points().map(move |point| (point, kind))
        });
        gauge.chain(sum)
    }

    fn histograms(&self) -> impl Iterator<Item = (&JsonPoint<'_>, Kind)> {
        let all = [&self.histogram, &self.exponential].into_iter().flatten();
        let all = all.flat_map(|data| data.points().map(|point| (point, data.kind(true))));
        all.chain(self.summary.iter().flat_map(|data| data.points().map(|point| (point, Kind::Cumulative))))
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

    fn texts(&self) -> Vec<(String, String)> {
        texts(self.attributes.as_deref())
    }

    /// Of whatever kind it is.
    fn histogram(&self) -> Option<Histogram> {
        let (count, sum) = (number_in(&self.count), number_in(&self.sum));
        if let Value::Array(quantiles) = &self.quantile_values {
            let of = |own: &Value, name| number_in(own.get(name)?);
            let pair = |own: &Value| Some((of(own, "quantile")?, of(own, "value")?));
            return Some(Histogram::quantiles(count, sum, quantiles.iter().filter_map(pair)));
        }
        let counts = numbers_in(&self.bucket_counts);
        if self.positive.is_null() && self.scale.is_null() {
            return Histogram::explicit(count, sum, &numbers_in(&self.explicit_bounds), &counts);
        }
        let own = |name: &str| self.positive.get(name).unwrap_or(&Value::Null);
        let camel = numbers_in(own("bucketCounts"));
        let counts = if camel.is_empty() { numbers_in(own("bucket_counts")) } else { camel };
        let scale = number_in(&self.scale).unwrap_or(0.0) as i32;
        let offset = number_in(own("offset")).unwrap_or(0.0) as i32;
        Histogram::exponential(count, sum, scale, offset, number_in(&self.zero_count).unwrap_or(0.0), &counts)
    }
}

fn numbers_in(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(number_in).collect()
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
            {"name":"h","histogram":{"dataPoints":[{"timeUnixNano":"1000"}]}}]}]}]}"#;
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
