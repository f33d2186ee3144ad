//! Durable bytes of a net: `SGVN`, version, sizes, scalers, parameters as little-endian floats, xxh3 of all before it.

use dfdx::tensor::CopySlice;
use rand::{SeedableRng, rngs::SmallRng};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    CvaeOptions, GvaeError, ServiceNet,
    cvae::{Cvae, Sizes},
    scaler::Scaler,
};

const MAGIC: &[u8; 4] = b"SGVN";
const VERSION: u32 = 1;
/// No real service has more columns; a larger number is damage, and must not become an allocation.
const COLUMNS_MAX: u32 = 65_536;
/// Hidden width and latent size are at most this.
const WIDTH_MAX: u32 = 1_024;

impl ServiceNet {
    /// The net as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Sizes { x, y, hidden, latent } = self.sizes;
        let mut bytes = MAGIC.to_vec();
        for number in [VERSION, x as u32, y as u32, hidden as u32, latent as u32] {
            bytes.extend(number.to_le_bytes());
        }
        let scalers = [&self.x.location, &self.x.scale, &self.y.location, &self.y.scale].into_iter().flatten().copied();
        let floats = scalers.chain(self.net.parameters().flat_map(dfdx::tensor::Tensor::as_vec));
        floats.for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// The net that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`GvaeError::Stored`] for bytes that are damaged, of another version, or not a net.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GvaeError> {
        let (body, checksum) = bytes.split_last_chunk::<8>().ok_or(GvaeError::Stored("too short"))?;
        if xxh3_64(body).to_le_bytes() != *checksum {
            return Err(GvaeError::Stored("checksum does not match"));
        }
        let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(GvaeError::Stored("not a net"))?);
        if reader.number(u32::MAX)? != VERSION as usize {
            return Err(GvaeError::Stored("another format version"));
        }
        let sizes = Sizes {
            x: reader.number(COLUMNS_MAX)?,
            y: reader.number(COLUMNS_MAX)?,
            hidden: reader.number(WIDTH_MAX)?,
            latent: reader.number(WIDTH_MAX)?,
        };
        let x = Scaler { location: reader.floats(sizes.x)?, scale: reader.floats(sizes.x)? };
        let y = Scaler { location: reader.floats(sizes.y)?, scale: reader.floats(sizes.y)? };
        let mut net = Cvae::new(sizes, &CvaeOptions::default(), &mut SmallRng::seed_from_u64(0))?;
        for parameter in net.parameters_mut() {
            let values = reader.floats(parameter.as_vec().len())?;
            dfdx::tensor::Cpu::copy_from(parameter, &values);
        }
        if reader.0.is_empty() { Ok(Self { sizes, x, y, net }) } else { Err(GvaeError::Stored("trailing bytes")) }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self, max: u32) -> Result<usize, GvaeError> {
        let (head, rest) = self.0.split_first_chunk::<4>().ok_or(GvaeError::Stored("too short"))?;
        self.0 = rest;
        let number = u32::from_le_bytes(*head);
        if number <= max { Ok(number as usize) } else { Err(GvaeError::Stored("a size out of range")) }
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>, GvaeError> {
        let (head, rest) = self.0.split_at_checked(4 * count).ok_or(GvaeError::Stored("too short"))?;
        self.0 = rest;
        let values: Vec<f32> = head.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(GvaeError::Stored("a weight is not finite"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gvae::Table;

    fn net() -> ServiceNet {
        let (mut x, mut y) = (Table::new(2), Table::new(1));
        for row in 0..40 {
            let value = row as f32 / 40.0;
            x.push([Some(value), Some(-value)]).expect("2 columns");
            y.push([Some(value * value)]).expect("1 column");
        }
        let options = CvaeOptions { epochs: 1, ..CvaeOptions::default() };
        ServiceNet::train(&x, &y, &(0..40).collect::<Vec<_>>(), None, &options).expect("trains")
    }

    #[test]
    fn a_stored_net_answers_bit_for_bit_as_before() {
        let net = net();
        let stored = ServiceNet::from_bytes(&net.to_bytes()).expect("own bytes");
        assert_eq!(net.predict(&[0.3, 0.1]).expect("2 columns"), stored.predict(&[0.3, 0.1]).expect("2 columns"));
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let bytes = net().to_bytes();
        for position in (0..bytes.len()).step_by(97) {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0x10;
            assert!(ServiceNet::from_bytes(&damaged).is_err(), "byte {position}");
        }
        for cut in [0, 3, 7, 20, bytes.len() - 1] {
            assert!(ServiceNet::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
