//! What a container's first process is: command, environment, user, privileges.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use carpel_integration::image::{BUSYBOX, Image};
use carpel_integration::request::sleeper;
use carpel_integration::v1::{
    Capability, ContainerConfig, Int64Value, SecurityProfile, SupplementalGroupsPolicy,
    security_profile::ProfileType,
};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, container, host, sh};
use serde_json::json;

fn of(tag: &str, mut config: ContainerConfig) -> ContainerConfig {
    config.image.as_mut().unwrap().image = tag.to_owned();
    config
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn command_and_args_replace_the_images_as_kubernetes_says() {
    let mut node = TestNode::start().await;
    let image = Image::busybox()
        .tagged("localhost/entry:1")
        .set("Entrypoint", json!(["/bin/echo", "entry"]))
        .set("Cmd", json!(["cmd"]));
    node.import(image.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let cases: [(&[&str], &[&str], &str); 4] = [
        (&[], &[], "entry cmd\n"),
        (&[], &["args"], "entry args\n"),
        (&["/bin/echo", "command"], &[], "command\n"),
        (&["/bin/echo", "command"], &["args"], "command args\n"),
    ];
    for (n, (command, args, expected)) in cases.into_iter().enumerate() {
        let mut config = of("localhost/entry:1", container(&format!("c{n}"), command));
        config.args = words(args);
        assert_eq!(node.output_of(&pod, &config).await, expected);
    }
    // Found by PATH, as execvp(3) does; empty and odd arguments arrive as they are.
    let odd = container("odd", &["printf", "<%s>", "", "a b", "\n", "ä"]);
    assert_eq!(node.output_of(&pod, &odd).await, "<><a b><\n><ä>");
    node.finish().await;
}

#[tokio::test]
async fn the_environment_is_the_images_under_the_requests_in_bytes() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let config = sh("a", "env; printf %s \"$BYTES\" | wc -c")
        .env("OWN", b"yes=no")
        .env("BYTES", b"\xff\xfe\x80")
        .env("EMPTY", b"");
    let output = node.output_of(&pod, &config).await;
    let has = |line: &str| output.lines().any(|l| l == line);
    assert!(
        has("OWN=yes=no") && has("EMPTY=") && has("FROM_IMAGE=yes"),
        "{output}"
    );
    assert!(has("HOME=/root") && has("HOSTNAME=one"), "{output}");
    assert!(output.ends_with("\n3\n"), "{output}");
    let config = sh("b", "echo $FROM_IMAGE").env("FROM_IMAGE", b"replaced");
    assert_eq!(node.output_of(&pod, &config).await, "replaced\n");
    node.finish().await;
}

#[tokio::test]
async fn the_working_directory_is_the_requests_else_the_images_and_made_if_missing() {
    let mut node = TestNode::start().await;
    let image = Image::busybox()
        .tagged("localhost/cwd:1")
        .set("WorkingDir", json!("/home/alice"));
    node.import(image.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    assert_eq!(node.output_of(&pod, &sh("a", "pwd")).await, "/\n");
    assert_eq!(
        node.output_of(&pod, &of("localhost/cwd:1", sh("b", "pwd")))
            .await,
        "/home/alice\n"
    );
    let mut config = of("localhost/cwd:1", sh("c", "pwd; stat -c %a ."));
    config.working_dir = "/made/for/this".into();
    assert_eq!(node.output_of(&pod, &config).await, "/made/for/this\n755\n");
    node.finish().await;
}

#[tokio::test]
async fn the_user_is_the_requests_else_the_images() {
    let mut node = TestNode::start().await;
    for (n, user) in ["alice", "1002", "1001:2000", "alice:users", "4000"]
        .iter()
        .enumerate()
    {
        let image = Image::busybox()
            .tagged(&format!("localhost/user:{n}"))
            .set("User", json!(user));
        node.import(image.oci()).await;
    }
    let pod = node.run_pod(&node.pod("one")).await;
    // uid, gid, all groups sorted, HOME
    let ids = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ') $HOME";
    for (n, expected) in [
        "1001 1001 1001 2000 /home/alice",
        "1002 100 100 2000 /",
        "1001 2000 2000 /home/alice",
        "1001 100 100 2000 /home/alice",
        "4000 0 0 /",
    ]
    .iter()
    .enumerate()
    {
        let config = of(
            &format!("localhost/user:{n}"),
            sh(&format!("image{n}"), ids),
        );
        assert_eq!(
            node.output_of(&pod, &config).await.trim(),
            *expected,
            "image user {n}"
        );
    }

    let mut config = sh("by-id", ids);
    config.security().run_as_user = Some(Int64Value { value: 1001 });
    assert_eq!(
        node.output_of(&pod, &config).await.trim(),
        "1001 1001 1001 2000 /home/alice"
    );
    let mut config = sh("by-name", ids);
    config.security().run_as_username = "bob".into();
    config.security().run_as_group = Some(Int64Value { value: 7 });
    config.security().supplemental_groups = vec![9, 8];
    assert_eq!(
        node.output_of(&pod, &config).await.trim(),
        "1002 7 7 8 9 2000 /"
    );
    config.metadata.as_mut().unwrap().name = "strict".into();
    config.log_path = "strict.log".into();
    config
        .security()
        .set_supplemental_groups_policy(SupplementalGroupsPolicy::Strict);
    let (log, status) = node.run_to_end(&pod, &config).await;
    assert_eq!(log.stdout().trim(), "1002 7 7 8 9 /");
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1002, 7));
    node.finish().await;
}

