//! Frames: what is written is read, and what is broken is refused.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{self, *};

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, Fault> {
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(bytes));
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next(&mut buffer)? {
        frames.push(frame);
    }
    Ok(frames)
}

#[test]
fn what_is_written_is_read() {
    let packed = super::headers::Packer::new().pack(&[]);
    let bytes = [
        syn_reply(1, &packed),
        reset(3, status::CANCEL),
        settings(&[(setting::MAX_CONCURRENT_STREAMS, 5), (7, 0)]),
        ping(9),
        go_away(1, true),
        frame::window_update(0, 1),
        data_head(5, FIN, 2).to_vec(),
        b"hi".to_vec(),
        data_head(5, 0, 0).to_vec(),
    ]
    .concat();
    let expected = [
        Frame::SynReply { id: 1 },
        Frame::Reset { id: 3 },
        Frame::Settings(vec![(4, 5), (7, 0)]),
        Frame::Ping(9),
        Frame::GoAway,
        Frame::WindowUpdate { id: 0, delta: 1 },
        Frame::Data {
            id: 5,
            bytes: Bytes::from_static(b"hi"),
            fin: true,
        },
        Frame::Data {
            id: 5,
            bytes: Bytes::new(),
            fin: false,
        },
    ];
    assert_eq!(decode(&bytes).unwrap(), expected);
}

/// Whatever its type, the rest of the connection can be read.
#[test]
fn a_frame_of_an_unknown_type_is_passed_over() {
    let mut bytes = vec![0x80, 3, 0, 10, 0, 1, 0, 0];
    bytes.resize(8 + (1 << 16), 7);
    bytes.extend(ping(1));
    assert_eq!(decode(&bytes).unwrap(), [Frame::Ping(1)]);
}

#[test]
fn what_is_broken_is_refused() {
    let length = |kind, length| Fault::Length { kind, length };
    for (bytes, fault) in [
        (vec![0x80, 2, 0, 6, 0, 0, 0, 4], Fault::Version(2)),
        (vec![0, 0, 0, 0, 0, 0, 0, 0], Fault::StreamZero),
        (vec![0x80, 3, 0, 6, 0, 0, 0, 0], length(6, 0)),
        (vec![0x80, 3, 0, 6, 0, 0, 0, 5, 0, 0, 0, 1, 0], length(6, 5)),
        (
            vec![0x80, 3, 0, 6, 1, 0, 0, 4, 0, 0, 0, 1],
            Fault::Meaning(6),
        ),
        (vec![0x80, 3, 0, 6, 0, 0, 0x10, 1], length(6, 0x1001)),
        (vec![0x80, 3, 0, 1, 0, 0, 0x40, 1], length(1, 0x4001)),
        (vec![0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1], length(1, 4)),
        (frame::ping(0), Fault::Meaning(6)),
        (reset(0, 1), Fault::StreamZero),
        (reset(1, 0), Fault::Meaning(3)),
        (window_update(1, 0), Fault::Meaning(9)),
        (vec![0x80, 3, 0, 4, 0, 0, 0, 4, 0x20, 0, 0, 0], length(4, 4)),
    ] {
        assert_eq!(decode(&bytes), Err(fault), "{bytes:?}");
    }
}

proptest! {
    /// The payload of a frame is given out as it comes, in order, and its end is said once.
    #[test]
    fn data_survives_every_cut(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
        step in 1_usize..64,
    ) {
        let mut bytes = Vec::new();
        for payload in &payloads {
            bytes.extend(data_head(7, 0, payload.len()));
            bytes.extend(payload);
        }
        bytes.extend(data_head(7, FIN, 0));
        let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
        let (mut all, mut fins) = (Vec::new(), 0);
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.next(&mut buffer).unwrap() {
                let Frame::Data { id: 7, bytes, fin } = frame else { panic!("{frame:?}") };
                all.extend_from_slice(&bytes);
                fins += usize::from(fin);
            }
        }
        prop_assert_eq!(all, payloads.concat());
        prop_assert_eq!(fins, 1);
    }
}
