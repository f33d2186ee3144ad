//! How packets of a held-back cgroup are recognised: keys of the u32 classifier.
//!
//! Every key list begins with the IP version, because our filters see all protocols. Version 4 packets with IP options
//! (never seen in a data centre) and fragments after the first are not recognised, and so not held back.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use crate::policy::EgressSettings;

/// Compares the 32 bits at `offset` from the IP header, under `mask`, with `value`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub offset: i32,
    pub mask: u32,
    pub value: u32,
}

/// A transport with ports.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// A socket that sends: its own port, and whom it talks to, if to one peer only.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Flow {
    pub transport: Transport,
    pub is_v6: bool,
    pub port: u16,
    pub peer: Option<SocketAddr>,
}

impl Transport {
    const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    const fn number(self) -> u32 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// The filters that declared marks amount to.
pub(super) fn declared(marks: &EgressSettings) -> BTreeSet<Vec<Key>> {
    let mut filters = BTreeSet::new();
    for is_v6 in [false, true] {
        for transport in Transport::ALL {
            let ports = |source: u16, destination: u16, mask: u32| {
                let mut keys = transport_keys(transport, is_v6);
                keys.push(ports_key(is_v6, source, destination, mask));
                keys
            };
            filters.extend(marks.dst_ports.iter().map(|port| ports(0, *port, 0x0000_ffff)));
            filters.extend(marks.src_ports.iter().map(|port| ports(*port, 0, 0xffff_0000)));
        }
        filters.extend(marks.dscp.iter().map(|dscp| vec![dscp_key(is_v6, *dscp)]));
    }
    filters
}

/// The filter of one socket's packets.
pub(super) fn flow(flow: &Flow) -> Vec<Key> {
    let mut keys = transport_keys(flow.transport, flow.is_v6);
    match flow.peer {
        None => keys.push(ports_key(flow.is_v6, flow.port, 0, 0xffff_0000)),
        Some(peer) => {
            keys.push(ports_key(flow.is_v6, flow.port, peer.port(), 0xffff_ffff));
            match peer.ip() {
                IpAddr::V4(ip) => keys.push(Key { offset: 16, mask: u32::MAX, value: ip.to_bits() }),
                IpAddr::V6(ip) => {
                    let words = (0..4).map(|word| (ip.to_bits() >> (96 - 32 * word)) as u32);
                    let offsets = (24..).step_by(4);
                    keys.extend(offsets.zip(words).map(|(offset, value)| Key { offset, mask: u32::MAX, value }));
                }
            }
        }
    }
    keys
}

/// IP version (and, in version 4, no options and no fragment offset), and the transport.
fn transport_keys(transport: Transport, is_v6: bool) -> Vec<Key> {
    if is_v6 {
        return vec![
            Key { offset: 0, mask: 0xf000_0000, value: 0x6000_0000 },
            Key { offset: 4, mask: 0x0000_ff00, value: transport.number() << 8 },
        ];
    }
    vec![
        Key { offset: 0, mask: 0xff00_0000, value: 0x4500_0000 },
        Key { offset: 4, mask: 0x0000_1fff, value: 0 },
        Key { offset: 8, mask: 0x00ff_0000, value: transport.number() << 16 },
    ]
}

fn ports_key(is_v6: bool, source: u16, destination: u16, mask: u32) -> Key {
    let offset = if is_v6 { 40 } else { 20 };
    Key { offset, mask, value: (u32::from(source) << 16) | u32::from(destination) }
}

fn dscp_key(is_v6: bool, dscp: u8) -> Key {
    let dscp = u32::from(dscp);
    if is_v6 {
        Key { offset: 0, mask: 0xffc0_0000, value: 0x6000_0000 | (dscp << 22) }
    } else {
        Key { offset: 0, mask: 0xf0fc_0000, value: 0x4000_0000 | (dscp << 18) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the classifier does with a packet.
    fn matches(keys: &[Key], packet: &[u8]) -> bool {
        keys.iter().all(|key| {
            let at = usize::try_from(key.offset).expect("offsets are positive");
            let word = packet.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")));
            word.is_some_and(|word| word & key.mask == key.value)
        })
    }

    /// An IPv4 TCP packet, or an IPv6 UDP packet, with a DSCP of 10.
    fn packet(is_v6: bool, source: u16, destination: u16, peer: &IpAddr) -> Vec<u8> {
        let mut packet = if is_v6 {
            let mut header = vec![0x62, 0x80, 0, 0, 0, 20, 17, 64];
            header.extend([1; 16]);
            header
        } else {
            vec![0x45, 0x28, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1]
        };
        match peer {
            IpAddr::V4(ip) => packet.extend(ip.octets()),
            IpAddr::V6(ip) => packet.extend(ip.octets()),
        }
        packet.extend(source.to_be_bytes());
        packet.extend(destination.to_be_bytes());
        packet.extend([0; 16]);
        packet
    }

    #[test]
    fn declared_ports_and_code_points_match_in_both_versions_and_nothing_else_does() {
        let marks = EgressSettings { dst_ports: vec![5201], src_ports: vec![873], dscp: vec![] };
        let filters = declared(&marks);
        assert_eq!(filters.len(), 2 * 2 * 2);
        let any = |packet: &[u8]| filters.iter().any(|keys| matches(keys, packet));
        for (is_v6, peer) in [(false, "10.0.0.2"), (true, "fd00::2")] {
            let peer = peer.parse().expect("address");
            assert!(any(&packet(is_v6, 40_000, 5201, &peer)));
            assert!(any(&packet(is_v6, 873, 40_000, &peer)));
            assert!(!any(&packet(is_v6, 5201, 40_000, &peer)));
            assert!(!any(&packet(is_v6, 40_000, 873, &peer)));

            let by_code_point = declared(&EgressSettings { dscp: vec![10], ..EgressSettings::default() });
            assert!(by_code_point.iter().any(|keys| matches(keys, &packet(is_v6, 1, 2, &peer))));
            let other = declared(&EgressSettings { dscp: vec![11], ..EgressSettings::default() });
            assert!(!other.iter().any(|keys| matches(keys, &packet(is_v6, 1, 2, &peer))));
        }
        // A later fragment has no ports where they would be.
        let mut fragment = packet(false, 40_000, 5201, &"10.0.0.2".parse().expect("address"));
        fragment[7] = 1;
        assert!(!any(&fragment));
    }

    #[test]
    fn a_socket_matches_its_own_packets_only() {
        let v4 = Flow {
            transport: Transport::Tcp,
            is_v6: false,
            port: 40_000,
            peer: Some("10.0.0.2:5201".parse().expect("address")),
        };
        let keys = flow(&v4);
        assert!(matches(&keys, &packet(false, 40_000, 5201, &"10.0.0.2".parse().expect("address"))));
        for (source, destination, peer) in
            [(40_001, 5201, "10.0.0.2"), (40_000, 5202, "10.0.0.2"), (40_000, 5201, "10.0.0.3")]
        {
            assert!(!matches(&keys, &packet(false, source, destination, &peer.parse().expect("address"))));
        }

        let peer = Some("[fd00::2]:53".parse().expect("address"));
        let v6 = Flow { transport: Transport::Udp, is_v6: true, port: 9, peer };
        assert!(matches(&flow(&v6), &packet(true, 9, 53, &"fd00::2".parse().expect("address"))));
        assert!(!matches(&flow(&v6), &packet(true, 9, 53, &"fd00::3".parse().expect("address"))));
        let unconnected = Flow { peer: None, ..v6 };
        assert!(matches(&flow(&unconnected), &packet(true, 9, 7, &"fd00::3".parse().expect("address"))));
    }
}
