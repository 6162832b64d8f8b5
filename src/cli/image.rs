//! `carpel image`: the images of a running daemon, over its socket.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use carpel_api::carpel::images_client::ImagesClient;
use carpel_api::carpel::import_response::Step;
use carpel_api::carpel::{ImportRequest, ImportedImage, LayerProgress, LayerState};
use clap::{Args, Subcommand};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tonic::transport::Channel;

use crate::config::Endpoint;

/// Bytes of the archive in one message.
const CHUNK: usize = 256 << 10;

#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Import the images of an OCI layout or `docker save` archive
    Import {
        /// The archive, a tar file; "-" reads it from the standard input
        file: PathBuf,
        /// The daemon's socket
        #[arg(long, default_value_t)]
        endpoint: Endpoint,
    },
}

pub fn run(args: ImageArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ImageCommand::Import { file, endpoint } = args.command;
    let outcome = runtime.block_on(import(&file, &endpoint));
    // A read of a terminal's or pipe's standard input cannot be called off: it is left behind.
    runtime.shutdown_background();
    outcome
}

async fn import(file: &Path, endpoint: &Endpoint) -> anyhow::Result<()> {
    let archive: Box<dyn AsyncRead + Unpin + Send> = if file == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let opened = tokio::fs::File::open(file).await;
        Box::new(opened.with_context(|| file.display().to_string())?)
    };
    let client = ImagesClient::new(connect(endpoint).await?);
    let (read_error, mut failed) = tokio::sync::oneshot::channel();
    let outcome = send(client, chunks(archive, read_error)).await;
    // An archive that cannot be read to its end is the cause of whatever the daemon says about it.
    if let Ok(error) = failed.try_recv() {
        return Err(error).with_context(|| file.display().to_string());
    }
    let images = outcome.with_context(|| format!("import {}", file.display()))?;
    if images.is_empty() {
        bail!("{}: no image in this archive", file.display());
    }
    print!("{}", table(&images));
    Ok(())
}

/// Sends the archive, shows how far the daemon is, and returns what it made.
async fn send(
    mut client: ImagesClient<Channel>,
    archive: impl futures::Stream<Item = ImportRequest> + Send + 'static,
) -> anyhow::Result<Vec<ImportedImage>> {
    let mut steps = client.import(archive).await.map_err(told)?.into_inner();
    let mut progress = Progress::default();
    let mut images = Vec::new();
    while let Some(response) = steps.message().await.map_err(told)? {
        match response.step {
            Some(Step::Received(read)) => progress.show(&format!("received {}", bytes(read))),
            Some(Step::Layer(layer)) => progress.layer(&layer),
            Some(Step::Image(image)) => images.push(image),
            // Something that a newer daemon tells of.
            None => {}
        }
    }
    Ok(images)
}

/// The archive in messages. An error of reading ends the stream and goes to `failed`.
fn chunks(
    mut archive: Box<dyn AsyncRead + Unpin + Send>,
    failed: tokio::sync::oneshot::Sender<std::io::Error>,
) -> impl futures::Stream<Item = ImportRequest> + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match (&mut archive)
                .take(CHUNK as u64)
                .read_to_end(&mut chunk)
                .await
            {
                Ok(0) => break,
                Ok(_) => {
                    if sender.send(ImportRequest { chunk }).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    let _ = failed.send(error);
                    break;
                }
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

/// Connects to the daemon.
async fn connect(endpoint: &Endpoint) -> anyhow::Result<Channel> {
    let path = endpoint.path().to_owned();
    let stream = UnixStream::connect(&path)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow::anyhow!(
                    "no carpel daemon at {endpoint}; start one with `carpel serve`, or name its socket with --endpoint"
                )
            }
            ErrorKind::PermissionDenied => {
                anyhow::anyhow!("{endpoint}: permission denied; only root may use the daemon")
            }
            _ => anyhow::Error::from(error).context(endpoint.to_string()),
        })?;
    // The one connection there is: this client does one thing and ends.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| std::io::Error::from(ErrorKind::ConnectionAborted)) }
    });
    tonic::transport::Endpoint::from_static("http://carpel")
        .connect_with_connector(connector)
        .await
        .with_context(|| endpoint.to_string())
}

/// A daemon's answer as the person reads it: its message, without gRPC's wrapping.
fn told(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => {
            anyhow::anyhow!(
                "this daemon imports no images; is it carpel, and as new as this command?"
            )
        }
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled
            if status.message().is_empty() || status.message().contains("transport") =>
        {
            anyhow::anyhow!("the daemon went away; its log says why")
        }
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

/// One line on a terminal that says how far the import is.
#[derive(Default)]
struct Progress {
    shown: bool,
}

impl Progress {
    fn layer(&mut self, layer: &LayerProgress) {
        let state = match layer.state() {
            LayerState::Unpacking => "is being unpacked",
            LayerState::Unpacked => "is unpacked",
            LayerState::Shared => "is there already",
        };
        self.show(&format!("layer {} {state}", short(&layer.digest)));
    }

    fn show(&mut self, line: &str) {
        let mut out = std::io::stderr();
        if !out.is_terminal() {
            return;
        }
        let _ = write!(out, "\r\x1b[K{line}");
        let _ = out.flush();
        self.shown = true;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// The images, a line each.
fn table(images: &[ImportedImage]) -> String {
    let names: Vec<String> = images
        .iter()
        .map(|image| match image.tags.is_empty() {
            true => "<none>".to_owned(),
            false => image.tags.join(", "),
        })
        .collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max(5);
    let mut text = format!("{:<width$}  {:<12}  {:>9}\n", "IMAGE", "ID", "SIZE");
    for (name, image) in names.iter().zip(images) {
        text.push_str(&format!(
            "{name:<width$}  {:<12}  {:>9}\n",
            short(&image.id),
            bytes(image.size)
        ));
    }
    text
}

/// The first 12 digits of a digest.
fn short(digest: &str) -> &str {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    digits.get(..12).unwrap_or(digits)
}

/// A size in the unit that fits it.
fn bytes(size: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = size as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{size} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let image = |tag: &str, size| ImportedImage {
            id: format!("sha256:{}", "ab".repeat(32)),
            tags: if tag.is_empty() {
                vec![]
            } else {
                vec![tag.to_owned()]
            },
            size,
        };
        assert_eq!(
            table(&[image("localhost/busybox:1", 2_000_000), image("", 12)]),
            "IMAGE                ID                 SIZE\n\
             localhost/busybox:1  abababababab    1.9 MiB\n\
             <none>               abababababab       12 B\n"
        );
    }
}
