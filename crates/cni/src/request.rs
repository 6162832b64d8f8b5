//! What a plugin is asked: the command and its arguments from the environment, the configuration
//! from stdin. Everything is checked here, once.

use std::{collections::HashSet, io::Read, path::PathBuf};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    args::Args,
    error::{Code, Doing, Error},
    label::label,
    result::AddResult,
    version::Version,
};

/// A longer configuration is refused, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;
const MAX_INTERFACE: usize = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

impl Command {
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Check => "CHECK",
            Command::Del => "DEL",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    /// The oldest version that knows the command.
    fn since(self) -> Version {
        match self {
            Command::Add | Command::Del | Command::Version => Version::V0_1_0,
            Command::Check => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
        }
    }

    /// Whether the command concerns one container's interface.
    fn is_about_container(self) -> bool {
        matches!(self, Command::Add | Command::Check | Command::Del)
    }
}

impl std::str::FromStr for Command {
    type Err = Error;

    fn from_str(text: &str) -> Result<Command, Error> {
        let all = [
            Command::Add,
            Command::Check,
            Command::Del,
            Command::Gc,
            Command::Status,
            Command::Version,
        ];
        all.into_iter()
            .find(|command| command.as_str() == text)
            .ok_or_else(|| {
                Error::new(
                    Code::InvalidEnvironment,
                    format!("unknown CNI_COMMAND {text:?}"),
                )
            })
    }
}

/// One interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container: String,
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// A checked request.
#[derive(Debug)]
pub struct Request {
    /// Present for ADD, CHECK and DEL.
    attachment: Option<Attachment>,
    /// Path of the container's network namespace; empty if there is none.
    pub netns: PathBuf,
    /// The container's namespace may be the plugin's own.
    pub own_netns_allowed: bool,
    pub args: Args,
    /// Folders in which other plugins are looked for.
    pub plugin_dirs: Vec<PathBuf>,
    /// The configuration as it came, for other plugins.
    pub stdin: Vec<u8>,
    pub config: Value,
    pub version: Version,
    /// Name of the network: a plain file name.
    pub network: String,
}

impl Request {
    /// Reads a request for `command`, which is not VERSION.
    pub fn read(
        command: Command,
        variable: impl Fn(&str) -> Result<String, Error>,
        stdin: impl Read,
    ) -> Result<Request, Error> {
        let attachment = if command.is_about_container() {
            Some(attachment(&variable)?)
        } else {
            None
        };
        let netns = variable("CNI_NETNS")?;
        if netns.is_empty() && matches!(command, Command::Add | Command::Check) {
            return Err(missing("CNI_NETNS"));
        }
        let path = variable("CNI_PATH")?;
        if path.is_empty() {
            return Err(missing("CNI_PATH"));
        }
        let allowed = variable("CNI_NETNS_OVERRIDE")?;
        let args = Args::parse(&variable("CNI_ARGS")?)?;

        let mut bytes = Vec::new();
        let length = stdin
            .take(MAX_CONFIG + 1)
            .read_to_end(&mut bytes)
            .doing(Code::Io, || "read the configuration from stdin".into())?;
        if length as u64 > MAX_CONFIG {
            return Err(Error::new(
                Code::Decode,
                "configuration is longer than 1 MiB",
            ));
        }
        let config: Value =
            serde_json::from_slice(&bytes).doing(Code::Decode, || "configuration".into())?;
        let network = network_name(&config)?;
        let version = Version::parse(text(&config, "cniVersion")?)?;
        if version < command.since() {
            let msg = format!(
                "{} is not part of CNI {}",
                command.as_str(),
                version.as_str()
            );
            return Err(Error::new(Code::IncompatibleVersion, msg));
        }
        Ok(Request {
            attachment,
            netns: netns.into(),
            own_netns_allowed: allowed == "1" || allowed.eq_ignore_ascii_case("true"),
            args,
            plugin_dirs: std::env::split_paths(&path).collect(),
            stdin: bytes,
            config,
            version,
            network,
        })
    }

    /// The interface this is about.
    ///
    /// Errors: if the command is about none.
    pub fn attachment(&self) -> Result<&Attachment, Error> {
        self.attachment
            .as_ref()
            .ok_or_else(|| missing("CNI_CONTAINERID"))
    }

