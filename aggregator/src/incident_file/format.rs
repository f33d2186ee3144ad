//! The bytes of an incident file.
//!
//! ```text
//! skippable frame  "SAGEINC\0" | version u16 | 0 u16 | document u64 | model u64 | xxh3 of the rest u64 | xxh3 of this u64
//! skippable frame  the model, as one zstd frame
//! zstd frame       the document: JSON
//! ```
//!
//! Integers are little-endian; `document` and `model` are lengths once decompressed. The first frame keeps its layout in
//! every version. Frames that a zstd decoder skips hold what is not JSON, so `zstd -dc FILE` prints the document.
//!
//! Nothing is decompressed or parsed before both checksums are right, and never more than the declared lengths, which
//! have bounds. So a file that is cut, damaged or foreign costs no more memory than its own bytes, [`FILE_BYTES_MAX`] at
//! most.

use std::{
    io::{self, BufReader, Read},
    sync::Arc,
};

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;
use zstd::stream::{Decoder, Encoder};

use super::IncidentFile;

/// The longest file.
pub const FILE_BYTES_MAX: usize = 64 << 20;
/// The longest document: a dozen windows of all the traces that the aggregator keeps.
pub const DOCUMENT_BYTES_MAX: u64 = 192 << 20;
/// The longest model: that of a log entry.
pub const MODEL_BYTES_MAX: u64 = sage_protocol::codec::RECORD_BYTES_MAX as u64;

/// The version that this release writes, and the newest that it reads.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"SAGEINC\0";
/// First bytes of a frame that zstd decoders skip (RFC 8878, 3.1.2).
const SKIPPABLE: [u8; 4] = 0x184D_2A53_u32.to_le_bytes();
/// Length of the first frame without its checksum.
const HEADER_BYTES: usize = 44;
/// Length of the first frame.
const HEADER_TOTAL: usize = HEADER_BYTES + 8;
/// Fast, and within a few per cent of the densest levels on such text.
const LEVEL: i32 = 6;
/// The largest window that a decoder may need, 8 MiB: what [`LEVEL`] uses at most.
const WINDOW_LOG_MAX: u32 = 23;

/// Why bytes are not an incident, or an incident has no bytes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// Of another program.
    #[error("this is no incident file")]
    Foreign,
    /// Of a later release.
    #[error(
        "the file has format {found}, this release reads up to {VERSION}: use the release that wrote it, or a later one"
    )]
    Newer {
        /// Its version.
        found: u16,
    },
    /// Not what was written.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// Too much.
    #[error("{what} has {len} bytes; {max} are allowed")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The longest allowed.
        max: u64,
    },
    /// Whole, and not understood.
    #[error("the file does not read: {0}")]
    Content(String),
    /// The system does not hand out its bytes.
    #[error("cannot read the file")]
    Read(#[source] io::Error),
    /// It cannot be written so that it reads the same.
    #[error("the incident cannot be written: {0}")]
    Unwritable(String),
}

/// The bytes of `file`, checked to read the same.
///
/// # Errors
///
/// [`FileError::TooLong`], [`FileError::Unwritable`].
pub fn write(file: &IncidentFile) -> Result<Vec<u8>, FileError> {
    let failed = |error: &dyn std::fmt::Display| FileError::Unwritable(error.to_string());
    bound("the model", file.model.len() as u64, MODEL_BYTES_MAX)?;
    let model = zstd::encode_all(file.model.as_slice(), LEVEL).map_err(|error| failed(&error))?;
    let mut counted = Counted { inner: Encoder::new(Vec::new(), LEVEL).map_err(|error| failed(&error))?, count: 0 };
    serde_json::to_writer(io::BufWriter::with_capacity(1 << 16, &mut counted), file).map_err(|error| failed(&error))?;
    let document_bytes = counted.count;
    bound("the document", document_bytes, DOCUMENT_BYTES_MAX)?;
    let document = counted.inner.finish().map_err(|error| failed(&error))?;
    let mut rest = SKIPPABLE.to_vec();
    rest.extend((model.len() as u32).to_le_bytes());
    rest.extend(model);
    rest.extend(document);
    let mut bytes = header(VERSION, document_bytes, file.model.len() as u64, &rest);
    bytes.extend(rest);
    bound("the file", bytes.len() as u64, FILE_BYTES_MAX as u64)?;
    // A number that is not finite would come back as nothing at all.
    if read(bytes.as_slice())? != *file {
        return Err(FileError::Unwritable("it does not read the same".to_owned()));
    }
    Ok(bytes)
}

