//! Cgroups: version 2 by clone, version 1 by the Plan. Uses whichever of the two this machine has mounted,
//! both if both, and fails if neither. Needs root.

mod pod;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use carpel_wire::{FdIndex, Output, PidNamespace, Reply, RequestBody, Setup, Start, Step};

use pod::*;

/// Where the hierarchies are mounted: version 2, and one of version 1 (its pids controller).
fn hierarchies() -> (Option<PathBuf>, Option<PathBuf>) {
    let (mut second, mut first) = (None, None);
    for line in std::fs::read_to_string("/proc/mounts").unwrap().lines() {
        let fields: Vec<_> = line.split(' ').collect();
        match fields[2] {
            "cgroup2" => second = Some(PathBuf::from(fields[1])),
            "cgroup" if fields[3].split(',').any(|option| option == "pids") => {
                first = Some(PathBuf::from(fields[1]));
            }
            _ => {}
        }
    }
    (second, first)
}

/// A cgroup that is removed at the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(hierarchy: PathBuf, name: &str) -> Self {
        let path = hierarchy.join(format!(
            "carpel-supervisor-test-{}-{name}",
            std::process::id()
        ));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn name(cgroup: &Cgroup) -> String {
    cgroup.0.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn processes_are_born_in_their_cgroups() {
    let (second, first) = hierarchies();
    assert!(
        second.is_some() || first.is_some(),
        "no cgroups are mounted"
    );
    for (hierarchy, is_second) in [(second, true), (first, false)] {
        let Some(hierarchy) = hierarchy else { continue };
        println!(
            "{} (version {})",
            hierarchy.display(),
            if is_second { 2 } else { 1 }
        );
        let sandbox = Cgroup::new(hierarchy.clone(), "sandbox");
        let container = Cgroup::new(hierarchy, "container");
        // A directory for the clone, or the file that the Plan writes to.
        let open = |cgroup: &Cgroup| {
            if is_second {
                File::open(&cgroup.0).unwrap()
            } else {
                File::options()
                    .write(true)
                    .open(cgroup.0.join("tasks"))
                    .unwrap()
            }
        };
        let join = |fd| {
            if is_second {
                vec![]
            } else {
                vec![Step::JoinTasks { tasks: FdIndex(fd) }]
            }
        };
        let (mut pod, mut daemon) = Pod::spawn();
        let exits = File::options()
            .create(true)
            .append(true)
            .open(pod.exits_path())
            .unwrap();
        let mut steps = join(2);
        steps.extend(setup_steps());
        let setup = Setup {
            clone_flags: NEWNS | NEWNET | NEWUTS | NEWIPC,
            cgroup: is_second.then_some(FdIndex(2)),
            plan: FdIndex(0),
            exits: FdIndex(1),
            shared_pid_namespace: true,
            succession: None,
        };
        let cgroup = open(&sandbox);
        let fds = [plan(&steps), exits.into(), cgroup.into()];
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let (reply, fds) = daemon.ask(RequestBody::Setup(setup), &fds);
        pod.is_ready(&reply, fds);
        let of = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let Reply::Ready {
            pid,
            reaper_pid: Some(reaper),
        } = reply
        else {
            panic!("{reply:?}")
        };
        assert!(
            of(pid).contains(&name(&sandbox)) && of(reaper).contains(&name(&sandbox)),
            "{}",
            of(pid)
        );

        let rootfs = Rootfs::new();
        let command = ["sh", "-c", "cat /proc/self/cgroup; sleep 1000"];
        let mut run = Run::container(1, &rootfs, &command);
        run.clone_flags = NEWNS | NEWCGROUP;
        run.steps = join(7);
        let plan = run.plan();
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let cgroup = open(&container);
        let null = null.as_fd();
        let fds = [
            plan.as_fd(),
            null,
            write.as_fd(),
            null,
            null,
            rootfs.0.as_fd(),
            null,
            cgroup.as_fd(),
        ];
        let start = Start {
            id: run.id,
            clone_flags: run.clone_flags,
            pid_namespace: PidNamespace::Pod,
            target: None,
            cgroup: is_second.then_some(FdIndex(7)),
            plan: FdIndex(0),
            output: Output::None,
            stdin: None,
            init: true,
        };
        let reply = daemon.ask(RequestBody::Start(start), &fds).0;
        let Reply::Started { pid, .. } = reply else {
            panic!("{reply:?}")
        };
        assert!(of(pid).contains(&name(&container)), "{}", of(pid));
        // The namespace is rooted in the cgroup: from inside it is "/".
        let mut inside = String::new();
        let mut lines = std::io::BufReader::new(File::from(read));
        while !inside.ends_with("0::/\n") && !inside.contains("pids:/\n") {
            let before = inside.len();
            std::io::BufRead::read_line(&mut lines, &mut inside).unwrap();
            assert!(inside.len() > before, "{inside}");
        }
        if is_second {
            // What a clone can refuse, for instance a cgroup that is gone, is its own error.
            let gone = Cgroup::new(container.0.parent().unwrap().to_owned(), "gone");
            let directory = open(&gone);
            drop(gone);
            let start = Start {
                id: id(2),
                clone_flags: 0,
                pid_namespace: PidNamespace::Host,
                target: None,
                cgroup: Some(FdIndex(1)),
                plan: FdIndex(0),
                output: Output::None,
                stdin: None,
                init: false,
            };
            let reply = daemon
                .ask(
                    RequestBody::Start(start),
                    &[plan.as_fd(), directory.as_fd()],
                )
                .0;
            let refused = |errno| Reply::CallFailed {
                call: carpel_wire::Call::Clone,
                errno,
            };
            assert!([refused(2), refused(19)].contains(&reply), "{reply:?}");
        }
        assert_eq!(daemon.signal(id(1), 9), Reply::Done);
        assert_eq!(daemon.exit(id(1)), 9);
        assert_eq!(daemon.forget(id(1)), Reply::Done);
        assert_eq!(daemon.ask(RequestBody::Shutdown, &[]).0, Reply::Done);
        assert!(daemon.receive().is_none());
    }
}
