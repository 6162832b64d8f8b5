//! AppArmor: the profile that a container has. Where the kernel has none, what is refused and what is not.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use carpel_integration::v1::{
    Capability, Int64Value, SecurityProfile, security_profile::ProfileType,
};
use carpel_integration::{ContainerConfigExt, PodConfigExt, TestNode, host, sh};
use tonic::Code;

use crate::refused;

const CURRENT: &str = "cat /proc/self/attr/apparmor/current";

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.to_owned(),
    })
}

/// A profile of the node's administrator, for the length of a test.
struct Loaded(String);

impl Loaded {
    /// Writing below /denied is denied.
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        parse("--replace", &policy(&name));
        Self(name)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        parse("--remove", &policy(&self.0));
    }
}

fn policy(name: &str) -> String {
    format!(
        "profile {name} flags=(attach_disconnected) {{ file, capability, network, signal, deny /denied/** w, }}\n"
    )
}

fn parse(action: &str, policy: &str) {
    let mut parser = Command::new("apparmor_parser")
        .args([action, "--skip-cache"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a kernel with AppArmor is tested with apparmor_parser");
    let mut stdin = parser.stdin.take().unwrap();
    stdin.write_all(policy.as_bytes()).unwrap();
    drop(stdin);
    assert!(parser.wait().unwrap().success(), "{action} {policy}");
}

/// `apparmor` and the former `apparmor_profile`: the runtime's default, or nothing, and none.
#[tokio::test]
#[expect(deprecated, reason = "older clients send the former field")]
async fn apparmor_runtime_default_and_unconfined() {
    let node = TestNode::start().await;
    let mut pod = node.pod("one");
    pod.security().privileged = true;
    pod.security().apparmor = profile(ProfileType::RuntimeDefault, "");
    let pod = node.run_pod(&pod).await;
    let confined = "carpel-default (enforce)\n";
    let cases = [
        (None, "", false, confined),
        (
            profile(ProfileType::RuntimeDefault, ""),
            "",
            false,
            confined,
        ),
        (None, "runtime/default", false, confined),
        (
            profile(ProfileType::Unconfined, ""),
            "",
            false,
            "unconfined\n",
        ),
        (None, "unconfined", false, "unconfined\n"),
        (None, "", true, "unconfined\n"),
        (
            profile(ProfileType::RuntimeDefault, ""),
            "",
            true,
            "unconfined\n",
        ),
    ];
    for (n, (apparmor, former, privileged, expected)) in cases.into_iter().enumerate() {
        let what = format!("{apparmor:?} {former:?} {privileged}");
        let mut config = sh(&format!("c{n}"), CURRENT);
        let security = config.security();
        (security.apparmor, security.privileged) = (apparmor, privileged);
        security.apparmor_profile = former.into();
        let (log, status) = node.run_to_end(&pod, &config).await;
        if host::has_apparmor() {
            assert_eq!(log.stdout(), expected, "{what}: {log:?}");
        } else {
            assert_ne!(status.exit_code, 0, "{what}: there is no profile");
        }
    }
    node.finish().await;
}

/// What the default profile takes away from one that has every capability, and what it leaves alone.
#[tokio::test]
async fn apparmor_default_profile_confines_and_lets_live() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    const SWITCHES: [&str; 4] = [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
    ];
    let script = format!(
        "for f in {}; do [ -e $f ] && (: >> $f) 2>/dev/null && echo open $f; done; \
         mkdir /m; mount -t tmpfs none /m 2>/dev/null && echo mounted; \
         (: >> /proc/sys/kernel/shmmax) && (: >> /proc/sys/kernel/msgmax) && (: >> /proc/sys/kernel/sem) && \
         (: >> /proc/sys/net/ipv4/ip_default_ttl) && (: >> /proc/self/comm) && echo own",
        SWITCHES.join(" ")
    );
    let mut config = sh("root", &script);
    config.security().capabilities = Some(Capability {
        add_capabilities: vec!["ALL".into()],
        ..Capability::default()
    });
    let output = node.output_of(&pod, &config).await;
    let there = |switch: &&str| Path::new(switch).exists();
    let open: String = SWITCHES
        .into_iter()
        .filter(there)
        .map(|switch| format!("open {switch}\n"))
        .collect();
    let expected = match host::has_apparmor() {
        true => "own\n".to_owned(),
        false => format!("{open}mounted\nown\n"),
    };
    assert_eq!(output, expected);

    // Another user, no new privileges, seccomp: the profile is there, and so it is for commands; signals
    // pass between processes, and from the supervisor.
    let mut config = sh(
        "user",
        "trap 'echo told; exit 3' TERM; echo ready; sleep 1000 & kill -0 $! || echo none; wait",
    );
    config.security().run_as_user = Some(Int64Value { value: 1001 });
    config.security().no_new_privs = true;
    config.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    let id = node.start_container(&pod, &config).await;
    node.wait_log(&pod, "user", |log| log.stdout().contains("ready"))
        .await;
    let shown = node
        .exec(
            &id,
            "cat /proc/1/attr/current /proc/self/attr/current 2>/dev/null; echo $?",
        )
        .await;
    if host::has_apparmor() {
        assert_eq!(
            shown,
            "carpel-default (enforce)\ncarpel-default (enforce)\n0\n"
        );
    }
    node.try_stop(&id, 10).await.unwrap();
    assert_eq!(node.status(&id).await.exit_code, 3);
    assert_eq!(node.log(&pod, "user").stdout(), "ready\ntold\n");
    node.finish().await;
}

/// `apparmor.localhost_ref` and "localhost/NAME": a profile that the node has. One that it has not is named, and
/// no container is left.
#[tokio::test]
#[expect(deprecated, reason = "older clients send the former field")]
async fn apparmor_localhost() {
    let node = TestNode::start().await;
    let mut pod = node.pod("one");
    pod.security().privileged = true;
    let pod = node.run_pod(&pod).await;
    let loaded = host::has_apparmor().then(|| Loaded::new("carpel-test"));
    let name = loaded.as_ref().map_or("carpel-test", |loaded| &loaded.0);
    let script = format!("{CURRENT}; mkdir -p /denied/x; touch /allowed && echo allowed");
    for (n, (new, privileged)) in [(true, false), (false, false), (true, true)]
        .into_iter()
        .enumerate()
    {
        let mut config = sh(&format!("c{n}"), &script);
        config.security().privileged = privileged;
        let field = if new {
            config.security().apparmor = profile(ProfileType::Localhost, name);
            "config.linux.security_context.apparmor:"
        } else {
            config.security().apparmor_profile = format!("localhost/{name}");
            "config.linux.security_context.apparmor_profile:"
        };
        if loaded.is_some() {
            let (log, _) = node.run_to_end(&pod, &config).await;
            assert_eq!(
                log.stdout(),
                format!("{name} (enforce)\nallowed\n"),
                "{log:?}"
            );
            assert!(log.stderr().contains("Permission denied"), "{log:?}");
        } else {
            let outcome = node.try_create(&pod, &config).await;
            refused(outcome, Code::Unimplemented, field);
        }
    }
    let before = node.containers().await.len();
    let mut config = sh("absent", "true");
    config.security().apparmor = profile(ProfileType::Localhost, "carpel-absent");
    let outcome = node.try_create(&pod, &config).await;
    let code = match host::has_apparmor() {
        true => Code::InvalidArgument,
        false => Code::Unimplemented,
    };
    refused(outcome, code, "\"carpel-absent\"");
    assert_eq!(node.containers().await.len(), before);
    node.finish().await;
}
