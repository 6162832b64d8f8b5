//! Plugins that are installed on the node, and started with the daemon.

use std::fs;
use std::path::Path;

use super::*;

/// The test plugin, which adds a variable PLUGIN to containers: its name and its configuration.
const PROGRAM: &str = env!("CARGO_BIN_EXE_nri-plugin");

fn install(folder: &Path, name: &str) {
    fs::copy(PROGRAM, folder.join(name)).unwrap();
}

#[tokio::test]
async fn they_are_there_before_the_first_pod() {
    let folder = tempfile::tempdir().unwrap();
    let (plugins, config) = (folder.path().join("plugins"), folder.path().join("conf.d"));
    fs::create_dir(&plugins).unwrap();
    fs::create_dir(&config).unwrap();
    install(&plugins, "05-one");
    install(&plugins, "10-two");
    fs::write(config.join("05-one.conf"), "of one").unwrap();
    fs::write(config.join("two.conf"), "of two").unwrap();
    // What is not to be started, and what cannot be.
    install(&plugins, "nameless");
    fs::write(plugins.join("20-text"), "no program").unwrap();
    let script = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = plugins.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("30-ends", "#!/bin/sh\nexit 1\n");
    script("40-sleeps", "#!/bin/sh\nexec sleep 1000\n");
    let config = format!(
        "[nri]\nplugin_dir = {plugins:?}\nconfig_dir = {config:?}\nregistration_timeout_seconds = 2\n"
    );
    let mut node = TestNode::builder().config(&config).start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let output = node.output_of(&pod, &sh("a", "echo $ONE, $TWO")).await;
    assert_eq!(output, "05-one of one, 10-two of two\n");
    let log = node.daemon_log();
    for text in ["nameless", "30-ends", "40-sleeps"] {
        assert!(log.contains(text), "{text}: {log}");
    }
    // With the next daemon they are started anew, and the old ones have ended.
    node.crash().await;
    let output = node.output_of(&pod, &sh("b", "echo $ONE, $TWO")).await;
    assert_eq!(output, "05-one of one, 10-two of two\n");
    // Without any: they ended with their daemon.
    assert!(node.terminate_daemon().await.success());
    fs::remove_dir_all(&plugins).unwrap();
    node.start_daemon(None).await;
    node.finish().await;
}
