//! When requests are due and which kind they are: Poisson arrivals over a mix, with a gentle swing of the rate. Pure: the
//! same seed gives the same requests.

use std::f64::consts::TAU;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    app::Request,
    topology::{NodeId, Plan, Topology, count},
};

/// One request and when it is due, in seconds since the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When it is due.
    pub due_s: f64,
    /// Which kind: its place in `Topology::requests`.
    pub kind: usize,
    /// What is sent.
    pub request: Request,
}

/// An endless stream of requests.
#[derive(Clone, Debug)]
pub struct Arrivals {
    rng: SmallRng,
    plan: Plan,
    /// Kind and the upper end of its share of `[0, 1)`.
    mix: Vec<(usize, f64)>,
    now_s: f64,
    swing: f64,
    swing_period_s: f64,
    sample_ratio: f64,
}

impl Arrivals {
    /// Requests of `topology` by the named alternative mix, or its own.
    ///
    /// The rate swings by the part `swing` of itself, once in `swing_period_s`. `sample_ratio` of the traces are sampled.
    ///
    /// `None` when there is no such mix.
    pub fn new(topology: &Topology, mix: Option<&str>, seed: u64) -> Option<Self> {
        let alternative = match mix {
            Some(name) => Some(topology.load.alt_mixes.get(name)?),
            None => None,
        };
        let mut upper = 0.0;
        let shares = topology.requests.iter().enumerate().map(|(kind, request)| {
            upper += alternative.map_or(request.mix, |shares| shares.get(&request.id).copied().unwrap_or(0.0));
            (kind, upper)
        });
        Some(Self {
            rng: SmallRng::seed_from_u64(seed),
            plan: Plan::new(topology),
            mix: shares.collect(),
            now_s: 0.0,
            swing: 0.0,
            swing_period_s: 60.0,
            sample_ratio: 1.0,
        })
    }

    /// The rate swings by the part `swing` of itself, once in `period_s`.
    pub fn with_swing(mut self, swing: f64, period_s: f64) -> Self {
        (self.swing, self.swing_period_s) = (swing.clamp(0.0, 0.95), period_s.max(1e-3));
        self
    }

    /// So many of the traces are sampled.
    pub fn with_sample_ratio(mut self, ratio: f64) -> Self {
        self.sample_ratio = ratio;
        self
    }

    /// The next request at a mean rate of `rate_per_s`, which must be positive.
    pub fn next(&mut self, rate_per_s: f64) -> Arrival {
        let wave = (TAU * self.now_s / self.swing_period_s).sin();
        let rate = rate_per_s * (1.0 + self.swing * wave);
        // 1 - u lies in (0, 1]: its logarithm is finite.
        self.now_s -= (1.0 - self.rng.random::<f64>()).ln() / rate;
        let point: f64 = self.rng.random();
        // Rounding may leave the last upper end just below 1.
        let kind = self.mix.iter().find(|(_, upper)| point < *upper).or(self.mix.last()).map_or(0, |(kind, _)| *kind);
        let node = self.plan.roots().get(kind).copied().unwrap_or(NodeId(0));
        let items = self.plan.node(node).map_or(0, |node| count(node.items, &mut self.rng));
        let request = Request {
            id: self.rng.random(),
            trace_id: self.rng.random(),
            parent_span: 0,
            is_sampled: self.rng.random::<f64>() < self.sample_ratio,
            node,
            items,
            seed: self.rng.random(),
        };
        Arrival { due_s: self.now_s, kind, request }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::load;

    fn arrivals(seed: u64) -> Arrivals {
        Arrivals::new(&load("demo").expect("built in"), None, seed).expect("its own mix")
    }

    #[test]
    fn the_same_seed_gives_the_same_requests() {
        let (mut a, mut b, mut c) = (arrivals(1), arrivals(1), arrivals(2));
        for _ in 0..100 {
            let next = a.next(50.0);
            assert_eq!(next, b.next(50.0));
            assert_ne!(next, c.next(50.0));
        }
    }

    #[test]
    fn gaps_are_exponential_and_kinds_follow_the_mix() {
        let mut arrivals = arrivals(3);
        let mut last = 0.0;
        let mut gaps = Vec::new();
        let mut browse = 0;
        for _ in 0..50_000 {
            let arrival = arrivals.next(200.0);
            gaps.push(arrival.due_s - last);
            last = arrival.due_s;
            browse += usize::from(arrival.kind == 0);
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 200.0 - 1.0).abs() < 0.02, "mean gap {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "an exponential's deviation is its mean");
        assert!((browse as f64 / 50_000.0 - 0.55).abs() < 0.01, "{browse} of 50000 browse");
    }

    #[test]
    fn the_rate_swings_by_what_was_asked_for() {
        let mut arrivals = arrivals(4).with_swing(0.5, 10.0);
        let mut by_quarter = [0_u32; 4];
        loop {
            let due = arrivals.next(1_000.0).due_s;
            if due >= 40.0 {
                break;
            }
            by_quarter[(due % 10.0 / 2.5) as usize] += 1;
        }
        // The mean of 1 + sin/2 over the rising half is 1 + 1/pi, over the falling half 1 - 1/pi.
        let ratio = f64::from(by_quarter[0] + by_quarter[1]) / f64::from(by_quarter[2] + by_quarter[3]);
        let expected = (1.0 + 1.0 / std::f64::consts::PI) / (1.0 - 1.0 / std::f64::consts::PI);
        assert!((ratio / expected - 1.0).abs() < 0.05, "{ratio} against {expected}");
    }

    #[test]
    fn an_alternative_mix_replaces_the_own_one() {
        let topology = load("demo").expect("built in");
        let mut buy = Arrivals::new(&topology, Some("buy_only"), 5).expect("in the file");
        assert!((0..100).all(|_| buy.next(10.0).kind == 1));
        assert!(Arrivals::new(&topology, Some("no such mix"), 5).is_none());
    }
}
