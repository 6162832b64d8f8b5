//! The lists as streams, and the lists that are too long for one message.

use std::collections::BTreeSet;
use std::time::Duration;

use carpel_integration::cri::Cri;
use carpel_integration::image::Image;
use carpel_integration::request::sleeper;
use carpel_integration::v1::{
    self, ContainerFilter, ContainerState, ContainerStateValue, ContainerStatsFilter,
    PodSandboxFilter, PodSandboxState, PodSandboxStateValue, PodSandboxStatsFilter,
};
use carpel_integration::{Pod, TestNode, host};
use prost::Message;
use tonic::{Code, Response, Status, Streaming};

use crate::refused;

/// What the kubelet takes at most, and a part of it that a message of a stream never comes near.
const MAX_MESSAGE: usize = 16 << 20;
const FAR_BELOW: usize = MAX_MESSAGE / 8;

/// Reads a stream to its end: each message has something and is not long, and then nothing comes.
async fn read<M: Message + Default + 'static>(
    stream: Result<Response<Streaming<M>>, Status>,
) -> Vec<M> {
    let mut stream = stream.expect("a stream").into_inner();
    let mut messages = Vec::new();
    let patience = host::patience(Duration::from_secs(30));
    let all = async {
        while let Some(message) = stream.message().await.expect("no error") {
            assert!(message.encoded_len() <= FAR_BELOW);
            messages.push(message);
        }
    };
    tokio::time::timeout(patience, all).await.expect("an end");
    messages
}

/// The items of all messages, of which none is empty.
fn items<M, T>(messages: Vec<M>, items: fn(M) -> Vec<T>) -> Vec<T> {
    let parts: Vec<_> = messages.into_iter().map(items).collect();
    assert!(parts.iter().all(|part| !part.is_empty()));
    parts.into_iter().flatten().collect()
}

/// Asserts that these are the same, each once.
fn same<'a>(ids: impl Iterator<Item = &'a String>, expected: &[&String]) {
    let ids: Vec<_> = ids.collect();
    let set: BTreeSet<_> = ids.iter().copied().collect();
    assert_eq!(set.len(), ids.len(), "none comes twice: {ids:?}");
    assert_eq!(set, expected.iter().copied().collect());
}

/// Nearly as much as an object may have.
fn long() -> String {
    "x".repeat((1 << 20) - 1000)
}

/// More of that than a message takes.
const MANY: usize = 18;

/// A pod with so many long containers that no message takes them, the first of which runs.
async fn many_containers() -> (TestNode, Pod, Vec<String>) {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut ids = Vec::new();
    for n in 0..MANY {
        let mut config = sleeper(&format!("c{n}"));
        config.annotations.insert("long".into(), long());
        config.labels.insert("half".into(), (n % 2).to_string());
        ids.push(node.try_create(&pod, &config).await.expect("created"));
    }
    node.try_start(&ids[0]).await.unwrap();
    (node, pod, ids)
}

fn half(n: usize) -> std::collections::BTreeMap<String, String> {
    [("half".to_owned(), n.to_string())].into()
}

