//! Trust: which images may be pulled, and by whose keys they must be signed.
//!
//! ```text
//! policy.json ─read, once─▶ Policy ─rule for a name─▶ Requirements ─each must hold─▶ pulled
//! ```
//!
//! The file is what podman, skopeo and CRI-O read (containers-policy.json(5)), as far as it says what can be checked here:
//! that every image is accepted, that none is, or that one is signed with a key as cosign does it. A requirement of another
//! kind is an error, never passed over.
//!
//! What must always hold: what a requirement is about is proved before any layer is fetched; nothing that a signature says
//! is read before the signature has been verified.

mod file;
mod identity;
mod key;
mod signature;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use signature::Signature;

use super::reference::Reference;
use crate::store::blobs::Digest;
use identity::Identity;
use key::PublicKey;

/// Which images may be pulled. The default: all. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Policy(Option<Arc<Rules>>);

#[derive(Debug)]
struct Rules {
    path: PathBuf,
    /// For what none of the others is about.
    default: Vec<Requirement>,
    /// By what a name begins with, in the form that the file has: a name, a repository, what repositories begin with,
    /// a host, `*.` and a domain, or nothing.
    scopes: HashMap<String, Vec<Requirement>>,
}

/// What must be so.
#[derive(Debug, Clone)]
pub enum Requirement {
    Accept,
    Reject,
    SignedBy(SignedBy),
}

/// There must be a signature by one of the keys.
#[derive(Debug, Clone)]
pub struct SignedBy {
    keys: Vec<PublicKey>,
    identity: Identity,
}

/// What counts for one name.
#[derive(Debug)]
pub struct Rule<'a> {
    rules: &'a Rules,
    /// Its key in the file, if it is not the default.
    scope: Option<String>,
    pub requirements: &'a [Requirement],
}

/// Why a file is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("{}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {why}", .path.display())]
    Syntax { path: PathBuf, why: String },
    #[error("{}: {place}: {why}", .path.display())]
    Invalid {
        path: PathBuf,
        /// As in `transports.docker["quay.io"][0].keyPath`.
        place: String,
        why: String,
    },
}

impl Policy {
    /// Reads a file, and the keys that it names.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        Ok(Self(Some(Arc::new(file::read(path)?))))
    }

    /// What counts for a name: the most specific of what the file says. `None`: there is no policy.
    #[must_use]
    pub fn rule(&self, reference: &Reference) -> Option<Rule<'_>> {
        let rules = self.0.as_deref()?;
        let found = scopes(reference)
            .into_iter()
            .find_map(|scope| rules.scopes.get_key_value(&scope));
        Some(Rule {
            rules,
            scope: found.map(|(scope, _)| scope.clone()),
            requirements: found.map_or(&rules.default, |(_, requirements)| requirements),
        })
    }
}

impl Rule<'_> {
    /// Where it is written.
    #[must_use]
    pub fn place(&self) -> String {
        let path = self.rules.path.display();
        match &self.scope {
            Some(scope) => format!("{path}: {}", file::place_of(scope)),
            None => format!("{path}: default"),
        }
    }
}

impl SignedBy {
    /// Whether one of the signatures, which are of the manifest or index `digest`, is as it must be.
    ///
    /// # Errors
    /// Why none is, for people, each to follow "one".
    pub fn accepts_one(
        &self,
        signatures: &[Signature],
        wanted: &Reference,
        digest: Digest,
    ) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        for signature in signatures {
            match self.accepts(signature, wanted, digest) {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons)
    }
}

/// What a rule for a name may be filed under, the most specific first.
fn scopes(reference: &Reference) -> Vec<String> {
    let repository = reference.repository();
    let mut scopes = vec![match (reference.digest(), reference.tag()) {
        (Some(digest), _) => repository.with(digest),
        (None, tag) => format!("{repository}:{}", tag.unwrap_or("latest")),
    }];
    let mut name = repository.to_string();
    loop {
        scopes.push(name.clone());
        match name.rfind('/') {
            Some(slash) => name.truncate(slash),
            None => break,
        }
    }
    // A wildcard is for hosts whatever their ports.
    let mut host = name.split(':').next().unwrap_or_default();
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_scope_counts() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let scopes = |name: &str| scopes(&name.replace("DIGEST", &digest).parse().unwrap());
        assert_eq!(
            scopes("a.b.example:5000/x/y:1"),
            [
                "a.b.example:5000/x/y:1",
                "a.b.example:5000/x/y",
                "a.b.example:5000/x",
                "a.b.example:5000",
                "*.b.example",
                "*.example",
                ""
            ]
        );
        assert_eq!(scopes("busybox")[0], "docker.io/library/busybox:latest");
        assert_eq!(scopes("r.io/a:1@DIGEST")[0], format!("r.io/a@{digest}"));
        assert_eq!(scopes("[::1]:5000/a:1")[1], "[::1]:5000/a");
    }
}
