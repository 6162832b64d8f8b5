//! Cgroups whose processes end, or do not want to.

use super::*;

#[test]
fn kill_ends_a_fork_storm() {
    let parent = Parent::new();
    let resources = Resources {
        pids_limit: Some(Ceiling::At(200)),
        ..Resources::default()
    };
    let cgroup = parent.create("storm", Some(&resources), PLAIN);
    let storm =
        "f() { while :; do sh -c : & sleep 0.001; done; }; for i in $(seq 10); do f & done; wait";
    let mut child = run(&cgroup, &format!("exec 2>/dev/null; {storm}"));
    eventually(|| cgroup.pids().unwrap().len() > 12);
    let start = Instant::now();
    cgroup.kill().unwrap();
    println!("killed a fork storm in {:?}", start.elapsed());
    child.wait().unwrap();
    eventually(|| cgroup.pids().unwrap().is_empty());
    cgroup.remove().unwrap();
    assert_eq!(parent.dirs(cgroup.path()), [] as [PathBuf; 0]);
}

#[test]
fn remove_takes_nested_cgroups_and_waits_for_the_dying() {
    let parent = Parent::new();
    let cgroup = parent.create("nested", None, PLAIN);
    for dir in parent.dirs(cgroup.path()) {
        fs::create_dir_all(dir.join("a/b/c")).unwrap();
        fs::create_dir_all(dir.join("a/d")).unwrap();
    }
    // A container's runtime would fill the cpusets of v1 thus.
    for below in ["a", "a/b", "a/b/c"] {
        for dir in parent.dirs(&format!("{}/{below}", cgroup.path())) {
            if dir.join("cpuset.effective_cpus").exists() {
                fs::write(dir.join("cpuset.cpus"), "0").unwrap();
                fs::write(dir.join("cpuset.mems"), "0").unwrap();
            }
        }
    }
    let below = parent.cgroups.open(&format!("{}/a/b/c", cgroup.path()));
    let mut child = run(&below, "sleep 100 & sleep 100");
    eventually(|| cgroup.pids().unwrap().len() >= 2);
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert_eq!(parent.dirs(cgroup.path()), [] as [PathBuf; 0]);
    child.wait().unwrap();
    // All of it again, with nothing there.
    cgroup.remove().unwrap();
    cgroup.kill().unwrap();
    assert_eq!(cgroup.pids().unwrap(), [] as [u32; 0]);
    assert_eq!(cgroup.join().unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn one_that_is_there_is_made_anew_unless_it_lives() {
    let parent = Parent::new();
    parent.create("again", Some(&limited()), DevicePolicy::Rules(vec![]));
    let cgroup = parent.create("again", None, PLAIN);
    assert_eq!(parent.read(&cgroup, "pids.max"), "max");
    let mut child = run(&cgroup, "sleep 100");
    let error = parent
        .cgroups
        .create(cgroup.path(), None, &PLAIN)
        .unwrap_err();
    assert!(
        matches!(&error, Error::Io { source, .. }
        if source.kind() == io::ErrorKind::ResourceBusy),
        "{error}"
    );
    assert!(cgroup.pids().unwrap().contains(&child.id()));
    let error = cgroup.remove().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    cgroup.kill().unwrap();
    child.wait().unwrap();
}

/// As when a process dies or is killed between two hierarchies of v1.
#[test]
fn kill_finds_a_process_that_is_only_half_in() {
    let parent = Parent::new();
    if parent.v2() {
        // There is only one hierarchy to be in.
        return;
    }
    let cgroup = parent.create("half", None, PLAIN);
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    let Join::V1(tasks) = cgroup.join().unwrap() else {
        unreachable!()
    };
    for file in tasks.iter().take(2) {
        rustix::io::write(file, child.id().to_string().as_bytes()).unwrap();
    }
    cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    cgroup.remove().unwrap();
}
