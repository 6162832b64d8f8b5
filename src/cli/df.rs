//! `carpel df`: the disk space that images and containers take, and what is left.

use std::collections::HashSet;
use std::path::Path;

use carpel_api::carpel::{ImageUsage, UsageRequest, UsageResponse};
use carpel_api::cri::{
    ContainerStats, FilesystemUsage, Image, ImageFsInfoRequest, ImageFsInfoResponse,
    ListContainerStatsRequest, ListImagesRequest,
};
use clap::Args;
use serde_json::json;

use super::client::{Client, Connection, QUERY};
use super::output::{self, FormatArgs, Screen};
use super::resolve::Catalogue;
use super::table::{Table, column, flexible, number};
use super::{Outcome, SUCCESS, units};

#[derive(Debug, Args)]
pub struct DfArgs {
    /// Show each image and container
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl DfArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let (usage, images, all) = tokio::try_join!(
            client.image_fs_info(ImageFsInfoRequest {}),
            client.list_images(ListImagesRequest::default()),
            Catalogue::fetch(&client),
        )?;
        // A runtime without figures still has images.
        let request = ListContainerStatsRequest::default();
        let stats = match client.list_container_stats(request).await {
            Ok(answer) => answer.stats,
            Err(error) if error.is_unimplemented() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let uses = uses(&client).await?;
        let disk = Disk {
            uses,
            usage,
            images: images.images,
            stats,
            all,
        };
        if self.format.is_json() {
            output::print_json(&disk.json())?;
        } else {
            output::print(disk.text(self.verbose, &Screen::detect()))?;
        }
        Ok(SUCCESS)
    }
}

