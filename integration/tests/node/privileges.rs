//! Who a container's processes are and what they may do: each field of its security context, as the kernel
//! shows it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use carpel_integration::image::Image;
use carpel_integration::v1::{
    Capability, ContainerConfig, Int64Value, SecurityProfile, SupplementalGroupsPolicy,
    security_profile::ProfileType,
};
use carpel_integration::{ContainerConfigExt, Pod, PodConfigExt, TestNode, host, sh};
use serde_json::json;
use tonic::Code;

use crate::refused;

/// CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD
/// AUDIT_WRITE SETFCAP.
const DEFAULT: u64 = 0xa804_25fb;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;

/// "CapInh CapPrm CapEff CapBnd CapAmb" of a status file's text.
fn capabilities(text: &str) -> [u64; 5] {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    })
}

fn own_bounding_set() -> u64 {
    capabilities(&fs::read_to_string("/proc/self/status").unwrap())[3]
}

fn user(id: i64) -> Option<Int64Value> {
    Some(Int64Value { value: id })
}

fn with_ambient(config: &mut ContainerConfig, ambient: &[&str], drop: &[&str]) {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    config.security().capabilities = Some(Capability {
        add_ambient_capabilities: words(ambient),
        drop_capabilities: words(drop),
        ..Capability::default()
    });
}

#[tokio::test]
async fn capabilities_add_ambient_capabilities() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let script = "trap 'exit 0' TERM; cat /proc/self/status; echo done; sleep 1000 & wait";
    let one = [NET_BIND_SERVICE; 3];
    type Names = &'static [&'static str];
    let cases: [(&str, Names, Names, [u64; 3], u64); 4] = [
        (
            "among-the-default",
            &["NET_BIND_SERVICE"],
            &[],
            one,
            DEFAULT,
        ),
        (
            "beside-the-default",
            &["CAP_NET_ADMIN"],
            &[],
            [NET_ADMIN; 3],
            DEFAULT | NET_ADMIN,
        ),
        (
            "alone",
            &["net_bind_service"],
            &["ALL"],
            one,
            NET_BIND_SERVICE,
        ),
        (
            "dropped",
            &["NET_BIND_SERVICE"],
            &["NET_BIND_SERVICE"],
            [0; 3],
            DEFAULT & !NET_BIND_SERVICE,
        ),
    ];
    for (name, ambient, drop, kept, bounding) in cases {
        for confined in [false, true] {
            let name = format!("{name}-{confined}");
            let mut config = sh(&name, script);
            with_ambient(&mut config, ambient, drop);
            config.security().run_as_user = user(1001);
            config.security().no_new_privs = confined;
            config.security().seccomp = confined.then(|| SecurityProfile {
                profile_type: ProfileType::RuntimeDefault.into(),
                ..SecurityProfile::default()
            });
            let id = node.start_container(&pod, &config).await;
            let log = node
                .wait_log(&pod, &name, |log| log.stdout().contains("done"))
                .await;
            let [inheritable, permitted, effective, bound, ambient] = capabilities(&log.stdout());
            assert_eq!([inheritable, permitted, effective], kept, "{name}");
            assert_eq!((bound, ambient), (bounding, kept[0]), "{name}");
            // A command has what the container has.
            let command = node.exec(&id, "cat /proc/self/status").await;
            assert_eq!(
                capabilities(&command),
                capabilities(&log.stdout()),
                "{name}"
            );
            node.try_stop(&id, 0).await.unwrap();
        }
    }
    // Root has all of them anyway; what its children inherit is what was asked for.
    let mut config = sh("root", "cat /proc/self/status");
    with_ambient(&mut config, &["NET_BIND_SERVICE"], &[]);
    let shown = capabilities(&node.output_of(&pod, &config).await);
    let (kept, all) = (NET_BIND_SERVICE, DEFAULT);
    assert_eq!(shown, [kept, all, all, all, kept]);
    let mut config = sh("none", "true");
    with_ambient(&mut config, &["KILL", "FLY"], &[]);
    let field = "config.linux.security_context.capabilities.add_ambient_capabilities[1]: \"FLY\"";
    let outcome = node.try_create(&pod, &config).await;
    refused(outcome, Code::InvalidArgument, field);
    node.finish().await;
}

