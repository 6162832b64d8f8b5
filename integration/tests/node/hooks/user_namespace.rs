//! Hooks of pods with a user namespace: those inside have its root's rights, who is nobody on the host.

use super::*;
use crate::userns::{self, inside};
use carpel_integration::ContainerConfigExt;

/// As [`Hooked::new`], and nobody may pass, and leave traces, too.
fn hooked() -> Hooked {
    let hooked = Hooked::new();
    fs::set_permissions(hooked.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
    hooked
}

fn own(kind: &str) -> String {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    format!("{}\n", link.display())
}

#[tokio::test]
async fn each_runs_in_its_place_with_its_rights() {
    let hooked = hooked();
    let note = "cat > $DIR/$1.json; echo $1 >> $DIR/order; id -u > $DIR/$1.uid\n\
                for kind in mnt user net pid; do readlink /proc/self/ns/$kind > $DIR/$1.$kind; done";
    let note = hooked.script("note", note);
    fs::write(hooked.path("order"), "").unwrap();
    fs::set_permissions(hooked.path("order"), fs::Permissions::from_mode(0o666)).unwrap();
    let at = |point: &str| json!([{"path": note, "args": ["note", point]}]);
    let mut node = hooked
        .node(json!({
            "prestart": at("prestart"),
            "createRuntime": at("createRuntime"),
            "createContainer": at("createContainer"),
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /started; id -u > /uid"]}],
            "poststart": at("poststart"),
            "poststop": at("poststop"),
        }))
        .await;
    let pod = node.run_pod(&userns::pod(&node, "one")).await;
    let id = node.start_container(&pod, &inside(sleeper("a"))).await;
    let before = "prestart\ncreateRuntime\ncreateContainer\npoststart\n";
    assert_eq!(hooked.read("order"), before);
    let pid = node.container_pid(&id);
    let of_container = |kind: &str| {
        let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        format!("{}\n", link.display())
    };
    for (point, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
    ] {
        let state: Value = serde_json::from_str(&hooked.read(&format!("{point}.json"))).unwrap();
        assert_eq!(
            (&state["status"], &state["pid"]),
            (&json!(status), &json!(pid)),
            "{point}"
        );
        assert_eq!(hooked.read(&format!("{point}.uid")), "0\n", "{point}");
        for kind in ["mnt", "user", "net", "pid"] {
            let namespace = hooked.read(&format!("{point}.{kind}"));
            let wanted = match point {
                "createContainer" => of_container(kind),
                _ => own(kind),
            };
            // The daemon has the test's own but for the network.
            if point == "createContainer" || kind != "net" {
                assert_eq!(namespace, wanted, "{point}: {kind}");
            }
        }
    }
    let owner = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(hooked.path(name)).unwrap().uid()
    };
    assert_eq!(owner("createRuntime.uid"), 0);
    assert_eq!(owner("createContainer.uid"), userns::FIRST);
    let started = node.exec(&id, "cat /started /uid").await;
    assert!(
        started.contains("\"status\":\"created\"") && started.ends_with("0\n"),
        "{started}"
    );
    node.crash().await;
    node.try_stop(&id, 5).await.unwrap();
    assert_eq!(hooked.read("order"), format!("{before}poststop\n"));
    node.finish().await;
}

#[tokio::test]
async fn a_hook_finds_its_bundle_and_mounts_into_the_root_file_system() {
    let hooked = hooked();
    fs::write(hooked.path("product"), "kind\n").unwrap();
    let state = "bundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')\nset -e\n";
    let script = "mount -o ro,bind $DIR/product $bundle/rootfs/etc/hostname\n\
                  echo made > $bundle/rootfs/made\ntest -d $bundle/rootfs/proc/1\n\
                  grep -q '\"path\":\"rootfs\"' $bundle/config.json\n\
                  ls $bundle > $DIR/bundle; ls $(dirname $bundle) | wc -l > $DIR/bundles";
    let script = hooked.script("mount", &format!("{state}{script}"));
    let node = hooked.node(json!({"createContainer": hook(&script)})).await;
    let pod = node.run_pod(&userns::pod(&node, "one")).await;
    node.start_container(&pod, &inside(sleeper("other"))).await;
    let script = "cat /etc/hostname /made; stat -c %u /made; grep -c ' / ' /proc/self/mountinfo; \
                  cat /proc/self/mountinfo; touch /x 2>&1 | grep -o Read-only";
    let mut config = inside(sh("a", script));
    config.security().readonly_rootfs = true;
    let output = node.output_of(&pod, &config).await;
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..3], ["kind", "made", "0"], "{output}");
    assert_eq!(lines.last(), Some(&"Read-only"), "{output}");
    // Nothing of the host is left, and no mount of the container has come to the host.
    assert!(
        !output.contains("master:") && !output.contains("shared:"),
        "{output}"
    );
    assert_eq!(hooked.read("bundle"), "config.json\nrootfs\n");
    assert_eq!(hooked.read("bundles"), "1\n", "the others' are covered");
    let product = hooked.path("product").display().to_string();
    assert!(!host::mountinfo("self").contains(&product));
    assert_eq!(host::mounts_below(node.dir()).len(), 1);
    node.finish().await;
}

