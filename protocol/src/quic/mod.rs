//! The sessions on a real network: QUIC with mutual TLS. The only place that names quinn, and in this crate the only one
//! with sockets, tasks and clocks.
//!
//! ```text
//!   agent's owner ──windows, results, state──► AgentLink ══QUIC══ AggregatorListener ──events──► aggregator's owner
//!                 ◄────────events───────────                                       ◄─acknowledge, command, term──
//! ```
//!
//! One bi-directional control stream per connection, opened by the agent; one uni-directional stream per window, so that
//! a lost packet of one window holds up no other. Both ends decide nothing: [`session`](crate::session) does.

mod clock;
mod control;
mod error;
mod files;
mod link;
mod listener;
mod serve;
mod transport;
mod wire;

pub use error::LinkError;
pub use files::read_tls;
pub use link::{AgentLink, AgentLinkEvent, WindowNotSent, WindowSender};
pub use listener::{AggregatorListener, ListenerConfig, ListenerEvent, NotConnected, WelcomeSource};

/// Window streams of one connection open at once, enforced by the aggregator's end.
pub const WINDOW_STREAMS_MAX: u32 = 4;
