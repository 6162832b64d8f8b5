//! Frames of many writers through a narrow pipe.

use std::sync::Arc;

use tokio::io::AsyncReadExt;

use crate::streaming::outbound::Outbound;

#[tokio::test]
async fn frames_never_mix() {
    let (socket, mut client) = tokio::io::duplex(100);
    let outbound = Arc::new(Outbound::new(Box::new(socket)));
    let pumping = Arc::clone(&outbound);
    let pump = tokio::spawn(async move { pumping.pump().await });
    let mut writers = Vec::new();
    for writer in 1..=8_u8 {
        let outbound = Arc::clone(&outbound);
        writers.push(tokio::spawn(async move {
            for length in 0..200_usize {
                let payload = vec![writer; length * 31 % 4000];
                let head = [&[writer][..], &(payload.len() as u16).to_be_bytes()].concat();
                std::future::poll_fn(|context| outbound.poll_frame(context, &head, &payload))
                    .await
                    .expect("a client");
            }
        }));
    }
    let mut counts = [0; 9];
    while counts.iter().sum::<usize>() < 8 * 200 {
        let writer = client.read_u8().await.expect("a frame");
        let mut payload = vec![0; client.read_u16().await.expect("a length").into()];
        client.read_exact(&mut payload).await.expect("a payload");
        assert_eq!(payload.len(), counts[usize::from(writer)] * 31 % 4000);
        assert!(payload.iter().all(|&byte| byte == writer));
        counts[usize::from(writer)] += 1;
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
    outbound.drained().await.expect("a client");
    // Everything after the client's end fails.
    drop(client);
    let lost = std::future::poll_fn(|context| outbound.poll_frame(context, b"x", b"y")).await;
    assert!(lost.is_err());
    assert!(pump.await.expect("no panic").is_err());
    assert!(outbound.drained().await.is_err());
}

#[tokio::test]
async fn who_is_not_heard_waits() {
    let (socket, mut client) = tokio::io::duplex(100);
    let outbound = Outbound::new(Box::new(socket));
    let payload = vec![7; 64 << 10];
    let mut frames = 0;
    let write = || std::future::poll_fn(|context| outbound.poll_frame(context, b"", &payload));
    while futures::poll!(std::pin::pin!(write())).is_ready() {
        frames += 1;
    }
    assert_eq!(frames, 3, "what one frame more than enough takes");
    while outbound.try_frame(&payload) {
        frames += 1;
    }
    assert!(frames <= 5, "answers have little room more");
    let reading = async {
        let mut rest = vec![0; frames * payload.len()];
        client.read_exact(&mut rest).await.expect("all of them");
    };
    tokio::select! {
        broken = outbound.pump() => panic!("{broken:?}"),
        ((), written) = async { tokio::join!(reading, write()) } => written.expect("a client"),
    }
}