    /// The result of the plugin before, or on CHECK and DEL that of this network's ADD.
    pub fn prev_result(&self) -> Result<Option<AddResult>, Error> {
        match self.config.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => AddResult::from_json(value.clone())
                .map(Some)
                .map_err(|error| Error {
                    msg: format!("prevResult: {}", error.msg),
                    ..error
                }),
        }
    }

    /// The result of the plugin before, without which the plugin makes no sense.
    pub fn required_prev_result(&self) -> Result<AddResult, Error> {
        self.prev_result()?
            .ok_or_else(|| Error::config("no \"prevResult\" in the configuration"))
    }

    /// The configuration as a plugin reads it. A null is as good as nothing.
    ///
    /// Errors: `Decode`, with the key that is not as it should be.
    pub fn config_of<T: DeserializeOwned>(&self, plugin: &str) -> Result<T, Error> {
        let given = self.config.as_object().into_iter().flatten();
        let given = given.filter(|(key, value)| !value.is_null() && *key != "prevResult");
        let given: serde_json::Map<_, _> = given
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let read = |given| serde_json::from_value::<T>(Value::Object(given));
        read(given.clone()).map_err(|error| {
            // Every key may be missing, so the one that cannot be read alone is at fault.
            let culprit = given.into_iter().find(|(key, value)| {
                read([(key.clone(), value.clone())].into_iter().collect()).is_err()
            });
            let key = culprit
                .map(|(key, _)| format!("{key}: "))
                .unwrap_or_default();
            Error::new(Code::Decode, format!("{plugin}: {key}{error}"))
        })
    }

    /// The labels, of at most `max` bytes, of the attachments that garbage collection keeps.
    pub fn valid_labels(&self, max: usize) -> Result<HashSet<String>, Error> {
        let valid = self.valid_attachments()?;
        let labels = valid
            .iter()
            .map(|attachment| label(&self.network, attachment, max));
        Ok(labels.collect())
    }

    /// The attachments that garbage collection keeps.
    ///
    /// Errors: if they are not named; none at all must be said.
    pub fn valid_attachments(&self) -> Result<HashSet<Attachment>, Error> {
        let value = self
            .config
            .get("cni.dev/valid-attachments")
            .or_else(|| self.config.get("cni.dev/attachments"))
            .ok_or_else(|| {
                Error::config("no \"cni.dev/valid-attachments\" in the configuration")
            })?;
        let list = Option::<HashSet<Attachment>>::deserialize(value)
            .doing(Code::Decode, || "cni.dev/valid-attachments".into())?;
        Ok(list.unwrap_or_default())
    }
}

fn missing(name: &str) -> Error {
    Error::new(
        Code::InvalidEnvironment,
        format!("environment variable {name} is missing"),
    )
}

fn attachment(variable: impl Fn(&str) -> Result<String, Error>) -> Result<Attachment, Error> {
    let container = variable("CNI_CONTAINERID")?;
    if container.is_empty() {
        return Err(missing("CNI_CONTAINERID"));
    }
    if !is_plain_name(&container) {
        let msg = "invalid characters in CNI_CONTAINERID";
        return Err(Error::new(Code::InvalidEnvironment, msg).details(container));
    }
    let interface = variable("CNI_IFNAME")?;
    if interface.is_empty() {
        return Err(missing("CNI_IFNAME"));
    }
    check_interface_name(&interface)
        .map_err(|says| Error::new(Code::InvalidEnvironment, format!("CNI_IFNAME {says}")))?;
    Ok(Attachment {
        container,
        interface,
    })
}

/// Starts with a letter or digit and goes on with these, `_`, `.` and `-`: also a safe file name.
fn is_plain_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// The kernel's rules for the name of a link.
pub fn check_interface_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_INTERFACE {
        Err(format!("{name:?} is not 1 to {MAX_INTERFACE} bytes long"))
    } else if name == "." || name == ".." {
        Err(format!("{name:?} is no name"))
    } else if name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
        Err(format!("{name:?} contains a slash, a colon or a blank"))
    } else {
        Ok(())
    }
}

