//! The configuration files a demo writes: the same that an operator would.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    cgroups::{Cgroups, ROOT},
    fabric::LINK_MBIT,
    layout::{HUB, Layout, Node},
};

/// Port of the aggregator's QUIC listener.
pub const QUIC_PORT: u16 = 7443;
/// Port of the aggregator's HTTP listener.
pub const HTTP_PORT: u16 = 7480;

/// Where the binaries are and where files go.
pub struct Paths {
    /// Everything that is to stay.
    pub out: PathBuf,
    /// The directory of the programs.
    pub bin: PathBuf,
    /// What Sage itself remembers, for as long as it runs.
    pub state: Memory,
}

/// The memory file system: all nodes share this machine's disk, and Sage's own writes would be felt by the tier on it.
const MEMORY: &str = "/dev/shm";

/// A directory in memory that goes with the demo; an ordinary one where there is no memory file system.
pub struct Memory(PathBuf);

impl Memory {
    /// A new directory whose name starts with `prefix`; in `out` where there is no memory file system.
    pub fn new(prefix: &str, out: &Path) -> Result<Self> {
        let parent = if Path::new(MEMORY).is_dir() { Path::new(MEMORY) } else { out };
        let path = parent.join(format!("{prefix}-state"));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// A directory in it, made when missing.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Copies the files of its directory `name` to `to`.
    pub fn keep(&self, name: &str, to: &Path) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        for entry in fs::read_dir(self.0.join(name)).with_context(|| format!("cannot list {name}"))?.flatten() {
            fs::copy(entry.path(), to.join(entry.file_name()))
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
        Ok(())
    }

    /// Removes what a demo that was killed left behind.
    pub fn sweep() {
        for entry in fs::read_dir(MEMORY).into_iter().flatten().flatten() {
            if super::is_left_behind(&entry.file_name().to_string_lossy()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Paths {
    /// A program of this build.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin.join(name);
        if path.exists() {
            return Ok(path);
        }
        bail!("{} is missing: build it with `cargo build --release --bins`", path.display())
    }

    /// A directory below the output directory, made when missing.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.out.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

/// Makes the fleet's CA and a certificate for the aggregator and every node.
pub fn issue_certificates(paths: &Paths, layout: &Layout) -> Result<PathBuf> {
    let pki = paths.dir("pki")?;
    let dir = pki.display().to_string();
    let program = paths.program("sage-aggregator")?;
    let call = |args: &[&str]| {
        let output = Command::new(&program).args(args).output().context("cannot run sage-aggregator pki")?;
        if !output.status.success() {
            bail!("sage-aggregator {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    };
    call(&["pki", "init", "--fleet", "demo", "--out", &dir])?;
    call(&["pki", "issue", "aggregator", "aggregator-1", "--ca", &dir, "--out", &dir, "--san", &HUB.to_string()])?;
    for node in &layout.nodes {
        call(&["pki", "issue", "agent", &node.name, "--ca", &dir, "--out", &dir])?;
    }
    Ok(pki)
}

/// Timing of a demo, in milliseconds and windows.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Length of a window.
    pub window_ms: u64,
    /// Healthy windows before the first model.
    pub windows_min: u32,
}

/// Writes `aggregator.toml` and returns its path.
pub fn aggregator(paths: &Paths, pki: &Path, pace: Pace) -> Result<PathBuf> {
    let state = paths.state.dir("aggregator")?;
    let text = format!(
        "name = \"aggregator-1\"\nfleet = \"demo\"\nstate_dir = \"{state}\"\nquic = \"{hub}:{QUIC_PORT}\"\nhttp = \"127.0.0.1:{HTTP_PORT}\"\n\n\
         [tls]\nca = \"{pki}/ca.pem\"\ncert = \"{pki}/aggregator-1.pem\"\nkey = \"{pki}/aggregator-1.key\"\n\n\
         [window]\nlength_ms = {window}\nlateness_ms = 700\n\n\
         [learning]\nwindows_min = {min}\nretrain_every_windows = 60\n\n\
         [diagnosis]\nviolated_windows = 2\ncalls_min = 20\n\n\
         [planner]\nmode = \"auto\"\nlease_ms = {lease}\nverify_windows = 2\nhold_windows = 8\n",
        state = state.display(),
        hub = HUB,
        pki = pki.display(),
        window = pace.window_ms,
        min = pace.windows_min,
        lease = 6 * pace.window_ms,
    );
    write(&paths.out.join("aggregator.toml"), &text)
}

/// Writes a node's `agent.toml` and policy and returns the path of the former.
pub fn agent(paths: &Paths, node: &Node, pki: &Path, pace: Pace, cgroups: Option<&Cgroups>) -> Result<PathBuf> {
    let home = paths.dir(&node.name)?;
    let state = paths.state.dir(&node.name)?;
    let policy = paths.dir(&format!("{}/policy.d", node.name))?;
    write(&policy.join("demo.toml"), &policy_text(node, cgroups))?;
    let mut text = format!(
        "node = \"{name}\"\nstate_dir = \"{state}\"\nsocket = \"{home}/agent.sock\"\naudit_file = \"{home}/audit.jsonl\"\n\
         policy_dir = \"{policy}\"\n\n[window]\nlength_ms = {window}\nlateness_ms = 300\n\n\
         [aggregators]\naddresses = [\"{hub}:{QUIC_PORT}\"]\n\n[tls]\nca = \"{pki}/ca.pem\"\ncert = \"{pki}/{name}.pem\"\nkey = \"{pki}/{name}.key\"\n\n[kernel]\nlinks = [\"eth0\"]\n",
        name = node.name,
        home = home.display(),
        state = state.display(),
        policy = policy.display(),
        window = pace.window_ms,
        hub = HUB,
        pki = pki.display(),
    );
    if let Some(cgroups) = cgroups {
        text += &format!("cgroup_root = \"{ROOT}\"\nnode_cgroup = \"{}\"\n", cgroups.node(&node.name));
        for tier in &node.tiers {
            let cgroup = cgroups.tier(&node.name, &tier.service);
            text += &format!("\n[[services]]\ncgroup = \"{cgroup}\"\nservice = \"{}\"\n", tier.service);
        }
    }
    write(&paths.out.join(format!("{}.toml", node.name)), &text)
}

/// What the agent may do: everything the demo needs when it has cgroups of its own, else only say what it would do.
fn policy_text(node: &Node, cgroups: Option<&Cgroups>) -> String {
    let Some(cgroups) = cgroups else { return "[defaults]\ntrust = \"recommend\"\n".to_owned() };
    format!(
        "[defaults]\ntrust = \"auto\"\nactions_per_hour = 60\n\n\
         [[service]]\nname = \"*\"\ntrust = \"auto\"\nknobs = [\"cpu_quota\", \"cpu_weight\", \"cpuset\"]\ncores_min = 0.1\ncores_max = {cores}\n\n\
         [[best_effort]]\ncgroup = \"{batch}\"\ntrust = \"auto\"\nknobs = [\"cpu_quota\", \"freeze\", \"egress_ceiling\"]\ncores_min = 0.02\negress_min_mbit = 1\n\n\
         [[link]]\nname = \"eth0\"\nrate_mbit = {LINK_MBIT}\ntrust = \"auto\"\nknobs = [\"egress_rate\"]\negress_min_mbit = 1\n",
        cores = node.cores,
        batch = cgroups.batch(&node.name),
    )
}

fn write(path: &Path, text: &str) -> Result<PathBuf> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.to_owned())
}
