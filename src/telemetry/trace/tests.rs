//! What of `tracing`'s spans reaches the queue, and what reaches a collector.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer as _, ServiceExt};
use tracing::{debug_span, field, info_span};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::prelude::*;

use super::otlp::{self, Kind, Value};
use super::*;
use crate::config::Ratio;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Runs a call whose answer is `outcome`, with `work` in its span. Returns the spans that were recorded.
async fn call(
    ratio: f64,
    parent: Option<&str>,
    outcome: Result<(), Status>,
    work: impl FnOnce() + Clone + Send + Sync + 'static,
) -> Vec<otlp::Span> {
    let (sender, mut queue) = mpsc::channel(16);
    let layer = TraceLayer::new(Ratio::try_from(ratio).unwrap(), sender);
    let subscriber =
        tracing_subscriber::registry().with(layer.with_filter(FilterFn::new(TraceLayer::wants)));
    let _default = tracing::subscriber::set_default(subscriber);
    let service = CallLayer { enabled: true }.layer(tower::service_fn(move |_: Request<()>| {
        let (work, outcome) = (work.clone(), outcome.clone());
        async move {
            let span = info_span!("RunPodSandbox", sandbox.id = field::Empty);
            span.in_scope(|| {
                tracing::Span::current().record("sandbox.id", "abc");
                work();
            });
            answered(outcome.as_ref().err());
            drop(span);
            Ok::<_, std::convert::Infallible>(Response::new(()))
        }
    }));
    let mut request = Request::new(());
    *request.uri_mut() = "/runtime.v1.RuntimeService/RunPodSandbox".parse().unwrap();
    if let Some(parent) = parent {
        let headers = request.headers_mut();
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", "a=1".parse().unwrap());
    }
    service.oneshot(request).await.unwrap();
    drain(&mut queue)
}

fn drain(queue: &mut Receiver<otlp::Span>) -> Vec<otlp::Span> {
    std::iter::from_fn(|| queue.try_recv().ok()).collect()
}

fn attribute<'a>(span: &'a otlp::Span, key: &str) -> &'a Value {
    let found = span.attributes.iter().find(|one| one.key == key);
    let found = found.unwrap_or_else(|| panic!("{key} is not in {span:?}"));
    found.value.as_ref().unwrap().value.as_ref().unwrap()
}

fn nothing() {}

#[tokio::test]
async fn a_call_continues_its_callers_trace() {
    let child = || {
        let span = debug_span!(
            "cni",
            otel.name = "cni bridge ADD",
            plugin = "bridge",
            n = 7
        );
        drop(debug_span!(parent: &span, "inner", otel.kind = "client", error = "no luck"));
        drop(info_span!(target: "h2", "library"));
        tracing::error!("an event is no span");
    };
    let spans = call(0.0, Some(PARENT), Ok(()), child).await;
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    let rpc = "runtime.v1.RuntimeService/RunPodSandbox";
    assert_eq!(names, ["inner", "cni bridge ADD", rpc]);
    let [inner, cni, call] = spans.try_into().unwrap();
    for span in [&inner, &cni, &call] {
        assert_eq!(hex::encode(&span.trace_id), PARENT[3..35]);
        assert_eq!(span.trace_state, "a=1");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
    }
    assert_eq!(hex::encode(&call.parent_span_id), PARENT[36..52]);
    assert_eq!(cni.parent_span_id, call.span_id);
    assert_eq!(inner.parent_span_id, cni.span_id);
    assert_eq!(
        [call.kind, cni.kind, inner.kind],
        [Kind::Server, Kind::Internal, Kind::Client].map(i32::from)
    );
    assert_eq!([call.flags, cni.flags], [0x301, 0x101]);
    let text = |text: &str| Value::String(text.into());
    assert_eq!(*attribute(&call, "sandbox.id"), text("abc"));
    assert_eq!(
        *attribute(&call, "rpc.service"),
        text("runtime.v1.RuntimeService")
    );
    assert_eq!(*attribute(&call, "rpc.method"), text("RunPodSandbox"));
    assert_eq!(*attribute(&call, "rpc.grpc.status_code"), Value::Int(0));
    assert_eq!(*attribute(&cni, "plugin"), text("bridge"));
    assert_eq!(*attribute(&cni, "n"), Value::Int(7));
    assert_eq!((call.status, cni.status), (None, None));
    let failed = inner.status.unwrap();
    assert_eq!(
        (failed.code, failed.message.as_str()),
        (otlp::ERROR, "no luck")
    );
}

