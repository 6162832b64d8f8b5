//! GetContainerEvents: each change once, in order, with the pod as it was just after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use carpel_integration::cri::Cri;
use carpel_integration::request::sleeper;
use carpel_integration::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, ContainerStatus, GetEventsRequest,
    PodSandboxState,
};
use carpel_integration::{TestNode, host, sh};
use tonic::{Code, Streaming};

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};

async fn listen(node: &TestNode) -> Streaming<ContainerEventResponse> {
    let events = node
        .cri
        .runtime()
        .get_container_events(GetEventsRequest {})
        .await;
    events.expect("GetContainerEvents").into_inner()
}

async fn next(events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    let event =
        tokio::time::timeout(host::patience(Duration::from_secs(10)), events.message()).await;
    event
        .expect("an event soon")
        .expect("no error")
        .expect("no end")
}

/// Asserts that nothing else comes.
async fn no_more(events: &mut Streaming<ContainerEventResponse>) {
    let more = tokio::time::timeout(Duration::from_millis(200), events.message()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn a_pods_life_is_told() {
    let node = TestNode::start().await;
    let mut events = listen(&node).await;
    let mut other = listen(&node).await;
    let pod = node.run_pod(&node.pod("one")).await;
    for kind in [Created, Started] {
        let event = next(&mut events).await;
        assert_eq!(event.container_event_type(), kind);
        assert_eq!(event.container_id, pod.id);
        let status = event.pod_sandbox_status.expect("the pod's status");
        assert_eq!(status.metadata.as_ref().unwrap().uid, "uid-of-one");
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        assert!(!status.network.expect("a network").ip.is_empty());
        assert_eq!(event.containers_statuses, []);
    }
    let before = host_nanoseconds();
    let id = node
        .start_container(&pod, &sh("a", "sleep 0.1; exit 3"))
        .await;
    let states = [
        (Created, ContainerState::ContainerCreated),
        (Started, ContainerState::ContainerRunning),
        (Stopped, ContainerState::ContainerExited),
    ];
    let mut last = before;
    for (kind, state) in states {
        let event = next(&mut events).await;
        assert_eq!(
            (event.container_event_type(), &event.container_id),
            (kind, &id)
        );
        assert!(event.created_at >= last && event.created_at <= host_nanoseconds());
        last = event.created_at;
        let [status] = &event.containers_statuses[..] else {
            panic!("{event:?}");
        };
        assert_eq!((status.state(), &status.id), (state, &id), "{kind:?}");
        if kind == Stopped {
            assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        }
        let status = event.pod_sandbox_status.expect("the pod's status");
        assert_eq!(status.id, pod.id);
    }
    node.try_remove(&id).await.unwrap();
    let event = next(&mut events).await;
    assert_eq!(
        (event.container_event_type(), &event.container_id),
        (Deleted, &id)
    );
    assert_eq!(event.containers_statuses, []);
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_stop_pod(&pod.id).await.unwrap();
    node.try_remove_pod(&pod.id).await.unwrap();
    node.try_remove_pod(&pod.id).await.unwrap();
    for kind in [Stopped, Deleted] {
        let event = next(&mut events).await;
        assert_eq!(
            (event.container_event_type(), &event.container_id),
            (kind, &pod.id)
        );
        let status = event.pod_sandbox_status.expect("the last status");
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    }
    no_more(&mut events).await;
    // Each reader has them all.
    for kind in [
        Created, Started, Created, Started, Stopped, Deleted, Stopped, Deleted,
    ] {
        assert_eq!(next(&mut other).await.container_event_type(), kind);
    }
    no_more(&mut other).await;
    node.finish().await;
}

fn host_nanoseconds() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_nanos()).unwrap()
}

#[tokio::test]
async fn a_failed_start_is_told_and_another_supervisor_is_not() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut events = listen(&node).await;
    let wrong = carpel_integration::container("a", &["/no/such/program"]);
    let id = node.try_create(&pod, &wrong).await.unwrap();
    node.try_start(&id).await.expect_err("no program");
    assert_eq!(next(&mut events).await.container_event_type(), Created);
    let event = next(&mut events).await;
    assert_eq!(
        (event.container_event_type(), event.container_id),
        (Stopped, id)
    );
    assert_eq!(event.containers_statuses[0].reason, "StartError");
    // The pod goes on with another: nothing has happened to it.
    host::kill_9(node.supervisor_pid(&pod).await);
    no_more(&mut events).await;
    node.try_stop_pod(&pod.id).await.unwrap();
    let event = next(&mut events).await;
    assert_eq!(
        (event.container_event_type(), event.container_id),
        (Stopped, pod.id.clone())
    );
    no_more(&mut events).await;
    node.finish().await;
}

#[tokio::test]
async fn of_a_pods_containers_the_newest_comes_first() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut events = listen(&node).await;
    let mut newest_first = Vec::new();
    // Ids are random: one order of six attempts in 720 is this by chance.
    for attempt in 0..6 {
        let mut config = sh("again", "exit 1");
        config.metadata.as_mut().unwrap().attempt = attempt;
        let id = node.start_container(&pod, &config).await;
        newest_first.insert(0, id);
        for kind in [Created, Started, Stopped] {
            let event = next(&mut events).await;
            assert_eq!(event.container_event_type(), kind);
            assert_eq!(ids(&event.containers_statuses), newest_first);
        }
        let status = node.try_pod_status(&pod.id).await.unwrap();
        assert_eq!(ids(&status.containers_statuses), newest_first);
    }
    node.finish().await;
}

fn ids(statuses: &[ContainerStatus]) -> Vec<String> {
    statuses.iter().map(|status| status.id.clone()).collect()
}

