//! Calls to other tiers over pooled connections, by threads that block or by tasks that do not, behind one `call`.
#![expect(clippy::disallowed_methods, reason = "calls have deadlines")]

use std::{
    future::Future,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    codec::{CodecError, FRAME_MAX, PREFIX_LEN, Request, Response, body_len},
    gate::{Pass, block_on},
    pool::{CALL_TIMEOUT, Edge, Idle},
};

/// A future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why a call failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// The topology file says there is no such edge.
    #[error("no pool to service {callee}")]
    NoEdge {
        /// Its place in the file.
        callee: usize,
    },
    /// No connection became free in time.
    #[error("no free connection within {wait:?}")]
    PoolTimeout {
        /// How long was waited.
        wait: Duration,
    },
    /// Connecting, sending or receiving failed.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The peer does not speak our protocol.
    #[error("unintelligible answer")]
    Codec(#[from] CodecError),
    /// The callee said that it failed.
    #[error("callee failed")]
    Remote,
    /// A branch could not be started or died.
    #[error("branch lost")]
    Branch,
}

/// How a tier makes its calls. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Client {
    /// On the calling thread, which blocks.
    Threads(Arc<Connections<TcpStream>>),
    /// On the calling task; the thread goes on with others.
    Tasks(Arc<Connections<tokio::net::TcpStream>>),
}

/// Kept connections to every callee, by its place in `Topology::services`.
#[derive(Debug)]
pub struct Connections<C> {
    edges: Arc<[Edge]>,
    idle: Vec<Idle<C>>,
}

impl<C> Connections<C> {
    fn new(edges: Arc<[Edge]>, shares: usize) -> Arc<Self> {
        let idle = edges.iter().map(|edge| Idle::new(edge, shares)).collect();
        Arc::new(Self { edges, idle })
    }

    fn to(&self, callee: usize) -> Result<(&Edge, &Idle<C>), CallError> {
        let found = self.edges.iter().zip(&self.idle).find(|(edge, _)| edge.callee == callee);
        found.ok_or(CallError::NoEdge { callee })
    }
}

/// A connection that could not be made within this is not there: loopback takes 50 us, a far region 300 ms.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Callees may still be starting: tried for this long, then left to the first call.
const WARM_UP: Duration = Duration::from_secs(10);
const WARM_UP_RETRY: Duration = Duration::from_millis(100);

impl Client {
    /// A client for threads.
    pub fn threads(edges: Arc<[Edge]>) -> Self {
        Self::Threads(Connections::new(edges, 1))
    }

    /// A client for the tasks of one runtime, one of `shares` runtimes in the process.
    pub fn tasks(edges: Arc<[Edge]>, shares: usize) -> Self {
        Self::Tasks(Connections::new(edges, shares))
    }

    /// Calls `callee` and waits for its answer; covers waiting for a connection.
    ///
    /// # Errors
    ///
    /// [`CallError`]. A kept connection that turns out closed is replaced once, silently.
    pub async fn call(&self, callee: usize, request: Request) -> Result<Response, CallError> {
        let response = match self {
            Self::Threads(connections) => connections.call_blocking(callee, request),
            Self::Tasks(connections) => connections.call(callee, request).await,
        }?;
        if response.is_ok { Ok(response) } else { Err(CallError::Remote) }
    }

    /// Runs all `branches` at once and waits for all: a thread or a task each, the last one here.
    ///
    /// # Errors
    ///
    /// The first branch's error, in their order.
    pub async fn fork(&self, mut branches: Vec<BoxFuture<Result<(), CallError>>>) -> Result<(), CallError> {
        let Some(last) = branches.pop() else { return Ok(()) };
        let started: Vec<_> = branches.into_iter().map(|branch| self.start(branch)).collect();
        let mut outcome = last.await;
        for branch in started.into_iter().rev() {
            outcome = branch.finish().await.and(outcome);
        }
        outcome
    }

    /// Starts `branch` without waiting for it.
    pub fn detach(&self, branch: BoxFuture<Result<(), CallError>>) {
        drop(self.start(branch));
    }

    /// Sleeps as this client waits: holding the thread, or not.
    pub async fn sleep(&self, duration: Duration) {
        match self {
            Self::Threads(_) => std::thread::sleep(duration),
            Self::Tasks(_) => tokio::time::sleep(duration).await,
        }
    }

    /// Runs `work`, which blocks: here if this thread is ours to hold, else on a thread for such things.
    pub async fn blocking(&self, work: impl FnOnce() + Send + 'static) {
        match self {
            Self::Threads(_) => work(),
            // A panic in there has been printed; the visit goes on as if the work were done.
            Self::Tasks(_) => drop(tokio::task::spawn_blocking(work).await),
        }
    }

    /// Opens the connections that every pool keeps at least.
    pub async fn warm_up(&self) {
        let until = Instant::now() + WARM_UP;
        match self {
            Self::Threads(connections) => connections.warm_up_blocking(until),
            Self::Tasks(connections) => connections.warm_up(until).await,
        }
    }

    fn start(&self, branch: BoxFuture<Result<(), CallError>>) -> Started {
        match self {
            Self::Threads(_) => {
                let run = move || block_on(branch, None).unwrap_or(Err(CallError::Branch));
                Started::Thread(std::thread::Builder::new().stack_size(BRANCH_STACK).spawn(run).ok())
            }
            Self::Tasks(_) => Started::Task(tokio::spawn(branch)),
        }
    }
}

/// Branches run a few frames of ours: 256 KiB is four times what they were seen to use.
const BRANCH_STACK: usize = 256 * 1024;

