//! Freezing: `freezer.state` in version 1, `cgroup.freeze` in version 2.
//!
//! A cgroup stands still only once every task in it does, which a task in the kernel can delay; so freezing waits for
//! that, for a bounded time. What is read is the cgroup's own wish, not what it has from a frozen parent.
#![expect(clippy::disallowed_methods, reason = "driver: waits for the kernel")]

use std::{
    thread,
    time::{Duration, Instant},
};

use sage_common::{Knob, Setting};

use super::{text, tree::Dir};
use crate::{core::actuation::Before, kernel::KernelError};

/// Tasks leave most system calls within milliseconds; one that does not (a stuck disk) is not waited for.
const WAIT_MAX: Duration = Duration::from_millis(500);
const WAIT_STEP: Duration = Duration::from_millis(2);

pub(super) fn read(dir: &Dir) -> Result<Before, KernelError> {
    let name = if dir.is_v2 { "cgroup.freeze" } else { "freezer.self_freezing" };
    match dir.read(name)?.as_str() {
        "1" => Ok(Setting::Frozen(true).into()),
        "0" => Ok(Setting::Frozen(false).into()),
        other => Err(dir.unknown(name, other, "0 or 1")),
    }
}

pub(super) fn write(dir: &Dir, knob: &Knob, is_frozen: bool) -> Result<(), KernelError> {
    match (dir.is_v2, is_frozen) {
        (true, _) => dir.write("cgroup.freeze", if is_frozen { "1" } else { "0" })?,
        (false, _) => dir.write("freezer.state", if is_frozen { "FROZEN" } else { "THAWED" })?,
    }
    if is_frozen { wait(dir, knob) } else { Ok(()) }
}

fn wait(dir: &Dir, knob: &Knob) -> Result<(), KernelError> {
    let start = Instant::now();
    while !stands_still(dir)? {
        if start.elapsed() >= WAIT_MAX {
            return Err(KernelError::Slow { knob: knob.clone(), waited_ms: 500 });
        }
        thread::sleep(WAIT_STEP);
    }
    Ok(())
}

fn stands_still(dir: &Dir) -> Result<bool, KernelError> {
    if dir.is_v2 {
        let events = dir.read("cgroup.events")?;
        return Ok(text::field(&events, "frozen") == Some("1"));
    }
    // FREEZING until every task has stopped; reading it is what makes the kernel look again.
    Ok(dir.read("freezer.state")? == "FROZEN")
}
