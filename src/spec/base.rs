//! A base spec: what the operator of a node wants of every container, in a file of the OCI runtime specification.
//!
//! Taken from it are hooks, resource limits of processes, variables and annotations. What a request, its image and
//! carpel decide in any case (the program, its user and rights, namespaces, masks, the usual mounts) may be there, as in
//! a file that began as another runtime's default, and says nothing. All else is refused by name: what would be
//! passed over in silence is no wish that is fulfilled.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, PosixRlimit, Spec};
use serde_json::{Map, Value};

use super::hooks::{self, POINTS, Point};

/// The longest file.
const MAX_FILE: u64 = 1 << 20;

/// Of the objects of a spec: what is taken or decided elsewhere.
const TOP: [&str; 7] = [
    "ociVersion",
    "process",
    "root",
    "hostname",
    "mounts",
    "hooks",
    "annotations",
];
const PROCESS: [&str; 9] = [
    "terminal",
    "user",
    "args",
    "env",
    "cwd",
    "capabilities",
    "rlimits",
    "noNewPrivileges",
    "oomScoreAdj",
];
const LINUX: [&str; 5] = [
    "cgroupsPath",
    "namespaces",
    "maskedPaths",
    "readonlyPaths",
    "resources",
];
/// Where every container has a mount, or where what a default has is left out (/run).
const MOUNTS: [&str; 8] = [
    "/proc",
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/sys",
    "/sys/fs/cgroup",
    "/run",
];

/// What is taken from a base spec. The default adds nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BaseSpec {
    hooks: Vec<(Point, Hook)>,
    rlimits: Vec<PosixRlimit>,
    env: Vec<String>,
    annotations: HashMap<String, String>,
}

/// Why a base spec does not count.
#[derive(Debug, thiserror::Error)]
#[error("base spec {}: {why}", .path.display())]
pub struct Error {
    path: PathBuf,
    why: String,
}

