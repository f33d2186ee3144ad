//! A routing netlink socket: one request, its answers, and errors with the kernel's own words.
//!
//! The kernel answers within the call that asks, so the socket never waits: no answer is an error, not a hang.

use std::{cell::Cell, fmt, io, io::Cursor};

use neli::{
    ToBytes,
    consts::{
        nl::{NlmF, Nlmsg},
        rtnl::Rtm,
        socket::{Msg, NlFamily},
    },
    nl::{NlPayload, NlmsghdrBuilder},
    socket::NlSocket,
    types::Buffer,
    utils::Groups,
};

use super::wire::{Bytes, attribute, i32_at, text, u16_at, u32_at};

/// A routing socket. It belongs to the network namespace of the thread that opened it, wherever it is used later.
pub(super) struct RouteSocket {
    socket: NlSocket,
    sequence: Cell<u32>,
}

impl fmt::Debug for RouteSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteSocket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// Why the kernel refused a request.
#[derive(Debug)]
pub(super) struct Refused {
    pub source: io::Error,
    pub message: Option<String>,
}

impl Refused {
    /// Whether the kernel gave this error number.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

impl From<io::Error> for Refused {
    fn from(source: io::Error) -> Self {
        Self { source, message: None }
    }
}

/// The kernel builds answers of at most 32 KiB; a longer one would be cut.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The most answers read for one request: at 32 KiB each, all the filters of thousands of links.
const ANSWERS_MAX: usize = 4_096;
const HEADER_LEN: usize = 16;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_MESSAGE: u16 = 1;

enum Message<'a> {
    Done,
    Error { errno: i32, message: Option<String> },
    Payload(&'a [u8]),
}

impl RouteSocket {
    /// A socket in the network namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let socket = NlSocket::connect(NlFamily::Route, None, Groups::empty())?;
        socket.nonblock()?;
        // Older kernels have no words with their error numbers; that is no reason to stop.
        let _ = socket.enable_ext_ack(true);
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// Asks for something to be done; `flags` besides request and acknowledgement.
    pub fn change(&self, kind: Rtm, flags: NlmF, payload: Bytes) -> Result<(), Refused> {
        self.ask(kind, flags | NlmF::ACK, payload).map(drop)
    }

    /// Asks for one object. The payload of the answer, after the netlink header.
    pub fn get(&self, kind: Rtm, payload: Bytes) -> Result<Option<Vec<u8>>, Refused> {
        self.ask(kind, NlmF::ACK, payload).map(|answers| answers.into_iter().next())
    }

    /// Asks for every object of a kind. The payloads of the answers.
    pub fn dump(&self, kind: Rtm, payload: Bytes) -> Result<Vec<Vec<u8>>, Refused> {
        self.ask(kind, NlmF::DUMP, payload)
    }

    fn ask(&self, kind: Rtm, flags: NlmF, payload: Bytes) -> Result<Vec<Vec<u8>>, Refused> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        self.socket.send(request(kind, flags | NlmF::REQUEST, sequence, payload)?, Msg::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        for _ in 0..ANSWERS_MAX {
            let (len, _) = self.socket.recv(&mut buffer, Msg::empty())?;
            for (found, message) in messages(&buffer[..len]) {
                match message {
                    // Left over from a request that was given up.
                    _ if found != sequence => {}
                    Message::Done | Message::Error { errno: 0, .. } => return Ok(answers),
                    Message::Error { errno, message } => {
                        return Err(Refused { source: io::Error::from_raw_os_error(errno), message });
                    }
                    Message::Payload(payload) => answers.push(payload.to_vec()),
                }
            }
        }
        Err(io::Error::other("the kernel's answer has no end").into())
    }
}

fn request(kind: Rtm, flags: NlmF, sequence: u32, payload: Bytes) -> io::Result<Vec<u8>> {
    let message = NlmsghdrBuilder::default()
        .nl_type(kind)
        .nl_flags(flags)
        .nl_seq(sequence)
        .nl_payload(NlPayload::Payload(Buffer::from(payload.into_vec())))
        .build()
        .map_err(io::Error::other)?;
    let mut bytes = Cursor::new(Vec::new());
    message.to_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.into_inner())
}

/// The messages in one datagram, each with its sequence number, up to the first that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u32, Message<'_>)> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let (kind, flags, sequence) = (u16_at(bytes, 4)?, u16_at(bytes, 6)?, u32_at(bytes, 8)?);
        let payload = bytes.get(HEADER_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        let message = match Nlmsg::from(kind) {
            // A dump that fails says so in its end.
            Nlmsg::Done => match i32_at(payload, 0) {
                Some(errno) if errno < 0 => Message::Error { errno: -errno, message: None },
                _ => Message::Done,
            },
            Nlmsg::Error => error(payload, flags)?,
            _ => Message::Payload(payload),
        };
        Some((sequence, message))
    })
}

/// An error number, the request it answers, and perhaps attributes with words.
fn error(payload: &[u8], flags: u16) -> Option<Message<'_>> {
    let errno = i32_at(payload, 0)?.checked_neg()?;
    let request_len =
        if flags & NlmF::CAPPED.bits() != 0 { HEADER_LEN } else { usize::try_from(u32_at(payload, 4)?).ok()? };
    let words = payload.get(4 + request_len.next_multiple_of(4)..).filter(|_| flags & NlmF::ACK_TLVS.bits() != 0);
    let message = words.and_then(|words| attribute(words, ERROR_MESSAGE)).map(text);
    Some(Message::Error { errno, message })
}

/// The interface index of a link by name, or `None` if there is no such link in the socket's namespace.
pub(super) fn link_index(socket: &RouteSocket, name: &str) -> Result<Option<i32>, Refused> {
    /// `IFLA_IFNAME`.
    const NAME: u16 = 3;
    // struct ifinfomsg: family, padding, type, index, flags, change mask.
    let header = Bytes::default().u8(0).u8(0).u16(0).i32(0).u32(0).u32(0);
    match socket.get(Rtm::Getlink, header.text(NAME, name)) {
        Ok(answer) => Ok(answer.and_then(|payload| i32_at(&payload, 4))),
        Err(refused) if refused.is(rustix::io::Errno::NODEV) => Ok(None),
        Err(refused) => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_comes_with_its_number_and_the_kernels_words() {
        let refused = Bytes::default().i32(-17).u32(20).u16(36).u16(0).u32(9).u32(0).u32(0xabcd);
        let payload = refused.text(ERROR_MESSAGE, "Exclusivity flag on").into_vec();
        let len = u32::try_from(payload.len() + HEADER_LEN).expect("small");
        let header = Bytes::default().u32(len).u16(2).u16(NlmF::ACK_TLVS.bits()).u32(9).u32(0);
        let datagram = header.bytes(&payload).into_vec();
        let found: Vec<_> = messages(&datagram).collect();
        let [(9, Message::Error { errno: 17, message: Some(text) })] = &found[..] else { panic!("{}", found.len()) };
        assert_eq!(text, "Exclusivity flag on");
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic_or_run_on(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER_LEN + 1);
        }
    }
}
