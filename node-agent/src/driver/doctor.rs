//! What works on this node and what does not, with or without the daemon.

use std::path::Path;

use sage_protocol::quic::read_tls;

use super::report::DoctorReport;
use crate::{
    config::Config,
    kernel::{
        self, CapabilityState, KernelOptions, chain,
        sample::{Capability, probe},
    },
    policy::loader::load_dir,
};

/// Looks at everything once. Blocks for some milliseconds.
pub fn examine(config: &Config, daemon: bool) -> DoctorReport {
    DoctorReport {
        node: config.node.to_string(),
        daemon,
        sources: probe(&config.kernel),
        knobs: knobs(config),
        surroundings: vec![certificates(config).needed(), directory(&config.state_dir).needed(), policy(config)],
    }
}

fn knobs(config: &Config) -> Vec<Capability> {
    let options =
        KernelOptions { cgroup_root: config.kernel.cgroup_root.clone(), proc_root: config.kernel.proc_root.clone() };
    let line = |found: kernel::Capability| match found.state {
        CapabilityState::Works => Capability::works(found.name, "can be set"),
        CapabilityState::Absent { why, how_to_enable } => Capability::missing(found.name, why, how_to_enable),
    };
    kernel::capabilities(&options).into_iter().map(line).collect()
}

fn certificates(config: &Config) -> Capability {
    const NAME: &str = "certificates";
    let files = &config.tls;
    match read_tls(&files.ca, &files.cert, &files.key) {
        Ok(tls) if tls.identity().name == config.node => {
            Capability::works(NAME, format!("{} of fleet {}", tls.identity().name, tls.identity().fleet))
        }
        Ok(tls) => Capability::missing(
            NAME,
            format!("the certificate is for node {}, this is {}", tls.identity().name, config.node),
            "set node in the configuration, or issue a certificate for this name",
        ),
        Err(error) => {
            Capability::missing(NAME, chain(&error), "sage-aggregator pki issue agent NODE --ca DIR --out DIR")
        }
    }
}

fn directory(path: &Path) -> Capability {
    const NAME: &str = "state directory";
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Capability::works(NAME, path.display().to_string()),
        Err(error) => Capability::missing(
            NAME,
            format!("{} cannot be written: {error}", existing.display()),
            "run as root, or set state_dir to a directory of this user",
        ),
    }
}

fn policy(config: &Config) -> Capability {
    const NAME: &str = "policy";
    let place = config.policy_dir.display();
    match load_dir(&config.policy_dir) {
        Ok(policy) if policy == crate::policy::Policy::default() => Capability::missing(
            NAME,
            format!("no rules in {place}: nothing may be changed here"),
            "write a file that names services, best-effort cgroups or links",
        ),
        Ok(_) => Capability::works(NAME, place.to_string()),
        Err(error) => Capability::missing(NAME, chain(&error), "mend the file; until then nothing may be changed"),
    }
}
