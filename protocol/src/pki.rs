//! The fleet's own certificate authority: makes the root and the certificates of agents and aggregators.
//!
//! Pure but for one thing: key pairs and serial numbers take their randomness from ring, inside rcgen. Time is an
//! argument; files, and their modes, are the caller's business. There is no revocation: certificates are to be short.

use std::{fmt, net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd, string::Ia5String,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sage_common::{NodeId, Timestamp};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::{
    identity::{FleetName, IdentityError, PeerIdentity, Role},
    tls::SERVER_NAME,
};

/// The longest validity, in days: ten years of a root.
pub const VALIDITY_DAYS_MAX: u32 = 3_653;

/// The last moment at which a certificate may begin: 2400-01-01. A clock beyond it is broken.
const NOT_BEFORE_MAX: Timestamp = Timestamp::from_micros(13_569_465_600_000_000);

const SECONDS_PER_DAY: u64 = 86_400;

/// Why a certificate could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PkiError {
    /// Empty, longer than [`VALIDITY_DAYS_MAX`], or from a broken clock.
    #[error("a validity of {days} days from {not_before_micros} us after the epoch is not usable")]
    Validity {
        /// Days asked for.
        days: u32,
        /// The beginning asked for, in microseconds since the epoch.
        not_before_micros: u64,
    },
    /// A subject alternative name that is neither an address nor a DNS name.
    #[error("invalid subject alternative name {0:?}: want an IP address or a DNS name")]
    AlternativeName(String),
    /// The authority's certificate does not read as one of ours.
    #[error("cannot read the authority's certificate: {0}")]
    Authority(String),
    /// The authority's key is not the one in its certificate.
    #[error("the authority's key does not belong to its certificate")]
    OtherKey,
    /// A name that cannot be part of an identity.
    #[error("cannot name the holder")]
    Identity(#[from] IdentityError),
    /// The library said no.
    #[error("cannot {action}")]
    Certificate {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: rcgen::Error,
    },
}

/// When a certificate holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// From when. Callers take an hour off the wall clock, so that machines whose clocks lag accept it at once.
    pub not_before: Timestamp,
    /// For how many days, 1 to [`VALIDITY_DAYS_MAX`].
    pub days: u32,
}

/// A certificate with its secret key, both PEM.
pub struct IssuedCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// Its key (PKCS #8). Write it with mode 0600.
    pub key_pem: String,
}

