//! Long lists: cut into the messages of a stream, or refused as one message that no client would take.
//!
//! What must always hold: a message of a stream has at least one item; an item comes once; all are of one
//! moment, which is that of the request. A reader that is slow keeps what it has not read of its list, and no
//! lock.

use std::iter::Peekable;
use std::pin::Pin;

use futures::Stream;
use prost::Message;
use tonic::Status;

use super::MAX_MESSAGE;

/// Where a message is full. Well below what the kubelet takes (16 MiB), and what gRPC's clients take if nobody
/// has told them otherwise (4 MiB).
const FULL: usize = 1 << 20;
/// Tag and length of an item.
const FRAME: usize = 6;

/// The messages of a stream.
pub type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// A list as a stream. The items are made as they are read.
pub fn messages<T, M>(
    items: impl Iterator<Item = T> + Send + 'static,
    message: fn(Vec<T>) -> M,
) -> Messages<M>
where
    T: Message + Send + 'static,
    M: Send + 'static,
{
    let parts = Parts {
        items: items.peekable(),
        full: FULL,
    };
    Box::pin(futures::stream::iter(
        parts.map(move |items| Ok(message(items))),
    ))
}

/// Cuts a list so that each part is at most `full` bytes. An item that is longer has a part of its own.
struct Parts<I: Iterator> {
    items: Peekable<I>,
    full: usize,
}

impl<T: Message, I: Iterator<Item = T>> Iterator for Parts<I> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        let first = self.items.next()?;
        let mut bytes = FRAME + first.encoded_len();
        let mut part = vec![first];
        while let Some(next) = self.items.next_if(|item| {
            bytes += FRAME + item.encoded_len();
            bytes <= self.full
        }) {
            part.push(next);
        }
        Some(part)
    }
}

/// A list as one message.
///
/// # Errors
/// RESOURCE_EXHAUSTED if clients would not take it. They would say the same, but not what helps.
pub fn one_message<M: Message>(answer: M, stream: &str) -> Result<M, Status> {
    let advice = format_args!("narrow it with a filter, or call {stream}");
    fits(answer, &advice)
}

/// Any answer, as one message.
///
/// # Errors
/// RESOURCE_EXHAUSTED if clients would not take it.
pub fn fits<M: Message>(answer: M, advice: &dyn std::fmt::Display) -> Result<M, Status> {
    let bytes = answer.encoded_len();
    if bytes <= MAX_MESSAGE {
        return Ok(answer);
    }
    Err(Status::resource_exhausted(format!(
        "the answer has {bytes} bytes, more than the {MAX_MESSAGE} of a message: {advice}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carpel_api::cri;
    use proptest::prelude::*;

    fn container(id: usize, bytes: usize) -> cri::Container {
        cri::Container {
            id: id.to_string(),
            image_ref: "x".repeat(bytes),
            ..Default::default()
        }
    }

    proptest! {
        #[test]
        fn parts_have_all_items_once_and_in_order(sizes in proptest::collection::vec(0..200_usize, 0..60)) {
            const LIMIT: usize = 256;
            let items = sizes.iter().enumerate().map(|(id, size)| container(id, *size));
            let parts = Parts { items: items.peekable(), full: LIMIT };
            let mut ids = Vec::new();
            let mut last = LIMIT;
            for part in parts {
                prop_assert!(!part.is_empty());
                let message = cri::StreamContainersResponse { containers: part.clone() };
                prop_assert!(part.len() == 1 || message.encoded_len() <= LIMIT);
                // No part could have taken the next one's first.
                prop_assert!(last + part[0].encoded_len() + FRAME > LIMIT);
                last = part.iter().map(|item| item.encoded_len() + FRAME).sum();
                ids.extend(part.iter().map(|item| item.id.clone()));
            }
            let all: Vec<_> = (0..sizes.len()).map(|id| id.to_string()).collect();
            prop_assert_eq!(ids, all);
        }
    }

    #[test]
    fn what_no_client_takes_is_refused() {
        let list = |bytes| cri::ListContainersResponse {
            containers: vec![container(1, bytes)],
        };
        assert!(one_message(list(MAX_MESSAGE - 100), "StreamContainers").is_ok());
        let refused = one_message(list(MAX_MESSAGE), "StreamContainers").expect_err("too long");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(
            refused.message().contains("call StreamContainers"),
            "{refused}"
        );
    }
}
