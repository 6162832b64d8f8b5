//! A network's configuration, checked: what a `.conflist` (or a single `.conf`) says once it has been parsed.
//!
//! A [`NetworkConf`] that exists has a name that is a plain file name, a version that carpel speaks, at least
//! one plugin, and only plugin types that are plain file names (CVE-2021-20206: a type with "../" in it would
//! run any binary of the host).

use std::fmt;

use serde_json::{Map, Value, json};

/// The most bytes of one configuration file.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// The most plugins of one chain.
const MAX_PLUGINS: usize = 64;

/// Why a text is no network configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("not a JSON object")]
    NoObject,
    #[error("\"{0}\" is missing")]
    Missing(&'static str),
    #[error("\"{0}\" has the wrong type")]
    WrongType(&'static str),
    #[error("network name {0:?} is not a name of letters, digits, \"_\", \".\" and \"-\"")]
    Name(String),
    #[error("plugin type {0:?} is not a plain file name")]
    PluginType(String),
    #[error("CNI version {0:?} is not a version")]
    Version(String),
    #[error("CNI version {0} is newer than {latest}", latest = Version::LATEST)]
    NewerVersion(Version),
    #[error("the chain has no plugin")]
    NoPlugins,
    #[error("the chain has {0} plugins, more than {MAX_PLUGINS}")]
    TooManyPlugins(usize),
    #[error("neither \"plugins\" nor \"type\" is given")]
    NeitherListNorPlugin,
}

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u16, u16, u16);

impl Version {
    /// What a configuration without a version means.
    const UNSAID: Self = Self(0, 1, 0);
    /// The first whose results are lists of addresses.
    pub(super) const V0_3_0: Self = Self(0, 3, 0);
    /// The first that hands the result to DEL, and the first with CHECK.
    pub(super) const V0_4_0: Self = Self(0, 4, 0);
    pub(super) const V1_0_0: Self = Self(1, 0, 0);
    /// The first with STATUS and GC.
    pub(super) const V1_1_0: Self = Self(1, 1, 0);
    /// The newest that carpel speaks.
    pub(super) const LATEST: Self = Self::V1_1_0;

    /// Reads "1", "1.0" or "1.0.0".
    pub(super) fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::Version(text.chars().take(64).collect());
        let mut numbers = [0; 3];
        let mut parts = text.split('.');
        for number in &mut numbers {
            let Some(part) = parts.next() else { break };
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(invalid());
            }
            *number = part.parse().map_err(|_| invalid())?;
        }
        if parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self(numbers[0], numbers[1], numbers[2]))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PluginConf {
    /// The binary's name.
    pub kind: String,
    /// Everything that the file says of it.
    pub raw: Map<String, Value>,
}

impl PluginConf {
    pub(super) fn parse(value: Value) -> Result<Self, Invalid> {
        let Value::Object(raw) = value else {
            return Err(Invalid::NoObject);
        };
        let kind = text(&raw, "type")?.ok_or(Invalid::Missing("type"))?;
        if !is_file_name(kind) {
            return Err(Invalid::PluginType(kind.chars().take(256).collect()));
        }
        if raw.get("capabilities").is_some_and(|c| !c.is_object()) {
            return Err(Invalid::WrongType("capabilities"));
        }
        Ok(Self {
            kind: kind.to_owned(),
            raw,
        })
    }

    /// Whether the plugin asks for the runtime's value of `capability`.
    pub(super) fn wants(&self, capability: &str) -> bool {
        let declared = self.raw.get("capabilities").and_then(|c| c.get(capability));
        declared.and_then(Value::as_bool).unwrap_or(false)
    }
}

/// A network: a chain of plugins under one name and one version.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NetworkConf {
    pub name: String,
    pub version: Version,
    pub disable_gc: bool,
    pub disable_check: bool,
    pub plugins: Vec<PluginConf>,
    /// Whether plugins may stand in files of a folder beside the list.
    pub reads_folder: bool,
}

