//! Bytes of rtnetlink: attributes and the structures that traffic control puts inside `TCA_OPTIONS`. All in the
//! machine's byte order, unless a field says otherwise.
//!
//! Layouts: `include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h`.

/// Bytes of one message under construction.
#[derive(Clone, Debug, Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn i32(mut self, value: i32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// In network byte order.
    pub fn be32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// One attribute: length, type, payload, and padding to four bytes.
    pub fn attribute(self, kind: u16, payload: Self) -> Self {
        let len = u16::try_from(payload.0.len() + ATTRIBUTE_HEADER).unwrap_or(u16::MAX);
        let padding = payload.0.len().next_multiple_of(4) - payload.0.len();
        let mut bytes = self.u16(len).u16(kind);
        bytes.0.extend(payload.0);
        bytes.bytes(&[0; 3][..padding])
    }

    /// A text attribute, with its terminating zero.
    pub fn text(self, kind: u16, text: &str) -> Self {
        self.attribute(kind, Self::default().bytes(text.as_bytes()).u8(0))
    }

    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

const ATTRIBUTE_HEADER: usize = 4;
/// The upper two bits of an attribute's type are flags (nested, network byte order).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// The attributes in `bytes`, up to the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & ATTRIBUTE_TYPE;
        let payload = bytes.get(ATTRIBUTE_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of this type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
}

/// A text attribute's payload, without its terminating zero.
pub(super) fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn be32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let bytes = Bytes::default().text(1, "htb").attribute(2 | 0x8000, Bytes::default().u8(7)).into_vec();
        assert_eq!(bytes.len(), 8 + 8);
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(1, &b"htb\0"[..]), (2, &[7][..])]);
        assert_eq!(text(found[0].1), "htb");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_run_on(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            // Each attribute takes at least four bytes.
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
