//! Limits of containers that are there: changed by plugins when they are asked, and when they please.

use carpel_integration::api::nri::{
    ContainerEviction, ContainerUpdate, LinuxContainerUpdate, LinuxCpu, LinuxResources,
    OptionalUInt64, UpdateContainerRequest, UpdateContainerResponse, UpdateContainersRequest,
    UpdateContainersResponse,
};
use prost::Message;

use super::*;

fn shares(container: &str, shares: u64) -> ContainerUpdate {
    let cpu = LinuxCpu {
        shares: Some(OptionalUInt64 { value: shares }),
        ..LinuxCpu::default()
    };
    ContainerUpdate {
        container_id: container.to_owned(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(LinuxResources {
                cpu: Some(cpu),
                ..LinuxResources::default()
            }),
        }),
        ignore_failure: false,
    }
}

async fn shares_of(node: &TestNode, id: &str, wanted: i64) {
    let deadline = Instant::now() + host::soon();
    loop {
        let found = node.limits(id).await.cpu_shares;
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found} shares, not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_plugin_has_its_say_in_an_update() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let other = node.start_container(&pod, &sleeper("b")).await;
    let (own, beside) = (id.clone(), other.clone());
    let says = Behaviour::new("00", "says").on("UpdateContainer", move |request| {
        let request = UpdateContainerRequest::decode(request).unwrap();
        let cpu = request.linux_resources.unwrap().cpu.unwrap();
        assert_eq!(cpu.shares.unwrap().value, 512);
        Answer::message(&UpdateContainerResponse {
            update: vec![shares(&own, 300), shares(&beside, 200)],
            ..UpdateContainerResponse::default()
        })
    });
    let plugin = plugin(&node, says).await;
    let change = LinuxContainerResources {
        cpu_shares: 512,
        ..LinuxContainerResources::default()
    };
    node.try_update(&id, &change).await.unwrap();
    assert_eq!(node.limits(&id).await.cpu_shares, 300);
    assert_eq!(node.limits(&other).await.cpu_shares, 200);
    // What a plugin wants is asked of no plugin.
    assert_eq!(plugin.events(), ["UpdateContainer", "PostUpdateContainer"]);
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn limits_are_changed_at_every_turn() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let (at_creation, at_stop, at_first) = (id.clone(), id.clone(), id.clone());
    let busy = Behaviour::new("00", "busy")
        .on("Synchronize", move |_| {
            Answer::message(&nri::SynchronizeResponse {
                update: vec![shares(&at_first, 100)],
                ..nri::SynchronizeResponse::default()
            })
        })
        .on("CreateContainer", move |_| {
            Answer::message(&CreateContainerResponse {
                update: vec![shares(&at_creation, 200)],
                ..CreateContainerResponse::default()
            })
        })
        .on("StopContainer", move |_| {
            Answer::message(&nri::StopContainerResponse {
                update: vec![shares(&at_stop, 300)],
            })
        });
    let plugin = plugin(&node, busy).await;
    shares_of(&node, &id, 100).await;
    let other = node.start_container(&pod, &sleeper("b")).await;
    assert_eq!(node.limits(&id).await.cpu_shares, 200);
    node.try_stop(&other, 0).await.unwrap();
    shares_of(&node, &id, 300).await;
    // And when it pleases.
    let request = UpdateContainersRequest {
        update: vec![
            shares(&id, 400),
            shares(&other, 1),
            shares(&"0".repeat(64), 1),
        ],
        evict: Vec::new(),
    };
    let answer = plugin.call("UpdateContainers", &request).await.unwrap();
    let failed = UpdateContainersResponse::decode(&*answer).unwrap().failed;
    // One that has exited; one that is gone is nobody's any more.
    assert_eq!(failed, [shares(&other, 1)]);
    assert_eq!(node.limits(&id).await.cpu_shares, 400);
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn a_container_is_evicted() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    let plugin = plugin(&node, Behaviour::new("00", "evicts")).await;
    let request = UpdateContainersRequest {
        update: Vec::new(),
        evict: vec![ContainerEviction {
            container_id: id.clone(),
            reason: "no room".into(),
        }],
    };
    plugin.call("UpdateContainers", &request).await.unwrap();
    assert_eq!(node.wait_exit(&id).await.exit_code, 137);
    plugin.wait_for("StopContainer", 1).await;
    assert!(node.daemon_log().contains("no room"));
    drop(plugin);
    node.finish().await;
}

#[tokio::test]
async fn the_container_that_is_created_cannot_be_updated() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let confused = Behaviour::new("00", "confused").on("CreateContainer", |request| {
        let request = CreateContainerRequest::decode(request).unwrap();
        let id = request.container.unwrap().id;
        Answer::message(&CreateContainerResponse {
            update: vec![shares(&id, 2)],
            ..CreateContainerResponse::default()
        })
    });
    let plugin = plugin(&node, confused).await;
    refused(
        node.try_create(&pod, &sleeper("a")).await,
        Code::FailedPrecondition,
        "plugin \"00-confused\" wants the container changed that is being created",
    );
    drop(plugin);
    node.finish().await;
}
