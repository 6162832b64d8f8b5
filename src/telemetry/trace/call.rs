//! The call that a request's task serves: what its span is called, whose child it is, and how it ended.
//!
//! A layer around the gRPC services puts it beside the task. The first span that the call opens is the call's own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::future::Either;
use tokio::task::futures::TaskLocalFuture;
use tonic::codegen::http::Request;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::context::Remote;
use super::otlp::{self, KeyValue, Value};

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// A call of a gRPC service.
#[derive(Debug)]
pub struct Call {
    /// "package.Service/Method".
    pub name: String,
    pub remote: Option<Remote>,
    claimed: AtomicBool,
    ended: OnceLock<(Code, String)>,
}

impl Call {
    /// The call of the task that runs, for the first that asks.
    pub fn claim() -> Option<Arc<Self>> {
        let claim = |call: &Arc<Self>| {
            let first = !call.claimed.swap(true, Ordering::Relaxed);
            first.then(|| Arc::clone(call))
        };
        CALL.try_with(claim).ok().flatten()
    }

    /// What is known of the call when its span begins.
    pub fn attributes(&self) -> Vec<KeyValue> {
        let (service, method) = self.name.split_once('/').unwrap_or(("", &self.name));
        vec![
            KeyValue::text("rpc.system", "grpc"),
            KeyValue::text("rpc.service", service),
            KeyValue::text("rpc.method", method),
        ]
    }

    /// What is known when it ends; nothing if the client did not wait for that.
    pub fn outcome(&self) -> Option<(KeyValue, Option<otlp::Status>)> {
        let (code, message) = self.ended.get()?;
        let number = Value::Int(i64::from(i32::from(*code)));
        let status = is_fault(*code).then(|| otlp::Status {
            code: otlp::ERROR,
            message: message.clone(),
        });
        Some((KeyValue::new("rpc.grpc.status_code", number), status))
    }
}

/// Whether a code means that the server, and not the request, was at fault: OpenTelemetry's list.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Notes how the call that the task serves has ended. Costs next to nothing while nobody traces.
pub fn answered(error: Option<&Status>) {
    let _ = CALL.try_with(|call| {
        let ended = error.map(|status| (status.code(), status.message().to_owned()));
        call.ended.set(ended.unwrap_or((Code::Ok, String::new())))
    });
}

/// Puts the call beside the task that serves it, if calls are traced.
#[derive(Debug, Clone, Copy)]
pub struct CallLayer {
    pub enabled: bool,
}

impl<S> Layer<S> for CallLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced {
            inner,
            enabled: self.enabled,
        }
    }
}

/// A service whose calls are known to the spans that they open.
#[derive(Debug, Clone)]
pub struct Traced<S> {
    inner: S,
    enabled: bool,
}

impl<S, Body> Service<Request<Body>> for Traced<S>
where
    S: Service<Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<TaskLocalFuture<Arc<Call>, S::Future>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !self.enabled {
            return Either::Right(self.inner.call(request));
        }
        let call = Call {
            name: request.uri().path().trim_start_matches('/').to_owned(),
            remote: Remote::from_headers(request.headers()),
            claimed: AtomicBool::new(false),
            ended: OnceLock::new(),
        };
        let call = Arc::new(call);
        // A service may open the span at once, or when it is polled first.
        let inner = CALL.sync_scope(Arc::clone(&call), || self.inner.call(request));
        Either::Left(CALL.scope(call, inner))
    }
}