/// The incident that `bytes` are, all of them.
///
/// # Errors
///
/// [`FileError`].
pub fn read(mut bytes: impl Read) -> Result<IncidentFile, FileError> {
    let mut head = Vec::with_capacity(HEADER_TOTAL);
    bytes.by_ref().take(HEADER_TOTAL as u64).read_to_end(&mut head).map_err(FileError::Read)?;
    let header = Header::read(&head)?;
    let mut rest = Vec::new();
    bytes.take((FILE_BYTES_MAX + 1) as u64).read_to_end(&mut rest).map_err(FileError::Read)?;
    bound("the file", (head.len() + rest.len()) as u64, FILE_BYTES_MAX as u64)?;
    if xxh3_64(&rest) != header.checksum {
        return Err(FileError::Damaged("it is cut short, or its checksum does not match".to_owned()));
    }
    let damaged = || FileError::Damaged("its parts do not fit".to_owned());
    let frame = rest.strip_prefix(&SKIPPABLE).and_then(|rest| rest.split_first_chunk::<4>()).ok_or_else(damaged)?;
    let (model, document) = frame.1.split_at_checked(u32::from_le_bytes(*frame.0) as usize).ok_or_else(damaged)?;
    let model = unpacked(model, header.model)?;
    let mut file = parsed(document, header.document)?;
    file.model = Arc::new(model);
    Ok(file)
}

/// Whether `bytes`, the beginning of a file, are those of an incident file.
pub fn is_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(&SKIPPABLE) && bytes.get(8..16) == Some(MAGIC.as_slice())
}

struct Header {
    document: u64,
    model: u64,
    checksum: u64,
}

pub(super) fn header(version: u16, document: u64, model: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = SKIPPABLE.to_vec();
    bytes.extend(((HEADER_TOTAL - 8) as u32).to_le_bytes());
    bytes.extend(MAGIC);
    bytes.extend(version.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend([document, model, xxh3_64(rest)].map(u64::to_le_bytes).concat());
    let checksum = xxh3_64(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, FileError> {
        let is_cut = bytes.len() < HEADER_TOTAL;
        let seems_ours = bytes.starts_with(&SKIPPABLE) || bytes.get(8..16) == Some(MAGIC.as_slice());
        if bytes.is_empty() || !(seems_ours || is_cut && SKIPPABLE.starts_with(bytes)) {
            return Err(FileError::Foreign);
        }
        if is_cut {
            return Err(FileError::Damaged("it is cut short".to_owned()));
        }
        let number = |at: usize| {
            let field = bytes.get(at..at + 8).and_then(|field| field.first_chunk::<8>());
            field.map_or(0, |field| u64::from_le_bytes(*field))
        };
        if number(HEADER_BYTES) != xxh3_64(&bytes[..HEADER_BYTES]) {
            return Err(FileError::Damaged("its header does not match its checksum".to_owned()));
        }
        if !is_ours(bytes) {
            return Err(FileError::Foreign);
        }
        match u16::from_le_bytes([bytes[16], bytes[17]]) {
            VERSION => {}
            0 => return Err(FileError::Damaged("it has no version".to_owned())),
            found => return Err(FileError::Newer { found }),
        }
        let header = Self { document: number(20), model: number(28), checksum: number(36) };
        bound("the document", header.document, DOCUMENT_BYTES_MAX)?;
        bound("the model", header.model, MODEL_BYTES_MAX)?;
        Ok(header)
    }
}

fn bound(what: &'static str, len: u64, max: u64) -> Result<(), FileError> {
    if len > max { Err(FileError::TooLong { what, len, max }) } else { Ok(()) }
}

fn decoder(part: &[u8]) -> Result<Decoder<'_, BufReader<&[u8]>>, FileError> {
    let damaged = |error: io::Error| FileError::Damaged(error.to_string());
    let mut decoder = Decoder::new(part).map_err(damaged)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
    Ok(decoder)
}

/// `part` decompressed, `len` bytes.
fn unpacked(part: &[u8], len: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let read = decoder(part)?.take(len + 1).read_to_end(&mut bytes);
    read.map_err(|error| FileError::Damaged(error.to_string()))?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(FileError::Damaged("a part has another length".to_owned())) }
}

/// The document in `part`, at most `len` bytes of it, without ever holding its text.
fn parsed(part: &[u8], len: u64) -> Result<IncidentFile, FileError> {
    let text = BufReader::with_capacity(1 << 16, decoder(part)?.take(len));
    serde_json::from_reader(text).map_err(|error| FileError::Content(error.to_string()))
}

/// Counts what passes.
struct Counted<W> {
    inner: W,
    count: u64,
}

impl<W: io::Write> io::Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
