//! `carpel doctor`: what it finds, and what it says to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use carpel_integration::TestNode;
use carpel_integration::cli::{Said, carpel};
use carpel_integration::registry::{Fake, Reply, Request, add_far_address};
use serde_json::Value;

fn doctor(node: &TestNode, args: &[&str]) -> Said {
    let config = node.dir().join("config.toml").display().to_string();
    let args = [&["doctor", "--config", &config], args].concat();
    Said::by(carpel(&node.endpoint(), &args))
}

/// The checks of this name.
fn checks<'a>(report: &'a Value, name: &str) -> Vec<&'a Value> {
    let all = report["checks"].as_array().expect("checks");
    all.iter().filter(|check| check["name"] == name).collect()
}

fn report(said: &Said) -> Value {
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

#[tokio::test]
async fn a_node_that_works_is_fit() {
    let node = TestNode::start().await;
    let said = doctor(&node, &["-o", "json"]);
    let report = report(&said);
    assert_eq!(
        (said.status, &report["ok"]),
        (0, &true.into()),
        "{report:#}"
    );
    for name in [
        "kernel",
        "overlay",
        "seccomp",
        "cgroups can be made",
        "network",
        "supervisor",
        "socket",
        "daemon",
    ] {
        let found = checks(&report, name);
        assert_eq!(found.len(), 1, "{name}: {report:#}");
        assert_ne!(found[0]["state"], "fail", "{name}");
    }
    // The daemon's own folders, though they are in no configuration file.
    let root = node.dir().join("root").display().to_string();
    let found = checks(&report, "root folder")[0]["found"].to_string();
    assert!(found.contains(&root), "{found}");
    assert_eq!(checks(&report, "network plugin").len(), 2, "{report:#}");
    // The test's bridge alone opens none.
    let ports = checks(&report, "host ports");
    assert_eq!((ports.len(), &ports[0]["state"]), (1, &"warn".into()));
    // Whatever the machine has: it is looked at, as the network has a bridge.
    for name in ["forwarding", "bridged packets"] {
        assert_eq!(checks(&report, name).len(), 1, "{name}: {report:#}");
    }
    let pid = node.daemon_pid().expect("a daemon");
    let found = checks(&report, "daemon")[0]["found"].to_string();
    assert!(
        found.contains(&format!("pid {pid} (carpel-daemon)")),
        "{found}"
    );
    let text = doctor(&node, &[]).ok();
    assert!(text.lines().all(|line| line.len() < 250), "{text}");
    // It tidied up.
    let left: Vec<_> = fs::read_dir(node.dir().join("root"))
        .unwrap()
        .flatten()
        .collect();
    assert!(
        left.iter()
            .all(|entry| !entry.file_name().to_string_lossy().contains("doctor")),
        "{left:?}"
    );
    node.finish().await;
}

#[tokio::test]
async fn what_is_wrong_is_named_with_what_to_do() {
    let node = TestNode::start().await;
    node.write_conflist("00-bad.conflist", &"no network".into());
    node.write_conflist(
        "05-missing.conflist",
        &serde_json::json!({ "cniVersion": "1.0.0", "name": "x", "plugins": [{ "type": "not-there" }] }),
    );
    fs::set_permissions(node.dir().join("root"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(node.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let said = doctor(&node, &["-o", "json", "--registry", "http://127.0.0.1:1"]);
    let report = report(&said);
    assert_eq!((said.status, &report["ok"]), (1, &false.into()));
    for (name, state, part) in [
        ("network file", "warn", "00-bad.conflist"),
        ("network plugin", "fail", "not-there"),
        ("root folder", "fail", "mode 0755"),
        ("socket", "fail", "mode 0666"),
        ("registry", "fail", "no connection"),
    ] {
        let found = checks(&report, name);
        assert_eq!(found[0]["state"], state, "{name}: {report:#}");
        assert!(
            found[0]["found"].to_string().contains(part),
            "{name}: {report:#}"
        );
        assert!(
            !found[0]["advice"].as_str().expect("a text").is_empty(),
            "{name}"
        );
    }
    fs::set_permissions(node.dir().join("root"), fs::Permissions::from_mode(0o700)).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn the_default_network_opens_host_ports() {
    let text = "[network]\ndefault_network = true\n";
    let node = TestNode::builder().no_network().config(text).start().await;
    let report = report(&doctor(&node, &["-o", "json"]));
    for (name, found) in [
        ("network", "carpel's default bridge (default_network)"),
        ("host ports", "opened by a plugin"),
    ] {
        let checks = checks(&report, name);
        assert_eq!(checks.len(), 1, "{report:#}");
        assert_eq!(
            (&checks[0]["state"], &checks[0]["found"]),
            (&"ok".into(), &found.into())
        );
    }
    node.finish().await;
}

#[tokio::test]
async fn registries_are_spoken_to_as_a_pull_does() {
    let text = "[registry]\nplain_http = [\"10.119.0.1:5000\", \"10.119.0.1:5001\"]\n";
    let node = TestNode::builder().config(text).start().await;
    add_far_address(&node.net);
    let answer = |_: &Request| {
        let header = ("docker-distribution-api-version", "registry/2.0");
        Reply::with(200, &[header], b"{}")
    };
    let _plain = Fake::start_at(&node.net, "10.119.0.1:5000", answer);
    let _other = Fake::start_at(&node.net, "10.119.0.1:5002", answer);
    let ask = |args: &[&str]| {
        let args = [&["-o", "json"], args].concat();
        node.net.run(|| report(&doctor(&node, &args)))
    };
    let told = |report: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let checks = checks(report, "registry").into_iter();
        checks
            .map(|check| (text(&check["state"]), text(&check["found"])))
            .collect()
    };
    // Those of the configuration: one is there; that the other is not now is no fault of this machine.
    let report = ask(&[]);
    let found = told(&report);
    assert_eq!(
        (found.len(), &report["ok"]),
        (2, &true.into()),
        "{report:#}"
    );
    assert_eq!(found[0].0, "ok", "{found:?}");
    assert!(
        found[0].1.starts_with("http://10.119.0.1:5000 answers"),
        "{found:?}"
    );
    assert_eq!(found[1].0, "warn", "{found:?}");
    // A bare name is one of them; any other is asked over https.
    let report = ask(&[
        "--registry",
        "10.119.0.1:5000",
        "--registry",
        "10.119.0.1:5002",
    ]);
    let found = told(&report);
    assert_eq!(
        (found.len(), &report["ok"]),
        (3, &false.into()),
        "{report:#}"
    );
    assert_eq!(found[0].0, "ok", "{found:?}");
    assert!(
        found[1].1.starts_with("https://10.119.0.1:5002: no TLS"),
        "{found:?}"
    );
    let advice = checks(&report, "registry")[1]["advice"].to_string();
    assert!(advice.contains("registry.plain_http"), "{advice}");
    let report = ask(&["--registry", "http://10.119.0.1:5002"]);
    assert_eq!(told(&report)[0].0, "ok", "{report:#}");
    node.finish().await;
}

#[tokio::test]
async fn mirrors_are_asked_and_their_files_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    let text =
        format!("[registry]\nconfig_path = \"{path}\"\nauth_files = [\"{path}/auth.json\"]\n");
    let node = TestNode::builder().config(&text).start().await;
    let mirror = Fake::start(&node.net, |request: &Request| {
        assert_eq!(request.path, "/v2/");
        let header = ("docker-distribution-api-version", "registry/2.0");
        Reply::with(401, &[header], b"{}")
    });
    let write = |name: &str, text: &str| {
        fs::create_dir_all(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
    };
    let hosts = format!(
        "server = \"http://{0}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{0}\"]\n",
        mirror.host()
    );
    write("up.example", &hosts);
    let ask = || {
        let args = ["-o", "json", "--registry", "up.example"];
        node.net.run(|| report(&doctor(&node, &args)))
    };
    let said = ask();
    let states = |said: &Value, name: &str| -> Vec<Value> {
        let checks = checks(said, name).into_iter();
        checks.map(|check| check["state"].clone()).collect()
    };
    // A mirror that is down is no fault while another host serves. The server, which is that host, is asked once.
    assert_eq!(states(&said, "registry"), ["warn", "ok"], "{said:#}");
    // The file of credentials is not there.
    assert_eq!(states(&said, "registry file"), ["warn"], "{said:#}");
    // A fault is found although nobody asks for that registry.
    write("other.example_5000_", "\nca = 7\n");
    fs::write(dir.path().join("auth.json"), "{").unwrap();
    let said = ask();
    assert_eq!(states(&said, "registry file"), ["fail", "fail"], "{said:#}");
    let found = checks(&said, "registry file")[1]["found"].to_string();
    assert!(
        found.contains("other.example_5000_/hosts.toml:2: "),
        "{found}"
    );
    node.finish().await;
}

#[test]
fn a_machine_without_a_daemon_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let text = format!(
        "root = \"{0}/root\"\n[network]\nconf_dir = \"{0}/net.d\"\n",
        dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let said = Said::by(carpel(
        "unix:///nonexistent/x.sock",
        &["doctor", "--config", &config, "-o", "json"],
    ));
    let found = report(&said);
    assert_eq!(checks(&found, "daemon")[0]["state"], "warn");
    assert_eq!(checks(&found, "network")[0]["state"], "fail");
    assert_eq!(said.status, 1);
    fs::write(dir.path().join("config.toml"), "rooot = 1").unwrap();
    let said = Said::by(carpel(
        "unix:///nonexistent/x.sock",
        &["doctor", "--config", &config],
    ));
    assert!(said.stdout.contains("unknown field `rooot`"), "{said:?}");
    assert_eq!(said.status, 1);
}
