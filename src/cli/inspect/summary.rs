//! What a person wants to know of an object, at a glance.

use std::collections::BTreeMap;

use carpel_api::cri::{
    ContainerState, ContainerStatus, ContainerStatusResponse, ImageStatusResponse,
    LinuxContainerResources, Mount, MountPropagation, NamespaceMode, PodSandboxState,
    PodSandboxStatusResponse,
};
use serde_json::Value;

use crate::cli::output::{Colour, Screen, printable};
use crate::cli::resolve::{Catalogue, container_name, container_state, pod_state};
use crate::cli::{labels, units};

/// Columns of the names on the left.
const NAMES: usize = 13;

/// Lines of `name: value`.
struct Lines<'a> {
    screen: &'a Screen,
    text: String,
}

impl<'a> Lines<'a> {
    fn new(screen: &'a Screen) -> Self {
        Self {
            screen,
            text: String::new(),
        }
    }

    /// Adds a line, unless there is nothing to say.
    fn add(&mut self, name: &str, value: impl AsRef<str>) {
        self.add_coloured(name, value, None);
    }

    fn add_coloured(&mut self, name: &str, value: impl AsRef<str>, colour: Option<Colour>) {
        let value = value.as_ref();
        if value.is_empty() {
            return;
        }
        let name = match name {
            "" => " ".repeat(NAMES),
            name => self
                .screen
                .paint(Some(Colour::Bold), &format!("{name:<NAMES$}")),
        };
        let value = self.screen.paint(colour, &printable(value));
        self.text.push_str(&format!("{name} {value}\n"));
    }

    /// Adds a line for each value; the first has the name.
    fn list(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        for (n, value) in values.into_iter().enumerate() {
            self.add(if n == 0 { name } else { "" }, value);
        }
    }

    fn map(&mut self, name: &str, map: &BTreeMap<String, String>) {
        self.list(
            name,
            map.iter().map(|(key, value)| format!("{key}={value}")),
        );
    }
}

/// "2026-01-02T15:04:05Z (3m ago)".
fn when(nanos: i64) -> String {
    match units::time(nanos) {
        time if time.is_empty() => time,
        time => format!("{time} ({} ago)", units::age(nanos, units::now())),
    }
}

/// The runtime's own JSON about the object.
fn details(info: &BTreeMap<String, String>) -> Value {
    let text = info.get("info").map_or("", String::as_str);
    serde_json::from_str(text).unwrap_or_default()
}