/// The five capability sets of a container's first process, as numbers.
async fn capabilities(
    node: &TestNode,
    pod: &carpel_integration::Pod,
    config: &ContainerConfig,
) -> [u64; 5] {
    let (log, status) = node.run_to_end(pod, config).await;
    assert_eq!(status.exit_code, 0, "{log:?}");
    let text = log.stdout();
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    })
}

fn own_bounding_set() -> u64 {
    u64::from_str_radix(
        &host::proc_status(i32::try_from(std::process::id()).unwrap(), "CapBnd").unwrap(),
        16,
    )
    .unwrap()
}

#[tokio::test]
async fn capabilities_are_the_default_with_what_is_added_and_dropped() {
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT
    // MKNOD AUDIT_WRITE SETFCAP
    const DEFAULT: u64 = 0xa804_25fb;
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let show = |name: &str| sh(name, "grep Cap /proc/self/status");
    assert_eq!(
        capabilities(&node, &pod, &show("default")).await,
        [0, DEFAULT, DEFAULT, DEFAULT, 0]
    );

    let with = |name: &str, add: &[&str], drop: &[&str]| {
        let mut config = show(name);
        config.security().capabilities = Some(Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            ..Capability::default()
        });
        config
    };
    let sets = capabilities(&node, &pod, &with("some", &["NET_ADMIN"], &["CAP_NET_RAW"])).await;
    let expected = (DEFAULT | NET_ADMIN) & !NET_RAW;
    assert_eq!(sets, [0, expected, expected, expected, 0]);
    let sets = capabilities(&node, &pod, &with("one", &["NET_RAW"], &["ALL"])).await;
    assert_eq!(sets, [0, NET_RAW, NET_RAW, NET_RAW, 0]);
    let all = own_bounding_set();
    let sets = capabilities(&node, &pod, &with("all", &["ALL"], &["NET_RAW"])).await;
    assert_eq!(sets, [0, all & !NET_RAW, all & !NET_RAW, all & !NET_RAW, 0]);

    // Another user keeps the bounding set and nothing else.
    let mut config = show("user");
    config.security().run_as_user = Some(Int64Value { value: 1001 });
    assert_eq!(
        capabilities(&node, &pod, &config).await,
        [0, 0, 0, DEFAULT, 0]
    );
    node.finish().await;
}

