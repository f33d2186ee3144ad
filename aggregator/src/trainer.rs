#![expect(clippy::disallowed_methods, reason = "a driver: training runs on threads of its own and is timed")]
//! Training, away from serving: one thread with low priority and room for one waiting job, the newest.
//!
//! What is trained is the caller's business. A job that panics is reported and takes nothing down; the model in use
//! stays in use.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

/// Added to the niceness of training threads: they take what serving leaves over.
const NICENESS: i32 = 15;

/// Most threads that one training uses: the gain beyond two does not repay what neighbours lose.
const THREADS_MAX: usize = 2;

/// A finished job.
#[derive(Debug)]
pub struct Trained<T> {
    /// What came out, or what went wrong, for people.
    pub result: Result<T, String>,
    /// Time it took, seconds.
    pub seconds: f64,
}

/// The way to the training thread. Dropping it lets a running job finish and its result go; nobody waits for it.
#[derive(Debug)]
pub struct Trainer<J> {
    slot: Arc<Slot<J>>,
    _thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Slot<J> {
    job: Mutex<Waiting<J>>,
    is_changed: Condvar,
}

#[derive(Debug)]
struct Waiting<J> {
    job: Option<J>,
    is_over: bool,
}

impl<J> Slot<J> {
    /// A panic elsewhere leaves a slot as good as it was.
    fn lock(&self) -> MutexGuard<'_, Waiting<J>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, or `None` once the handle is gone.
    fn take(&self) -> Option<J> {
        let mut waiting = self.lock();
        loop {
            if waiting.is_over {
                return None;
            }
            if let Some(job) = waiting.job.take() {
                return Some(job);
            }
            waiting = self.is_changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<J: Send + 'static> Trainer<J> {
    /// Starts the thread: `work` does a job, `done` takes its result.
    ///
    /// # Errors
    ///
    /// What the system said when it gave us no thread.
    pub fn start<T>(
        work: impl Fn(J) -> Result<T, String> + Send + 'static,
        mut done: impl FnMut(Trained<T>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let slot =
            Arc::new(Slot { job: Mutex::new(Waiting { job: None, is_over: false }), is_changed: Condvar::new() });
        let inbox = Arc::clone(&slot);
        let thread = std::thread::Builder::new().name("trainer".into()).spawn(move || {
            be_nice();
            while let Some(job) = inbox.take() {
                let start = Instant::now();
                let result = caught(|| work(job));
                done(Trained { result, seconds: start.elapsed().as_secs_f64() });
            }
        })?;
        Ok(Self { slot, _thread: thread })
    }

    /// Hands in a job. One that still waits is dropped for it: it would train on less.
    pub fn submit(&self, job: J) {
        self.slot.lock().job = Some(job);
        self.slot.is_changed.notify_one();
    }
}

impl<J> Drop for Trainer<J> {
    fn drop(&mut self) {
        self.slot.lock().is_over = true;
        self.slot.is_changed.notify_one();
    }
}

/// Runs every task on up to two threads and keeps their order. A task that panics yields its text.
pub fn run_all<T: Sync, R: Send>(tasks: &[T], run: impl Fn(&T) -> Result<R, String> + Sync) -> Vec<Result<R, String>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(tasks.len().max(1));
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<R, String>>>> = Mutex::new(tasks.iter().map(|_| None).collect());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = tasks.get(at) else { return };
            let result = caught(|| run(task));
            results.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                be_nice();
                work();
            });
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|result| result.unwrap_or_else(|| Err("was not run".into()))).collect()
}

fn caught<R>(work: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(format!("panicked: {}", text_of(&*payload))))
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// Lowers the priority of the calling thread; on Linux niceness belongs to threads.
fn be_nice() {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        tracing::debug!(%error, "training runs at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_panic_in_a_job_is_reported_and_the_next_job_runs() {
        let (sender, results) = mpsc::channel();
        let work = |job: u32| if job == 0 { panic!("no data") } else { Ok(job * 2) };
        let trainer =
            Trainer::start(work, move |trained| sender.send(trained.result).expect("listening")).expect("thread");
        trainer.submit(0);
        assert_eq!(results.recv().expect("an answer"), Err("panicked: no data".into()));
        trainer.submit(21);
        assert_eq!(results.recv().expect("an answer"), Ok(42));
    }

    #[test]
    fn of_the_jobs_that_wait_only_the_newest_is_done() {
        let (started, has_started) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let (sender, results) = mpsc::channel();
        let work = move |job: u32| {
            started.send(()).expect("listening");
            may_go.recv().map_err(|error| error.to_string())?;
            Ok(job)
        };
        let trainer =
            Trainer::start(work, move |trained| sender.send(trained.result).expect("listening")).expect("thread");
        trainer.submit(1);
        has_started.recv().expect("job 1 runs");
        for job in 2..=9 {
            trainer.submit(job);
        }
        go.send(()).expect("waiting");
        go.send(()).expect("waiting");
        assert_eq!([results.recv(), results.recv()], [Ok(Ok(1)), Ok(Ok(9))]);
        drop(trainer);
        assert!(results.recv().is_err(), "no other job may run");
    }

    #[test]
    fn tasks_keep_their_order_and_one_failure_stays_alone() {
        let tasks: Vec<u32> = (0..20).collect();
        let results = run_all(&tasks, |task| if *task == 7 { panic!("seven") } else { Ok(task + 1) });
        assert_eq!(results[6], Ok(7));
        assert_eq!(results[7], Err("panicked: seven".into()));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 19);
        assert!(run_all::<u32, u32>(&[], |_| Ok(0)).is_empty());
    }
}
