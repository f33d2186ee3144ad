//! The sockets that processes hold: `/proc/PID/fd` gives their inodes, `/proc/PID/net/{tcp,tcp6,udp,udp6}` what they
//! are connected to, in the process's own network namespace.
#![expect(clippy::disallowed_methods, reason = "driver: reads procfs")]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    io::Read,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::filter::{Flow, Transport};

/// The most descriptors looked at in one process: its usual limit on open files.
const FDS_MAX: usize = 65_536;
/// The most of a socket table that is read: some 400,000 sockets of 160 bytes.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// The sockets that the processes send through, at most `flows_max`, in a fixed order. A process that ends meanwhile,
/// or may not be looked into, has none.
pub(super) fn flows(proc_root: &Path, pids: &[u32], flows_max: usize) -> BTreeSet<Flow> {
    // Processes of one namespace share its tables.
    let mut namespaces: BTreeMap<PathBuf, (PathBuf, HashSet<u64>)> = BTreeMap::new();
    for pid in pids {
        let process = proc_root.join(pid.to_string());
        let Ok(namespace) = fs::read_link(process.join("ns/net")) else { continue };
        let (_, inodes) = namespaces.entry(namespace).or_insert_with(|| (process.join("net"), HashSet::new()));
        inodes.extend(socket_inodes(&process));
    }
    let mut found = BTreeSet::new();
    for (tables, inodes) in namespaces.values() {
        for (name, transport) in
            [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp), ("udp", Transport::Udp), ("udp6", Transport::Udp)]
        {
            let table = read(&tables.join(name));
            found.extend(table.lines().filter_map(|line| entry(line, transport, inodes)));
        }
    }
    found.into_iter().take(flows_max).collect()
}

fn socket_inodes(process: &Path) -> Vec<u64> {
    let Ok(fds) = fs::read_dir(process.join("fd")) else { return Vec::new() };
    fds.take(FDS_MAX)
        .filter_map(|fd| {
            let target = fs::read_link(fd.ok()?.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    // What is not text is no table; a partial one still names sockets.
    let _ = fs::File::open(path).and_then(|file| file.take(TABLE_BYTES_MAX).read_to_string(&mut text));
    text
}

/// One line of a socket table, if it is a socket of ours that sends.
fn entry(line: &str, transport: Transport, ours: &HashSet<u64>) -> Option<Flow> {
    const LISTENING: &str = "0A";
    let mut words = line.split_ascii_whitespace();
    let local = address(words.nth(1)?)?;
    let peer = address(words.next()?)?;
    let state = words.next()?;
    let inode: u64 = words.nth(5)?.parse().ok()?;
    if !ours.contains(&inode) || (transport == Transport::Tcp && state == LISTENING) {
        return None;
    }
    let is_unconnected = peer.port() == 0;
    if local.port() == 0 || (is_unconnected && transport == Transport::Tcp) {
        return None;
    }
    // An IPv6 socket may well talk IPv4, and then sends IPv4 packets.
    let is_v6 = if is_unconnected { local.is_ipv6() } else { peer.is_ipv6() };
    Some(Flow { transport, is_v6, port: local.port(), peer: (!is_unconnected).then_some(peer) })
}

/// `0100007F:1F90`: words of the address as the kernel holds them in memory, printed as numbers; then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0000000000000000 100 0 0 10 0
   1: 0100000A:9C40 0200000A:1451 01 00000000:00000000 02:000004A5 00000000     0        0 12 2 0000000000000000 20 4 30 10 -1
   2: 0100000A:9C41 0200000A:1451 01 00000000:00000000 02:000004A5 00000000     0        0 13 2 0000000000000000 20 4 30 10 -1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100000A:9C42 0000000000000000FFFF00000200000A:1451 01 00000000:00000000 00:00000000 00000000     0        0 14 1
   1: 000000FD000000000000000001000000:9C43 000000FD000000000000000002000000:1451 01 00000000:00000000 00:00000000 00000000     0        0 15 1
";
    const UDP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  99: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 16 2 0000000000000000 0
";

    fn fake_proc() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        let process = root.path().join("7");
        for dir in ["fd", "net", "ns"] {
            fs::create_dir_all(process.join(dir)).expect("mkdir");
        }
        symlink("net:[1]", process.join("ns/net")).expect("symlink");
        for (fd, target) in [
            ("0", "/dev/null"),
            ("3", "socket:[11]"),
            ("4", "socket:[12]"),
            ("5", "socket:[14]"),
            ("6", "socket:[15]"),
            ("7", "socket:[16]"),
        ] {
            symlink(target, process.join("fd").join(fd)).expect("symlink");
        }
        for (name, text) in [("tcp", TCP), ("tcp6", TCP6), ("udp", UDP)] {
            fs::write(process.join("net").join(name), text).expect("write");
        }
        root
    }

    #[test]
    fn the_sockets_that_a_process_sends_through_are_found() {
        let root = fake_proc();
        let found: Vec<_> = flows(root.path(), &[7, 8], 100)
            .into_iter()
            .map(|flow| (flow.transport, flow.is_v6, flow.port, flow.peer.map(|peer| peer.to_string())))
            .collect();
        let peer = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                (Transport::Tcp, false, 40_000, peer("10.0.0.2:5201")),
                (Transport::Tcp, false, 40_002, peer("10.0.0.2:5201")),
                (Transport::Tcp, true, 40_003, peer("[fd00::2]:5201")),
                (Transport::Udp, false, 68, None),
            ]
        );
        assert_eq!(flows(root.path(), &[7], 1).len(), 1);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in "[ 0-9A-F:]{0,200}", noise in "\\PC{0,40}") {
            let ours = HashSet::from([0]);
            for text in [&line, &noise] {
                let _ = (entry(text, Transport::Tcp, &ours), address(text));
            }
        }
    }
}
