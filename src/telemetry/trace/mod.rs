//! Traces: each call of the CRI as a span that continues the kubelet's, and below it a span wherever a process or the
//! network is crossed, sent to an OTLP collector.
//!
//! ```text
//! traceparent ─CallLayer─▶ span of the call ─▶ spans below ─TraceLayer─▶ queue ─Exporter─▶ collector
//! ```
//!
//! What must always hold: nothing here makes a request wait. While no collector is configured, nothing of it runs.

mod call;
mod context;
mod export;
mod layer;
mod otlp;

use tokio::sync::mpsc;

pub use call::{CallLayer, answered};
pub use export::{Exporter, Exporting};
pub use layer::TraceLayer;

use crate::config::{Collector, Ratio};

/// What records spans, and what sends them.
#[must_use]
pub fn new(collector: &Collector, ratio: Ratio) -> (TraceLayer, Exporter) {
    let (sender, receiver) = mpsc::channel(export::WAITING);
    (
        TraceLayer::new(ratio, sender),
        Exporter::new(collector.clone(), receiver),
    )
}

/// Notes on the span that runs how what it is about has failed, if it has. The span must have a field `error`.
pub fn note<T, E: std::fmt::Display>(outcome: Result<T, E>) -> Result<T, E> {
    if let Err(error) = &outcome {
        tracing::Span::current().record("error", tracing::field::display(error));
    }
    outcome
}

#[cfg(test)]
mod tests;
