//! The durable form that models share: who wrote it, over what, how long, and a checksum over all of it.
//!
//! ```text
//! magic [8] | version u16 | schema u64 | body length u64 | body (JSON) | blocks: count u32, (length u64, bytes)* | xxh3 u64
//! ```
//!
//! Integers are little-endian. The schema is a hash of the metric names and the percentile grids: numbers learnt over
//! others mean something else. The checksum covers all bytes before it. Lengths are held against what is there, so
//! damage never becomes an allocation.

use sage_common::{LATENCY_PERCENTILES, Metric, USAGE_PERCENTILES};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::model::ModelError;

/// Which kind of model.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// First bytes.
    pub magic: [u8; 8],
    /// Version of the format.
    pub version: u16,
}

/// What was inside: the body, then every block.
pub type Content<'a> = (&'a [u8], Vec<&'a [u8]>);

impl Envelope {
    /// Wraps `body` and `blocks`.
    pub fn write(self, body: &[u8], blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(body.len() + blocks.iter().map(|block| block.len() + 8).sum::<usize>() + 64);
        bytes.extend(self.magic);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(schema().to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        bytes.extend((blocks.len() as u32).to_le_bytes());
        for block in blocks {
            bytes.extend((block.len() as u64).to_le_bytes());
            bytes.extend(block);
        }
        let checksum = xxh3_64(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// Unwraps what [`write`](Self::write) wrote.
    ///
    /// # Errors
    ///
    /// [`ModelError`] for foreign bytes, another version or schema, and any damage.
    pub fn read(self, bytes: &[u8]) -> Result<Content<'_>, ModelError> {
        let mut rest = bytes.strip_prefix(&self.magic).ok_or(ModelError::Foreign)?;
        let version = u16::from_le_bytes(take(&mut rest)?);
        if version != self.version {
            return Err(ModelError::Version { found: version, want: self.version });
        }
        let checked = bytes.len().checked_sub(8).ok_or_else(cut)?;
        let (content, checksum) = bytes.split_at(checked);
        if checksum != xxh3_64(content).to_le_bytes() {
            return Err(ModelError::Damaged("checksum does not match".to_owned()));
        }
        if u64::from_le_bytes(take(&mut rest)?) != schema() {
            return Err(ModelError::Schema);
        }
        let body = take_block(&mut rest)?;
        let count = u32::from_le_bytes(take(&mut rest)?);
        let mut blocks = Vec::new();
        // Ends: every block takes eight bytes at least, or is refused.
        for _ in 0..count {
            blocks.push(take_block(&mut rest)?);
        }
        if rest.len() == 8 { Ok((body, blocks)) } else { Err(ModelError::Damaged("bytes after the end".to_owned())) }
    }
}

/// Hash of everything that gives the numbers their meaning.
fn schema() -> u64 {
    let mut hash = Xxh3::new();
    for metric in Metric::ALL {
        hash.update(metric.name().as_bytes());
        hash.update(&[0]);
    }
    for percentile in LATENCY_PERCENTILES.iter().chain(&USAGE_PERCENTILES) {
        hash.update(&percentile.to_le_bytes());
    }
    hash.digest()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ModelError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(cut)?;
    *rest = tail;
    Ok(*head)
}

fn take_block<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], ModelError> {
    let length = usize::try_from(u64::from_le_bytes(take(rest)?)).map_err(|_| cut())?;
    let (block, tail) = rest.split_at_checked(length).ok_or_else(cut)?;
    *rest = tail;
    Ok(block)
}

fn cut() -> ModelError {
    ModelError::Damaged("cut short".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENVELOPE: Envelope = Envelope { magic: *b"TESTING\0", version: 3 };

    proptest! {
        #[test]
        fn what_goes_in_comes_out(body: Vec<u8>, blocks: Vec<Vec<u8>>) {
            let bytes = ENVELOPE.write(&body, &blocks);
            let (found, parts) = ENVELOPE.read(&bytes).expect("own bytes");
            prop_assert_eq!(found, &body[..]);
            prop_assert_eq!(parts, blocks);
        }

        #[test]
        fn a_single_flipped_bit_or_a_cut_is_refused(body: Vec<u8>, block: Vec<u8>, at: prop::sample::Index, bit in 0..8) {
            let bytes = ENVELOPE.write(&body, &[block]);
            let place = at.index(bytes.len());
            let mut flipped = bytes.clone();
            flipped[place] ^= 1_u8 << bit;
            prop_assert!(ENVELOPE.read(&flipped).is_err());
            prop_assert!(ENVELOPE.read(&bytes[..place]).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(ENVELOPE.read(&bytes).is_err());
            let mut signed = ENVELOPE.magic.to_vec();
            signed.extend(3_u16.to_le_bytes());
            signed.extend(schema().to_le_bytes());
            signed.extend(&bytes);
            signed.extend(xxh3_64(&signed).to_le_bytes());
            let _ = ENVELOPE.read(&signed);
        }
    }
}
