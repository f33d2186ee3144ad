//! Faults and facts of a running tier, over a Unix socket: one command a line, one answer a line.
//!
//! ```text
//!   threads N        at most N requests served at once
//!   pool CALLEE N    at most N connections to CALLEE in use
//!   slow FACTOR      own times times FACTOR (burns what they burn)
//!   slow_ms X        every request sleeps X ms, holding its thread if its model has one
//!   reset            none of these
//!   status           counters as JSON
//! ```

use std::{fs, io, path::Path, sync::Arc, sync::atomic::Ordering, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{
    export::Exporter,
    tier::{Tier, admission},
};

/// One command, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `threads N`
    Threads(usize),
    /// `pool CALLEE N`
    Pool(String, usize),
    /// `slow FACTOR`
    Slow(f64),
    /// `slow_ms X`
    SlowBy(Duration),
    /// `reset`
    Reset,
    /// `status`
    Status,
}

/// A slower tier than this is a stopped one.
const FACTOR_MAX: f64 = 1_000.0;
/// Longer than any call is allowed to take.
const DELAY_MAX_MS: f64 = 60_000.0;

impl Command {
    /// Reads one line.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |word: &str, max: f64| match word.parse::<f64>() {
            Ok(value) if (0.0..=max).contains(&value) => Ok(value),
            _ => Err(format!("{word:?} is no number from 0 to {max}")),
        };
        let count = |word: &str| match word.parse::<usize>() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(format!("{word:?} is no count from 1")),
        };
        match words[..] {
            ["threads", limit] => Ok(Self::Threads(count(limit)?)),
            ["pool", callee, limit] => Ok(Self::Pool(callee.to_owned(), count(limit)?)),
            ["slow", factor] => Ok(Self::Slow(number(factor, FACTOR_MAX)?)),
            ["slow_ms", ms] => Ok(Self::SlowBy(Duration::from_secs_f64(number(ms, DELAY_MAX_MS)? / 1e3))),
            ["reset"] => Ok(Self::Reset),
            ["status"] => Ok(Self::Status),
            _ => Err(format!("{line:?} is none of: threads N, pool CALLEE N, slow FACTOR, slow_ms X, reset, status")),
        }
    }

    /// Does it; the answer's text.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub fn apply(self, tier: &Tier) -> Result<String, String> {
        match self {
            Self::Threads(limit) => tier.admission.resize(limit.min(admission(tier.concurrency))),
            Self::Pool(callee, limit) => {
                tier.edge_to(&callee).ok_or_else(|| format!("no pool to {callee:?}"))?.gate.resize(limit);
            }
            Self::Slow(factor) => tier.faults.set_slow_factor(factor),
            Self::SlowBy(delay) => tier.faults.set_delay(delay),
            Self::Reset => reset(tier),
            Self::Status => return Ok(status(tier)),
        }
        Ok("ok".to_owned())
    }
}

fn reset(tier: &Tier) {
    tier.admission.resize(admission(tier.concurrency));
    tier.edges.iter().for_each(|edge| edge.gate.resize(edge.limit));
    tier.faults.set_slow_factor(1.0);
    tier.faults.set_delay(Duration::ZERO);
}

fn status(tier: &Tier) -> String {
    let counters = &tier.counters;
    let spans = tier.exporter().map(Exporter::counts).unwrap_or_default();
    json!({
        "service": &**tier.name(),
        "served": counters.served.load(Ordering::Relaxed),
        "failed": counters.failed.load(Ordering::Relaxed),
        "inside": tier.admission.inside(),
        "limit": tier.admission.limit(),
        "slow_factor": tier.faults.slow_factor(),
        "slow_ms": tier.faults.delay().as_secs_f64() * 1e3,
        "spans_exported": spans.exported,
        "spans_dropped": spans.dropped,
        "detached_dropped": counters.detached_dropped.load(Ordering::Relaxed),
    })
    .to_string()
}

/// The socket at `path`; one left there by an earlier process is replaced.
///
/// # Errors
///
/// When the path cannot be bound.
pub fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers commands until the process ends.
pub async fn listen(tier: Arc<Tier>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        // One peer at a time is enough for an operator; a broken one is left.
        drop(tokio::time::timeout(PEER_TIMEOUT, answer(&tier, stream)).await);
    }
}

/// An operator's script is done within this.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest command is a service name and two numbers.
const LINE_MAX: u64 = 4_096;

async fn answer(tier: &Tier, mut stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader.take(LINE_MAX)).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = Command::parse(&line).and_then(|command| command.apply(tier));
        let answer = answer.unwrap_or_else(|error| format!("error: {error}"));
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_documented() {
        assert_eq!(Command::parse("threads 2"), Ok(Command::Threads(2)));
        assert_eq!(Command::parse(" pool  orders-db 1 "), Ok(Command::Pool("orders-db".into(), 1)));
        assert_eq!(Command::parse("slow 2.5"), Ok(Command::Slow(2.5)));
        assert_eq!(Command::parse("slow_ms 7.5"), Ok(Command::SlowBy(Duration::from_micros(7_500))));
        assert_eq!(Command::parse("reset"), Ok(Command::Reset));
    }

    #[test]
    fn what_is_no_command_is_refused_with_the_list_of_them() {
        for line in
            ["", "threads", "threads 0", "threads -1", "pool 3", "slow fast", "slow NaN", "slow_ms 1e9", "rm -rf /"]
        {
            assert!(Command::parse(line).is_err(), "{line:?}");
        }
        assert!(Command::parse("help").expect_err("unknown").contains("slow_ms X"));
    }
}
