//! A small recurrent network on plain vectors: what Seer is made of. Nothing here knows what the numbers mean.

mod net;
mod param;

pub use net::{Net, Sample, Shape};
