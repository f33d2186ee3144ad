//! The primitives of the protobuf encoding, read in place.

use super::{Fault, ParseError};

/// How a field's value is encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

/// The key of one field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Field {
    pub number: u32,
    pub wire: WireType,
}

/// A position inside one message of a request. Positions in errors count from the start of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8], // the request up to the end of this message
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next field, or `None` at the end of the message.
    pub fn field(&mut self) -> Result<Option<Field>, ParseError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let start = self.at;
        let fail = |fault| Err(ParseError { fault, at: start });
        let Ok(key) = u32::try_from(self.varint()?) else { return fail(Fault::FieldNumber) };
        let (number, wire) = (key >> 3, key & 7);
        if number == 0 {
            return fail(Fault::FieldNumber);
        }
        let wire = match wire {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Bytes,
            5 => WireType::Fixed32,
            3 | 4 => return fail(Fault::Group),
            found => return fail(Fault::WireType { field: number, found: found as u8 }),
        };
        Ok(Some(Field { number, wire }))
    }

    /// The varint that `field` must hold.
    pub fn varint_of(&mut self, field: Field) -> Result<u64, ParseError> {
        self.expect(field, WireType::Varint)?;
        self.varint()
    }

    /// The fixed 64-bit number that `field` must hold.
    pub fn fixed64_of(&mut self, field: Field) -> Result<u64, ParseError> {
        self.expect(field, WireType::Fixed64)?;
        let mut number = [0; 8];
        number.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(number))
    }

    /// The bytes that `field` must hold.
    pub fn bytes_of(&mut self, field: Field) -> Result<&'a [u8], ParseError> {
        self.expect(field, WireType::Bytes)?;
        self.counted()
    }

    /// The text that `field` must hold.
    pub fn text_of(&mut self, field: Field) -> Result<&'a str, ParseError> {
        let at = self.at;
        let bytes = self.bytes_of(field)?;
        std::str::from_utf8(bytes).map_err(|error| {
            let start = self.at - bytes.len();
            ParseError { fault: Fault::Utf8, at: (start + error.valid_up_to()).max(at) }
        })
    }

    /// The message that `field` must hold.
    pub fn message_of(&mut self, field: Field) -> Result<Self, ParseError> {
        let length = self.bytes_of(field)?.len();
        Ok(Self { bytes: &self.bytes[..self.at], at: self.at - length })
    }

    /// Steps over the value of `field`.
    pub fn skip(&mut self, field: Field) -> Result<(), ParseError> {
        match field.wire {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.take(8).map(drop),
            WireType::Bytes => self.counted().map(drop),
            WireType::Fixed32 => self.take(4).map(drop),
        }
    }

    fn expect(&self, field: Field, wire: WireType) -> Result<(), ParseError> {
        if field.wire == wire {
            return Ok(());
        }
        let fault = Fault::WireType { field: field.number, found: field.wire as u8 };
        Err(ParseError { fault, at: self.at })
    }

    fn varint(&mut self) -> Result<u64, ParseError> {
        let start = self.at;
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(ParseError { fault: Fault::Truncated, at: self.bytes.len() })?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ParseError { fault: Fault::VarintOverflow, at: start })
    }

    fn counted(&mut self) -> Result<&'a [u8], ParseError> {
        let start = self.at;
        let length = self.varint()?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => self.take(length),
            _ => Err(ParseError { fault: Fault::Length { length, left }, at: start }),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ParseError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(ParseError { fault: Fault::Truncated, at: self.bytes.len() })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(bytes: &[u8]) -> (Fault, usize) {
        let mut reader = Reader::new(bytes);
        let error = loop {
            match reader.field().and_then(|field| field.map(|field| reader.skip(field)).transpose()) {
                Ok(Some(())) => {}
                Ok(None) => panic!("accepted {bytes:?}"),
                Err(error) => break error,
            }
        };
        (error.fault, error.at)
    }

    #[test]
    fn errors_say_what_is_wrong_and_where() {
        assert_eq!(fault(&[0x08]), (Fault::Truncated, 1));
        assert_eq!(fault(&[0x08, 1, 0x12, 5, 0]), (Fault::Length { length: 5, left: 1 }, 3));
        assert_eq!(fault(&[0x08, 1, 0x0b]), (Fault::Group, 2));
        assert_eq!(fault(&[0x08, 1, 0x0c]), (Fault::Group, 2));
        assert_eq!(fault(&[0x0e]), (Fault::WireType { field: 1, found: 6 }, 0));
        assert_eq!(fault(&[0x00]), (Fault::FieldNumber, 0));
        assert_eq!(fault(&[0xff, 0xff, 0xff, 0xff, 0x7f]), (Fault::FieldNumber, 0));
        let mut overflow = vec![0x08];
        overflow.extend([0xff; 9]);
        overflow.push(2);
        assert_eq!(fault(&overflow), (Fault::VarintOverflow, 1));
        assert_eq!(fault(&[0x0d, 1, 2]), (Fault::Truncated, 3));
    }

    #[test]
    fn the_largest_varint_is_accepted() {
        let mut bytes = vec![0xff; 9];
        bytes.push(1);
        assert_eq!(Reader::new(&bytes).varint(), Ok(u64::MAX));
    }

    #[test]
    fn an_inner_message_cannot_reach_beyond_its_end() {
        // Field 1: message of 2 bytes {field 2: 3 bytes declared}; the outer message goes on.
        let bytes = [0x0a, 2, 0x12, 3, 1, 2, 3];
        let mut outer = Reader::new(&bytes);
        let field = outer.field().expect("key").expect("field");
        let mut inner = outer.message_of(field).expect("2 bytes");
        let field = inner.field().expect("key").expect("field");
        let error = inner.skip(field).expect_err("beyond");
        assert_eq!((error.fault, error.at), (Fault::Length { length: 3, left: 0 }, 3));
    }
}
