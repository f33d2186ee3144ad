//! The agent's connections: made, written to, closed.

use std::net::SocketAddr;

use quinn::{ClientConfig, Connection, Endpoint, VarInt};
use tokio::task::{JoinHandle, JoinSet};
use tracing::debug;

use crate::{
    encoded::EncodedWindow,
    frame::encode_frame,
    identity::{FleetName, Role},
    quic::{control::Control, error::explain, serve::peer_identity, transport},
    session::{AgentInput, Disconnect},
    tls::SERVER_NAME,
};

/// Makes connections.
pub(super) struct Connector {
    pub(super) client: ClientConfig,
    pub(super) fleet: FleetName,
}

/// A connection with its control stream.
pub(super) struct Open {
    connection: Connection,
    pub(super) control: Control,
    /// One task for each window under way; ends with the connection.
    uploads: JoinSet<()>,
    /// Keeps the socket.
    endpoint: Endpoint,
}

pub(super) enum Wire {
    Idle,
    Dialling(JoinHandle<Result<Open, Disconnect>>),
    Open(Box<Open>),
}

impl Connector {
    /// Tries every address that the name stands for.
    pub(super) async fn connect(&self, address: &str) -> Result<Open, Disconnect> {
        let unreachable = |problem: &dyn std::fmt::Display| Disconnect::Unreachable(format!("{address}: {problem}"));
        let found = tokio::net::lookup_host(address).await.map_err(|error| unreachable(&error))?;
        let mut last = unreachable(&"no address of that name");
        for remote in found {
            match self.connect_to(remote).await {
                Ok(open) => return Ok(open),
                Err(Disconnect::Unreachable(problem)) => last = unreachable(&problem),
                Err(other) => last = other,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, remote: SocketAddr) -> Result<Open, Disconnect> {
        let unreachable = |problem: &dyn std::fmt::Display| Disconnect::Unreachable(problem.to_string());
        let endpoint = transport::client_endpoint(remote).map_err(|error| unreachable(&error))?;
        let connecting = endpoint.connect_with(self.client.clone(), remote, SERVER_NAME);
        let connection = connecting
            .map_err(|error| unreachable(&error))?
            .await
            .map_err(|error| Disconnect::Unreachable(explain(&error)))?;
        let peer = peer_identity(&connection)?.require(Role::Aggregator, &self.fleet)?;
        debug!(%remote, %peer, "connected");
        let (send, recv) = connection.open_bi().await?;
        Ok(Open { control: Control::new(send, recv), connection, uploads: JoinSet::new(), endpoint })
    }
}

impl Open {
    /// Sends `window` on a stream of its own, as soon as the peer allows one more.
    pub(super) fn upload(&mut self, window: &EncodedWindow) {
        while self.uploads.try_join_next().is_some() {}
        let (connection, key) = (self.connection.clone(), window.key().clone());
        let Ok(frame) = encode_frame(window.bytes()) else { return };
        self.uploads.spawn(async move {
            let sent = async {
                let mut stream = connection.open_uni().await?;
                stream.write_all(&frame).await?;
                Ok::<_, Disconnect>(stream.finish())
            };
            if let Err(error) = sent.await {
                debug!(seq = key.seq, %error, "window not sent");
            }
        });
    }

    /// Hangs up. If it is our owner who ends it, everything said so far is sent before, and the goodbye after.
    pub(super) async fn close(mut self, why: &Disconnect) {
        let is_orderly = *why == Disconnect::Closed;
        if is_orderly {
            self.control.flush().await;
        }
        self.connection.close(VarInt::from_u32(0), why.to_string().as_bytes());
        if is_orderly {
            // Three round trips, or what the caller of `shutdown` allows.
            self.endpoint.wait_idle().await;
        }
    }
}

impl Wire {
    /// What happens next to the connection or to the attempt at one. May be dropped at any await.
    pub(super) async fn next(&mut self, is_reading: bool) -> Happened {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Dialling(attempt) => Happened::Dialled(
                attempt.await.unwrap_or_else(|error| Err(Disconnect::Unreachable(error.to_string()))).map(Box::new),
            ),
            Self::Open(open) => match open.control.next(is_reading).await {
                Ok(message) => Happened::Input(AgentInput::Message(message)),
                Err(why) => Happened::Input(AgentInput::Closed(why)),
            },
        }
    }
}

pub(super) enum Happened {
    Dialled(Result<Box<Open>, Disconnect>),
    Input(AgentInput),
}
