//! How far a long command is: bars on a terminal, plain lines elsewhere. Always on stderr, because the result
//! is what stdout is for.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carpel_api::carpel::{PullLayer, PullManifest, PullPhase};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::units::{bytes, short};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Whether bars are on the terminal, for [`leave_line`].
static BARS: AtomicBool = AtomicBool::new(false);

/// Ends the line that a bar may be on, for whatever comes after an interruption.
pub fn leave_line() {
    if BARS.load(Ordering::Relaxed) {
        let _ = writeln!(std::io::stderr());
    }
}

/// The progress of one image's pull.
#[derive(Debug)]
pub enum Pull {
    /// Nobody wants to see it.
    Silent,
    /// A line for each thing that is done.
    Lines {
        image: String,
        done: HashMap<String, PullPhase>,
    },
    Bars(Bars),
}

/// A spinner with a bar for each layer below it.
#[derive(Debug)]
pub struct Bars {
    all: MultiProgress,
    title: ProgressBar,
    /// By digest, in the order of the lines.
    layers: Vec<(String, ProgressBar)>,
}

impl Pull {
    pub fn begin(image: &str, quiet: bool, bars: &MultiProgress) -> Self {
        if quiet {
            return Self::Silent;
        }
        if !std::io::stderr().is_terminal() {
            say(&format!("{image}: pulling"));
            return Self::Lines {
                image: image.to_owned(),
                done: HashMap::new(),
            };
        }
        BARS.store(true, Ordering::Relaxed);
        let title = bars.add(ProgressBar::new_spinner());
        title.set_style(style("{spinner} {msg} {elapsed}"));
        title.set_message(format!("pulling {image}"));
        title.enable_steady_tick(TICK);
        Self::Bars(Bars {
            all: bars.clone(),
            title,
            layers: Vec::new(),
        })
    }

    pub fn manifest(&mut self, manifest: &PullManifest) {
        let layers = match manifest.layers {
            1 => "1 layer".to_owned(),
            n => format!("{n} layers"),
        };
        let digest = short(&manifest.digest);
        match self {
            Self::Silent => {}
            Self::Lines { image, .. } => say(&format!(
                "{image}: {} at {digest}, {layers}",
                manifest.reference
            )),
            Self::Bars(bars) => {
                let text = format!("pulling {} at {digest}, {layers}", manifest.reference);
                bars.title.set_message(text);
            }
        }
    }

    pub fn layer(&mut self, layer: &PullLayer) {
        let phase = layer.phase();
        match self {
            Self::Silent => {}
            Self::Lines { image, done } => {
                let before = done.insert(layer.digest.clone(), phase);
                // Where nothing moves, only what has changed is worth a line.
                if before != Some(phase)
                    && let Some(text) = phase_text(phase, layer.total)
                {
                    say(&format!("{image}: layer {} {text}", short(&layer.digest)));
                }
            }
            Self::Bars(bars) => bars.layer(layer, phase),
        }
    }

    /// The pull is over. The bars go, as what is there now is the result.
    pub fn end(self, error: Option<&anyhow::Error>) {
        match self {
            Self::Bars(bars) => bars.end(),
            Self::Lines { image, .. } if error.is_none() => say(&format!("{image}: pulled")),
            Self::Silent | Self::Lines { .. } => {}
        }
    }
}

impl Bars {
    fn layer(&mut self, layer: &PullLayer, phase: PullPhase) {
        let known = self
            .layers
            .iter()
            .find(|(digest, _)| *digest == layer.digest);
        let bar = match known {
            Some((_, bar)) => bar.clone(),
            None => {
                let last = self.layers.last().map_or(&self.title, |(_, bar)| bar);
                let bar = self.all.insert_after(last, ProgressBar::new(layer.total));
                bar.set_prefix(short(&layer.digest).to_owned());
                self.layers.push((layer.digest.clone(), bar.clone()));
                bar
            }
        };
        bar.set_length(layer.total);
        bar.set_position(layer.done);
        match phase {
            PullPhase::Downloading => {
                bar.set_style(style(
                    "  {prefix} [{bar:30}] {binary_bytes:>10}/{binary_total_bytes} {binary_bytes_per_sec}",
                ));
            }
            other => {
                bar.set_style(style("  {prefix} {msg}"));
                let text = phase_text(other, layer.total);
                bar.set_message(text.unwrap_or_else(|| "waiting".to_owned()));
                if matches!(other, PullPhase::Unpacked | PullPhase::Shared) {
                    bar.abandon();
                }
            }
        }
    }

    fn end(self) {
        for (_, bar) in &self.layers {
            bar.finish_and_clear();
        }
        self.title.finish_and_clear();
        BARS.store(false, Ordering::Relaxed);
    }
}

/// What became of a layer; `None` while there is nothing to say.
fn phase_text(phase: PullPhase, total: u64) -> Option<String> {
    match phase {
        PullPhase::Waiting | PullPhase::Downloading => None,
        PullPhase::Retrying => Some("is tried again".to_owned()),
        PullPhase::Unpacked => Some(format!("is unpacked ({})", bytes(total))),
        PullPhase::Shared => Some("is here already".to_owned()),
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("a template of ours is valid");
    style.progress_chars("=> ")
}

/// A line on stderr. One that nobody reads is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
