//! The names of devices: `vendor.com/class=name`.

use std::collections::BTreeMap;
use std::fmt;

/// Before what an annotation's key says about devices.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The name of a device, with its vendor and class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QualifiedName(String);

impl QualifiedName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it, to be said behind the name.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (kind, device) = text
            .split_once('=')
            .ok_or("is not of the form \"vendor.com/class=name\"")?;
        check_kind(kind)?;
        check_device(device)?;
        Ok(Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The devices that annotations name, in the order of their keys.
///
/// # Errors
/// The key of one that is wrong, and why.
pub fn from_annotations(
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<QualifiedName>, (String, String)> {
    let mut names = Vec::new();
    for (key, value) in annotations {
        if !key.starts_with(ANNOTATION) {
            continue;
        }
        for device in value.split(',') {
            let name = QualifiedName::parse(device)
                .map_err(|why| (key.clone(), format!("{device:?} {why}")))?;
            names.push(name);
        }
    }
    Ok(names)
}

/// A vendor and a class.
pub(super) fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind
        .split_once('/')
        .ok_or("has no class: \"vendor.com/class\"")?;
    let letters = |c: char| matches!(c, '_' | '-' | '.');
    let begins = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
    if !begins(vendor) || !is_word(vendor, letters) {
        return Err(
            "has no vendor that begins with a letter, ends with a letter or digit, and \
                    has only these, \"_\", \"-\" and \".\"",
        );
    }
    if !begins(class) || !is_word(class, letters) {
        return Err(
            "has no class that begins with a letter, ends with a letter or digit, and \
                    has only these, \"_\", \"-\" and \".\"",
        );
    }
    Ok(())
}

/// The name of a device in its class.
pub(super) fn check_device(name: &str) -> Result<(), &'static str> {
    if is_word(name, |c| matches!(c, '_' | '-' | '.' | ':')) {
        Ok(())
    } else {
        Err(
            "has no name that begins and ends with a letter or digit, and has only these, \"_\", \"-\", \".\" \
             and \":\"",
        )
    }
}

fn is_word(text: &str, between: impl Fn(char) -> bool) -> bool {
    let end = |c: char| c.is_ascii_alphanumeric();
    !text.is_empty()
        && text.len() <= 253
        && text.starts_with(end)
        && text.ends_with(end)
        && text.chars().all(|c| end(c) || between(c))
}