#[tokio::test]
async fn a_privileged_container_has_what_the_daemon_has() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.security().privileged = true;
    let pod = node.run_pod(&config).await;
    let mut config = sh("a", "grep Cap /proc/self/status");
    config.security().privileged = true;
    let all = own_bounding_set();
    assert_eq!(
        capabilities(&node, &pod, &config).await[1..4],
        [all, all, all]
    );
    let mut config = sh(
        "b",
        "grep Seccomp: /proc/self/status; grep ' /sys ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1; test -e /dev/kmsg && echo devices",
    );
    config.security().privileged = true;
    assert_eq!(
        node.output_of(&pod, &config).await,
        "Seccomp:\t0\nrw\ndevices\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_process_starts_with_a_clean_state() {
    // The daemon is started with everything that must not be inherited.
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let soft = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .unwrap()
        .0;
    let script = "umask; ulimit -n; grep -E '^Sig(Blk|Ign)' /proc/self/status; readlink /proc/self/cwd; cat /proc/self/oom_score_adj";
    let expected =
        format!("0022\n{soft}\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n/\n0\n");
    assert_eq!(node.exec(&id, script).await, expected);
    let open =
        "for fd in /proc/self/fd/*; do readlink $fd; done | sed 's/:.*//' | sort -u | tr '\\n' ' '";
    let (log, _) = node
        .run_to_end(
            &pod,
            &sh("b", &format!("{script}; ls /proc/self/fd | wc -l; {open}")),
        )
        .await;
    let text = log.stdout();
    assert!(text.starts_with(&expected), "{text}");
    // 0, 1 and 2, and the folder that ls reads.
    assert!(
        text[expected.len()..].starts_with("4\n/dev/null pipe"),
        "{text}"
    );
    // Nobody of the host's is a parent.
    assert_eq!(
        node.exec(&id, "grep PPid /proc/1/status").await,
        "PPid:\t0\n"
    );
    node.finish().await;
}

#[tokio::test]
async fn no_new_privs_is_set_when_asked_for() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    for (name, asked) in [("with", true), ("without", false)] {
        let mut config = sh(name, "grep NoNewPrivs /proc/self/status");
        config.security().no_new_privs = asked;
        let expected = format!("NoNewPrivs:\t{}\n", u8::from(asked));
        assert_eq!(node.output_of(&pod, &config).await, expected);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_read_only_rootfs_is_read_only_and_an_ordinary_one_is_the_containers_own() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh(
        "ro",
        "touch /x 2>&1; touch /tmp/x 2>&1; echo shm > /dev/shm/y && cat /dev/shm/y",
    );
    config.security().readonly_rootfs = true;
    let text = node.output_of(&pod, &config).await;
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.ends_with("shm\n"));
    let write = "cat /etc/replaced; echo changed > /etc/replaced; rm /www/index.html; ls /www";
    for name in ["a", "b"] {
        assert_eq!(
            node.output_of(&pod, &sh(name, write)).await,
            "from the second layer\n"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn masked_and_read_only_paths_are_those_sent() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "cat /proc/timer_list | wc -c; ls /sys/firmware | wc -l; echo 63 > /proc/sys/net/ipv4/ip_default_ttl && echo written";
    let mut config = sh("masked", script);
    config.security().masked_paths =
        words(&["/proc/timer_list", "/sys/firmware", "/proc/nonexistent"]);
    config.security().readonly_paths = words(&["/proc/sys", "/proc/nonexistent"]);
    let (log, _) = node.run_to_end(&pod, &config).await;
    assert_eq!(log.stdout(), "0\n0\n");
    assert!(log.stderr().contains("Read-only file system"), "{log:?}");
    let (log, _) = node.run_to_end(&pod, &sh("open", script)).await;
    assert!(log.stdout().ends_with("written\n"), "{log:?}");
    assert!(!log.stdout().starts_with("0\n"), "{log:?}");
    node.finish().await;
}

fn profile(kind: ProfileType, path: &str) -> SecurityProfile {
    SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path.to_owned(),
    }
}

