//! One signature of cosign: a payload that names an image, signed with a key.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::SignedBy;
use crate::image::json;
use crate::image::reference::Reference;
use crate::store::blobs::Digest;

/// As a registry has it. Nothing of it is to be believed.
#[derive(Debug, Clone)]
pub struct Signature {
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

const KIND: &str = "cosign container image signature";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    /// Says nothing that is checked.
    #[serde(default, rename = "optional")]
    _optional: Option<IgnoredAny>,
}

/// All of it has to be understood, or the signature says something that is not checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Named,
    image: Content,
    r#type: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Named {
    docker_reference: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Content {
    docker_manifest_digest: Digest,
}

impl SignedBy {
    /// Whether a signature is one that is wanted: by one of the keys, for the manifest or index `digest`, under a name that
    /// stands for `wanted`.
    ///
    /// # Errors
    /// Why not, for people, to follow "one".
    pub(super) fn accepts(
        &self,
        signature: &Signature,
        wanted: &Reference,
        digest: Digest,
    ) -> Result<(), String> {
        let Signature { payload, signature } = signature;
        // Before anything of it is read.
        if !self.keys.iter().any(|key| key.verifies(payload, signature)) {
            return Err("is by another key".into());
        }
        let payload: Payload =
            json::parse(payload).map_err(|why| format!("has a malformed payload: {why}"))?;
        let Critical {
            identity,
            image,
            r#type: kind,
        } = payload.critical;
        if kind != KIND {
            return Err(format!("is of unknown type {}", kind.escape_debug()));
        }
        let signed = image.docker_manifest_digest;
        if signed != digest {
            return Err(format!("is for {signed}, not {digest}"));
        }
        self.identity.check(wanted, &identity.docker_reference)
    }
}