/// The mounts of the host, without those that other tests make and take away meanwhile.
fn hosts_mounts() -> Vec<String> {
    let of_tests = std::env::temp_dir();
    let all = host::mountinfo("self");
    let is_of_tests = |line: &&str| {
        let point = line.split(' ').nth(4).map(Path::new);
        point.is_some_and(|point| point.starts_with(&of_tests))
    };
    let others = all.lines().filter(|line| !is_of_tests(line));
    others.map(str::to_owned).collect()
}

#[tokio::test]
async fn what_is_the_hosts_stays_the_hosts() {
    let hooked = hooked();
    fs::write(hooked.path("secret"), "x").unwrap();
    fs::set_permissions(hooked.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let volume = hooked.path("volume");
    fs::create_dir(&volume).unwrap();
    let script = "{ cat $DIR/secret && echo read; echo x > /etc/hosts && echo written\n\
                  umount /proc && echo unmounted; umount -l /dev && echo unmounted\n\
                  mount -t tmpfs none /mnt && echo mounted; } > $DIR/could 2> /dev/null; true";
    let script = hooked.script("try", script);
    let node = hooked.node(json!({"createContainer": hook(&script)})).await;
    let pod = node.run_pod(&userns::pod(&node, "one")).await;
    let mounts = hosts_mounts();
    let mut config = userns::with(&["ALL"], sleeper("a")).mount(&volume, "/ro");
    config.mounts[0].readonly = true;
    let id = node.start_container(&pod, &config).await;
    // What it mounts is its own affair, in its copy.
    assert_eq!(hooked.read("could"), "mounted\n");
    assert_eq!(hosts_mounts(), mounts);
    // The container's volumes are locked as without hooks.
    let attempt = "mount -o remount,bind,rw /ro 2>/dev/null && echo remounted; umount /mnt 2>/dev/null && echo mine; true";
    assert_eq!(node.exec(&id, attempt).await, "");
    node.finish().await;
}

#[tokio::test]
async fn one_that_fails_or_hangs_fails_the_start_by_its_name() {
    for (script, timeout, text) in [
        ("echo broken >&2; exit 3", 60, "exit status 3: broken"),
        ("exec sleep 3600", 1, "timed out"),
    ] {
        for point in ["createRuntime", "createContainer"] {
            let hooked = hooked();
            let script = hooked.script("fail", script);
            let node = hooked
                .node(json!({point: [{"path": script, "timeout": timeout}]}))
                .await;
            let pod = node.run_pod(&userns::pod(&node, "one")).await;
            let id = node.try_create(&pod, &inside(sleeper("a"))).await.unwrap();
            let status = node.try_start(&id).await.unwrap_err();
            let named = format!("{point} hook {script:?}: ");
            assert!(status.message().contains(&named), "{status}");
            let late = point == "createRuntime" && timeout == 1;
            let text = if late { "not done after 1 s" } else { text };
            assert!(status.message().contains(text), "{status}");
            assert_eq!(node.status(&id).await.reason, "StartError");
            node.finish().await;
        }
    }
}

#[tokio::test]
async fn the_daemon_may_die_on_the_way() {
    for name in carpel::failpoint::HOOKS {
        let hooked = hooked();
        let note = hooked.script("note", "echo x >> $DIR/order");
        let mut node = hooked
            .node(json!({"createRuntime": hook(&note), "createContainer": hook(&note)}))
            .await;
        assert!(node.terminate_daemon().await.success());
        node.start_daemon(Some(name)).await;
        let pod = node.run_pod(&userns::pod(&node, "one")).await;
        let id = node.try_create(&pod, &inside(sleeper("a"))).await.unwrap();
        node.try_start(&id).await.expect_err(name);
        assert_eq!(node.wait_daemon_end().await.signal(), Some(9), "{name}");
        node.start_daemon(None).await;
        let status = node.status(&id).await;
        assert_ne!(status.state(), ContainerState::ContainerRunning);
        node.finish().await;
        let before = if name.ends_with("bundle") { "" } else { "x\n" };
        assert_eq!(hooked.read("order"), before, "{name}");
    }
}
