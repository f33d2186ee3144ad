//! Certificates and keys from files.
#![expect(clippy::disallowed_methods, reason = "files are what is tested")]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use sage_common::Timestamp;
use sage_protocol::{
    Role,
    pki::{FleetCa, Validity},
    quic::{LinkError, read_tls},
};

struct Files {
    _dir: tempfile::TempDir,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn files(mode: u32) -> Files {
    let dir = tempfile::tempdir().expect("a directory");
    let validity = Validity { not_before: Timestamp::from_micros(1_800_000_000_000_000), days: 30 };
    let ca = FleetCa::create("local".parse().expect("valid"), validity).expect("created");
    let issued = ca.issue(Role::Agent, &"node-a".parse().expect("valid"), &[], validity).expect("issued");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        path
    };
    let (authority, certificate) = (write("ca.pem", ca.certificate_pem()), write("a.pem", &issued.certificate_pem));
    let key = write("a.key", &issued.key_pem);
    fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("changed");
    Files { _dir: dir, ca: authority, certificate, key }
}

#[test]
fn a_secret_key_is_read_with_its_certificate() {
    let Files { ca, certificate, key, .. } = &files(0o600);
    let tls = read_tls(ca, certificate, key).expect("readable");
    assert_eq!(tls.identity().to_string(), "spiffe://local/agent/node-a");
}

#[test]
fn a_key_that_everybody_may_read_is_refused() {
    let Files { ca, certificate, key, .. } = &files(0o644);
    let error = read_tls(ca, certificate, key).expect_err("no secret");
    assert!(matches!(error, LinkError::KeyMode { mode: 0o644, .. }), "{error}");
}

#[test]
fn a_missing_or_half_written_file_is_named() {
    let Files { ca, certificate, key, .. } = &files(0o600);
    let missing = ca.with_file_name("nothing.pem");
    let error = read_tls(&missing, certificate, key).expect_err("not there").to_string();
    assert!(error.contains("nothing.pem"), "{error}");

    let half = fs::read(certificate).expect("readable");
    fs::write(certificate, &half[..half.len() / 2]).expect("written");
    assert!(matches!(read_tls(ca, certificate, key), Err(LinkError::Tls(_))));
}
