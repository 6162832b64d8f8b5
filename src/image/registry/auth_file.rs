//! Credentials from files that docker, podman and the kubelet write.
//!
//! ```text
//! {"auths": {"HOST[:PORT][/PATH]": {"auth": base64(USER:PASSWORD)}}}      the longest path that fits counts
//! ```
//!
//! What must always hold: nothing of a file's content is in an error, except names of registries.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::auth::Credentials;
use super::error::SetupError;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// Bytes of a file.
const MOST_BYTES: u64 = 1 << 20;
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Files of credentials, read.
#[derive(Default)]
pub(super) struct AuthFiles(Vec<(PathBuf, File)>);

impl AuthFiles {
    /// Reads them. One that is not there is as an empty one.
    ///
    /// # Errors
    /// One cannot be read, or is no such file.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, SetupError> {
        let mut files = Vec::new();
        for path in paths {
            let unfit = |why: String| SetupError::Unfit {
                path: path.clone(),
                why,
            };
            match std::fs::metadata(path) {
                Ok(file) if file.len() > MOST_BYTES => {
                    return Err(unfit(format!("more than {MOST_BYTES} bytes")));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unfit(error.to_string())),
            }
            let text = std::fs::read(path).map_err(|error| unfit(error.to_string()))?;
            files.push((path.clone(), parse(path, &text)?));
        }
        Ok(Self(files))
    }

    /// Those for a repository; none if no file has any.
    ///
    /// # Errors
    /// They cannot be used.
    pub(super) fn find(&self, host: &str, repository: &str) -> Result<Credentials, SetupError> {
        let full = format!("{host}/{repository}");
        for (path, file) in &self.0 {
            let unfit = |key: &str, why: &str| SetupError::Unfit {
                path: path.clone(),
                why: format!("{key}: {why}"),
            };
            if let Some(key) = file
                .cred_helpers
                .keys()
                .find(|key| rank(key, &full).is_some())
            {
                return Err(unfit(key, HELPER));
            }
            let ranked = file.auths.iter();
            let ranked = ranked.filter_map(|(key, entry)| Some((rank(key, &full)?, key, entry)));
            let Some((_, key, entry)) = ranked.max_by_key(|(rank, key, _)| (*rank, *key)) else {
                continue;
            };
            let credentials = entry.credentials().map_err(|why| unfit(key, why))?;
            if !credentials.is_none() {
                return Ok(credentials);
            }
            // This is how docker notes that the credentials are with the helper.
            if !file.creds_store.is_empty() {
                return Err(unfit(key, HELPER));
            }
        }
        Ok(Credentials::default())
    }
}

const HELPER: &str = "its credentials are with a credential helper, and carpel runs none; let the kubelet's image credential provider get them, or put them in the file";

fn parse(path: &Path, text: &[u8]) -> Result<File, SetupError> {
    serde_json::from_slice(text).map_err(|error| SetupError::Unfit {
        path: path.to_owned(),
        // The text of the error may have a value in it.
        why: match error.classify() {
            serde_json::error::Category::Data => {
                format!("line {}: not as docker writes such files", error.line())
            }
            _ => format!("line {}: no JSON", error.line()),
        },
    })
}

impl Entry {
    fn credentials(&self) -> Result<Credentials, &'static str> {
        let wrong = |_| "its credentials cannot be sent";
        if !self.identity_token.is_empty() {
            return Credentials::identity(self.identity_token.clone()).map_err(wrong);
        }
        if !self.registry_token.is_empty() {
            return Credentials::token(self.registry_token.clone()).map_err(wrong);
        }
        let (username, password) = match self.auth.is_empty() {
            true if self.username.is_empty() && self.password.is_empty() => {
                return Ok(Credentials::default());
            }
            true => (self.username.clone(), self.password.clone()),
            false => {
                let malformed = "its auth is not the base64 form of USER:PASSWORD";
                let bytes = BASE64.decode(self.auth.trim()).map_err(|_| malformed)?;
                let text = String::from_utf8(bytes).map_err(|_| malformed)?;
                let (username, password) = text.split_once(':').ok_or(malformed)?;
                // Old ones are filled up with zero bytes.
                (
                    username.to_owned(),
                    password.trim_end_matches('\0').to_owned(),
                )
            }
        };
        Credentials::password(username, password).map_err(wrong)
    }
}

/// How well a key fits a repository: by how many parts of its path, and a name without a pattern better than one with.
fn rank(key: &str, full: &str) -> Option<(usize, bool)> {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let key = key.trim_end_matches('/');
    // As clients of the first API wrote them.
    let first = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2"));
    let key = first.unwrap_or(key);
    let (mut wanted, mut given) = (full.split('/'), key.split('/'));
    let (host, pattern) = (wanted.next()?, given.next()?);
    let pattern = match pattern {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        pattern => pattern,
    };
    if !fits(pattern, host) {
        return None;
    }
    let mut count = 0;
    for part in given {
        if wanted.next() != Some(part) {
            return None;
        }
        count += 1;
    }
    Some((count, !pattern.contains('*')))
}

/// Whether a host is the one that a pattern means: the same port, and each label the same, where `*` stands for any text
/// in a label.
fn fits(pattern: &str, host: &str) -> bool {
    let split = |text: &str| {
        let text = text.to_ascii_lowercase();
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, Some(port.to_owned())),
            _ => (text.as_str(), None),
        };
        let labels: Vec<_> = name.split('.').map(str::to_owned).collect();
        (labels, port)
    };
    let ((pattern, wanted), (host, port)) = (split(pattern), split(host));
    let mut pairs = pattern.iter().zip(&host);
    wanted == port
        && pattern.len() == host.len()
        && pairs.all(|(pattern, label)| fits_label(pattern, label))
}

