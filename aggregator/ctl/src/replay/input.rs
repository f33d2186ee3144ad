#![expect(clippy::disallowed_methods, reason = "a driver: recordings are files")]
//! One file of a recording: plain, gzip or zstd; OTLP requests as lines of JSON, or as protobuf behind their length.
//!
//! What a file is shows in its first bytes, not in its name. Nothing is kept but the request at hand.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

/// Longest request: one exporter's batch is a few MiB. A longer one is stepped over and counted as bad.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// Bytes of a varint length at most.
const VARINT_BYTES_MAX: usize = 5;

/// Why a file gives nothing more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InputError {
    /// It is not there, or not for us.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It ends within its compression, or the disk fails.
    #[error("cannot read {path} after {place}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The last request that was read.
        place: Place,
        /// What is wrong.
        source: io::Error,
    },
}

/// Where in a file a request stands: its line in JSON, its number in protobuf; from 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place(pub u64);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}", self.0)
    }
}

/// How requests are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoding {
    /// One JSON object a line.
    Json,
    /// Four bytes of length, most significant first, then protobuf: the Collector's file exporter.
    Protobuf,
    /// A varint of length, then protobuf: protobuf's own delimited streams.
    ProtobufVarint,
}

/// An open file.
pub struct Input {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    encoding: Encoding,
    place: u64,
    request: Vec<u8>,
}

/// One request, or that there was one which cannot be used.
#[derive(Debug)]
pub enum Request<'a> {
    /// Its bytes.
    Whole(&'a [u8]),
    /// Longer than [`REQUEST_BYTES_MAX`].
    TooLong,
}

impl Input {
    /// Opens `path` and finds out what it is.
    ///
    /// # Errors
    ///
    /// [`InputError::Open`], and [`InputError::Read`] when not even its beginning can be read.
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let failed = |source| InputError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut this = Self {
            path: path.to_owned(),
            reader: unpacked(Box::new(BufReader::with_capacity(CHUNK, file))).map_err(failed)?,
            encoding: Encoding::Json,
            place: 0,
            request: Vec::new(),
        };
        let head = this.reader.fill_buf().map_err(|source| this_failed(&this.path, 0, source))?;
        this.encoding = encoding(head);
        Ok(this)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How its requests are written.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Where the newest request stands.
    pub fn place(&self) -> Place {
        Place(self.place)
    }