#[tokio::test]
async fn stream_containers() {
    let (node, pod, ids) = many_containers().await;
    let mut runtime = node.cri.runtime();
    // A pod is told of all the same, so that it can be stopped: its containers are asked for one by one.
    let status = node.try_pod_status(&pod.id).await.unwrap();
    assert_eq!((status.containers_statuses, status.timestamp), (vec![], 0));
    assert_eq!(status.status.unwrap().id, pod.id);
    assert_eq!(node.status(&ids[0]).await.id, ids[0]);
    let unary = runtime.list_containers(v1::ListContainersRequest::default());
    refused(
        unary.await,
        Code::ResourceExhausted,
        "call StreamContainers",
    );
    let mut stream = async |filter| {
        let request = v1::StreamContainersRequest { filter };
        let messages = read(runtime.stream_containers(request).await).await;
        items(messages, |message| message.containers)
    };
    let all = stream(None).await;
    same(all.iter().map(|it| &it.id), &ids.iter().collect::<Vec<_>>());
    // The filters of the list.
    let filter = ContainerFilter {
        label_selector: half(1),
        ..ContainerFilter::default()
    };
    let odd: Vec<_> = ids.iter().skip(1).step_by(2).collect();
    let found = stream(Some(filter.clone())).await;
    same(found.iter().map(|it| &it.id), &odd);
    let filter_state = ContainerStateValue {
        state: ContainerState::ContainerRunning.into(),
    };
    let running = ContainerFilter {
        state: Some(filter_state),
        ..ContainerFilter::default()
    };
    let found = stream(Some(running)).await;
    same(found.iter().map(|it| &it.id), &[&ids[0]]);
    // Each item is what the list has.
    let request = v1::ListContainersRequest {
        filter: Some(filter),
    };
    let listed = node.cri.runtime().list_containers(request).await;
    let mut listed = listed.expect("half of them fit").into_inner().containers;
    listed.retain(|item| !odd.contains(&&item.id) || !all.contains(item));
    assert_eq!(listed, []);
    // None: no message at all.
    let none = ContainerFilter {
        label_selector: half(2),
        ..ContainerFilter::default()
    };
    assert_eq!(stream(Some(none)).await, []);
    let wrong = v1::StreamContainersRequest {
        filter: Some(ContainerFilter {
            id: "a/b".into(),
            ..ContainerFilter::default()
        }),
    };
    let outcome = node.cri.runtime().stream_containers(wrong).await;
    refused(outcome, Code::InvalidArgument, "filter.id");
    node.finish().await;
}

#[tokio::test]
async fn stream_containers_to_a_reader_that_sleeps() {
    let (node, pod, ids) = many_containers().await;
    let connection = Cri::with_window(&node.socket(), Some(1 << 16));
    let request = v1::StreamContainersRequest::default();
    let mut asleep = connection
        .runtime()
        .stream_containers(request)
        .await
        .expect("a stream")
        .into_inner();
    // Nothing waits for it, and it does not see what happens from then on.
    for id in &ids[1..] {
        node.try_remove(id).await.expect("removed");
    }
    let later = node.try_create(&pod, &sleeper("later")).await.unwrap();
    let mut seen = Vec::new();
    while let Some(message) = asleep.message().await.expect("no error") {
        seen.extend(message.containers);
    }
    same(
        seen.iter().map(|it| &it.id),
        &ids.iter().collect::<Vec<_>>(),
    );
    let created = seen
        .iter()
        .filter(|it| it.state() == ContainerState::ContainerCreated);
    assert_eq!(created.count(), MANY - 1, "as they were when it asked");
    let request = v1::StreamContainersRequest::default();
    let now = read(node.cri.runtime().stream_containers(request).await).await;
    let now = items(now, |message| message.containers);
    same(now.iter().map(|it| &it.id), &[&ids[0], &later]);
    drop((asleep, connection));
    node.finish().await;
}

#[tokio::test]
async fn stream_container_stats() {
    let (node, pod, ids) = many_containers().await;
    let mut runtime = node.cri.runtime();
    let unary = runtime.list_container_stats(v1::ListContainerStatsRequest::default());
    refused(
        unary.await,
        Code::ResourceExhausted,
        "call StreamContainerStats",
    );
    let mut stream = async |filter| {
        let request = v1::StreamContainerStatsRequest { filter };
        let messages = read(runtime.stream_container_stats(request).await).await;
        items(messages, |message| message.container_stats)
    };
    let id = |stats: &v1::ContainerStats| stats.attributes.clone().expect("whose").id;
    let all = stream(None).await;
    let found: Vec<_> = all.iter().map(id).collect();
    same(found.iter(), &ids.iter().collect::<Vec<_>>());
    let running: Vec<_> = all.iter().filter(|stats| stats.cpu.is_some()).collect();
    assert_eq!(running.len(), 1, "the one that runs has figures");
    assert_eq!(id(running[0]), ids[0]);
    for (filter, expected) in [
        (ContainerStatsFilter::default(), MANY),
        (
            ContainerStatsFilter {
                pod_sandbox_id: pod.id.clone(),
                label_selector: half(0),
                ..ContainerStatsFilter::default()
            },
            MANY / 2,
        ),
        (
            ContainerStatsFilter {
                id: ids[3].clone(),
                ..ContainerStatsFilter::default()
            },
            1,
        ),
    ] {
        assert_eq!(stream(Some(filter)).await.len(), expected);
    }
    // One pod whose figures no message takes.
    let request = v1::PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let unary = node.cri.runtime().pod_sandbox_stats(request).await;
    refused(unary, Code::ResourceExhausted, "of a message");
    node.finish().await;
}

