//! These need root, and cgroups of either version: each test makes a parent of its own.

mod lifetime;

use super::*;
use crate::spec::config::Ceiling;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, openat};

const ALL: Wanted = Wanted {
    limits: true,
    pids: true,
};

/// A parent cgroup that is removed with all in it.
struct Parent {
    cgroups: Cgroups,
    path: String,
}

impl Parent {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            cgroups: Cgroups::detect().unwrap(),
            path: format!("/carpel-test-{}-{count}/pods/pod", std::process::id()),
        }
    }

    fn child(&self, name: &str) -> String {
        Cgroups::path(&self.path, name)
    }

    fn create(&self, name: &str, resources: Option<&Resources>, devices: DevicePolicy) -> Cgroup {
        self.cgroups
            .create(&self.child(name), resources, &devices)
            .unwrap()
    }

    fn v2(&self) -> bool {
        self.cgroups.version() == Version::V2
    }

    /// The directories that a cgroup has, over all hierarchies.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let found = detect::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap());
        let mounts = found
            .v1
            .into_iter()
            .map(|hierarchy| hierarchy.mounted_on)
            .chain(found.v2);
        mounts
            .map(|mount| mount.join(&path[1..]))
            .filter(|dir| dir.exists())
            .collect()
    }

    /// A file of a cgroup, wherever it is.
    fn read(&self, cgroup: &Cgroup, file: &str) -> String {
        let files = self
            .dirs(cgroup.path())
            .into_iter()
            .map(|dir| dir.join(file));
        let text = files
            .filter_map(|file| fs::read_to_string(file).ok())
            .next();
        text.unwrap_or_else(|| panic!("no {file}"))
            .trim()
            .to_owned()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let top = self.path.split('/').nth(1).unwrap();
        let top = self.cgroups.open(&format!("/{top}"));
        let removed = top.kill().and_then(|()| top.remove());
        if !std::thread::panicking() {
            removed.unwrap();
            assert_eq!(self.dirs(top.path()), [] as [PathBuf; 0]);
        }
    }
}

