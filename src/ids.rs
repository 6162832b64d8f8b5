//! The names that carpel gives: 64 lower-case hex digits, one type for each kind of object.
//!
//! An id that exists as one of these types is well-formed, so it can be part of a path.

use std::fmt;
use std::str::FromStr;

use carpel_wire::ObjectId;
use serde::{Deserialize, Serialize};

/// A string that is no id: not 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id of 64 lower-case hex digits")]
pub struct InvalidId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(ObjectId);

        impl $name {
            /// A new random id.
            #[must_use]
            pub fn random() -> Self {
                Self(rand::random())
            }

            /// The id as the supervisor knows it.
            #[must_use]
            pub fn object(&self) -> ObjectId {
                self.0
            }
        }

        impl From<ObjectId> for $name {
            fn from(object: ObjectId) -> Self {
                Self(object)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                let mut object = [0; 32];
                if !lower || hex::decode_to_slice(text, &mut object).is_err() {
                    return Err(InvalidId);
                }
                Ok(Self(object))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id! {
    /// A pod sandbox.
    SandboxId
}
id! {
    /// A container.
    ContainerId
}
id! {
    /// One run of a command in a container.
    ExecId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_64_lower_case_hex_digits() {
        let id = SandboxId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "../..",
            &"A".repeat(64),
            &"a".repeat(63),
            &"a".repeat(65),
            &"g".repeat(64),
        ] {
            assert_eq!(bad.parse::<SandboxId>(), Err(InvalidId), "{bad}");
        }
    }
}
