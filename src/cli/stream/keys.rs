//! The keys that leave a session without ending it: Ctrl-P, Ctrl-Q.

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Looks for the keys in what is typed.
#[derive(Debug, Default)]
pub struct DetachKeys {
    /// Ctrl-P was typed, and held back until the next key.
    begun: bool,
}

impl DetachKeys {
    /// What of `typed` is to be sent, and whether the keys are behind it.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut sent = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            match (std::mem::take(&mut self.begun), key) {
                (true, CTRL_Q) => return (sent, true),
                // Typed twice it is meant once for us and once for the other side.
                (true, CTRL_P) => sent.push(CTRL_P),
                (true, key) => sent.extend([CTRL_P, key]),
                (false, CTRL_P) => self.begun = true,
                (false, key) => sent.push(key),
            }
        }
        (sent, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_found_wherever_reads_cut() {
        for (reads, expected, detached) in [
            (&[&b"ab"[..]][..], &b"ab"[..], false),
            (&[b"ab\x10\x11cd"], b"ab", true),
            (&[b"ab\x10", b"\x11"], b"ab", true),
            (&[b"\x10", b"x"], b"\x10x", false),
            (&[b"\x11\x10"], b"\x11", false),
            (&[b"\x10\x10\x11"], b"\x10\x11", false),
        ] {
            let (mut keys, mut all, mut found) = (DetachKeys::default(), Vec::new(), false);
            for read in reads {
                let (sent, detach) = keys.filter(read);
                all.extend(sent);
                found |= detach;
            }
            assert_eq!((all.as_slice(), found), (expected, detached), "{reads:?}");
        }
    }
}
