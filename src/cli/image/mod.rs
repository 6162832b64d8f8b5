//! `carpel image`: the images of a running daemon, over its socket.

mod change;
mod import;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::client::Connection;
use super::images::ImagesArgs;
use super::inspect::{ImageInspectArgs, InspectArgs};
use super::output::FormatArgs;
use super::pull::PullArgs;
use super::{Outcome, stop};

#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List images: the same as `carpel images`
    Ls(ImagesArgs),
    /// Show images in full
    Inspect(ImageInspectArgs),
    /// Pull images from their registries: the same as `carpel pull`
    Pull(PullArgs),
    /// Import the images of an OCI layout or `docker save` archive
    Import {
        /// The archive, a tar file; "-" reads it from the standard input
        file: PathBuf,
        #[command(flatten)]
        platforms: import::PlatformArgs,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Write images to the archive of an OCI layout. Their ids and layers stay the same, bit for bit; the layers are not packed, so
    /// the digests of the manifests are others than the registry's
    Export {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// The file to write to [default: the standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Compare every byte of images' files with what was unpacked; status 1 if something is damaged
    Verify {
        /// Names or ids [default: all images]
        #[arg(value_name = "IMAGE")]
        images: Vec<String>,
        /// Set damaged layers aside, with the images that have them, so that the next pull brings them anew
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Give an image more names
    Tag {
        /// Name or id
        image: String,
        /// Names with a tag; a tag that another image has moves
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove images: by a name that name only, and the image with its last; by id the image with all its names
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Remove pinned images, too
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove every image that no container uses, stopped ones and image volumes included; pinned images stay
    Prune {
        /// Show what would be removed, and remove nothing
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Only images that have no tag, such as those whose tag has moved on
        #[arg(long)]
        untagged: bool,
        #[command(flatten)]
        format: FormatArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Keep images when unused ones are removed, by the kubelet or by `carpel image prune`
    Pin(PinArgs),
    /// Let images go again when nothing uses them
    Unpin(PinArgs),
}

#[derive(Debug, Args)]
struct PinArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl ImageArgs {
    pub async fn run(self) -> Outcome {
        match self.command {
            ImageCommand::Ls(args) => args.run().await,
            ImageCommand::Inspect(args) => InspectArgs::from(args).run().await,
            ImageCommand::Pull(args) => args.run().await,
            ImageCommand::Import {
                file,
                platforms,
                format,
                connection,
            } => import::import(&file, platforms, &format, &connection).await,
            ImageCommand::Export {
                images,
                output,
                connection,
            } => {
                let client = connection.connect().await?;
                verify::export(&client, &images, output.as_deref()).await
            }
            ImageCommand::Verify {
                images,
                repair,
                format,
                connection,
            } => {
                let client = connection.connect().await?;
                verify::verify(&client, &images, repair, format.is_json()).await
            }
            ImageCommand::Tag {
                image,
                names,
                format,
                connection,
            } => {
                let client = connection.connect().await?;
                change::tag(&client, &image, names, format.is_json()).await
            }
            ImageCommand::Rm {
                images,
                force,
                format,
                connection,
            } => {
                let client = connection.connect().await?;
                let remove = async |name: &str| change::remove(&client, name, force).await;
                let removed = stop::each(images, remove).await;
                stop::report("removed", removed, format.is_json())
            }
            ImageCommand::Prune {
                dry_run,
                untagged,
                format,
                connection,
            } => {
                let client = connection.connect().await?;
                change::prune(&client, dry_run, untagged, format.is_json()).await
            }
            ImageCommand::Pin(args) => args.run(true).await,
            ImageCommand::Unpin(args) => args.run(false).await,
        }
    }
}

impl PinArgs {
    async fn run(self, pinned: bool) -> Outcome {
        let client = self.connection.connect().await?;
        let pin = async |name: &str| change::pin(&client, name, pinned).await;
        let done = stop::each(self.images, pin).await;
        let verb = if pinned { "pinned" } else { "unpinned" };
        stop::report(verb, done, self.format.is_json())
    }
}
