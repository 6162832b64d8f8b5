//! Texts that the kernel keeps with rules and elements for those who made them.

use crate::as_text;

/// What the nft command shows as a comment.
pub const COMMENT: u8 = 0;
/// A label that nobody shows: iptables takes a rule with it for its own.
pub const LABEL: u8 = 202;

/// Appends a text under a tag.
pub fn append(mut data: Vec<u8>, tag: u8, text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("labels are short");
    data.extend([tag, length]);
    data.extend(text.as_bytes());
    data.push(0);
    data
}

/// The text under a tag.
pub fn find(mut data: &[u8], wanted: u8) -> Option<String> {
    while let [tag, length, rest @ ..] = data {
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *tag == wanted {
            return Some(as_text(value));
        }
        data = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_back() {
        let data = append(append(Vec::new(), COMMENT, "a b"), LABEL, "x");
        assert_eq!(find(&data, COMMENT).unwrap(), "a b");
        assert_eq!(find(&data, LABEL).unwrap(), "x");
        assert_eq!(find(&data, 7), None);
        assert_eq!(find(&[0, 9, b'x'], COMMENT), None);
    }
}
