//! The environment of a container's processes.
//!
//! Values are bytes, which an OCI spec cannot hold. So the spec has them as text, and beside it the few
//! that are not UTF-8 are kept as they are: see [`BinaryEnv`].

use serde::{Deserialize, Serialize};

/// What PATH is if nobody says it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables in order; a name occurs once.
#[derive(Debug, Default, Clone)]
pub(super) struct Environment(Vec<(String, Vec<u8>)>);

impl Environment {
    pub(super) fn set(&mut self, name: &str, value: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.to_owned(),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Sets "NAME=value"; a bare "NAME" removes the variable.
    pub(super) fn apply(&mut self, entry: &str) {
        match entry.split_once('=') {
            Some(("", _)) => {}
            Some((name, value)) => self.set(name, value.as_bytes()),
            None => self.0.retain(|(name, _)| name != entry),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// The name of a variable with a NUL byte in it, which no process can have.
    pub(super) fn with_nul(&self) -> Option<&str> {
        let nul = |(name, value): &&(String, Vec<u8>)| name.contains('\0') || value.contains(&0);
        self.0.iter().find(nul).map(|(name, _)| name.as_str())
    }

    /// As the spec has it, and what it cannot hold.
    pub(super) fn split(self) -> (Vec<String>, BinaryEnv) {
        let mut binary = Vec::new();
        let text = self
            .0
            .into_iter()
            .map(|(name, value)| {
                let text = format!("{name}={}", String::from_utf8_lossy(&value));
                if std::str::from_utf8(&value).is_err() {
                    binary.push(BinaryVariable { name, value });
                }
                text
            })
            .collect();
        (text, BinaryEnv(binary))
    }
}

/// The variables whose values are not UTF-8. A variable that was edited in the spec since is the edit's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BinaryEnv(Vec<BinaryVariable>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BinaryVariable {
    name: String,
    #[serde(with = "base64_bytes")]
    value: Vec<u8>,
}

impl BinaryEnv {
    /// The variables of a spec, with the true bytes of those that it could not hold.
    pub(super) fn merge(&self, spec: &[String]) -> Vec<Vec<u8>> {
        spec.iter()
            .map(|entry| {
                let (name, text) = entry.split_once('=').unwrap_or((entry, ""));
                let true_value = self.0.iter().find(|variable| {
                    variable.name == name && String::from_utf8_lossy(&variable.value) == text
                });
                match true_value {
                    Some(variable) => [name.as_bytes(), b"=", &variable.value].concat(),
                    None => entry.clone().into_bytes(),
                }
            })
            .collect()
    }
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(from)?)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_spec_and_the_record() {
        let mut environment = Environment::default();
        environment.apply("A=1");
        environment.apply("B=2");
        environment.apply("=x");
        environment.apply("A=");
        environment.apply("B");
        environment.set("BYTES", b"\xff=\xfe");
        environment.set("EDITED", b"\xff");
        let (mut text, binary) = environment.split();
        assert_eq!(text, ["A=", "BYTES=\u{fffd}=\u{fffd}", "EDITED=\u{fffd}"]);
        text[2] = "EDITED=new".into();
        let json = serde_json::to_string(&binary).unwrap();
        let binary: BinaryEnv = serde_json::from_str(&json).unwrap();
        assert_eq!(
            binary.merge(&text),
            [
                b"A=".to_vec(),
                b"BYTES=\xff=\xfe".to_vec(),
                b"EDITED=new".to_vec()
            ]
        );
    }
}
