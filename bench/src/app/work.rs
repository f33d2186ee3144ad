//! Work that uses what it says it uses.
//!
//! CPU: spins until the thread has *used* the time, so that whoever competes for the core stretches it. Memory: a fixed
//! number of cache lines of a buffer larger than a level-2 cache, as many as an idle machine reads in that time; a
//! competitor for cache or bandwidth stretches it. Disk: as many blocks from the device, past the page cache.
//! Network: bytes in the answer.
#![expect(clippy::disallowed_methods, reason = "disk work writes a file, and its cost is measured")]

use std::{
    fs::{self, File},
    hint::black_box,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use rustix::{
    fs::OFlags,
    time::{ClockId, clock_gettime},
};

use crate::topology::Sensitivity;

/// Own time of one step, split by resource, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Processor.
    pub cpu_us: f64,
    /// Memory.
    pub mem_us: f64,
    /// Disk.
    pub disk_us: f64,
    /// Bytes on the wire.
    pub payload_len: usize,
}

impl Shares {
    /// `own_us` split as the tier's sensitivity says; its network share is the time on a link of `link_mbit`.
    pub fn new(own_us: f64, sensitivity: Sensitivity, link_mbit: f64) -> Self {
        Self {
            cpu_us: own_us * sensitivity.cpu,
            mem_us: own_us * sensitivity.mem,
            disk_us: own_us * sensitivity.disk,
            payload_len: (own_us * sensitivity.net * link_mbit / 8.0) as usize,
        }
    }
}

/// CPU time that this thread has used, microseconds.
pub fn thread_cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Uses `us` microseconds of CPU on this thread.
///
/// Looking at the clock is a system call of one or two microseconds, so it is done seldom: turns are counted in between,
/// by how many a microsecond took at the first use.
pub fn spin(us: f64) {
    static TURNS_PER_US: OnceLock<f64> = OnceLock::new();
    let end = thread_cpu_us() + us;
    let turns_per_us = *TURNS_PER_US.get_or_init(measure_turns);
    loop {
        let left = end - thread_cpu_us();
        if left <= 0.0 {
            return;
        }
        turn((left.min(LOOK_EVERY_US) * turns_per_us) as u64 + 1);
    }
}

/// However wrong the measured speed is, the clock is looked at this often.
const LOOK_EVERY_US: f64 = 100.0;
/// About a tenth of a millisecond.
const MEASURED_TURNS: u64 = 100_000;

fn measure_turns() -> f64 {
    let before = thread_cpu_us();
    turn(MEASURED_TURNS);
    MEASURED_TURNS as f64 / (thread_cpu_us() - before).max(1.0)
}

fn turn(times: u64) {
    let state = (0..times).fold(0x9E37_79B9_u64, |state, turn| {
        black_box(state).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(turn)
    });
    black_box(state);
}

/// A buffer that does not fit a level-2 cache, and how fast its lines are read when nobody competes.
#[derive(Debug)]
pub struct Memory {
    lines: Vec<[u64; WORDS_PER_LINE]>,
    cursor: AtomicUsize,
    lines_per_us: f64,
}

const WORDS_PER_LINE: usize = 8;
/// 8 MiB: four times the largest common level-2 cache.
const LINES: usize = 8 * 1024 * 1024 / 64;
/// Odd, hence coprime to [`LINES`]: visits every line once, far from the one before, so that prefetchers do not help.
const STRIDE: usize = 40_503;
/// The faster quartile of them counts: other tiers start at the same time and compete.
const CALIBRATION_TRIALS: usize = 9;

impl Memory {
    /// Fills the buffer and measures it; takes about 20 ms.
    pub fn new() -> Self {
        let lines = (0..LINES as u64).map(|line| [line; WORDS_PER_LINE]).collect();
        let mut memory = Self { lines, cursor: AtomicUsize::new(0), lines_per_us: 1.0 };
        let mut trials: Vec<f64> = (0..CALIBRATION_TRIALS)
            .map(|_| {
                let before = thread_cpu_us();
                memory.read_lines(LINES / 16);
                (LINES / 16) as f64 / (thread_cpu_us() - before).max(1.0)
            })
            .collect();
        trials.sort_by(f64::total_cmp);
        memory.lines_per_us = trials[CALIBRATION_TRIALS - 1 - CALIBRATION_TRIALS / 4];
        memory
    }

    /// Reads as much as takes `us` microseconds when nobody competes.
    pub fn walk(&self, us: f64) {
        self.read_lines((us * self.lines_per_us) as usize);
    }

