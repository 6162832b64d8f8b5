//! The checks that many fields share: names, paths, bounded texts and lists.

use std::collections::BTreeMap;

use super::{Field, Rejected, Shown};

/// Longest name of an object (Kubernetes: a DNS subdomain).
const MAX_NAME: usize = 253;
/// Longest path that the kernel takes, without its NUL.
const MAX_PATH: usize = 4095;
/// Longest text of any other kind, bytes.
pub const MAX_TEXT: usize = 64 << 10;
/// Labels or annotations of an object, all together, bytes. Kubernetes allows 256 KiB of annotations.
const MAX_MAP_BYTES: usize = 1 << 20;
const MAX_MAP_ENTRIES: usize = 10_000;

/// A name: letters, digits, "-", "_" and ".", not empty, without "..".
pub fn name<'a>(field: &Field<'_>, text: &'a str) -> Result<&'a str, Rejected> {
    if text.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    if text.len() > MAX_NAME {
        return Err(field.invalid(format_args!(
            "is {} bytes long, more than {MAX_NAME}",
            text.len()
        )));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(bad) = text.chars().find(|&c| !allowed(c)) {
        return Err(field.invalid(format_args!(
            "{} must not contain {bad:?}, only letters, digits, \"-\", \"_\" and \".\"",
            Shown(text)
        )));
    }
    if text == "." || text.contains("..") {
        return Err(field.invalid(format_args!(
            "{} must not be \".\" or contain \"..\"",
            Shown(text)
        )));
    }
    Ok(text)
}

/// An absolute path, brought into normal form: no "//", no ".", no "/" at its end. A ".." is refused,
/// because what it means depends on links.
pub fn absolute_path(field: &Field<'_>, path: &str) -> Result<String, Rejected> {
    bounded_path(field, path)?;
    if !path.starts_with('/') {
        return Err(field.invalid(format_args!("{} must be absolute", Shown(path))));
    }
    let normal = components(field, path)?;
    Ok(format!("/{}", normal.join("/")))
}

/// A relative path in normal form that stays below where it starts.
pub fn relative_path(field: &Field<'_>, path: &str) -> Result<String, Rejected> {
    bounded_path(field, path)?;
    if path.starts_with('/') {
        return Err(field.invalid(format_args!("{} must be relative", Shown(path))));
    }
    let normal = components(field, path)?;
    if normal.is_empty() {
        return Err(field.invalid(format_args!("{} names no file", Shown(path))));
    }
    Ok(normal.join("/"))
}

/// An absolute path that is kept as it is: whoever uses it resolves it safely.
pub fn raw_absolute_path(field: &Field<'_>, path: &str) -> Result<String, Rejected> {
    bounded_path(field, path)?;
    if !path.starts_with('/') {
        return Err(field.invalid(format_args!("{} must be absolute", Shown(path))));
    }
    Ok(path.to_owned())
}

fn bounded_path(field: &Field<'_>, path: &str) -> Result<(), Rejected> {
    if path.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    if path.len() > MAX_PATH {
        return Err(field.invalid(format_args!(
            "is {} bytes long, more than the {MAX_PATH} of a path",
            path.len()
        )));
    }
    no_nul(field, path.as_bytes())
}

fn components<'a>(field: &Field<'_>, path: &'a str) -> Result<Vec<&'a str>, Rejected> {
    const MAX_COMPONENT: usize = 255;
    let mut normal = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                return Err(field.invalid(format_args!("{} must not contain \"..\"", Shown(path))));
            }
            long if long.len() > MAX_COMPONENT => {
                return Err(field.invalid(format_args!(
                    "has a component of {} bytes, more than {MAX_COMPONENT}",
                    long.len()
                )));
            }
            component => normal.push(component),
        }
    }
    Ok(normal)
}

