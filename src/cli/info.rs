//! `carpel info`: the state of the runtime.

use std::collections::BTreeMap;

use carpel_api::cri::{
    CgroupDriver, RuntimeConfigRequest, RuntimeConfigResponse, StatusRequest, StatusResponse,
    VersionRequest, VersionResponse,
};
use clap::Args;
use serde_json::{Value, json};

use super::client::Connection;
use super::output::{self, Colour, FormatArgs, Screen, printable};
use super::resolve::Catalogue;
use super::{Outcome, SUCCESS};
use crate::config::Endpoint;
use crate::daemon::STATE_DIR;

#[derive(Debug, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl InfoArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let (version, status) = tokio::try_join!(
            client.version(VersionRequest::default()),
            client.status(StatusRequest { verbose: true }),
        )?;
        // Older runtimes do not have it.
        let config = client.runtime_config(RuntimeConfigRequest {}).await.ok();
        if self.format.is_json() {
            let config = config.as_ref();
            output::print_json(&json!({
                "version": output::message("VersionResponse", &version),
                "status": output::verbose_message("StatusResponse", &status),
                "runtimeConfig": config.map(|c| output::message("RuntimeConfigResponse", c)),
            }))?;
            return Ok(SUCCESS);
        }
        let all = Catalogue::fetch(&client).await?;
        let facts = Facts {
            endpoint: client.endpoint(),
            version: &version,
            status: &status,
            config: config.as_ref(),
            all: &all,
        };
        output::print(facts.text(&Screen::detect()))?;
        Ok(SUCCESS)
    }
}

/// What the runtime answered.
struct Facts<'a> {
    endpoint: &'a Endpoint,
    version: &'a VersionResponse,
    status: &'a StatusResponse,
    config: Option<&'a RuntimeConfigResponse>,
    all: &'a Catalogue,
}

impl Facts<'_> {
    fn text(&self, screen: &Screen) -> String {
        let version = self.version;
        let mut lines = vec![
            (
                "runtime".to_owned(),
                format!(
                    "{} {}, CRI {}",
                    version.runtime_name, version.runtime_version, version.runtime_api_version
                ),
                None,
            ),
            ("endpoint".to_owned(), self.endpoint.to_string(), None),
        ];
        for condition in self
            .status
            .status
            .iter()
            .flat_map(|status| &status.conditions)
        {
            let (word, colour) = match condition.status {
                true => ("yes".to_owned(), Colour::Green),
                false => (
                    format!("no: {}: {}", condition.reason, condition.message),
                    Colour::Red,
                ),
            };
            lines.push((words(&condition.r#type), word, Some(colour)));
        }
        let driver = self.config.and_then(|config| config.linux.as_ref());
        if let Some(linux) = driver {
            let driver = match linux.cgroup_driver() {
                CgroupDriver::Systemd => "systemd",
                CgroupDriver::Cgroupfs => "cgroupfs",
            };
            lines.push(("cgroup driver".to_owned(), driver.to_owned(), None));
        }
        let handlers = self.handlers();
        if !handlers.is_empty() {
            lines.push(("runtime classes".to_owned(), handlers, None));
        }
        let (pods, containers) = (&self.all.pods, &self.all.containers);
        let ready = pods.iter().filter(|pod| pod.state == 0).count();
        lines.push((
            "pods".to_owned(),
            format!("{}, {ready} ready", pods.len()),
            None,
        ));
        let running = containers.iter().filter(|c| super::stop::runs(c)).count();
        let text = format!("{}, {running} running", containers.len());
        lines.push(("containers".to_owned(), text, None));
        lines.extend(security_modules(&self.status.info).map(|(name, text)| (name, text, None)));
        let config = configuration(&self.status.info);
        lines.extend(config.into_iter().map(|(name, value)| (name, value, None)));
        let width = lines.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let line = |(name, value, colour): (String, String, Option<Colour>)| {
            let name = screen.paint(Some(Colour::Bold), &format!("{name:<width$}"));
            format!("{name}  {}\n", screen.paint(colour, &printable(&value)))
        };
        lines.into_iter().map(line).collect()
    }

    fn handlers(&self) -> String {
        let handlers = self.status.runtime_handlers.iter().map(|handler| {
            let name = match handler.name.as_str() {
                "" => "default",
                name => name,
            };
            let features = handler.features.unwrap_or_default();
            let features: Vec<_> = [
                (features.user_namespaces, "user namespaces"),
                (
                    features.recursive_read_only_mounts,
                    "recursive read-only mounts",
                ),
            ]
            .into_iter()
            .filter_map(|(has, what)| has.then_some(what))
            .collect();
            match features.is_empty() {
                true => name.to_owned(),
                false => format!("{name} ({})", features.join(", ")),
            }
        });
        handlers.collect::<Vec<_>>().join(", ")
    }
}

/// "NetworkReady" as "network ready".
fn words(name: &str) -> String {
    let mut words = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(c.to_lowercase());
    }
    words
}

/// Which of the kernel's security modules confine containers. Other runtimes do not say.
fn security_modules(info: &BTreeMap<String, String>) -> Option<(String, String)> {
    let modules: Value = serde_json::from_str(info.get("securityModules")?).ok()?;
    let mut used = Vec::new();
    if modules["apparmor"].as_bool()? {
        used.push("AppArmor".to_owned());
    }
    match modules["selinux"].as_str()? {
        "off" => {}
        mode => used.push(format!("SELinux, {mode}")),
    }
    if used.is_empty() {
        used.push("none".to_owned());
    }
    Some(("security module".to_owned(), used.join("; ")))
}

/// carpel's configuration by its keys, "network.conf_dir". Another runtime's is too much for a summary.
fn configuration(info: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let config = info.get("config").map_or("", String::as_str);
    let Ok(Value::Object(config)) = serde_json::from_str(config) else {
        return Vec::new();
    };
    if !config.contains_key("root") || !config.contains_key("libexec") {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for (key, value) in config {
        if key == STATE_DIR {
            continue;
        }
        match value {
            Value::Object(section) => {
                let keys = section.into_iter();
                lines.extend(keys.map(|(name, value)| (format!("{key}.{name}"), plain(&value))));
            }
            value => lines.push((key, plain(&value))),
        }
    }
    lines
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{RuntimeCondition, RuntimeStatus};

    use super::*;

    #[test]
    fn what_is_not_ready_says_why() {
        let condition = |kind: &str, status, reason: &str| RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: reason.into(),
            message: "no file in /etc".into(),
        };
        let status = StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true, ""),
                    condition("NetworkReady", false, "NoNetworkConfig"),
                ],
            }),
            info: BTreeMap::from([
                (
                    "config".into(),
                    r#"{"root":"/r","workers":2,"libexec":{},"network":{"bin_dirs":["/a","/b"]}}"#
                        .into(),
                ),
                (
                    "securityModules".into(),
                    r#"{"apparmor":false,"selinux":"permissive"}"#.into(),
                ),
            ]),
            ..StatusResponse::default()
        };
        let facts = Facts {
            endpoint: &Endpoint::default(),
            version: &VersionResponse::default(),
            status: &status,
            config: None,
            all: &Catalogue::default(),
        };
        let text = facts.text(&Screen {
            width: None,
            colour: false,
        });
        for line in [
            "runtime ready     yes\n",
            "network ready     no: NoNetworkConfig: no file in /etc\n",
            "network.bin_dirs  /a, /b\n",
            "workers           2\n",
            "security module   SELinux, permissive\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
