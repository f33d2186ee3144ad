//! The node agent: takes spans in, measures usage, ships window tensors, keeps leased kernel settings.
//!
//! Pure floors: [`core`], [`parse`] and [`policy`]. Drivers: [`driver`], [`intake`] and [`kernel`]; [`cli`] is the
//! operator's side of the Unix socket.

pub mod cli;
pub mod config;
pub mod core;
pub mod driver;
pub mod intake;
pub mod kernel;
pub mod parse;
pub mod policy;