impl NetworkConf {
    /// Reads a list or a single plugin's configuration. A list that leaves its plugins to a folder comes out
    /// with none: [`NetworkConf::complete`] is for after the folder was read.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let value = serde_json::from_slice(bytes).map_err(|e| Invalid::Json(e.to_string()))?;
        Self::from_value(value)
    }

    /// Whether a plugin opens the host ports that pods ask for.
    pub(super) fn maps_ports(&self) -> bool {
        self.plugins
            .iter()
            .any(|plugin| plugin.wants("portMappings"))
    }

    pub(super) fn from_value(value: Value) -> Result<Self, Invalid> {
        let Value::Object(mut raw) = value else {
            return Err(Invalid::NoObject);
        };
        let name = text(&raw, "name")?
            .ok_or(Invalid::Missing("name"))?
            .to_owned();
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !is_file_name(&name) {
            return Err(Invalid::Name(name.chars().take(256).collect()));
        }
        let version = version(&raw)?;
        let disable_gc = flag(&raw, "disableGC")?;
        let disable_check = flag(&raw, "disableCheck")?;
        let only_inlined = flag(&raw, "loadOnlyInlinedPlugins")?;
        let (plugins, reads_folder) = match raw.remove("plugins") {
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err(Invalid::NoPlugins),
            Some(Value::Array(plugins)) => (plugins, !only_inlined),
            Some(_) => return Err(Invalid::WrongType("plugins")),
            None if raw.contains_key("type") => (vec![Value::Object(raw)], false),
            None if only_inlined => return Err(Invalid::NoPlugins),
            None if raw.contains_key("cniVersion") || raw.contains_key("cniVersions") => {
                (Vec::new(), true)
            }
            None => return Err(Invalid::NeitherListNorPlugin),
        };
        if plugins.len() > MAX_PLUGINS {
            return Err(Invalid::TooManyPlugins(plugins.len()));
        }
        let plugins = plugins.into_iter().map(PluginConf::parse);
        Ok(Self {
            name,
            version,
            disable_gc,
            disable_check,
            plugins: plugins.collect::<Result<_, _>>()?,
            reads_folder,
        })
    }

    /// # Errors
    /// If no plugin came together, or too many.
    pub(super) fn complete(self) -> Result<Self, Invalid> {
        match self.plugins.len() {
            0 => Err(Invalid::NoPlugins),
            n if n > MAX_PLUGINS => Err(Invalid::TooManyPlugins(n)),
            _ => Ok(self),
        }
    }

    /// The configuration as one list, from which [`NetworkConf::from_value`] makes the same again.
    pub(super) fn to_value(&self) -> Value {
        let plugins = self
            .plugins
            .iter()
            .map(|plugin| Value::Object(plugin.raw.clone()));
        json!({
            "name": self.name,
            "cniVersion": self.version.to_string(),
            "disableGC": self.disable_gc,
            "disableCheck": self.disable_check,
            "loadOnlyInlinedPlugins": !self.reads_folder,
            "plugins": plugins.collect::<Vec<_>>(),
        })
    }
}

/// The highest version of "cniVersion" and "cniVersions" that carpel speaks.
fn version(raw: &Map<String, Value>) -> Result<Version, Invalid> {
    let mut versions = Vec::new();
    match raw.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(listed)) => {
            for version in listed {
                let version = version.as_str().ok_or(Invalid::WrongType("cniVersions"))?;
                versions.push(Version::parse(version)?);
            }
        }
        Some(_) => return Err(Invalid::WrongType("cniVersions")),
    }
    match text(raw, "cniVersion")? {
        None | Some("") if versions.is_empty() => versions.push(Version::UNSAID),
        None | Some("") => {}
        Some(version) => versions.push(Version::parse(version)?),
    }
    let spoken = versions.iter().filter(|v| **v <= Version::LATEST).max();
    let lowest = versions.iter().min().copied().unwrap_or(Version::UNSAID);
    spoken.copied().ok_or(Invalid::NewerVersion(lowest))
}

fn text<'a>(raw: &'a Map<String, Value>, key: &'static str) -> Result<Option<&'a str>, Invalid> {
    match raw.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Invalid::WrongType(key)),
    }
}

/// A boolean, which files also write as a string.
fn flag(raw: &Map<String, Value>, key: &'static str) -> Result<bool, Invalid> {
    match raw.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(Invalid::WrongType(key)),
    }
}

