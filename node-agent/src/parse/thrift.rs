//! The primitives of thrift's compact protocol, read in place.

use super::{Fault, ParseError};

/// Structures inside structures that are stepped over; Jaeger's own have three.
const DEPTH_MAX: usize = 8;

/// Type of a field or an element.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    True,
    False,
    Byte,
    Int, // 16, 32 and 64 bits look the same
    Double,
    Binary,
    List, // and set
    Map,
    Struct,
}

/// The header of one field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Field {
    pub id: i16,
    pub kind: Kind,
}

/// A position inside one message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next field after the one with id `last`, or `None` at the end of the structure.
    pub fn field(&mut self, last: &mut i16) -> Result<Option<Field>, ParseError> {
        let at = self.at;
        let header = self.byte()?;
        if header == 0 {
            return Ok(None);
        }
        let kind = kind(header & 0x0f).ok_or(ParseError { fault: Fault::Protocol { wanted: "a thrift type" }, at })?;
        let out_of_range = ParseError { fault: Fault::FieldNumber, at };
        *last = match header >> 4 {
            0 => i16::try_from(self.int()?).map_err(|_| out_of_range)?,
            delta => last.checked_add(i16::from(delta)).ok_or(out_of_range)?,
        };
        Ok(Some(Field { id: *last, kind }))
    }

    /// One unsigned byte.
    pub fn byte(&mut self) -> Result<u8, ParseError> {
        self.take(1).map(|byte| byte[0])
    }

    /// A signed whole number of any width.
    pub fn int(&mut self) -> Result<i64, ParseError> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// UTF-8 text.
    pub fn text(&mut self) -> Result<&'a str, ParseError> {
        let bytes = self.binary()?;
        let start = self.at - bytes.len();
        std::str::from_utf8(bytes).map_err(|error| ParseError { fault: Fault::Utf8, at: start + error.valid_up_to() })
    }

    /// The number of elements that follow, and their type. Every element takes a byte at least.
    pub fn list(&mut self) -> Result<(u64, Kind), ParseError> {
        let at = self.at;
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        self.fits(count, at)?;
        let kind = kind(header & 0x0f).ok_or(ParseError { fault: Fault::Protocol { wanted: "a thrift type" }, at })?;
        Ok((count, kind))
    }

    /// Steps over the value of a field of type `kind`.
    pub fn skip(&mut self, kind: Kind) -> Result<(), ParseError> {
        match kind {
            Kind::True | Kind::False => Ok(()), // the value is in the header
            kind => self.skip_value(kind, 0),
        }
    }

    /// Steps over the elements of a list.
    pub fn skip_elements(&mut self, count: u64, kind: Kind, depth: usize) -> Result<(), ParseError> {
        for _ in 0..count {
            self.skip_value(kind, depth)?;
        }
        Ok(())
    }

    fn skip_value(&mut self, kind: Kind, depth: usize) -> Result<(), ParseError> {
        if depth > DEPTH_MAX {
            return Err(ParseError { fault: Fault::Depth, at: self.at });
        }
        match kind {
            Kind::True | Kind::False | Kind::Byte => self.byte().map(drop),
            Kind::Int => self.varint().map(drop),
            Kind::Double => self.take(8).map(drop),
            Kind::Binary => self.binary().map(drop),
            Kind::List => {
                let (count, element) = self.list()?;
                self.skip_elements(count, element, depth + 1)
            }
            Kind::Map => self.skip_map(depth),
            Kind::Struct => {
                let mut last = 0;
                while let Some(field) = self.field(&mut last)? {
                    if !matches!(field.kind, Kind::True | Kind::False) {
                        self.skip_value(field.kind, depth + 1)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn skip_map(&mut self, depth: usize) -> Result<(), ParseError> {
        let at = self.at;
        let count = self.varint()?;
        if count == 0 {
            return Ok(());
        }
        self.fits(count, at)?;
        let kinds = self.byte()?;
        let bad = ParseError { fault: Fault::Protocol { wanted: "a thrift type" }, at };
        let (Some(key), Some(value)) = (kind(kinds >> 4), kind(kinds & 0x0f)) else { return Err(bad) };
        for _ in 0..count {
            self.skip_value(key, depth + 1)?;
            self.skip_value(value, depth + 1)?;
        }
        Ok(())
    }

    fn fits(&self, length: u64, at: usize) -> Result<(), ParseError> {
        let left = self.bytes.len() - self.at;
        if length > left as u64 {
            return Err(ParseError { fault: Fault::Length { length, left }, at });
        }
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, ParseError> {
        let start = self.at;
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
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

    fn binary(&mut self) -> Result<&'a [u8], ParseError> {
        let at = self.at;
        let length = self.varint()?;
        self.fits(length, at)?;
        self.take(length as usize)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ParseError> {
        let taken = self.bytes.get(self.at..self.at + length);
        let taken = taken.ok_or(ParseError { fault: Fault::Truncated, at: self.bytes.len() })?;
        self.at += length;
        Ok(taken)
    }
}

fn kind(code: u8) -> Option<Kind> {
    Some(match code {
        1 => Kind::True,
        2 => Kind::False,
        3 => Kind::Byte,
        4..=6 => Kind::Int,
        7 => Kind::Double,
        8 => Kind::Binary,
        9 | 10 => Kind::List,
        11 => Kind::Map,
        12 => Kind::Struct,
        _ => return None,
    })
}
