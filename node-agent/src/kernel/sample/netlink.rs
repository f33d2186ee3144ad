//! Netlink dumps: the socket is neli's, the bytes are walked here, and every length is checked.

use std::io;

use neli::{
    consts::socket::{Msg, NlFamily},
    socket::NlSocket,
    utils::Groups,
};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_LEN: usize = 16;
/// The kernel fills at most 32 KiB per read of a dump.
const BUFFER_LEN: usize = 64 << 10;
/// Reads per dump: 4,096 of them are 100 MB of answers, more than any table we ask for.
const READS_MAX: usize = 4_096;

/// A socket that asks for whole tables.
pub struct DumpSocket {
    socket: NlSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for DumpSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DumpSocket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl DumpSocket {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// What the kernel said: no such family, or not allowed.
    pub fn open(family: NlFamily) -> io::Result<Self> {
        let socket = NlSocket::connect(family, None, Groups::empty())?;
        // A dump's next part is ready when the one before has been read, so waiting could only mean a lost answer.
        socket.nonblock()?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_LEN] })
    }

    /// Asks for the table `kind` and hands each entry to `each`.
    ///
    /// # Errors
    ///
    /// The kernel's errno, or `InvalidData` for an answer without end. The socket may hold a rest and is to be opened
    /// anew.
    pub fn dump(&mut self, kind: u16, payload: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(request(kind, self.sequence, payload), Msg::empty())?;
        for _ in 0..READS_MAX {
            let (count, _) = self.socket.recv(&mut self.buffer, Msg::empty())?;
            let ours = messages(&self.buffer[..count]).filter(|message| message.sequence == self.sequence);
            for message in ours {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return Err(errno(message.payload)),
                    _ => each(message.payload),
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink dump does not end"))
    }
}

fn request(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let len = (HEADER_LEN + payload.len()) as u32;
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes()); // the kernel
    bytes.extend(payload);
    bytes
}

fn errno(payload: &[u8]) -> io::Error {
    match i32_at(payload, 0) {
        Some(code) if code < 0 => io::Error::from_raw_os_error(code.saturating_neg()),
        _ => io::Error::new(io::ErrorKind::InvalidData, "a netlink error without a number"),
    }
}

/// One message of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages in `bytes`, up to the first whose length does not fit.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(bytes, 0)? as usize;
        let payload = bytes.get(HEADER_LEN..len)?;
        let message = Message { kind: u16_at(bytes, 4)?, sequence: u32_at(bytes, 8)?, payload };
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes` as (type, payload), up to the first whose length does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// The two highest bits say "nested" and "network byte order".
    const TYPE_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let attribute = (u16_at(bytes, 2)? & TYPE_MASK, bytes.get(4..len)?);
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The payload of the first attribute of this type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(own, _)| *own == kind).map(|(_, payload)| payload)
}

const fn aligned(len: usize) -> usize {
    (len + 3) & !3
}

/// Two bytes at `offset`, host order.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Four bytes at `offset`, host order.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Four signed bytes at `offset`, host order.
pub fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Eight bytes at `offset`, host order.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
pub(super) mod build {
    //! Bytes as the kernel would send them.

    use super::aligned;

    /// One attribute, padded.
    pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let len = 4 + payload.len();
        let mut bytes = [(len as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(payload);
        bytes.resize(aligned(len), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_and_attributes_are_walked_by_their_lengths() {
        let body = [build::attribute(3, b"eth0\0"), build::attribute(0x8000 | 7, &[1, 2])].concat();
        let bytes = [request(16, 5, &body), request(3, 5, &[])].concat();
        let found: Vec<_> = messages(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].sequence), (16, 5));
        assert_eq!(attribute(found[0].payload, 3), Some(&b"eth0\0"[..]));
        assert_eq!(attribute(found[0].payload, 7), Some(&[1, 2][..]));
        assert_eq!(attribute(found[0].payload, 9), None);
    }

    #[test]
    fn lengths_that_lie_end_the_walk() {
        assert_eq!(messages(&[8, 0, 0, 0, 1, 0, 0, 0]).count(), 0, "shorter than its header");
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0, "an attribute of no length would never end");
        assert_eq!(attributes(&[200, 0, 1, 0, 1]).count(), 0, "longer than what is there");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_walk_panic_or_run_on(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER_LEN);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }

    #[test]
    fn the_kernel_answers_a_dump_of_links_with_loopback_among_them() {
        const RTM_GETLINK: u16 = 18;
        let mut socket = DumpSocket::open(NlFamily::Route).expect("any user may ask");
        let mut links = Vec::new();
        socket.dump(RTM_GETLINK, &[0; 16], |payload| links.push(payload.to_vec())).expect("links are no secret");
        let is_lo = |payload: &Vec<u8>| payload.get(16..).and_then(|rest| attribute(rest, 3)) == Some(&b"lo\0"[..]);
        assert!(links.iter().any(is_lo));
    }
}
