//! A walk over JSON text in place, one pass, with a constant stack: what a recording of millions of spans needs.
//!
//! What is stepped over is not checked beyond its brackets and strings. A broken text ends the walk, it never loops.

use std::borrow::Cow;

use memchr::memchr2;

use super::{Fault, ParseError};

/// Brackets within one another; OTLP needs 12 and nested attribute values a few more.
const DEPTH_MAX: usize = 128;

/// Where a walk is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

type Result<T> = std::result::Result<T, ParseError>;

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Calls `field` for every member of an object, with the cursor before its value; `field` must read or skip it. A
    /// null is an empty object.
    pub fn object(&mut self, mut field: impl FnMut(&mut Self, &str) -> Result<()>) -> Result<()> {
        if self.null()? {
            return Ok(());
        }
        self.expect(b'{', "an object")?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':', "a colon")?;
            field(self, &key)?;
            if !self.take(b',') {
                return self.expect(b'}', "the end of an object");
            }
        }
    }

    /// Calls `element` for every element of an array, with the cursor before it. A null is an empty array.
    pub fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if self.null()? {
            return Ok(());
        }
        self.expect(b'[', "an array")?;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if !self.take(b',') {
                return self.expect(b']', "the end of an array");
            }
        }
    }

    /// Text, borrowed where it has no escapes.
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let is_plain = self.end_of_string()?;
        let inside = &self.text[start..self.at - 1];
        if is_plain {
            return Ok(Cow::Borrowed(inside));
        }
        let quoted = &self.text[start - 1..self.at];
        serde_json::from_str(quoted).map(Cow::Owned).map_err(|error| self.fault(start, &error.to_string()))
    }

    /// Text, or what stands there of a number or a word, as it stands; empty for null.
    pub fn scalar(&mut self) -> Result<Cow<'a, str>> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'{' | b'[') | None => Err(self.fault(self.at, "want a number or a string")),
            Some(_) => {
                let word = self.word();
                Ok(Cow::Borrowed(if word == "null" { "" } else { word }))
            }
        }
    }

    /// The next byte that is not white space.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Steps over one value of any kind.
    pub fn skip(&mut self) -> Result<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.end_of_string()?;
                }
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b',' | b':') if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                Some(byte) if !matches!(byte, b',' | b':' | b'}' | b']') => {
                    self.word();
                }
                _ => return Err(self.truncated()),
            }
            if depth > DEPTH_MAX {
                return Err(ParseError { fault: Fault::Depth, at: self.at });
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<()> {
        self.peek().map_or(Ok(()), |_| Err(self.fault(self.at, "text after the end")))
    }

    /// What is wrong here.
    #[cold]
    pub fn fault(&self, at: usize, what: &str) -> ParseError {
        ParseError { fault: Fault::Json(what.to_owned()), at }
    }

    /// Where the cursor stands.
    pub fn at(&self) -> usize {
        self.at
    }

    #[inline]
    fn null(&mut self) -> Result<bool> {
        let is_null = self.peek() == Some(b'n');
        if is_null && self.word() != "null" {
            return Err(self.fault(self.at, "want null"));
        }
        Ok(is_null)
    }

    /// A run of bytes that ends at a bracket, a comma or white space; never empty where one begins.
    fn word(&mut self) -> &'a str {
        let rest = &self.text.as_bytes()[self.at..];
        let is_end =
            |byte: &u8| matches!(byte, b',' | b':' | b'}' | b']' | b'{' | b'[' | b'"' | b' ' | b'\n' | b'\t' | b'\r');
        let length = rest.iter().position(is_end).unwrap_or(rest.len());
        let start = self.at;
        self.at += length;
        &self.text[start..self.at]
    }

    /// Moves behind the closing quote; tells whether there was no escape.
    fn end_of_string(&mut self) -> Result<bool> {
        let bytes = self.text.as_bytes();
        let mut is_plain = true;
        while let Some(length) = memchr2(b'"', b'\\', &bytes[self.at..]) {
            self.at += length + 1;
            if bytes[self.at - 1] == b'"' {
                return Ok(is_plain);
            }
            is_plain = false;
            // An escape is at least two bytes; if its second is of several bytes, the rest of it is no quote.
            self.at = (self.at + 1).min(bytes.len());
        }
        Err(self.truncated())
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let is_it = self.peek() == Some(byte);
        self.at += usize::from(is_it);
        is_it
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(what)) }
    }

    #[cold]
    fn unexpected(&mut self, what: &str) -> ParseError {
        match self.peek() {
            Some(_) => self.fault(self.at, &format!("want {what}")),
            None => self.truncated(),
        }
    }

    fn truncated(&self) -> ParseError {
        ParseError { fault: Fault::Truncated, at: self.at }
    }
}
