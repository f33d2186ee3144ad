//! One tier as a process: enters its network namespace, serves, obeys its control socket, and ends cleanly.
#![expect(clippy::disallowed_methods, reason = "addresses and namespaces come from files")]

use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    os::{fd::AsFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    control, serve,
    tier::{Tier, TierSpec},
};
use crate::topology;

/// `sage-bench tier`: one tier of an application; started by `sage-bench app`.
#[derive(Args, Clone, Debug)]
pub struct TierArgs {
    /// Built-in name or path of the topology
    #[arg(long)]
    pub topology: String,
    /// The service to play
    #[arg(long)]
    pub service: String,
    /// Where to serve
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where every tier serves: {"service": "address:port"}, or a file with that
    #[arg(long, default_value = "{}")]
    pub peers: String,
    /// Where spans go, e.g. http://127.0.0.1:4318; nowhere by default
    #[arg(long)]
    pub otlp: Option<String>,
    /// Where disk work writes; the temporary directory by default
    #[arg(long)]
    pub work_dir: Option<PathBuf>,
    /// Socket for commands: threads N, pool CALLEE N, slow FACTOR, slow_ms X, reset, status
    #[arg(long)]
    pub control: Option<PathBuf>,
    /// Multiplies every service time of the file
    #[arg(long, default_value_t = 1.0)]
    pub scale_time: f64,
    /// Line rate of the link, Mbit/s: answers are as long as their network share lasts on it
    #[arg(long, default_value_t = 1000.0)]
    pub link_mbit: f64,
    /// Name the callee in client spans
    #[arg(long)]
    pub peer_names: bool,
    /// Network namespace to serve in: a name below /run/netns, or a path
    #[arg(long)]
    pub netns: Option<String>,
    /// End when standard input ends: whoever started this is gone
    #[arg(long)]
    pub exit_with_stdin: bool,
}

/// Serves until SIGTERM, SIGINT or the end of standard input; prints `ready SERVICE ADDRESS` once it does.
///
/// Call it from the main thread before any other is started: a network namespace is entered by threads, not processes.
///
/// # Errors
///
/// For a topology, address, namespace or file that cannot be used.
pub fn run(args: &TierArgs) -> Result<()> {
    if let Some(netns) = &args.netns {
        enter_netns(netns)?;
    }
    let topology = topology::load(&args.topology)?;
    let spec = TierSpec {
        service: args.service.clone(),
        peers: peers(&args.peers)?,
        otlp: args.otlp.clone(),
        work_dir: args.work_dir.clone(),
        scale_time: args.scale_time,
        link_mbit: args.link_mbit,
        peer_names: args.peer_names,
    };
    let tier = Tier::new(&topology, &spec)?;
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let control = match &args.control {
        Some(path) => Some(control::bind(path).with_context(|| format!("cannot bind {}", path.display()))?),
        None => None,
    };
    serve::start(&tier, listener)?;
    println!("ready {} {address}", args.service);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(until_told(&tier, control, args.exit_with_stdin));
    if let Some(exporter) = tier.exporter() {
        exporter.close();
    }
    if let Some(path) = &args.control {
        // Gone already if somebody tidied up.
        drop(std::fs::remove_file(path));
    }
    outcome
}

/// Obeys commands until a signal comes, or standard input ends.
async fn until_told(tier: &Arc<Tier>, control: Option<UnixListener>, exit_with_stdin: bool) -> Result<()> {
    if let Some(listener) = control {
        tokio::spawn(control::listen(tier.clone(), tokio::net::UnixListener::from_std(listener)?));
    }
    let (gone, mut is_gone) = tokio::sync::mpsc::channel(1);
    if exit_with_stdin {
        let gone = gone.clone();
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            // The end of input or an error: both mean that nobody holds the other end.
            drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
            gone.blocking_send(())
        })?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = is_gone.recv() => {}
    }
    drop(gone);
    Ok(())
}

/// Addresses from JSON text, or from the file of that name.
fn peers(argument: &str) -> Result<BTreeMap<String, SocketAddr>> {
    let text = if argument.trim_start().starts_with('{') {
        argument.to_owned()
    } else {
        std::fs::read_to_string(argument).with_context(|| format!("cannot read {argument}"))?
    };
    serde_json::from_str(&text).with_context(|| format!("no addresses in {argument}"))
}

/// Moves this thread, and those it starts, into a network namespace.
///
/// # Errors
///
/// When it is not there or entering is not allowed.
pub fn enter_netns(netns: &str) -> Result<()> {
    let path = if netns.contains('/') { PathBuf::from(netns) } else { Path::new("/run/netns").join(netns) };
    let file = File::open(&path).with_context(|| format!("cannot open network namespace {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter network namespace {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_come_as_text_or_as_a_file() {
        let text = r#"{"geo": "127.0.0.1:7101"}"#;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peers.json");
        std::fs::write(&file, text).unwrap();
        let expected = BTreeMap::from([("geo".to_owned(), SocketAddr::from(([127, 0, 0, 1], 7101)))]);
        assert_eq!(peers(text).unwrap(), expected);
        assert_eq!(peers(&file.display().to_string()).unwrap(), expected);
        assert!(peers("{\"geo\": 3}").is_err());
    }
}
