//! Where an entry of a layer goes: its path checked, and told from a whiteout.

use super::UnpackError;
use super::tree::split;

const WHITEOUT: &[u8] = b".wh.";
/// What aufs kept for itself; only the opaque mark has a meaning.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// Where an entry goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Root,
    /// A checked path.
    Path(Vec<u8>),
    /// Removes this checked path from the layers below.
    Whiteout(Vec<u8>),
    /// Removes all that the layers below have in this folder.
    Opaque(Vec<u8>),
    /// Of no meaning.
    Ignored,
}

impl Place {
    pub(super) fn of(path: &[u8]) -> Result<Self, UnpackError> {
        let path = checked(path)?;
        let (folder, name) = split(&path);
        let is_meta = |part: &[u8]| part.starts_with(WHITEOUT_META);
        if name == WHITEOUT_OPAQUE {
            return Ok(Self::Opaque(folder.to_vec()));
        }
        if path.split(|&b| b == b'/').any(is_meta) {
            return Ok(Self::Ignored);
        }
        if folder
            .split(|&b| b == b'/')
            .any(|part| part.starts_with(WHITEOUT))
        {
            return Err(UnpackError::entry(&path, "a whiteout with something in it"));
        }
        match name.strip_prefix(WHITEOUT) {
            None if path.is_empty() => Ok(Self::Root),
            None => Ok(Self::Path(path)),
            Some(b"" | b"." | b"..") => Err(UnpackError::entry(&path, "a whiteout of nothing")),
            Some(removed) if folder.is_empty() => Ok(Self::Whiteout(removed.to_vec())),
            Some(removed) => Ok(Self::Whiteout([folder, b"/", removed].concat())),
        }
    }
}

/// Makes a path relative and plain. Absolute ones count from the layer's root.
pub(super) fn checked(path: &[u8]) -> Result<Vec<u8>, UnpackError> {
    if path.contains(&0) {
        return Err(UnpackError::entry(path, "a zero byte in its path"));
    }
    let mut plain = Vec::with_capacity(path.len());
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(UnpackError::entry(path, "\"..\" in its path")),
            _ => {}
        }
        if !plain.is_empty() {
            plain.push(b'/');
        }
        plain.extend_from_slice(part);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn places() {
        let path = |text: &[u8]| Place::Path(text.to_vec());
        for (given, expected) in [
            (&b"a/b"[..], path(b"a/b")),
            (b"/a//./b/", path(b"a/b")),
            (b"", Place::Root),
            (b"./", Place::Root),
            (b"/", Place::Root),
            (b"...", path(b"...")),
            (b".wh.a", Place::Whiteout(b"a".to_vec())),
            (b"d/.wh.a/", Place::Whiteout(b"d/a".to_vec())),
            (b"d/.wh...a", Place::Whiteout(b"d/..a".to_vec())),
            (b"d/.wh..wh..opq", Place::Opaque(b"d".to_vec())),
            (b".wh..wh..opq", Place::Opaque(Vec::new())),
            (b".wh..wh.plnk/1.2", Place::Ignored),
            (b".wh..wh.aufs", Place::Ignored),
        ] {
            assert_eq!(
                Place::of(given).unwrap(),
                expected,
                "{}",
                given.escape_ascii()
            );
        }
        for bad in [
            &b"../a"[..],
            b"a/../b",
            b"..",
            b"a/..",
            b"/..",
            b".wh.",
            b".wh..",
            b".wh...",
            b"a/.wh../b",
            b".wh.a/b",
            b"a\0b",
        ] {
            assert!(Place::of(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_checked_path_is_plain(bytes in proptest::collection::vec(
            proptest::sample::select(b"/./a\0\xff".to_vec()), 0..12)
        ) {
            if let Ok(path) = checked(&bytes) {
                let plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
                prop_assert!(path.is_empty() || path.split(|&b| b == b'/').all(plain));
                prop_assert!(!path.contains(&0));
            }
        }
    }
}