#[tokio::test]
async fn seccomp_is_the_default_profile_a_file_or_none() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mode = "grep Seccomp: /proc/self/status | cut -f2";
    let mut config = sh(
        "default",
        &format!("{mode}; unshare -U true && echo unshared"),
    );
    config.security().seccomp = Some(profile(ProfileType::RuntimeDefault, ""));
    let (log, status) = node.run_to_end(&pod, &config).await;
    assert_eq!(log.stdout(), "2\n");
    assert!(log.stderr().contains("Operation not permitted"), "{log:?}");
    assert_ne!(status.exit_code, 0);
    let mut config = sh("none", &format!("{mode}; unshare -U true && echo unshared"));
    config.security().seccomp = Some(profile(ProfileType::Unconfined, ""));
    assert_eq!(node.output_of(&pod, &config).await, "0\nunshared\n");
    assert_eq!(node.output_of(&pod, &sh("unset", mode)).await, "0\n");

    let file = node.dir().join("no-mkdir.json");
    let no_mkdir = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }],
    });
    fs::write(&file, no_mkdir.to_string()).unwrap();
    let mut config = sh("file", "mkdir /x 2>&1; touch /y && echo touched");
    config.security().seccomp = Some(profile(ProfileType::Localhost, &file.display().to_string()));
    // Privileges are dropped under the profile, too.
    config.security().run_as_user = Some(Int64Value { value: 0 });
    let text = node.output_of(&pod, &config).await;
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.ends_with("touched\n"), "{text}");
    node.finish().await;
}

#[tokio::test]
async fn the_default_profile_lets_ordinary_programs_live_with_every_privilege_drop() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    for (n, (user, no_new_privs)) in [(0, false), (0, true), (1001, false), (1001, true)]
        .into_iter()
        .enumerate()
    {
        let mut config = sh(
            &format!("c{n}"),
            "id -u; ls / | wc -l; seq 3 | sort -r | head -n 1",
        );
        config.security().run_as_user = Some(Int64Value { value: user });
        config.security().no_new_privs = no_new_privs;
        config.security().seccomp = Some(profile(ProfileType::RuntimeDefault, ""));
        let text = node.output_of(&pod, &config).await;
        assert!(
            text.starts_with(&format!("{user}\n")) && text.ends_with("3\n"),
            "{text}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn oom_score_adj_is_set_and_clamped_to_what_the_daemon_may() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    for (name, asked) in [("up", 500), ("down", -998)] {
        let mut config = sh(name, "cat /proc/self/oom_score_adj");
        config.resources().oom_score_adj = asked;
        let got: i64 = node.output_of(&pod, &config).await.trim().parse().unwrap();
        assert!(got == asked || asked < 0 && got == 0, "{asked} gives {got}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_there_when_asked_for() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh(
        "tty",
        "tty; test -t 0 && test -t 1 && test -t 2 && echo all; ls -l /dev/console | cut -c1; echo err >&2",
    );
    config.tty = true;
    let (log, status) = node.run_to_end(&pod, &config).await;
    assert_eq!(status.exit_code, 0);
    let text = log.stdout().replace('\r', "");
    assert!(
        text.starts_with("/dev/pts/0\nall\nc\n") || text.starts_with("/dev/console\nall\nc\n"),
        "{text}"
    );
    assert!(text.ends_with("err\n"), "a terminal has one stream: {text}");
    let (log, _) = node
        .run_to_end(&pod, &sh("none", "tty; cat; echo end"))
        .await;
    assert_eq!(log.stdout(), "not a tty\nend\n");
    node.finish().await;
}

#[tokio::test]
async fn a_container_that_keeps_its_standard_input_open_can_wait_on_it() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("open", "cat; echo end");
    config.stdin = true;
    let id = node.start_container(&pod, &config).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(
        node.status(&id).await.state(),
        carpel_integration::v1::ContainerState::ContainerRunning
    );
    node.finish().await;
}

#[tokio::test]
async fn the_files_of_the_image_have_their_modes_and_owners() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script =
        "stat -c '%a %u:%g %n' / /tmp /home/alice /bin/busybox /etc/passwd; stat -c %Y /etc/passwd";
    assert_eq!(
        node.output_of(&pod, &sh("a", script)).await,
        "755 0:0 /\n1777 0:0 /tmp\n700 1001:1001 /home/alice\n755 0:0 /bin/busybox\n644 0:0 /etc/passwd\n1700000000\n"
    );
    // Nobody but root looks into the daemon's folders.
    for dir in ["root", "state"] {
        let mode = fs::metadata(node.dir().join(dir))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{dir}");
    }
    assert_eq!(BUSYBOX, Image::busybox().tags[0]);
    node.finish().await;
}