/// A shell that runs `script` in the cgroup.
fn run(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let files = match cgroup.join().unwrap() {
        Join::V1(tasks) => tasks,
        Join::V2(dir) => {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            vec![openat(&dir, "cgroup.procs", flags, Mode::empty()).unwrap()]
        }
    };
    for file in files {
        rustix::io::write(&file, child.id().to_string().as_bytes()).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child
}

fn output(cgroup: &Cgroup, script: &str) -> String {
    let output = run(cgroup, script).wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn eventually(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "timed out");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const PLAIN: DevicePolicy = DevicePolicy::AllowAll;

fn limited() -> Resources {
    Resources {
        cpu_period: Some(50_000),
        cpu_quota: Some(Ceiling::At(25_000)),
        cpu_shares: Some(512),
        memory_limit: Some(32 << 20),
        cpuset_cpus: Some("0".to_owned()),
        pids_limit: Some(Ceiling::At(50)),
        ..Resources::default()
    }
}

#[test]
fn limits_land_in_the_files() {
    let parent = Parent::new();
    let cgroup = parent.create("limited", Some(&limited()), PLAIN);
    let expected: &[(&str, &str)] = if parent.v2() {
        &[
            ("cpu.weight", "59"),
            ("cpu.max", "25000 50000"),
            ("memory.max", "33554432"),
            ("cpuset.cpus", "0"),
            ("pids.max", "50"),
        ]
    } else {
        &[
            ("cpu.shares", "512"),
            ("cpu.cfs_period_us", "50000"),
            ("cpu.cfs_quota_us", "25000"),
            ("memory.limit_in_bytes", "33554432"),
            ("cpuset.cpus", "0"),
            ("pids.max", "50"),
        ]
    };
    for (file, value) in expected {
        assert_eq!(parent.read(&cgroup, file), *value, "{file}");
    }
    assert_eq!(output(&cgroup, "echo in"), "in\n");
    // The pids limit holds.
    let forked = output(
        &cgroup,
        "for i in $(seq 60); do sleep 5 & done 2>/dev/null; echo never",
    );
    assert_ne!(forked, "never\n");
    cgroup.kill().unwrap();

    cgroup
        .update(&Resources {
            memory_limit: Some(64 << 20),
            pids_limit: Some(Ceiling::At(60)),
            ..Resources::default()
        })
        .unwrap();
    assert_eq!(parent.read(&cgroup, "pids.max"), "60");
    let memory = if parent.v2() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    assert_eq!(parent.read(&cgroup, memory), "67108864");
}

#[test]
fn a_leaf_without_limits_can_be_entered() {
    let parent = Parent::new();
    let cgroup = parent.create("sandbox", None, PLAIN);
    let mut child = run(&cgroup, "sleep 100");
    assert_eq!(
        cgroup
            .pids()
            .unwrap()
            .iter()
            .filter(|pid| **pid == child.id())
            .count(),
        1
    );
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    cgroup.kill().unwrap();
    child.wait().unwrap();
    eventually(|| cgroup.pids().unwrap().is_empty());
}

#[test]
fn memory_and_swap_limits_change_in_any_order() {
    let parent = Parent::new();
    let megabytes = |memory: u64, both: u64| Resources {
        memory_limit: Some(memory << 20),
        memory_swap_limit: Some(Ceiling::At(both << 20)),
        ..Resources::default()
    };
    let cgroup = parent.create("swap", Some(&megabytes(32, 32)), PLAIN);
    for (memory, both) in [(64, 64), (16, 16), (16, 48), (64, 96), (8, 8)] {
        cgroup.update(&megabytes(memory, both)).unwrap();
        let (file, value) = if parent.v2() {
            ("memory.swap.max", (both - memory) << 20)
        } else {
            ("memory.memsw.limit_in_bytes", both << 20)
        };
        assert_eq!(parent.read(&cgroup, file), value.to_string());
    }
}

#[test]
fn what_cannot_be_changed_changes_nothing() {
    let parent = Parent::new();
    let megabytes = |memory: u64, both: u64| Resources {
        memory_limit: Some(memory << 20),
        memory_swap_limit: Some(Ceiling::At(both << 20)),
        cpu_shares: Some(memory * 10),
        pids_limit: Some(Ceiling::At(memory)),
        ..Resources::default()
    };
    let cgroup = parent.create("undone", Some(&megabytes(32, 48)), PLAIN);
    let files = if parent.v2() {
        ["cpu.weight", "memory.max", "memory.swap.max", "pids.max"]
    } else {
        [
            "cpu.shares",
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "pids.max",
        ]
    };
    let values = || files.map(|file| parent.read(&cgroup, file));
    let before = values();
    for (memory, both) in [(64, 96), (16, 24)] {
        let mut wrong = megabytes(memory, both);
        wrong.unified = [("pids.max".to_owned(), "many".to_owned())].into();
        let error = cgroup.update(&wrong).unwrap_err();
        assert!(error.is_invalid(), "{error}");
        assert_eq!(values(), before, "{memory} {both}");
        cgroup.update(&megabytes(memory, both)).unwrap();
        assert_ne!(values(), before);
        cgroup.update(&megabytes(32, 48)).unwrap();
        assert_eq!(values(), before);
    }
    cgroup.remove().unwrap();
    assert!(
        cgroup
            .update(&megabytes(16, 16))
            .is_err_and(|error| error.is_gone())
    );
}

#[test]
fn memory_in_use_is_not_taken_away() {
    let parent = Parent::new();
    let megabytes = |memory: u64| Resources {
        memory_limit: Some(memory << 20),
        ..Resources::default()
    };
    let cgroup = parent.create("used", Some(&megabytes(128)), PLAIN);
    // tail keeps all that has no line end.
    let mut child = run(
        &cgroup,
        "(head -c 16000000 /dev/zero; sleep 100) | tail -n 1",
    );
    let mut files = FileReader::default();
    let mut rss = || cgroup.usage(ALL, &mut files).unwrap().memory.unwrap().rss;
    eventually(|| rss() > 15_000_000);
    let error = cgroup.update(&megabytes(4)).unwrap_err();
    assert!(
        matches!(error, Error::InUse { used, .. } if used > 15_000_000),
        "{error}"
    );
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    // Some of it is free, and file pages would be.
    cgroup.update(&megabytes(32)).unwrap();
    cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn usage_is_that_of_the_processes() {
    let parent = Parent::new();
    let resources = Resources {
        memory_limit: Some(64 << 20),
        ..Resources::default()
    };
    let cgroup = parent.create("busy", Some(&resources), PLAIN);
    let mut files = FileReader::default();
    let mut child = run(
        &cgroup,
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 100",
    );
    eventually(|| {
        let usage = cgroup.usage(ALL, &mut FileReader::default()).unwrap();
        usage.cpu.unwrap().total > 5_000_000
    });
    let usage = cgroup.usage(ALL, &mut files).unwrap();
    assert_eq!(usage.pids, Some(1));
    let memory = usage.memory.unwrap();
    assert_eq!(memory.limit, Some(64 << 20));
    assert!(memory.usage > 0 && memory.usage < 64 << 20 && memory.working_set <= memory.usage);
    if parent.v2() {
        assert_eq!(usage.swap.and_then(|swap| swap.limit), Some(0));
    }
    cgroup.kill().unwrap();
    child.wait().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(cgroup.usage(ALL, &mut files).unwrap(), Usage::default());
}

#[test]
fn kills_for_memory_are_counted() {
    let parent = Parent::new();
    let resources = Resources {
        memory_limit: Some(16 << 20),
        memory_swap_limit: Some(Ceiling::At(16 << 20)),
        ..Resources::default()
    };
    let cgroup = parent.create("hungry", Some(&resources), PLAIN);
    // tail keeps all that has no line end.
    output(
        &cgroup,
        "head -c 100000000 /dev/zero | tail -n 1 >/dev/null",
    );
    assert!(cgroup.oom_kills().unwrap() >= 1);
}

#[test]
fn device_rules_hold() {
    let parent = Parent::new();
    let folder = tempfile::tempdir().unwrap();
    // 1:11 is kmsg, which may be read at any time.
    let script = format!(
        "cd {}; rm -f node; mknod node c 1 11 && echo made; (: <node) 2>/dev/null && echo read;
        (: >>node) 2>/dev/null && echo written; (: <>/dev/null) && echo null; exit 0",
        folder.path().display()
    );
    let with = |rules| parent.create("devices", None, rules);
    assert_eq!(output(&with(PLAIN), &script), "made\nread\nwritten\nnull\n");
    assert_eq!(
        output(&with(DevicePolicy::Rules(vec![])), &script),
        "made\nnull\n"
    );
    let rule = |minor, access: &str| DeviceRule {
        kind: DeviceKind::Char,
        major: Some(1),
        minor,
        access: access.parse().unwrap(),
    };
    let rules = |minor, access| DevicePolicy::Rules(vec![rule(minor, access)]);
    assert_eq!(
        output(&with(rules(Some(11), "r")), &script),
        "made\nread\nnull\n"
    );
    assert_eq!(
        output(&with(rules(None, "w")), &script),
        "made\nwritten\nnull\n"
    );
    assert_eq!(
        output(&with(rules(Some(12), "rwm")), &script),
        "made\nnull\n"
    );
    let block = DevicePolicy::Rules(vec![DeviceRule {
        kind: DeviceKind::Block,
        ..rule(Some(11), "rwm")
    }]);
    assert_eq!(output(&with(block), &script), "made\nnull\n");
    // Another one with the program that is loaded already.
    assert_eq!(
        output(&with(DevicePolicy::Rules(vec![])), &script),
        "made\nnull\n"
    );
}

#[test]
fn what_cannot_be_set_is_an_error_and_leaves_nothing() {
    let parent = Parent::new();
    let unified = |key: &str, value: &str| Resources {
        unified: [(key.to_owned(), value.to_owned())].into(),
        ..Resources::default()
    };
    for resources in [
        unified("unknown.max", "1"),
        unified("cgroup.procs", "1"),
        unified("pids.max", "many"),
        unified("pids.unknown", "1"),
        Resources {
            cpuset_cpus: Some("4000".to_owned()),
            ..Resources::default()
        },
    ] {
        let path = parent.child("wrong");
        let error = parent
            .cgroups
            .create(&path, Some(&resources), &PLAIN)
            .unwrap_err()
            .to_string();
        let key = resources
            .unified
            .keys()
            .next()
            .map_or("cpuset.cpus", String::as_str);
        assert!(error.contains(key), "{error}");
        println!("{error}");
        assert_eq!(parent.dirs(&path), [] as [PathBuf; 0]);
    }
    let cgroup = parent.create("pids", Some(&unified("pids.max", "7")), PLAIN);
    assert_eq!(parent.read(&cgroup, "pids.max"), "7");
}

#[test]
fn paths_stay_below_the_root() {
    let cgroups = Cgroups::detect().unwrap();
    for path in [
        "", "/", "a", "/a/../b", "/a//b", "/a/", "/./a", "/a\n", "/a\0",
    ] {
        let error = cgroups.create(path, None, &PLAIN).unwrap_err();
        assert!(matches!(error, Error::Path(_)), "{path:?}");
        let cgroup = cgroups.open(path);
        assert_eq!(
            cgroup.kill().unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            cgroup.remove().unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
    assert_eq!(Cgroups::path("/carpel", "a"), "/carpel/a");
    assert_eq!(Cgroups::path("/", "a"), "/a");
}

/// On v2 a cgroup with processes in it enables nothing for those below it.
#[test]
fn a_controller_that_cannot_be_had_is_an_error_for_a_limit_alone() {
    let parent = Parent::new();
    let inner = parent.create("inner", None, PLAIN);
    let mut child = run(&inner, "sleep 100");
    let path = format!("{}/leaf", inner.path());
    let leaf = parent.cgroups.create(&path, None, &PLAIN).unwrap();
    assert_eq!(output(&leaf, "echo in"), "in\n");
    let limits = Resources {
        pids_limit: Some(Ceiling::At(9)),
        ..Resources::default()
    };
    let results = [
        parent
            .cgroups
            .create(&path, Some(&limits), &PLAIN)
            .map(drop),
        parent
            .cgroups
            .create(&path, None, &PLAIN)
            .and_then(|leaf| leaf.update(&limits)),
    ];
    for result in results {
        if parent.v2() {
            let error = result.unwrap_err().to_string();
            let expected =
                "pids.max needs the controller pids, which is not available: enable it in ";
            assert!(
                error.contains(expected) && error.contains("/inner: "),
                "{error}"
            );
        } else {
            result.unwrap();
        }
    }
    assert_eq!(leaf.oom_kills().unwrap(), 0);
    assert_eq!(output(&leaf, "echo in"), "in\n");
    inner.kill().unwrap();
    child.wait().unwrap();
}

/// Not a test of speed, which depends on the machine, but a place to read it: `--nocapture`.
#[test]
fn times() {
    let parent = Parent::new();
    let devices = DevicePolicy::Rules(vec![]);
    let mut times = [const { Vec::new() }; 4];
    for round in 0..40 {
        let name = format!("{round}");
        let start = Instant::now();
        let cgroup = parent.create(&name, Some(&limited()), devices.clone());
        times[0].push(start.elapsed());
        let start = Instant::now();
        drop(cgroup.join().unwrap());
        times[1].push(start.elapsed());
        let start = Instant::now();
        cgroup.remove().unwrap();
        times[2].push(start.elapsed());
        let start = Instant::now();
        let sandbox = parent.create(&name, None, PLAIN);
        times[3].push(start.elapsed());
        sandbox.remove().unwrap();
    }
    for (what, times) in ["create", "join", "remove", "create a sandbox's"]
        .iter()
        .zip(&mut times)
    {
        times.sort_unstable();
        println!("{what}: p50 {:?}, p90 {:?}", times[20], times[36]);
    }
}
