//! CreateContainer.

use super::*;
use crate::spec::config::UserSpec;

#[test]
fn bad_containers_are_named() {
    type Case = (fn(&mut cri::ContainerConfig), &'static str);
    fn env(key: &str, value: &[u8]) -> cri::KeyValue {
        cri::KeyValue {
            key: key.into(),
            value: value.to_vec(),
        }
    }
    let cases: &[Case] = &[
        (|c| c.image = None, "image.image: must not be empty"),
        (
            |c| c.image.get_or_insert_default().image = "a\0".into(),
            "image.image: \"a\\0\" must not contain '\\0'",
        ),
        (
            |c| c.log_path = "../../x".into(),
            "log_path: \"../../x\" must not contain \"..\"",
        ),
        (
            |c| c.log_path = "/abs".into(),
            "log_path: \"/abs\" must be relative",
        ),
        (
            |c| c.log_path = "a\0b".into(),
            "log_path: must not contain NUL",
        ),
        (
            |c| c.working_dir = "tmp".into(),
            "working_dir: \"tmp\" must be absolute",
        ),
        (
            |c| c.command = vec![String::new()],
            "command[0]: must not be empty",
        ),
        (
            |c| c.args = vec!["a".into(), "b\0".into()],
            "args[1]: must not contain NUL",
        ),
        (
            |c| c.args = vec![String::new(); 70_000],
            "args: has 70000 entries, more than 65536",
        ),
        (
            |c| c.envs = vec![env("", b"x")],
            "envs[0].key: must not be empty",
        ),
        (
            |c| c.envs = vec![env("A=B", b"x")],
            "envs[0].key: \"A=B\" must not contain '='",
        ),
        (
            |c| c.envs = vec![env("A\0", b"x")],
            "envs[0].key: must not contain NUL",
        ),
        (
            |c| c.envs = vec![env("A", b"x\0")],
            "envs[0].value: must not contain NUL",
        ),
        (
            |c| c.envs = vec![env("A", b"x"); 100_000],
            "envs: has 100000 entries, more than 65536",
        ),
        (
            |c| c.envs = vec![env("A", &[b'x'; 1 << 17])],
            "envs[0].value: is 131075 bytes long, more than 131072",
        ),
        (
            |c| c.envs = vec![env("A", &[b'x'; 1 << 16]); 100],
            "envs: is 6553900 bytes long, more than 6291456",
        ),
        (
            |c| c.mounts = vec![cri::Mount::default(); 100_000],
            "mounts: has 100000 entries, more than 4096",
        ),
        (
            |c| c.mounts = vec![cri::Mount::default()],
            "mounts[0].host_path: must not be empty",
        ),
        (
            |c| c.devices = vec![cri::Device::default()],
            "devices[0].container_path: must not be empty",
        ),
        (|c| c.stop_signal = 66, "stop_signal: 66 is no known value"),
        (
            |c| {
                c.linux
                    .get_or_insert_default()
                    .resources
                    .get_or_insert_default()
                    .memory_limit_in_bytes = -1
            },
            "linux.resources.memory_limit_in_bytes: -1 must not be negative",
        ),
    ];
    for (spoil, why) in cases {
        let result = container(spoil, PLATFORM).map(|_| ());
        assert_eq!(result, Err(invalid(why, "container \"web\"")));
    }
    let cdi = container(
        |c| c.cdi_devices = vec![cri::CdiDevice { name: "v/c".into() }],
        PLATFORM,
    );
    let why = "CDI_devices[0].name: \"v/c\" is not of the form \"vendor.com/class=name\"";
    assert_eq!(cdi.map(|_| ()), Err(invalid(why, "container \"web\"")));
    let long = container(
        |c| c.metadata.get_or_insert_default().name = "x".repeat(1 << 16),
        PLATFORM,
    );
    let text = long.map(|_| ()).expect_err("too long").to_string();
    assert!(
        text.starts_with(
            "config.metadata.name: is 65536 bytes long, more than 253 (container \"xxx"
        ),
        "{text}"
    );
    assert!(text.len() < 200, "{text}");
    let binary = container(|c| c.envs = vec![env("A", b"\xff\xfe")], PLATFORM);
    assert!(binary.is_ok(), "values are bytes");
}

#[test]
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
fn bad_container_contexts_are_named() {
    type Case = (ContainerChange, &'static str);
    let cases: &[Case] = &[
        (
            |c| c.run_as_group = Some(cri::Int64Value { value: 5 }),
            "run_as_group: needs run_as_user or run_as_username",
        ),
        (
            |c| {
                (c.run_as_user, c.run_as_username) =
                    (Some(cri::Int64Value { value: 5 }), "bob".into())
            },
            "run_as_username: must not be set together with run_as_user",
        ),
        (
            |c| c.run_as_user = Some(cri::Int64Value { value: 1 << 32 }),
            "run_as_user: 4294967296 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.run_as_username = "a:b".into(),
            "run_as_username: \"a:b\" must not contain \":\" or \"/\"",
        ),
        (
            |c| c.run_as_username = "a\nb".into(),
            "run_as_username: \"a\\nb\" must not contain '\\n'",
        ),
        (
            |c| c.run_as_username = "4294967296".into(),
            "run_as_username: 4294967296 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.run_as_username = "-1".into(),
            "run_as_username: -1 is no user or group id (0 to 4294967294)",
        ),
        (
            |c| c.supplemental_groups_policy = 2,
            "supplemental_groups_policy: 2 is no known value",
        ),
        (
            |c| c.masked_paths = vec!["proc".into()],
            "masked_paths[0]: \"proc\" must be absolute",
        ),
        (
            |c| c.readonly_paths = vec!["/proc/../x".into()],
            "readonly_paths[0]: \"/proc/../x\" must not contain \"..\"",
        ),
        (
            |c| c.capabilities.get_or_insert_default().add_capabilities = vec!["CAP_FLY".into()],
            "capabilities.add_capabilities[0]: \"CAP_FLY\" is no capability",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Localhost, "")),
            "seccomp.localhost_ref: must not be empty",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Localhost, "x")),
            "seccomp.localhost_ref: \"x\" must be absolute",
        ),
        (
            |c| c.seccomp = Some(profile(ProfileType::Unconfined, "/x")),
            "seccomp.localhost_ref: needs profile_type Localhost",
        ),
        (
            |c| {
                c.seccomp = Some(cri::SecurityProfile {
                    profile_type: 3,
                    ..Default::default()
                })
            },
            "seccomp.profile_type: 3 is no known value",
        ),
        (
            |c| (c.seccomp, c.seccomp_profile_path) = (None, "custom".into()),
            "seccomp_profile_path: \"custom\" is no seccomp profile",
        ),
        (
            |c| (c.seccomp, c.seccomp_profile_path) = (None, "localhost/x".into()),
            "seccomp_profile_path: \"x\" must be absolute",
        ),
        (
            |c| c.apparmor_profile = "custom".into(),
            "apparmor_profile: \"custom\" is no AppArmor profile",
        ),
        (
            |c| c.apparmor_profile = "localhost/".into(),
            "apparmor_profile: must name a profile",
        ),
        (
            |c| c.apparmor = Some(profile(ProfileType::Localhost, "a\nb")),
            "apparmor.localhost_ref: must not contain control characters",
        ),
        (
            |c| c.apparmor = Some(profile(ProfileType::Localhost, "")),
            "apparmor.localhost_ref: must not be empty",
        ),
        (
            |c| c.apparmor = Some(profile(ProfileType::RuntimeDefault, "x")),
            "apparmor.localhost_ref: needs profile_type Localhost",
        ),
        (
            |c| {
                c.capabilities
                    .get_or_insert_default()
                    .add_ambient_capabilities = vec!["KILL".into(), "FLY".into()]
            },
            "capabilities.add_ambient_capabilities[1]: \"FLY\" is no capability",
        ),
        (
            |c| c.namespace_options.get_or_insert_default().pid = 3,
            "namespace_options.target_id: must be the id of a container of the pod",
        ),
    ];
    for (spoil, why) in cases {
        let result = container_security(*spoil, PLATFORM).map(|_| ());
        let why = format!("linux.security_context.{why}");
        assert_eq!(result, Err(invalid(&why, "container \"web\"")));
    }
}

