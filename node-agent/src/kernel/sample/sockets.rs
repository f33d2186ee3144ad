//! TCP connections of instances: `tcp_info` by sock_diag, joined to processes through their socket inodes.
//!
//! Sees the agent's own network namespace. Connections of processes in another one are absent, not zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use neli::consts::socket::NlFamily;

use super::netlink::{DumpSocket, attribute, u32_at, u64_at};
use crate::core::usage::Connection;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
const TCP_ESTABLISHED: u32 = 1;
const DIAG_MSG_LEN: usize = 72;
/// Connections looked at per sweep: 16,384 take about 20 ms, more would eat the second.
const CONNECTIONS_MAX: usize = 16_384;
/// File descriptors looked at per scan for owners, about 1 µs each.
const FILES_MAX: usize = 32_768;
/// Sweeps between two scans for owners: connections live longer than that, or their round trip says little.
const SCAN_SWEEPS: u32 = 3;

/// One established connection and the inode of its socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Found {
    /// Socket inode, as `/proc/PID/fd` names it.
    pub inode: u64,
    /// What the kernel knows about it.
    pub connection: Connection,
}

/// Who owns which socket.
#[derive(Debug)]
pub struct SocketReader {
    socket: Option<DumpSocket>,
    proc_root: PathBuf,
    owners: BTreeMap<u64, u32>,
    seen: BTreeSet<u64>,
    scanned: BTreeMap<u32, bool>,
    until_scan: u32,
}

impl SocketReader {
    /// Reads processes below `proc_root`.
    pub const fn new(proc_root: PathBuf) -> Self {
        Self {
            socket: None,
            proc_root,
            owners: BTreeMap::new(),
            seen: BTreeSet::new(),
            scanned: BTreeMap::new(),
            until_scan: 0,
        }
    }

    /// The connections of each of `pids`. A process that could not be looked into is not in the answer.
    ///
    /// # Errors
    ///
    /// What the kernel said to the dump; the next call starts with a new socket.
    pub fn read(&mut self, pids: &BTreeSet<u32>) -> io::Result<BTreeMap<u32, Vec<Connection>>> {
        let found = self.dump()?;
        let now: BTreeSet<u64> = found.iter().map(|found| found.inode).collect();
        self.owners.retain(|inode, _| now.contains(inode));
        self.until_scan = self.until_scan.saturating_sub(1);
        // Sockets of strangers stay without owner; only new ones are worth a scan.
        let is_new = !now.is_subset(&self.seen) || pids.iter().any(|pid| !self.scanned.contains_key(pid));
        if is_new && self.until_scan == 0 {
            self.scan(pids);
            self.seen = now;
            self.until_scan = SCAN_SWEEPS;
        }
        let readable = pids.iter().filter(|pid| self.scanned.get(pid) == Some(&true));
        let mut by_pid: BTreeMap<u32, Vec<Connection>> = readable.map(|pid| (*pid, Vec::new())).collect();
        for found in found {
            let owned = self.owners.get(&found.inode).and_then(|pid| by_pid.get_mut(pid));
            if let Some(connections) = owned {
                connections.push(found.connection);
            }
        }
        Ok(by_pid)
    }

    fn dump(&mut self) -> io::Result<Vec<Found>> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => DumpSocket::open(NlFamily::SockOrInetDiag)?,
        };
        let mut all = Vec::new();
        for family in [AF_INET, AF_INET6] {
            socket.dump(SOCK_DIAG_BY_FAMILY, &request(family), |payload| {
                if all.len() < CONNECTIONS_MAX {
                    all.extend(parse(payload));
                }
            })?;
        }
        self.socket = Some(socket);
        Ok(all)
    }

    /// Looks through the open files of every process for sockets.
    fn scan(&mut self, pids: &BTreeSet<u32>) {
        self.scanned.clear();
        self.owners.clear();
        let own_net = std::fs::read_link(self.proc_root.join("self/ns/net")).ok();
        let mut budget = FILES_MAX;
        for pid in pids {
            let process = self.proc_root.join(pid.to_string());
            let is_here = own_net.is_some() && std::fs::read_link(process.join("ns/net")).ok() == own_net;
            let inodes = is_here.then(|| socket_inodes(&process, &mut budget)).flatten();
            // Who has ended since the list of processes was read has no connections: known, not unreadable.
            self.scanned.insert(*pid, inodes.is_some() || !process.exists());
            self.owners.extend(inodes.into_iter().flatten().map(|inode| (inode, *pid)));
        }
    }
}