/// `supplemental_groups`, its policy, and `ContainerStatus.user.linux`, beside what the kernel says of the
/// process and of a command.
#[tokio::test]
async fn supplemental_groups_policy_and_user_linux() {
    let mut node = TestNode::start().await;
    let image = Image::busybox()
        .tagged("localhost/alice:1")
        .set("User", json!("alice"));
    node.import(image.oci()).await;
    let pod = node.run_pod(&node.pod("one")).await;
    let alice = |config: &mut ContainerConfig| {
        config.image.as_mut().unwrap().image = "localhost/alice:1".into();
    };
    type Case<'a> = (
        &'a str,
        &'a dyn Fn(&mut ContainerConfig),
        i64,
        i64,
        &'a [i64],
    );
    let cases: [Case<'_>; 6] = [
        ("root", &|_| (), 0, 0, &[]),
        ("merge", &alice, 1001, 1001, &[2000, 9]),
        ("strict", &alice, 1001, 1001, &[9]),
        (
            "merge-id",
            &|c| c.security().run_as_user = user(1001),
            1001,
            1001,
            &[2000, 9],
        ),
        (
            "strict-name",
            &|c| c.security().run_as_username = "alice".into(),
            1001,
            1001,
            &[9],
        ),
        (
            "merge-group",
            &|c| {
                c.security().run_as_user = user(1001);
                c.security().run_as_group = user(7);
            },
            1001,
            7,
            &[2000, 9],
        ),
    ];
    for (name, change, uid, gid, groups) in cases {
        let mut config = sh(name, "trap 'exit 0' TERM; echo up; sleep 1000 & wait");
        change(&mut config);
        if name != "root" {
            config.security().supplemental_groups = vec![9];
        }
        if name.starts_with("strict") {
            let policy = SupplementalGroupsPolicy::Strict;
            config.security().set_supplemental_groups_policy(policy);
        }
        let id = node.start_container(&pod, &config).await;
        node.wait_log(&pod, name, |log| log.stdout() == "up\n")
            .await;
        let user = node.status(&id).await.user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid), (uid, gid), "{name}");
        let sorted = |groups: &[i64]| {
            let mut groups = groups.to_vec();
            groups.sort_unstable();
            groups
        };
        let reported = sorted(&user.supplemental_groups);
        let pid = node.container_pid(&id);
        let numbers = |text: &str| -> Vec<i64> {
            text.split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect()
        };
        let really = numbers(&host::proc_status(pid, "Groups").unwrap_or_default());
        assert_eq!(sorted(&really), reported, "{name}: as the kernel says");
        let others: Vec<i64> = reported
            .iter()
            .copied()
            .filter(|group| *group != gid)
            .collect();
        assert_eq!(others, sorted(groups), "{name}");
        let ids = numbers(&host::proc_status(pid, "Uid").unwrap());
        assert_eq!(ids, [uid; 4], "{name}");
        assert_eq!(
            numbers(&host::proc_status(pid, "Gid").unwrap()),
            [gid; 4],
            "{name}"
        );
        let command = node
            .exec(&id, "grep -E '^(Uid|Gid|Groups)' /proc/self/status")
            .await;
        let own = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in command.lines() {
            assert!(own.lines().any(|own| own == line), "{name}: {line}");
        }
        node.try_stop(&id, 0).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn run_as_group_needs_a_user() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.security().run_as_group = user(5);
    let field = "config.linux.security_context.run_as_group: needs run_as_user";
    let outcome = node.try_run_pod(&config).await;
    refused(outcome, Code::InvalidArgument, field);
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "true");
    config.security().run_as_group = user(5);
    let outcome = node.try_create(&pod, &config).await;
    refused(outcome, Code::InvalidArgument, field);
    node.finish().await;
}

/// A profile or masked path that is sent beside `privileged` counts for nothing.
async fn privileged(node: &TestNode, pod: &Pod, name: &str, script: &str) -> String {
    let mut config = sh(name, script);
    let security = config.security();
    security.privileged = true;
    security.masked_paths = vec!["/proc/timer_list".into(), "/sys/firmware".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    security.seccomp = Some(SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        ..SecurityProfile::default()
    });
    node.output_of(pod, &config).await
}

