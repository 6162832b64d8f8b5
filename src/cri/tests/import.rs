//! Imports over a stream.

use std::sync::Arc;

use carpel_api::carpel::ImportRequest;
use carpel_api::carpel::import_response::Step;
use tonic::Code;

use super::fake::{self, Fake};

fn chunks(chunks: &[&str]) -> Vec<ImportRequest> {
    let request = |chunk: &&str| ImportRequest {
        chunk: chunk.as_bytes().to_vec(),
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
            Step::Layer(layer) => format!("{} {}/{}", layer.digest, layer.done, layer.total),
            Step::Image(image) => image.id,
        });
    }
    assert_eq!(seen, ["sha256:1 5/10", "sha256:ab"]);
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
    let mut client = fake::own(&fake).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut steps = client
        .import(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await
        .expect("a stream")
        .into_inner();
    for chunk in chunks(&["half"]) {
        sender.send(chunk).await.expect("the client listens");
    }
    let half = tokio::time::timeout(std::time::Duration::from_millis(20), steps.message()).await;
    assert!(half.is_err(), "an import that waits for more says nothing");
    drop(steps);
    drop(client);
}