/// The inodes of a process's sockets; `None` when it may not be looked into, is gone, or `budget` has run out.
fn socket_inodes(process: &Path, budget: &mut usize) -> Option<Vec<u64>> {
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(process.join("fd")).ok()? {
        *budget = budget.checked_sub(1)?;
        let target = entry.ok().and_then(|entry| std::fs::read_link(entry.path()).ok());
        inodes.extend(target.as_deref().and_then(Path::to_str).and_then(socket_inode));
    }
    Some(inodes)
}

/// `socket:[4711]`.
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// `inet_diag_req_v2`: family, protocol, extensions, padding, states, an empty address.
fn request(family: u8) -> [u8; 56] {
    let mut bytes = [0; 56];
    bytes[..3].copy_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1)]);
    bytes[4..8].copy_from_slice(&(1_u32 << TCP_ESTABLISHED).to_ne_bytes());
    bytes
}

/// One `inet_diag_msg` with its `tcp_info`. Older kernels send a shorter `tcp_info`; what is needed must be in it.
fn parse(payload: &[u8]) -> Option<Found> {
    let cookie = u64_at(payload, 44)?;
    let inode = u64::from(u32_at(payload, 68)?);
    let info = attribute(payload.get(DIAG_MSG_LEN..)?, INET_DIAG_INFO)?;
    let connection = Connection {
        cookie,
        srtt_us: u32_at(info, 68)?,
        retransmits: u32_at(info, 100)?,
        segments_out: u32_at(info, 156).or_else(|| u32_at(info, 136))?,
    };
    (inode != 0).then_some(Found { inode, connection })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::{super::netlink::build, *};

    fn message(info_len: usize) -> Vec<u8> {
        let mut info = vec![0; info_len];
        for (offset, value) in [(68, 1_500_u32), (100, 3), (136, 40), (156, 9)] {
            if let Some(slot) = info.get_mut(offset..offset + 4) {
                slot.copy_from_slice(&value.to_ne_bytes());
            }
        }
        let mut bytes = vec![0; DIAG_MSG_LEN];
        bytes[44..52].copy_from_slice(&77_u64.to_ne_bytes());
        bytes[68..72].copy_from_slice(&4_711_u32.to_ne_bytes());
        bytes.extend(build::attribute(INET_DIAG_INFO, &info));
        bytes
    }

    #[test]
    fn a_message_gives_round_trip_retransmits_and_owner() {
        let connection = Connection { cookie: 77, srtt_us: 1_500, retransmits: 3, segments_out: 9 };
        assert_eq!(parse(&message(232)), Some(Found { inode: 4_711, connection }));
        let older = parse(&message(144)).expect("before data_segs_out");
        assert_eq!(older.connection.segments_out, 40);
    }

    #[test]
    fn truncated_messages_are_no_connections() {
        let whole = message(232);
        assert!((0..whole.len()).all(|len| parse(&whole[..len]).is_none()));
    }

    #[test]
    fn only_sockets_are_sockets() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4_711));
        assert_eq!(socket_inode("pipe:[4711]"), None);
    }

    #[test]
    fn a_connection_of_this_process_is_found_with_its_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let (mut server, _) = listener.accept().expect("connected");
        client.write_all(b"x").expect("open");
        server.read_exact(&mut [0]).expect("open");

        let pid = std::process::id();
        let mut reader = SocketReader::new("/proc".into());
        let found = reader.read(&BTreeSet::from([pid])).expect("any user may ask");
        let connections = &found[&pid];
        assert!(connections.len() >= 2, "both ends are ours: {connections:?}");
        assert!(connections.iter().any(|connection| connection.srtt_us > 0 && connection.segments_out > 0));
    }
}
