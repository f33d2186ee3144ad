//! The system boundary: everything this agent may change on its node, and why that may fail.

use std::{io, path::PathBuf};

use sage_common::{CgroupPath, Knob, KnobKind, LinkName, Setting};
use thiserror::Error;

use crate::{
    core::actuation::{Before, Failure, FailureKind},
    policy::EgressRules,
};

/// Everything this agent may change on its node. Nothing else writes to `/sys`, `/proc` or netlink.
pub trait KernelInterface {
    /// The setting in force on `knob` now.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if it cannot be read.
    fn read(&self, knob: &Knob) -> Result<Setting, KernelError>;

    /// Puts `setting` in force. Writing what is already in force changes nothing.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if the kernel does not take it.
    fn write(&mut self, knob: &Knob, setting: &Setting) -> Result<(), KernelError>;

    /// What `knob` holds, with the kernel's own text where [`Setting`] rounds it; the caller keeps it, to put it back.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if it cannot be read.
    fn capture(&self, knob: &Knob) -> Result<Before, KernelError> {
        self.read(knob).map(Before::from)
    }

    /// Puts back what was captured, and removes what only [`write`](Self::write) had made for it.
    ///
    /// # Errors
    ///
    /// [`KernelError`] if the kernel does not take it.
    fn restore(&mut self, knob: &Knob, before: &Before) -> Result<(), KernelError> {
        self.write(knob, &before.setting)
    }

    /// Whether this kernel has knobs of this kind.
    ///
    /// # Errors
    ///
    /// [`KernelError::Unavailable`] with the reason if it has not.
    fn supports(&self, kind: KnobKind) -> Result<(), KernelError>;

    /// Tells what only the operator knows about links and traffic.
    fn set_egress_rules(&mut self, _rules: &EgressRules) {}

    /// Brings what depends on the present state of processes (packet filters by socket) in step with it, for the knobs
    /// that are held. Called about once a second.
    ///
    /// # Errors
    ///
    /// The first [`KernelError`]; the other knobs are brought in step all the same.
    fn refresh(&mut self, _held: &[Knob]) -> Result<(), KernelError> {
        Ok(())
    }
}

/// Why a kernel knob could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The feature is off, not mounted, or not in this kernel.
    #[error("{feature} is not available on this node: {why}")]
    Unavailable {
        /// What is missing.
        feature: &'static str,
        /// Why, and how to enable it.
        why: String,
    },
    /// The file was there and the kernel said no.
    #[error("cannot {action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup is not there, or no longer.
    #[error("cgroup {cgroup} does not exist")]
    NoCgroup {
        /// Which one.
        cgroup: CgroupPath,
    },
    /// The link is not there, or no longer.
    #[error("link {link} does not exist")]
    NoLink {
        /// Which one.
        link: LinkName,
    },
    /// The kernel's text is not what we know.
    #[error("{path} holds {text:?}, want {want}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Its text, cut to 80 characters.
        text: String,
        /// What we know how to read.
        want: &'static str,
    },
    /// The cgroup is not in a state in which the knob means anything.
    #[error("{knob} cannot be set: {problem}")]
    State {
        /// The knob.
        knob: Knob,
        /// What is in the way, and what to do.
        problem: &'static str,
    },
    /// The setting does not belong to the knob.
    #[error("{setting} does not fit {knob}")]
    Misfit {
        /// The knob.
        knob: Knob,
        /// The setting.
        setting: Setting,
    },
    /// The kernel did not finish in time.
    #[error("{knob} did not take effect within {waited_ms} ms")]
    Slow {
        /// The knob.
        knob: Knob,
        /// How long we waited.
        waited_ms: u64,
    },
    /// The link has a root queueing discipline that we did not make; it is never replaced.
    #[error("{link} has a root qdisc {kind} {handle:x}: that is not ours, and is left alone")]
    Foreign {
        /// The link.
        link: LinkName,
        /// Its kind.
        kind: String,
        /// Its handle's major number.
        handle: u16,
    },
    /// A netlink request was refused.
    #[error("cannot {action} on {link}{}", .message.as_ref().map_or(String::new(), |text| format!(" ({text})")))]
    Netlink {
        /// What was attempted.
        action: &'static str,
        /// On what link.
        link: String,
        /// The kernel's own explanation, if it gave one.
        message: Option<String>,
        /// Its error number.
        source: io::Error,
    },
}

impl KernelError {
    /// Whether the same call may succeed later with nothing else changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::File { source, .. } | Self::Netlink { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::ResourceBusy | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
            ),
            Self::Slow { .. } => true,
            _ => false,
        }
    }

    /// Whether the thing itself is no more, so that there is nothing to give back.
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::NoCgroup { .. } | Self::NoLink { .. })
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        let kind = match &error {
            _ if error.is_gone() => FailureKind::Gone,
            KernelError::Foreign { .. } => FailureKind::Foreign,
            KernelError::Unavailable { .. } | KernelError::Misfit { .. } => FailureKind::Unsupported,
            _ => FailureKind::Other,
        };
        Self { kind, text: chain(&error) }
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
