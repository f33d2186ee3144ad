//! Facts about the machine that change rarely, by sysinfo; never on the hot path.

use serde::{Deserialize, Serialize};
use sysinfo::{Disks, System};

/// What kind of machine this is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct HostFacts {
    /// Host name.
    pub name: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Processors.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Mounted file systems: mount point, bytes in all, bytes free.
    pub disks: Vec<(String, u64, u64)>,
}

impl HostFacts {
    /// Looks once.
    pub fn read() -> Self {
        /// Mounts listed: a person reads them.
        const DISKS_MAX: usize = 16;
        let memory_bytes = System::new().map_or(0, |mut system| {
            system.refresh_memory();
            system.total_memory()
        });
        let disk = |disk: &sysinfo::Disk| {
            (disk.mount_point().to_string_lossy().into_owned(), disk.total_space(), disk.available_space())
        };
        Self {
            name: System::host_name().ok(),
            kernel: System::kernel_version().ok(),
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_bytes,
            disks: Disks::new_with_refreshed_list()
                .map(|disks| disks.iter().take(DISKS_MAX).map(disk).collect())
                .unwrap_or_default(),
        }
    }
}

/// What this process uses, for `status`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SelfUse {
    /// Processor time used so far, seconds.
    pub cpu_s: f64,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
}

impl SelfUse {
    /// Looks once; `None` without procfs.
    pub fn read() -> Option<Self> {
        let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
        let cpu_s = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        Some(Self { cpu_s, memory_bytes: stat.rss.saturating_mul(procfs::page_size()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_memory_and_processors_and_this_process_uses_some() {
        let facts = HostFacts::read();
        assert!(facts.memory_bytes > 1 << 20 && facts.cpus > 0);
        assert!(SelfUse::read().is_some_and(|own| own.memory_bytes > 100_000));
    }
}
