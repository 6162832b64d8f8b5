//! Frames of many writers through a narrow pipe.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("it is bound");
    let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
    (one.expect("a listener"), other.expect("a connection").0)
}

#[tokio::test]
async fn frames_from_pipes_never_mix_with_others() {
    const WRITERS: u8 = 4;
    const FRAMES: usize = 100;
    let (mut client, socket) = pair().await;
    let outbound = Arc::new(Outbound::new(Box::new(socket.into_split().1)));
    let pumping = Arc::clone(&outbound);
    let pump = tokio::spawn(async move { pumping.pump().await });
    let mut writers = tokio::task::JoinSet::new();
    let length = |frame: usize| frame * 6151 % 60_000 + 1;
    for writer in 0..WRITERS {
        let shared = Arc::clone(&outbound);
        let outbound = Arc::clone(&outbound);
        writers.spawn(async move {
            let (mut pod, from) = pair().await;
            let pipe = outbound.pipe().expect("a pipe");
            for frame in 0..FRAMES {
                let mut left = length(frame);
                pod.write_all(&vec![writer; left]).await.expect("a socket");
                while left > 0 {
                    let count = pipe.fill(&from).await.expect("a socket");
                    let head = [&[writer][..], &(count as u32).to_be_bytes()].concat();
                    std::future::poll_fn(|context| {
                        outbound.poll_pipe(context, &head, &pipe, count)
                    })
                    .await
                    .expect("a client");
                    std::future::poll_fn(|context| outbound.poll_piped(context, &pipe))
                        .await
                        .expect("a client");
                    left -= count;
                }
            }
        });
        let outbound = Arc::clone(&shared);
        writers.spawn(async move {
            let writer = writer + WRITERS;
            for frame in 0..FRAMES {
                let payload = vec![writer; length(frame)];
                let head = [&[writer][..], &(payload.len() as u32).to_be_bytes()].concat();
                std::future::poll_fn(|context| outbound.poll_frame(context, &head, &payload))
                    .await
                    .expect("a client");
            }
        });
    }
    let all: usize = (0..FRAMES).map(length).sum();
    let mut come = [0; 2 * WRITERS as usize];
    while come.iter().sum::<usize>() < 2 * usize::from(WRITERS) * all {
        let writer = client.read_u8().await.expect("a frame");
        let length = client.read_u32().await.expect("a length") as usize;
        let mut payload = vec![0; length];
        client.read_exact(&mut payload).await.expect("a payload");
        assert!(payload.iter().all(|&byte| byte == writer));
        come[usize::from(writer)] += length;
    }
    assert_eq!(come, [all; 2 * WRITERS as usize]);
    writers.join_all().await;
    outbound.drained().await.expect("a client");
    drop(client);
    pump.abort();
}

#[tokio::test]
async fn a_connection_has_few_pipes() {
    let (_client, socket) = pair().await;
    let outbound = Outbound::new(Box::new(socket.into_split().1));
    let mut pipes: Vec<_> = std::iter::from_fn(|| outbound.pipe()).take(100).collect();
    assert_eq!(pipes.len(), 8);
    pipes.pop();
    assert!(outbound.pipe().is_some());
    // What is not written as it is has none.
    let (socket, _client) = tokio::io::duplex(100);
    assert!(Outbound::new(Box::new(socket)).pipe().is_none());
}
