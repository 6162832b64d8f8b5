//! Plugins that do not keep to the protocol: each is dropped, and harms nobody.

use carpel_integration::api::nri::{ConfigureResponse, RegisterPluginRequest};

use super::*;

fn registration(index: &str, name: &str) -> RegisterPluginRequest {
    RegisterPluginRequest {
        plugin_name: name.into(),
        plugin_idx: index.into(),
        nri_version: String::new(),
    }
}

async fn impatient_node() -> TestNode {
    TestNode::builder()
        .config("[nri]\nregistration_timeout_seconds = 1\nrequest_timeout_seconds = 1\n")
        .start()
        .await
}

/// Nobody has come to harm.
async fn finish(node: TestNode) {
    let well = plugin(&node, Behaviour::new("00", "well")).await;
    let pod = node.run_pod(&node.pod("one")).await;
    node.start_container(&pod, &sleeper("a")).await;
    assert_eq!(well.events().len(), 5);
    drop(well);
    node.finish().await;
}

#[tokio::test]
async fn a_name_or_an_index_that_is_none() {
    let node = impatient_node().await;
    for (index, name, text) in [
        ("5", "x", "index \"5\" must be two digits"),
        ("xx", "x", "index \"xx\" must be two digits"),
        ("00", "", "name \"\" must be 1 to 128"),
        ("00", "a/b", "name \"a/b\" must be 1 to 128"),
    ] {
        let plugin = Plugin::connect(&socket(&node), Behaviour::new("00", "x")).await;
        let status = plugin
            .call("RegisterPlugin", &registration(index, name))
            .await
            .unwrap_err();
        assert!(status.message.contains(text), "{status:?}");
        plugin.wait_closed().await;
        assert!(plugin.calls().is_empty());
    }
    finish(node).await;
}

#[tokio::test]
async fn calls_that_there_are_not() {
    let node = impatient_node().await;
    let pod = node.run_pod(&node.pod("early")).await;
    let slow = Behaviour::new("00", "x").slow("Configure", Duration::from_millis(500));
    let plugin = Plugin::connect(&socket(&node), slow).await;
    let update = nri::UpdateContainersRequest::default();
    let early = plugin.call("UpdateContainers", &update).await.unwrap_err();
    assert_eq!(early.code, Code::FailedPrecondition as i32, "{early:?}");
    plugin
        .call("RegisterPlugin", &registration("00", "x"))
        .await
        .unwrap();
    let twice = plugin
        .call("RegisterPlugin", &registration("00", "y"))
        .await
        .unwrap_err();
    assert!(twice.message.contains("registered already"), "{twice:?}");
    let none = plugin.call("Nothing", &update).await.unwrap_err();
    assert_eq!(none.code, Code::Unimplemented as i32);
    let none = plugin
        .call_service("ttrpc.Other", "X", &update)
        .await
        .unwrap_err();
    assert_eq!(none.code, Code::Unimplemented as i32);
    plugin.wait_for("Synchronize", 1).await;
    node.start_container(&pod, &sleeper("a")).await;
    plugin.wait_for("StartContainer", 1).await;
    drop(plugin);
    tokio::time::sleep(Duration::from_millis(100)).await;
    finish(node).await;
}

#[tokio::test]
async fn one_that_says_nothing_or_not_enough() {
    let node = impatient_node().await;
    let silent = Plugin::connect(&socket(&node), Behaviour::new("00", "silent")).await;
    let half = Plugin::connect(&socket(&node), Behaviour::new("00", "half")).await;
    half.send(vec![0, 0, 0]);
    for method in ["Configure", "Synchronize"] {
        let hangs = Behaviour::new("00", "hangs").answers(method, Answer::Silence);
        let hangs = Plugin::connect(&socket(&node), hangs).await;
        hangs
            .call("RegisterPlugin", &registration("00", "hangs"))
            .await
            .unwrap();
        hangs.wait_closed().await;
    }
    let refuses = Behaviour::new("00", "x").answers("Configure", Answer::error("bad"));
    let refuses = Plugin::connect(&socket(&node), refuses).await;
    refuses
        .call("RegisterPlugin", &registration("00", "x"))
        .await
        .unwrap();
    refuses.wait_closed().await;
    silent.wait_closed().await;
    half.wait_closed().await;
    let log = node.daemon_log();
    assert!(log.contains("not registered after 1 s"), "{log}");
    assert!(log.contains("no answer to Synchronize after 1 s"), "{log}");
    finish(node).await;
}

