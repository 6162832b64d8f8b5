use std::os::unix::fs::MetadataExt;

use oci_spec::runtime::{Linux, Process, User};

use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn names(names: &[&str]) -> Vec<QualifiedName> {
    let parse = |name: &&str| QualifiedName::parse(name).unwrap();
    names.iter().map(parse).collect()
}

/// A specification whose one device sets a variable.
fn setting(kind: &str, device: &str, variable: &str) -> String {
    format!(
        r#"{{"cdiVersion": "0.3.0", "kind": "{kind}", "devices":
            [{{"name": "{device}", "containerEdits": {{"env": ["{variable}"]}}}}]}}"#
    )
}

fn spec() -> oci_spec::runtime::Spec {
    let mut user = User::default();
    user.set_uid(7)
        .set_gid(8)
        .set_additional_gids(Some(vec![8]));
    let mut process = Process::default();
    process
        .set_user(user)
        .set_env(Some(vec!["A=image".into(), "AB=image".into()]));
    let mut spec = oci_spec::runtime::Spec::default();
    spec.set_process(Some(process))
        .set_linux(Some(Linux::default()))
        .set_mounts(Some(Vec::new()));
    spec
}

#[test]
fn edits_of_the_file_come_before_those_of_its_devices() {
    let yaml = r#"
cdiVersion: "0.7.0"
kind: vendor.com/net
annotations: {a: b}
containerEdits:
  env: [A=file, B=file]
  additionalGids: [5, 0, 8]
devices:
- name: one
  containerEdits:
    env: [B=one]
    deviceNodes:
    - {path: /dev/vendor0, hostPath: /dev/null, permissions: r}
    - {path: /dev/said, type: b, major: 7, minor: 9, fileMode: 0o640, uid: 1, gid: 2, permissions: none}
    mounts:
    - {hostPath: /usr, containerPath: /opt/deep/usr, options: [ro, bind]}
    - {hostPath: tmpfs, containerPath: /opt, type: tmpfs}
    hooks:
    - {hookName: createContainer, path: /bin/hook, args: [hook, x], env: [H=1], timeout: 3}
- name: "2"
  containerEdits:
    env:
"#;
    let folder = folder(&[("a.yaml", yaml), ("b.txt", "nonsense")]);
    let cdi = Cdi::new(vec![folder.path().join("none"), folder.path().into()], true);
    let edits = cdi
        .find(&names(&["vendor.com/net=one", "vendor.com/net=2"]))
        .unwrap();
    let mut spec = spec();
    edits.apply(&mut spec).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(
        process.env().as_ref().unwrap(),
        &["A=file", "AB=image", "B=one"].map(String::from)
    );
    assert_eq!(process.user().additional_gids(), &Some(vec![8, 5]));
    let linux = spec.linux().as_ref().unwrap();
    let nodes = linux.devices().as_ref().unwrap();
    let null = fs::metadata("/dev/null").unwrap();
    assert_eq!((nodes[0].major(), nodes[0].minor()), (1, 3));
    assert_eq!(nodes[0].file_mode(), Some(null.mode() & 0o7777));
    // The container's user, as others have it, unless the specification says another.
    assert_eq!((nodes[0].uid(), nodes[0].gid()), (Some(7), Some(8)));
    assert_eq!((nodes[1].major(), nodes[1].minor()), (7, 9));
    assert_eq!(nodes[1].file_mode(), Some(0o640));
    assert_eq!((nodes[1].uid(), nodes[1].gid()), (Some(1), Some(2)));
    let rules = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .as_ref()
        .unwrap();
    assert_eq!(
        rules.len(),
        1,
        "permissions \"none\" allow nothing: {rules:?}"
    );
    assert_eq!(
        (rules[0].major(), rules[0].access().as_deref()),
        (Some(1), Some("r"))
    );
    let paths: Vec<_> = spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| m.destination().clone())
        .collect();
    assert_eq!(paths, [Path::new("/opt"), Path::new("/opt/deep/usr")]);
    let hooks = crate::spec::hooks::of(&spec, crate::spec::hooks::Point::CreateContainer);
    assert_eq!(hooks[0].path(), Path::new("/bin/hook"));
    assert_eq!(hooks[0].timeout(), Some(3));
}

