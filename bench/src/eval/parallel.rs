//! Work on several threads, in any order, handed back in its own.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// Threads: the measuring machines have two cores, and a case's memory is held once per thread.
pub const THREADS: usize = 2;

/// `work` of every number below `count`, in order of number. `done` is told after each.
pub fn map<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync, done: impl Fn() + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new((0..count).map(|_| None).collect::<Vec<Option<T>>>());
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(count) {
            scope.spawn(|| {
                // Ends: the counter only grows.
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let result = work(number);
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[number] = Some(result);
                    done();
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_order_and_every_one_is_counted() {
        let counted = AtomicUsize::new(0);
        let squares = map(
            100,
            |i| i * i,
            || {
                counted.fetch_add(1, Ordering::Relaxed);
            },
        );
        assert_eq!(squares, (0..100).map(|i| i * i).collect::<Vec<_>>());
        assert_eq!(counted.into_inner(), 100);
        assert!(map(0, |i| i, || ()).is_empty());
    }
}
