//! SELinux labels. Where the kernel has SELinux on: what processes and files are labelled with, and what that keeps
//! apart. Where it has not: that labels are accepted and change nothing.
//!
//! `integration/selinux` has a policy to try it with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use carpel_integration::cli::{Said, carpel};
use carpel_integration::host::{self, Selinux, label_of};
use carpel_integration::image::{Image, Layer};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{ContainerConfig, ImageSpec, Mount, NamespaceMode, SeLinuxOption};
use carpel_integration::{ContainerConfigExt, Pod, PodConfigExt, TestNode, sh};
use tonic::Code;

use crate::adoption::kill_supervisor;
use crate::{refused, userns};

/// What a process is known by; without SELinux it may be nothing.
const OWN: &str = "cat /proc/self/attr/current 2>/dev/null | tr '\\0' '\\n'";

/// The type and the level of a label.
fn parts(label: &str) -> (&str, &str) {
    let mut parts = label.trim().splitn(4, ':').skip(2);
    let mut part = || parts.next().unwrap_or_default();
    (part(), part())
}

fn level(level: &str) -> SeLinuxOption {
    SeLinuxOption {
        level: level.to_owned(),
        ..SeLinuxOption::default()
    }
}

fn kind(kind: &str) -> SeLinuxOption {
    SeLinuxOption {
        r#type: kind.to_owned(),
        ..SeLinuxOption::default()
    }
}

fn asking(mut config: ContainerConfig, options: SeLinuxOption) -> ContainerConfig {
    config.security().selinux_options = Some(options);
    config
}

/// A pod at a level.
async fn pod_at(node: &TestNode, name: &str, options: SeLinuxOption) -> Pod {
    let mut config = node.pod(name);
    config.security().selinux_options = Some(options);
    node.run_pod(&config).await
}

fn volume(host: &Path, relabel: bool) -> Mount {
    Mount {
        container_path: "/data".into(),
        host_path: host.display().to_string(),
        selinux_relabel: relabel,
        ..Mount::default()
    }
}

fn with(mut config: ContainerConfig, mount: Mount) -> ContainerConfig {
    config.mounts.push(mount);
    config
}

/// Whether a new container of the pod can read /data/file.
async fn reads(node: &TestNode, pod: &Pod, name: &str, mount: Mount) -> bool {
    let config = with(sh(name, "cat /data/file"), mount);
    let (log, status) = node.run_to_end(pod, &config).await;
    let read = log.stdout() == "content\n";
    assert_eq!(read, status.exit_code == 0, "{log:?}");
    assert!(
        read || log.stderr().contains("Permission denied"),
        "{log:?}"
    );
    read
}

/// What the policy of an enforcing kernel would refuse, all others allow.
fn is_kept_apart() -> bool {
    host::selinux().is_some_and(|selinux| selinux.enforcing)
}

/// The first process of each container, commands in it, with and without new privileges.
#[tokio::test]
async fn containers_of_a_pod_share_a_level_that_no_other_pod_has() {
    let node = TestNode::start().await;
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let pod = node.run_pod(&node.pod(name)).await;
        let mut labels = Vec::new();
        for no_new_privs in [false, true] {
            let mut config = sleeper(&format!("c-{no_new_privs}"));
            config.security().no_new_privs = no_new_privs;
            let id = node.start_container(&pod, &config).await;
            labels.push(node.exec(&id, OWN).await);
            let first = "cat /proc/1/attr/current 2>/dev/null | tr '\\0' '\\n'";
            labels.push(node.exec(&id, first).await);
        }
        assert!(labels.iter().all(|label| *label == labels[0]), "{labels:?}");
        let info = node.pod_info(&pod).await;
        match host::selinux() {
            Some(selinux) => {
                let (kind, level) = parts(&labels[0]);
                assert_eq!(kind, selinux.process_type, "{labels:?}");
                assert!(
                    level.starts_with("s0:c") && level.contains(','),
                    "{labels:?}"
                );
                assert_eq!(info["selinux"]["process"], labels[0].trim());
                let (kind, files) = parts(info["selinux"]["mount"].as_str().unwrap());
                assert_eq!((kind, files), (&*selinux.file_type, level));
            }
            None => assert!(info.get("selinux").is_none(), "{info:#}"),
        }
        seen.push(labels.swap_remove(0));
    }
    assert_eq!(seen[0] != seen[1], host::selinux().is_some(), "{seen:?}");
    node.finish().await;
}

