//! Identities. A peer's bytes pass the same check as an operator's.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A name that does not fit its type.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("invalid {what} {text:?}: want {want}")]
pub struct InvalidName {
    /// What kind of name it should have been.
    pub what: &'static str,
    /// What was given, cut to 80 characters.
    pub text: String,
    /// What would have been accepted.
    pub want: &'static str,
}

fn is_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn is_printable(byte: u8) -> bool {
    byte == b' ' || byte.is_ascii_graphic()
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $allowed:path, $want:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest accepted name, in bytes.
            pub const LEN_MAX: usize = $max;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The nearest valid name: foreign bytes become `_`, the rest is cut, an empty name becomes `_`.
            pub fn sanitized(text: &str) -> Self {
                let clean: String =
                    text.bytes().take($max).map(|byte| if $allowed(byte) { char::from(byte) } else { '_' }).collect();
                Self(if clean.is_empty() { "_".into() } else { clean.into() })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                if (1..=$max).contains(&text.len()) && text.bytes().all($allowed) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName { what: $what, text: text.chars().take(80).collect(), want: $want })
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// A service (tier): 1 to 63 bytes of letters, digits, `-`, `_`, `.`.
    ServiceId, "service name", 63, is_label, "1 to 63 letters, digits, '-', '_' or '.'"
);
name!(
    /// A machine: 1 to 63 bytes of letters, digits, `-`, `_`, `.`.
    NodeId, "node name", 63, is_label, "1 to 63 letters, digits, '-', '_' or '.'"
);
name!(
    /// An operation of a service: 1 to 120 printable ASCII characters.
    OperationId, "operation", 120, is_printable, "1 to 120 printable ASCII characters"
);
name!(
    /// One replica of a service on a node (a cgroup path, container id or pid): 1 to 200 printable ASCII characters.
    InstanceId, "instance", 200, is_printable, "1 to 200 printable ASCII characters"
);

impl OperationId {
    /// Where operations go once a service has shown more of them than the cardinality guard keeps.
    pub fn other() -> Self {
        Self("_OTHER".into())
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A 64-bit hash of a 128-bit trace id: the same on every node.
    TraceHash
);
number!(
    /// A span id as OTLP and Jaeger carry it. Zero means "none".
    SpanId
);
number!(
    /// One life of an agent process: drawn at random at start, so that sequence numbers may restart at zero.
    BootId
);
number!(
    /// A leadership period. Only the highest term seen may change a knob.
    Term
);
number!(
    /// One requested change, unique within the fleet; a replay of it is idempotent.
    ActionId
);
number!(
    /// A version of the model.
    Generation
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_their_alphabet_or_length_are_refused() {
        assert!("user-service_2.b".parse::<ServiceId>().is_ok());
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<ServiceId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sanitized_names_pass_their_own_check() {
        for text in ["", "user service/α", &"x".repeat(500)] {
            let name = ServiceId::sanitized(text);
            assert_eq!(name.as_str().parse::<ServiceId>(), Ok(name.clone()));
        }
    }
}
