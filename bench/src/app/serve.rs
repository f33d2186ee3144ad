//! The ways a tier serves requests at once, each with the threads that its model says.
//!
//! | model | threads |
//! |---|---|
//! | `event_loop` | one per worker, each with a loop of its own; they share the listener and never block on a call |
//! | `goroutines` | one per core; tasks move between them |
//! | `thread_per_connection` | one per connection, held while it waits for its callees |
//! | `thread_pool`, `single_thread` | one that reads requests into a queue, and so many that serve it |
#![expect(clippy::disallowed_methods, reason = "arrival is when a request has been read")]

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::event::epoll;
use tokio::io::AsyncWriteExt;

use super::{
    client::{Client, read_frame, read_frame_async},
    codec::Request,
    gate::block_on,
    tier::Tier,
    visit::serve,
};
use crate::topology::Concurrency;

/// Open connections of one tier: four times the largest sum of pools in the files. More are closed at once.
const CONNECTIONS_MAX: usize = 8_192;
/// A peer that does not read its answer for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The rest of a request follows its first byte at once, or the peer is gone.
const FRAME_TIMEOUT: Duration = Duration::from_secs(1);
/// After a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Frames of ours are shallow; branches have the same.
const STACK: usize = 256 * 1024;

/// Serves `listener` from threads of its own, for as long as the process lives.
///
/// # Errors
///
/// When threads, loops or descriptors cannot be made.
pub fn start(tier: &Arc<Tier>, listener: TcpListener) -> io::Result<()> {
    match tier.concurrency {
        Concurrency::EventLoop { workers, .. } => event_loops(tier, &listener, workers as usize),
        Concurrency::Goroutines {} => goroutines(tier, listener),
        Concurrency::ThreadPerConnection {} => connection_threads(tier, listener),
        Concurrency::ThreadPool { threads } | Concurrency::SingleThread { threads } => {
            thread_pool(tier, listener, threads as usize)
        }
        Concurrency::None {} => Err(io::Error::new(io::ErrorKind::Unsupported, "this tier serves nothing")),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run).map(drop)
}

fn event_loops(tier: &Arc<Tier>, listener: &TcpListener, workers: usize) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    for worker in 0..workers {
        let (tier, listener) = (tier.clone(), listener.try_clone()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = tier.task_client(workers);
        spawn(&format!("loop-{worker}"), move || runtime.block_on(accept_tasks(tier, client, listener)))?;
    }
    Ok(())
}

fn goroutines(tier: &Arc<Tier>, listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let tier = tier.clone();
    let cores = (tier.cpu_cores.ceil() as usize).max(1);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cores).thread_name("go").enable_all().build()?;
    let client = tier.task_client(1);
    // The accept loop is a task like any other, so that the thread that started it costs nothing.
    spawn("accept", move || {
        if let Err(error) = runtime.block_on(runtime.spawn(accept_tasks(tier, client, listener))) {
            eprintln!("accept loop ended: {error}");
        }
    })
}

