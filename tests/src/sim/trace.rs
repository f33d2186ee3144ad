//! What happened, as one number for comparing runs and as the last lines for people.

use std::collections::VecDeque;

use sage_common::Micros;

/// Lines kept for people.
const LINES_MAX: usize = 60;

/// The record of a run.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
}

impl Default for Trace {
    fn default() -> Self {
        // FNV-1a's offset basis.
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, lines: VecDeque::new() }
    }
}

impl Trace {
    /// Notes an event that people want to read.
    pub fn note(&mut self, at: Micros, text: &str) {
        self.count(at, text.as_bytes());
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>9.3} {text}", at.as_secs_f64()));
    }

    /// Notes an event of which there are many.
    pub fn count(&mut self, at: Micros, bytes: &[u8]) {
        self.events += 1;
        for byte in at.get().to_le_bytes().iter().chain(bytes) {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The same for the same run.
    pub fn hash(&self) -> (u64, u64) {
        (self.events, self.hash)
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        self.lines.iter().fold(String::new(), |text, line| text + "\n" + line)
    }
}
