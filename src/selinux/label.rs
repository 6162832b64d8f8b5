//! A label, and what a request changes of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::config::SelinuxOptions;

/// What the kernel calls a context: "user:role:type:level", or without a level where the policy has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    user: String,
    role: String,
    /// "type" is a word of the language.
    kind: String,
    level: Option<String>,
}

/// A text is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no label (user:role:type:level)")]
pub struct NoLabel(String);

impl FromStr for Label {
    type Err = NoLabel;

    fn from_str(text: &str) -> Result<Self, NoLabel> {
        // A level has colons of its own.
        let mut parts = text.splitn(4, ':');
        let mut part = || parts.next().filter(|part| !part.is_empty());
        let (Some(user), Some(role), Some(kind)) = (part(), part(), part()) else {
            return Err(NoLabel(text.to_owned()));
        };
        let level = parts.next();
        if level == Some("") || text.contains(|c: char| c.is_control() || c == ' ') {
            return Err(NoLabel(text.to_owned()));
        }
        Ok(Self {
            user: user.to_owned(),
            role: role.to_owned(),
            kind: kind.to_owned(),
            level: level.map(str::to_owned),
        })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        match &self.level {
            Some(level) => write!(f, ":{level}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Label {
    type Error = NoLabel;

    fn try_from(text: String) -> Result<Self, NoLabel> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

impl Label {
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    #[must_use]
    pub fn level(&self) -> Option<&str> {
        self.level.as_deref()
    }

    /// The sensitivity alone, "s0": what every level of that sensitivity may read and write.
    #[must_use]
    pub fn sensitivity(&self) -> Option<&str> {
        let level = self.level.as_deref()?;
        level.split([':', '-']).next()
    }

    #[must_use]
    pub fn with_level(&self, level: Option<&str>) -> Self {
        Self {
            level: level.map(str::to_owned),
            ..self.clone()
        }
    }

    /// For what containers of several levels share.
    #[must_use]
    pub fn shared(&self) -> Self {
        self.with_level(self.sensitivity())
    }

    /// With what the options say of a process.
    #[must_use]
    pub fn of_process(&self, options: &SelinuxOptions) -> Self {
        let or = |option: &Option<String>, ours: &str| option.as_deref().unwrap_or(ours).to_owned();
        Self {
            role: or(&options.role, &self.role),
            kind: or(&options.kind, &self.kind),
            ..self.of_files(options)
        }
    }

    /// With what the options say of files: nobody chooses their role and type.
    #[must_use]
    pub fn of_files(&self, options: &SelinuxOptions) -> Self {
        Self {
            user: options.user.as_ref().unwrap_or(&self.user).clone(),
            level: options.level.as_ref().or(self.level.as_ref()).cloned(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    #[test]
    fn labels_are_read_and_written() {
        for text in [
            "system_u:system_r:container_t:s0:c1,c2",
            "system_u:object_r:container_file_t:s0-s0:c0.c1023",
            "u:r:t",
        ] {
            assert_eq!(label(text).to_string(), text);
            let json = serde_json::to_string(&label(text)).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Label>(&json).unwrap(), label(text));
        }
        for text in [
            "", "u", "u:r", "u::t", "u:r:", "u:r:t:", "u:r:t\0", "u:r:t: ", "u:r:t\n",
        ] {
            assert_eq!(text.parse::<Label>(), Err(NoLabel(text.to_owned())));
        }
    }

    #[test]
    fn levels_have_a_sensitivity() {
        for (level, sensitivity) in [
            ("s0", "s0"),
            ("s0:c1,c2", "s0"),
            ("s1-s3:c0.c9", "s1"),
            ("s0:c1-s0:c1,c2", "s0"),
        ] {
            let label = label(&format!("u:r:t:{level}"));
            assert_eq!(label.sensitivity(), Some(sensitivity));
            assert_eq!(label.shared().to_string(), format!("u:r:t:{sensitivity}"));
        }
        assert_eq!(label("u:r:t").shared(), label("u:r:t"));
    }

    #[test]
    fn options_change_a_process_in_all_and_files_in_user_and_level() {
        let (process, file) = (label("u:r:t:s0:c1,c2"), label("u:object_r:f:s0:c1,c2"));
        let nothing = SelinuxOptions::default();
        assert_eq!(process.of_process(&nothing), process);
        assert_eq!(file.of_files(&nothing), file);
        let all = SelinuxOptions {
            user: Some("U".into()),
            role: Some("R".into()),
            kind: Some("T".into()),
            level: Some("s0:c3".into()),
        };
        assert_eq!(process.of_process(&all), label("U:R:T:s0:c3"));
        assert_eq!(file.of_files(&all), label("U:object_r:f:s0:c3"));
    }
}
