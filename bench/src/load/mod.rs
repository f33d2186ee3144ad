//! Open-loop load: requests leave when they are due, whether or not earlier ones have been answered, and every latency is
//! counted from when its request was *due*. So a stalled application cannot hide by slowing its users down.

mod arrivals;
mod generator;
mod windows;

pub use self::{
    arrivals::Arrivals,
    generator::{Load, LoadConfig, run},
    windows::{RequestSummary, Summary, WindowReport},
};
