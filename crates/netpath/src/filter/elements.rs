//! What sets and maps have for a key of which perhaps only a part is known.

use carpel_netlink::netfilter::listing::{ListedElement, ListedSet};

use super::bits::Bits;

/// The element that a set has for a key, if that is certain; else those that it may be.
pub(super) fn found<'s>(
    set: &'s ListedSet,
    key: &Bits,
) -> (Option<&'s ListedElement>, Vec<&'s ListedElement>) {
    let mut possible = Vec::new();
    for element in &set.elements {
        if element.ends_interval || element.is_catchall {
            continue;
        }
        match holds(set, element, key) {
            Some(true) => return (Some(element), Vec::new()),
            Some(false) => {}
            None => possible.push(element),
        }
    }
    let catchall = set.elements.iter().find(|element| element.is_catchall);
    match catchall {
        Some(rest) if possible.is_empty() => (Some(rest), Vec::new()),
        rest => {
            possible.extend(rest);
            (None, possible)
        }
    }
}

/// Whether an element stands for a key.
fn holds(set: &ListedSet, element: &ListedElement, key: &Bits) -> Option<bool> {
    let length = key.len();
    if let Some(end) = &element.key_end {
        // Parts, each between its ends.
        let mut answer = Some(true);
        for at in (0..length).step_by(4) {
            let word = |bytes: &[u8]| bytes.get(at..at + 4).unwrap_or_default().to_vec();
            match key.part(at, 4).is_between(&word(&element.key), &word(end)) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => answer = None,
            }
        }
        return answer;
    }
    if !set.has_intervals {
        return key.equals(&element.key);
    }
    // It begins here and ends just before the next end.
    let ends = set
        .elements
        .iter()
        .filter(|other| other.ends_interval && other.key > element.key);
    let end = ends.map(|other| other.key.as_slice()).min();
    let last = match end {
        None => vec![0xff; length],
        Some(end) => before(end),
    };
    key.is_between(&element.key, &last)
}

/// The number just before, big-endian.
fn before(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrowed) = byte.overflowing_sub(1);
        *byte = less;
        if !borrowed {
            break;
        }
    }
    bytes
}
