//! Sending spans to a collector, apart from all requests: a bounded queue, batches, a few attempts, then they are lost.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::otlp::{self, KeyValue};
use crate::config::Collector;
use crate::metrics;

/// Spans that wait for the exporter: some MB if every one were long, and minutes of an ordinary node.
pub const WAITING: usize = 2048;
/// Most spans of one message, and how long the first of them waits for others.
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(2);
/// How long the collector may take, to connect and to answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// Pauses before further attempts with the same batch. The queue fills meanwhile, and overflows.
const AGAIN: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// How long the last spans may keep a daemon that stops.
const FLUSH: Duration = Duration::from_secs(1);

/// Where spans go.
pub struct Exporter {
    queue: mpsc::Receiver<otlp::Span>,
    collector: Collector,
}

/// An exporter that runs.
pub struct Exporting {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Exporter {
    pub fn new(collector: Collector, queue: mpsc::Receiver<otlp::Span>) -> Self {
        Self { queue, collector }
    }

    /// Begins to send. Must be called within a runtime.
    #[must_use]
    pub fn start(self) -> Exporting {
        let stop = CancellationToken::new();
        let endpoint = Endpoint::from_shared(self.collector.as_str().to_owned())
            .expect("a collector's address is a URI")
            .connect_timeout(CONNECT)
            .timeout(ANSWER);
        let export = Export {
            queue: self.queue,
            client: Grpc::new(endpoint.connect_lazy()),
            collector: self.collector,
            stop: stop.clone(),
            failing: false,
        };
        Exporting {
            task: tokio::spawn(export.run()),
            stop,
        }
    }
}

impl Exporting {
    /// Sends what is queued, if that is quick, and ends.
    pub async fn finish(self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(FLUSH, self.task).await;
    }
}

struct Export {
    queue: mpsc::Receiver<otlp::Span>,
    client: Grpc<Channel>,
    collector: Collector,
    stop: CancellationToken,
    /// Told once, until it works again.
    failing: bool,
}

impl Export {
    async fn run(mut self) {
        while let Some(batch) = self.batch().await {
            self.export(batch).await;
        }
    }

    /// The next spans. `None` at the end.
    async fn batch(&mut self) -> Option<Vec<otlp::Span>> {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            span = self.queue.recv() => batch.push(span?),
            () = self.stop.cancelled() => return None,
        }
        let more = async {
            while batch.len() < BATCH
                && let Some(span) = self.queue.recv().await
            {
                batch.push(span);
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(DELAY, more) => {}
            () = self.stop.cancelled() => {}
        }
        Some(batch)
    }

    async fn export(&mut self, spans: Vec<otlp::Span>) {
        let count = spans.len() as u64;
        let request = request(spans);
        let mut pauses = AGAIN.iter();
        let outcome = loop {
            let error = match self.send(request.clone()).await {
                Ok(rejected) => break Ok(rejected),
                Err(error) => error,
            };
            match pauses.next().filter(|_| may_succeed_later(&error)) {
                None => break Err(error),
                Some(pause) => tokio::select! {
                    () = tokio::time::sleep(*pause) => {}
                    () = self.stop.cancelled() => break Err(error),
                },
            }
        };
        match outcome {
            Ok(rejected) => {
                let rejected = rejected.min(count);
                metrics::spans_exported(count - rejected);
                metrics::spans_dropped(rejected);
                if std::mem::take(&mut self.failing) {
                    tracing::info!(
                        collector = self.collector.as_str(),
                        "spans are exported again"
                    );
                }
            }
            Err(status) => {
                metrics::spans_dropped(count);
                if !std::mem::replace(&mut self.failing, true) {
                    let (code, message) = (status.code(), status.message());
                    tracing::warn!(
                        collector = self.collector.as_str(),
                        ?code,
                        message,
                        "spans are not exported"
                    );
                }
            }
        }
    }

    /// How many spans the collector did not want.
    async fn send(&mut self, request: otlp::ExportRequest) -> Result<u64, Status> {
        let not_ready =
            |error: tonic::transport::Error| Status::unavailable(crate::error::chain(&error));
        self.client.ready().await.map_err(not_ready)?;
        let codec = ProstCodec::<otlp::ExportRequest, otlp::ExportResponse>::default();
        let path = PathAndQuery::from_static(otlp::EXPORT);
        let answer = self
            .client
            .unary(Request::new(request), path, codec)
            .await?;
        let partial = answer.into_inner().partial_success.unwrap_or_default();
        Ok(u64::try_from(partial.rejected_spans).unwrap_or(0))
    }
}

/// The errors that OTLP says to try again after.
fn may_succeed_later(error: &Status) -> bool {
    matches!(
        error.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn request(spans: Vec<otlp::Span>) -> otlp::ExportRequest {
    let version = env!("CARGO_PKG_VERSION");
    let host = nix::unistd::gethostname().unwrap_or_default();
    let resource = otlp::Resource {
        attributes: vec![
            KeyValue::text("service.name", "carpel"),
            KeyValue::text("service.version", version),
            KeyValue::text("host.name", host.to_string_lossy()),
        ],
    };
    let scope = otlp::Scope {
        name: "carpel".into(),
        version: version.into(),
    };
    otlp::ExportRequest {
        resource_spans: vec![otlp::ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![otlp::ScopeSpans {
                scope: Some(scope),
                spans,
            }],
        }],
    }
}
