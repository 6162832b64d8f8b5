//! A chain of plugins under each verb of CNI: ADD in order, each with the result of the one before; DEL in
//! reverse, each with the last result; CHECK, STATUS and GC.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tracing::{Instrument, debug_span, field};

use super::cache::Entry;
use super::conf::{NetworkConf, PluginConf, Version};
use super::exec::{self, Bins, Deadline, Failure, Program};
use super::{Error, netns, result};
use crate::ids::SandboxId;
use crate::metrics;
use crate::telemetry::trace;
use crate::timeline::Timeline;

/// Where plugins look for programs if the daemon itself was given no PATH.
const FALLBACK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A network whose plugins can be run.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    pub network: &'a NetworkConf,
    pub bins: &'a Bins,
}

/// An ADD that ended early.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// How many plugins were started.
    pub started: usize,
    /// What the last successful plugin said.
    pub last: Option<Map<String, Value>>,
    pub error: Error,
}

impl Chain<'_> {
    /// Finds every plugin's binary.
    pub(super) fn find_all(&self, verb: &'static str) -> Result<Vec<Program>, Error> {
        let plugins = self.network.plugins.iter();
        plugins.map(|plugin| self.find(plugin, verb)).collect()
    }

    fn find(&self, plugin: &PluginConf, verb: &'static str) -> Result<Program, Error> {
        let found = self.bins.find(&plugin.kind);
        found.map_err(|failure| self.failed(plugin, verb, failure))
    }

    /// Runs ADD. The last result comes back, in the network's version.
    pub(super) async fn add(
        &self,
        programs: &[Program],
        entry: &Entry,
        time: Duration,
        timeline: &Timeline,
    ) -> Result<Map<String, Value>, Unfinished> {
        let deadline = Deadline::after(time);
        let mut last = None;
        for (at, (plugin, program)) in self.network.plugins.iter().zip(programs).enumerate() {
            let input = self.input(plugin, Some(&entry.capabilities), last.as_ref());
            let env = self.environment("ADD", Some((entry, &entry.netns)));
            let start = Instant::now();
            let output = self.run(plugin, program, "ADD", env, input, deadline).await;
            timeline.note(format!("cni {}", plugin.kind), start);
            let said = output.and_then(|output| {
                let parsed = parse(&output, self.network.version);
                parsed.map_err(|failure| self.failed(plugin, "ADD", failure))
            });
            match said {
                Ok(said) => last = Some(said),
                Err(error) => {
                    let started = at + 1;
                    return Err(Unfinished {
                        started,
                        last,
                        error,
                    });
                }
            }
        }
        Ok(last.unwrap_or_default())
    }

    /// Runs DEL in reverse. It ends at the first error: what the next plugin would give back, an address
    /// above all, may not be handed to another pod while a later plugin's rules still point to it.
    pub(super) async fn del(&self, entry: &Entry, time: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(time);
        let started = entry
            .started
            .unwrap_or(usize::MAX)
            .min(self.network.plugins.len());
        let last = entry
            .result
            .as_ref()
            .filter(|_| self.network.version >= Version::V0_4_0);
        for plugin in self.network.plugins[..started].iter().rev() {
            let program = self.find(plugin, "DEL")?;
            let input = self.input(plugin, Some(&entry.capabilities), last);
            let live = netns::is_live(&entry.netns);
            let netns = if live { &entry.netns } else { Path::new("") };
            let env = self.environment("DEL", Some((entry, netns)));
            self.run(plugin, &program, "DEL", env, input, deadline)
                .await?;
        }
        Ok(())
    }

    /// Runs CHECK, up to the first plugin that finds something wrong. Every plugin gets the last result.
    pub(super) async fn check(&self, entry: &Entry, time: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(time);
        let last = entry.result.as_ref();
        for (plugin, program) in self.network.plugins.iter().zip(self.find_all("CHECK")?) {
            let input = self.input(plugin, Some(&entry.capabilities), last);
            let env = self.environment("CHECK", Some((entry, &entry.netns)));
            self.run(plugin, &program, "CHECK", env, input, deadline)
                .await?;
        }
        Ok(())
    }

    /// Whether the network's plugins know STATUS and GC.
    pub(super) fn speaks_1_1(&self) -> bool {
        self.network.version >= Version::V1_1_0
    }

    /// Runs STATUS, up to the first plugin that is not ready.
    pub(super) async fn status(&self, time: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(time);
        for (plugin, program) in self.network.plugins.iter().zip(self.find_all("STATUS")?) {
            let input = self.input(plugin, None, None);
            let env = self.environment("STATUS", None);
            self.run(plugin, &program, "STATUS", env, input, deadline)
                .await?;
        }
        Ok(())
    }

    /// Runs GC: every plugin is told which attachments there are, and gives back what is of none. The first
    /// error comes back, when all were told.
    pub(super) async fn gc(
        &self,
        valid: &[SandboxId],
        interface: &str,
        time: Duration,
    ) -> Result<(), Error> {
        let deadline = Deadline::after(time);
        let attachments = valid
            .iter()
            .map(|id| json!({"containerID": id.to_string(), "ifname": interface}));
        let attachments: Value = attachments.collect();
        let mut first = Ok(());
        for (plugin, program) in self.network.plugins.iter().zip(self.find_all("GC")?) {
            let mut config = self.config(plugin);
            // The second name is the one of the first implementations.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                config.insert(key.into(), attachments.clone());
            }
            let env = self.environment("GC", None);
            let run = self
                .run(plugin, &program, "GC", env, to_bytes(config), deadline)
                .await;
            first = first.and(run.map(drop));
        }
        first
    }

    async fn run(
        &self,
        plugin: &PluginConf,
        program: &Program,
        verb: &'static str,
        env: Vec<(&'static str, OsString)>,
        input: Vec<u8>,
        deadline: Deadline,
    ) -> Result<Vec<u8>, Error> {
        let env: Vec<(&str, &OsStr)> = env
            .iter()
            .map(|(key, value)| (*key, value.as_os_str()))
            .collect();
        let span = debug_span!(
            "cni",
            otel.name = format!("cni {} {verb}", plugin.kind),
            cni.network = self.network.name,
            cni.plugin = plugin.kind,
            cni.verb = verb,
            error = field::Empty,
        );
        let start = Instant::now();
        let run = async { trace::note(exec::run(program, &env, input, deadline).await) };
        let ran = run.instrument(span).await;
        metrics::plugin_run(&plugin.kind, verb, start.elapsed(), ran.is_ok());
        ran.map_err(|failure| self.failed(plugin, verb, failure))
    }

    fn failed(&self, plugin: &PluginConf, verb: &'static str, failure: Failure) -> Error {
        Error::Plugin {
            network: self.network.name.clone(),
            plugin: plugin.kind.clone(),
            verb,
            failure: Box::new(failure),
        }
    }

    /// A plugin's configuration with what every plugin of the network has in common.
    fn config(&self, plugin: &PluginConf) -> Map<String, Value> {
        let mut config = plugin.raw.clone();
        config.insert("name".into(), json!(self.network.name));
        config.insert("cniVersion".into(), json!(self.network.version.to_string()));
        config.remove("cniVersions");
        config
    }

    fn input(
        &self,
        plugin: &PluginConf,
        capabilities: Option<&Map<String, Value>>,
        previous: Option<&Map<String, Value>>,
    ) -> Vec<u8> {
        let mut config = self.config(plugin);
        let wanted = capabilities
            .into_iter()
            .flatten()
            .filter(|(key, _)| plugin.wants(key));
        let wanted: Map<_, _> = wanted
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(wanted));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), Value::Object(previous.clone()));
        }
        to_bytes(config)
    }

    fn environment(
        &self,
        verb: &str,
        pod: Option<(&Entry, &Path)>,
    ) -> Vec<(&'static str, OsString)> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| FALLBACK_PATH.into());
        let mut env = vec![
            ("CNI_COMMAND", verb.into()),
            ("CNI_PATH", self.bins.path.clone()),
            ("PATH", path),
        ];
        if let Some((entry, netns)) = pod {
            env.push(("CNI_CONTAINERID", entry.sandbox.to_string().into()));
            env.push(("CNI_NETNS", netns.into()));
            env.push(("CNI_IFNAME", entry.interface.clone().into()));
            env.push(("CNI_ARGS", entry.args.clone().into()));
        }
        env
    }
}

fn parse(output: &[u8], version: Version) -> Result<Map<String, Value>, Failure> {
    let said = serde_json::from_slice(output).map_err(|error| exec::garbage(error, output))?;
    result::convert(said, version).map_err(|error| exec::garbage(error, output))
}

fn to_bytes(config: Map<String, Value>) -> Vec<u8> {
    Value::Object(config).to_string().into_bytes()
}