enum Started {
    Thread(Option<std::thread::JoinHandle<Result<(), CallError>>>),
    Task(tokio::task::JoinHandle<Result<(), CallError>>),
}

impl Started {
    async fn finish(self) -> Result<(), CallError> {
        match self {
            Self::Thread(handle) => handle.and_then(|handle| handle.join().ok()).unwrap_or(Err(CallError::Branch)),
            Self::Task(handle) => handle.await.unwrap_or(Err(CallError::Branch)),
        }
    }
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> CallError {
    move |source| CallError::Io { action, source }
}

impl Connections<TcpStream> {
    fn call_blocking(&self, callee: usize, request: Request) -> Result<Response, CallError> {
        let (edge, idle) = self.to(callee)?;
        let _pass: Pass = block_on(edge.gate.enter(), Some(Instant::now() + edge.wait))
            .ok_or(CallError::PoolTimeout { wait: edge.wait })?;
        let frame = request.to_frame();
        if let Some(mut kept) = idle.take(Instant::now()) {
            if let Ok(response) = exchange_blocking(&mut kept, &frame) {
                idle.put(kept, Instant::now());
                return Ok(response);
            }
            // The callee closed it, perhaps because it was restarted: the others are closed as well.
            idle.clear();
        }
        let mut fresh = connect_blocking(edge.address)?;
        let response = exchange_blocking(&mut fresh, &frame)?;
        idle.put(fresh, Instant::now());
        Ok(response)
    }

    fn warm_up_blocking(&self, until: Instant) {
        for (edge, idle) in self.edges.iter().zip(&self.idle) {
            while idle.missing() > 0 && Instant::now() < until {
                match connect_blocking(edge.address) {
                    Ok(stream) => idle.put(stream, Instant::now()),
                    Err(_) => std::thread::sleep(WARM_UP_RETRY),
                }
            }
        }
    }
}

fn connect_blocking(address: SocketAddr) -> Result<TcpStream, CallError> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(io_error("connect"))?;
    stream.set_nodelay(true).map_err(io_error("set up a connection"))?;
    stream.set_read_timeout(Some(CALL_TIMEOUT)).map_err(io_error("set up a connection"))?;
    stream.set_write_timeout(Some(CALL_TIMEOUT)).map_err(io_error("set up a connection"))?;
    Ok(stream)
}

fn exchange_blocking(stream: &mut TcpStream, frame: &[u8]) -> Result<Response, CallError> {
    stream.write_all(frame).map_err(io_error("send a request"))?;
    let body = read_frame(stream).map_err(io_error("receive a response"))?;
    Ok(Response::from_body(&body)?)
}

/// Reads one frame's body from a blocking stream.
///
/// # Errors
///
/// As the stream, or `InvalidData` for a frame that is too long.
pub fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut prefix = [0; PREFIX_LEN];
    stream.read_exact(&mut prefix)?;
    let len = body_len(prefix).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok(body)
}

impl Connections<tokio::net::TcpStream> {
    async fn call(&self, callee: usize, request: Request) -> Result<Response, CallError> {
        let (edge, idle) = self.to(callee)?;
        let entered = tokio::time::timeout(edge.wait, edge.gate.enter()).await;
        let _pass: Pass = entered.map_err(|_| CallError::PoolTimeout { wait: edge.wait })?;
        let frame = request.to_frame();
        if let Some(mut kept) = idle.take(Instant::now()) {
            if let Ok(response) = exchange(&mut kept, &frame).await {
                idle.put(kept, Instant::now());
                return Ok(response);
            }
            // As above.
            idle.clear();
        }
        let mut fresh = connect(edge.address).await?;
        let response = exchange(&mut fresh, &frame).await?;
        idle.put(fresh, Instant::now());
        Ok(response)
    }

    async fn warm_up(&self, until: Instant) {
        for (edge, idle) in self.edges.iter().zip(&self.idle) {
            while idle.missing() > 0 && Instant::now() < until {
                match connect(edge.address).await {
                    Ok(stream) => idle.put(stream, Instant::now()),
                    Err(_) => tokio::time::sleep(WARM_UP_RETRY).await,
                }
            }
        }
    }
}

/// Opens a connection within a second, without Nagle's delay.
///
/// # Errors
///
/// [`CallError::Io`].
pub async fn connect(address: SocketAddr) -> Result<tokio::net::TcpStream, CallError> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(address));
    let stream = connecting.await.unwrap_or(Err(io::ErrorKind::TimedOut.into())).map_err(io_error("connect"))?;
    stream.set_nodelay(true).map_err(io_error("set up a connection"))?;
    Ok(stream)
}

/// Sends `frame` and reads the response, within [`CALL_TIMEOUT`].
///
/// # Errors
///
/// [`CallError::Io`] or [`CallError::Codec`].
pub async fn exchange(stream: &mut tokio::net::TcpStream, frame: &[u8]) -> Result<Response, CallError> {
    let exchange = async {
        stream.write_all(frame).await?;
        read_frame_async(stream).await
    };
    let body = tokio::time::timeout(CALL_TIMEOUT, exchange).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
    Ok(Response::from_body(&body.map_err(io_error("get a response"))?)?)
}

/// Reads one frame's body from a stream of a runtime.
///
/// # Errors
///
/// As [`read_frame`].
pub async fn read_frame_async(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut prefix = [0; PREFIX_LEN];
    stream.read_exact(&mut prefix).await?;
    let len = body_len(prefix).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    debug_assert!(len <= FRAME_MAX);
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    Ok(body)
}
