//! The daemon's own figures, for Prometheus.
//!
//! They are counted in one place for the whole process, with atomics and at no other cost, and written out
//! when somebody asks. Nobody is asked unless `telemetry.metrics` names an address.

mod rpc;
mod server;

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use rpc::RpcLayer;
pub use server::{Server, serve};

use crate::container::Status;
use crate::node::Node;

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    method: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plugin {
    plugin: String,
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// A family of histograms of durations.
type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

struct Metrics {
    rpcs: Durations<Rpc>,
    plugins: Durations<Plugin>,
    pulls: Durations<Outcome>,
    pulled_bytes: Counter,
    dropped_lines: Counter,
    spans_exported: Counter,
    spans_dropped: Counter,
    sandboxes: Family<State, Gauge>,
    containers: Family<State, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            // 0.25 ms to 8 s; a stop may take longer.
            rpcs: durations(|| Histogram::new(exponential_buckets(0.000_25, 2.0, 16))),
            // 0.5 ms to 16 s.
            plugins: durations(|| Histogram::new(exponential_buckets(0.000_5, 2.0, 16))),
            // 50 ms to 14 min.
            pulls: durations(|| Histogram::new(exponential_buckets(0.05, 2.0, 15))),
            pulled_bytes: Counter::default(),
            dropped_lines: Counter::default(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
            sandboxes: Family::default(),
            containers: Family::default(),
        }
    }
}

fn durations<L>(histogram: fn() -> Histogram) -> Durations<L>
where
    L: Clone + std::hash::Hash + Eq,
{
    Family::new_with_constructor(histogram)
}

fn outcome(good: bool) -> &'static str {
    if good { "success" } else { "failure" }
}

// ── what is counted ──

fn rpc(method: String, code: String, time: Duration) {
    let histogram = METRICS.rpcs.get_or_create(&Rpc { method, code });
    histogram.observe(time.as_secs_f64());
}

/// A CNI plugin has run.
pub fn plugin_run(plugin: &str, verb: &'static str, time: Duration, good: bool) {
    let labels = Plugin {
        plugin: plugin.to_owned(),
        verb,
        outcome: outcome(good),
    };
    let histogram = METRICS.plugins.get_or_create(&labels);
    histogram.observe(time.as_secs_f64());
}

/// How a pull ended.
#[derive(Debug, Clone, Copy)]
pub enum PullOutcome {
    Success,
    Failure,
    /// Nobody wanted it any more.
    Cancelled,
}

/// A pull has ended. `bytes`: what came of the layers, packed.
pub fn pulled(bytes: u64, time: Duration, outcome: PullOutcome) {
    let outcome = match outcome {
        PullOutcome::Success => "success",
        PullOutcome::Failure => "failure",
        PullOutcome::Cancelled => "cancelled",
    };
    let labels = Outcome { outcome };
    METRICS.pulled_bytes.inc_by(bytes);
    let histogram = METRICS.pulls.get_or_create(&labels);
    histogram.observe(time.as_secs_f64());
}

/// Lines of a container's output were not written to its log.
pub fn lines_dropped(count: u64) {
    METRICS.dropped_lines.inc_by(count);
}

/// Spans of traces have reached the collector.
pub fn spans_exported(count: u64) {
    METRICS.spans_exported.inc_by(count);
}

/// Spans of traces are lost: the queue was full, or the collector did not take them.
pub fn spans_dropped(count: u64) {
    METRICS.spans_dropped.inc_by(count);
}

// ── how it is written out ──

/// The registry of all of it.
fn registry() -> Registry {
    let mut registry = Registry::with_prefix("carpel");
    let metrics = &*METRICS;
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The daemon", build);
    let seconds = Unit::Seconds;
    registry.register_with_unit(
        "rpc_duration",
        "Time to the answer of a call of the CRI, by method and gRPC code",
        seconds.clone(),
        metrics.rpcs.clone(),
    );
    registry.register_with_unit(
        "cni_duration",
        "Run time of CNI plugins, by plugin, verb and outcome",
        seconds.clone(),
        metrics.plugins.clone(),
    );
    registry.register_with_unit(
        "pull_duration",
        "Time that image pulls took, by outcome",
        seconds,
        metrics.pulls.clone(),
    );
    registry.register_with_unit(
        "pulled",
        "Packed bytes of layers that pulls have received from registries",
        Unit::Bytes,
        metrics.pulled_bytes.clone(),
    );
    registry.register(
        "log_lines_dropped",
        "Lines of output that could not be written to a log, of containers that have exited",
        metrics.dropped_lines.clone(),
    );
    registry.register(
        "trace_spans_exported",
        "Spans of traces that the collector has taken",
        metrics.spans_exported.clone(),
    );
    registry.register(
        "trace_spans_dropped",
        "Spans of traces that were lost: the queue was full, or the collector did not take them",
        metrics.spans_dropped.clone(),
    );
    registry.register(
        "sandboxes",
        "Pod sandboxes by state",
        metrics.sandboxes.clone(),
    );
    registry.register(
        "containers",
        "Containers by state",
        metrics.containers.clone(),
    );
    registry
}

/// The text that Prometheus reads.
fn write(registry: &Registry, node: &Node) -> String {
    count_objects(node);
    let mut text = String::new();
    text::encode(&mut text, registry).expect("a string takes all text");
    text
}

fn count_objects(node: &Node) {
    let mut sandboxes = [("ready", 0), ("notready", 0)];
    for sandbox in node.sandboxes() {
        sandboxes[usize::from(!sandbox.is_ready())].1 += 1;
    }
    let mut containers = [("created", 0), ("running", 0), ("exited", 0)];
    for container in node.containers() {
        let at = match container.status() {
            Status::Created => 0,
            Status::Running(_) | Status::Unseen => 1,
            Status::Exited(_) | Status::Removing(_) => 2,
        };
        containers[at].1 += 1;
    }
    let set = |family: &Family<State, Gauge>, counts: &[(&'static str, i64)]| {
        for &(state, count) in counts {
            family.get_or_create(&State { state }).set(count);
        }
    };
    set(&METRICS.sandboxes, &sandboxes);
    set(&METRICS.containers, &containers);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_prometheus_customs() {
        plugin_run("bridge", "ADD", Duration::from_millis(3), true);
        pulled(1000, Duration::from_secs(1), PullOutcome::Failure);
        lines_dropped(2);
        rpc("Version".into(), "OK".into(), Duration::from_micros(100));
        let mut text = String::new();
        text::encode(&mut text, &registry()).unwrap();
        for line in [
            "carpel_rpc_duration_seconds_count{method=\"Version\",code=\"OK\"} 1",
            "carpel_cni_duration_seconds_count{plugin=\"bridge\",verb=\"ADD\",outcome=\"success\"} 1",
            "carpel_pull_duration_seconds_count{outcome=\"failure\"} 1",
            "carpel_pulled_bytes_total 1000",
            "carpel_log_lines_dropped_total 2",
            "carpel_build_info{version=",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