#[tokio::test]
async fn what_is_asked_for_is_had() {
    let node = TestNode::start().await;
    let pod = pod_at(&node, "one", level("s0:c1,c2")).await;
    let usual = node.output_of(&pod, &sh("usual", OWN)).await;
    let other = asking(sh("level", OWN), level("s0:c3,c4"));
    let other = node.output_of(&pod, &other).await;
    let all_powerful = asking(sh("type", OWN), kind("spc_t"));
    let all_powerful = node.output_of(&pod, &all_powerful).await;
    let pod = pod_at(&node, "two", kind("spc_t")).await;
    let of_pod = node.output_of(&pod, &sh("pods", OWN)).await;
    if let Some(selinux) = host::selinux() {
        let own = selinux.process_type.as_str();
        assert_eq!(parts(&usual), (own, "s0:c1,c2"));
        assert_eq!(parts(&other), (own, "s0:c3,c4"));
        assert_eq!(parts(&all_powerful), ("spc_t", "s0:c1,c2"));
        assert_eq!(parts(&of_pod).0, "spc_t");
    } else {
        for label in [other, all_powerful, of_pod] {
            assert_eq!(label, usual);
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn what_the_kernel_does_not_know_is_refused_by_field() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    type Change = fn(&mut SeLinuxOption);
    let cases: [(&str, Change); 4] = [
        ("user", |s| s.user = "nobody_u".into()),
        ("role", |s| s.role = "nobody_r".into()),
        ("type", |s| s.r#type = "nothing_t".into()),
        ("level", |s| s.level = "s0:c9999".into()),
    ];
    for (field, change) in cases {
        let mut options = level("s0:c1,c2");
        change(&mut options);
        let mut config = node.pod(&format!("pod-{field}"));
        config.security().selinux_options = Some(options.clone());
        let container = asking(sh(&format!("c-{field}"), "echo ran"), options);
        if host::selinux().is_none() {
            node.run_pod(&config).await;
            assert_eq!(node.output_of(&pod, &container).await, "ran\n");
            continue;
        }
        let text = format!("config.linux.security_context.selinux_options.{field}: ");
        let outcome = node.try_run_pod(&config).await;
        refused(outcome.map(|pod| pod.id), Code::InvalidArgument, &text);
        let outcome = node.try_create(&pod, &container).await;
        refused(outcome, Code::InvalidArgument, &text);
        assert_eq!(node.pods().await.len(), 1, "only the first is there");
        assert!(node.containers().await.is_empty());
    }
    node.finish().await;
}

/// `selinux_relabel`: private to the pod, with all that is below it, and nothing beside it.
#[tokio::test]
async fn a_volume_is_let_in_by_relabelling_it() {
    let node = TestNode::start().await;
    let dir = node.dir().join("volume");
    let outside = node.dir().join("outside");
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::create_dir(&outside).unwrap();
    for file in [dir.join("file"), dir.join("a/b/file"), outside.join("file")] {
        fs::write(file, "content\n").unwrap();
    }
    symlink(&outside, dir.join("a/link")).unwrap();
    let before = label_of(&outside.join("file"));
    let one = pod_at(&node, "one", level("s0:c1,c2")).await;
    let two = pod_at(&node, "two", level("s0:c3,c4")).await;
    let apart = is_kept_apart();
    let may = |host: &Path, relabel| volume(host, relabel);
    assert_eq!(reads(&node, &one, "bare", may(&dir, false)).await, !apart);
    assert!(reads(&node, &one, "own", may(&dir, true)).await);
    for path in ["", "file", "a/b", "a/b/file", "a/link"] {
        let label = label_of(&dir.join(path));
        match host::selinux() {
            Some(Selinux { file_type, .. }) => {
                let label = label.expect("a label");
                assert_eq!(parts(&label), (&*file_type, "s0:c1,c2"), "{path}");
            }
            None => assert_eq!(label, None, "{path}"),
        }
    }
    assert_eq!(label_of(&outside.join("file")), before);
    // The other pod sees the folder, and has not its categories.
    assert_eq!(reads(&node, &two, "others", may(&dir, false)).await, !apart);
    assert!(reads(&node, &one, "again", may(&dir, false)).await);
    assert!(reads(&node, &two, "taken", may(&dir, true)).await);
    assert_eq!(reads(&node, &one, "lost", may(&dir, false)).await, !apart);
    // Whom the policy lets do everything takes nothing away.
    let all_powerful = asking(sh("all", "cat /data/file"), kind("spc_t"));
    let all_powerful = with(all_powerful, volume(&dir, true));
    assert_eq!(node.output_of(&one, &all_powerful).await, "content\n");
    assert!(reads(&node, &two, "still", may(&dir, false)).await);
    // A file by itself, by way of a link.
    let link = node.dir().join("link");
    symlink(outside.join("file"), &link).unwrap();
    let mount = Mount {
        container_path: "/data/file".into(),
        ..volume(&link, true)
    };
    assert!(reads(&node, &one, "file", mount).await);
    if host::selinux().is_some() {
        let label = label_of(&outside.join("file")).expect("a label");
        assert_eq!(parts(&label).1, "s0:c1,c2");
        assert_ne!(parts(&label_of(&outside).expect("a label")).1, "s0:c1,c2");
    }
    node.finish().await;
}

#[tokio::test]
async fn the_machine_is_not_relabelled() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let link = node.dir().join("link");
    symlink("/etc", &link).unwrap();
    let before = label_of("/etc".as_ref());
    let root = node.dir().join("root");
    for (n, path) in ["/etc".as_ref(), "/usr".as_ref(), &*link, &*root, node.dir()]
        .into_iter()
        .enumerate()
    {
        let config = with(
            sh(&format!("c{n}"), "ls /data > /dev/null"),
            volume(path, true),
        );
        if host::selinux().is_none() {
            node.output_of(&pod, &config).await;
            continue;
        }
        let outcome = node.try_create(&pod, &config).await;
        let text = format!("config.mounts[0].selinux_relabel: {}", path.display());
        refused(outcome, Code::InvalidArgument, &text);
        assert!(node.containers().await.is_empty());
    }
    assert_eq!(label_of("/etc".as_ref()), before);
    node.finish().await;
}

/// Whoever may do everything, or sees the node's processes or memory, is what the policy makes of the program.
#[tokio::test]
async fn who_is_not_kept_apart_has_no_label_of_a_container() {
    let node = TestNode::start().await;
    let mut config = node.pod("privileged");
    config.security().privileged = true;
    let pod = node.run_pod(&config).await;
    let confined = node.output_of(&pod, &sh("confined", OWN)).await;
    let mut outputs = Vec::new();
    for (name, options) in [("usual", None), ("level", Some(level("s0:c5,c6")))] {
        let mut container = sh(name, OWN);
        container.security().privileged = true;
        container.security().selinux_options = options;
        outputs.push(node.output_of(&pod, &container).await);
    }
    let mut config = node.pod("pid");
    config.namespaces().set_pid(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    let mut container = sh("pid", OWN);
    container.namespaces().set_pid(NamespaceMode::Node);
    outputs.push(node.output_of(&pod, &container).await);
    let mut config = node.pod("ipc");
    config.namespaces().set_ipc(NamespaceMode::Node);
    let pod = node.run_pod(&config).await;
    let in_ipc = |name: &str| {
        let mut container = sh(name, OWN);
        container.namespaces().set_ipc(NamespaceMode::Node);
        container
    };
    outputs.push(node.output_of(&pod, &in_ipc("ipc")).await);
    // One that names a type has it all the same.
    let own = host::selinux().map_or("container_t".to_owned(), |selinux| selinux.process_type);
    let typed = asking(in_ipc("typed"), kind(&own));
    let typed = node.output_of(&pod, &typed).await;
    if host::selinux().is_some() {
        assert_eq!([parts(&typed).0, parts(&confined).0], [&*own; 2]);
        let types: Vec<_> = outputs.iter().map(|label| parts(label).0).collect();
        assert_eq!(types, ["spc_t"; 4], "{outputs:?}");
    } else {
        outputs.extend([typed, confined]);
        let labelled = |output: &String| output.contains("_t");
        assert!(!outputs.iter().any(labelled), "{outputs:?}");
    }
    node.finish().await;
}

/// What a container finds works for one that is confined as for any other: terminals, shared memory, queues, the
/// pod's files, what is masked, volumes of images, its own root.
const EVERYWHERE: &str = "test -t 0 && echo x > /dev/tty && ls /dev/pts | grep -c 0; \
    echo a > /dev/shm/$NAME && cat /dev/shm/$NAME; ls /dev/mqueue && echo queues; \
    grep -c localhost /etc/hosts; cat /etc/resolv.conf /etc/hostname > /dev/null && echo files; \
    ls /sys/firmware | wc -l; cat /vol/f; mkdir -p /own/deep && touch /own/deep/file && ls /own/deep; \
    echo null > /dev/null && head -c 1 /dev/zero | wc -c; cat /sys/fs/cgroup/*.* > /dev/null 2>&1; echo end";

#[tokio::test]
async fn a_confined_container_finds_what_others_find() {
    let mut node = TestNode::start().await;
    let layer = Layer::default().file("f", 0o644, b"image\n");
    node.import(Image::tiny("localhost/data:1").layer(layer).oci())
        .await;
    let everything = |name: &str| {
        let mut config = sh(name, EVERYWHERE).env("NAME", name.as_bytes());
        config.tty = true;
        config.security().masked_paths = vec!["/proc/acpi".into(), "/sys/firmware".into()];
        config.mounts.push(Mount {
            container_path: "/vol".into(),
            readonly: true,
            image: Some(ImageSpec {
                image: "localhost/data:1".into(),
                ..ImageSpec::default()
            }),
            ..Mount::default()
        });
        config
    };
    let expected = "x\n1\na\nqueues\n2\nfiles\n0\nimage\nfile\n1\nend\n";
    let check = |output: String| assert_eq!(output.replace('\r', ""), expected);
    let pod = node.run_pod(&node.pod("one")).await;
    check(node.output_of(&pod, &everything("usual")).await);
    // Of another level than its pod.
    check(
        node.output_of(&pod, &asking(everything("other"), level("s0:c3,c4")))
            .await,
    );
    check(node.output_of(&pod, &everything("again")).await);
    let pod = node.run_pod(&userns::pod(&node, "two")).await;
    check(
        node.output_of(&pod, &userns::inside(everything("inside")))
            .await,
    );
    // What it makes is its own.
    let id = node
        .start_container(&pod, &userns::inside(sleeper("a")))
        .await;
    let label = node
        .exec(&id, &format!("touch /dev/shm/made /made; {OWN}"))
        .await;
    let root = format!("/proc/{}/root", node.container_pid(&id));
    for made in ["dev/shm/made", "made", "dev/null"] {
        let made = label_of(&Path::new(&root).join(made));
        match host::selinux() {
            // A device is the node's in a user namespace.
            Some(_) if made.as_deref().is_some_and(|l| l.contains("device_t")) => {}
            Some(selinux) => {
                let made = made.expect("a label");
                assert_eq!(parts(&made), (&*selinux.file_type, parts(&label).1));
            }
            None => assert_eq!(made, None),
        }
    }
    node.finish().await;
}

/// What a container sees of process 1: its label, its mounts, its program, what it may do.
const FIRST: &str = "cat /proc/1/attr/current 2>/dev/null | tr '\\0' '\\n'; cat /proc/1/mountinfo; \
    tr '\\0' ' ' < /proc/1/cmdline; echo; grep -E '^(Uid|Groups|CapBnd|CapEff|NoNewPrivs|SigIgn):' /proc/1/status";

/// What [`FIRST`] finds in a pod: the reaper, as the policy would have a container.
async fn assert_is_one_of_the_pods(node: &TestNode, pod: &Pod, id: &str) {
    let found = node.exec(id, FIRST).await;
    let info = node.pod_info(pod).await;
    let labels = &info["selinux"];
    let has = |text: &str| assert!(found.contains(text), "{text}:\n{found}");
    if host::selinux().is_some() {
        let (process, mount) = (labels["process"].as_str(), labels["mount"].as_str());
        assert_eq!(found.lines().next(), process, "{found}");
        has(&format!(",context=\"{}\",", mount.expect("a label")));
        has("carpel-supervisor --reaper \n");
    } else {
        assert!(!found.contains("context="), "{found}");
        assert!(!found.contains("--reaper"), "{found}");
    }
    assert_eq!(found.matches(" - tmpfs ").count(), 1, "{found}");
    has("Uid:\t65535\t65535\t65535\t65535\n");
    has("Groups:\t \n");
    has("NoNewPrivs:\t1\n");
    has("SigIgn:\t0000000000010000\n");
    has("CapEff:\t0000000000000000\n");
    has("CapBnd:\t0000000000000000\n");
}

/// The first process of a PID namespace that containers share is one of theirs, also one that was made later.
#[tokio::test]
async fn the_reaper_of_a_shared_pid_namespace_has_the_pods_labels() {
    let mut node = TestNode::start().await;
    let shared = |mut config: ContainerConfig| {
        config.namespaces().set_pid(NamespaceMode::Pod);
        config
    };
    let mut plain = node.pod("plain");
    let mut privileged = node.pod("privileged");
    privileged.security().privileged = true;
    let mut user = userns::pod(&node, "user");
    for config in [&mut plain, &mut privileged, &mut user] {
        config.namespaces().set_pid(NamespaceMode::Pod);
    }
    let plain = node.run_pod(&plain).await;
    let privileged = node.run_pod(&privileged).await;
    let user = node.run_pod(&user).await;
    // Containers that make one in a pod that has none yet.
    let mut late = node.pod("late");
    late.namespaces().set_pid(NamespaceMode::Container);
    let late = node.run_pod(&late).await;
    let mut all_powerful = shared(sleeper("b"));
    all_powerful.security().privileged = true;
    let mut containers = Vec::new();
    for (pod, config) in [
        (&plain, shared(sleeper("a"))),
        (&privileged, all_powerful),
        (&user, userns::inside(shared(sleeper("c")))),
        (&late, shared(sleeper("d"))),
    ] {
        let id = node.start_container(pod, &config).await;
        assert_is_one_of_the_pods(&node, pod, &id).await;
        containers.push(id);
    }
    // One that comes after it is like it, and neither goes with its supervisor.
    for (pod, id, config) in [
        (&late, &containers[3], shared(sleeper("e"))),
        (&user, &containers[2], userns::inside(shared(sleeper("f")))),
    ] {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", node.container_pid(id))).unwrap();
        let first = host::first_of(&namespace).expect("no reaper");
        host::kill_9(first);
        node.wait_exit(id).await;
        let deadline = Instant::now() + host::soon();
        while host::runs(first) {
            assert!(Instant::now() < deadline, "{}", host::describe(first));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let id = node.start_container(pod, &config).await;
        assert_is_one_of_the_pods(&node, pod, &id).await;
    }
    kill_supervisor(&node, &plain).await;
    node.kill_daemon();
    node.start_daemon(None).await;
    assert_is_one_of_the_pods(&node, &plain, &containers[0]).await;
    let id = node.start_container(&plain, &shared(sleeper("g"))).await;
    assert_is_one_of_the_pods(&node, &plain, &id).await;
    node.finish().await;
}

/// What was chosen for a pod stays its own, whatever becomes of the daemon.
#[tokio::test]
async fn a_pod_keeps_its_level_over_a_restart() {
    let mut node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let before = node.output_of(&pod, &sh("before", OWN)).await;
    let created = node.try_create(&pod, &sh("created", OWN)).await.unwrap();
    let info = node.pod_info(&pod).await;
    node.kill_daemon();
    node.start_daemon(None).await;
    assert_eq!(node.pod_info(&pod).await["selinux"], info["selinux"]);
    node.try_start(&created).await.unwrap();
    node.wait_exit(&created).await;
    assert_eq!(node.log(&pod, "created").stdout(), before);
    assert_eq!(node.output_of(&pod, &sh("after", OWN)).await, before);
    node.finish().await;
}

/// `runtime.selinux = false`: as where SELinux is off.
#[tokio::test]
async fn labels_can_be_switched_off() {
    let node = TestNode::builder().config("[runtime]\nselinux = false\n");
    let node = node.start().await;
    let pod = pod_at(&node, "one", kind("nothing_t")).await;
    assert!(node.pod_info(&pod).await.get("selinux").is_none());
    let dir = node.dir().join("volume");
    fs::create_dir(&dir).unwrap();
    let before = label_of(&dir);
    let config = asking(sh("c", OWN), kind("nothing_t"));
    let output = node
        .output_of(&pod, &with(config, volume(&dir, true)))
        .await;
    assert_ne!(parts(&output).0, "nothing_t");
    assert_eq!(label_of(&dir), before);
    let info = Said::by(carpel(&node.endpoint(), &["info"])).ok();
    assert!(!info.contains("SELinux"), "{info}");
    node.finish().await;
}

#[tokio::test]
async fn it_is_told_whether_selinux_is_on() {
    let node = TestNode::start().await;
    let line = |text: &str| {
        let line = text.lines().find(|line| line.contains("security module"));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let info = line(&Said::by(carpel(&node.endpoint(), &["info"])).ok());
    let config = node.dir().join("config.toml").display().to_string();
    let doctor = Said::by(carpel(&node.endpoint(), &["doctor", "--config", &config]));
    let doctor = line(&doctor.stdout);
    match host::selinux() {
        Some(selinux) => {
            let mode = match selinux.enforcing {
                true => "SELinux, enforcing",
                false => "SELinux, permissive",
            };
            assert!(info.contains(mode), "{info}");
            let found = format!("{mode}: containers are {}", selinux.process_type);
            assert!(
                doctor.starts_with("ok") && doctor.contains(&found),
                "{doctor}"
            );
        }
        None => assert!(!info.contains("SELinux, "), "{info}"),
    }
    node.finish().await;
}
