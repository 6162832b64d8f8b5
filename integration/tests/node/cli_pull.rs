//! `carpel pull`: its progress, from a daemon that says just what the test wants.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use carpel_integration::api::carpel::images_server::{Images, ImagesServer};
use carpel_integration::api::carpel::pull_response::Step;
use carpel_integration::api::carpel::{
    ExportRequest, ExportResponse, ImportRequest, ImportResponse, PinRequest, PinResponse,
    PruneRequest, PruneResponse, PullLayer, PullManifest, PullPhase, PullRequest, PullResponse,
    PulledImage, TagRequest, TagResponse, UsageRequest, UsageResponse, VerifyRequest,
    VerifyResponse,
};
use carpel_integration::cli::{Running, Said, carpel};
use futures::Stream;
use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

type Steps<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A daemon that tells of a pull of two layers; of "broken" it tells an error in the middle.
struct Scripted;

#[tonic::async_trait]
impl Images for Scripted {
    type ImportStream = Steps<ImportResponse>;
    type PullStream = Steps<PullResponse>;
    type ExportStream = Steps<ExportResponse>;
    type VerifyStream = Steps<VerifyResponse>;

    async fn import(
        &self,
        _: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let name = request
            .credentials
            .map_or(request.image, |c| format!("{}:{}", c.username, c.password));
        let steps = tokio_stream::iter(steps(&name)).throttle(Duration::from_millis(30));
        Ok(Response::new(Box::pin(steps)))
    }

    async fn export(
        &self,
        _: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn verify(
        &self,
        _: Request<VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn tag(&self, _: Request<TagRequest>) -> Result<Response<TagResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn pin(&self, _: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<PruneResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn layer(digit: &str, phase: PullPhase, done: u64) -> Step {
    Step::Layer(PullLayer {
        digest: format!("sha256:{}", digit.repeat(64)),
        phase: phase.into(),
        done,
        total: 4 << 20,
    })
}

fn steps(name: &str) -> Vec<Result<PullResponse, Status>> {
    let mut steps = vec![
        Ok(Step::Manifest(PullManifest {
            reference: "localhost/app:1".into(),
            digest: format!("sha256:{}", "d".repeat(64)),
            layers: 2,
        })),
        Ok(layer("a", PullPhase::Waiting, 0)),
        Ok(layer("b", PullPhase::Shared, 0)),
    ];
    for part in 1..10 {
        steps.push(Ok(layer("a", PullPhase::Downloading, part << 18)));
    }
    steps.push(Ok(layer("a", PullPhase::Retrying, 0)));
    if name.contains("broken") {
        steps.push(Err(Status::unavailable(
            "registry localhost: connection reset",
        )));
    } else {
        steps.push(Ok(layer("a", PullPhase::Unpacked, 4 << 20)));
        steps.push(Ok(Step::Image(PulledImage {
            id: format!("sha256:{}", "c".repeat(64)),
            tags: vec![name.to_owned()],
            digests: vec![],
            size: 9 << 20,
        })));
    }
    let response = |step: Result<Step, Status>| step.map(|step| PullResponse { step: Some(step) });
    steps.into_iter().map(response).collect()
}

/// Serves the script at a socket in `dir`; its endpoint.
fn serve(dir: &Path) -> String {
    let path: PathBuf = dir.join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(ImagesServer::new(Scripted))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::spawn(server);
    format!("unix://{}", path.display())
}

async fn said(command: std::process::Command) -> Said {
    tokio::task::spawn_blocking(|| Said::by(command))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_progress_is_plain_lines() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = serve(dir.path());
    let done = said(carpel(&endpoint, &["pull", "app"])).await;
    assert_eq!(
        done.stderr,
        "app: pulling\n\
         app: localhost/app:1 at dddddddddddd, 2 layers\n\
         app: layer bbbbbbbbbbbb is here already\n\
         app: layer aaaaaaaaaaaa is tried again\n\
         app: layer aaaaaaaaaaaa is unpacked (4.0 MiB)\n\
         app: pulled\n"
    );
    assert_eq!(
        done.stdout,
        "IMAGE   ID                SIZE\napp     cccccccccccc   9.0 MiB\n"
    );
    let quiet = said(carpel(&endpoint, &["pull", "-q", "app"])).await;
    assert_eq!(
        (quiet.stderr.as_str(), quiet.stdout),
        ("", format!("sha256:{}\n", "c".repeat(64)))
    );
    let json = said(carpel(&endpoint, &["pull", "-q", "-o", "json", "app"])).await;
    assert_eq!(json.status, 0);
    said(carpel(&endpoint, &["pull", "broken"]))
        .await
        .failed(1, "pull broken: registry localhost: connection reset");
    // One of several.
    let both = said(carpel(&endpoint, &["pull", "-q", "broken", "app"])).await;
    assert_eq!(both.stdout.lines().count(), 1);
    both.failed(1, "broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_there_are_bars_and_then_the_result_alone() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = serve(dir.path());
    let mut running = Running::on_terminal(&carpel(&endpoint, &["pull", "app"]), 100);
    assert_eq!(running.end(), 0);
    running.wait_for("9.0 MiB");
    let text = running.text();
    for part in [
        "pulling localhost/app:1",
        "aaaaaaaaaaaa [",
        "=>",
        "/4.00 MiB",
        "is here already",
    ] {
        assert!(text.contains(part), "{part}: {text:?}");
    }
    // The bars are gone from what stays on the screen.
    let last = text.rsplit("IMAGE").next().unwrap();
    assert!(!last.contains("aaaaaaaaaaaa ["), "{last:?}");

    let mut running = Running::on_terminal(&carpel(&endpoint, &["pull", "app"]), 100);
    running.wait_for("aaaaaaaaaaaa [");
    running.press("\u{3}");
    assert_eq!(running.end(), 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_a_pipe_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = serve(dir.path());
    let file = dir.path().join("config.json");
    std::fs::write(
        &file,
        r#"{"auths":{"localhost:5000":{"username":"ann","password":"pw"}}}"#,
    )
    .unwrap();
    let file = file.display().to_string();
    let json = said(carpel(
        &endpoint,
        &[
            "pull",
            "--authfile",
            &file,
            "-o",
            "json",
            "localhost:5000/x",
        ],
    ))
    .await;
    assert_eq!(json.json()["images"][0]["repoTags"][0], "ann:pw");
    // Another registry does not see them.
    let json = said(carpel(
        &endpoint,
        &[
            "pull",
            "--authfile",
            &file,
            "-o",
            "json",
            "localhost:5001/x",
        ],
    ))
    .await;
    assert_eq!(json.json()["images"][0]["repoTags"][0], "localhost:5001/x");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "se:cret\n").unwrap();
    let mut command = carpel(
        &endpoint,
        &[
            "pull",
            "--username",
            "bob",
            "--password-stdin",
            "-o",
            "json",
            "x",
        ],
    );
    command.stdin(std::fs::File::open(&secret).unwrap());
    assert_eq!(
        said(command).await.json()["images"][0]["repoTags"][0],
        "bob:se:cret"
    );
    said(carpel(&endpoint, &["pull", "--username", "bob", "x"]))
        .await
        .failed(2, "--password-stdin");
    said(carpel(
        &endpoint,
        &["pull", "--authfile", "/nonexistent", "x"],
    ))
    .await
    .failed(1, "/nonexistent");
}
