//! Who comes when: an open loop with a daily swing, slow noise, bursts, and a mix that drifts. Any second can be asked for
//! on its own, so that a world may be looked at from its middle.

use rand::Rng;

use super::{
    fault::{FaultKind, FaultPlan, Role},
    random::{Key, drift},
};
use crate::topology::Topology;

/// How load varies. All are shares of the mean rate but the times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadShape {
    /// Mean rate over the nominal one of the topology.
    pub level: f64,
    /// Amplitude of the daily swing: 0.5 is threefold from night to noon.
    pub swing: f64,
    /// Length of a day, seconds.
    pub day_s: f64,
    /// Standard deviation of the slow noise.
    pub noise: f64,
    /// Bursts per hour.
    pub bursts_per_hour: f64,
    /// A burst raises the rate by this much.
    pub burst: f64,
    /// Standard deviation of the log of each share of the mix.
    pub mix_drift: f64,
}

impl Default for LoadShape {
    fn default() -> Self {
        Self {
            level: 0.8,
            swing: 0.45,
            day_s: 1_200.0,
            noise: 0.05,
            bursts_per_hour: 30.0,
            burst: 0.15,
            mix_drift: 0.1,
        }
    }
}

impl LoadShape {
    /// The nominal rate and mix, for ever.
    pub const fn steady() -> Self {
        Self { level: 1.0, swing: 0.0, day_s: 1_200.0, noise: 0.0, bursts_per_hour: 0.0, burst: 0.0, mix_drift: 0.0 }
    }
}

/// One request that arrives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When, nanoseconds since the start of the world.
    pub at: u64,
    /// Its place in `Topology::requests`.
    pub kind: u32,
    /// The name of all its draws.
    pub key: Key,
}

/// The arrivals of one world, in order.
#[derive(Clone, Debug)]
pub struct Arrivals {
    shape: LoadShape,
    key: Key,
    nominal: f64,
    mix: Vec<f64>,
    surges: Vec<FaultPlan>,
    second: u64,
    /// Of this second, the last one first.
    pending: Vec<Arrival>,
}

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;
/// The slow noise has a knot every so many seconds, the mix every so many.
const NOISE_PERIOD_S: f64 = 20.0;
const MIX_PERIOD_S: f64 = 180.0;
/// Bursts begin once in such a slot at most, and last up to half of it.
const BURST_SLOT_S: f64 = 30.0;
/// More arrivals in one second than any machine could send: a wrong rate must not fill the memory.
const PER_SECOND_MAX: usize = 1_000_000;

impl Arrivals {
    /// Arrivals from second `from` on.
    pub fn new(topology: &Topology, shape: LoadShape, key: Key, from_second: u64) -> Self {
        Self {
            shape,
            key,
            nominal: topology.load.nominal_qps,
            mix: topology.requests.iter().map(|request| request.mix).collect(),
            surges: Vec::new(),
            second: from_second,
            pending: Vec::new(),
        }
    }

    /// Takes the surges among `faults`; what has been drawn for the running second stays.
    pub fn set_faults(&mut self, faults: &[FaultPlan]) {
        let is_surge = |fault: &&FaultPlan| fault.kind == FaultKind::Surge && fault.role == Role::Real;
        self.surges = faults.iter().filter(is_surge).cloned().collect();
    }

    /// Requests a second at `at_s` without surges.
    pub fn rate(&self, at_s: f64) -> f64 {
        let shape = self.shape;
        let swing = 1.0 + shape.swing * (std::f64::consts::TAU * at_s / shape.day_s).sin();
        let noise = 1.0 + shape.noise * drift(self.key.child(NOISE), at_s, NOISE_PERIOD_S).clamp(-3.0, 3.0);
        self.nominal * shape.level * swing.max(0.0) * noise.max(0.0) * (1.0 + self.burst(at_s))
    }

