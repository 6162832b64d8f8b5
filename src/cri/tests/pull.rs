//! Pulls: answers, codes, steps, and what happens when a client goes.

use std::sync::Arc;
use std::time::Duration;

use carpel_api::carpel::PullRequest;
use carpel_api::carpel::pull_response::Step;
use carpel_api::cri;
use carpel_api::cri::image_service_client::ImageServiceClient;
use tonic::Code;

use super::fake::{self, Fake};

fn request(image: &str) -> cri::PullImageRequest {
    cri::PullImageRequest {
        image: Some(cri::ImageSpec {
            image: image.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn given_up(fake: &Fake) {
    let noticed = async {
        while fake.calls() != ["pull given up"] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let noticed = tokio::time::timeout(Duration::from_secs(30), noticed).await;
    noticed.expect("the pull is given up");
}

#[tokio::test]
async fn a_pull_answers_with_the_id_and_its_errors_have_the_codes_that_kubelets_know() {
    let fake = Arc::new(Fake::default());
    let (channel, _connection) = fake::serve(&fake).await;
    let mut client = ImageServiceClient::new(channel);
    let answer = client
        .pull_image(request("a.example/b"))
        .await
        .expect("an image");
    assert_eq!(answer.into_inner().image_ref, "sha256:ab");
    for (tag, code, text) in [
        ("missing", Code::NotFound, "a.example/b:missing"),
        (
            "down",
            Code::Unknown,
            "RegistryUnavailable: a.example/b:down",
        ),
        ("denied", Code::PermissionDenied, "a.example/b:denied"),
    ] {
        let image = format!("a.example/b:{tag}");
        let status = client
            .pull_image(request(&image))
            .await
            .expect_err("no image");
        assert_eq!((status.code(), status.message()), (code, text));
    }
    let status = client.pull_image(request("A")).await.expect_err("no name");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_client_that_goes_takes_its_wish_back() {
    for own in [false, true] {
        let fake = Arc::new(Fake::default());
        let (channel, _connection) = fake::serve(&fake).await;
        let pull = async {
            if own {
                let image = "a.example/b:slow".into();
                let request = PullRequest {
                    image,
                    credentials: None,
                };
                let mut client = fake::own(&fake).await;
                let mut steps = client.pull(request).await.expect("a stream").into_inner();
                let _ = steps.message().await;
            } else {
                let _ = ImageServiceClient::new(channel)
                    .pull_image(request("a.example/b:slow"))
                    .await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(50), pull).await;
        given_up(&fake).await;
    }
}

#[tokio::test]
async fn the_steps_of_a_pull_are_told() {
    let fake = Arc::new(Fake::default());
    let mut client = fake::own(&fake).await;
    let image = "a.example/b".into();
    let request = PullRequest {
        image,
        credentials: None,
    };
    let mut steps = client.pull(request).await.expect("a stream").into_inner();
    let mut seen = Vec::new();
    while let Some(response) = steps.message().await.expect("a good pull") {
        seen.push(match response.step.expect("a step") {
            Step::Manifest(manifest) => format!("{} of {}", manifest.reference, manifest.layers),
            Step::Layer(layer) => format!("{}/{} {:?}", layer.done, layer.total, layer.phase()),
            Step::Image(image) => image.id,
        });
    }
    assert_eq!(
        seen,
        ["a.example/b:latest of 1", "5/5 Unpacked", "sha256:ab"]
    );
}
