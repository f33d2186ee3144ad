//! QUIC's own settings: limits on streams and memory, timeouts, and a reset key that outlives a restart.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use ring::{
    digest, hmac,
    rand::{SecureRandom, SystemRandom},
};

use crate::{
    quic::{LinkError, WINDOW_STREAMS_MAX},
    tls::TlsMaterial,
};

/// A connection without any packet of the peer is forgotten after this. Sessions notice silence much sooner.
const IDLE_MS_MAX: u32 = 30_000;

/// Between two packets of an agent that has nothing to say; its heartbeats are more frequent.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A connection's received and not yet read bytes: the memory that one peer may hold.
const RECEIVE_BYTES_MAX: u32 = 1 << 20;

/// The same for one stream, so that four windows share the connection's.
const STREAM_BYTES_MAX: u32 = 256 << 10;

/// A guess for the first packets: a lost one is sent again after 300 ms rather than a second. Fleets live in one site.
const RTT_FIRST: Duration = Duration::from_millis(100);

/// Handshakes that quinn itself holds before the listener has taken them.
const INCOMING_MAX: usize = 1_024;

/// Bytes it buffers for all of them.
const INCOMING_BYTES_MAX: u64 = 8 << 20;

pub(super) fn client(tls: &TlsMaterial) -> Result<ClientConfig, LinkError> {
    let crypto = QuicClientConfig::try_from(tls.client_config()?).map_err(|e| LinkError::Crypto(e.to_string()))?;
    let mut transport = transport(0, 0);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// An endpoint for one connection attempt to `remote`.
pub(super) fn client_endpoint(remote: SocketAddr) -> std::io::Result<Endpoint> {
    let any: SocketAddr =
        if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    Endpoint::client(any)
}

pub(super) fn server_endpoint(address: SocketAddr, tls: &TlsMaterial) -> Result<Endpoint, LinkError> {
    let crypto = QuicServerConfig::try_from(tls.server_config()?).map_err(|e| LinkError::Crypto(e.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport(1, WINDOW_STREAMS_MAX)))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    let ids_and_resets = endpoint_config(tls)?;
    let bind = || {
        let socket = std::net::UdpSocket::bind(address)?;
        Endpoint::new(ids_and_resets, Some(config), socket, Arc::new(TokioRuntime))
    };
    bind().map_err(|source| LinkError::Bind { address, source })
}

/// After a restart, packets of connections that the earlier process had are answered with a stateless reset that
/// agents recognise, so that they connect anew at once rather than after a silence. For that the reset key must be the
/// same, so it comes from the secret that stays, the TLS key; and no connection id may be dismissed as not ours.
fn endpoint_config(tls: &TlsMaterial) -> Result<EndpointConfig, LinkError> {
    let mut secret = digest::Context::new(&digest::SHA256);
    secret.update(b"sage stateless reset");
    secret.update(tls.secret());
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, secret.finish().as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| LinkError::Randomness)?;
    config.cid_generator(move || Box::new(RandomIds(StdRng::from_seed(seed))));
    Ok(config)
}

/// Connection ids that carry no key of the process that made them, as quinn's own do.
struct RandomIds(StdRng);

impl RandomIds {
    /// Long enough that no two of one endpoint meet, and no outsider guesses one.
    const LEN: usize = 8;
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; Self::LEN];
        self.0.fill_bytes(&mut bytes);
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        Self::LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// `control_streams` and `window_streams` are what the peer may open.
fn transport(control_streams: u32, window_streams: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(control_streams.into())
        .max_concurrent_uni_streams(window_streams.into())
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS_MAX))))
        .receive_window(RECEIVE_BYTES_MAX.into())
        .stream_receive_window(STREAM_BYTES_MAX.into())
        .datagram_receive_buffer_size(None)
        .initial_rtt(RTT_FIRST);
    transport
}
