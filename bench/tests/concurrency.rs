//! Each model of concurrency holds what it says it holds: real tiers, real sockets, a callee that sleeps.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{at_once, pair};

/// How long the callee sleeps in every request.
const SLEEP_MS: u64 = 200;

/// How long `count` requests at once take over a front of that model; all must succeed.
fn time(front: Value, back: Value, count: u64) -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let mut app = pair(dir.path(), front, back, 64, 20_000);
    app.control("back", &format!("slow_ms {SLEEP_MS}")).expect("obeyed");
    let (responses, elapsed) = at_once(app.entry(), count);
    assert!(responses.iter().all(|response| response.is_some_and(|response| response.is_ok)), "{responses:?}");
    app.stop();
    elapsed
}

fn threads() -> Value {
    json!({"model": "thread_per_connection"})
}

#[test]
fn an_event_loop_goes_on_while_its_calls_wait() {
    // One worker that blocked on calls would take 40 sleeps, 8 s.
    let elapsed = time(json!({"model": "event_loop", "workers": 1}), threads(), 40);
    assert!((SLEEP_MS..SLEEP_MS * 20).contains(&(elapsed.as_millis() as u64)), "{elapsed:?}");
}

#[test]
fn goroutines_wait_without_holding_their_core() {
    let elapsed = time(json!({"model": "goroutines"}), json!({"model": "goroutines"}), 40);
    assert!((SLEEP_MS..SLEEP_MS * 20).contains(&(elapsed.as_millis() as u64)), "{elapsed:?}");
}

#[test]
fn a_thread_per_connection_lets_every_connection_wait_by_itself() {
    let elapsed = time(threads(), threads(), 40);
    assert!((SLEEP_MS..SLEEP_MS * 20).contains(&(elapsed.as_millis() as u64)), "{elapsed:?}");
}

#[test]
fn a_thread_pool_holds_a_thread_for_every_waiting_request() {
    // Twelve requests by four threads are three rounds of sleeping, and by one thread twelve.
    let elapsed = time(json!({"model": "thread_pool", "threads": 4}), threads(), 12);
    assert!((SLEEP_MS * 3..SLEEP_MS * 10).contains(&(elapsed.as_millis() as u64)), "{elapsed:?}");
    let elapsed = time(json!({"model": "single_thread"}), threads(), 12);
    assert!(elapsed.as_millis() as u64 >= SLEEP_MS * 12, "{elapsed:?}");
}

#[test]
fn a_shrunk_pool_makes_requests_wait_and_a_reset_lets_them_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut app = pair(dir.path(), json!({"model": "thread_pool", "threads": 8}), threads(), 64, 20_000);
    let entry = app.entry();
    app.control("back", &format!("slow_ms {SLEEP_MS}")).expect("obeyed");
    app.control("front", "threads 1").expect("obeyed");
    assert!(at_once(entry, 6).1.as_millis() as u64 >= SLEEP_MS * 6, "one thread serves one after another");
    app.control("front", "reset").expect("obeyed");
    app.control("front", "pool back 2").expect("obeyed");
    assert!(at_once(entry, 6).1.as_millis() as u64 >= SLEEP_MS * 3, "two connections carry two at once");
    app.control("front", "reset").expect("obeyed");
    assert!((at_once(entry, 6).1.as_millis() as u64) < SLEEP_MS * 6, "eight threads serve six at once");
    assert!(app.control("front", "pool nobody 2").expect_err("refused").to_string().contains("no pool"));
    app.stop();
}

#[test]
fn a_caller_gives_up_when_no_connection_becomes_free_in_time() {
    let models = [json!({"model": "event_loop", "workers": 1}), threads()];
    for front in models {
        let dir = tempfile::tempdir().expect("a directory");
        let mut app = pair(dir.path(), front, threads(), 1, 50);
        app.control("back", "slow_ms 600").expect("obeyed");
        let (responses, _) = at_once(app.entry(), 3);
        let served = responses.iter().flatten().filter(|response| response.is_ok).count();
        let failed = responses.iter().flatten().filter(|response| !response.is_ok).count();
        assert_eq!((served, failed), (1, 2), "one connection, and 600 ms are more than the 50 ms they wait");
        app.stop();
    }
}
