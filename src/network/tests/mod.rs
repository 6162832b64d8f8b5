//! The whole module against plugins that are shell scripts, each of which writes down how it was called; and
//! against Debian's plugins.

mod chain;
mod chaos;
mod debian;
mod failure;
mod folder;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::spec::config::PodName;

/// What a plugin prints that gives an address.
const RESULT: &str =
    r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24","gateway":"10.1.2.1"}]}"#;

/// A node of one test: folders, and plugins that are scripts.
struct Node {
    dir: tempfile::TempDir,
    settings: Settings,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["conf", "bin", "calls"] {
            fs::create_dir(at(name)).unwrap();
        }
        let settings = Settings {
            conf_dir: at("conf"),
            bin_dirs: vec![at("absent"), at("bin")],
            own_plugins: None,
            cache_dir: at("cache"),
            timeout: Duration::from_secs(20),
            default_network: None,
            conf_template: None,
        };
        Self { dir, settings }
    }

    /// A node with one network.
    fn with(conflist: &Value) -> Self {
        let node = Self::new();
        node.conf("10-net.conflist", &conflist.to_string());
        node
    }

    fn open(&self) -> Network {
        Network::open(self.settings.clone()).unwrap()
    }

    fn conf(&self, name: &str, text: &str) {
        fs::write(self.settings.conf_dir.join(name), text).unwrap();
    }

    /// Makes a plugin: it notes the call and its input and environment, then does `body`, in which $verb is
    /// the verb and $dir a folder of the node.
    fn plugin(&self, name: &str, body: &str) -> PathBuf {
        let dir = self.dir.path().join("calls");
        let text = format!(
            "#!/bin/sh\nverb=$CNI_COMMAND dir={dir}\necho \"$verb {name}\" >>$dir/order\n\
             cat >$dir/{name}.$verb.in\nenv >$dir/{name}.$verb.env\n{body}\n",
            dir = dir.display(),
        );
        let path = self.dir.path().join("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A plugin that succeeds with `result`.
    fn good(&self, name: &str, result: &str) {
        self.plugin(name, &format!("[ $verb != ADD ] || echo '{result}'"));
    }

    /// The calls since the last time this was asked.
    fn order(&self) -> Vec<String> {
        let path = self.call("order");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    fn call(&self, name: &str) -> PathBuf {
        self.dir.path().join("calls").join(name)
    }

    fn input(&self, name: &str, verb: &str) -> Value {
        let bytes = fs::read(self.call(&format!("{name}.{verb}.in"))).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn env(&self, name: &str, verb: &str) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.call(&format!("{name}.{verb}.env"))).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    fn cache_files(&self) -> Vec<String> {
        let files = fs::read_dir(&self.settings.cache_dir).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

/// A network of plugins of these types.
fn network(kinds: &[&str]) -> Value {
    let plugins: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    json!({"cniVersion": "1.0.0", "name": "testnet", "plugins": plugins})
}

fn pod() -> PodNetwork {
    PodNetwork {
        sandbox: SandboxId::random(),
        name: PodName {
            namespace: "default".into(),
            name: "web-0".into(),
            uid: "0b2e".into(),
            attempt: 0,
        },
        netns: "/run/netns/not-there".into(),
        port_mappings: Vec::new(),
        cgroup_parent: None,
        dns: None,
        annotations: BTreeMap::new(),
        hostname: None,
    }
}

async fn add(network: &Network, pod: &PodNetwork) -> Result<Attachment, Error> {
    network.add(pod, &Timeline::default()).await
}

/// Waits until `done`, as things that happen beside the request do.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the process whose id a plugin wrote into `file` is there and no zombie.
fn is_alive(file: &Path) -> bool {
    let pid = fs::read_to_string(file).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
