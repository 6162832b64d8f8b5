//! Imports over a stream.

use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use carpel_api::carpel::ImportRequest;
use carpel_api::carpel::images_client::ImagesClient;
use carpel_api::carpel::import_response::Step;
use tonic::Code;

use super::fake::{self, Fake};

fn chunks(chunks: &[&str]) -> Vec<ImportRequest> {
    let request = |chunk: &&str| ImportRequest {
        chunk: chunk.as_bytes().to_vec(),
        ..ImportRequest::default()
    };
    chunks.iter().map(request).collect()
}

#[tokio::test]
async fn an_archive_arrives_whole_and_in_order() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::own(&fake).await;
    let archive = tokio_stream::iter(chunks(&["sha", "", "256:", "ab"]));
    let mut steps = client.import(archive).await.expect("a stream").into_inner();
    let mut seen = Vec::new();
    while let Some(response) = steps.message().await.expect("a good archive") {
        seen.push(match response.step.expect("a step") {
            Step::Received(bytes) => format!("{bytes} bytes"),
            Step::Layer(layer) => format!("{} {}", layer.digest, layer.state),
            Step::Image(image) => image.id,
        });
    }
    assert_eq!(seen, ["7 bytes", "sha256:1 1", "sha256:ab"]);
}

#[tokio::test]
async fn the_first_message_says_for_which_platforms() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::own(&fake).await;
    for (platform, all, expected) in [
        ("linux/arm64", false, Ok("import for linux/arm64")),
        ("", true, Ok("import for linux")),
        (
            "arm64",
            false,
            Err("platform: \"arm64\": must be linux/ARCHITECTURE[/VARIANT]"),
        ),
        (
            "linux/arm64",
            true,
            Err("platform: must be empty with all_platforms"),
        ),
    ] {
        let first = ImportRequest {
            platform: platform.into(),
            all_platforms: all,
            ..ImportRequest::default()
        };
        let archive = [vec![first], chunks(&["sha256:ab"])].concat();
        let answer = client.import(tokio_stream::iter(archive)).await;
        let mut steps = answer.expect("a stream").into_inner();
        match (steps.message().await, expected) {
            (Ok(_), Ok(call)) => assert_eq!(fake.calls().last().map(String::as_str), Some(call)),
            (Err(status), Err(part)) => {
                assert_eq!(status.code(), Code::InvalidArgument);
                assert!(status.message().starts_with(part), "{status}");
            }
            (answer, _) => panic!("{platform} {all}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn a_bad_archive_and_a_bug_say_so() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::own(&fake).await;
    for (archive, code, text) in [
        ("broken", Code::InvalidArgument, "archive: not a tar file"),
        ("panic", Code::Internal, "bug in carpel: panic: boom"),
    ] {
        let archive = tokio_stream::iter(chunks(&[archive]));
        let mut steps = client.import(archive).await.expect("a stream").into_inner();
        let status = steps.message().await.expect_err("no image");
        assert_eq!((status.code(), status.message()), (code, text));
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_image() {
    let fake = Arc::new(Fake::default());
    let (channel, connection) = fake::serve(&fake).await;
    let mut client = ImagesClient::new(channel);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let archive = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let _steps = client.import(archive).await.expect("a stream");
    for chunk in chunks(&["half"]) {
        sender.send(chunk).await.expect("the client listens");
    }
    connection.shutdown(Shutdown::Both).expect("a connection");
    let broken_off = async {
        while fake.calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let noticed = tokio::time::timeout(Duration::from_secs(30), broken_off).await;
    noticed.expect("the import ends when its client does");
    let calls = fake.calls();
    assert!(calls[0].starts_with("import broke off: "), "{calls:?}");
}
