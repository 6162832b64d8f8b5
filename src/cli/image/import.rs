//! `carpel image import`: an archive, sent to the daemon, and how far that is.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, bail};
use carpel_api::carpel::import_response::Step;
use carpel_api::carpel::{ImportRequest, ImportedImage, LayerProgress, LayerState};
use carpel_api::cri::Image;
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::cli::client::{Client, Connection};
use crate::cli::output::{self, FormatArgs, Screen};
use crate::cli::units::{bytes, short};
use crate::cli::{Outcome, SUCCESS, images};

/// Bytes of the archive in one message.
const CHUNK: usize = 256 << 10;

/// What of an archive is imported.
#[derive(Debug, Args)]
pub struct PlatformArgs {
    /// Import the images for another platform than this machine's. The machine will not run them by itself
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Import the images of all platforms, to be exported again or run by emulation. Each is unpacked. The names stand for
    /// those of this machine; the others are known by the digests of their manifests and their ids
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
}

/// Imports the images of an archive.
///
/// # Errors
/// What is wrong with it, in the daemon's words; that it cannot be read.
pub async fn import(
    file: &Path,
    platforms: PlatformArgs,
    format: &FormatArgs,
    connection: &Connection,
) -> Outcome {
    let first = ImportRequest {
        platform: platforms.platform.unwrap_or_default(),
        all_platforms: platforms.all_platforms,
        ..ImportRequest::default()
    };
    let archive: Box<dyn AsyncRead + Unpin + Send> = if file == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let opened = tokio::fs::File::open(file).await;
        Box::new(opened.with_context(|| file.display().to_string())?)
    };
    let client = connection.connect().await?;
    let (read_error, mut failed) = tokio::sync::oneshot::channel();
    let outcome = send(&client, chunks(first, archive, read_error)).await;
    // An archive that cannot be read to its end is the cause of whatever the daemon says about it.
    if let Ok(error) = failed.try_recv() {
        return Err(error).with_context(|| file.display().to_string());
    }
    let imported = outcome.with_context(|| format!("import {}", file.display()))?;
    if imported.is_empty() {
        bail!("{}: no image in this archive", file.display());
    }
    let imported: Vec<_> = imported.into_iter().map(listed).collect();
    if format.is_json() {
        let images: Vec<_> = imported
            .iter()
            .map(|i| output::message("Image", i))
            .collect();
        output::print_json(&json!({ "images": images }))?;
    } else {
        output::print(images::table(&imported, false, false).render(&Screen::detect()))?;
    }
    Ok(SUCCESS)
}

/// An imported image as lists have it.
fn listed(image: ImportedImage) -> Image {
    Image {
        id: image.id,
        repo_tags: image.tags,
        size: image.size,
        ..Image::default()
    }
}

/// Sends the archive, shows how far the daemon is, and returns what it made.
async fn send(
    client: &Client,
    archive: impl futures::Stream<Item = ImportRequest> + Send + 'static,
) -> anyhow::Result<Vec<ImportedImage>> {
    let mut carpel = client.carpel();
    let steps = client.unbounded("Import", carpel.import(archive)).await;
    let mut steps = steps.map_err(|error| match error.is_unimplemented() {
        true => anyhow::anyhow!(
            "this daemon imports no images; is it carpel, and as new as this command?"
        ),
        false => error.into(),
    })?;
    let mut progress = Progress::default();
    let mut images = Vec::new();
    loop {
        let response = steps.message().await;
        let Some(response) = response.map_err(|status| client.error("Import", status))? else {
            return Ok(images);
        };
        match response.step {
            Some(Step::Received(read)) => progress.show(&format!("received {}", bytes(read))),
            Some(Step::Layer(layer)) => progress.layer(&layer),
            Some(Step::Image(image)) => images.push(image),
            // Something that a newer daemon tells of.
            None => {}
        }
    }
}

/// The archive in messages, after a first one. An error of reading ends the stream and goes to `failed`.
fn chunks(
    first: ImportRequest,
    mut archive: Box<dyn AsyncRead + Unpin + Send>,
    failed: tokio::sync::oneshot::Sender<std::io::Error>,
) -> impl futures::Stream<Item = ImportRequest> + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        if sender.send(first).await.is_err() {
            return;
        }
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match (&mut archive)
                .take(CHUNK as u64)
                .read_to_end(&mut chunk)
                .await
            {
                Ok(0) => break,
                Ok(_) => {
                    let request = ImportRequest {
                        chunk,
                        ..ImportRequest::default()
                    };
                    if sender.send(request).await.is_err() {
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

/// One line on a terminal that says how far the import is.
#[derive(Default)]
pub(super) struct Progress {
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

    pub(super) fn show(&mut self, line: &str) {
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