fn fits_label(pattern: &str, label: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let Some(rest) = label.strip_prefix(before) else {
        return false;
    };
    // What is between two stars is best found as early as may be.
    match after.split_once('*') {
        None => rest.ends_with(after),
        Some((middle, _)) => rest
            .find(middle)
            .is_some_and(|at| fits_label(&after[middle.len()..], &rest[at + middle.len()..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> AuthFiles {
        let path = PathBuf::from("/auth.json");
        let file = parse(&path, text.as_bytes()).unwrap();
        AuthFiles(vec![(path, file)])
    }

    fn basic(name: &str) -> String {
        format!("{{\"auth\": \"{}\"}}", BASE64.encode(format!("{name}:p")))
    }

    #[test]
    fn the_longest_path_counts() {
        let names = [
            "a.example",
            "a.example/b",
            "a.example/b/c",
            "a.example:5000",
            "*.example",
            "https://index.docker.io/v1/",
            "http://v2.example/v2/",
        ];
        let entries = names.map(|name| format!("{name:?}: {}", basic(&name.replace(':', "_"))));
        let files = files(&format!("{{\"auths\": {{{}}}}}", entries.join(",")));
        let find = |host: &str, path: &str| files.find(host, path).unwrap();
        for (host, path, expected) in [
            ("a.example", "x", "a.example"),
            ("a.example", "b", "a.example/b"),
            ("a.example", "bc", "a.example"),
            ("a.example", "b/c/d", "a.example/b/c"),
            ("A.example", "x", "a.example"),
            ("a.example:5000", "b", "a.example:5000"),
            ("z.example", "b", "*.example"),
            ("docker.io", "library/x", "https://index.docker.io/v1/"),
            ("v2.example", "x", "http://v2.example/v2/"),
        ] {
            let name = expected.replace(':', "_");
            let expected = Credentials::password(name, "p".into()).unwrap();
            assert!(find(host, path) == expected, "{host}/{path}");
        }
        for (host, path) in [
            ("a.example:5001", "b"),
            ("y.z.example", "b"),
            ("b.other", "x"),
        ] {
            assert!(find(host, path).is_none(), "{host}/{path}");
        }
    }

    #[test]
    fn every_kind_of_credentials() {
        let files = files(
            r#"{"auths": {
                "a": {"username": "u", "password": "p:q"},
                "b": {"auth": "PHRva2VuPjo=", "identitytoken": "i"},
                "c": {"registrytoken": "r"},
                "d": {"auth": "dTpwAAA="},
                "e": {}}}"#,
        );
        let find = |host: &str| files.find(host, "x").unwrap();
        let password = |name: &str, word: &str| Credentials::password(name.into(), word.into());
        assert!(find("a") == password("u", "p:q").unwrap());
        assert!(find("b") == Credentials::identity("i".into()).unwrap());
        assert!(find("c") == Credentials::token("r".into()).unwrap());
        assert!(find("d") == password("u", "p").unwrap());
        assert!(find("e").is_none() && find("f").is_none());
    }

    #[test]
    fn helpers_are_refused_for_those_that_they_are_for() {
        let files = files(
            r#"{"auths": {"a": {}, "b": {"auth": "dTpw"}}, "credsStore": "x", "credHelpers": {"c": "y"}}"#,
        );
        for host in ["a", "c"] {
            let error = files.find(host, "x").unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("/auth.json: {host}: ")),
                "{error}"
            );
        }
        assert!(!files.find("b", "x").unwrap().is_none());
        assert!(files.find("d", "x").unwrap().is_none());
    }

    #[test]
    fn an_error_shows_nothing_of_the_file() {
        for text in [
            r#"{"auths": {"a": {"auth": SECRET}}}"#,
            r#"{"auths": {"a": {"password": ["SECRET"]}}}"#,
            r#"{"auths": {"a": "SECRET"}}"#,
            r#"SECRET"#,
        ] {
            let error = parse(Path::new("/auth.json"), text.as_bytes())
                .err()
                .unwrap();
            let error = error.to_string();
            assert!(error.starts_with("/auth.json: line 1: "), "{error}");
            assert!(!error.contains("SECRET"), "{error}");
        }
        for text in [
            r#"{"auth": "SECRET!"}"#,
            r#"{"auth": "U0VDUkVU"}"#,
            r#"{"registrytoken": "SECRET\n"}"#,
        ] {
            let files = files(&format!("{{\"auths\": {{\"a\": {text}}}}}"));
            let error = files.find("a", "x").unwrap_err().to_string();
            assert!(
                !error.contains("SECRET") && !error.contains("U0VDUkVU"),
                "{error}"
            );
        }
    }

    #[test]
    fn stars_stand_for_text_in_a_label() {
        for (pattern, host, expected) in [
            ("*.a.io", "x.a.io", true),
            ("*.a.io", "a.io", false),
            ("*.a.io", "y.x.a.io", false),
            ("x*z.a.io", "xyz.a.io", true),
            ("x*y*z.a.io", "xaybz.a.io", true),
            ("x*y*z.a.io", "xaz.a.io", false),
            ("*.a.io:5000", "x.a.io:5000", true),
            ("*.a.io", "x.a.io:5000", false),
            ("[::1]:5", "[::1]:5", true),
            ("[::1]", "[::1]", true),
        ] {
            assert_eq!(fits(pattern, host), expected, "{pattern} {host}");
        }
    }
}
