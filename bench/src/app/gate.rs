//! A gate that lets so many through at once and can be made narrower or wider while in use: the limit of a thread pool
//! or of a connection pool. Whoever finds it shut waits in a queue, as a task or as a thread.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lets at most `limit` through at once, first come, first served.
#[derive(Debug)]
pub struct Gate {
    semaphore: Arc<Semaphore>,
    size: Mutex<Size>,
}

#[derive(Debug)]
struct Size {
    limit: usize,
    /// Permits that are still out and will not come back: a gate made narrower while in use.
    debt: usize,
}

/// The right to be inside; leaves when dropped.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    permit: Option<OwnedSemaphorePermit>,
}

/// Wide enough for anything that fits one machine.
pub const UNLIMITED: usize = 1 << 20;

impl Gate {
    /// A gate for `limit` at once, at least 1.
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.clamp(1, UNLIMITED);
        Arc::new(Self { semaphore: Arc::new(Semaphore::new(limit)), size: Mutex::new(Size { limit, debt: 0 }) })
    }

    /// Waits for a place.
    pub async fn enter(self: &Arc<Self>) -> Pass {
        // The semaphore is never closed; a pass without a permit would only be too generous.
        let permit = self.semaphore.clone().acquire_owned().await.ok();
        Pass { gate: self.clone(), permit }
    }

    /// Changes the limit. Those inside stay; when narrower, nobody enters until enough have left.
    pub fn resize(&self, limit: usize) {
        let limit = limit.clamp(1, UNLIMITED);
        let mut size = self.size();
        if limit < size.limit {
            let surplus = size.limit - limit;
            size.debt += surplus - self.semaphore.forget_permits(surplus);
        } else {
            let more = limit - size.limit;
            let forgiven = more.min(size.debt);
            size.debt -= forgiven;
            self.semaphore.add_permits(more - forgiven);
        }
        size.limit = limit;
    }

    /// The limit now.
    pub fn limit(&self) -> usize {
        self.size().limit
    }

    /// How many are inside.
    pub fn inside(&self) -> usize {
        let size = self.size();
        (size.limit + size.debt).saturating_sub(self.semaphore.available_permits())
    }

    fn size(&self) -> std::sync::MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut size = self.gate.size();
        if size.debt > 0 {
            size.debt -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
    }
}

/// Runs `future` on this thread, which sleeps while it waits; `None` once `deadline` has passed.
#[expect(clippy::disallowed_methods, reason = "a thread that waits needs the clock")]
pub fn block_on<T>(future: impl Future<Output = T>, deadline: Option<Instant>) -> Option<T> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(left) if left.is_zero() => return None,
            Some(left) => std::thread::park_timeout(left),
            None => std::thread::park(),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "waits in real time are what is tested")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn enter(gate: &Arc<Gate>, wait_ms: u64) -> Option<Pass> {
        block_on(gate.enter(), Some(Instant::now() + Duration::from_millis(wait_ms)))
    }

    #[test]
    fn a_full_gate_lets_nobody_in_until_one_leaves() {
        let gate = Gate::new(2);
        let first = enter(&gate, 0).expect("free");
        let _second = enter(&gate, 0).expect("free");
        let started = Instant::now();
        assert!(enter(&gate, 30).is_none(), "full");
        assert!(started.elapsed() >= Duration::from_millis(30));
        let waiting = std::thread::spawn({
            let gate = gate.clone();
            move || enter(&gate, 10_000).is_some()
        });
        drop(first);
        assert!(waiting.join().expect("no panic"), "a waiter gets the place that became free");
    }

    #[test]
    fn a_gate_made_narrower_in_use_admits_nobody_before_enough_have_left() {
        let gate = Gate::new(3);
        let mut inside: Vec<Pass> = (0..3).map(|_| enter(&gate, 0).expect("free")).collect();
        gate.resize(1);
        assert_eq!((gate.limit(), gate.inside()), (1, 3));
        inside.truncate(1);
        assert!(enter(&gate, 0).is_none(), "one is inside and one is allowed");
        inside.clear();
        let one = enter(&gate, 0).expect("empty");
        assert!(enter(&gate, 0).is_none());
        gate.resize(2);
        assert!(enter(&gate, 0).is_some(), "wider at once");
        drop(one);
        assert_eq!(gate.inside(), 0);
    }
}