#[tokio::test]
async fn events_that_are_none() {
    let node = impatient_node().await;
    let configure = Answer::message(&ConfigureResponse { events: 1 << 20 });
    let greedy = Behaviour::new("00", "greedy").answers("Configure", configure);
    let greedy = Plugin::connect(&socket(&node), greedy).await;
    greedy
        .call("RegisterPlugin", &registration("00", "greedy"))
        .await
        .unwrap();
    greedy.wait_closed().await;
    assert!(
        node.daemon_log()
            .contains("subscribes to events that are none")
    );
    finish(node).await;
}

#[tokio::test]
async fn bytes_that_are_no_messages() {
    let node = impatient_node().await;
    let part = |connection: u32, bytes: &[u8]| {
        let mut part = Vec::new();
        part.extend(connection.to_be_bytes());
        part.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        part.extend(bytes);
        part
    };
    let mut long = vec![0, 0, 0, 2];
    long.extend(u32::MAX.to_be_bytes());
    let mut message = (8_u32 << 20).to_be_bytes().to_vec();
    message.extend([0, 0, 0, 1, 1, 0]);
    for (bytes, why) in [
        (long, "a part of 4294967295 bytes"),
        (part(2, &message), "a message of 8388608 bytes"),
    ] {
        let wrong = plugin(&node, Behaviour::new("00", "wrong")).await;
        wrong.send(bytes);
        wrong.wait_closed().await;
        assert!(node.daemon_log().contains(why));
    }
    // On connections that are nobody's, of kinds that there are not, to streams that nobody waits for.
    let odd = plugin(&node, Behaviour::new("00", "odd")).await;
    odd.send(part(7, b"whatever"));
    odd.send(part(1, &[0, 0, 0, 0, 0, 0, 9, 9, 2, 0]));
    odd.send(part(2, &[0, 0, 0, 0, 0, 0, 0, 1, 3, 0]));
    // A request that is none.
    odd.send(part(2, &[0, 0, 0, 1, 0, 0, 0, 3, 1, 0, 0xff]));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!odd.is_closed());
    drop(odd);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // An answer that is none.
    let nonsense = Answer::Message(vec![0xff; 3]);
    let nonsense = Behaviour::new("00", "nonsense").answers("CreateContainer", nonsense);
    let nonsense = plugin(&node, nonsense).await;
    let pod = node.run_pod(&node.pod("early")).await;
    node.start_container(&pod, &sleeper("a")).await;
    nonsense.wait_closed().await;
    finish(node).await;
}

#[tokio::test]
async fn one_that_calls_without_end() {
    let node = impatient_node().await;
    let busy = plugin(&node, Behaviour::new("00", "busy")).await;
    let update = nri::UpdateContainersRequest::default();
    let calls = (0..500).map(|_| busy.call("UpdateContainers", &update));
    let outcomes = futures::future::join_all(calls).await;
    // Some are refused, or it is dropped: it is not read without end.
    assert!(outcomes.iter().any(Result::is_err));
    drop(busy);
    tokio::time::sleep(Duration::from_millis(100)).await;
    finish(node).await;
}

#[tokio::test]
async fn one_that_does_not_read() {
    let node = impatient_node().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let stream = tokio::net::UnixStream::connect(socket(&node))
        .await
        .unwrap();
    let deaf = plugin(&node, Behaviour::new("00", "hears")).await;
    drop(deaf);
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.start_container(&pod, &sleeper("a")).await;
    drop(stream);
    node.try_remove_pod(&pod.id).await.unwrap();
    finish(node).await;
}
