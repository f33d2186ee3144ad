//! Recorded percentiles of latency, counts and success of services and of calls between them. Pure.

use sage_common::{LATENCY_PERCENTILES, LatencyQuantiles};

use super::points::Point;

/// What a point says of latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Said {
    /// This percentile, microseconds.
    Percentile(f64, f64),
    /// Requests since the point before.
    Requests(f64),
    /// Requests per second.
    Rate(f64),
    /// Share of requests that succeeded.
    Succeeded(f64),
}

/// Whose calls it speaks of.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Whose {
    /// Those that the service answered.
    Served,
    /// Those that the service made to this one.
    Made(String),
}

/// Attributes that name whom a client called.
const PEERS: [&str; 7] = [
    "service.peer.name",
    "peer.service",
    "server",
    "callee",
    "destination_service_name",
    "destination_workload",
    "server.address",
];

/// What `point` says of the latency of its service; `None` when it speaks of something else, or of calls to nobody knows
/// whom.
pub fn said(point: &Point) -> Option<(Whose, Said)> {
    let (whose, rest) = whose(point)?;
    Some((whose, of_name(rest, point.value, &point.unit)?))
}

/// What the row `name` of a user's table makes of `value`, given in seconds where it is a time.
pub fn of_name(name: &str, value: f64, unit: &str) -> Option<Said> {
    let value = Some(value).filter(|value| value.is_finite() && *value >= 0.0)?;
    Some(match name {
        "requests" | "request.count" | "calls" => Said::Requests(value),
        "request.rate" | "rate" => Said::Rate(value),
        "availability" | "success_ratio" => Said::Succeeded(value.min(1.0)),
        "error_ratio" | "error_rate" => Said::Succeeded(1.0 - value.min(1.0)),
        _ => {
            let rest = name.strip_prefix("request.").unwrap_or(name);
            let percentile = rest.strip_prefix("duration.p").or_else(|| rest.strip_prefix("latency_p"))?;
            let percentile: f64 = percentile.parse().ok().filter(|p| (1.0..=100.0).contains(p))?;
            let factor = match unit {
                "us" => 1.0,
                "ms" => 1e3,
                _ => 1e6, // the conventions' unit is the second
            };
            Said::Percentile(percentile, value * factor)
        }
    })
}

fn whose(point: &Point) -> Option<(Whose, &str)> {
    let served = ["rpc.server.", "http.server."].iter().find_map(|prefix| point.name.strip_prefix(prefix));
    if let Some(rest) = served {
        return Some((Whose::Served, rest));
    }
    let rest = ["rpc.client.", "http.client."].iter().find_map(|prefix| point.name.strip_prefix(prefix))?;
    let peer = PEERS.iter().find_map(|name| point.attributes.iter().find(|(key, _)| key == name));
    Some((Whose::Made(peer?.1.clone()), rest))
}

/// One service, or the calls of one service to another, over one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    percentiles: Vec<(f64, f64)>, // percentile and microseconds
    requests: Option<f64>,
    rate: Option<f64>,
    succeeded: Option<f64>,
}

impl Summary {
    /// Adds what a point said.
    pub fn add(&mut self, said: Said) {
        match said {
            Said::Percentile(percentile, micros) => self.percentiles.push((percentile, micros)),
            Said::Requests(count) => self.requests = Some(self.requests.unwrap_or(0.0) + count),
            Said::Rate(rate) => self.rate = Some(self.rate.unwrap_or(0.0) + rate),
            Said::Succeeded(share) => self.succeeded = Some(share),
        }
    }

    /// The grid between the percentiles that are known, in logs; flat beyond them, because nothing tells of more. `None`
    /// without any.
    pub fn quantiles(&self) -> Option<LatencyQuantiles> {
        let mut known: Vec<(f64, f64)> = self.percentiles.iter().map(|(p, us)| (*p, us.max(1.0).ln())).collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (first, last) = (*known.first()?, *known.last()?);
        let at = |p: f64| match known.iter().position(|(q, _)| *q >= p) {
            Some(0) => first.1,
            Some(at) => {
                let (a, b) = (known[at - 1], known[at]);
                a.1 + (b.1 - a.1) * (p - a.0) / (b.0 - a.0).max(1e-9)
            }
            None => last.1,
        };
        let mut most = 0.0_f32;
        let grid = LATENCY_PERCENTILES.map(|p| {
            most = most.max(at(p).exp() as f32);
            most
        });
        Some(LatencyQuantiles(grid)).filter(LatencyQuantiles::is_valid)
    }

    /// Calls within `seconds`; `None` where nobody counts them.
    pub fn calls(&self, seconds: f64) -> Option<f64> {
        self.requests.or_else(|| Some(self.rate? * seconds))
    }

    /// Share of calls that failed.
    pub fn failed(&self) -> f64 {
        self.succeeded.map_or(0.0, |share| 1.0 - share)
    }
}

#[cfg(test)]
mod tests {
    use sage_common::Timestamp;

    use super::*;
    use crate::replay::points::Kind;

    fn point(name: &str, value: f64, unit: &str, peer: Option<&str>) -> Point {
        Point {
            name: name.to_owned(),
            unit: unit.to_owned(),
            attributes: peer.map(|peer| ("peer.service".to_owned(), peer.to_owned())).into_iter().collect(),
            at: Timestamp::default(),
            value,
            kind: Kind::Gauge,
        }
    }

    #[test]
    fn names_tell_percentiles_counts_and_success_and_whose_they_are() {
        let served = |name, value, unit| said(&point(name, value, unit, None));
        let p95 = Some((Whose::Served, Said::Percentile(95.0, 250_000.0)));
        assert_eq!(served("rpc.server.duration.p95", 0.25, "s"), p95);
        assert_eq!(served("http.server.request.duration.p95", 250.0, "ms"), p95);
        assert_eq!(served("rpc.server.requests", 7.0, "1"), Some((Whose::Served, Said::Requests(7.0))));
        assert_eq!(served("rpc.server.availability", 0.5, "1"), Some((Whose::Served, Said::Succeeded(0.5))));
        assert_eq!(served("rpc.client.duration.p50", 3.0, "s"), None, "to whom?");
        assert_eq!(
            said(&point("rpc.client.duration.p50", 3.0, "s", Some("cart"))),
            Some((Whose::Made("cart".to_owned()), Said::Percentile(50.0, 3e6)))
        );
    }

    #[test]
    fn what_is_no_percentile_or_no_number_says_nothing() {
        assert_eq!(said(&point("rpc.server.duration.p999", 3.0, "s", None)), None);
        assert_eq!(said(&point("rpc.server.duration.avg", 3.0, "s", None)), None);
        assert_eq!(of_name("requests", f64::NAN, ""), None);
        assert_eq!(of_name("requests", -1.0, ""), None);
    }

    #[test]
    fn the_grid_lies_between_the_known_percentiles_and_never_falls() {
        let mut summary = Summary::default();
        for (p, us) in [(99.0, 200.0), (50.0, 100.0), (90.0, 90.0)] {
            summary.add(Said::Percentile(p, us));
        }
        let grid = summary.quantiles().expect("known");
        let whole = [10.0, 50.0, 100.0].map(|p| grid.at(p).round());
        assert_eq!(whole, [100.0, 100.0, 200.0]);
        assert!(grid.is_valid() && grid.at(90.0) >= grid.at(50.0));
        assert_eq!(Summary::default().quantiles(), None);
    }
}