#[test]
fn a_later_folder_goes_before_and_equals_are_nobodys() {
    let folder = folder(&[
        ("low/a.json", &setting("v/c", "x", "FROM=low")),
        ("high/a.json", &setting("v/c", "x", "FROM=high")),
        ("low/b.json", &setting("v/c", "y", "FROM=low")),
        ("high/p.json", &setting("v/c", "twice", "FROM=p")),
        ("high/q.json", &setting("v/c", "twice", "FROM=q")),
    ]);
    let cdi = Cdi::new(
        vec![folder.path().join("low"), folder.path().join("high")],
        true,
    );
    for (device, from) in [("x", "FROM=high"), ("y", "FROM=low")] {
        let edits = cdi.find(&names(&[&format!("v/c={device}")])).unwrap();
        let mut spec = spec();
        edits.apply(&mut spec).unwrap();
        let env = spec.process().as_ref().unwrap().env().clone().unwrap();
        assert_eq!(env.last().unwrap(), from);
    }
    let (device, error) = cdi.find(&names(&["v/c=x", "v/c=twice"])).unwrap_err();
    assert_eq!(device, "v/c=twice");
    assert!(
        matches!(&error, Error::Conflict { first, second } if first.ends_with("high/p.json") && second.ends_with("high/q.json")),
        "{error}"
    );
}

#[test]
fn what_is_missing_or_cannot_be_done_is_named() {
    let rdt = r#"{"cdiVersion": "0.7.0", "kind": "v/rdt", "devices":
        [{"name": "x", "containerEdits": {"intelRdt": {"closID": "a"}}}]}"#;
    let folder = folder(&[("rdt.json", rdt), ("bad.json", "{")]);
    let cdi = Cdi::new(vec![folder.path().into()], true);
    let text = |name: &str| cdi.find(&names(&[name])).unwrap_err().1.to_string();
    let rdt = text("v/rdt=x");
    assert!(rdt.contains("rdt.json asks for intelRdt, "), "{rdt}");
    let mounted = Path::new("/sys/fs/resctrl/schemata").exists();
    assert_eq!(rdt.contains("resctrl is not mounted"), !mounted, "{rdt}");
    let unknown = text("v/none=x");
    assert!(
        unknown.starts_with("no such device: no specification in "),
        "{unknown}"
    );
    assert!(unknown.contains(" describes it (not read: "), "{unknown}");
    assert!(unknown.contains("bad.json: EOF"), "{unknown}");

    let apply = |edits: &str| {
        let text = format!(
            r#"{{"cdiVersion": "1.1.0", "kind": "v/c", "devices": [{{"name": "x", "containerEdits": {edits}}}]}}"#
        );
        let folder = self::folder(&[("a.json", &text)]);
        let cdi = Cdi::new(vec![folder.path().into()], true);
        let edits = cdi.find(&names(&["v/c=x"])).unwrap();
        edits.apply(&mut spec()).unwrap_err().to_string()
    };
    for (edits, why) in [
        (
            r#"{"netDevices": [{"hostInterfaceName": "a", "name": "x"}, {"hostInterfaceName": "b", "name": "x"}]}"#,
            "network devices a and b: both are to be x",
        ),
        (
            r#"{"netDevices": [{"hostInterfaceName": "a", "name": "x"}, {"hostInterfaceName": "a", "name": "y"}]}"#,
            "network device a: is to be x and y",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/none"}]}"#,
            "device node /dev/none: host path /dev/none: No such file or directory (os error 2)",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc"}]}"#,
            "device node /dev/x: host path /etc: not a device node",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "type": "b"}]}"#,
            "device node /dev/x: host path /dev/null is of type c, not b",
        ),
        (
            r#"{"mounts": [{"hostPath": "/none/a", "containerPath": "/a", "options": ["rbind"]}]}"#,
            "mount on /a: host path /none/a: No such file or directory (os error 2)",
        ),
        (
            r#"{"mounts": [{"hostPath": "/etc", "containerPath": "/a"}]}"#,
            "mount on /a: neither a type nor a bind mount",
        ),
        (
            r#"{"mounts": [{"hostPath": "/etc", "containerPath": "/proc/1", "options": ["bind"]}]}"#,
            "mounts: /proc/1: inside /proc nothing can be mounted",
        ),
    ] {
        assert_eq!(apply(edits), why);
    }
}

