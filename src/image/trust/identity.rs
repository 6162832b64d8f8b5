//! What a signature must say that it is for, so that an image cannot stand in for another one of the same key.

use crate::image::reference::{Reference, Repository};

/// The names that a signature may have. Those of tools: policy.json's `signedIdentity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// The name that is pulled.
    Exact,
    /// The name that is pulled; by digest, any name of its repository.
    RepositoryDigestOrExact,
    /// Any name of the repository that is pulled, or the repository alone.
    Repository,
    /// This name.
    ExactReference(Reference),
    /// Any name of this repository, or the repository alone.
    ExactRepository(Repository),
    /// As [`Self::RepositoryDigestOrExact`], of what is below the first as if it were below the second.
    Remap { prefix: String, signed: String },
}

/// What a signature says that it is for.
#[derive(Debug)]
struct Signed {
    reference: Reference,
    /// Without a tag and without a digest, as cosign writes it.
    bare: bool,
}

impl Identity {
    /// Whether `signed` is what a signature of `wanted` must say.
    ///
    /// # Errors
    /// Why not, for people.
    pub(super) fn check(&self, wanted: &Reference, signed: &str) -> Result<(), String> {
        let name = signed.chars().take(300).collect::<String>();
        let name = name.escape_debug();
        let Ok(reference) = signed.parse::<Reference>() else {
            return Err(format!("is for {name}, which is no name of an image"));
        };
        let signed = Signed {
            reference,
            bare: is_bare(signed),
        };
        let repository = signed.reference.repository();
        let (fits, names) = match self {
            Self::Exact => (signed.is_exactly(wanted), true),
            Self::RepositoryDigestOrExact => (signed.fits(wanted), true),
            Self::Repository => (repository == wanted.repository(), false),
            Self::ExactReference(reference) => (signed.is_exactly(reference), true),
            Self::ExactRepository(expected) => (repository == expected, false),
            Self::Remap { prefix, signed: to } => match remapped(wanted, prefix, to) {
                Some(wanted) => (signed.fits(&wanted), true),
                None => (false, true),
            },
        };
        match fits {
            true => Ok(()),
            false if names && signed.bare => Err(format!(
                "is for {name} without a tag, as cosign makes it: a signedIdentity of type matchRepository accepts that"
            )),
            false => Err(format!("is for {name}, not {wanted}")),
        }
    }
}

impl Signed {
    fn is_exactly(&self, wanted: &Reference) -> bool {
        let same = match wanted.digest() {
            Some(digest) => self.reference.digest() == Some(digest),
            None => self.reference.digest().is_none() && self.reference.tag() == wanted.tag(),
        };
        !self.bare && same && self.reference.repository() == wanted.repository()
    }

    fn fits(&self, wanted: &Reference) -> bool {
        match wanted.digest() {
            // That the digest is the signed one is proved by other means.
            Some(_) => !self.bare && self.reference.repository() == wanted.repository(),
            None => self.is_exactly(wanted),
        }
    }
}

/// Whether a name has neither tag nor digest.
pub(super) fn is_bare(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or_default();
    !last.contains([':', '@'])
}

/// The name with another beginning; itself, if it does not begin so. `None` if that is no name.
fn remapped(wanted: &Reference, prefix: &str, to: &str) -> Option<Reference> {
    let name = wanted.to_string();
    match name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with(['/', ':', '@']) => {
            format!("{to}{rest}").parse().ok()
        }
        _ => Some(wanted.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_identity() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let other = format!("sha256:{}", "cd".repeat(32));
        let by = |text: &str| text.replace("DIGEST", &digest).replace("OTHER", &other);
        let reference = |text: &str| by(text).parse::<Reference>().unwrap();
        let remap = |prefix: &str, signed: &str| Identity::Remap {
            prefix: prefix.into(),
            signed: signed.into(),
        };
        let exact_repository = Identity::ExactRepository(reference("r.io/z").repository().clone());
        use Identity::{Exact, ExactReference, Repository, RepositoryDigestOrExact};
        for (identity, wanted, signed, expected) in [
            (&Exact, "r.io/a:1", "r.io/a:1", true),
            (&Exact, "r.io/a:1", "r.io/a:2", false),
            (&Exact, "r.io/a:1", "r.io/a", false),
            (&Exact, "r.io/a", "r.io/a", false),
            (&Exact, "r.io/a@DIGEST", "r.io/a:1", false),
            (&Exact, "r.io/a@DIGEST", "r.io/a@DIGEST", true),
            (
                &Exact,
                "busybox:1",
                "index.docker.io/library/busybox:1",
                true,
            ),
            (&RepositoryDigestOrExact, "r.io/a:1", "r.io/a:1", true),
            (&RepositoryDigestOrExact, "r.io/a:1", "r.io/a:2", false),
            (&RepositoryDigestOrExact, "r.io/a:1", "r.io/b:1", false),
            (&RepositoryDigestOrExact, "r.io/a:1", "r.io/a@DIGEST", false),
            (&RepositoryDigestOrExact, "r.io/a@DIGEST", "r.io/a:1", true),
            (
                &RepositoryDigestOrExact,
                "r.io/a@DIGEST",
                "r.io/a@OTHER",
                true,
            ),
            (&RepositoryDigestOrExact, "r.io/a@DIGEST", "r.io/a", false),
            (&RepositoryDigestOrExact, "r.io/a@DIGEST", "r.io/b:1", false),
            (&Repository, "r.io/a:1", "r.io/a", true),
            (&Repository, "r.io/a:1", "r.io/a:9", true),
            (&Repository, "r.io/a:1", "r.io/ab", false),
            (&Repository, "r.io/a:1", "r.io/a/b", false),
            (&Repository, "r.io:5000/a:1", "r.io/a:1", false),
            (
                &ExactReference(reference("r.io/z:1")),
                "r.io/a:1",
                "r.io/z:1",
                true,
            ),
            (
                &ExactReference(reference("r.io/z:1")),
                "r.io/a:1",
                "r.io/a:1",
                false,
            ),
            (&exact_repository, "r.io/a:1", "r.io/z", true),
            (&exact_repository, "r.io/a:1", "r.io/a", false),
            (&remap("m.io", "r.io/x"), "m.io/a:1", "r.io/x/a:1", true),
            (&remap("m.io/a", "r.io/b"), "m.io/a:1", "r.io/b:1", true),
            (&remap("m.io/a", "r.io/b"), "m.io/ab:1", "r.io/bb:1", false),
            (&remap("m.io/a", "r.io/b"), "m.io/ab:1", "m.io/ab:1", true),
            (&remap("m.io", "r.io"), "m.io/a:1", "m.io/a:1", false),
            (&Repository, "r.io/a:1", "", false),
            (&Repository, "r.io/a:1", "R.io/A\n", false),
        ] {
            let outcome = identity.check(&reference(wanted), &by(signed));
            assert_eq!(outcome.is_ok(), expected, "{identity:?} {wanted} {signed}");
        }
        let error = RepositoryDigestOrExact.check(&reference("r.io/a:1"), "r.io/a");
        assert!(error.unwrap_err().contains("matchRepository"));
    }
}
