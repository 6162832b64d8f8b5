//! What the daemon tells about itself: its log, lines on stderr, and [`trace`]s, one subscriber for both.
//!
//! Under systemd stderr is the journal, so there is no log file and no rotation of its own.

pub mod trace;

use std::io::IsTerminal;

use tracing_subscriber::filter::{FilterFn, LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;

use crate::config::{Log, LogFormat, LogLevel, Telemetry};
use trace::{Exporter, TraceLayer};

/// Starts logging and, if somebody is to be sent them, recording traces. A second call changes nothing.
pub fn init(log: &Log, telemetry: &Telemetry) -> Option<Exporter> {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // The libraries' own chatter (HTTP/2 frames and the like) says nothing about a pod.
    let ours = Targets::new()
        .with_target("carpel", level)
        .with_default(level.min(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE);
    let lines = match log.format {
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
        LogFormat::Text => lines
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .boxed(),
    };
    let (traces, exporter) = telemetry
        .traces
        .as_ref()
        .map(|collector| trace::new(collector, telemetry.sampling_ratio))
        .unzip();
    let wanted = FilterFn::new(TraceLayer::wants).with_max_level_hint(LevelFilter::DEBUG);
    let started = tracing_subscriber::registry()
        .with(lines.with_filter(ours))
        .with(traces.map(|layer: TraceLayer| layer.with_filter(wanted)))
        .try_init();
    // Refused only when a subscriber is there already, and that one then serves.
    started.ok();
    exporter
}
