//! `carpel stats` and `carpel events`: what the real daemon's figures and changes look like to a person and a program.

use carpel_integration::cli::{Running, Said, carpel};
use carpel_integration::request::sleeper;
use carpel_integration::{Pod, TestNode, sh};
use serde_json::Value;

fn stats(node: &TestNode, args: &[&str]) -> Said {
    Said::by(carpel(&node.endpoint(), &[&["stats"], args].concat()))
}

/// The words of the line that has this one in it.
#[track_caller]
fn row<'a>(table: &'a str, word: &str) -> Vec<&'a str> {
    let words = |line: &'a str| line.split_whitespace().collect::<Vec<_>>();
    let mut rows = table.lines().map(words);
    let row = rows.find(|row| row.contains(&word));
    row.unwrap_or_else(|| panic!("{word} is not in\n{table}"))
}

/// A pod of two containers: one that works and keeps 20 MiB, one that sleeps.
async fn busy_pod(node: &TestNode) -> Pod {
    let pod = node.run_pod(&node.pod("web")).await;
    let script = "x=$(head -c 20971520 /dev/zero | tr '\\0' x); echo ready; while :; do :; done";
    node.start_container(&pod, &sh("busy", script)).await;
    node.start_container(&pod, &sleeper("lazy")).await;
    let ready = |log: &carpel_integration::Log| log.stdout().contains("ready");
    node.wait_log(&pod, "busy", ready).await;
    pod
}

#[tokio::test]
async fn figures_are_shown_the_hungriest_first() {
    let node = TestNode::start().await;
    let pod = busy_pod(&node).await;
    let idle = node.run_pod(&node.pod("idle")).await;
    node.start_container(&idle, &sleeper("other")).await;

    let table = stats(&node, &[]).ok();
    let names: Vec<_> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!((names.len(), names[0]), (3, Some("busy")), "{table}");
    let busy = row(&table, "busy");
    let percent: f64 = busy[2].trim_end_matches('%').parse().expect("a percentage");
    assert!(percent > 10.0 && percent < 150.0, "{table}");
    let mebibytes: f64 = busy[3].parse().expect("a number");
    assert!(
        (20.0..80.0).contains(&mebibytes) && busy[4] == "MiB",
        "{table}"
    );
    assert_eq!(busy.last(), Some(&"default/web"), "{table}");
    let lazy = row(&table, "lazy");
    assert!(
        lazy[2].trim_end_matches('%').parse::<f64>().unwrap() < 10.0,
        "{table}"
    );

    // Of one pod, and of one container in it.
    let table = stats(&node, &["web"]).ok();
    assert!(
        table.contains("lazy") && !table.contains("other"),
        "{table}"
    );
    let table = stats(&node, &["web/lazy"]).ok();
    assert_eq!(table.lines().count(), 2, "{table}");
    let pods = stats(&node, &["--pods"]).ok();
    assert_eq!(pods.lines().count(), 3, "{pods}");
    assert_eq!(row(&pods, "web")[1], "default");

    let json = stats(&node, &["-o", "json"]).json();
    let all = json["stats"].as_array().expect("figures");
    let of_busy = all
        .iter()
        .find(|one| one["attributes"]["metadata"]["name"] == "busy");
    let memory = &of_busy.expect("busy")["memory"]["workingSetBytes"]["value"];
    let bytes: u64 = memory
        .as_str()
        .expect("a number in a string")
        .parse()
        .unwrap();
    assert!(bytes > 20 << 20, "{json:#}");
    let json = stats(&node, &["--pods", "-o", "json", "web"]).json();
    assert_eq!(
        json["stats"][0]["attributes"]["id"],
        pod.id.as_str(),
        "{json:#}"
    );
    node.finish().await;
}

