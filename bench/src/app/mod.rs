//! The real application: a process per tier of a topology, real sockets, threads, pools and work, spans out.
//!
//! [`process`] runs one tier, [`supervise`] a whole application of them. A tier's requests all run through `visit`,
//! whatever its threads are; `serve` gives each model its threads.

mod client;
mod codec;
mod control;
mod export;
mod gate;
mod pool;
pub mod process;
mod serve;
mod span;
pub mod supervise;
mod tier;
mod visit;
mod work;

pub use self::{
    client::{CallError, connect, exchange},
    codec::{CodecError, FRAME_MAX, PAYLOAD_MAX, Request, Response},
    pool::CALL_TIMEOUT,
};