fn network_name(config: &Value) -> Result<String, Error> {
    if !config.is_object() {
        return Err(Error::new(Code::Decode, "configuration is not an object"));
    }
    let name = text(config, "name")?.unwrap_or_default();
    if name.is_empty() {
        return Err(Error::config("missing network name"));
    }
    if !is_plain_name(name) {
        return Err(Error::config("invalid characters in the network name").details(name));
    }
    Ok(name.into())
}

fn text<'a>(config: &'a Value, key: &str) -> Result<Option<&'a str>, Error> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Error::new(
            Code::Decode,
            format!("configuration: {key} is not a text"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"net"}"#;

    fn read(command: Command, changed: &[(&str, &str)], stdin: &str) -> Result<Request, Error> {
        let variable = |name: &str| {
            let changed = changed.iter().find(|(key, _)| *key == name);
            Ok(match (changed, name) {
                (Some((_, value)), _) => *value,
                (_, "CNI_CONTAINERID") => "id",
                (_, "CNI_IFNAME") => "eth0",
                (_, "CNI_NETNS") => "/run/netns/x",
                (_, "CNI_PATH") => "/a:/b",
                _ => "",
            }
            .to_owned())
        };
        Request::read(command, variable, stdin.as_bytes())
    }

    #[test]
    fn a_whole_request_is_read() {
        let request = read(Command::Add, &[], CONFIG).unwrap();
        assert_eq!(request.attachment().unwrap().container, "id");
        assert_eq!(request.plugin_dirs.len(), 2);
        assert_eq!(request.network, "net");
        assert!(!request.own_netns_allowed);
    }

    #[test]
    fn bad_environment_is_code_4() {
        for (name, value) in [
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", ".a"),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_NETNS", ""),
            ("CNI_PATH", ""),
            ("CNI_ARGS", "FOO=bar"),
        ] {
            let error = read(Command::Add, &[(name, value)], CONFIG).unwrap_err();
            assert!(
                error.is(Code::InvalidEnvironment),
                "{name}={value}: {error}"
            );
        }
        assert!(
            "ADDD"
                .parse::<Command>()
                .unwrap_err()
                .is(Code::InvalidEnvironment)
        );
        assert!(read(Command::Del, &[("CNI_NETNS", "")], CONFIG).is_ok());
    }

    #[test]
    fn bad_configuration_has_its_codes() {
        let long = format!("{}{}", " ".repeat(1024 * 1024), CONFIG);
        for (stdin, code) in [
            ("", Code::Decode),
            ("[]", Code::Decode),
            ("{", Code::Decode),
            (long.as_str(), Code::Decode),
            (r#"{"cniVersion":1,"name":"n"}"#, Code::Decode),
            (r#"{"cniVersion":"1.0.0"}"#, Code::InvalidConfig),
            (
                r#"{"cniVersion":"1.0.0","name":"../x"}"#,
                Code::InvalidConfig,
            ),
            (
                r#"{"cniVersion":"9.0.0","name":"n"}"#,
                Code::IncompatibleVersion,
            ),
        ] {
            let error = read(Command::Add, &[], stdin).unwrap_err();
            assert!(error.is(code), "{error}");
        }
    }

    #[test]
    fn commands_are_as_old_as_their_version() {
        let with = |version: &str| format!(r#"{{"cniVersion":"{version}","name":"n"}}"#);
        for (command, too_old, old_enough) in [
            (Command::Check, "0.3.1", "0.4.0"),
            (Command::Gc, "1.0.0", "1.1.0"),
            (Command::Status, "1.0.0", "1.1.0"),
        ] {
            let error = read(command, &[], &with(too_old)).unwrap_err();
            assert!(error.is(Code::IncompatibleVersion), "{error}");
            assert!(read(command, &[], &with(old_enough)).is_ok());
        }
    }

    #[test]
    fn garbage_collection_wants_to_be_told() {
        let gc = |rest: &str| {
            let config = format!(r#"{{"cniVersion":"1.1.0","name":"n"{rest}}}"#);
            read(Command::Gc, &[], &config).unwrap().valid_attachments()
        };
        assert!(gc("").unwrap_err().is(Code::InvalidConfig));
        assert!(
            gc(r#","cni.dev/valid-attachments":null"#)
                .unwrap()
                .is_empty()
        );
        let one = gc(r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]"#).unwrap();
        assert!(one.contains(&Attachment {
            container: "a".into(),
            interface: "b".into()
        }));
    }
}
