//! Durable bytes of a net: `SGVN`, version, sizes, scalers, parameters and population moments as little-endian floats, xxh3
//! of all before it. The sizes are held against the length before anything is allocated.

use dfdx::tensor::CopySlice;
use rand::{SeedableRng, rngs::SmallRng};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    CvaeOptions, GvaeError, ServiceNet,
    cvae::{Cvae, Sizes},
    dense::{Activation, Moments, Norm, ShapeOf},
    scaler::Scaler,
};

const MAGIC: &[u8; 4] = b"SGVN";
const VERSION: u32 = 2;
/// No real service has more columns; a larger number is damage, and must not become an allocation.
const COLUMNS_MAX: u32 = 65_536;
/// Hidden width and latent size are at most this.
const WIDTH_MAX: u32 = 1_024;
/// Layers are at most this many.
const LAYERS_MAX: u32 = 16;
/// Bits of the number that says how a net is made.
const BATCH_NORM: usize = 1;
const SKIP: usize = 2;

impl ServiceNet {
    /// The net as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Sizes { x, context, y, hidden, latent, layers, norm, has_skip } = self.sizes;
        let make = if norm == Norm::Batch { BATCH_NORM } else { 0 } + if has_skip { SKIP } else { 0 };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        for number in [x, context, y, hidden, latent, layers, make] {
            bytes.extend((number as u32).to_le_bytes());
        }
        let scalers = [&self.x, &self.context, &self.y].into_iter().flat_map(|s| s.location.iter().chain(&s.scale));
        let weights = self.net.parameters().flat_map(ShapeOf::values);
        let moments = self.net.layers().filter_map(|layer| layer.population.as_ref());
        let moments = moments.flat_map(|moments| moments.mean.iter().chain(&moments.inverse_std));
        let floats = scalers.copied().chain(weights).chain(moments.copied());
        floats.for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// The net that [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// `GvaeError::Stored` for bytes that are damaged, of another version, or not a net.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GvaeError> {
        let (body, checksum) = bytes.split_last_chunk::<8>().ok_or(GvaeError::Stored("too short"))?;
        if xxh3_64(body).to_le_bytes() != *checksum {
            return Err(GvaeError::Stored("checksum does not match"));
        }
        let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(GvaeError::Stored("not a net"))?);
        if reader.number(u32::MAX)? != VERSION as usize {
            return Err(GvaeError::Stored("another format version"));
        }
        let sizes = reader.sizes()?;
        if reader.0.len() != 4 * (2 * (sizes.x + sizes.context + sizes.y) + sizes.numbers()) {
            return Err(GvaeError::Stored("another length than its sizes say"));
        }
        let mut scaler =
            |columns| Ok::<_, GvaeError>(Scaler { location: reader.floats(columns)?, scale: reader.floats(columns)? });
        let (x, context, y) = (scaler(sizes.x)?, scaler(sizes.context)?, scaler(sizes.y)?);
        let mut net = Cvae::new(&sizes, &CvaeOptions::default(), &mut SmallRng::seed_from_u64(0))?;
        for parameter in net.parameters_mut() {
            let values = reader.floats(parameter.values().len())?;
            dfdx::tensor::Cpu::copy_from(parameter, &values);
        }
        for layer in net.layers_mut() {
            if matches!(layer.activation, Activation::NormRelu { norm: Norm::Batch, .. }) {
                let (mean, inverse_std) = (reader.floats(sizes.hidden)?, reader.floats(sizes.hidden)?);
                layer.population = Some(Moments { mean, inverse_std });
            }
        }
        let this = Self { sizes, x, context, y, net };
        if reader.0.is_empty() { Ok(this) } else { Err(GvaeError::Stored("trailing bytes")) }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn sizes(&mut self) -> Result<Sizes, GvaeError> {
        let mut sizes = Sizes {
            x: self.number(COLUMNS_MAX)?,
            context: self.number(COLUMNS_MAX)?,
            y: self.number(COLUMNS_MAX)?,
            hidden: self.number(WIDTH_MAX)?,
            latent: self.number(WIDTH_MAX)?,
            layers: self.number(LAYERS_MAX)?,
            norm: Norm::Layer,
            has_skip: false,
        };
        let make = self.number(u32::MAX)?;
        if make > (BATCH_NORM | SKIP) || sizes.layers < 2 || sizes.hidden == 0 || sizes.latent == 0 {
            return Err(GvaeError::Stored("a size out of range"));
        }
        sizes.has_skip = make & SKIP != 0;
        if make & BATCH_NORM != 0 {
            sizes.norm = Norm::Batch;
        }
        Ok(sizes)
    }

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
