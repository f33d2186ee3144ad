//! systemd: ready, watchdog, stopping. Without `NOTIFY_SOCKET` nothing happens.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;

use super::{board::Board, clock::monotonic};

/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Between two signs of life when systemd asks for none.
const IDLE: Duration = Duration::from_secs(5);

/// Tells systemd when the agent is ready, then that it is alive, for as long as it is. Never ends.
pub async fn run(board: Arc<Board>) {
    while !board.is_ready() {
        tokio::time::sleep(LOOK).await;
    }
    tell(&[NotifyState::Ready]);
    let mut usec = 0;
    let has_watchdog = sd_notify::watchdog_enabled(false, &mut usec);
    let interval = if has_watchdog { Duration::from_micros(usec / 3).max(LOOK) } else { IDLE };
    loop {
        tokio::time::sleep(interval).await;
        if board.is_alive(monotonic()) {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a part of the agent stands still");
        }
    }
}

/// Tells systemd that the end is wanted.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
