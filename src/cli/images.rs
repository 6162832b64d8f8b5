//! `carpel images`: the images that are here.

use carpel_api::cri::{Image, ListImagesRequest, ListImagesResponse};
use clap::Args;

use super::client::Connection;
use super::output::{self, ListArgs, Screen};
use super::table::{Table, column, flexible, number};
use super::{Outcome, SUCCESS, units};

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Only images whose name contains TEXT
    #[arg(value_name = "TEXT")]
    name: Option<String>,
    /// Show the digests that they were pulled by
    #[arg(long)]
    digests: bool,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    connection: Connection,
}

impl ImagesArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let request = ListImagesRequest::default();
        let mut images = client.list_images(request).await?.images;
        images.retain(|image| self.shows(image));
        images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
        if self.list.quiet {
            output::print_ids(images.iter().map(|one| one.id.as_str()))?;
        } else if self.list.format.is_json() {
            let answer = ListImagesResponse { images };
            output::print_json(&output::message("ListImagesResponse", &answer))?;
        } else {
            let screen = Screen::detect();
            let width = screen.width.filter(|_| !self.list.no_trunc);
            let table = table(&images, self.digests, self.list.no_trunc);
            output::print(table.render(&Screen { width, ..screen }))?;
        }
        Ok(SUCCESS)
    }

    fn shows(&self, image: &Image) -> bool {
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        let text = self.name.as_ref();
        text.is_none_or(|text| names.into_iter().any(|name| name.contains(text.as_str())))
    }
}

/// A row for every name of every image.
pub fn table(images: &[Image], digests: bool, full: bool) -> Table {
    let mut columns = vec![flexible("IMAGE")];
    if digests {
        columns.push(flexible("DIGEST"));
    }
    columns.extend([column("ID"), number("SIZE")]);
    // Few are, mostly none.
    let pins = images.iter().any(|image| image.pinned);
    if pins {
        columns.push(column("PINNED"));
    }
    let mut table = Table::new(columns);
    for image in images {
        let (id, size) = (
            if full {
                &image.id
            } else {
                units::short(&image.id)
            },
            units::bytes(image.size),
        );
        let mut names = names(image);
        if names.is_empty() {
            names.push("<none>");
        }
        for name in names {
            let mut row = vec![name.into()];
            if digests {
                row.push(digest_for(image, name).into());
            }
            row.extend([id.into(), size.clone().into()]);
            if pins {
                row.push(if image.pinned { "pinned" } else { "" }.into());
            }
            table.row(row);
        }
    }
    table
}

/// What a person calls an image: its tags, and if it has none its digest references.
pub fn names(image: &Image) -> Vec<&str> {
    let names = match &image.repo_tags[..] {
        [] => &image.repo_digests[..],
        tags => tags,
    };
    names.iter().map(String::as_str).collect()
}

/// The digest of the image under the repository of `name`.
fn digest_for(image: &Image, name: &str) -> String {
    let repository = |name: &str| {
        let name = name
            .split_once('@')
            .map_or(name, |(repository, _)| repository);
        // A colon before the last slash is that of a port.
        let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
        name[..tag.unwrap_or(name.len())].to_owned()
    };
    let wanted = repository(name);
    let digests = image.repo_digests.iter();
    let pairs = digests.filter_map(|digest| digest.split_once('@'));
    let mut mine = pairs.filter(|(of, _)| *of == wanted);
    mine.next()
        .map_or_else(String::new, |(_, digest)| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_row() {
        let digest = format!("sha256:{}", "d".repeat(64));
        let images = [
            Image {
                id: format!("sha256:{}", "ab".repeat(32)),
                repo_tags: vec!["host:5000/a:1".into(), "host:5000/a:2".into()],
                repo_digests: vec![format!("host:5000/a@{digest}")],
                size: 3 << 20,
                ..Image::default()
            },
            Image {
                id: format!("sha256:{}", "cd".repeat(32)),
                ..Image::default()
            },
        ];
        let screen = Screen {
            width: None,
            colour: false,
        };
        assert_eq!(
            table(&images, false, false).render(&screen),
            "IMAGE           ID                SIZE\n\
             host:5000/a:1   abababababab   3.0 MiB\n\
             host:5000/a:2   abababababab   3.0 MiB\n\
             <none>          cdcdcdcdcdcd       0 B\n"
        );
        let text = table(&images, true, true).render(&screen);
        assert_eq!(text.matches(&digest).count(), 2, "{text}");
        assert!(text.contains(&images[0].id), "{text}");
        assert_eq!(digest_for(&images[0], &images[0].repo_digests[0]), digest);
        assert_eq!(digest_for(&images[0], "other:1"), "");
    }
}