    /// The shares of the kinds at `at_s`; they sum to 1.
    pub fn mix(&self, at_s: f64) -> Vec<f64> {
        let share = |(kind, share): (usize, &f64)| {
            let key = self.key.child(MIX).child(kind as u64);
            share * (self.shape.mix_drift * drift(key, at_s, MIX_PERIOD_S)).exp()
        };
        let shares: Vec<f64> = self.mix.iter().enumerate().map(share).collect();
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|share| share / sum.max(f64::MIN_POSITIVE)).collect()
    }

    /// The next one, which is not taken.
    pub fn peek(&mut self) -> Arrival {
        loop {
            if let Some(next) = self.pending.last() {
                return *next;
            }
            self.draw_second(); // ends: rates are positive in some second of a day
        }
    }

    /// Takes the next one.
    pub fn take(&mut self) -> Arrival {
        let next = self.peek();
        self.pending.pop();
        next
    }

    fn burst(&self, at_s: f64) -> f64 {
        let slot = (at_s / BURST_SLOT_S).floor();
        let key = self.key.child(BURST).child(slot as u64);
        if key.child(0).uniform() >= self.shape.bursts_per_hour * BURST_SLOT_S / 3_600.0 {
            return 0.0;
        }
        let start = slot * BURST_SLOT_S + key.child(1).uniform() * BURST_SLOT_S / 2.0;
        let end = start + (0.1 + 0.4 * key.child(2).uniform()) * BURST_SLOT_S;
        if (start..end).contains(&at_s) { self.shape.burst } else { 0.0 }
    }

    /// The surplus of surges at `at_s` over the rate without them.
    fn surplus(&self, second: u64) -> f64 {
        let at = sage_common::Micros::from_secs(second);
        self.surges.iter().filter(|surge| surge.is_active(at)).map(|surge| surge.severity).product::<f64>() - 1.0
    }

    fn draw_second(&mut self) {
        let second = self.second;
        let at_s = second as f64 + 0.5;
        let (rate, mix) = (self.rate(at_s), self.mix(at_s));
        // A surge brings further requests; those that come anyway stay as they are.
        for (stream, rate) in [(BASE, rate), (SURGE, rate * self.surplus(second))] {
            self.draw_stream(self.key.child(stream).child(second), rate, &mix);
        }
        self.pending.sort_by_key(|arrival| std::cmp::Reverse(arrival.at));
        self.second += 1;
    }

    fn draw_stream(&mut self, key: Key, rate: f64, mix: &[f64]) {
        let start = self.second * SECOND;
        let mut rng = key.rng();
        let mut at = 0.0;
        for number in 0..PER_SECOND_MAX {
            at -= (1.0 - rng.random::<f64>()).ln() / rate.max(1e-9);
            if rate <= 0.0 || at >= 1.0 {
                return;
            }
            let kind = pick(mix, rng.random());
            self.pending.push(Arrival {
                at: start + (at * SECOND as f64) as u64,
                kind,
                key: key.child(number as u64 + 1),
            });
        }
    }
}

const NOISE: u64 = 1;
const MIX: u64 = 2;
const BURST: u64 = 3;
const BASE: u64 = 4;
const SURGE: u64 = 5;

/// The place in `shares` that the draw falls on.
fn pick(shares: &[f64], draw: f64) -> u32 {
    let mut sum = 0.0;
    for (place, share) in shares.iter().enumerate() {
        sum += share;
        if draw < sum {
            return place as u32;
        }
    }
    // Rounding left a gap at the end: the last kind that comes at all.
    shares.iter().rposition(|share| *share > 0.0).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::load;

    fn arrivals(shape: LoadShape, from: u64) -> Arrivals {
        Arrivals::new(&load("social_network").expect("built in"), shape, Key::new(11), from)
    }

    fn until(mut arrivals: Arrivals, second: u64) -> Vec<Arrival> {
        std::iter::from_fn(|| (arrivals.peek().at < second * SECOND).then(|| arrivals.take())).collect()
    }

    #[test]
    fn steady_arrivals_are_poisson_with_the_nominal_rate_and_mix() {
        let all = until(arrivals(LoadShape::steady(), 0), 100);
        assert!((all.len() as f64 - 50_000.0).abs() < 700.0, "{} arrivals", all.len());
        let gaps: Vec<f64> = all.windows(2).map(|pair| (pair[1].at - pair[0].at) as f64 / 1e9).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "cv {}", variance.sqrt() / mean);
        let home = all.iter().filter(|arrival| arrival.kind == 0).count() as f64 / all.len() as f64;
        assert!((home - 0.6).abs() < 0.01, "share {home}");
    }

    #[test]
    fn a_world_looked_at_from_its_middle_has_the_same_arrivals() {
        let all = until(arrivals(LoadShape::default(), 0), 50);
        let late = until(arrivals(LoadShape::default(), 30), 50);
        let same: Vec<Arrival> = all.into_iter().filter(|arrival| arrival.at >= 30 * SECOND).collect();
        assert_eq!(late, same);
    }

    #[test]
    fn a_surge_adds_requests_and_changes_none() {
        let calm = until(arrivals(LoadShape::default(), 0), 20);
        let mut surging = arrivals(LoadShape::default(), 0);
        surging.set_faults(&["surge:nginx-thrift@5..15x3".parse().expect("valid")]);
        let surging = until(surging, 20);
        assert!(calm.iter().all(|arrival| surging.contains(arrival)));
        let more = surging.len() as f64 / calm.len() as f64;
        assert!((1.9..2.1).contains(&more), "{more} times as many");
    }

    #[test]
    fn the_load_swings_threefold_over_a_day() {
        let arrivals = arrivals(LoadShape { swing: 0.5, ..LoadShape::default() }, 0);
        let rates: Vec<f64> = (0..1_200).map(|s| arrivals.rate(f64::from(s))).collect();
        let (low, high) = rates.iter().fold((f64::MAX, 0.0_f64), |(l, h), r| (l.min(*r), h.max(*r)));
        assert!((2.5..4.5).contains(&(high / low)), "from {low} to {high}");
    }
}
