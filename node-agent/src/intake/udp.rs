//! Jaeger agent: one packet, one batch. There is nobody to answer to, so everything is only counted.

use std::{sync::Arc, time::Duration};

use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::gate::Gate;
use crate::parse::jaeger;

/// Largest UDP packet.
const PACKET_MAX: usize = 65_536;

/// Pause after a failed receive.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Takes packets until `cancel` fires.
pub(super) async fn receive(socket: UdpSocket, gate: Arc<Gate>, cancel: CancellationToken) {
    let mut packet = vec![0; PACKET_MAX];
    loop {
        let received = tokio::select! {
            () = cancel.cancelled() => return,
            received = socket.recv_from(&mut packet) => received,
        };
        match received {
            Ok((length, sender)) => {
                gate.count_packet();
                if let Err(error) = gate.submit(|sink| jaeger::decode(&packet[..length], sink)) {
                    debug!(%error, %sender, "packet rejected");
                }
            }
            Err(error) => {
                warn!(%error, "cannot receive a packet");
                tokio::time::sleep(RECEIVE_PAUSE).await;
            }
        }
    }
}
