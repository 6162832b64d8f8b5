//! What a fuzzer feeds: the decoders of everything that a client sends after the upgrade. Each runs on any bytes and
//! panics only if a decoder breaks its promises.

use bytes::{Bytes, BytesMut};

use super::resize;
use super::spdy::frame::{Decoder, Fault, Frame, HEAD};
use super::websocket::frame as websocket;
use super::websocket::{Coding, Demux, Said};

/// Bytes as a SPDY client's, read at once and one by one: both must say the same, and no more data than was sent.
pub fn spdy(bytes: &[u8]) {
    let at_once = spdy_frames(bytes, bytes.len().max(1));
    let one_by_one = spdy_frames(bytes, 1);
    assert_eq!(at_once, one_by_one);
    let data: usize = at_once.0.iter().map(|frame| frame.1.len()).sum();
    assert!(data <= bytes.len());
}

/// The frames in short, with data that was cut put together again; and how it ended.
fn spdy_frames(bytes: &[u8], step: usize) -> (Vec<(String, Vec<u8>)>, Option<Fault>) {
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
    let mut frames: Vec<(String, Vec<u8>)> = Vec::new();
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(Frame::Data { id, bytes, fin })) => {
                    let kind = format!("data {id}");
                    match frames.last_mut() {
                        Some((last, data)) if *last == kind => data.extend_from_slice(&bytes),
                        _ => frames.push((kind, bytes.to_vec())),
                    }
                    if fin {
                        frames.push((format!("fin {id}"), Vec::new()));
                    }
                }
                Ok(Some(other)) => frames.push((format!("{other:?}"), Vec::new())),
                Ok(None) => break,
                Err(fault) => return (frames, Some(fault)),
            }
        }
        // What is not given out is at most a head or one short frame.
        assert!(buffer.len() < HEAD + (16 << 10));
    }
    (frames, None)
}

/// Bytes as a WebSocket client's in each coding, read at once and one by one.
pub fn websocket(bytes: &[u8]) {
    for (base64, closes) in [(false, false), (false, true), (true, false)] {
        let coding = Coding { base64, closes };
        let at_once = channels(bytes, bytes.len().max(1), coding);
        let one_by_one = channels(bytes, 1, coding);
        assert_eq!(at_once.1, one_by_one.1);
        // Of base64 that turns out to be none, as much is given out as came before that was seen.
        if !base64 || at_once.1.is_none() {
            assert_eq!(at_once.0, one_by_one.0);
        }
    }
}

/// What is said on each channel, and how it ended.
fn channels(bytes: &[u8], step: usize, coding: Coding) -> (Vec<(String, Vec<u8>)>, Option<String>) {
    let (mut decoder, mut buffer) = (websocket::Decoder::default(), BytesMut::new());
    let mut demux = Demux::new(coding);
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            let event = match decoder.next(&mut buffer) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(fault) => return (said, Some(fault.to_string())),
            };
            let websocket::Event::Data { first, bytes, last } = event else {
                said.push((format!("{event:?}"), Vec::new()));
                continue;
            };
            match demux.take(first, bytes, last) {
                Ok(Said::Data { channel, bytes }) => {
                    let kind = format!("channel {channel}");
                    match said.last_mut() {
                        Some((last, data)) if *last == kind => data.extend_from_slice(&bytes),
                        _ => said.push((kind, bytes.to_vec())),
                    }
                }
                Ok(Said::Close { channel }) => said.push((format!("close {channel}"), Vec::new())),
                Ok(Said::Nothing) => {}
                Err(fault) => return (said, Some(fault.to_string())),
            }
        }
        assert!(buffer.len() < 2 + 8 + 4 + 125);
    }
    (said, None)
}

/// Bytes as a stream of terminal sizes.
pub fn sizes(bytes: &[u8]) {
    let mut rest = Bytes::copy_from_slice(bytes).to_vec();
    let before = rest.len();
    resize::parse(&mut rest, |_| {});
    assert!(rest.len() <= before);
}
