//! The one place where gRPC codes are chosen.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use prost::Message;
use tonic::{Response, Status};
use tracing::{Instrument, Span};

use super::domain::{Domain, Lookup};
use super::lists::{self, Messages};
use super::validate::{IdText, Rejected};
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::telemetry::trace;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound { .. } | Error::Absent(_) => Self::not_found(text),
            Error::Denied(_) => Self::permission_denied(text),
            // The kubelet looks at how the text begins, and it sees the bare text with this code only.
            Error::RegistryUnavailable(_) | Error::SignatureValidationFailed(_) => {
                Self::unknown(text)
            }
            Error::InvalidArgument(_) => Self::invalid_argument(text),
            Error::FailedPrecondition(_) => Self::failed_precondition(text),
            Error::DeadlineExceeded(_) => Self::deadline_exceeded(text),
            Error::ResourceExhausted(_) => Self::resource_exhausted(text),
            Error::Unimplemented(_) => Self::unimplemented(text),
            Error::Internal(_) => Self::internal(text),
        }
    }
}

impl From<Rejected> for Status {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Invalid(text) => Self::invalid_argument(text),
            Rejected::Unsupported(text) => Self::unimplemented(text),
        }
    }
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Invalid(text) => Self::InvalidArgument(text),
            Rejected::Unsupported(text) => Self::Unimplemented(text),
        }
    }
}

/// The answer to a call that this build does not have.
pub fn not_built(call: &str) -> Status {
    Status::unimplemented(format!(
        "{call} is not supported: carpel cannot checkpoint or restore processes"
    ))
}

/// Runs a call with one answer in its span.
pub async fn answer<T: Message>(
    span: Span,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let advice = "ask for less";
    run(span, call.map(|answer| lists::fits(answer?, &advice))).await
}

/// Runs a call whose answer is a stream in its span, which ends when the stream begins.
pub async fn answer_stream<M>(
    span: Span,
    call: impl Future<Output = Result<Messages<M>, Status>>,
) -> Result<Response<Messages<M>>, Status> {
    run(span, call).await
}

/// A panic costs this call and no more.
async fn run<T>(
    span: Span,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    // The span ends when it is known how the call did.
    let call = call.instrument(span.clone());
    let answer = match AssertUnwindSafe(call).catch_unwind().await {
        Ok(result) => result.map(Response::new),
        Err(panic) => Err(bug(panic_text(&*panic))),
    };
    trace::answered(answer.as_ref().err());
    drop(span);
    answer
}

/// The answer when a call's own task ended without a result.
pub fn panicked(error: tokio::task::JoinError) -> Status {
    match error.try_into_panic() {
        Ok(panic) => bug(panic_text(&*panic)),
        Err(_) => Status::unavailable("the daemon is stopping"),
    }
}

fn bug(text: &str) -> Status {
    Status::internal(format!("bug in carpel: panic: {text}"))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The sandbox that a request names.
pub fn require_sandbox<D: Domain>(domain: &D, id: &IdText) -> Result<SandboxId, Status> {
    let found = domain.find_sandbox(id.as_str());
    found.map_err(|lookup| unknown("sandbox", id, lookup))
}

/// The container that a request names.
pub fn require_container<D: Domain>(domain: &D, id: &IdText) -> Result<ContainerId, Status> {
    let found = domain.find_container(id.as_str());
    found.map_err(|lookup| unknown("container", id, lookup))
}

/// The sandbox that is to be stopped or removed. `None`: there is none, so that is done.
pub fn doomed_sandbox<D: Domain>(domain: &D, id: &IdText) -> Result<Option<SandboxId>, Status> {
    match domain.find_sandbox(id.as_str()) {
        Err(Lookup::NotFound) => Ok(None),
        found => found
            .map(Some)
            .map_err(|lookup| unknown("sandbox", id, lookup)),
    }
}

/// The container that is to be stopped or removed. `None`: there is none, so that is done.
pub fn doomed_container<D: Domain>(domain: &D, id: &IdText) -> Result<Option<ContainerId>, Status> {
    match domain.find_container(id.as_str()) {
        Err(Lookup::NotFound) => Ok(None),
        found => found
            .map(Some)
            .map_err(|lookup| unknown("container", id, lookup)),
    }
}

fn unknown(kind: &str, id: &IdText, lookup: Lookup) -> Status {
    match lookup {
        Lookup::NotFound => Status::not_found(format!("{kind} {id} not found")),
        Lookup::Ambiguous => Status::invalid_argument(format!(
            "{kind} {id} is ambiguous: more than one id begins so"
        )),
    }
}

/// The answer when an object went away between finding and reading it.
pub fn vanished(kind: &str, id: &dyn std::fmt::Display) -> Status {
    Status::not_found(format!("{kind} {id} not found"))
}
