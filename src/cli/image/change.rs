//! `carpel image tag`, `rm`, `prune`, `pin` and `unpin`.

use anyhow::{Context, bail};
use carpel_api::carpel::{ImageUsage, PinRequest, PruneRequest, TagRequest};
use carpel_api::cri::{
    Image, ImageSpec, ImageStatusRequest, ListImagesRequest, RemoveImageRequest,
};

use crate::cli::client::{CHANGE, CallError, Client};
use crate::cli::images::names;
use crate::cli::output::{self, Screen};
use crate::cli::table::{Table, flexible, number};
use crate::cli::units::{bytes, short};
use crate::cli::{Outcome, SUCCESS};

/// The image that a person means.
///
/// # Errors
/// There is none, or the beginning of an id fits several.
pub(super) async fn find(client: &Client, name: &str) -> anyhow::Result<Image> {
    let image = Some(spec(name));
    let verbose = false;
    let request = ImageStatusRequest { image, verbose };
    if let Some(image) = client.image_status(request).await?.image {
        return Ok(image);
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let all = client.list_images(ListImagesRequest::default()).await?;
    let fits = |image: &&Image| {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        !hex.is_empty() && id.starts_with(hex)
    };
    let found: Vec<_> = all.images.iter().filter(fits).collect();
    match found[..] {
        [] => bail!("no image {name:?}; `carpel images` shows what is there"),
        [one] => Ok(one.clone()),
        _ => {
            let lines: Vec<_> = found
                .iter()
                .map(|image| format!("  {} {}", image.id, names(image).join(" ")))
                .collect();
            bail!(
                "{name:?} is the beginning of more than one image's id; say which:\n{}",
                lines.join("\n")
            )
        }
    }
}

fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    }
}

/// What another runtime, or an older daemon, answers.
pub(super) fn own(error: CallError) -> anyhow::Error {
    match error.is_unimplemented() {
        true => anyhow::anyhow!(
            "this runtime cannot do that; is it carpel, and as new as this command?"
        ),
        false => error.into(),
    }
}

/// Removes an image, or one of its names.
///
/// # Errors
/// There is none, or it is pinned and not `force`d.
pub async fn remove(client: &Client, name: &str, force: bool) -> anyhow::Result<()> {
    // The call itself takes an absent image for a removed one, which would hide a slip of the pen.
    let found = find(client, name).await?;
    if found.pinned && !force {
        bail!("image {name} is pinned; `carpel image unpin {name}` first, or give --force");
    }
    // What was found by the beginning of its id is removed by its id.
    let by_name = names(&found).contains(&name) || !found.id.contains(name);
    let image = Some(spec(if by_name { name } else { &found.id }));
    let removed = client.remove_image(RemoveImageRequest { image }).await;
    removed
        .map(drop)
        .with_context(|| format!("remove image {name}"))
}

/// Says whether an image stays when unused ones go.
///
/// # Errors
/// There is none; the configuration pins it.
pub async fn pin(client: &Client, name: &str, pinned: bool) -> anyhow::Result<()> {
    let image = find(client, name).await?.id;
    let mut carpel = client.carpel();
    let call = carpel.pin(PinRequest { image, pinned });
    let done = client.within("Pin", CHANGE, call).await;
    done.map(drop).map_err(own)
}

/// Gives an image more names.
///
/// # Errors
/// There is no such image; a name is none.
pub async fn tag(client: &Client, name: &str, tags: Vec<String>, json: bool) -> Outcome {
    let image = find(client, name).await?.id;
    let mut carpel = client.carpel();
    let call = carpel.tag(TagRequest { image, tags });
    let answer = client.within("Tag", CHANGE, call).await.map_err(own)?;
    let image = answer.image.unwrap_or_default();
    if json {
        output::print_json(&output::own_message("ImageUsage", &image))?;
    } else {
        let lines = image.tags.iter().map(|tag| format!("{tag}\n"));
        output::print(lines.collect::<String>())?;
    }
    Ok(SUCCESS)
}

/// Removes what nobody uses, or shows what that would be.
///
/// # Errors
/// The runtime's.
pub async fn prune(client: &Client, dry_run: bool, untagged: bool, json: bool) -> Outcome {
    let mut carpel = client.carpel();
    let call = carpel.prune(PruneRequest { dry_run, untagged });
    let answer = client.within("Prune", CHANGE, call).await.map_err(own)?;
    if json {
        output::print_json(&output::own_message("PruneResponse", &answer))?;
        return Ok(SUCCESS);
    }
    let mut text = String::new();
    if !answer.images.is_empty() {
        text = table(&answer.images).render(&Screen::detect());
        text.push('\n');
    }
    let (count, freed) = (answer.images.len(), bytes(answer.freed));
    let images = if count == 1 { "image" } else { "images" };
    text.push_str(&match dry_run {
        true => format!("{count} {images} would be removed, {freed} freed\n"),
        false => format!("{count} {images} removed, {freed} freed\n"),
    });
    output::print(text)?;
    Ok(SUCCESS)
}

fn table(images: &[ImageUsage]) -> Table {
    let mut table = Table::new([flexible("IMAGE"), flexible("ID"), number("SIZE")]);
    for image in images {
        let name = image.tags.first().or(image.digests.first());
        table.row([
            name.map_or("<none>", String::as_str).into(),
            short(&image.id).into(),
            bytes(image.size).into(),
        ]);
    }
    table
}