/// No NUL, which would end a string for the kernel.
pub fn no_nul(field: &Field<'_>, bytes: &[u8]) -> Result<(), Rejected> {
    if bytes.contains(&0) {
        return Err(field.invalid("must not contain NUL"));
    }
    Ok(())
}

/// At most `limit` bytes.
pub fn at_most(field: &Field<'_>, length: usize, limit: usize) -> Result<(), Rejected> {
    if length > limit {
        return Err(field.invalid(format_args!("is {length} bytes long, more than {limit}")));
    }
    Ok(())
}

/// At most `limit` entries in a list.
pub fn no_more_than(field: &Field<'_>, length: usize, limit: usize) -> Result<(), Rejected> {
    if length > limit {
        return Err(field.invalid(format_args!("has {length} entries, more than {limit}")));
    }
    Ok(())
}

/// One word: not empty, no white space, no control characters. Safe as part of a line of a file.
pub fn word<'a>(field: &Field<'_>, text: &'a str) -> Result<&'a str, Rejected> {
    if text.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    at_most(field, text.len(), MAX_PATH)?;
    if let Some(bad) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(field.invalid(format_args!("{} must not contain {bad:?}", Shown(text))));
    }
    Ok(text)
}

/// Labels or annotations: opaque, but bounded.
pub fn opaque_map(
    field: &Field<'_>,
    map: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Rejected> {
    no_more_than(field, map.len(), MAX_MAP_ENTRIES)?;
    let bytes = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    at_most(field, bytes, MAX_MAP_BYTES)?;
    Ok(map)
}

/// A user or group id. The kernel's "no change" value, 2^32 - 1, is none.
pub fn id(field: &Field<'_>, id: i64) -> Result<u32, Rejected> {
    u32::try_from(id)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| {
            field.invalid(format_args!(
                "{id} is no user or group id (0 to 4294967294)"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELD: Field<'static> = Field::root("field");

    fn text<T>(result: Result<T, Rejected>) -> String {
        result
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn names_hold_no_path() {
        for good in ["a", "a.b-c_D9", "kube-apiserver-node", &"x".repeat(253)] {
            assert_eq!(name(&FIELD, good), Ok(good));
        }
        for (bad, why) in [
            ("", "field: must not be empty"),
            ("..", "field: \"..\" must not be \".\" or contain \"..\""),
            (".", "field: \".\" must not be \".\" or contain \"..\""),
            (
                "a/b",
                "field: \"a/b\" must not contain '/', only letters, digits, \"-\", \"_\" and \".\"",
            ),
            (
                "a\0",
                "field: \"a\\0\" must not contain '\\0', only letters, digits, \"-\", \"_\" and \".\"",
            ),
            (&"x".repeat(254), "field: is 254 bytes long, more than 253"),
        ] {
            assert_eq!(text(name(&FIELD, bad)), why);
        }
    }

    #[test]
    fn paths_come_out_normal() {
        assert_eq!(absolute_path(&FIELD, "//a/./b//").as_deref(), Ok("/a/b"));
        assert_eq!(absolute_path(&FIELD, "/").as_deref(), Ok("/"));
        assert_eq!(relative_path(&FIELD, "a//b/").as_deref(), Ok("a/b"));
        for bad in [
            "",
            "a",
            "/a/../b",
            "/..",
            "/a\0b",
            &"/a".repeat(2048),
            &format!("/{}", "a".repeat(256)),
        ] {
            assert!(absolute_path(&FIELD, bad).is_err(), "{bad}");
        }
        for bad in ["", "/a", "../a", "a/..", ".", "./", "a\0"] {
            assert!(relative_path(&FIELD, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_what_the_kernel_takes() {
        assert_eq!(id(&FIELD, 0), Ok(0));
        assert_eq!(id(&FIELD, 4_294_967_294), Ok(4_294_967_294));
        for bad in [-1, 4_294_967_295, 4_294_967_296, i64::MIN, i64::MAX] {
            assert!(id(&FIELD, bad).is_err(), "{bad}");
        }
    }
}