    /// The next request; `None` at the end. Empty lines are none.
    ///
    /// # Errors
    ///
    /// [`InputError::Read`]; there is nothing behind it.
    pub fn next_request(&mut self) -> Result<Option<Request<'_>>, InputError> {
        let length = match self.encoding {
            Encoding::Json => self.line(),
            Encoding::Protobuf => self.behind_length(),
            Encoding::ProtobufVarint => self.behind_varint(),
        };
        match length {
            Ok(None) => Ok(None),
            Ok(Some(length)) if length > REQUEST_BYTES_MAX => Ok(Some(Request::TooLong)),
            Ok(Some(_)) => Ok(Some(Request::Whole(&self.request))),
            Err(source) => Err(this_failed(&self.path, self.place, source)),
        }
    }

    /// Reads the next line that is not empty; gives its length, which may be more than was kept.
    fn line(&mut self) -> io::Result<Option<usize>> {
        loop {
            self.request.clear();
            let mut some = self.reader.by_ref().take(REQUEST_BYTES_MAX as u64 + 1);
            if some.read_until(b'\n', &mut self.request)? == 0 {
                return Ok(None);
            }
            self.place += 1;
            if self.request.last() == Some(&b'\n') {
                self.request.pop();
            } else if self.request.len() > REQUEST_BYTES_MAX {
                self.reader.skip_until(b'\n')?;
            }
            if !self.request.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(self.request.len()));
            }
        }
    }

    fn behind_length(&mut self) -> io::Result<Option<usize>> {
        let mut length = [0; 4];
        match self.reader.fill_buf()? {
            [] => return Ok(None),
            _ => self.reader.read_exact(&mut length)?,
        }
        self.message(u32::from_be_bytes(length) as usize).map(Some)
    }

    fn behind_varint(&mut self) -> io::Result<Option<usize>> {
        if self.reader.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut length = 0_usize;
        for at in 0..VARINT_BYTES_MAX {
            let mut byte = [0];
            self.reader.read_exact(&mut byte)?;
            length |= usize::from(byte[0] & 0x7f) << (7 * at);
            if byte[0] < 0x80 {
                return self.message(length).map(Some);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "not a length"))
    }

    fn message(&mut self, length: usize) -> io::Result<usize> {
        self.place += 1;
        self.request.clear();
        if length > REQUEST_BYTES_MAX {
            let skipped = io::copy(&mut self.reader.by_ref().take(length as u64), &mut io::sink())?;
            return if skipped == length as u64 { Ok(length) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        // Grows with what is there, not with what is claimed.
        let found = self.reader.by_ref().take(length as u64).read_to_end(&mut self.request)?;
        if found == length { Ok(length) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

fn this_failed(path: &Path, place: u64, source: io::Error) -> InputError {
    InputError::Read { path: path.to_owned(), place: Place(place), source }
}

fn unpacked(mut reader: Box<dyn BufRead>) -> io::Result<Box<dyn BufRead>> {
    Ok(match reader.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(CHUNK, MultiGzDecoder::new(reader))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(BufReader::with_capacity(CHUNK, zstd::stream::read::Decoder::with_buffer(reader)?))
        }
        _ => reader,
    })
}

/// JSON begins with a bracket; four bytes of length begin with a zero, because requests are shorter than 16 MiB; what
/// else begins with a varint of length and the tag of field 1.
fn encoding(head: &[u8]) -> Encoding {
    let first = head.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    let behind_varint =
        head.iter().take(VARINT_BYTES_MAX).position(|byte| *byte < 0x80).and_then(|at| head.get(at + 1));
    match (head.first(), first) {
        (Some(0), _) => Encoding::Protobuf,
        (_, Some(b'{')) if behind_varint != Some(&0x0a) || head.first() == Some(&b'{') => Encoding::Json,
        _ if behind_varint == Some(&0x0a) => Encoding::ProtobufVarint,
        _ => Encoding::Json,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a place");
        file.write_all(bytes).expect("room");
        file
    }

    fn all(bytes: &[u8]) -> (Vec<Vec<u8>>, Option<InputError>) {
        let file = file(bytes);
        let mut input = match Input::open(file.path()) {
            Ok(input) => input,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut found = Vec::new();
        loop {
            match input.next_request() {
                Ok(Some(Request::Whole(request))) => found.push(request.to_vec()),
                Ok(Some(Request::TooLong)) => found.push(b"too long".to_vec()),
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error)),
            }
        }
    }

    const LINES: &[u8] = b"{\"a\":1}\n\n  \n{\"b\":2}";

    #[test]
    fn lines_are_the_same_plain_gzipped_and_zstandard() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(LINES).expect("memory");
        let zst = zstd::encode_all(LINES, 1).expect("memory");
        for bytes in [LINES.to_vec(), gz.finish().expect("memory"), zst] {
            let (found, error) = all(&bytes);
            assert_eq!((found, error.is_none()), (vec![b"{\"a\":1}".to_vec(), b"{\"b\":2}".to_vec()], true));
        }
    }

    #[test]
    fn a_cut_zstandard_file_gives_what_is_whole_and_says_where_it_ends() {
        let text: String = (0..50_000).map(|n| format!("{{\"number\":{}}}\n", n * 7_919)).collect();
        let zst = zstd::encode_all(text.as_bytes(), 1).expect("memory");
        let (found, error) = all(&zst[..zst.len() / 2]);
        assert!(found.len() > 1_000 && found.len() < 50_000, "{}", found.len());
        let text = error.expect("it is cut").to_string();
        assert!(text.contains("after line "), "{text}");
    }

    #[test]
    fn protobuf_stands_behind_four_bytes_or_a_varint_of_length() {
        let message = [&[0x0a, 3][..], b"abc"].concat();
        let fixed = [&[0, 0, 0, 5][..], &message, &[0, 0, 0, 5], &message].concat();
        let varint = [&[5][..], &message, &[5], &message].concat();
        for bytes in [fixed, varint] {
            assert_eq!(all(&bytes).0, vec![message.clone(); 2]);
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_an_error_and_takes_no_memory() {
        let (found, error) = all(&[0, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert!(found.is_empty() && error.is_some());
    }

    #[test]
    fn an_empty_file_holds_nothing_and_a_missing_one_is_named() {
        assert_eq!(all(b"").0.len(), 0);
        let error = Input::open(Path::new("/nowhere/traces.jsonl")).err().expect("missing");
        assert_eq!(error.to_string(), "cannot open /nowhere/traces.jsonl");
    }
}
