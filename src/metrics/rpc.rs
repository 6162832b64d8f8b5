//! A layer around the gRPC services that times every call.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::Code;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

/// Times calls. Costs a clock and a few atomics.
#[derive(Debug, Clone, Copy, Default)]
pub struct RpcLayer;

impl<S> Layer<S> for RpcLayer {
    type Service = Timed<S>;

    fn layer(&self, service: S) -> Timed<S> {
        Timed(service)
    }
}

/// A service whose calls are timed.
#[derive(Debug, Clone)]
pub struct Timed<S>(S);

impl<S, Body, Answer> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Answer>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let start = Instant::now();
        let path = request.uri().path();
        let method = path.rsplit_once('/').map_or(path, |(_, method)| method);
        let method = method.to_owned();
        let call = self.0.call(request);
        Box::pin(async move {
            let response = call.await?;
            let code = code(response.headers());
            // Whatever a client makes up is one name.
            let method = match code {
                Code::Unimplemented => "unimplemented".to_owned(),
                _ => method,
            };
            super::rpc(method, name(code), start.elapsed());
            Ok(response)
        })
    }
}

/// An error is told in the headers; the good end of an answer comes after it.
fn code(headers: &HeaderMap) -> Code {
    match headers.get("grpc-status") {
        None => Code::Ok,
        Some(code) => Code::from_bytes(code.as_bytes()),
    }
}

/// As other gRPC servers call them.
fn name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        code => format!("{code:?}"),
    }
}
