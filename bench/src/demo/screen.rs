//! What the demo prints while it runs: one line a window, and a line for everything that happens.

use std::io::{IsTerminal, Write};

/// Width of the latency bar at the target.
const TARGET_COLUMN: usize = 20;
/// Width of the longest bar.
const BAR_MAX: usize = 44;

/// Prints plain lines; colours only on a terminal without `NO_COLOR`.
pub struct Screen {
    colour: bool,
}

impl Screen {
    /// For standard output.
    pub fn new() -> Self {
        Self { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// A heading.
    pub fn title(&self, text: &str) {
        self.line(&format!("\n{}", self.paint("1", text)));
    }

    /// Something that happened.
    pub fn event(&self, at: f64, text: &str) {
        self.line(&format!("{at:6.1} s  {}", self.paint("36", text)));
    }

    /// One window: its latency as a bar, with the target marked.
    pub fn window(&self, at: f64, latency_ms: f64, target_ms: Option<f64>) {
        let Some(target) = target_ms else {
            return self.line(&format!("{at:6.1} s  {latency_ms:7.1} ms"));
        };
        let bar = bar(latency_ms, target);
        let violated = latency_ms > target;
        let bar = if violated { self.paint("31", &bar) } else { self.paint("32", &bar) };
        let word = if violated { "  above target" } else { "" };
        self.line(&format!("{at:6.1} s  {latency_ms:7.1} ms {bar}{word}"));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&self, text: &str) {
        // A closed pipe (`demo | head`) must not end the demo before it has cleaned up.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

fn bar(latency_ms: f64, target_ms: f64) -> String {
    let cells = (latency_ms / target_ms * TARGET_COLUMN as f64).round().clamp(0.0, BAR_MAX as f64) as usize;
    let width = cells.max(TARGET_COLUMN + 1);
    (0..width)
        .map(|cell| {
            if cell == TARGET_COLUMN {
                '|'
            } else if cell < cells {
                '#'
            } else {
                ' '
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_crosses_the_mark_only_above_the_target() {
        assert_eq!(bar(25.0, 50.0), format!("{}{}|", "#".repeat(10), " ".repeat(10)));
        assert_eq!(bar(1e6, 50.0).len(), BAR_MAX);
        assert_eq!(bar(0.0, 50.0).trim(), "|");
    }
}
