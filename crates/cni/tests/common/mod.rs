//! What the tests share: network namespaces that play host and pods, and the plugins run in them.
//! Needs root. Everything made is removed when its owner is dropped.

#![allow(dead_code, reason = "every test file uses another part")]

pub mod net;

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};

pub const BINARY: &str = env!("CARGO_BIN_EXE_carpel-cni");
/// Debian's containernetworking-plugins.
pub const DEBIAN: &str = "/usr/lib/cni";

/// Runs a command that must succeed; gives back its output.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("carpel-cni-{}-{next}-{what}", std::process::id())
}

/// A network namespace.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(what: &str) -> Netns {
        let name = unique(what);
        sh(&format!("ip netns add {name}"));
        Netns { name }
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs a shell line inside that must succeed.
    pub fn sh(&self, line: &str) -> String {
        sh(&format!("ip netns exec {} sh -ec '{line}'", self.name))
    }

    pub fn succeeds(&self, line: &str) -> bool {
        let args = ["netns", "exec", &self.name, "sh", "-ec", line];
        Command::new("ip")
            .args(args)
            .output()
            .unwrap()
            .status
            .success()
    }

    pub fn pings(&self, addr: &str) -> bool {
        self.succeeds(&format!("busybox ping -c 1 -W 2 {addr}"))
    }

    pub fn json(&self, line: &str) -> Value {
        let text = self.sh(line);
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// What a plugin said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub json: Value,
    /// How it ended, with what it wrote to stderr: for messages.
    end: String,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.ok, "{} {}", self.json, self.end);
        self.json
    }

    /// The error, which must have this code and contain this text.
    #[track_caller]
    pub fn fails(self, code: u32, text: &str) {
        assert!(!self.ok, "no error: {}", self.json);
        assert_eq!(self.json["code"], code, "{}", self.json);
        let whole = format!("{} {}", self.json["msg"], self.json["details"]);
        assert!(whole.contains(text), "{whole}");
    }
}

/// One call of a plugin.
pub struct Call<'a> {
    pub host: &'a Netns,
    pub program: PathBuf,
    pub name: &'a str,
    pub command: &'a str,
    pub id: &'a str,
    pub netns: String,
    pub interface: &'a str,
    pub args: &'a str,
    pub path: String,
}

impl<'a> Call<'a> {
    /// Ours, called by the name `name`, for container `id` in `pod`.
    pub fn new(host: &'a Netns, name: &'a str, command: &'a str, id: &'a str, pod: &Netns) -> Self {
        Call {
            host,
            program: BINARY.into(),
            name,
            command,
            id,
            netns: pod.path(),
            interface: "eth0",
            args: "",
            path: "/nonexistent".into(),
        }
    }

    /// The same by Debian's plugin.
    pub fn debian(mut self) -> Self {
        self.program = Path::new(DEBIAN).join(self.name);
        self.path = DEBIAN.into();
        self
    }

    pub fn run(&self, config: &Value) -> Said {
        self.run_text(&config.to_string())
    }

    pub fn run_text(&self, config: &str) -> Said {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.host.path()))
            .args(["env", "-i"])
            .arg(format!("PATH={}", std::env::var("PATH").unwrap()))
            .arg(format!("CNI_COMMAND={}", self.command))
            .arg(format!("CNI_CONTAINERID={}", self.id))
            .arg(format!("CNI_NETNS={}", self.netns))
            .arg(format!("CNI_IFNAME={}", self.interface))
            .arg(format!("CNI_ARGS={}", self.args))
            .arg(format!("CNI_PATH={}", self.path))
            .arg(format!("CARPEL_CNI_PLUGIN={}", self.name))
            .arg(&self.program);
        said(feed(&mut command, config))
    }
}

/// Runs the binary by another name, with nothing but these variables.
pub fn run_as(name: &str, variables: &[(&str, &str)], args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(BINARY);
    command
        .arg0(name)
        .env_clear()
        .envs(variables.iter().copied())
        .args(args);
    feed(&mut command, stdin)
}

fn feed(command: &mut Command, stdin: &str) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A plugin that fails early does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

pub fn said(output: Output) -> Said {
    let text = String::from_utf8_lossy(&output.stdout);
    let json = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    Said {
        ok: output.status.success(),
        json,
        end: format!("{} {errors}", output.status),
    }
}

/// A host with a network: a namespace, a data folder, a configuration.
pub struct Node {
    pub host: Netns,
    pub data: tempfile::TempDir,
    pub config: Value,
}

impl Node {
    /// A bridge network with these subnets.
    pub fn new(subnets: &[&str]) -> Node {
        let data = tempfile::tempdir().unwrap();
        let ranges: Vec<_> = subnets
            .iter()
            .map(|subnet| json!([{ "subnet": subnet }]))
            .collect();
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
            "isDefaultGateway": true,
            "ipMasq": true,
            "ipam": { "type": "host-local", "dataDir": data.path(), "ranges": ranges },
        });
        Node {
            host: Netns::new("host"),
            data,
            config,
        }
    }

    pub fn call<'a>(&'a self, command: &'a str, id: &'a str, pod: &Netns) -> Call<'a> {
        Call::new(&self.host, "bridge", command, id, pod)
    }

    #[track_caller]
    pub fn add(&self, id: &str, pod: &Netns) -> Value {
        self.call("ADD", id, pod).run(&self.config).ok()
    }

    #[track_caller]
    pub fn del(&self, id: &str, pod: &Netns, result: &Value) {
        self.call("DEL", id, pod).run(&self.with_prev(result)).ok();
    }

    pub fn with_prev(&self, result: &Value) -> Value {
        let mut config = self.config.clone();
        config["prevResult"] = result.clone();
        config
    }

    /// The addresses in use.
    pub fn addresses(&self) -> Vec<String> {
        addresses(&self.data.path().join("net"))
    }

    /// The host's ends of pairs, but for the link to the world that a test made.
    pub fn ports(&self) -> Vec<String> {
        let links = self.host.json("ip -j link show type veth");
        let names = links
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap());
        names
            .filter(|name| *name != "world")
            .map(String::from)
            .collect()
    }

    pub fn rules(&self) -> String {
        self.host.sh("nft list ruleset")
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.addresses(), [] as [String; 0]);
        assert_eq!(self.ports(), [] as [String; 0]);
        assert_eq!(self.rules(), "");
    }
}

/// The address files in a folder.
pub fn addresses(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter(|name| name != "lock" && !name.starts_with("last_reserved_ip."))
        .collect();
    names.sort();
    names
}
