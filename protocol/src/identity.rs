//! Who a certificate says its holder is: `spiffe://<fleet>/agent/<node>` or `spiffe://<fleet>/aggregator/<name>`, the
//! one URI among its subject alternative names. Identity comes from here and never from a message.
//!
//! Whether the certificate is genuine is TLS's business ([`tls`](crate::tls)).

use std::{fmt, str::FromStr};

use sage_common::NodeId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// Why a certificate names nobody.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not an X.509 certificate.
    #[error("not a certificate: {0}")]
    Malformed(String),
    /// No `spiffe://` URI, or more than one URI.
    #[error("certificate names {0} URIs, want exactly one, spiffe://<fleet>/<agent|aggregator>/<name>")]
    UriCount(usize),
    /// A URI that does not follow the scheme.
    #[error("invalid identity {0:?}: want spiffe://<fleet>/<agent|aggregator>/<name>")]
    Uri(String),
    /// A fleet's name that does not fit its type.
    #[error("invalid fleet name {0:?}: want 1 to 63 of a-z, 0-9, '-', '_' or '.'")]
    Fleet(String),
    /// The peer belongs to another fleet.
    #[error("{peer} is not of fleet {fleet}")]
    OtherFleet {
        /// Who it says it is.
        peer: Box<PeerIdentity>,
        /// Our fleet.
        fleet: FleetName,
    },
    /// The peer is of the wrong kind.
    #[error("{peer} is not an {role}")]
    OtherRole {
        /// Who it says it is.
        peer: Box<PeerIdentity>,
        /// What it should have been.
        role: Role,
    },
}

/// The name of a fleet: everything below one certificate authority. A SPIFFE trust domain.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct FleetName(String);

impl FleetName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FleetName {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(IdentityError::Fleet(text.chars().take(80).collect()))
        }
    }
}

impl FromStr for FleetName {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::try_from(text.to_owned())
    }
}

impl From<FleetName> for String {
    fn from(name: FleetName) -> Self {
        name.0
    }
}

impl fmt::Display for FleetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What the holder of a certificate may be.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Sends windows of its own node, takes commands.
    Agent,
    /// Takes windows, gives commands.
    Aggregator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Agent => "agent",
            Self::Aggregator => "aggregator",
        })
    }
}

/// The holder of a certificate.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerIdentity {
    /// The fleet.
    pub fleet: FleetName,
    /// What it may be.
    pub role: Role,
    /// Its name: for an agent, its node.
    pub name: NodeId,
}

impl PeerIdentity {
    /// Reads the identity from a DER certificate, whose signature it does not check.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Malformed`], [`IdentityError::UriCount`], [`IdentityError::Uri`].
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| IdentityError::Malformed(error.to_string()))?;
        let mut uris = uris(&certificate);
        match (uris.pop(), uris.len()) {
            (Some(uri), 0) => uri.parse(),
            (_, others) => Err(IdentityError::UriCount(others + 1)),
        }
    }

    /// `self`, if it is a `role` of `fleet`.
    ///
    /// # Errors
    ///
    /// [`IdentityError::OtherFleet`], [`IdentityError::OtherRole`].
    pub fn require(self, role: Role, fleet: &FleetName) -> Result<Self, IdentityError> {
        if self.fleet != *fleet {
            return Err(IdentityError::OtherFleet { peer: Box::new(self), fleet: fleet.clone() });
        }
        if self.role != role {
            return Err(IdentityError::OtherRole { peer: Box::new(self), role });
        }
        Ok(self)
    }
}

/// Every URI among the subject alternative names.
pub(crate) fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let names = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let uri = |name: &'a GeneralName<'_>| if let GeneralName::URI(uri) = name { Some(*uri) } else { None };
    names.flatten().filter_map(uri).collect()
}

impl FromStr for PeerIdentity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let invalid = || IdentityError::Uri(text.chars().take(200).collect());
        let path = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let mut parts = path.split('/');
        let (Some(fleet), Some(role), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        let role = match role {
            "agent" => Role::Agent,
            "aggregator" => Role::Aggregator,
            _ => return Err(invalid()),
        };
        // SPIFFE forbids dot segments: a URI with one may be "normalised" into another name on its way.
        if matches!(name, "." | "..") {
            return Err(invalid());
        }
        Ok(Self { fleet: fleet.parse()?, role, name: name.parse().map_err(|_| invalid())? })
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.fleet, self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_as_it_prints() {
        for text in ["spiffe://local/agent/node-a", "spiffe://eu.prod/aggregator/aggregator-1"] {
            let identity: PeerIdentity = text.parse().expect("valid");
            assert_eq!(identity.to_string(), text);
        }
    }

    #[test]
    fn anything_but_the_scheme_is_refused() {
        for bad in [
            "",
            "local/agent/a",
            "https://local/agent/a",
            "spiffe://local/agent",
            "spiffe://local/agent/",
            "spiffe://local/agent/a/b",
            "spiffe://local/operator/a",
            "spiffe://local/agent/..",
            "spiffe:///agent/a",
            "spiffe://Local/agent/a",
            "spiffe://local/agent/a?b",
        ] {
            assert!(bad.parse::<PeerIdentity>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn role_and_fleet_are_required_apart() {
        let agent: PeerIdentity = "spiffe://local/agent/a".parse().expect("valid");
        let (local, other) = ("local".parse().expect("valid"), "other".parse().expect("valid"));
        assert_eq!(agent.clone().require(Role::Agent, &local), Ok(agent.clone()));
        assert!(matches!(agent.clone().require(Role::Aggregator, &local), Err(IdentityError::OtherRole { .. })));
        assert!(matches!(agent.require(Role::Agent, &other), Err(IdentityError::OtherFleet { .. })));
    }

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        assert!(matches!(PeerIdentity::of_certificate(b"hello"), Err(IdentityError::Malformed(_))));
    }
}