#[tokio::test]
async fn the_caller_decides_and_else_the_ratio() {
    let unsampled = format!("{}00", &PARENT[..53]);
    for (ratio, parent, recorded) in [
        (0.0, Some(PARENT), true),
        (1.0, Some(unsampled.as_str()), false),
        (1.0, None, true),
        (0.0, None, false),
        (1.0, Some("garbage"), true),
        (0.0, Some("garbage"), false),
    ] {
        let spans = call(ratio, parent, Ok(()), || drop(debug_span!("child"))).await;
        assert_eq!(
            spans.len(),
            if recorded { 2 } else { 0 },
            "{ratio} {parent:?}"
        );
    }
    let [child, root] = call(1.0, None, Ok(()), || drop(debug_span!("child")))
        .await
        .try_into()
        .unwrap();
    assert_eq!(root.parent_span_id, [0_u8; 0]);
    assert_eq!(child.trace_id, root.trace_id);
    assert_ne!(child.span_id, root.span_id);
}

#[tokio::test]
async fn a_ratio_takes_about_that_many() {
    let ratio = Ratio::try_from(0.25).unwrap();
    let taken = (0..4000).filter(|_| ratio.takes(rand::random())).count();
    assert!((800..1200).contains(&taken), "{taken}");
    assert!(Ratio::ALL.takes([0xff; 16]));
    assert!(!Ratio::try_from(0.0).unwrap().takes([0; 16]));
}

#[tokio::test]
async fn only_the_servers_own_faults_are_errors() {
    for (status, is_error) in [
        (Status::not_found("no container"), false),
        (Status::invalid_argument("no"), false),
        (Status::internal("broken"), true),
        (Status::unknown("pull"), true),
    ] {
        let code = i64::from(i32::from(status.code()));
        let [span] = call(1.0, None, Err(status.clone()), nothing)
            .await
            .try_into()
            .unwrap();
        assert_eq!(*attribute(&span, "rpc.grpc.status_code"), Value::Int(code));
        let said = span.status.map(|status| status.message);
        assert_eq!(said, is_error.then(|| status.message().to_owned()));
    }
}

#[tokio::test]
async fn what_a_span_holds_is_bounded() {
    let work = || {
        let span = debug_span!("long", text = "ä".repeat(2000), error = "e".repeat(2000));
        // The same again replaces.
        span.record("text", "ä".repeat(3000));
    };
    let [long, _] = call(1.0, None, Ok(()), work).await.try_into().unwrap();
    assert_eq!(*attribute(&long, "text"), Value::String("ä".repeat(512)));
    assert_eq!(long.attributes.len(), 1);
    assert_eq!(long.status.unwrap().message.len(), 1024);
}

#[tokio::test]
async fn a_full_queue_loses_spans_and_nothing_waits() {
    let many = || (0..100).for_each(|_| drop(debug_span!("one")));
    let spans = call(1.0, None, Ok(()), many).await;
    assert_eq!(spans.len(), 16);
}

#[tokio::test]
async fn a_part_alone_is_no_trace() {
    let work = || drop(debug_span!(parent: None, "supervisor"));
    let [call] = call(1.0, None, Ok(()), work).await.try_into().unwrap();
    assert_eq!(call.name, "runtime.v1.RuntimeService/RunPodSandbox");
}

#[test]
fn without_a_collector_nothing_is_recorded() {
    let none: Option<TraceLayer> = None;
    let wanted = FilterFn::new(TraceLayer::wants).with_max_level_hint(tracing::Level::DEBUG);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::sink);
    let lines = lines.with_filter(tracing_subscriber::filter::LevelFilter::INFO);
    let subscriber = tracing_subscriber::registry()
        .with(lines)
        .with(none.map(|layer| layer.with_filter(wanted)));
    tracing::subscriber::with_default(subscriber, || {
        assert!(debug_span!("cni").is_disabled());
        assert!(!info_span!("RunPodSandbox").is_disabled());
    });
}

#[tokio::test]
async fn a_service_that_is_not_traced_is_left_alone() {
    let service = CallLayer { enabled: false }.layer(tower::service_fn(async |_: Request<()>| {
        answered(Some(&Status::new(Code::Internal, "nobody is told")));
        assert!(call::Call::claim().is_none());
        Ok::<_, std::convert::Infallible>(Response::new(Arc::new(())))
    }));
    let served = service.oneshot(Request::new(()));
    tokio::time::timeout(Duration::from_secs(1), served)
        .await
        .unwrap()
        .unwrap();
}
