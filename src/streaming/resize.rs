//! The sizes of a client's terminal: JSON documents, one behind the other.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::container::TerminalSize;

/// Longest document: it holds two numbers.
const LONGEST: usize = 1 << 10;

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// Takes the documents that are whole out of `bytes`. Whether the rest may still become one.
pub fn parse(bytes: &mut Vec<u8>, mut size: impl FnMut(TerminalSize)) -> bool {
    let mut documents = serde_json::Deserializer::from_slice(bytes).into_iter::<Document>();
    let mut taken = 0;
    let good = loop {
        match documents.next() {
            Some(Ok(document)) => size(TerminalSize {
                columns: document.width,
                rows: document.height,
            }),
            None => break true,
            Some(Err(error)) => break error.is_eof(),
        }
        taken = documents.byte_offset();
    };
    bytes.drain(..taken);
    good && bytes.len() <= LONGEST
}

/// Passes sizes on for as long as they come and make sense.
pub async fn pass_on(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<TerminalSize>) {
    let mut bytes = Vec::new();
    let mut sizes = Vec::new();
    while matches!(from.read_buf(&mut bytes).await, Ok(1..)) {
        let good = parse(&mut bytes, |size| sizes.push(size));
        for size in sizes.drain(..) {
            if to.send(size).await.is_err() {
                return;
            }
        }
        if !good {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_may_be_cut_anywhere() {
        let text = r#"{"Width":80,"Height":24}
            {"Width":120,"Height":50,"More":[1]}{"Height":1,"Width":2}"#;
        for step in 1..text.len() {
            let mut reader = in_steps(text.as_bytes(), step);
            let (sender, mut sizes) = mpsc::channel(8);
            pass_on(&mut reader, sender).await;
            let mut found = Vec::new();
            while let Some(size) = sizes.recv().await {
                found.push((size.columns, size.rows));
            }
            assert_eq!(found, [(80, 24), (120, 50), (2, 1)], "in steps of {step}");
        }
    }

    /// A reader that gives `step` bytes at a time.
    fn in_steps(bytes: &[u8], step: usize) -> impl AsyncRead + Unpin + use<> {
        let chunks: Vec<_> = bytes
            .chunks(step)
            .map(|chunk| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(chunk)))
            .collect();
        tokio_util::io::StreamReader::new(tokio_stream::iter(chunks))
    }

    #[test]
    fn what_is_no_size_ends_them() {
        for noise in [
            &b"x"[..],
            b"{\"Width\":-1,\"Height\":2}",
            b"[]",
            b"{\"Width\":70000,\"Height\":2}",
        ] {
            assert!(
                !parse(&mut noise.to_vec(), |size| panic!("{size:?}")),
                "{noise:?}"
            );
        }
        let mut endless = b"{\"Width\":".to_vec();
        endless.resize(2 * LONGEST, b' ');
        assert!(!parse(&mut endless, |size| panic!("{size:?}")));
    }
}
