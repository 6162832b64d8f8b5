//! `carpel image verify` and `carpel image export`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use carpel_api::carpel::verify_response::Step;
use carpel_api::carpel::{
    ExportRequest, LayerCondition, VerifiedImage, VerifiedLayer, VerifyRequest,
};
use serde_json::json;

use super::change::{find, own};
use super::import::Progress;
use crate::cli::client::Client;
use crate::cli::output::{self, Screen};
use crate::cli::table::{Table, column, flexible};
use crate::cli::units::{bytes, short};
use crate::cli::{FAILURE, Outcome, SUCCESS};

/// Compares images with what was unpacked; status 1 if something is damaged.
///
/// # Errors
/// There is no such image; the runtime's.
pub async fn verify(client: &Client, names: &[String], set_aside: bool, json: bool) -> Outcome {
    let images = ids(client, names).await?;
    let mut carpel = client.carpel();
    let call = carpel.verify(VerifyRequest { images, set_aside });
    let mut steps = client.unbounded("Verify", call).await.map_err(own)?;
    let (mut layers, mut images) = (Vec::new(), Vec::new());
    let mut progress = Progress::default();
    loop {
        let response = steps.message().await;
        let Some(response) = response.map_err(|status| client.error("Verify", status))? else {
            break;
        };
        match response.step {
            Some(Step::Layer(layer)) => {
                progress.show(&format!("{} layers compared", layers.len() + 1));
                layers.push(layer);
            }
            Some(Step::Image(image)) => images.push(image),
            None => {}
        }
    }
    drop(progress);
    let is_damaged = |image: &VerifiedImage| image.condition() == LayerCondition::Damaged;
    let damaged = images.iter().any(is_damaged);
    if json {
        let layers = layers
            .iter()
            .map(|l| output::own_message("VerifiedLayer", l));
        let images = images
            .iter()
            .map(|i| output::own_message("VerifiedImage", i));
        let (layers, images): (Vec<_>, Vec<_>) = (layers.collect(), images.collect());
        output::print_json(&json!({ "layers": layers, "images": images }))?;
    } else {
        output::print(table(&images).render(&Screen::detect()))?;
        tell_layers(&layers);
        if damaged && !set_aside {
            let advice =
                "carpel: give --repair to set damaged images aside; they are pulled anew then";
            let _ = writeln!(std::io::stderr(), "{advice}");
        }
    }
    Ok(if damaged { FAILURE } else { SUCCESS })
}

/// Says what is wrong with which layer.
fn tell_layers(layers: &[VerifiedLayer]) {
    for layer in layers {
        if layer.condition() != LayerCondition::Sound {
            let why = output::printable_lines(&layer.why);
            let _ = writeln!(std::io::stderr(), "carpel: layer {}: {why}", layer.diff_id);
        }
    }
}

fn table(images: &[VerifiedImage]) -> Table {
    let mut table = Table::new([flexible("IMAGE"), column("ID"), column("CONTENT")]);
    for image in images {
        let condition = match (image.condition(), image.set_aside) {
            (LayerCondition::Sound, _) => "as unpacked",
            (LayerCondition::Unknown, _) => "unknown",
            (LayerCondition::Damaged, false) => "damaged",
            (LayerCondition::Damaged, true) => "damaged, set aside",
        };
        table.row([
            image.tags.first().map_or("<none>", String::as_str).into(),
            short(&image.id).into(),
            condition.into(),
        ]);
    }
    table
}

/// Writes the archive of images to a file, or to the standard output, which "-" stands for, too.
///
/// # Errors
/// There is no such image, or it cannot be exported; the file's.
pub async fn export(client: &Client, names: &[String], to: Option<&Path>) -> Outcome {
    let to = to.filter(|to| *to != Path::new("-"));
    if to.is_none() && std::io::stdout().is_terminal() {
        bail!(
            "an archive is nothing for a terminal: name a file with -o, or pass it on with a pipe"
        );
    }
    let images = ids(client, names).await?;
    let Some(path) = to else {
        receive(client, images, &mut std::io::stdout().lock()).await?;
        return Ok(SUCCESS);
    };
    // Under its own name it is there whole or not at all.
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let at = || path.display().to_string();
    let mut file = std::fs::File::create(&partial).with_context(at)?;
    let received = receive(client, images, &mut file).await;
    let ended = received.and_then(|()| std::fs::rename(&partial, path).with_context(at));
    if ended.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    ended.map(|()| SUCCESS)
}

async fn receive(client: &Client, images: Vec<String>, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut carpel = client.carpel();
    let call = carpel.export(ExportRequest { images });
    let mut pieces = client.unbounded("Export", call).await.map_err(own)?;
    let mut progress = Progress::default();
    let mut done = 0;
    loop {
        let piece = pieces.message().await;
        let Some(piece) = piece.map_err(|status| client.error("Export", status))? else {
            return Ok(out.flush()?);
        };
        out.write_all(&piece.chunk)?;
        done += piece.chunk.len() as u64;
        progress.show(&format!("received {}", bytes(done)));
    }
}

/// The ids of the images that a person means.
async fn ids(client: &Client, names: &[String]) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for name in names {
        let id = find(client, name).await?.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