impl BaseSpec {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error`] with the field that carpel cannot fulfil.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |why: String| Error {
            path: path.to_owned(),
            why,
        };
        let length = std::fs::metadata(path)
            .map_err(|error| failed(error.to_string()))?
            .len();
        if length > MAX_FILE {
            return Err(failed(format!("longer than {MAX_FILE} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::parse(&text).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let top = value.as_object().ok_or("not an object")?;
        check_fields(top)?;
        let spec: Spec = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let process = spec.process().as_ref();
        let base = Self {
            hooks: POINTS
                .iter()
                .flat_map(|&point| {
                    hooks::of(&spec, point)
                        .into_iter()
                        .map(move |hook| (point, hook.clone()))
                })
                .collect(),
            // A default that is filled in for what is missing would be no wish of the file's.
            rlimits: match value.pointer("/process/rlimits") {
                Some(Value::Array(_)) => process
                    .and_then(|process| process.rlimits().clone())
                    .unwrap_or_default(),
                _ => Vec::new(),
            },
            env: match value.pointer("/process/env") {
                Some(Value::Array(_)) => process
                    .and_then(|process| process.env().clone())
                    .unwrap_or_default(),
                _ => Vec::new(),
            },
            annotations: spec.annotations().clone().unwrap_or_default(),
        };
        for (point, hook) in &base.hooks {
            if !hook.path().is_absolute() {
                return Err(format!(
                    "hooks: {}: the path is not absolute",
                    hooks::describe(*point, hook)
                ));
            }
            if hook.timeout().is_some_and(|timeout| timeout <= 0) {
                return Err(format!(
                    "hooks: {}: timeout must be greater than 0",
                    hooks::describe(*point, hook)
                ));
            }
        }
        Ok(base)
    }

    /// Lays it below what a spec says already.
    pub fn apply(&self, spec: &mut Spec) {
        if *self == Self::default() {
            return;
        }
        for (point, hook) in &self.hooks {
            hooks::push(spec, point.name(), hook.clone());
        }
        if let Some(process) = spec.process_mut() {
            let mut limits = process.rlimits().clone().unwrap_or_default();
            for limit in &self.rlimits {
                limits.retain(|known| known.typ() != limit.typ());
                limits.push(*limit);
            }
            process.set_rlimits(Some(limits));
            let mut env = process.env().clone().unwrap_or_default();
            for variable in &self.env {
                let name = &variable[..variable.find('=').map_or(variable.len(), |at| at + 1)];
                if !env.iter().any(|known| known.starts_with(name)) {
                    env.push(variable.clone());
                }
            }
            process.set_env(Some(env));
        }
        let mut annotations = self.annotations.clone();
        annotations.extend(spec.annotations().clone().unwrap_or_default());
        spec.set_annotations(Some(annotations));
    }
}

fn check_fields(top: &Map<String, Value>) -> Result<(), String> {
    only("", top, &[&TOP[..], &["linux"]].concat())?;
    let object = |at: &Map<String, Value>, field: &str| {
        at.get(field)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    only("process.", &object(top, "process"), &PROCESS)?;
    let linux = object(top, "linux");
    only("linux.", &linux, &LINUX)?;
    let resources = object(&linux, "resources");
    only("linux.resources.", &resources, &["devices"])?;
    // To deny everything is where every container begins.
    for rule in resources
        .get("devices")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if rule.get("allow").and_then(Value::as_bool) != Some(false) {
            return Err("linux.resources.devices: carpel cannot do it".to_owned());
        }
    }
    for mount in top
        .get("mounts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let path = mount
            .get("destination")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !MOUNTS.contains(&path) {
            return Err(format!("mounts: {path:?}: carpel cannot do it"));
        }
    }
    Ok(())
}

/// Any other field must be empty.
fn only(at: &str, object: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    match object
        .iter()
        .find(|(field, value)| !known.contains(&field.as_str()) && !empty(value))
    {
        Some((field, _)) => Err(format!("{at}{field}: carpel cannot do it")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_limits_and_variables_are_laid_below() {
        let text = r#"{"ociVersion": "1.0.2-dev",
            "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=base", "B=base"],
                "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}], "capabilities": {"bounding": []}},
            "root": {"path": "rootfs"}, "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "mount"}], "maskedPaths": ["/proc/acpi"], "uidMappings": [],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]}},
            "hooks": {"prestart": [{"path": "/a"}], "createContainer": [{"path": "/b", "timeout": 3}]},
            "annotations": {"k": "base", "only": "base"}}"#;
        let base = BaseSpec::parse(text).unwrap();
        let mut spec: Spec = serde_json::from_str(
            r#"{"ociVersion": "1.2.0", "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=own"], "rlimits": []},
                "annotations": {"k": "own"}}"#,
        )
        .unwrap();
        base.apply(&mut spec);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(
            process.env().as_ref().unwrap(),
            &["A=own", "B=base"].map(String::from)
        );
        assert_eq!(process.rlimits().as_ref().unwrap().len(), 1);
        assert_eq!(spec.annotations().as_ref().unwrap()["k"], "own");
        assert_eq!(spec.annotations().as_ref().unwrap()["only"], "base");
        // A prestart hook is a createRuntime hook.
        let of = |point| {
            hooks::of(&spec, point)
                .iter()
                .map(|hook| hook.path().clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(of(Point::CreateRuntime), [Path::new("/a")]);
        assert_eq!(of(Point::CreateContainer), [Path::new("/b")]);
    }

    /// What `ctr oci spec` prints, with the hook of a kind node and without limits.
    #[test]
    fn another_runtimes_default_may_be_the_beginning() {
        let text = r#"{"ociVersion": "1.2.1",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]}},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}],
            "hooks": {"createContainer": [{"path": "/kind/bin/mount-product-files.sh"}]},
            "linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}]}, "cgroupsPath": "/default",
                "namespaces": [{"type": "pid"}, {"type": "network"}], "maskedPaths": ["/proc/acpi"],
                "readonlyPaths": ["/proc/bus"]}}"#;
        let base = BaseSpec::parse(text).unwrap();
        assert_eq!(base.hooks.len(), 1);
        assert_eq!(base.hooks[0].0, Point::CreateContainer);
    }

    #[test]
    fn nothing_is_filled_in() {
        let base = BaseSpec::parse("{\"ociVersion\": \"1.2.0\", \"process\": {\"cwd\": \"/\", \"user\": {\"uid\": 0, \"gid\": 0}}}").unwrap();
        assert!(base.rlimits.is_empty() && base.env.is_empty() && base.hooks.is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (text, why) in [
            ("[]", "not an object"),
            (r#"{"vm": {"a": 1}}"#, "vm: carpel cannot do it"),
            (
                r#"{"process": {"apparmorProfile": "x"}}"#,
                "process.apparmorProfile: carpel cannot do it",
            ),
            (
                r#"{"linux": {"sysctl": {"a": "b"}}}"#,
                "linux.sysctl: carpel cannot do it",
            ),
            (
                r#"{"linux": {"resources": {"memory": {"limit": 1}}}}"#,
                "linux.resources.memory: carpel cannot do it",
            ),
            (
                r#"{"linux": {"resources": {"devices": [{"allow": true}]}}}"#,
                "linux.resources.devices: carpel cannot do it",
            ),
            (
                r#"{"mounts": [{"destination": "/data"}]}"#,
                "mounts: \"/data\": carpel cannot do it",
            ),
            (
                r#"{"ociVersion": "1", "hooks": {"poststop": [{"path": "a"}]}}"#,
                "hooks: poststop hook \"a\": the path is not absolute",
            ),
            (
                r#"{"ociVersion": "1", "hooks": {"poststop": [{"path": "/a", "timeout": 0}]}}"#,
                "hooks: poststop hook \"/a\": timeout must be greater than 0",
            ),
        ] {
            assert_eq!(BaseSpec::parse(text).unwrap_err(), why);
        }
    }
}
