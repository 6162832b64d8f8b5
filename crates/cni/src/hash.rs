//! A short name for long things.

/// FNV-1a of the parts, each ended by a zero. It must never change: what one version of the plugin
/// named so, a later one looks for.
pub fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_change() {
        assert_eq!(hash(&[]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(&["net", "abc"]), 4_945_759_657_333_905_320);
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }
}