#[test]
fn a_file_says_what_its_version_has() {
    let parse = |text: &str| Document::parse(Path::new("a.json"), text).map(drop);
    let with = |version: &str, rest: &str| {
        parse(&format!(
            r#"{{"cdiVersion": "{version}", "kind": "v/c", "devices": [{{"name": "x", "containerEdits": {{{rest}}}}}]}}"#
        ))
    };
    for version in document::VERSIONS {
        assert_eq!(with(version, ""), Ok(()));
        assert_eq!(with(&format!("v{version}"), ""), Ok(()));
    }
    for (before, since, rest) in [
        (
            "0.3.0",
            "0.4.0",
            r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "x"}]"#,
        ),
        (
            "0.4.0",
            "0.5.0",
            r#""deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]"#,
        ),
        ("0.6.0", "0.7.0", r#""additionalGids": [1]"#),
        ("0.6.0", "0.7.0", r#""intelRdt": {"closID": "a"}"#),
        ("1.0.0", "1.1.0", r#""intelRdt": {"schemata": []}"#),
        (
            "1.0.0",
            "1.1.0",
            r#""netDevices": [{"hostInterfaceName": "a", "name": "b"}]"#,
        ),
    ] {
        let error = with(before, rest).unwrap_err();
        assert!(
            error.ends_with(&format!("which came with {since}")),
            "{error}"
        );
        assert_eq!(with(since, rest), Ok(()));
    }
    for (version, rest, why) in [
        ("0.2.0", "", "cdiVersion: \"0.2.0\" is none of 0.3.0"),
        ("1.2.0", "", "cdiVersion: \"1.2.0\" is none of"),
        ("1.0.0", r#""other": 1"#, "unknown field `other`"),
        (
            "1.0.0",
            r#""env": ["=x"]"#,
            "devices[0].containerEdits.env[0]: \"=x\"",
        ),
        (
            "1.0.0",
            r#""deviceNodes": [{"path": "dev"}]"#,
            "devices[0].containerEdits.deviceNodes[0].path",
        ),
        (
            "1.0.0",
            r#""deviceNodes": [{"path": "/d", "type": "x"}]"#,
            "devices[0].containerEdits.deviceNodes[0].type",
        ),
        (
            "1.0.0",
            r#""deviceNodes": [{"path": "/d", "permissions": "x"}]"#,
            "devices[0].containerEdits.deviceNodes[0].permissions",
        ),
        (
            "1.0.0",
            r#""mounts": [{"hostPath": "", "containerPath": "/b"}]"#,
            "devices[0].containerEdits.mounts[0].hostPath",
        ),
        (
            "1.1.0",
            r#""netDevices": [{"hostInterfaceName": "a/b", "name": "b"}]"#,
            "devices[0].containerEdits.netDevices[0].hostInterfaceName: \"a/b\"",
        ),
        (
            "1.1.0",
            r#""netDevices": [{"hostInterfaceName": "a", "name": ""}]"#,
            "devices[0].containerEdits.netDevices[0].name: \"\"",
        ),
        (
            "1.0.0",
            r#""hooks": [{"hookName": "x", "path": "/b"}]"#,
            "devices[0].containerEdits.hooks[0].hookName",
        ),
        (
            "1.0.0",
            r#""hooks": [{"hookName": "poststop", "path": "b"}]"#,
            "devices[0].containerEdits.hooks[0].path",
        ),
        (
            "1.0.0",
            r#""hooks": [{"hookName": "poststop", "path": "/b", "timeout": 0}]"#,
            "devices[0].containerEdits.hooks[0].timeout",
        ),
    ] {
        let error = with(version, rest).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let device = r#"{"name": "x", "containerEdits": {}}"#;
    for (kind, devices, why) in [
        ("c", device.to_owned(), "kind: \"c\""),
        ("v/c", String::new(), "devices: there is none"),
        (
            "v/c",
            format!("{device},{device}"),
            "devices[1].name: \"x\" is there twice",
        ),
    ] {
        let text =
            format!(r#"{{"cdiVersion": "1.0.0", "kind": "{kind}", "devices": [{devices}]}}"#);
        let error = parse(&text).unwrap_err();
        assert!(error.starts_with(why), "{error}");
    }
}

#[test]
fn annotations_name_devices() {
    let annotations = |value: &str| {
        let all = [("other", "x"), ("cdi.k8s.io/plugin_a", value)];
        all.map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    };
    let found = from_annotations(&annotations("v/c=a,v/c=b")).unwrap();
    assert_eq!(found, names(&["v/c=a", "v/c=b"]));
    let (key, why) = from_annotations(&annotations("v/c=a,")).unwrap_err();
    assert_eq!(key, "cdi.k8s.io/plugin_a");
    assert!(why.starts_with("\"\" is not of the form"), "{why}");
}
