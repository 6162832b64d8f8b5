//! A collector of traces that does what a test wants it to.

use std::collections::BTreeMap;
use std::net::TcpListener;

use carpel_integration::TestNode;
use carpel_integration::host::soon;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener as AsyncListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Where the daemon finds it, in its node's network.
pub const CONFIG: &str = "[telemetry]\ntraces = \"http://127.0.0.1:4317\"\n";
const ADDRESS: &str = "127.0.0.1:4317";

/// What a collector does with its next messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Takes,
    /// Says so many times that it is not there.
    Unavailable(u32),
    /// Never answers.
    Silent,
}

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Told {
    pub span: Span,
    /// Of the process that sent it.
    pub resource: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Heard {
    told: Vec<Told>,
    messages: usize,
}

/// A collector that listens, on a thread of its own, and closes its connections when it is dropped.
#[derive(Debug)]
pub struct Collector {
    heard: watch::Sender<Heard>,
    runtime: Option<Runtime>,
}

struct Service {
    heard: watch::Sender<Heard>,
    mood: watch::Sender<Mood>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        // Not by waiting for calls that are never answered.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Collector {
    pub fn start(node: &TestNode, mood: Mood) -> Self {
        let listener = node.net.run(|| TcpListener::bind(ADDRESS).expect("a port"));
        listener.set_nonblocking(true).expect("a socket");
        let heard = watch::Sender::new(Heard::default());
        let service = TraceServiceServer::new(Service {
            heard: heard.clone(),
            mood: watch::Sender::new(mood),
        });
        let serve = async move {
            let listener = AsyncListener::from_std(listener).expect("a socket");
            let server = tonic::transport::Server::builder().add_service(service);
            let incoming = TcpListenerStream::new(listener);
            server.serve_with_incoming(incoming).await
        };
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.spawn(serve);
        Self {
            heard,
            runtime: Some(runtime),
        }
    }

    /// All spans so far.
    pub fn told(&self) -> Vec<Told> {
        self.heard.borrow().told.clone()
    }

    /// Waits until `enough` of the spans.
    pub async fn wait(&self, enough: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        let mut heard = self.heard.subscribe();
        let wait = heard.wait_for(|heard| enough(&heard.told));
        match tokio::time::timeout(2 * soon(), wait).await {
            Ok(heard) => heard.expect("the collector").told.clone(),
            Err(_) => panic!("these spans only: {:#?}", self.told()),
        }
    }

    /// Waits until this many messages have come, whatever became of them.
    pub async fn wait_messages(&self, count: usize) {
        let mut heard = self.heard.subscribe();
        let wait = heard.wait_for(|heard| heard.messages >= count);
        let waited = tokio::time::timeout(2 * soon(), wait).await;
        waited.expect("messages").expect("the collector");
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.heard.send_modify(|heard| heard.messages += 1);
        let mood = *self.mood.borrow();
        match mood {
            Mood::Takes => {}
            Mood::Silent => std::future::pending().await,
            Mood::Unavailable(0) => {}
            Mood::Unavailable(times) => {
                self.mood.send_replace(Mood::Unavailable(times - 1));
                return Err(Status::unavailable("not yet"));
            }
        }
        let mut told = Vec::new();
        for group in request.into_inner().resource_spans {
            let resource = texts(&group.resource.expect("a resource").attributes);
            for scope in group.scope_spans {
                let resource = &resource;
                told.extend(scope.spans.into_iter().map(|span| Told {
                    span,
                    resource: resource.clone(),
                }));
            }
        }
        self.heard.send_modify(|heard| heard.told.extend(told));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Told {
    /// The span's attributes as text.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        texts(&self.span.attributes)
    }

    #[track_caller]
    pub fn attribute(&self, key: &str) -> String {
        let mut all = self.attributes();
        all.remove(key)
            .unwrap_or_else(|| panic!("{key} is not in {self:?}"))
    }

    pub fn is_child_of(&self, parent: &Self) -> bool {
        self.span.trace_id == parent.span.trace_id
            && self.span.parent_span_id == parent.span.span_id
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &KeyValue| match value.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(yes) => Some(yes.to_string()),
        other => panic!("{other:?}"),
    };
    let pairs = attributes
        .iter()
        .filter_map(|one| Some((one.key.clone(), text(one)?)));
    pairs.collect()
}