#[tokio::test]
async fn figures_go_on_until_ctrl_c() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("web")).await;
    node.start_container(&pod, &sleeper("lazy")).await;
    let mut watch = carpel(&node.endpoint(), &["stats", "-w", "--interval", "1"]);
    watch.env("NO_COLOR", "1");
    let mut running = Running::on_terminal(&watch, 80);
    // Each picture is painted over the last one.
    let clear = "\u{1b}[2J";
    running.wait_for(clear);
    let pictures = |text: &str| text.matches("\u{1b}[H").count();
    running.wait_for("lazy");
    let later = node.start_container(&pod, &sleeper("later")).await;
    running.wait_for("later");
    let text = running.text();
    assert_eq!(text.matches(clear).count(), 1, "{text:?}");
    assert!(pictures(&text) >= 2, "{text:?}");
    for line in text
        .split("\u{1b}[K\r\n")
        .filter(|line| !line.contains(clear))
    {
        let shown = line.replace("\u{1b}[H", "").replace("\u{1b}[J", "");
        assert!(shown.chars().count() <= 80, "{shown:?}");
    }
    running.press("\u{3}");
    assert_eq!(running.end(), 130);

    // For a program: an object a line, until nobody reads any more.
    let watch = ["stats", "-w", "--interval", "1", "-o", "json"];
    let lines = Running::start(carpel(&node.endpoint(), &watch));
    lines.wait_for("}\n{");
    let text = lines.text();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).expect("an object");
    let ids: Vec<_> = first["stats"].as_array().unwrap().iter().collect();
    assert!(
        ids.iter()
            .any(|one| one["attributes"]["id"] == later.as_str()),
        "{first:#}"
    );
    drop(lines);
    node.finish().await;
}

/// Makes and removes pods until a watcher has seen one: from then on it misses nothing.
async fn until_heard(node: &TestNode, watcher: &Running) {
    for _ in 0..200 {
        let pod = node.run_pod(&node.pod("first")).await;
        node.try_stop_pod(&pod.id).await.expect("stopped");
        node.try_remove_pod(&pod.id).await.expect("removed");
        if watcher.text().contains("deleted") || watcher.text().contains("DELETED") {
            return;
        }
    }
    panic!("nothing is heard: {:?}", watcher.text());
}

#[tokio::test]
async fn what_happens_is_told_as_it_happens() {
    let node = TestNode::start().await;
    let events = |args: &[&str]| carpel(&node.endpoint(), &[&["events"], args].concat());
    let mut person = Running::on_terminal(&events(&[]), 100);
    let mut program = Running::start(events(&["-o", "json"]));
    until_heard(&node, &person).await;
    until_heard(&node, &program).await;

    let pod = node.run_pod(&node.pod("web")).await;
    let mut of_pod = Running::start(events(&["-p", "web"]));
    let id = node.start_container(&pod, &sh("app", "exit 3")).await;
    node.wait_exit(&id).await;
    node.try_remove(&id).await.expect("removed");
    person.wait_for("default/web/app  exit 3 (Error)");
    // Known by its name though it is gone.
    let short = &id[..12];
    person.wait_for(&format!("deleted   {short}  default/web/app\r\n"));
    let text = person.text();
    let of_app: Vec<_> = text.lines().filter(|line| line.contains(short)).collect();
    assert_eq!(of_app.len(), 4, "{of_app:?}");
    for (line, (word, colour)) in of_app.iter().zip([
        ("created", None),
        ("started", Some("32")),
        ("stopped", Some("31")),
        ("deleted", None),
    ]) {
        assert!(line.contains(word), "{line:?}");
        let painted = colour.map(|colour| format!("\u{1b}[{colour}m"));
        let is_painted = |painted: String| line.contains(&painted);
        assert!(painted.is_none_or(is_painted), "{line:?}");
    }
    program.wait_for(&format!("\"containerId\":\"{id}\""));
    let text = program.text();
    let objects = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("an object"));
    let kinds: Vec<_> = objects
        .filter(|event| event["containerId"] == id.as_str())
        .map(|event| event["containerEventType"].clone())
        .collect();
    assert_eq!(kinds[0], "CONTAINER_CREATED_EVENT", "{kinds:?}");

    // One that watches a pod hears of no other.
    node.try_stop_pod(&pod.id).await.expect("stopped");
    node.try_remove_pod(&pod.id).await.expect("removed");
    until_heard(&node, &of_pod).await;
    assert!(!of_pod.text().contains("first"), "{:?}", of_pod.text());

    person.press("\u{3}");
    assert_eq!(person.end(), 130);
    program.signal(nix::sys::signal::Signal::SIGINT);
    of_pod.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!((program.end(), of_pod.end()), (130, 130));
    node.finish().await;
}
