//! `carpel image`: the images of a running daemon, over its socket.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use carpel_api::carpel::import_response::Step;
use carpel_api::carpel::{ImportRequest, ImportedImage, LayerProgress, LayerState};
use carpel_api::cri::{Image, ImageSpec, ImageStatusRequest, RemoveImageRequest};
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::client::{Client, Connection};
use super::output::{self, FormatArgs, Screen};
use super::stop::{each, report};
use super::units::{bytes, short};
use super::{Outcome, SUCCESS, images};

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
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove images, with all their names
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
}

impl ImageArgs {
    pub async fn run(self) -> Outcome {
        match self.command {
            ImageCommand::Import {
                file,
                format,
                connection,
            } => import(&file, &format, &connection).await,
            ImageCommand::Rm {
                images,
                format,
                connection,
            } => {
                let client = connection.connect().await?;
                let removed = each(images, async |name| remove(&client, name).await).await;
                report("removed", removed, format.is_json())
            }
        }
    }
}

async fn remove(client: &Client, name: &str) -> anyhow::Result<()> {
    let image = Some(ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    });
    let request = ImageStatusRequest {
        image: image.clone(),
        verbose: false,
    };
    // The call itself takes an absent image for a removed one, which would hide a slip of the pen.
    if client.image_status(request).await?.image.is_none() {
        bail!("no image {name:?}; `carpel images` shows what is there");
    }
    let removed = client.remove_image(RemoveImageRequest { image }).await;
    removed
        .map(drop)
        .with_context(|| format!("remove image {name}"))
}

async fn import(file: &Path, format: &FormatArgs, connection: &Connection) -> Outcome {
    let archive: Box<dyn AsyncRead + Unpin + Send> = if file == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        let opened = tokio::fs::File::open(file).await;
        Box::new(opened.with_context(|| file.display().to_string())?)
    };
    let client = connection.connect().await?;
    let (read_error, mut failed) = tokio::sync::oneshot::channel();
    let outcome = send(&client, chunks(archive, read_error)).await;
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
