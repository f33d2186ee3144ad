//! The demo's child processes: started in their namespace and cgroup, watched, ended with the demo.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end after SIGTERM before it is killed.
const END_GRACE: Duration = Duration::from_secs(4);

/// Joins the cgroups in `SAGE_DEMO_CGROUPS` and becomes the command.
const JOIN: &str = r#"for d in $SAGE_DEMO_CGROUPS; do echo $$ > "$d/cgroup.procs" || exit 125; done; unset SAGE_DEMO_CGROUPS; exec "$@""#;

/// Where a process is to run.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Network namespace; `None` is the demo's own.
    pub namespace: Option<String>,
    /// cgroup directories to join.
    pub cgroups: Vec<PathBuf>,
}

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with `args` in `place`; its output goes to `logs/NAME.log`, or stays readable with `keep_stdout`.
    pub fn start(
        name: &str,
        program: &Path,
        args: &[String],
        place: &Place,
        logs: &Path,
        keep_stdout: bool,
    ) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        // The kernel ends the child when the demo dies, however it dies.
        let mut words: Vec<String> = ["setpriv", "--pdeathsig", "TERM"].map(str::to_owned).to_vec();
        if let Some(namespace) = &place.namespace {
            words.extend(["nsenter".to_owned(), format!("--net=/run/netns/{namespace}")]);
        }
        if !place.cgroups.is_empty() {
            words.extend(["sh", "-c", JOIN, "sh"].map(str::to_owned));
        }
        words.push(program.display().to_string());
        words.extend_from_slice(args);
        let joined = place.cgroups.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
        let stdout = if keep_stdout { Stdio::piped() } else { Stdio::from(file.try_clone()?) };
        let child = Command::new(&words[0])
            .args(&words[1..])
            .env("SAGE_DEMO_CGROUPS", joined)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::from(file))
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", words.join(" ")))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// The child's standard output, once, when it was kept.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log when it is no longer running.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail = log.lines().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n  ");
            bail!("{} ended ({status}); the end of {}:\n  {tail}", self.name, self.log.display());
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Best effort: it may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it at once. A frozen process dies when its cgroup is thawed, so nobody waits here.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end_all(std::slice::from_mut(self));
    }
}

/// Ends all of `processes` together: SIGTERM, a grace, SIGKILL.
pub fn end_all(processes: &mut [Process]) {
    for process in processes.iter() {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + END_GRACE;
    while Instant::now() < deadline {
        if processes.iter_mut().all(|process| !matches!(process.child.try_wait(), Ok(None))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for process in processes.iter() {
        process.kill();
    }
}