/// A detail that is a string or a number.
fn detail(details: &Value, name: &str) -> String {
    match &details[name] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

pub fn pod(answer: &PodSandboxStatusResponse, all: &Catalogue, screen: &Screen) -> String {
    let status = answer.status.clone().unwrap_or_default();
    let metadata = status.metadata.clone().unwrap_or_default();
    let details = details(&answer.info);
    let mut lines = Lines::new(screen);
    lines.add("pod", format!("{}/{}", metadata.namespace, metadata.name));
    lines.add("id", &status.id);
    lines.add("uid", &metadata.uid);
    if metadata.attempt > 0 {
        lines.add("attempt", metadata.attempt.to_string());
    }
    let colour = match status.state() {
        PodSandboxState::SandboxReady => Colour::Green,
        PodSandboxState::SandboxNotready => Colour::Yellow,
    };
    lines.add_coloured("state", pod_state(status.state()), Some(colour));
    lines.add("created", when(status.created_at));
    lines.add("runtime", &status.runtime_handler);
    let network = status.network.clone().unwrap_or_default();
    let ips: Vec<_> = std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
        .filter(|ip| !ip.is_empty())
        .collect();
    lines.add("ip", ips.join(", "));
    let namespaces = status.linux.clone().and_then(|linux| linux.namespaces);
    if let Some(options) = namespaces.and_then(|namespaces| namespaces.options) {
        let of_node: Vec<_> = [
            ("network", options.network()),
            ("pid", options.pid()),
            ("ipc", options.ipc()),
        ]
        .into_iter()
        .filter(|(_, mode)| *mode == NamespaceMode::Node)
        .map(|(name, _)| name)
        .collect();
        lines.add("of the host", of_node.join(", "));
    }
    lines.add("netns", detail(&details, "netns"));
    lines.add("cgroup", detail(&details, "cgroup"));
    lines.add("supervisor", pid(&details));
    lines.map("labels", &status.labels);
    lines.map("annotations", &status.annotations);
    let mut containers: Vec<_> = all.containers_of(&status.id).collect();
    containers.sort_by_key(|container| container.created_at);
    let line = |container: &&_| container_line(container);
    lines.list("containers", containers.iter().map(line));
    lines.text
}

fn container_line(container: &carpel_api::cri::Container) -> String {
    let state = container_state(container.state()).to_lowercase();
    let image = container.image.clone().unwrap_or_default();
    format!(
        "{}  {} ({state}, {})",
        units::short(&container.id),
        container_name(container),
        image.image
    )
}

fn pid(details: &Value) -> String {
    match detail(details, "pid") {
        pid if pid.is_empty() => pid,
        pid => format!("pid {pid}"),
    }
}

pub fn container(answer: &ContainerStatusResponse, all: &Catalogue, screen: &Screen) -> String {
    let status = answer.status.clone().unwrap_or_default();
    let details = details(&answer.info);
    let listed = all.containers.iter().find(|known| known.id == status.id);
    let metadata = status.metadata.clone().unwrap_or_default();
    let mut lines = Lines::new(screen);
    let path = listed.map_or_else(|| metadata.name.clone(), |known| all.container_path(known));
    lines.add("container", path);
    lines.add("id", &status.id);
    if let Some(known) = listed {
        lines.add("pod id", &known.pod_sandbox_id);
    }
    if metadata.attempt > 0 {
        lines.add("attempt", metadata.attempt.to_string());
    }
    let (state, colour) = state(&status);
    lines.add_coloured("state", state, colour);
    lines.add("message", &status.message);
    lines.add("created", when(status.created_at));
    lines.add("started", when(status.started_at));
    lines.add("finished", when(status.finished_at));
    if status.started_at > 0 && status.finished_at > status.started_at {
        let ran = u64::try_from(status.finished_at - status.started_at).unwrap_or(0);
        let ran = std::time::Duration::from_nanos(ran);
        let text = match ran.as_secs() {
            0..10 => format!("{:.3} s", ran.as_secs_f64()),
            _ => units::duration(ran),
        };
        lines.add("ran for", text);
    }
    lines.add("process", pid(&details));
    let image = status.image.clone().unwrap_or_default();
    lines.add("image", &image.image);
    lines.add("image id", &status.image_id);
    lines.add("command", command(&details));
    lines.add("cgroup", detail(&details, "cgroup"));
    lines.add("log", &status.log_path);
    if let Some(dropped) = details["droppedLogLines"].as_u64().filter(|n| *n > 0) {
        let text = format!("{dropped} lines could not be written to the log");
        lines.add_coloured("", text, Some(Colour::Red));
    }
    lines.add("user", user(&status));
    let limits = status
        .resources
        .clone()
        .and_then(|resources| resources.linux);
    lines.add(
        "limits",
        limits
            .map(|limits| self::limits(&limits))
            .unwrap_or_default(),
    );
    lines.list("mounts", status.mounts.iter().map(mount));
    lines.map("labels", &status.labels);
    lines.map("annotations", &status.annotations);
    lines.text
}

fn state(status: &ContainerStatus) -> (String, Option<Colour>) {
    let word = container_state(status.state());
    match status.state() {
        ContainerState::ContainerRunning => (word.to_owned(), Some(Colour::Green)),
        ContainerState::ContainerExited => {
            let colour = (status.exit_code != 0).then_some(Colour::Red);
            let why = match status.reason.as_str() {
                "" => String::new(),
                reason => format!(" ({reason})"),
            };
            let signal = match status.exit_code {
                code @ 129..=192 => signal_name(code - 128),
                _ => String::new(),
            };
            (
                format!("{word} with {}{signal}{why}", status.exit_code),
                colour,
            )
        }
        _ => (word.to_owned(), None),
    }
}

/// ", SIGKILL" for 9.
fn signal_name(number: i32) -> String {
    let signal = nix::sys::signal::Signal::try_from(number);
    signal.map_or_else(|_| String::new(), |signal| format!(", {signal}"))
}

fn command(details: &Value) -> String {
    words(&details["runtimeSpec"]["process"]["args"])
}

/// A list of words in one line, those with spaces quoted.
fn words(list: &Value) -> String {
    let quote = |word: &str| match word.is_empty() || word.contains(char::is_whitespace) {
        true => format!("{word:?}"),
        false => word.to_owned(),
    };
    texts(list).map(quote).collect::<Vec<_>>().join(" ")
}

fn user(status: &ContainerStatus) -> String {
    let Some(user) = status.user.as_ref().and_then(|user| user.linux.as_ref()) else {
        return String::new();
    };
    let mut text = format!("{}:{}", user.uid, user.gid);
    let groups = user
        .supplemental_groups
        .iter()
        .filter(|group| **group != user.gid);
    let groups: Vec<_> = groups.map(ToString::to_string).collect();
    if !groups.is_empty() {
        text.push_str(&format!(" (and groups {})", groups.join(", ")));
    }
    text
}

fn limits(limits: &LinuxContainerResources) -> String {
    let mut parts = Vec::new();
    if limits.memory_limit_in_bytes > 0 {
        let bytes = u64::try_from(limits.memory_limit_in_bytes).unwrap_or(0);
        parts.push(format!("memory {}", units::bytes(bytes)));
    }
    if limits.cpu_quota > 0 && limits.cpu_period > 0 {
        let cpus = limits.cpu_quota as f64 / limits.cpu_period as f64;
        parts.push(format!("{} processors", (cpus * 1000.0).round() / 1000.0));
    }
    if limits.cpu_shares > 0 {
        parts.push(format!("cpu shares {}", limits.cpu_shares));
    }
    for (name, value) in [
        ("processors", &limits.cpuset_cpus),
        ("memory nodes", &limits.cpuset_mems),
    ] {
        if !value.is_empty() {
            parts.push(format!("{name} {value}"));
        }
    }
    let pages = limits.hugepage_limits.iter().filter(|page| page.limit > 0);
    parts
        .extend(pages.map(|page| format!("{} pages {}", page.page_size, units::bytes(page.limit))));
    if !limits.unified.is_empty() {
        parts.push(labels::line(&limits.unified));
    }
    parts.join(", ")
}

fn mount(mount: &Mount) -> String {
    let source = match (&mount.host_path, &mount.image) {
        (path, _) if !path.is_empty() => path.clone(),
        (_, Some(image)) => format!("image {}", image.image),
        _ => "-".to_owned(),
    };
    let mut options = vec![if mount.readonly { "ro" } else { "rw" }];
    match mount.propagation() {
        MountPropagation::PropagationPrivate => {}
        MountPropagation::PropagationHostToContainer => options.push("rslave"),
        MountPropagation::PropagationBidirectional => options.push("rshared"),
    }
    format!(
        "{source} on {} ({})",
        mount.container_path,
        options.join(",")
    )
}

/// The strings of a list.
fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

pub fn image(answer: &ImageStatusResponse, screen: &Screen) -> String {
    let image = answer.image.clone().unwrap_or_default();
    let details = details(&answer.info);
    let (spec, artifact) = (&details["imageSpec"], &details["artifact"]);
    let mut lines = Lines::new(screen);
    lines.add("image", &image.id);
    lines.list("names", image.repo_tags.iter().cloned());
    lines.list("digests", image.repo_digests.iter().cloned());
    lines.add(
        "size",
        format!("{} ({} bytes)", units::bytes(image.size), image.size),
    );
    let uid = image.uid.map(|uid| uid.value.to_string());
    lines.add("user", uid.unwrap_or_else(|| image.username.clone()));
    if image.pinned {
        lines.add("pinned", "yes: garbage collection leaves it alone");
    }
    lines.add("artifact", detail(artifact, "type"));
    let files = artifact["files"].as_array().into_iter().flatten();
    lines.list("files", files.map(|file| detail(file, "name")));
    lines.add("created", detail(spec, "created"));
    let platform = [detail(spec, "os"), detail(spec, "architecture")].join("/");
    lines.add("platform", platform.trim_matches('/'));
    let config = &spec["config"];
    lines.add("entrypoint", words(&config["Entrypoint"]));
    lines.add("command", words(&config["Cmd"]));
    lines.add("directory", detail(config, "WorkingDir"));
    lines.list("environment", texts(&config["Env"]).map(str::to_owned));
    lines.text
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{ContainerMetadata, HugepageLimit};

    use super::*;

    const PLAIN: Screen = Screen {
        width: None,
        colour: false,
    };

    #[test]
    fn a_container_says_how_it_ended() {
        let mut answer = ContainerStatusResponse {
            status: Some(ContainerStatus {
                id: "ab".repeat(32),
                metadata: Some(ContainerMetadata {
                    name: "app".into(),
                    attempt: 2,
                }),
                state: ContainerState::ContainerExited.into(),
                exit_code: 137,
                reason: "OOMKilled".into(),
                started_at: 1_767_366_245_000_000_000,
                finished_at: 1_767_366_246_500_000_000,
                message: "a\u{1b}[2Jb".into(),
                ..ContainerStatus::default()
            }),
            ..ContainerStatusResponse::default()
        };
        let info = serde_json::json!({
            "pid": null, "cgroup": "/carpel/x", "droppedLogLines": 3,
            "runtimeSpec": { "process": { "args": ["sh", "-c", "a b", ""] } },
        });
        answer.info.insert("info".into(), info.to_string());
        let text = container(&answer, &Catalogue::default(), &PLAIN);
        for line in [
            "container     app\n",
            "attempt       2\n",
            "state         Exited with 137, SIGKILL (OOMKilled)\n",
            "message       a?[2Jb\n",
            "ran for       1.500 s\n",
            "command       sh -c \"a b\" \"\"\n",
            "              3 lines could not be written to the log\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("process"), "{text}");
    }

    #[test]
    fn limits_are_told_in_words() {
        let all = LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_quota: 25_000,
            cpu_period: 100_000,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: 4 << 20,
            }],
            ..LinuxContainerResources::default()
        };
        assert_eq!(
            limits(&all),
            "memory 64.0 MiB, 0.25 processors, processors 0-1, 2MB pages 4.0 MiB"
        );
        assert_eq!(limits(&LinuxContainerResources::default()), "");
    }

    #[test]
    fn an_answer_with_nothing_in_it_does_no_harm() {
        let all = Catalogue::default();
        pod(&PodSandboxStatusResponse::default(), &all, &PLAIN);
        container(&ContainerStatusResponse::default(), &all, &PLAIN);
        image(&ImageStatusResponse::default(), &PLAIN);
    }
}
