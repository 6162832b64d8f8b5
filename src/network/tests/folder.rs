//! The folder of configurations while the daemon runs.

use super::*;

fn conf(name: &str) -> String {
    let mut conf = network(&["a"]);
    conf["name"] = json!(name);
    conf.to_string()
}

async fn becomes(network: &Network, name: Result<&str, &str>) {
    let now = || network.status();
    let is = || match (now(), name) {
        (Ok(now), Ok(name)) => now == name,
        (Err(now), Err(reason)) => now.reason == reason,
        _ => false,
    };
    let start = Instant::now();
    while !is() {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{name:?} expected, is {:?}",
            now()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn the_folder_comes_and_goes_with_those_above_it() {
    let mut node = Node::new();
    node.good("a", RESULT);
    let etc = node.dir.path().join("etc");
    node.settings.conf_dir = etc.join("cni/net.d");
    let network = node.open();
    becomes(&network, Err("NoNetworkConfig")).await;
    assert!(
        network
            .status()
            .unwrap_err()
            .message
            .ends_with("/etc/cni/net.d")
    );
    for round in ["one", "two"] {
        fs::create_dir_all(&node.settings.conf_dir).unwrap();
        node.conf("10.conflist", &conf(round));
        becomes(&network, Ok(round)).await;
        fs::remove_dir_all(&etc).unwrap();
        becomes(&network, Err("NoNetworkConfig")).await;
    }
    // Moved into place, and away, and again as a whole.
    let aside = node.dir.path().join("aside");
    fs::create_dir_all(aside.join("cni/net.d")).unwrap();
    fs::write(aside.join("cni/net.d/10.conflist"), conf("moved")).unwrap();
    fs::rename(&aside, &etc).unwrap();
    becomes(&network, Ok("moved")).await;
    fs::rename(&etc, &aside).unwrap();
    becomes(&network, Err("NoNetworkConfig")).await;
}

#[tokio::test]
async fn files_are_read_when_they_are_complete() {
    let node = Node::new();
    node.good("a", RESULT);
    let network = node.open();
    let at = |name: &str| node.settings.conf_dir.join(name);
    node.conf("20.conflist", &conf("written"));
    becomes(&network, Ok("written")).await;
    // Half a file that comes first changes nothing yet.
    let mut half = fs::File::create(at("10.conflist")).unwrap();
    io::Write::write_all(&mut half, b"{\"name\":").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(network.warnings().is_empty(), "{:?}", network.warnings());
    drop(half);
    eventually("bad file is told", || !network.warnings().is_empty()).await;
    assert!(
        network.warnings()[0].contains("10.conflist: not JSON"),
        "{:?}",
        network.warnings()
    );
    assert_eq!(network.status().unwrap(), "written");
    fs::write(at(".new"), conf("renamed")).unwrap();
    fs::rename(at(".new"), at("10.conflist")).unwrap();
    becomes(&network, Ok("renamed")).await;
    assert!(network.warnings().is_empty());
    fs::write(node.dir.path().join("elsewhere"), conf("linked")).unwrap();
    std::os::unix::fs::symlink(node.dir.path().join("elsewhere"), at("05.conf")).unwrap();
    becomes(&network, Ok("linked")).await;
    fs::remove_file(at("05.conf")).unwrap();
    becomes(&network, Ok("renamed")).await;
    fs::hard_link(node.dir.path().join("elsewhere"), at("06.conf")).unwrap();
    becomes(&network, Ok("linked")).await;
}

#[tokio::test]
async fn a_bad_folder_says_why_and_is_not_replaced_by_the_default() {
    let mut node = Node::new();
    node.good("a", RESULT);
    node.settings.default_network = Some(conf("default"));
    node.conf(
        "10.conflist",
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../../bin/sh"}]}"#,
    );
    let network = node.open();
    let not_ready = network.status().unwrap_err();
    assert_eq!(not_ready.reason, "InvalidNetworkConfig");
    let expected = "10.conflist: plugin type \"../../bin/sh\" is not a plain file name";
    assert!(not_ready.message.ends_with(expected), "{not_ready}");
    assert_eq!(
        add(&network, &pod()).await.unwrap_err().to_string(),
        not_ready.message
    );
    fs::remove_file(node.settings.conf_dir.join("10.conflist")).unwrap();
    becomes(&network, Ok("default")).await;
    fs::remove_dir(&node.settings.conf_dir).unwrap();
    becomes(&network, Ok("default")).await;
}

#[tokio::test]
async fn plugins_beside_the_list_are_watched_too() {
    let node = Node::with(&json!({"cniVersion": "1.0.0", "name": "n"}));
    node.good("a", RESULT);
    let network = node.open();
    becomes(&network, Err("InvalidNetworkConfig")).await;
    let beside = node.settings.conf_dir.join("n");
    fs::create_dir(&beside).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::write(beside.join("10-a.conf"), r#"{"type":"a"}"#).unwrap();
    becomes(&network, Ok("n")).await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let mut node = Node::new();
    node.settings.default_network = Some("{}".into());
    let text = Network::open(node.settings.clone())
        .unwrap_err()
        .to_string();
    assert_eq!(text, "default network: \"name\" is missing");
    let mut node = Node::new();
    node.settings.bin_dirs.push("/a:b".into());
    assert!(
        Network::open(node.settings.clone())
            .unwrap_err()
            .to_string()
            .starts_with("plugin folders: ")
    );
    let outside = std::thread::spawn(|| Network::open(Node::new().settings.clone()).err())
        .join()
        .unwrap();
    assert!(matches!(outside, Some(Error::Runtime(_))));
}
