//! Bytes of applications into [`sage_common::Span`]s: bounded walks that keep nothing but what a span needs.
//!
//! Every format is walked twice: once to check the request as a whole, once to hand the spans out. So a bad request is
//! rejected before any of it has counted, and memory does not grow with the request.

mod cursor;
mod fields;
pub mod jaeger;
pub mod otlp;
pub mod otlp_json;
mod recent;
pub mod recorded;
mod thrift;
mod tracestate;
mod wire;

#[cfg(test)]
mod differential;

use thiserror::Error;

pub use self::{
    fields::{ATTRIBUTES_MAX, DURATION_MAX, Tally},
    tracestate::WEIGHT_MAX,
};

/// Why a request cannot be decoded.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{fault} at byte {at}")]
pub struct ParseError {
    /// What is wrong.
    pub fault: Fault,
    /// Where, counted from the start of the request.
    pub at: usize,
}

/// What is wrong with a request.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes end inside a value.
    #[error("request ends inside a value")]
    Truncated,
    /// A variable-length integer has more than 64 bits.
    #[error("integer is longer than 64 bits")]
    VarintOverflow,
    /// A declared length or count is larger than what is left.
    #[error("declared length {length} is more than the {left} bytes left")]
    Length {
        /// What was declared.
        length: u64,
        /// What is left of the enclosing message.
        left: usize,
    },
    /// A field key is zero or too large.
    #[error("field number out of range")]
    FieldNumber,
    /// A known field has another type than it should.
    #[error("field {field} has wire type {found}")]
    WireType {
        /// The number of the field.
        field: u32,
        /// The wire type found.
        found: u8,
    },
    /// Group fields have no bounded encoding.
    #[error("group fields are not accepted")]
    Group,
    /// Text is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// Structures are nested deeper than anyone means.
    #[error("nested too deep")]
    Depth,
    /// Not a message of the expected protocol.
    #[error("not {wanted}")]
    Protocol {
        /// What would have been accepted.
        wanted: &'static str,
    },
    /// JSON that does not read as OTLP.
    #[error("{0}")]
    Json(String),
}
