//! Whether what a name stands for may be pulled, as the policy says: found out before any layer is fetched.
//!
//! Signatures are where cosign puts them: in the image's own repository, under a tag made of the digest or as referrers.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Failure;
use super::resolve::Resolved;
use crate::image::document::{Content, Count, Descriptor};
use crate::image::reference::Reference;
use crate::image::registry::{self, Document, Remote};
use crate::image::trust::{Policy, Requirement, Signature, SignedBy};
use crate::store::blobs::Digest;

/// Signatures of one manifest that are looked at, and bytes of a payload.
const MOST_SIGNATURES: usize = 100;
const MOST_PAYLOAD: u64 = 64 << 10;
/// Reasons that are told.
const MOST_TOLD: usize = 3;
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";

/// Makes sure that the policy allows what `reference` was resolved to.
///
/// # Errors
/// [`Failure::Untrusted`] if it does not; those of the registry.
pub(super) async fn check(
    policy: &Policy,
    remote: &Remote,
    reference: &Reference,
    resolved: &Resolved,
) -> Result<(), Failure> {
    let Some(rule) = policy.rule(reference) else {
        return Ok(());
    };
    let mut search = Search {
        remote,
        reference,
        digests: &resolved.path,
        found: HashMap::new(),
    };
    for requirement in rule.requirements {
        let refused = match requirement {
            Requirement::Accept => continue,
            Requirement::Reject => Some("rejected".to_owned()),
            Requirement::SignedBy(signed) => search.refused(signed).await?,
        };
        if let Some(why) = refused {
            return Err(Failure::Untrusted(format!("{}: {why}", rule.place())));
        }
    }
    Ok(())
}

/// What a registry has as signatures of one digest.
#[derive(Debug, Default)]
struct Signed {
    signatures: Vec<Signature>,
    /// Why others were not looked at.
    passed_over: Vec<String>,
}

struct Search<'a> {
    remote: &'a Remote,
    reference: &'a Reference,
    /// From what the name stands for to the manifest. Each names the next by its digest, so a signature of any of
    /// them is one of the image.
    digests: &'a [Digest],
    /// Under the tag of a digest, or referring to it.
    found: HashMap<(Digest, bool), Signed>,
}

impl Search<'_> {
    /// Why no signature is as it must be, if none is.
    async fn refused(&mut self, by: &SignedBy) -> Result<Option<String>, Failure> {
        let (mut count, mut reasons) = (0, Vec::new());
        // Most are under the tag, and not all registries know referrers.
        for referring in [false, true] {
            for &digest in self.digests {
                self.fetch(digest, referring).await?;
                let signed = &self.found[&(digest, referring)];
                match by.accepts_one(&signed.signatures, self.reference, digest) {
                    Ok(()) => return Ok(None),
                    Err(why) => reasons.extend(why.iter().map(|why| format!("one {why}"))),
                }
                count += signed.signatures.len();
                reasons.extend(signed.passed_over.iter().cloned());
            }
        }
        let is = match count {
            0 => format!("no signature of {}", self.digests[0]),
            1 => "its signature is not accepted".to_owned(),
            count => format!("none of its {count} signatures is accepted"),
        };
        reasons.dedup();
        reasons.truncate(MOST_TOLD);
        Ok(Some(match reasons.is_empty() {
            true => is,
            false => format!("{is}: {}", reasons.join("; ")),
        }))
    }

    /// Fetches the signatures of a digest, once.
    async fn fetch(&mut self, digest: Digest, referring: bool) -> Result<(), Failure> {
        let key = (digest, referring);
        if !self.found.contains_key(&key) {
            let signed = match referring {
                true => self.fetch_referring(digest).await?,
                false => self.fetch_tagged(digest).await?,
            };
            self.found.insert(key, signed);
        }
        Ok(())
    }

    async fn fetch_tagged(&self, digest: Digest) -> Result<Signed, Failure> {
        let mut signed = Signed::default();
        let tag = format!("sha256-{}.sig", digest.hex());
        if let Some(document) = there(self.remote.tagged(&tag).await)? {
            self.manifest(&document, &mut signed).await?;
        }
        Ok(signed)
    }

    async fn fetch_referring(&self, digest: Digest) -> Result<Signed, Failure> {
        let mut signed = Signed::default();
        let tag = format!("sha256-{}", digest.hex());
        let index = match self.remote.referrers(digest).await {
            Ok(index) => Some(index),
            Err(error) if error.is_unavailable() => return Err(error.into()),
            // The registry knows no referrers: clients keep the list up under a tag.
            Err(_) => there(self.remote.tagged(&tag).await)?,
        };
        let Some(index) = index else {
            return Ok(signed);
        };
        let content = Content::parse(&index.bytes, None, &mut Count::default());
        let Ok(Content::Index(entries)) = content else {
            let text = "the list of its referrers is malformed";
            signed.passed_over.push(text.into());
            return Ok(signed);
        };
        let mut looked_at = 0;
        for entry in entries {
            let kind = entry.artifact_type.as_deref().unwrap_or_default();
            if kind.starts_with(BUNDLE) {
                signed.passed_over.push(
                    "one is a sigstore bundle, which is not supported: cosign 3 signs without one by --new-bundle-format=false --use-signing-config=false".into(),
                );
            } else if kind == ARTIFACT && looked_at < MOST_SIGNATURES {
                // Whatever is in it: a long list of what has no signature is not worked off either.
                looked_at += 1;
                if let Some(document) = there(self.remote.manifest(entry.digest).await)? {
                    self.manifest(&document, &mut signed).await?;
                }
            }
        }
        signed.passed_over.dedup();
        Ok(signed)
    }

    /// Fetches the signatures that a manifest has as its layers.
    async fn manifest(&self, document: &Document, signed: &mut Signed) -> Result<(), Failure> {
        let content = Content::parse(&document.bytes, None, &mut Count::default());
        let Ok(Content::Manifest { layers, .. }) = content else {
            let text = "what should have its signatures is malformed";
            signed.passed_over.push(text.into());
            return Ok(());
        };
        for layer in layers {
            if signed.signatures.len() == MOST_SIGNATURES {
                break;
            }
            match self.signature(&layer).await? {
                Ok(signature) => signed.signatures.push(signature),
                Err(why) => signed.passed_over.push(format!("one {why}")),
            }
        }
        Ok(())
    }

    async fn signature(
        &self,
        layer: &Descriptor,
    ) -> Result<Result<Signature, &'static str>, Failure> {
        if layer.media_type != PAYLOAD {
            return Ok(Err("is of an unknown type"));
        }
        if layer.size > MOST_PAYLOAD {
            return Ok(Err("is too large"));
        }
        let annotations = layer.annotations.as_ref();
        let text = annotations.and_then(|annotations| annotations.get(SIGNATURE));
        let signature = text.and_then(|text| STANDARD.decode(text).ok());
        let Some(signature) = signature else {
            return Ok(Err("has no signature in its annotations"));
        };
        let payload = there(self.remote.blob(layer.digest, layer.size).await)?;
        Ok(match payload {
            Some(payload) => Ok(Signature { payload, signature }),
            None => Err("has no payload"),
        })
    }
}

/// `None` for what a registry does not have.
fn there<T>(answer: Result<T, registry::Error>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(registry::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
