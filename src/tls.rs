//! TLS from a client's side: which certificates are trusted, and how it is spoken.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Why no server can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("trusted certificates: {0}")]
    Read(rustls_native_certs::Error),
    #[error("this machine has no trusted certificates")]
    None,
}

/// What is special about TLS with one server.
#[derive(Debug, Clone, Default)]
pub struct Special {
    /// Trusted beside what the machine trusts. The server's own certificate may be among them.
    pub ca: Vec<CertificateDer<'static>>,
    /// To be shown to a server that asks for one: the first that it can read.
    pub client: Vec<Arc<CertifiedKey>>,
    /// Whoever answers is trusted.
    pub skip_verify: bool,
}

/// The certificates that the machine trusts: its store, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name instead. Reads
/// files.
///
/// # Errors
/// There are none.
pub fn roots() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(found.certs);
    match (good, found.errors.into_iter().next()) {
        (0, Some(error)) => Err(TrustError::Read(error)),
        (0, None) => Err(TrustError::None),
        _ => Ok(roots),
    }
}

/// A client that trusts what the machine trusts. Reads files.
///
/// # Errors
/// There are no certificates.
pub fn client() -> Result<ClientConfig, TrustError> {
    Ok(client_trusting(roots()?))
}

/// A client that trusts these.
///
/// # Panics
/// Never: the versions are enabled at build time.
#[must_use]
pub fn client_trusting(roots: impl Into<Arc<RootCertStore>>) -> ClientConfig {
    builder(&provider())
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A client for a server that is special.
///
/// # Errors
/// What is wrong with its certificates.
pub fn client_special(
    mut roots: RootCertStore,
    special: &Special,
) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    for certificate in &special.ca {
        roots.add(certificate.clone())?;
    }
    let verifier: Arc<dyn ServerCertVerifier> = match special.skip_verify {
        true => Arc::new(Anyone(Arc::clone(&provider))),
        false => {
            let chains =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            let chains = chains.build();
            Arc::new(Pinned {
                chains: chains.map_err(|error| rustls::Error::General(error.to_string()))?,
                own: special.ca.clone(),
            })
        }
    };
    let builder = builder(&provider)
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(match special.client.is_empty() {
        true => builder.with_no_client_auth(),
        false => builder.with_client_cert_resolver(Arc::new(Pairs(special.client.clone()))),
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder(
    provider: &Arc<CryptoProvider>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .expect("ring has the versions that are enabled")
}

/// Client certificates. They are few, and who asks for one seldom says by whom it must be signed.
#[derive(Debug)]
struct Pairs(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Pairs {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut pairs = self.0.iter();
        let pair = pairs.find(|pair| pair.key.choose_scheme(schemes).is_some());
        pair.cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Verifies chains, and takes a server's own certificate if it is trusted by itself: one that is signed by itself
/// says of itself mostly that it is an authority, which a chain must not end with.
#[derive(Debug)]
struct Pinned {
    chains: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.own.iter().any(|own| own == certificate) {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let chains = &self.chains;
        chains.verify_server_cert(certificate, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Takes whatever certificate it is shown, if whoever shows it has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
