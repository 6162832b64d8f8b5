//! Images that the configuration pins, by patterns of their names.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A pattern of image names in full ("registry/repository:tag", "registry/repository@sha256:…"): "*" stands for any
/// characters, "?" for one. Docker Hub is "docker.io".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

/// What is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a pattern of image names: {0}")]
pub struct InvalidPattern(&'static str);

/// As long as the longest name.
const MOST_BYTES: usize = 512;

impl TryFrom<String> for NamePattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, InvalidPattern> {
        let fits = |c: char| c.is_ascii_graphic();
        match text.as_str() {
            "" => Err(InvalidPattern("empty")),
            long if long.len() > MOST_BYTES => Err(InvalidPattern("too long")),
            text if !text.chars().all(fits) => Err(InvalidPattern("no name has such characters")),
            _ => Ok(Self(text)),
        }
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl NamePattern {
    /// Whether the name fits. Takes time in proportion to both lengths multiplied, and no memory.
    fn fits(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Behind the latest star, and where in the name it was tried last.
        let mut star = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    p += 1;
                    star = Some((p, n));
                }
                Some(&byte) if byte == b'?' || byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    Some((behind, tried)) => {
                        (p, n) = (behind, tried + 1);
                        star = Some((behind, n));
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&byte| byte == b'*')
    }
}

/// All patterns. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pinned(Arc<[NamePattern]>);

impl Pinned {
    /// Those of a configuration.
    #[must_use]
    pub fn new(patterns: Vec<NamePattern>) -> Self {
        Self(patterns.into())
    }

    /// The first pattern that a name fits.
    pub(super) fn pattern(&self, name: &str) -> Option<&str> {
        let fits = |pattern: &&NamePattern| pattern.fits(name);
        self.0.iter().find(fits).map(|pattern| pattern.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        let name = "registry.example:5000/team/app:1.2";
        for (pattern, fits) in [
            (name, true),
            ("registry.example:5000/*", true),
            ("*/app:*", true),
            ("*:1.?", true),
            ("*", true),
            ("**app**", true),
            ("registry.example:5000/team/app", false),
            ("*:1.3", false),
            ("?", false),
            ("*app", false),
        ] {
            let pattern = NamePattern::try_from(pattern.to_owned()).unwrap();
            assert_eq!(pattern.fits(name), fits, "{pattern}");
        }
        // Many stars cost no more than their number.
        let pattern = NamePattern::try_from("*a".repeat(200)).unwrap();
        assert!(!pattern.fits(&"a".repeat(199)));
        for bad in ["", "a b", "ä", &"a".repeat(600)] {
            assert!(NamePattern::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
