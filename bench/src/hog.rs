//! Best-effort jobs that take what they can get: the demo's resource faults.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    thread,
};

use anyhow::{Context, Result};
use clap::Subcommand;

/// Bytes of one write of the disk hog: large enough that the device, not the system call, is the limit.
const DISK_BLOCK: usize = 1 << 20;
/// Blocks of the disk hog's file, written over and over: 128 MiB.
const DISK_BLOCKS: u64 = 128;
/// Bytes per send of the bulk sender.
const SEND_BLOCK: usize = 64 << 10;

/// What to exhaust.
#[derive(Clone, Debug, Subcommand)]
pub enum Hog {
    /// Spin on this many threads, all on one CPU.
    Cpu {
        /// Threads.
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// Write to a file past the page cache as fast as the device allows.
    Disk {
        /// Directory for the file; it is removed when the hog is told to end.
        #[arg(long)]
        dir: PathBuf,
        /// Writers at the same time.
        #[arg(long, default_value_t = 4)]
        threads: usize,
    },
    /// Send bytes to a sink as fast as the link allows.
    Send {
        /// The sink.
        #[arg(long)]
        to: SocketAddr,
        /// Connections at the same time.
        #[arg(long, default_value_t = 4)]
        connections: usize,
    },
    /// Receive and forget whatever is sent.
    Sink {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
    },
}

/// Runs until it is killed.
pub fn run(hog: Hog) -> Result<()> {
    match hog {
        Hog::Cpu { threads } => together(threads, |_| {
            stay_on_last_cpu()?;
            spin()
        }),
        Hog::Disk { dir, threads } => together(threads, move |index| write_over(&dir, index)),
        Hog::Send { to, connections } => together(connections, move |_| send(to)),
        Hog::Sink { listen } => sink(listen),
    }
}

fn together(threads: usize, work: impl Fn(usize) -> Result<()> + Clone + Send + 'static) -> Result<()> {
    let start = |index| {
        let work = work.clone();
        thread::spawn(move || work(index))
    };
    let running: Vec<_> = (0..threads).map(start).collect();
    for thread in running {
        thread.join().map_err(|_| anyhow::anyhow!("a hog thread panicked"))??;
    }
    Ok(())
}

/// A job of one small node must not reach the others by way of the machine that they all run on.
fn stay_on_last_cpu() -> Result<()> {
    let own = rustix::thread::sched_getaffinity(None).context("cannot read the CPU affinity")?;
    let Some(last) = (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|cpu| own.is_set(*cpu)) else { return Ok(()) };
    let mut only = rustix::thread::CpuSet::new();
    only.set(last);
    rustix::thread::sched_setaffinity(None, &only).context("cannot set the CPU affinity")
}

fn spin() -> Result<()> {
    let mut state = 1_u64;
    loop {
        state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

fn write_over(dir: &std::path::Path, index: usize) -> Result<()> {
    let path = dir.join(format!("hog-{index}"));
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(flags)
        .open(&path)
        .with_context(|| format!("cannot open {} past the page cache", path.display()))?;
    // Unlinked at once: the space is free again however the hog ends.
    std::fs::remove_file(&path).with_context(|| format!("cannot unlink {}", path.display()))?;
    let block = aligned_block();
    for turn in (0..DISK_BLOCKS).cycle() {
        file.write_all_at(block.bytes(), turn * DISK_BLOCK as u64)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// O_DIRECT wants memory aligned to the device's block: a vector with room to start at a multiple of 4096.
struct Block {
    memory: Vec<u8>,
    start: usize,
}

impl Block {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + DISK_BLOCK]
    }
}

fn aligned_block() -> Block {
    let memory = vec![0x5a; DISK_BLOCK + 4096];
    let start = memory.as_ptr().align_offset(4096);
    Block { memory, start }
}

fn send(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to the sink at {to}"))?;
    let block = vec![0x5a; SEND_BLOCK];
    loop {
        stream.write_all(&block).with_context(|| format!("the sink at {to} went away"))?;
    }
}

fn sink(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || swallow(stream));
    }
    Ok(())
}

fn swallow(mut stream: TcpStream) {
    let mut block = vec![0; SEND_BLOCK];
    while stream.read(&mut block).is_ok_and(|read| read > 0) {}
}