    fn read_lines(&self, count: usize) {
        let first = self.cursor.fetch_add(count, Ordering::Relaxed);
        let sum = (first..first.wrapping_add(count))
            .fold(0_u64, |sum, step| sum.wrapping_add(self.lines[step.wrapping_mul(STRIDE) % LINES][0]));
        black_box(sum);
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// A file that is used block by block, and what one block costs when nobody competes.
///
/// Blocks are read past the page cache. Where the file system cannot do that, they are written and synced instead.
#[derive(Debug)]
pub struct Disk {
    file: File,
    is_direct: bool,
    cursor: AtomicUsize,
    block_us: f64,
}

const BLOCK_LEN: usize = 4_096;
/// 2 MiB, written once at start.
const BLOCKS: usize = 512;
/// The faster quartile counts, as for memory.
const DISK_TRIALS: usize = 33;
/// Blocks of one step at most. On a file system in memory a block costs nothing, and no number of them is disk time.
const BLOCKS_MAX: u32 = 64;

impl Disk {
    /// Makes the file in `dir` (it has no name there for long) and measures it; takes some tens of blocks.
    ///
    /// # Errors
    ///
    /// When the file cannot be made or used.
    pub fn new(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("sage-bench-{}.dat", std::process::id()));
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        let direct = File::options().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(&path);
        fs::remove_file(&path)?;
        file.write_all_at(&vec![0x5A; BLOCKS * BLOCK_LEN], 0)?;
        file.sync_all()?;
        let mut disk = Self { file, is_direct: false, cursor: AtomicUsize::new(0), block_us: 1.0 };
        if let Ok(direct) = direct.and_then(|direct| read_block(&direct, 0).map(|()| direct)) {
            (disk.file, disk.is_direct) = (direct, true);
        }
        let mut trials = [0.0; DISK_TRIALS];
        for trial in &mut trials {
            let before = Instant::now();
            disk.use_block()?;
            *trial = before.elapsed().as_secs_f64() * 1e6;
        }
        trials.sort_by(f64::total_cmp);
        disk.block_us = trials[DISK_TRIALS / 4].max(1.0);
        Ok(disk)
    }

    /// Microseconds of one block when nobody competes.
    pub fn block_us(&self) -> f64 {
        self.block_us
    }

    /// How many blocks take `us` on average; `chance` in `[0, 1)` decides whether a part of a block becomes a whole one.
    pub fn blocks(&self, us: f64, chance: f64) -> u32 {
        let exact = us / self.block_us;
        let whole = exact.floor();
        (whole as u32).saturating_add(u32::from(chance < exact - whole)).min(BLOCKS_MAX)
    }

    /// Reads one block from the device, or writes and syncs one.
    ///
    /// # Errors
    ///
    /// As the file.
    pub fn use_block(&self) -> io::Result<()> {
        let block = self.cursor.fetch_add(1, Ordering::Relaxed).wrapping_mul(STRIDE) % BLOCKS;
        let offset = (block * BLOCK_LEN) as u64;
        if self.is_direct {
            return read_block(&self.file, offset);
        }
        self.file.write_all_at(&[0x5A; BLOCK_LEN], offset)?;
        self.file.sync_data()
    }
}

/// Reads past the page cache need memory that is aligned as blocks are.
fn read_block(file: &File, offset: u64) -> io::Result<()> {
    let mut buffer = [0; 2 * BLOCK_LEN];
    let start = buffer.as_ptr().align_offset(BLOCK_LEN).min(BLOCK_LEN);
    file.read_exact_at(&mut buffer[start..start + BLOCK_LEN], offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_uses_the_cpu_time_it_was_asked_for() {
        let before = thread_cpu_us();
        spin(3_000.0);
        let used = thread_cpu_us() - before;
        assert!((3_000.0..3_300.0).contains(&used), "{used} us");
    }

    #[test]
    fn shares_add_up_to_the_own_time() {
        let shares = Shares::new(1_000.0, Sensitivity { cpu: 0.5, mem: 0.2, disk: 0.2, net: 0.1 }, 1000.0);
        assert_eq!(shares, Shares { cpu_us: 500.0, mem_us: 200.0, disk_us: 200.0, payload_len: 12_500 });
    }

    #[test]
    fn walking_memory_reads_in_proportion_to_the_time() {
        let memory = Memory::new();
        let start = memory.cursor.load(Ordering::Relaxed);
        memory.walk(100.0);
        let read = memory.cursor.load(Ordering::Relaxed) - start;
        assert_eq!(read, (100.0 * memory.lines_per_us) as usize);
        assert!(memory.lines_per_us > 1.0 && memory.lines_per_us < 10_000.0, "{} lines a us", memory.lines_per_us);
    }

    #[test]
    fn disk_work_leaves_no_file_behind_and_costs_what_was_measured() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(disk.blocks(disk.block_us() * 2.5, 0.49), 3);
        assert_eq!(disk.blocks(disk.block_us() * 2.5, 0.51), 2);
        assert_eq!(disk.blocks(f64::MAX, 0.0), BLOCKS_MAX);
        disk.use_block().unwrap();
    }
}