/// What carpel's daemon says of who uses what; another runtime does not.
async fn uses(client: &Client) -> anyhow::Result<Option<UsageResponse>> {
    let mut carpel = client.carpel();
    let call = carpel.usage(UsageRequest {});
    match client.within("Usage", QUERY, call).await {
        Ok(uses) => Ok(Some(uses)),
        Err(error) if error.is_unimplemented() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What the runtime answered.
struct Disk {
    uses: Option<UsageResponse>,
    usage: ImageFsInfoResponse,
    images: Vec<Image>,
    stats: Vec<ContainerStats>,
    all: Catalogue,
}

impl Disk {
    fn json(&self) -> serde_json::Value {
        let mut value = output::message("ImageFsInfoResponse", &self.usage);
        let images = self
            .images
            .iter()
            .map(|image| output::message("Image", image));
        value["images"] = images.collect();
        let containers = self.stats.iter().map(|stats| {
            json!({
                "id": stats.attributes.as_ref().map_or("", |attributes| &attributes.id),
                "writableLayer": stats
                    .writable_layer
                    .as_ref()
                    .map(|layer| output::message("FilesystemUsage", layer)),
            })
        });
        value["containers"] = containers.collect();
        if let Some(uses) = &self.uses {
            value["imageUses"] = output::own_message("UsageResponse", uses);
        }
        value
    }

    fn text(&self, verbose: bool, screen: &Screen) -> String {
        let used = self.used();
        let is_used = |image: &&Image| used.contains(image.id.as_str());
        let images: u64 = self.usage.image_filesystems.iter().map(bytes).sum();
        let unused = self.images.iter().filter(|image| !is_used(image));
        let reclaimable: u64 = unused.map(|image| image.size).sum();
        let layers: u64 = self
            .stats
            .iter()
            .filter_map(|s| s.writable_layer.as_ref())
            .map(bytes)
            .sum();
        let running = self
            .all
            .containers
            .iter()
            .filter(|c| super::stop::runs(c))
            .count();
        let mut table = Table::new([
            column(""),
            number("COUNT"),
            number("IN USE"),
            number("SIZE"),
            number("UNUSED"),
        ]);
        table.row([
            "images".into(),
            self.images.len().to_string().into(),
            self.images
                .iter()
                .filter(is_used)
                .count()
                .to_string()
                .into(),
            units::bytes(images).into(),
            match &self.uses {
                Some(uses) => units::bytes(uses.reclaimable).into(),
                // Layers that images share make this an upper bound; it is never more than all there is.
                None => units::bytes(reclaimable.min(images)).into(),
            },
        ]);
        table.row([
            "containers".into(),
            self.all.containers.len().to_string().into(),
            running.to_string().into(),
            units::bytes(layers).into(),
            "".into(),
        ]);
        let mut text = table.render(screen);
        text.push('\n');
        text.push_str(&self.file_systems().render(screen));
        if verbose {
            text.push('\n');
            let images = match &self.uses {
                Some(uses) => self.images_and_users(&uses.images),
                None => super::images::table(&self.images, false, false),
            };
            text.push_str(&images.render(screen));
            text.push('\n');
            text.push_str(&self.containers().render(screen));
        }
        text
    }

    /// The ids of the images that containers are made from.
    fn used(&self) -> HashSet<&str> {
        let containers = self.all.containers.iter();
        let mut used: HashSet<_> = containers
            .flat_map(|container| [container.image_id.as_str(), container.image_ref.as_str()])
            .collect();
        // The CRI does not tell of images that are mounted.
        let uses = self.uses.iter().flat_map(|uses| &uses.images);
        let mounted = uses.filter(|image| !image.containers.is_empty());
        used.extend(mounted.map(|image| image.id.as_str()));
        used
    }

    /// A row for every image.
    fn images_and_users(&self, images: &[ImageUsage]) -> Table {
        let mut table = Table::new([
            flexible("IMAGE"),
            column("ID"),
            number("SIZE"),
            number("ITS OWN"),
            flexible("USED BY"),
        ]);
        for image in images {
            let name = image.tags.first().or(image.digests.first());
            let mut users: Vec<String> = image.containers.iter().map(|id| self.user(id)).collect();
            users.sort();
            if users.is_empty() && image.pinned {
                users.push("(pinned)".to_owned());
            }
            table.row([
                name.map_or("<none>", String::as_str).into(),
                units::short(&image.id).into(),
                units::bytes(image.size).into(),
                units::bytes(image.unshared).into(),
                users.join(" ").into(),
            ]);
        }
        table
    }

    /// What a person calls a container.
    fn user(&self, id: &str) -> String {
        let mut containers = self.all.containers.iter();
        let known = containers.find(|container| container.id == id);
        known.map_or_else(
            || units::short(id).to_owned(),
            |container| self.all.container_path(container),
        )
    }

    fn file_systems(&self) -> Table {
        let mut table = Table::new([
            flexible("FOLDER"),
            column("HOLDS"),
            number("SIZE"),
            number("FREE"),
            number("USED"),
            number("INODES"),
        ]);
        let of_images = self.usage.image_filesystems.iter().map(|fs| (fs, "images"));
        let others = self
            .usage
            .container_filesystems
            .iter()
            .map(|fs| (fs, "containers"));
        // What holds both has one line.
        let mut folders: Vec<(String, String)> = Vec::new();
        for (usage, what) in of_images.chain(others) {
            let folder = usage.fs_id.clone().unwrap_or_default().mountpoint;
            match folders.iter_mut().find(|(known, _)| *known == folder) {
                Some((_, holds)) => holds.push_str(&format!(", {what}")),
                None => folders.push((folder, what.to_owned())),
            }
        }
        for (folder, what) in folders {
            let space = Space::of(Path::new(&folder));
            let text =
                |figure: fn(&Space) -> String| space.as_ref().map(figure).unwrap_or_default();
            table.row([
                folder.into(),
                what.into(),
                text(|space| units::bytes(space.size)).into(),
                text(|space| units::bytes(space.free)).into(),
                text(|space| percent(space.size - space.free.min(space.size), space.size)).into(),
                text(|space| {
                    percent(
                        space.inodes - space.inodes_free.min(space.inodes),
                        space.inodes,
                    )
                })
                .into(),
            ]);
        }
        table
    }

    fn containers(&self) -> Table {
        let mut table = Table::new([
            column("CONTAINER"),
            flexible("NAME"),
            number("WRITTEN"),
            number("FILES"),
        ]);
        for container in &self.all.containers {
            let mine = |stats: &&ContainerStats| {
                stats
                    .attributes
                    .as_ref()
                    .is_some_and(|a| a.id == container.id)
            };
            let layer = self
                .stats
                .iter()
                .find(mine)
                .and_then(|s| s.writable_layer.as_ref());
            let inodes = layer.and_then(|layer| layer.inodes_used);
            table.row([
                units::short(&container.id).into(),
                self.all.container_path(container).into(),
                layer
                    .map(|layer| units::bytes(bytes(layer)))
                    .unwrap_or_default()
                    .into(),
                inodes
                    .map(|inodes| inodes.value.to_string())
                    .unwrap_or_default()
                    .into(),
            ]);
        }
        table
    }
}

fn bytes(usage: &FilesystemUsage) -> u64 {
    usage.used_bytes.map_or(0, |bytes| bytes.value)
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        // btrfs and the like have no number of inodes.
        0 => String::new(),
        _ => format!("{}%", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// A file system's room, in bytes and inodes. What is free is free for root.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    pub size: u64,
    pub free: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Space {
    /// That of the file system that `folder` is on; `None` if it is not there.
    pub fn of(folder: &Path) -> Option<Self> {
        let stat = rustix::fs::statvfs(folder).ok()?;
        Some(Self {
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bfree.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }
}

#[cfg(test)]
mod tests {
    use carpel_api::cri::{Container, FilesystemIdentifier, UInt64Value};

    use super::*;

    #[test]
    fn what_nobody_uses_could_go() {
        let image = |id: &str, size| Image {
            id: id.into(),
            size,
            ..Image::default()
        };
        let disk = Disk {
            uses: None,
            usage: ImageFsInfoResponse {
                image_filesystems: vec![FilesystemUsage {
                    fs_id: Some(FilesystemIdentifier {
                        mountpoint: "/".into(),
                    }),
                    used_bytes: Some(UInt64Value { value: 5 << 20 }),
                    ..FilesystemUsage::default()
                }],
                container_filesystems: vec![],
            },
            images: vec![image("a", 3 << 20), image("b", 2 << 20)],
            stats: vec![],
            all: Catalogue {
                pods: vec![],
                containers: vec![Container {
                    image_id: "a".into(),
                    ..Container::default()
                }],
            },
        };
        let screen = Screen {
            width: None,
            colour: false,
        };
        let text = disk.text(true, &screen);
        let images: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(images, ["images", "2", "1", "5.0", "MiB", "2.0", "MiB"]);
        let image = |id: &str, containers: &[&str]| ImageUsage {
            id: id.into(),
            tags: vec![format!("x/{id}:1")],
            size: 3 << 20,
            unshared: 1 << 20,
            containers: containers.iter().map(|&id| id.into()).collect(),
            ..ImageUsage::default()
        };
        // What carpel says goes before what can be guessed.
        let disk = Disk {
            uses: Some(UsageResponse {
                images: vec![image("a", &[""]), image("b", &["0123456789abcdef"])],
                reclaimable: 1 << 20,
            }),
            ..disk
        };
        let text = disk.text(true, &screen);
        let images: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(images, ["images", "2", "2", "5.0", "MiB", "1.0", "MiB"]);
        let line = text.lines().find(|line| line.starts_with("x/b:1")).unwrap();
        assert!(line.ends_with("0123456789ab"), "{text}");
        assert_eq!(disk.json()["imageUses"]["images"][1]["id"], "b");
        assert!(disk.json()["imageFilesystems"].is_array());
        assert_eq!(percent(1, 0), "");
        assert_eq!(percent(u64::MAX, u64::MAX), "100%");
    }
}