async fn accept_tasks(tier: Arc<Tier>, client: Client, listener: TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("cannot listen: {error}"),
    };
    let warm = client.clone();
    tokio::spawn(async move { warm.warm_up().await });
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX || stream.set_nodelay(true).is_err() {
                    open.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (tier, client, open) = (tier.clone(), client.clone(), open.clone());
                tokio::spawn(async move {
                    // The peer closed it, or broke the protocol: either way this connection is over.
                    drop(connection_task(&tier, &client, stream).await);
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection_task(tier: &Arc<Tier>, client: &Client, mut stream: tokio::net::TcpStream) -> io::Result<()> {
    loop {
        let body = read_frame_async(&mut stream).await?;
        let request = Request::from_body(&body).map_err(io::Error::other)?;
        let response = serve(tier, client, request).await;
        tokio::time::timeout(WRITE_TIMEOUT, stream.write_all(&response.to_frame())).await??;
    }
}

fn connection_threads(tier: &Arc<Tier>, listener: TcpListener) -> io::Result<()> {
    let (tier, client) = (tier.clone(), tier.thread_client());
    let warm = client.clone();
    spawn("warm-up", move || block_on(warm.warm_up(), None).unwrap_or_default())?;
    let open = Arc::new(AtomicUsize::new(0));
    spawn("accept", move || {
        loop {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (tier, client, open_here) = (tier.clone(), client.clone(), open.clone());
            let started = spawn("connection", move || {
                // As for a task: this connection is over.
                drop(connection_thread(&tier, &client, &stream));
                open_here.fetch_sub(1, Ordering::Relaxed);
            });
            if started.is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    })
}

fn connection_thread(tier: &Arc<Tier>, client: &Client, mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    loop {
        let body = read_frame(&mut stream)?;
        let request = Request::from_body(&body).map_err(io::Error::other)?;
        let serving = serve(tier, client, request);
        let response = block_on(serving, None).ok_or(io::ErrorKind::Interrupted)?;
        stream.write_all(&response.to_frame())?;
    }
}

fn thread_pool(tier: &Arc<Tier>, listener: TcpListener, threads: usize) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let client = tier.thread_client();
    let warm = client.clone();
    spawn("warm-up", move || block_on(warm.warm_up(), None).unwrap_or_default())?;
    let pool = Arc::new(Pool {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        open: Mutex::new(HashMap::new()),
        next_id: AtomicU64::new(LISTENER + 1),
        jobs: Mutex::new(VecDeque::new()),
        is_waiting: Condvar::new(),
    });
    epoll::add(&pool.epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    for worker in 0..threads {
        let (pool, tier, client) = (pool.clone(), tier.clone(), client.clone());
        spawn(&format!("worker-{worker}"), move || pool.work(&tier, &client))?;
    }
    spawn("reader", move || pool.read(&listener))
}

/// One thread reads requests, the workers serve them in their order of arrival. A connection is looked at again once
/// its request has been answered, so that jobs are never more than connections.
struct Pool {
    epoll: OwnedFd,
    open: Mutex<HashMap<u64, Arc<TcpStream>>>,
    next_id: AtomicU64,
    jobs: Mutex<VecDeque<Job>>,
    is_waiting: Condvar,
}

struct Job {
    connection: u64,
    stream: Arc<TcpStream>,
    request: Request,
}

/// The listener's id among the connections'.
const LISTENER: u64 = 0;
/// Events taken at once; more wait in the kernel.
const EVENTS_MAX: usize = 64;
const READABLE_ONCE: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ONESHOT);

impl Pool {
    fn read(&self, listener: &TcpListener) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return eprintln!("reader ended: {error}"),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(listener),
                    id => self.read_one(id),
                }
            }
        }
    }

    fn accept(&self, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            let mut open = lock(&self.open);
            let is_set_up = stream.set_nonblocking(false).is_ok()
                && stream.set_nodelay(true).is_ok()
                && stream.set_read_timeout(Some(FRAME_TIMEOUT)).is_ok()
                && stream.set_write_timeout(Some(WRITE_TIMEOUT)).is_ok();
            if open.len() >= CONNECTIONS_MAX || !is_set_up {
                continue;
            }
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            if epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(id), READABLE_ONCE).is_ok() {
                open.insert(id, Arc::new(stream));
            }
        }
    }

    fn read_one(&self, id: u64) {
        let Some(stream) = lock(&self.open).get(&id).cloned() else { return };
        let body = read_frame(&mut &*stream);
        match body.map(|body| Request::from_body(&body)) {
            Ok(Ok(request)) => {
                lock(&self.jobs).push_back(Job { connection: id, stream, request });
                self.is_waiting.notify_one();
            }
            _ => self.close(id),
        }
    }

    fn work(&self, tier: &Arc<Tier>, client: &Client) {
        loop {
            let job = self.next_job();
            let response = block_on(serve(tier, client, job.request), None);
            let is_answered = response.is_some_and(|response| (&*job.stream).write_all(&response.to_frame()).is_ok());
            let data = epoll::EventData::new_u64(job.connection);
            if !is_answered || epoll::modify(&self.epoll, &*job.stream, data, READABLE_ONCE).is_err() {
                self.close(job.connection);
            }
        }
    }

    fn next_job(&self) -> Job {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.pop_front() {
                return job;
            }
            jobs = self.is_waiting.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Forgets the connection; the kernel forgets it with its last descriptor.
    fn close(&self, id: u64) {
        lock(&self.open).remove(&id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
