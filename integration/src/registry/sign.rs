//! Signatures as cosign makes them, by openssl.

use std::path::PathBuf;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::image::{Built, digest};

/// A key to sign with, ECDSA P-256.
#[derive(Debug)]
pub struct Key(TempDir);

/// What is signed, and the signature.
#[derive(Debug, Clone)]
pub struct Signature {
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

impl Key {
    /// Makes one.
    ///
    /// # Panics
    /// If openssl fails.
    #[must_use]
    pub fn new() -> Self {
        let key = Self(tempfile::tempdir().expect("a folder"));
        key.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key");
        key.openssl("pkey -in key -pubout -out key.pub");
        key
    }

    /// The file with its public half.
    #[must_use]
    pub fn public(&self) -> PathBuf {
        self.0.path().join("key.pub")
    }

    /// Signs the digest of a manifest or index under a name, which for cosign is a repository's.
    #[must_use]
    pub fn sign(&self, name: &str, digest: &str) -> Signature {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": name },
                "image": { "docker-manifest-digest": digest },
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        self.sign_payload(payload.to_string().as_bytes())
    }

    /// Signs any bytes.
    ///
    /// # Panics
    /// If openssl fails.
    #[must_use]
    pub fn sign_payload(&self, payload: &[u8]) -> Signature {
        std::fs::write(self.0.path().join("payload"), payload).expect("write");
        let signature = self.openssl("dgst -sha256 -sign key payload");
        let payload = payload.to_vec();
        Signature { payload, signature }
    }

    fn openssl(&self, line: &str) -> Vec<u8> {
        let output = Command::new("openssl")
            .args(line.split(' '))
            .current_dir(self.0.path())
            .output()
            .expect("openssl is installed");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {line}: {text}");
        output.stdout
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::new()
    }
}

/// The tag that signatures of a digest are under.
#[must_use]
pub fn signature_tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

/// What is pushed under that tag.
#[must_use]
pub fn signatures(signatures: &[Signature]) -> Built {
    signatures_with(signatures, &json!({}))
}

/// The same with more fields in the manifest.
///
/// # Panics
/// If `fields` is no object.
#[must_use]
pub fn signatures_with(signatures: &[Signature], fields: &Value) -> Built {
    let config = b"{}".to_vec();
    let layers = signatures.iter().map(|signature| {
        json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": digest(&signature.payload),
            "size": signature.payload.len(),
            "annotations": { "dev.cosignproject.cosign/signature": STANDARD.encode(&signature.signature) },
        })
    });
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config),
            "size": config.len(),
        },
        "layers": layers.collect::<Vec<_>>(),
    });
    for (key, value) in fields.as_object().expect("an object") {
        manifest[key] = value.clone();
    }
    Built {
        manifest: manifest.to_string().into_bytes(),
        config,
        layers: signatures.iter().map(|s| s.payload.clone()).collect(),
    }
}
