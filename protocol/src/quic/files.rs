//! Certificates and keys from files.

#![expect(clippy::disallowed_methods, reason = "a driver reads its files")]

use std::{fs, io::Read, os::unix::fs::PermissionsExt, path::Path};

use crate::{quic::LinkError, tls::TlsMaterial};

/// The longest certificate or key file, in bytes: a chain of a dozen certificates.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Permission bits of everybody but the owner and the group.
const OTHERS: u32 = 0o007;

/// Reads the authority's certificate, our own, and its key, all PEM.
///
/// # Errors
///
/// [`LinkError::File`], [`LinkError::KeyMode`], [`LinkError::Tls`].
pub fn read_tls(authority: &Path, certificate: &Path, key: &Path) -> Result<TlsMaterial, LinkError> {
    let failed = |source| LinkError::File { path: key.to_owned(), source };
    let mode = fs::metadata(key).map_err(failed)?.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(LinkError::KeyMode { path: key.to_owned(), mode });
    }
    Ok(TlsMaterial::from_pem(&read(authority)?, &read(certificate)?, &read(key)?)?)
}

fn read(path: &Path) -> Result<Vec<u8>, LinkError> {
    let failed = |source| LinkError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
