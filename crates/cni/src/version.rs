//! The versions of the CNI specification that are spoken here.

use crate::error::{Code, Error};

/// A spoken version, ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a configuration's `cniVersion`; none at all means 0.1.0.
    ///
    /// Errors: `Decode` for what is no version, `IncompatibleVersion` for one not spoken.
    pub fn parse(text: Option<&str>) -> Result<Version, Error> {
        let text = text.filter(|text| !text.is_empty()).unwrap_or("0.1.0");
        if let Some(version) = Version::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
        {
            return Ok(version);
        }
        let numbers = text
            .split('.')
            .filter(|part| part.parse::<u32>().is_ok())
            .count();
        if numbers != text.split('.').count() || numbers > 3 {
            return Err(Error::new(
                Code::Decode,
                format!("cniVersion {text:?} is not a version"),
            ));
        }
        let spoken = Version::ALL.map(Version::as_str).join(", ");
        Err(
            Error::new(Code::IncompatibleVersion, "incompatible CNI versions").details(format!(
                "the configuration is {text:?}, the plugin speaks {spoken}"
            )),
        )
    }

    /// Before 0.3 a result has one address of each family, and nothing of interfaces.
    pub fn is_flat(self) -> bool {
        self < Version::V0_3_0
    }

    /// Before 1.0 every address of a result carries its family.
    pub fn names_families(self) -> bool {
        self < Version::V1_0_0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spoken_version_reads_back() {
        for version in Version::ALL {
            assert_eq!(Version::parse(Some(version.as_str())).unwrap(), version);
        }
    }

    #[test]
    fn none_is_the_first() {
        for text in [None, Some("")] {
            assert_eq!(Version::parse(text).unwrap(), Version::V0_1_0);
        }
    }

    #[test]
    fn others_are_told_apart() {
        for text in [Some("0.0.9"), Some("1.2.0"), Some("2"), Some("0.4")] {
            assert!(
                Version::parse(text)
                    .unwrap_err()
                    .is(Code::IncompatibleVersion),
                "{text:?}"
            );
        }
        for text in ["x", "1.x", "1..0", "1.0.0.0", "-1.0.0"] {
            assert!(
                Version::parse(Some(text)).unwrap_err().is(Code::Decode),
                "{text}"
            );
        }
    }
}
