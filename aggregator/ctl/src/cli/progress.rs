#![expect(clippy::disallowed_methods, reason = "a driver: people watch by their own clock")]
//! How far a recording is read: one line on a terminal, written over; plain lines elsewhere.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use crate::replay::{batch::ReadCounters, streams::Streams, time};

/// Between two lines on a terminal.
const OFTEN: Duration = Duration::from_millis(500);

/// Between two lines in a log.
const SELDOM: Duration = Duration::from_secs(10);

/// Progress on stderr.
pub(super) struct Progress {
    last: Instant,
    is_terminal: bool,
    is_shown: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { last: Instant::now(), is_terminal: io::stderr().is_terminal(), is_shown: false }
    }

    pub(super) fn tell(&mut self, read: &ReadCounters, streams: &Streams) {
        let every = if self.is_terminal { OFTEN } else { SELDOM };
        if self.last.elapsed() < every {
            return;
        }
        self.last = Instant::now();
        self.is_shown = true;
        let at = time::format(streams.spans.fleet().now());
        let text = format!("{at}  {} spans, {} data points, {} damaged", read.spans, read.points, read.bad);
        if self.is_terminal { eprint!("\r{text:<78}") } else { eprintln!("{text}") }
    }

    /// Leaves no half a line behind.
    pub(super) fn clear(&self) {
        if self.is_shown && self.is_terminal {
            eprint!("\r{:78}\r", "");
        }
    }
}
