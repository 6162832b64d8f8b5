//! TLS from a client's side: which certificates are trusted, and how it is spoken.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// Why no server can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("trusted certificates: {0}")]
    Read(rustls_native_certs::Error),
    #[error("this machine has no trusted certificates")]
    None,
}

/// A client that trusts what the machine trusts: its certificate store, or what `SSL_CERT_FILE` and `SSL_CERT_DIR`
/// name instead. Reads files.
///
/// # Errors
/// There are no certificates.
pub fn client() -> Result<ClientConfig, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(found.certs);
    match (good, found.errors.into_iter().next()) {
        (0, Some(error)) => Err(TrustError::Read(error)),
        (0, None) => Err(TrustError::None),
        _ => Ok(client_trusting(roots)),
    }
}

/// A client that trusts these.
///
/// # Panics
/// Never: the versions are enabled at build time.
#[must_use]
pub fn client_trusting(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the versions that are enabled")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
