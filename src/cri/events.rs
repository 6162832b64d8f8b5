//! GetContainerEvents: a stream of changes, each with the pod as it was just after it.

use carpel_api::cri;
use futures::{Stream, StreamExt};
use tonic::Status;

use super::convert;
use super::domain::{Domain, EventView, Missed};
use super::lists::{self, Messages};
use crate::node::EventKind;

pub type Events = Messages<cri::ContainerEventResponse>;

/// Every change from now on. A reader that falls behind gets an error as its last item, as does one that cannot be
/// told of a pod as it is: a kubelet lists all anew then.
pub async fn stream<D: Domain>(domain: &D) -> Result<Events, Status> {
    let events = domain.events().map(|event| match event {
        Ok(event) => lists::fits(response(&event), &"list anew, as streams"),
        Err(Missed(count)) => Err(Status::data_loss(format!(
            "this reader is too slow: {count} events are lost; list anew and ask again"
        ))),
    });
    Ok(Box::pin(end_with_error(events)))
}

/// Nothing comes after an error: whoever has missed something must not go on as if it had not.
fn end_with_error<T: Send>(
    events: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send {
    events.scan(false, |ended, event| {
        let before = std::mem::replace(ended, event.is_err());
        std::future::ready((!before).then_some(event))
    })
}

fn response(event: &EventView) -> cri::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    let statuses = event.containers.iter().map(convert::container_status);
    cri::ContainerEventResponse {
        container_id: event.object.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        // A kubelet ignores an event without it, so that of a removed sandbox has its last.
        pod_sandbox_status: Some(convert::sandbox_status(&event.sandbox)),
        containers_statuses: statuses.collect(),
    }
}
