//! Links and their root queueing disciplines, by rtnetlink.

use std::{io, path::Path};

use neli::consts::socket::NlFamily;
use sage_common::LinkName;

use super::{
    file::read_once,
    netlink::{DumpSocket, attribute, i32_at, u32_at, u64_at},
};
use crate::core::usage::{Link, Qdisc};

const RTM_GETLINK: u16 = 18;
const RTM_GETQDISC: u16 = 38;
const IFINFOMSG_LEN: usize = 16;
const TCMSG_LEN: usize = 20;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;
const IFF_LOOPBACK: u32 = 0x8;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
const TC_H_ROOT: u32 = u32::MAX;
/// Links measured at once: a host of a thousand containers has a veth for each; more say nothing about one node.
const LINKS_MAX: usize = 1_024;

/// Reader of links in the agent's own network namespace.
#[derive(Debug)]
pub struct LinkReader {
    socket: Option<DumpSocket>,
    wanted: Vec<LinkName>,
}

impl LinkReader {
    /// Measures the links in `wanted`; all but loopback when that is empty.
    pub const fn new(wanted: Vec<LinkName>) -> Self {
        Self { socket: None, wanted }
    }

    /// Reads both tables.
    ///
    /// # Errors
    ///
    /// What the kernel said; the next call starts with a new socket.
    pub fn read(&mut self) -> io::Result<(Vec<Link>, Vec<Qdisc>)> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => DumpSocket::open(NlFamily::Route)?,
        };
        let (mut links, mut qdiscs) = (Vec::new(), Vec::new());
        socket.dump(RTM_GETLINK, &[0; IFINFOMSG_LEN], |payload| {
            if links.len() < LINKS_MAX {
                links.extend(link(payload, &self.wanted));
            }
        })?;
        socket.dump(RTM_GETQDISC, &[0; TCMSG_LEN], |payload| {
            let found = root_qdisc(payload).filter(|qdisc| links.iter().any(|link| link.index == qdisc.link));
            qdiscs.extend(found);
        })?;
        self.socket = Some(socket);
        Ok((links, qdiscs))
    }
}

/// One `RTM_NEWLINK`, if it is a link to measure.
fn link(payload: &[u8], wanted: &[LinkName]) -> Option<Link> {
    let (index, flags) = (i32_at(payload, 4)?, u32_at(payload, 8)?);
    let rest = payload.get(IFINFOMSG_LEN..)?;
    let name = std::str::from_utf8(attribute(rest, IFLA_IFNAME)?).ok()?.trim_end_matches('\0');
    let is_wanted = match wanted {
        [] => flags & IFF_LOOPBACK == 0,
        names => names.iter().any(|wanted| wanted.as_str() == name),
    };
    let stats = attribute(rest, IFLA_STATS64).filter(|_| is_wanted)?;
    // rtnl_link_stats64: packets in and out, bytes in and out, errors in and out, dropped in and out.
    let [received, sent, dropped_in, dropped_out] = [16, 24, 48, 56].map(|offset| u64_at(stats, offset));
    let drops = dropped_in?.saturating_add(dropped_out?);
    Some(Link { index, name: name.to_owned(), received: received?, sent: sent?, drops })
}

/// One `RTM_NEWQDISC`, if it is a root. A classful root counts what its classes drop and hold, so the roots are enough.
fn root_qdisc(payload: &[u8]) -> Option<Qdisc> {
    let (link, handle, parent) = (i32_at(payload, 4)?, u32_at(payload, 8)?, u32_at(payload, 12)?);
    let stats = attribute(payload.get(TCMSG_LEN..)?, TCA_STATS2).filter(|_| parent == TC_H_ROOT)?;
    // gnet_stats_queue: qlen, backlog, drops, requeues, overlimits.
    let queue = attribute(stats, TCA_STATS_QUEUE)?;
    Some(Qdisc { link, handle, backlog: u64::from(u32_at(queue, 4)?), drops: u64::from(u32_at(queue, 8)?) })
}

/// What the driver says a link can carry, bits per second; virtual links do not say.
pub fn speed_bits(link: &LinkName) -> Option<u64> {
    let path = Path::new("/sys/class/net").join(link.as_str()).join("speed");
    let mbit = read_once(&path, &mut Vec::new()).and_then(super::text::number).filter(|mbit| *mbit > 0)?;
    Some(mbit.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::{super::netlink::build, *};

    fn newlink(name: &str, flags: u32) -> Vec<u8> {
        let numbers: Vec<u8> = (0..24_u64).flat_map(|n| (n * 100).to_ne_bytes()).collect();
        let mut bytes = vec![0; 4];
        bytes.extend(2_i32.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(build::attribute(IFLA_IFNAME, format!("{name}\0").as_bytes()));
        bytes.extend(build::attribute(IFLA_STATS64, &numbers));
        bytes
    }

    fn newqdisc(parent: u32) -> Vec<u8> {
        let queue: Vec<u8> = [3_u32, 4_500, 7, 0, 1].into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = vec![0; 4];
        for field in [2_u32, 0x8001_0000, parent, 0] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(build::attribute(TCA_STATS2, &build::attribute(TCA_STATS_QUEUE, &queue)));
        bytes
    }

    #[test]
    fn a_link_message_gives_bytes_and_drops() {
        let expected = Link { index: 2, name: "eth0".into(), received: 200, sent: 300, drops: 600 + 700 };
        assert_eq!(link(&newlink("eth0", 1), &[]), Some(expected));
    }

    #[test]
    fn loopback_is_measured_only_when_it_is_named() {
        let lo = newlink("lo", IFF_LOOPBACK);
        let named = [LinkName::try_from("lo".to_owned()).expect("valid")];
        assert_eq!(link(&lo, &[]), None);
        assert!(link(&lo, &named).is_some());
        assert_eq!(link(&newlink("eth0", 1), &named), None);
    }

    #[test]
    fn only_root_disciplines_count() {
        let expected = Qdisc { link: 2, handle: 0x8001_0000, drops: 7, backlog: 4_500 };
        assert_eq!(root_qdisc(&newqdisc(TC_H_ROOT)), Some(expected));
        assert_eq!(root_qdisc(&newqdisc(0x8001_0001)), None);
    }

    #[test]
    fn truncated_messages_are_no_links() {
        let (whole, qdisc) = (newlink("eth0", 1), newqdisc(TC_H_ROOT));
        assert!((0..whole.len()).all(|len| link(&whole[..len], &[]).is_none()));
        assert!((0..qdisc.len()).all(|len| root_qdisc(&qdisc[..len]).is_none()));
    }

    #[test]
    fn the_kernels_own_answer_is_understood() {
        let lo = LinkName::try_from("lo".to_owned()).expect("valid");
        let mut reader = LinkReader::new(vec![lo]);
        let (links, _) = reader.read().expect("any user may ask");
        assert_eq!(links.len(), 1);
        let (again, _) = reader.read().expect("on the same socket");
        assert!(again[0].received >= links[0].received);
    }
}
