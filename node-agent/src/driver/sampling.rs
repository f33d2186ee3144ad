//! The thread that reads usage, once a second.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sage_common::{Micros, ServiceId};
use tokio::sync::mpsc;

use super::{
    board::{Board, SamplingView},
    clock::{monotonic, wall},
};
use crate::{
    core::usage::{Glob, Hint, Sweep},
    kernel::sample::Sampler,
};

/// Between two sweeps.
pub const PERIOD: Micros = Micros::from_secs(1);
/// Sweeps that wait for the pipeline: more than a few seconds behind, the newest would say what is no longer so.
pub const SWEEPS_MAX: usize = 4;
/// Messages to the sampler that wait: one comes a second.
const INPUTS_MAX: usize = 8;

/// What the sampler can be told.
#[derive(Debug)]
pub enum SamplerInput {
    /// What spans say about where services run.
    Hints(Vec<(ServiceId, Hint)>),
    /// Patterns of best-effort cgroups.
    Watched(Vec<Glob>),
    /// End.
    Stop,
}

/// Starts the thread. It ends at [`SamplerInput::Stop`], or when nobody takes its sweeps.
pub fn spawn(
    sampler: Sampler,
    board: Arc<Board>,
    sweeps: mpsc::Sender<Sweep>,
) -> std::io::Result<(SyncSender<SamplerInput>, JoinHandle<()>)> {
    let (sender, inputs) = sync_channel(INPUTS_MAX);
    let driver = Driver { sampler, board, sweeps, view: SamplingView::default() };
    let thread = thread::Builder::new().name("sage-sampler".to_owned()).spawn(move || driver.run(&inputs))?;
    Ok((sender, thread))
}

struct Driver {
    sampler: Sampler,
    board: Arc<Board>,
    sweeps: mpsc::Sender<Sweep>,
    view: SamplingView,
}

impl Driver {
    fn run(mut self, inputs: &Receiver<SamplerInput>) {
        self.sweep();
        // Near the turn of the second, so that the sweep that ends a window comes just after its end.
        let mut next = monotonic() + until_second(wall().as_micros());
        while !self.sweeps.is_closed() {
            let now = monotonic();
            if now < next {
                match inputs.recv_timeout(Duration::from(next.saturating_sub(now))) {
                    Ok(SamplerInput::Hints(hints)) => {
                        hints.into_iter().for_each(|(service, hint)| self.sampler.note(&service, hint));
                    }
                    Ok(SamplerInput::Watched(patterns)) => self.sampler.watch_patterns(patterns),
                    Ok(SamplerInput::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                continue;
            }
            self.sweep();
            next = next_sweep(next, monotonic());
        }
    }

    fn sweep(&mut self) {
        let started = monotonic();
        let sweep = self.sampler.sweep(started);
        let took = monotonic().saturating_sub(started);
        if took > PERIOD {
            self.view.overruns += 1;
            tracing::warn!(%took, instances = sweep.instances.len(), "reading usage took longer than its period");
        }
        self.view.instances = BTreeMap::new();
        for instance in &sweep.instances {
            *self.view.instances.entry(instance.service.clone()).or_default() += 1;
        }
        self.view.sweeps += 1;
        self.view.sweep = took;
        self.view.problems = self.sampler.problems().iter().map(ToString::to_string).collect();
        self.view.beat = monotonic();
        self.board.views().sampling = self.view.clone();
        if self.sweeps.try_send(sweep).is_err() {
            tracing::debug!("a sweep is dropped: the pipeline is busy or gone");
        }
    }
}

/// Time until the wall clock's next whole second.
fn until_second(wall_us: u64) -> Micros {
    Micros::new(1_000_000 - wall_us % 1_000_000)
}

/// The next turn after `now`; turns that were missed are skipped, not made up for.
fn next_sweep(planned: Micros, now: Micros) -> Micros {
    let behind = now.saturating_sub(planned).get() / PERIOD.get();
    planned + PERIOD.saturating_mul(behind + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_turns_are_skipped() {
        let s = Micros::from_secs;
        assert_eq!(next_sweep(s(10), s(10)), s(11));
        assert_eq!(next_sweep(s(10), s(3_611) + Micros::from_millis(300)), s(3_612), "after a pause of an hour");
    }

    #[test]
    fn sweeps_are_planned_for_whole_seconds() {
        assert_eq!(until_second(5_250_000), Micros::from_millis(750));
        assert_eq!(until_second(5_000_000), Micros::from_secs(1));
    }
}
