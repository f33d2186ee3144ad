//! Mean rates of a family of counters over one window.

use std::collections::BTreeMap;

use sage_common::Micros;

use super::rates::Counter;

/// One counter per member, and the mean of its rate since the last [`Means::drain`].
#[derive(Debug)]
pub(super) struct Means<K>(BTreeMap<K, Mean>);

#[derive(Debug, Default)]
struct Mean {
    counter: Counter,
    sum: f64,
    count: u32,
}

impl<K> Default for Means<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Means<K> {
    /// Takes one sample of every member; who is not among them is forgotten.
    pub(super) fn advance(&mut self, at: Micros, members: impl Iterator<Item = (K, Option<u64>)>) {
        let mut before = std::mem::take(&mut self.0);
        for (key, value) in members {
            let mut mean = before.remove(&key).unwrap_or_default();
            if let Some(rate) = mean.counter.rate(at, value) {
                mean.sum += rate;
                mean.count += 1;
            }
            self.0.insert(key, mean);
        }
    }

    /// Every member with its mean rate per second; counters run on.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (K, Option<f64>)> {
        self.0.iter_mut().map(|(key, mean)| {
            let (sum, count) = (std::mem::take(&mut mean.sum), std::mem::take(&mut mean.count));
            (key.clone(), (count > 0).then(|| sum / f64::from(count)))
        })
    }
}