/// Pods that no message takes, the last of which is stopped.
async fn many_pods() -> (TestNode, Vec<Pod>) {
    let node = TestNode::start().await;
    let mut pods = Vec::new();
    for n in 0..MANY {
        let mut config = node.pod(&format!("p{n}"));
        config.annotations.insert("long".into(), long());
        config.labels.insert("half".into(), (n % 2).to_string());
        pods.push(node.run_pod(&config).await);
    }
    node.try_stop_pod(&pods[MANY - 1].id).await.unwrap();
    (node, pods)
}

#[tokio::test]
async fn stream_pod_sandboxes_and_their_stats() {
    let (node, pods) = many_pods().await;
    let ids: Vec<_> = pods.iter().map(|pod| &pod.id).collect();
    let ready = &ids[..MANY - 1];
    let mut runtime = node.cri.runtime();
    let unary = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default());
    let advice = "call StreamPodSandboxes";
    refused(unary.await, Code::ResourceExhausted, advice);
    let mut stream = async |filter| {
        let request = v1::StreamPodSandboxesRequest { filter };
        let messages = read(runtime.stream_pod_sandboxes(request).await).await;
        items(messages, |message| message.pod_sandboxes)
    };
    let all = stream(None).await;
    same(all.iter().map(|it| &it.id), &ids);
    let state = PodSandboxStateValue {
        state: PodSandboxState::SandboxReady.into(),
    };
    let filter = PodSandboxFilter {
        state: Some(state),
        ..PodSandboxFilter::default()
    };
    let found = stream(Some(filter)).await;
    same(found.iter().map(|it| &it.id), ready);
    let filter = PodSandboxFilter {
        id: ids[4].clone(),
        label_selector: half(0),
        ..PodSandboxFilter::default()
    };
    let found = stream(Some(filter)).await;
    same(found.iter().map(|it| &it.id), &[ids[4]]);

    let mut runtime = node.cri.runtime();
    let mut stream = async |filter| {
        let request = v1::StreamPodSandboxStatsRequest { filter };
        let messages = read(runtime.stream_pod_sandbox_stats(request).await).await;
        let stats = items(messages, |message| message.pod_sandbox_stats);
        let ids = stats
            .iter()
            .map(|it| it.attributes.clone().expect("whose").id);
        ids.collect::<Vec<_>>()
    };
    same(stream(None).await.iter(), ready);
    let filter = PodSandboxStatsFilter {
        label_selector: half(0),
        ..PodSandboxStatsFilter::default()
    };
    assert_eq!(stream(Some(filter)).await.len(), MANY / 2);
    let request = v1::ListPodSandboxStatsRequest::default();
    let unary = node.cri.runtime().list_pod_sandbox_stats(request).await;
    let advice = "call StreamPodSandboxStats";
    // Those that are ready are one less; the message takes sixteen and a bit.
    refused(unary, Code::ResourceExhausted, advice);
    // The node's end lists them.
    for pod in &pods[MANY / 2..] {
        node.try_stop_pod(&pod.id).await.unwrap();
        node.try_remove_pod(&pod.id).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn stream_images() {
    let mut node = TestNode::start().await;
    node.import(Image::tiny("test.example/other:1").oci()).await;
    let mut images = node.cri.images();
    let listed = images.list_images(v1::ListImagesRequest::default()).await;
    let listed = listed.expect("a list").into_inner().images;
    assert_eq!(listed.len(), 2);
    let mut stream = async |image: &str| {
        let image = v1::ImageSpec {
            image: image.to_owned(),
            ..v1::ImageSpec::default()
        };
        let filter = Some(v1::ImageFilter { image: Some(image) });
        let request = v1::StreamImagesRequest { filter };
        let messages = read(images.stream_images(request).await).await;
        items(messages, |message| message.images)
    };
    let mut all = stream("").await;
    all.sort_by(|a, b| a.id.cmp(&b.id));
    let mut sorted = listed.clone();
    sorted.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(all, sorted);
    assert_eq!(stream(&listed[0].id).await, [listed[0].clone()]);
    assert_eq!(stream("test.example/none:1").await, []);
    node.finish().await;
}