#[tokio::test]
async fn of_many_at_once_none_is_lost_or_doubled() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut events = listen(&node).await;
    let lives = (0..20).map(|n| {
        let (node, pod) = (&node, &pod);
        async move {
            let id = node
                .start_container(pod, &sh(&format!("c{n}"), "exit 0"))
                .await;
            node.wait_exit(&id).await;
            node.try_remove(&id).await.unwrap();
            id
        }
    });
    let ids = futures::future::join_all(lives).await;
    let mut told: BTreeMap<String, Vec<ContainerEventType>> = BTreeMap::new();
    for _ in 0..ids.len() * 4 {
        let event = next(&mut events).await;
        let kind = event.container_event_type();
        told.entry(event.container_id).or_default().push(kind);
    }
    no_more(&mut events).await;
    for id in ids {
        assert_eq!(told[&id], [Created, Started, Stopped, Deleted]);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_reader_that_sleeps_stalls_nobody_and_is_told() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    // It makes every event long, so that few of them fill the connection.
    let mut long = sleeper("long");
    long.annotations.insert("text".into(), "x".repeat(16 << 10));
    node.try_create(&pod, &long).await.unwrap();
    // On a connection of its own: what it does not read would hold up all else on it.
    let connection = Cri::with_window(&node.socket(), Some(1 << 16));
    let asleep = connection
        .runtime()
        .get_container_events(GetEventsRequest {})
        .await;
    let mut asleep = asleep.expect("GetContainerEvents").into_inner();
    let mut awake = listen(&node).await;
    let reader = tokio::spawn(async move {
        let mut count = 0;
        while let Ok(Some(_)) = awake.message().await {
            count += 1;
        }
        count
    });
    // More than is kept for a reader, with what is under way in the connection.
    let mut slowest = Duration::ZERO;
    const ROUNDS: usize = 100;
    const TOGETHER: usize = 8;
    for round in 0..ROUNDS {
        let lives = (0..TOGETHER).map(|n| {
            let (node, pod) = (&node, &pod);
            async move {
                let name = format!("c{round}-{n}");
                let id = node.try_create(pod, &sleeper(&name)).await.unwrap();
                node.try_remove(&id).await.unwrap();
            }
        });
        let begin = Instant::now();
        futures::future::join_all(lives).await;
        slowest = slowest.max(begin.elapsed());
    }
    assert!(
        slowest < host::patience(Duration::from_secs(5)),
        "{slowest:?}"
    );
    let mut received = 0;
    let end = loop {
        let message =
            tokio::time::timeout(host::patience(Duration::from_secs(10)), asleep.message()).await;
        match message.expect("more, or the end") {
            Ok(Some(_)) => received += 1,
            end => break end,
        }
    };
    let status = end.expect_err("it has missed some");
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    assert!(status.message().contains("list anew"), "{status}");
    assert!(received < ROUNDS * TOGETHER * 2);
    // Whoever comes back hears again.
    let mut again = listen(&node).await;
    node.try_stop_pod(&pod.id).await.unwrap();
    assert_eq!(next(&mut again).await.container_event_type(), Stopped);
    drop((again, asleep, connection));
    node.finish().await;
    assert_eq!(
        reader.await.unwrap(),
        ROUNDS * TOGETHER * 2 + 3,
        "the other reader has all"
    );
}

fn descriptors(node: &TestNode) -> usize {
    let pid = node.daemon_pid().expect("a daemon");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    open.expect("it lives").count()
}

#[tokio::test]
async fn a_reader_that_sleeps_keeps_nothing_open() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut long = sleeper("long");
    let text = "x".repeat(256 << 10);
    long.annotations.insert("text".into(), text);
    node.try_create(&pod, &long).await.unwrap();
    let connection = Cri::with_window(&node.socket(), Some(1 << 16));
    let request = GetEventsRequest {};
    let mut asleep = connection
        .runtime()
        .get_container_events(request)
        .await
        .expect("GetContainerEvents")
        .into_inner();
    const LIVES: usize = 20;
    let live = async |name: String| {
        let id = node.start_container(&pod, &sleeper(&name)).await;
        node.try_stop(&id, 5).await.unwrap();
        node.try_remove(&id).await.unwrap();
    };
    // Until the connection is full.
    live("first".into()).await;
    let before = descriptors(&node);
    for n in 0..LIVES {
        live(format!("c{n}")).await;
    }
    // A container that runs has four at least.
    let deadline = Instant::now() + host::soon();
    while descriptors(&node) >= before + LIVES {
        assert!(
            Instant::now() < deadline,
            "{} are open, {before} were",
            descriptors(&node)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // All of it has waited for the reader.
    let mut kinds = BTreeMap::new();
    for _ in 0..4 * (LIVES + 1) {
        let event = next(&mut asleep).await;
        *kinds.entry(event.container_event_type()).or_insert(0) += 1;
    }
    assert!(kinds.values().all(|count| *count == LIVES + 1), "{kinds:?}");
    no_more(&mut asleep).await;
    drop((asleep, connection));
    node.finish().await;
}

#[tokio::test]
async fn an_event_that_no_message_takes_ends_the_stream() {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let mut events = listen(&node).await;
    let mut created = 0;
    let status = loop {
        let mut long = sleeper(&format!("c{created}"));
        let text = "x".repeat((1 << 20) - 1000);
        long.annotations.insert("text".into(), text);
        node.try_create(&pod, &long).await.unwrap();
        let message = tokio::time::timeout(host::soon(), events.message()).await;
        match message.expect("an event, or the end") {
            Ok(Some(_)) => created += 1,
            end => break end.expect_err("one is too long"),
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("list anew"), "{status}");
    assert!((14..=16).contains(&created), "{created}");
    node.finish().await;
}
