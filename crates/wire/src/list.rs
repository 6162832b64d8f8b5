//! Lists of NUL-terminated strings, as `execve(2)` wants its arguments.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Strings one after the other, each ended by a NUL byte. Each can be handed to the kernel in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NulList<'a>(#[serde(borrow)] &'a [u8]);

impl<'a> NulList<'a> {
    /// Reads `bytes` as a list. `None` if the last string is not ended by a NUL.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        (bytes.is_empty() || bytes.ends_with(&[0])).then_some(Self(bytes))
    }

    /// The strings in order, each with its NUL.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.0.split_inclusive(|byte| *byte == 0)
    }

    /// How many strings there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().filter(|byte| **byte == 0).count()
    }

    /// Whether the last string is ended. A list that came over the wire is checked with this before
    /// any of it goes to the kernel.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        self.0.is_empty() || self.0.ends_with(&[0])
    }
}

/// The bytes of a [`NulList`] of `strings`.
///
/// # Errors
/// A string that holds a NUL byte is returned as the error.
#[cfg(feature = "alloc")]
pub fn encode_nul_list<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Result<Vec<u8>, S> {
    let mut bytes = Vec::new();
    for string in strings {
        if string.as_ref().contains(&0) {
            return Err(string);
        }
        bytes.extend_from_slice(string.as_ref());
        bytes.push(0);
    }
    Ok(bytes)
}