impl fmt::Debug for IssuedCertificate {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCertificate").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// The certificate authority of one fleet.
#[derive(Debug)]
pub struct FleetCa {
    fleet: FleetName,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl FleetCa {
    /// A new authority for `fleet`, with a new key.
    ///
    /// # Errors
    ///
    /// [`PkiError::Validity`], [`PkiError::Certificate`].
    pub fn create(fleet: FleetName, validity: Validity) -> Result<Self, PkiError> {
        let key = generate_key()?;
        let mut params = params(format!("Sage fleet {fleet}"), validity)?;
        params.subject_alt_names = vec![SanType::URI(ia5(format!("spiffe://{fleet}"))?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed("sign the authority's certificate"))?;
        Ok(Self { fleet, certificate_pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    /// The authority whose certificate and key [`create`](Self::create) made.
    ///
    /// # Errors
    ///
    /// [`PkiError::Authority`], [`PkiError::OtherKey`], [`PkiError::Certificate`].
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let authority = |error: &dyn fmt::Display| PkiError::Authority(error.to_string());
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| authority(&error))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| authority(&error))?;
        let fleet = fleet_of(&certificate)?;
        let key = KeyPair::from_pem(key_pem).map_err(failed("read the authority's key"))?;
        if certificate.public_key().subject_public_key.data != key.public_key_raw() {
            return Err(PkiError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(failed("use the authority's certificate"))?;
        Ok(Self { fleet, certificate_pem: certificate_pem.to_owned(), issuer })
    }

    /// The fleet it speaks for.
    pub const fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// Its certificate, which every member trusts.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its secret key. Write it with mode 0600, and keep it off the machines of the fleet.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for the `role` called `name`, with a new key. `alternative_names` are IP addresses and DNS names
    /// besides the identity; agents need none.
    ///
    /// # Errors
    ///
    /// [`PkiError::Validity`], [`PkiError::AlternativeName`], [`PkiError::Identity`], [`PkiError::Certificate`].
    pub fn issue(
        &self,
        role: Role,
        name: &NodeId,
        alternative_names: &[String],
        validity: Validity,
    ) -> Result<IssuedCertificate, PkiError> {
        // Through text, so that nothing is issued that would not be accepted.
        let identity: PeerIdentity = format!("spiffe://{}/{role}/{name}", self.fleet).parse()?;
        let key = generate_key()?;
        let mut params = params(name.to_string(), validity)?;
        params.subject_alt_names = vec![SanType::URI(ia5(identity.to_string())?)];
        for name in alternative_names {
            params.subject_alt_names.push(alternative_name(name)?);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if role == Role::Aggregator {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names.push(SanType::DnsName(ia5(SERVER_NAME.to_owned())?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed("sign the certificate"))?;
        Ok(IssuedCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

fn params(common_name: String, validity: Validity) -> Result<CertificateParams, PkiError> {
    let Validity { not_before, days } = validity;
    if !(1..=VALIDITY_DAYS_MAX).contains(&days) || not_before > NOT_BEFORE_MAX {
        return Err(PkiError::Validity { days, not_before_micros: not_before.as_micros() });
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(not_before.as_micros() / 1_000_000);
    params.not_after = params.not_before + Duration::from_secs(u64::from(days) * SECONDS_PER_DAY);
    Ok(params)
}

/// The fleet in the authority's own URI, `spiffe://<fleet>`.
fn fleet_of(certificate: &X509Certificate<'_>) -> Result<FleetName, PkiError> {
    let uris = crate::identity::uris(certificate);
    let [uri] = uris[..] else { return Err(IdentityError::UriCount(uris.len()).into()) };
    let fleet = uri.strip_prefix("spiffe://").ok_or_else(|| IdentityError::Uri(uri.to_owned()))?;
    Ok(fleet.parse()?)
}

fn alternative_name(text: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'*');
    if (1..=253).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(SanType::DnsName(ia5(text.to_owned())?))
    } else {
        Err(PkiError::AlternativeName(text.chars().take(80).collect()))
    }
}

fn ia5(text: String) -> Result<Ia5String, PkiError> {
    Ia5String::try_from(text).map_err(failed("write a name"))
}

fn generate_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(failed("make a key"))
}

fn failed(action: &'static str) -> impl Fn(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
    const VALIDITY: Validity = Validity { not_before: NOW, days: 30 };

    fn fleet() -> FleetName {
        "local".parse().expect("valid")
    }

    fn der(issued: &IssuedCertificate) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("PEM")
    }

    #[test]
    fn a_certificate_names_its_holder_in_one_uri() {
        let ca = FleetCa::create(fleet(), VALIDITY).expect("created");
        let names = ["10.0.0.1".to_owned(), "sage.example".to_owned()];
        let issued = ca.issue(Role::Aggregator, &"a-1".parse().expect("valid"), &names, VALIDITY).expect("issued");
        let identity = PeerIdentity::of_certificate(&der(&issued)).expect("named");
        assert_eq!(identity.to_string(), "spiffe://local/aggregator/a-1");
    }

    #[test]
    fn agents_are_not_issued_the_right_to_serve() {
        let ca = FleetCa::create(fleet(), VALIDITY).expect("created");
        for (role, may_serve) in [(Role::Agent, false), (Role::Aggregator, true)] {
            let der = der(&ca.issue(role, &"x".parse().expect("valid"), &[], VALIDITY).expect("issued"));
            let (_, certificate) = X509Certificate::from_der(&der).expect("certificate");
            let usage = certificate.extended_key_usage().expect("well-formed").expect("present").value;
            assert!(usage.client_auth);
            assert_eq!(usage.server_auth, may_serve, "{role}");
            assert!(!certificate.is_ca());
        }
    }

    #[test]
    fn an_authority_is_loaded_from_what_it_printed() {
        let ca = FleetCa::create(fleet(), VALIDITY).expect("created");
        let loaded = FleetCa::load(ca.certificate_pem(), &ca.key_pem()).expect("loaded");
        assert_eq!(loaded.fleet(), ca.fleet());
        let issued = loaded.issue(Role::Agent, &"node-a".parse().expect("valid"), &[], VALIDITY).expect("issued");
        let root = CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).expect("PEM");
        let (_, root) = X509Certificate::from_der(&root).expect("certificate");
        let der = der(&issued);
        let (_, certificate) = X509Certificate::from_der(&der).expect("certificate");
        assert_eq!(certificate.issuer(), root.subject());
    }

    #[test]
    fn an_authority_with_the_key_of_another_is_refused() {
        let (one, other) = (FleetCa::create(fleet(), VALIDITY), FleetCa::create(fleet(), VALIDITY));
        let (one, other) = (one.expect("created"), other.expect("created"));
        let error = FleetCa::load(one.certificate_pem(), &other.key_pem()).expect_err("not its key");
        assert!(matches!(error, PkiError::OtherKey), "{error}");
    }

    #[test]
    fn names_and_times_out_of_range_are_refused() {
        let ca = FleetCa::create(fleet(), VALIDITY).expect("created");
        let node: NodeId = "node-a".parse().expect("valid");
        let bad_name = ["a b".to_owned()];
        assert!(matches!(ca.issue(Role::Agent, &node, &bad_name, VALIDITY), Err(PkiError::AlternativeName(_))));
        let dots: NodeId = "..".parse().expect("a node may be called that");
        assert!(matches!(ca.issue(Role::Agent, &dots, &[], VALIDITY), Err(PkiError::Identity(_))));
        for validity in [
            Validity { days: 0, ..VALIDITY },
            Validity { days: u32::MAX, ..VALIDITY },
            Validity { not_before: Timestamp::from_micros(u64::MAX), ..VALIDITY },
        ] {
            assert!(matches!(ca.issue(Role::Agent, &node, &[], validity), Err(PkiError::Validity { .. })));
        }
    }
}
