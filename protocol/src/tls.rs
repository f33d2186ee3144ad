//! Mutual TLS 1.3 from PEM bytes: what a member of the fleet shows, and whom it believes.
//!
//! rustls checks signatures, times, key usage and the server's name; that the peer is of the right role and fleet is
//! checked by [`PeerIdentity::require`] once the handshake is over. Reading files is the caller's business.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use sage_common::Timestamp;
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::identity::{IdentityError, PeerIdentity, Role};

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"sage/1";

/// The DNS name that every aggregator's certificate carries, whatever its address is.
pub const SERVER_NAME: &str = "sage-aggregator";

/// Why certificates and keys cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The PEM text does not hold what it should.
    #[error("cannot read {what}: {problem}")]
    Pem {
        /// The authority's certificate, the own certificate, or its key.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Our own certificate names nobody, or the wrong role.
    #[error("own certificate is not usable")]
    Identity(#[from] IdentityError),
    /// Our own certificate has run out.
    #[error("own certificate of {identity} expired {ago_s} s ago")]
    Expired {
        /// Its holder.
        identity: Box<PeerIdentity>,
        /// How long ago, in seconds.
        ago_s: u64,
    },
    /// Our own certificate does not hold yet; a clock may be wrong.
    #[error("own certificate of {identity} is valid only in {in_s} s: is the clock right?")]
    NotYetValid {
        /// Its holder.
        identity: Box<PeerIdentity>,
        /// In how long, in seconds.
        in_s: u64,
    },
    /// The key does not belong to the certificate, or the library does not know its kind.
    #[error("cannot use own certificate and key")]
    Unusable(#[from] rustls::Error),
    /// The authority's certificate cannot check others.
    #[error("cannot use the authority's certificate")]
    Verifier(#[from] VerifierBuilderError),
}

/// A member's certificate and key, and the authority it trusts.
pub struct TlsMaterial {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    identity: PeerIdentity,
    not_before_s: u64,
    not_after_s: u64,
}

impl fmt::Debug for TlsMaterial {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl TlsMaterial {
    /// Reads PEM bytes. `authorities` may hold several roots, for the time in which one replaces another.
    ///
    /// # Errors
    ///
    /// [`TlsError::Pem`], [`TlsError::Identity`].
    pub fn from_pem(authorities: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates("the authority's certificate", authorities)? {
            roots.add(root)?;
        }
        let chain = certificates("own certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| pem("own key", &error))?;
        let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(|error| pem("own certificate", &error))?;
        let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
        let not_before_s = seconds(leaf.validity().not_before.timestamp());
        let not_after_s = seconds(leaf.validity().not_after.timestamp());
        let identity = PeerIdentity::of_certificate(&chain[0])?;
        Ok(Self { roots: Arc::new(roots), chain, key, identity, not_before_s, not_after_s })
    }

    /// Who this certificate says we are.
    pub const fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// Whether it is a certificate of `role` that holds at `now` by this machine's clock. A check for clear errors at
    /// start: the peer checks by its own clock.
    ///
    /// # Errors
    ///
    /// [`TlsError::Identity`], [`TlsError::Expired`], [`TlsError::NotYetValid`].
    pub fn require(&self, role: Role, now: Timestamp) -> Result<(), TlsError> {
        self.identity.clone().require(role, &self.identity.fleet)?;
        let now_s = now.as_micros() / 1_000_000;
        let identity = || Box::new(self.identity.clone());
        if now_s > self.not_after_s {
            return Err(TlsError::Expired { identity: identity(), ago_s: now_s - self.not_after_s });
        }
        if now_s < self.not_before_s {
            return Err(TlsError::NotYetValid { identity: identity(), in_s: self.not_before_s - now_s });
        }
        Ok(())
    }

    /// When our certificate runs out, in seconds since the epoch.
    pub const fn not_after_s(&self) -> u64 {
        self.not_after_s
    }

    /// The key's bytes, for other keys to be derived from.
    pub(crate) fn secret(&self) -> &[u8] {
        self.key.secret_der()
    }

    /// How an agent connects. Nothing is resumed: a certificate that has run out is noticed by the next connection.
    ///
    /// # Errors
    ///
    /// [`TlsError::Unusable`].
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// How an aggregator accepts: only peers with a certificate of its authorities that says `clientAuth`.
    ///
    /// # Errors
    ///
    /// [`TlsError::Unusable`], [`TlsError::Verifier`].
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(what: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|error| pem(what, &error))?;
    if chain.is_empty() { Err(pem(what, &"no CERTIFICATE section")) } else { Ok(chain) }
}

fn pem(what: &'static str, problem: &dyn fmt::Display) -> TlsError {
    TlsError::Pem { what, problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{FleetCa, IssuedCertificate, Validity};

    const DAY: u64 = 86_400_000_000;
    const VALIDITY: Validity = Validity { not_before: Timestamp::from_micros(1_800_000_000_000_000), days: 2 };

    fn agent() -> (FleetCa, IssuedCertificate) {
        let ca = FleetCa::create("local".parse().expect("valid"), VALIDITY).expect("created");
        let issued = ca.issue(Role::Agent, &"node-a".parse().expect("valid"), &[], VALIDITY).expect("issued");
        (ca, issued)
    }

    fn material(ca: &FleetCa, issued: &IssuedCertificate) -> Result<TlsMaterial, TlsError> {
        let IssuedCertificate { certificate_pem, key_pem } = issued;
        TlsMaterial::from_pem(ca.certificate_pem().as_bytes(), certificate_pem.as_bytes(), key_pem.as_bytes())
    }

    #[test]
    fn a_certificate_outside_its_time_says_so() {
        let (ca, issued) = agent();
        let material = material(&ca, &issued).expect("readable");
        let start = VALIDITY.not_before.as_micros();
        let at = |micros| material.require(Role::Agent, Timestamp::from_micros(micros));
        assert!(matches!(at(start - DAY), Err(TlsError::NotYetValid { in_s: 86_400, .. })));
        assert!(at(start + DAY).is_ok());
        let error = at(start + 3 * DAY).expect_err("a day after its end");
        assert_eq!(error.to_string(), "own certificate of spiffe://local/agent/node-a expired 86400 s ago");
    }

    #[test]
    fn a_certificate_of_the_wrong_role_says_so() {
        let (ca, issued) = agent();
        let error = material(&ca, &issued).expect("readable").require(Role::Aggregator, VALIDITY.not_before);
        assert!(matches!(error, Err(TlsError::Identity(IdentityError::OtherRole { .. }))), "{error:?}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ((ca, mut issued), (_, other)) = (agent(), agent());
        issued.key_pem = other.key_pem;
        let error = material(&ca, &issued).expect("readable").client_config().expect_err("not its key");
        assert!(matches!(error, TlsError::Unusable(_)), "{error}");
    }

    #[test]
    fn what_is_not_pem_is_named() {
        let (ca, issued) = agent();
        let garbled = IssuedCertificate { certificate_pem: "hello".to_owned(), key_pem: issued.key_pem };
        let error = material(&ca, &garbled).expect_err("no certificate in it");
        assert_eq!(error.to_string(), "cannot read own certificate: no CERTIFICATE section");
    }
}