#[tokio::test]
async fn privileged_means_everything_that_the_daemon_has() {
    let node = TestNode::start().await;
    let mut config = node.pod("one");
    config.security().privileged = true;
    let pod = node.run_pod(&config).await;
    let status = privileged(&node, &pod, "status", "cat /proc/self/status").await;
    let all = own_bounding_set();
    assert_eq!(capabilities(&status), [0, all, all, all, 0]);
    let has = |line: &str| status.lines().any(|found| found == line);
    assert!(has("Seccomp:\t0") && has("NoNewPrivs:\t0"), "{status}");

    // Nothing is hidden or read-only, neither mount nor path.
    let script = "test $(wc -c < /proc/timer_list) -gt 0 && echo shown; : >> /proc/sys/net/ipv4/ip_default_ttl && echo written; \
                  grep -E ' /(sys|proc|sys/fs/cgroup[^ ]*) ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1 | sort -u";
    let output = privileged(&node, &pod, "paths", script).await;
    assert_eq!(output, "shown\nwritten\nrw\n");

    // Every device of the host, but what belongs to its terminals and memory: the same number and kind; and
    // any other can be made and used.
    let listing = privileged(
        &node,
        &pod,
        "devices",
        "cd /dev; for f in *; do [ -c $f ] || [ -b $f ] && stat -c '%n %t %T' $f; done; \
         mknod /tmp/log c 1 11 && : > /tmp/log && echo usable",
    )
    .await;
    assert!(listing.ends_with("usable\n"), "{listing}");
    for entry in fs::read_dir("/dev").unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if !kind.is_char_device() && !kind.is_block_device() {
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        // The container's own.
        if ["console", "ptmx", "tty"].contains(&name.as_str()) {
            continue;
        }
        let number = entry.metadata().unwrap().rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let line = format!("{name} {major:x} {minor:x}");
        assert!(
            listing.lines().any(|found| found == line),
            "{line} in {listing}"
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn privileged_needs_a_privileged_sandbox() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut config = sh("a", "true");
    config.security().privileged = true;
    let outcome = node.try_create(&pod, &config).await;
    let field = "config.linux.security_context.privileged: ";
    refused(outcome, Code::InvalidArgument, field);
    node.finish().await;
}

/// `kubectl debug --profile=sysadmin`: only with the ephemeral container does the kubelet say that the pod may have
/// privileged ones.
#[tokio::test]
async fn a_pod_may_get_a_privileged_container_later() {
    let mut node = TestNode::start().await;
    let mut pod = node.run_pod(&node.pod("one")).await;
    let all = own_bounding_set();
    let status = node
        .output_of(&pod, &sh("a", "cat /proc/self/status"))
        .await;
    assert_ne!(capabilities(&status)[2], all);
    pod.config.security().privileged = true;
    for name in ["b", "c"] {
        let status = privileged(&node, &pod, name, "cat /proc/self/status").await;
        assert_eq!(capabilities(&status), [0, all, all, all, 0]);
        node.crash().await;
    }
    node.finish().await;
}

/// Files as well as folders, of the kernel's file systems and of the image.
#[tokio::test]
async fn masked_paths_and_readonly_paths() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let script = "wc -c < /proc/timer_list; wc -c < /etc/passwd; ls /www; ls /sys/kernel; stat -c '%t:%T' /etc/passwd; \
                  for f in /www/x /etc/passwd /sys/kernel/x /etc/group /home/x; do (echo >> $f) 2>/dev/null && echo wrote $f; done; \
                  cat /etc/group | wc -l; ls /home | head -n 1";
    let mut config = sh("a", script);
    config.security().masked_paths = words(&[
        "/proc/timer_list",
        "/etc/passwd",
        "/www",
        "/sys/kernel",
        "/nosuch",
    ]);
    config.security().readonly_paths = words(&["/etc/group", "/home", "/nosuch"]);
    let output = node.output_of(&pod, &config).await;
    let lines: Vec<&str> = output.lines().collect();
    // /dev/null takes what is written to it.
    assert_eq!(lines[..3], ["0", "0", "1:3"], "{output}");
    let wrote: Vec<&&str> = lines
        .iter()
        .filter(|line| line.starts_with("wrote"))
        .collect();
    assert!(
        wrote.iter().all(|line| **line == "wrote /etc/passwd"),
        "{output}"
    );
    let rest: Vec<&&str> = lines[3..]
        .iter()
        .filter(|line| !line.starts_with("wrote"))
        .collect();
    assert!(
        rest.len() == 2 && rest[0].parse::<u32>().unwrap() > 1,
        "{output}"
    );
    assert_eq!(*rest[1], "alice");
    node.finish().await;
}
