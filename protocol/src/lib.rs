//! The wire between agents and aggregators.
//!
//! [`message`] says what is said, [`codec`] and [`frame`] how it looks in bytes, [`session`] who speaks when.
//! [`identity`], [`pki`] and [`tls`] say who may speak at all. All of these are pure. [`quic`] alone has a socket, a
//! clock and tasks; it drives one session per connection.
//!
//! Nothing here decides what a window means, whether a command is obeyed, or when a window is committed: the owners of
//! both ends do.

pub mod check;
pub mod codec;
pub mod encoded;
pub mod frame;
pub mod identity;
pub mod message;
pub mod pki;
pub mod quic;
pub mod session;
pub mod tls;

pub use check::{InvalidWindow, check_window};
pub use codec::CodecError;
pub use encoded::{EncodedWindow, UnusableWindow};
pub use identity::{FleetName, PeerIdentity, Role};
