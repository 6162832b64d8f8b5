//! The figures as a table: the first peer, the others, and the ratios between them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::cycle::Samples;
use crate::usage::Weight;

/// The steps in the order of a pod's life.
const STEPS: [&str; 12] = [
    "pod ready",
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "stop and remove",
    "RemovePodSandbox",
    "ListPodSandbox",
    "ListContainers",
    "ListContainerStats",
    "ListPodSandboxStats",
];

#[derive(Serialize)]
pub struct Report {
    peers: Vec<String>,
    series: Vec<Series>,
    weights: BTreeMap<u32, BTreeMap<String, Weight>>,
    figures: Vec<Figure>,
}

/// One number of one peer.
#[derive(Serialize)]
struct Figure {
    what: String,
    peer: String,
    value: f64,
}

#[derive(Serialize)]
struct Series {
    title: String,
    peer: String,
    /// Whole cycles (start, exec, stop, remove) per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    cycles_per_second: Option<f64>,
    /// p50, p90, p99 in milliseconds.
    steps: BTreeMap<&'static str, [f64; 3]>,
}

impl Report {
    pub fn new(peers: Vec<String>) -> Self {
        Self {
            peers,
            series: Vec::new(),
            weights: BTreeMap::new(),
            figures: Vec::new(),
        }
    }

    pub fn series(
        &mut self,
        title: &str,
        peer: &str,
        samples: &Samples,
        cycles: Option<(u32, Duration)>,
    ) {
        self.series.push(Series {
            title: title.to_owned(),
            peer: peer.to_owned(),
            cycles_per_second: cycles
                .map(|(count, elapsed)| f64::from(count) / elapsed.as_secs_f64()),
            steps: samples
                .0
                .iter()
                .map(|(step, times)| (*step, percentiles(times)))
                .collect(),
        });
    }

    pub fn weight(&mut self, pods: u32, peer: &str, weight: &Weight) {
        self.weights
            .entry(pods)
            .or_default()
            .insert(peer.to_owned(), weight.clone());
    }

    /// A number with its unit in its name.
    pub fn figure(&mut self, what: &str, peer: &str, value: f64) {
        self.figures.push(Figure {
            what: what.to_owned(),
            peer: peer.to_owned(),
            value,
        });
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut titles: Vec<_> = self
            .series
            .iter()
            .map(|series| series.title.as_str())
            .collect();
        titles.dedup();
        for title in titles {
            let _ = writeln!(text, "\n{title} (ms)");
            let _ = writeln!(
                text,
                "{:<18} {:<12} {:>9} {:>9} {:>9} {:>9}",
                "", "", "p50", "p90", "p99", "ratio p50"
            );
            for step in STEPS {
                self.step(&mut text, title, step);
            }
            for series in self.series.iter().filter(|series| series.title == title) {
                let Some(cycles) = series.cycles_per_second else {
                    continue;
                };
                let _ = writeln!(
                    text,
                    "{:<18} {:<12} {cycles:>9.1}",
                    "cycles per second", series.peer
                );
            }
        }
        for (pods, weights) in &self.weights {
            let _ = writeln!(text, "\n{pods} pods held (kB)");
            let _ = writeln!(
                text,
                "{:<12} {:>12} {:>12} {:>14} {:>10}",
                "", "PSS in all", "PSS per pod", "kernel per pod", "processes"
            );
            for peer in &self.peers {
                if let Some(weight) = weights.get(peer) {
                    let _ = writeln!(
                        text,
                        "{peer:<12} {:>12} {:>12.1} {:>14.1} {:>10}",
                        weight.total_pss,
                        weight.pss_per_pod,
                        weight.kernel_per_pod,
                        weight.processes
                    );
                }
            }
        }
        self.figures_text(&mut text);
        text
    }

    /// The single figures; the ratio says how many times the first peer's another's is.
    fn figures_text(&self, text: &mut String) {
        let mut first: BTreeMap<&str, f64> = BTreeMap::new();
        for figure in &self.figures {
            if first.is_empty() {
                let _ = writeln!(text, "\n{:<44} {:<12} {:>9} {:>9}", "", "", "", "ratio");
            }
            let one = *first.entry(&figure.what).or_insert(figure.value);
            let ratio = if one > 0.0 {
                format!("{:.2}", figure.value / one)
            } else {
                "-".to_owned()
            };
            let _ = writeln!(
                text,
                "{:<44} {:<12} {:>9.2} {ratio:>9}",
                figure.what, figure.peer, figure.value
            );
        }
    }

    /// One step of every peer; the ratio says how many times the first peer's time it is.
    fn step(&self, text: &mut String, title: &str, step: &'static str) {
        let mut first = None;
        for series in self.series.iter().filter(|series| series.title == title) {
            let Some([p50, p90, p99]) = series.steps.get(step) else {
                continue;
            };
            let ratio = *p50 / *first.get_or_insert(*p50);
            let _ = writeln!(
                text,
                "{step:<18} {:<12} {p50:>9.2} {p90:>9.2} {p99:>9.2} {ratio:>9.1}",
                series.peer
            );
        }
    }
}

fn percentiles(times: &[Duration]) -> [f64; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| {
        let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted
            .get(index)
            .map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    [at(50), at(90), at(99)]
}