fn is_file_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<NetworkConf, Invalid> {
        NetworkConf::parse(value.to_string().as_bytes())
    }

    fn version_of(value: Value) -> Result<String, Invalid> {
        let mut list = json!({"name": "n", "plugins": [{"type": "bridge"}]});
        for (key, value) in value.as_object().unwrap() {
            list[key] = value.clone();
        }
        parse(list).map(|conf| conf.version.to_string())
    }

    #[test]
    fn the_highest_version_that_carpel_speaks_is_taken() {
        assert_eq!(version_of(json!({"cniVersion": "0.3.1"})).unwrap(), "0.3.1");
        assert_eq!(version_of(json!({"cniVersion": "1.0"})).unwrap(), "1.0.0");
        assert_eq!(version_of(json!({})).unwrap(), "0.1.0");
        let listed =
            json!({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.1.0", "1.0.0", "2.0.0"]});
        assert_eq!(version_of(listed).unwrap(), "1.1.0");
        let newer = version_of(json!({"cniVersion": "1.2.0"})).unwrap_err();
        assert_eq!(newer.to_string(), "CNI version 1.2.0 is newer than 1.1.0");
        for bad in [
            "x",
            "1.",
            ".1",
            "1.0.0.0",
            "-1.0.0",
            "+1.0.0",
            "99999999.0.0",
        ] {
            assert!(version_of(json!({"cniVersion": bad})).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plugin_type_is_a_plain_file_name() {
        for bad in [
            "../../bin/sh",
            "/bin/sh",
            "..",
            ".",
            "",
            "a b",
            "a\0",
            "a/b",
            "a\n",
        ] {
            let conf = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": bad}]});
            assert!(matches!(parse(conf), Err(Invalid::PluginType(_))), "{bad}");
        }
        let conf =
            json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "calico-ipam_1.2"}]});
        assert_eq!(parse(conf).unwrap().plugins[0].kind, "calico-ipam_1.2");
    }

    #[test]
    fn a_network_name_is_a_plain_file_name() {
        for bad in ["", "../x", "-x", ".x", "a/b", "a b"] {
            assert!(
                matches!(
                    parse(json!({"name": bad, "type": "bridge"})),
                    Err(Invalid::Name(_))
                ),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let conf =
            parse(json!({"cniVersion": "0.3.1", "name": "n", "type": "bridge", "mtu": 9})).unwrap();
        assert_eq!(conf.plugins.len(), 1);
        assert_eq!(conf.plugins[0].raw["mtu"], 9);
        assert!(!conf.reads_folder);
    }

    #[test]
    fn a_list_survives_being_written_down() {
        let list = json!({"cniVersion": "1.1.0", "name": "n", "disableGC": "True", "disableCheck": true,
            "plugins": [{"type": "bridge", "capabilities": {"dns": true, "ips": false}}, {"type": "b"}]});
        let conf = parse(list).unwrap();
        assert!(conf.disable_gc && conf.disable_check && conf.reads_folder);
        assert!(conf.plugins[0].wants("dns") && !conf.plugins[0].wants("ips"));
        assert_eq!(NetworkConf::from_value(conf.to_value()).unwrap(), conf);
    }

    #[test]
    fn what_is_no_configuration_says_why() {
        let cases = [
            ("", "not JSON: "),
            ("[]", "not a JSON object"),
            ("{}", "\"name\" is missing"),
            (
                r#"{"name":"n"}"#,
                "neither \"plugins\" nor \"type\" is given",
            ),
            (r#"{"name":"n","plugins":[]}"#, "the chain has no plugin"),
            (
                r#"{"name":"n","plugins":{}}"#,
                "\"plugins\" has the wrong type",
            ),
            (r#"{"name":"n","plugins":[{}]}"#, "\"type\" is missing"),
            (
                r#"{"name":"n","plugins":[],"disableCheck":3}"#,
                "\"disableCheck\" has the wrong type",
            ),
            (
                r#"{"name":"n","cniVersion":"1.0.0","loadOnlyInlinedPlugins":true}"#,
                "the chain has no plugin",
            ),
        ];
        for (text, why) in cases {
            let error = NetworkConf::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }
}