/// What the AppArmor fields mean: the new one, and without it the former.
#[test]
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
fn apparmor_profiles_by_name() {
    use AppArmorProfile::{Default, Localhost, Unconfined};
    type Case = (
        Option<(ProfileType, &'static str)>,
        &'static str,
        AppArmorProfile,
    );
    let named = || Localhost("web".into());
    let asked = Default { asked_for: true };
    let unasked = Default { asked_for: false };
    let cases: [Case; 10] = [
        (None, "", unasked),
        (None, "runtime/default", asked.clone()),
        (None, "docker/default", asked.clone()),
        (None, "unconfined", Unconfined),
        (None, "localhost/web", named()),
        (Some((ProfileType::RuntimeDefault, "")), "", asked.clone()),
        (Some((ProfileType::Unconfined, "")), "", Unconfined),
        (Some((ProfileType::Localhost, "web")), "", named()),
        (Some((ProfileType::Localhost, "localhost/web")), "", named()),
        (
            Some((ProfileType::RuntimeDefault, "")),
            "localhost/web",
            asked,
        ),
    ];
    for (new, former, meaning) in cases {
        for privileged in [false, true] {
            let check = |platform| {
                let linux = |config: &mut cri::ContainerConfig| {
                    let linux = config.linux.get_or_insert_default();
                    let security = linux.security_context.get_or_insert_default();
                    security.privileged = privileged;
                    security.apparmor = new.map(|(kind, name)| profile(kind, name));
                    security.apparmor_profile = former.into();
                };
                container(linux, platform).map(|request| request.config.security.apparmor)
            };
            let expected = match &meaning {
                Default { .. } if privileged => Unconfined,
                meaning => meaning.clone(),
            };
            assert_eq!(check(LSM), Ok(expected.clone()), "{new:?} {former:?}");
            let field = match new {
                Some(_) => "apparmor",
                None => "apparmor_profile",
            };
            let without = match expected {
                Localhost(_) => Err(Rejected::Unsupported(format!(
                    "config.linux.security_context.{field}: profile \"web\" cannot be had: the node has no AppArmor (container \"web\")"
                ))),
                _ => Ok(Unconfined),
            };
            assert_eq!(check(PLATFORM), without, "{new:?} {former:?}");
        }
    }
}

#[test]
fn labels_come_out_as_asked_for() {
    let raw = cri::SeLinuxOption {
        user: "system_u".into(),
        role: String::new(),
        r#type: "spc_t".into(),
        level: "s0-s0:c1,c3.c5".into(),
    };
    let expected = SelinuxOptions {
        user: Some("system_u".into()),
        role: None,
        kind: Some("spc_t".into()),
        level: Some("s0-s0:c1,c3.c5".into()),
    };
    for (raw, expected) in [
        (Some(raw), expected),
        (
            Some(cri::SeLinuxOption::default()),
            SelinuxOptions::default(),
        ),
        (None, SelinuxOptions::default()),
    ] {
        let linux = |config: &mut cri::ContainerConfig| {
            let linux = config.linux.get_or_insert_default();
            linux
                .security_context
                .get_or_insert_default()
                .selinux_options = raw.clone();
        };
        let created = container(linux, PLATFORM).expect("a good label");
        assert_eq!(created.config.security.selinux, expected);
        let change = |context: &mut cri::LinuxSandboxSecurityContext| {
            context.selinux_options = raw.clone();
        };
        let pod = sandbox_security_of(&change).expect("a good label");
        assert_eq!(pod.selinux, expected);
    }
}

#[test]
#[expect(deprecated, reason = "older clients send the profiles' former fields")]
fn contexts_come_out_as_meant() {
    let security = |change: ContainerChange| {
        container_security(change, PLATFORM)
            .expect("a good context")
            .config
            .security
    };
    let privileged = security(|c| c.privileged = true);
    assert_eq!(privileged.seccomp, SeccompProfile::Unconfined);
    assert!(privileged.masked_paths.is_empty() && privileged.readonly_paths.is_empty());
    let former =
        security(|c| (c.seccomp, c.seccomp_profile_path) = (None, "localhost//a/b".into()));
    assert_eq!(former.seccomp, SeccompProfile::Localhost("/a/b".into()));
    let former =
        security(|c| (c.seccomp, c.seccomp_profile_path) = (None, "docker/default".into()));
    assert_eq!(former.seccomp, SeccompProfile::RuntimeDefault);
    let digits = security(|c| c.run_as_username = "1000".into());
    assert_eq!(digits.user, Some(UserSpec::Id(1000)));
    let named = security(|c| {
        c.run_as_username = "bob".into();
        c.run_as_group = Some(cri::Int64Value { value: 7 });
        c.capabilities.get_or_insert_default().add_capabilities =
            vec!["cap_net_admin".into(), "all".into()];
    });
    assert_eq!(named.user, Some(UserSpec::Name("bob".into())));
    assert_eq!(
        (named.run_as_group, named.add_capabilities),
        (Some(7), vec!["NET_ADMIN".into(), "ALL".into()])
    );
    let target = security(|c| {
        let options = c.namespace_options.get_or_insert_default();
        (options.pid, options.target_id) = (3, "b".repeat(64));
    });
    assert!(matches!(target.pid, PidScope::Target(_)));
    let signal = container(|c| c.stop_signal = cri::Signal::Sigusr1.into(), PLATFORM);
    assert_eq!(
        signal.expect("a good signal").config.stop_signal,
        Some(libc::SIGUSR1)
    );
}
