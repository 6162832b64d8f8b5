//! `carpel ps`, `pods`, `images`: what is there, for people and for scripts.

use carpel_integration::TestNode;
use carpel_integration::cli::{Said, carpel};
use carpel_integration::image::BUSYBOX;
use carpel_integration::request::{sh, sleeper};

fn run(node: &TestNode, args: &[&str]) -> Said {
    Said::by(carpel(&node.endpoint(), args))
}

#[tokio::test]
async fn lists_show_what_is_there() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    let server = node.start_container(&pod, &sleeper("server")).await;
    let failed = node.start_container(&pod, &sh("failed", "exit 3")).await;
    node.wait_exit(&failed).await;

    let table = run(&node, &["ps"]).ok();
    assert_eq!(table.lines().count(), 2, "{table}");
    let row = table.lines().nth(1).expect("a row");
    for part in [&server[..12], "server", "Running", BUSYBOX, "default/web"] {
        assert!(row.contains(part), "{part}: {table}");
    }
    let table = run(&node, &["ps", "-a"]).ok();
    assert!(table.contains("Exited (3)"), "{table}");
    assert_eq!(run(&node, &["ps", "-q"]).ok(), format!("{server}\n"));
    assert_eq!(
        run(&node, &["ps", "-q", "-s", "exited"]).ok(),
        format!("{failed}\n")
    );
    assert_eq!(
        run(&node, &["ps", "-aq", "--name", "serv", "-p", "web"]).ok(),
        format!("{server}\n")
    );
    let json = run(&node, &["ps", "-a", "-o", "json"]).json();
    let containers = json["containers"].as_array().expect("a list");
    assert_eq!(containers.len(), 2);
    assert_eq!(containers[1]["id"], server);
    assert_eq!(containers[1]["state"], "CONTAINER_RUNNING");
    assert_eq!(containers[1]["metadata"]["name"], "server");
    assert_eq!(containers[1]["podSandboxId"], pod.id);

    let table = run(&node, &["pods"]).ok();
    let ip = node.pod_ip(&pod).await.to_string();
    for part in [&pod.id[..12], "default", "web", "Ready", "1/2", &ip] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let json = run(&node, &["pods", "-o", "json"]).json();
    assert_eq!(json["items"][0]["id"], pod.id);
    assert_eq!(run(&node, &["pods", "-q", "-s", "notready"]).ok(), "");

    let table = run(&node, &["images"]).ok();
    assert!(table.contains(BUSYBOX), "{table}");
    let json = run(&node, &["images", "-o", "json"]).json();
    assert_eq!(json["images"][0]["repoTags"][0], BUSYBOX);
    assert_eq!(run(&node, &["images", "nothing-like-it", "-q"]).ok(), "");

    let info = run(&node, &["info"]).ok();
    for part in ["carpel", &node.endpoint(), "network ready", "1 running"] {
        assert!(info.contains(part), "{part}: {info}");
    }
    let json = run(&node, &["info", "-o", "json"]).json();
    assert_eq!(json["version"]["runtimeName"], "carpel");
    let root = node.dir().join("root");
    assert_eq!(
        json["status"]["info"]["config"]["root"],
        root.display().to_string()
    );
    let json = run(&node, &["version", "-o", "json"]).json();
    assert_eq!(json["client"]["version"], json["server"]["runtimeVersion"]);
    node.finish().await;
}

#[tokio::test]
async fn names_and_prefixes_lead_to_one_thing_or_to_a_list() {
    let node = TestNode::start().await;
    let one = node.run_pod(&node.pod("one")).await;
    let two = node.run_pod(&node.pod("two")).await;
    let app = node
        .start_container(&one, &sh("app", "echo one; exec sleep 600"))
        .await;
    node.start_container(&two, &sh("app", "echo two; exec sleep 600"))
        .await;
    node.wait_log(&one, "app", |log| !log.0.is_empty()).await;

    for name in ["one/app", "default/one/app", "one", &app, &app[..20]] {
        assert_eq!(run(&node, &["logs", name]).ok(), "one\n", "{name}");
    }
    let ambiguous = run(&node, &["logs", "app"]);
    assert!(
        ambiguous.stderr.contains("default/one/app (running)"),
        "{ambiguous:?}"
    );
    ambiguous.failed(1, "default/two/app (running)");

    // Of seventeen ids two begin with the same digit.
    let mut ids = vec![app];
    while ids
        .iter()
        .filter(|id| id[..1] == ids[ids.len() - 1][..1])
        .count()
        < 2
    {
        let name = format!("c{}", ids.len());
        ids.push(
            node.try_create(&one, &sleeper(&name))
                .await
                .expect("CreateContainer"),
        );
    }
    let digit = &ids[ids.len() - 1][..1];
    let ambiguous = run(&node, &["inspect", digit]);
    assert!(
        ambiguous.stderr.contains(&ids[ids.len() - 1][..12]),
        "{ambiguous:?}"
    );
    ambiguous.failed(1, "is more than one");
    node.finish().await;
}

#[tokio::test]
async fn lists_may_be_longer_than_a_message() {
    let node = TestNode::start().await;
    let long = "x".repeat((1 << 20) - 1000);
    let mut pods = Vec::new();
    for n in 0..18 {
        let mut config = node.pod(&format!("p{n}"));
        config.annotations.insert("long".into(), long.clone());
        pods.push(node.run_pod(&config).await);
    }
    for n in 0..18 {
        let mut config = sleeper(&format!("c{n}"));
        config.annotations.insert("long".into(), long.clone());
        node.try_create(&pods[0], &config).await.expect("created");
    }
    for (args, count) in [(["pods", "-q"], 18), (["ps", "-aq"], 18)] {
        let listed = run(&node, &args).ok();
        assert_eq!(listed.lines().count(), count, "{args:?}");
    }
    let json = run(&node, &["ps", "-a", "-o", "json"]).json();
    let containers = json["containers"].as_array().expect("a list");
    let whole = |container: &serde_json::Value| container["annotations"]["long"] == long.as_str();
    assert!(containers.len() == 18 && containers.iter().all(whole));
    // What looks names up, too.
    assert!(run(&node, &["inspect", "p17"]).ok().contains(&pods[17].id));
    for pod in &pods {
        node.try_stop_pod(&pod.id).await.expect("stopped");
        node.try_remove_pod(&pod.id).await.expect("removed");
    }
    node.finish().await;
}
