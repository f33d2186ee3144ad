//! Entry histograms: hdrhistogram V2 bytes of many nodes, added up to one exact fleet-wide percentile.

use hdrhistogram::{Histogram, serialization::Deserializer};
use thiserror::Error;

/// Why an entry histogram cannot be read.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HistogramError {
    /// Not the V2 format, or cut off.
    #[error("not a V2 histogram")]
    Format,
    /// More digits, or a payload of another length, than this build accepts.
    #[error("histogram of unsupported shape")]
    Shape,
}

/// Bytes of a V2 header: cookie, payload length, offset, digits, lowest, highest, ratio.
const HEADER: usize = 40;
/// Agents send 2; with 3, one histogram takes 0.4 MB at most.
const DIGITS_MAX: u32 = 3;
/// Calls in one window, far above what one machine can serve; sums of such counts cannot overflow.
const COUNT_MAX: u64 = 1 << 40;
/// A payload never holds this run: it would be a count of -2^63.
const IMPOSSIBLE: [u8; 9] = [0xff; 9];

/// Reads one histogram of microseconds. Refuses whatever could make the decoder allocate more than it was given.
///
/// # Errors
///
/// [`HistogramError`] for anything that an agent would not have written.
pub fn decode(v2: &[u8]) -> Result<Histogram<u64>, HistogramError> {
    let word = |at: usize| v2.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let (length, digits) = (word(4).ok_or(HistogramError::Format)?, word(12).ok_or(HistogramError::Format)?);
    if v2.len() < HEADER || length as usize != v2.len() - HEADER || digits > DIGITS_MAX {
        return Err(HistogramError::Shape);
    }
    if v2[HEADER..].windows(IMPOSSIBLE.len()).any(|run| run == IMPOSSIBLE) {
        return Err(HistogramError::Format);
    }
    let histogram: Histogram<u64> =
        Deserializer::new().deserialize(&mut &v2[..]).map_err(|_| HistogramError::Format)?;
    if histogram.len() > COUNT_MAX { Err(HistogramError::Shape) } else { Ok(histogram) }
}

/// The sum of histograms, of any bounds, at 2 significant digits.
#[derive(Clone, Debug)]
pub struct Sum(Histogram<u64>);

impl Default for Sum {
    fn default() -> Self {
        // Two digits are always accepted, and the histogram grows as it needs to.
        Self(Histogram::new(2).unwrap_or_else(|_| unreachable!("2 significant digits are valid")))
    }
}

impl Sum {
    /// Adds `other`; what does not fit is left out, which an auto-resizing histogram never does.
    pub fn add(&mut self, other: &Histogram<u64>) {
        if self.0.add(other).is_err() {
            for step in other.iter_recorded() {
                self.0.saturating_record_n(step.value_iterated_to(), step.count_at_value());
            }
        }
    }

    /// How many values it holds.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value at `percentile`, microseconds; `None` when it is empty.
    pub fn at(&self, percentile: f64) -> Option<f64> {
        (self.count() > 0).then(|| self.0.value_at_percentile(percentile) as f64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use hdrhistogram::serialization::{Serializer, V2Serializer};
    use proptest::prelude::*;

    use super::*;

    /// V2 bytes of `values`, as an agent writes them.
    pub(crate) fn encode(values: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let mut histogram = Histogram::<u64>::new(2).expect("two digits");
        for value in values {
            histogram.record(value).expect("auto-resizing");
        }
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&histogram, &mut bytes).expect("into memory");
        bytes
    }

    #[test]
    fn the_percentile_of_two_nodes_is_that_of_all_their_calls() {
        let mut sum = Sum::default();
        sum.add(&decode(&encode(1..=900)).expect("valid"));
        sum.add(&decode(&encode(10_001..=10_100)).expect("valid"));
        assert_eq!(sum.count(), 1_000);
        let p99 = sum.at(99.0).expect("not empty");
        assert!((p99 - 10_090.0).abs() < 101.0, "{p99}");
        assert_eq!(Sum::default().at(99.0), None);
    }

    #[test]
    fn a_declared_length_beyond_the_bytes_is_refused() {
        let mut bytes = encode([5]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode(&bytes).expect_err("length"), HistogramError::Shape);
        assert_eq!(decode(&[]).expect_err("empty"), HistogramError::Format);
    }

    #[test]
    fn counts_that_no_machine_can_serve_are_refused() {
        let mut histogram = Histogram::<u64>::new(2).expect("two digits");
        for value in [1, 2, 3] {
            histogram.record_n(value, i64::MAX as u64).expect("auto-resizing");
        }
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&histogram, &mut bytes).expect("into memory");
        assert_eq!(decode(&bytes).expect_err("too many"), HistogramError::Shape);
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(
            values in prop::collection::vec(1_u64..1_000_000, 0..50),
            at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(values);
            let (at, cut) = (at.index(bytes.len()), cut.index(bytes.len()));
            bytes[at] = byte;
            let _ = decode(&bytes);
            let _ = decode(&bytes[..cut]);
        }
    }
}
