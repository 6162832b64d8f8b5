//! Port-forward over both protocols, and over one within the other.

use tokio::net::TcpListener;

use super::commands::{Spdy, receive};
use super::*;
use crate::streaming::spdy::frame;

const PROTOCOL: &str = "portforward.k8s.io";

/// A listener, as one in a pod.
async fn pod() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback interface");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let accepted = tokio::time::timeout(LONG, listener.accept()).await;
    accepted.expect("it happens soon").expect("a connection").0
}

/// Opens both streams of a connection, as kubectl does: error first, and closed at once.
async fn open(client: &mut Spdy, port: u16, request: &str) -> (u32, u32) {
    let port = port.to_string();
    let headers = |kind| {
        [
            ("streamtype", kind),
            ("port", &*port),
            ("requestid", request),
        ]
    };
    let error = client.open(&headers("error")).await;
    client.data(error, b"", true).await;
    let data = client.open(&headers("data")).await;
    (error, data)
}

#[tokio::test]
async fn connections_share_one_of_the_clients() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let mut pairs = Vec::new();
    for request in 0..20 {
        let (error, data) = open(&mut client, port, &request.to_string()).await;
        client
            .data(data, format!("request {request}").as_bytes(), true)
            .await;
        pairs.push((request, error, data));
    }
    for _ in 0..pairs.len() {
        let mut stream = accept(&listener).await;
        tokio::spawn(async move {
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("a client");
            let answer = text.replace("request", "answer");
            stream.write_all(answer.as_bytes()).await.expect("a client");
        });
    }
    for (request, error, data) in pairs {
        client
            .until(|client| [error, data].iter().all(|id| client.ended.contains(id)))
            .await;
        assert_eq!(client.text(data), format!("answer {request}"));
        assert_eq!(client.text(error), "");
    }
    assert!(client.reset.is_empty());
}

#[tokio::test]
async fn each_side_closes_for_itself() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let (error, data) = open(&mut client, port, "0").await;
    let mut stream = accept(&listener).await;
    stream.shutdown().await.unwrap();
    client.until(|client| client.ended.contains(&data)).await;
    client.data(data, b"still", true).await;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "still");
    client.until(|client| client.ended.contains(&error)).await;
}

#[tokio::test]
async fn a_reset_goes_through_in_both_directions() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let (error, data) = open(&mut client, port, "0").await;
    let mut stream = accept(&listener).await;
    client
        .send(&frame::reset(data, frame::status::CANCEL))
        .await;
    let read = stream.read_u8().await.expect_err("it is reset");
    assert_eq!(read.kind(), std::io::ErrorKind::ConnectionReset);
    client.until(|client| client.ended.contains(&error)).await;

    let (error, data) = open(&mut client, port, "1").await;
    let mut stream = accept(&listener).await;
    client.data(data, b"x", false).await;
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    client.until(|client| client.reset.contains(&data)).await;
    client.until(|client| client.ended.contains(&error)).await;
    assert_eq!(client.text(error), "", "kubectl would give up everything");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    drop(listener);
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let (error, data) = open(&mut client, port, "0").await;
    client.until(|client| client.ended.contains(&error)).await;
    let text = client.text(error);
    assert!(
        text.starts_with(&format!("error forwarding port {port} to pod ")),
        "{text}"
    );
    client.until(|client| client.reset.contains(&data)).await;
}

#[tokio::test]
async fn streams_must_say_what_they_are() {
    let site = Site::start().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let mut bad = Vec::new();
    for headers in [
        &[("streamtype", "data")][..],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "65536")],
        &[("streamtype", "stdin"), ("port", "80")],
    ] {
        bad.push(client.open(headers).await);
    }
    client
        .until(|client| bad.iter().all(|id| client.reset.contains(id)))
        .await;
}

/// One that gives its connections no numbers.
#[tokio::test]
async fn an_old_client_opens_the_two_one_after_the_other() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let port = port.to_string();
    let error = client
        .open(&[("streamtype", "error"), ("port", &port)])
        .await;
    let data = client
        .open(&[("streamtype", "data"), ("port", &port)])
        .await;
    client.data(data, b"x", true).await;
    let mut text = String::new();
    accept(&listener)
        .await
        .read_to_string(&mut text)
        .await
        .unwrap();
    assert_eq!(text, "x");
    client.until(|client| client.ended.contains(&error)).await;
}

#[tokio::test]
async fn a_stream_without_its_partner_is_ended() {
    let site = Site::start_with(|settings| settings.creation = Duration::from_secs(1)).await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let headers = |kind, request| [("streamtype", kind), ("port", "80"), ("requestid", request)];
    let error = client.open(&headers("error", "0")).await;
    let data = client.open(&headers("data", "1")).await;
    client
        .until(|client| client.ended.contains(&error) && client.reset.contains(&data))
        .await;
    assert!(client.text(error).starts_with("timed out"));
}

#[tokio::test]
async fn streams_are_bounded() {
    let site = Site::start().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let mut last = 0;
    for request in 0..1025 {
        let request = request.to_string();
        let headers = [
            ("streamtype", "error"),
            ("port", "80"),
            ("requestid", &*request),
        ];
        last = client.open(&headers).await;
    }
    client.until(|client| !client.reset.is_empty()).await;
    assert_eq!(client.reset, [last].into());
}

#[tokio::test]
async fn connections_end_with_their_client() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    open(&mut client, port, "0").await;
    let mut stream = accept(&listener).await;
    drop(client);
    assert!(stream.read_u8().await.is_err());
}

#[tokio::test]
async fn a_websocket_has_channels_for_its_ports() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let path = site.ports(&[port, 1]);
    let mut client = site.websocket(&path, "v4.channel.k8s.io").await;
    let mut stream = accept(&listener).await;
    let mut messages = Vec::new();
    for _ in 0..5 {
        messages.push(receive(&mut client, 2).await);
    }
    let number = |channel: u8, port: u16| [&[channel][..], &port.to_le_bytes()].concat();
    for expected in [number(0, port), number(1, port), number(2, 1), number(3, 1)] {
        assert!(messages.contains(&expected), "{expected:?} in {messages:?}");
    }
    let refused = messages
        .iter()
        .find(|message| message.len() > 3)
        .expect("an error");
    assert!(refused.starts_with(b"\x03error forwarding port 1 "));
    // "?" on channel 0, not masked by anything.
    client
        .write_all(&[0x82, 0x82, 0, 0, 0, 0, 0, b'?'])
        .await
        .unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'?');
    stream.write_all(b"!").await.unwrap();
    assert_eq!(receive(&mut client, 2).await, b"\0!");
    drop(stream);
    assert_eq!(receive(&mut client, 8).await, [3, 0xe8]);
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// What goes through pipes comes whole and in order, beside small frames and answers, and through half-closed
/// connections: more connections than there are pipes.
#[tokio::test]
async fn much_comes_as_it_was_sent() {
    const CONNECTIONS: usize = 12;
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let mut opened = Vec::new();
    for request in 0..CONNECTIONS {
        let (error, data) = open(&mut client, port, &request.to_string()).await;
        let length = (request % 4 + 1) * 1_000_000 + request;
        client.data(data, &length.to_be_bytes(), true).await;
        opened.push((error, data, length));
    }
    let mut serving = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut stream = accept(&listener).await;
        serving.spawn(async move {
            let length = stream.read_u64().await.expect("a length") as usize;
            let bytes = pattern(length);
            // At first little, in the end little: with much between.
            stream.write_all(&bytes[..10]).await.expect("a client");
            stream.write_all(&bytes[10..]).await.expect("a client");
        });
    }
    for ping in 0..20 {
        client.send(&frame::ping(ping * 2 + 1)).await;
        client
            .until(|client| client.pings.contains(&(ping * 2 + 1)))
            .await;
    }
    for (error, data, length) in opened {
        client
            .until(|client| [error, data].iter().all(|id| client.ended.contains(id)))
            .await;
        assert!(client.data[&data] == pattern(length), "stream {data}");
        assert_eq!(client.text(error), "");
    }
    assert!(client.reset.is_empty());
    serving.join_all().await;
}

/// A client that heeds windows is sent no more than they let through, from pipes as well.
#[tokio::test]
async fn much_stays_within_the_windows() {
    const WINDOW: usize = 100_000;
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    client
        .send(&frame::settings(&[(
            frame::setting::INITIAL_WINDOW_SIZE,
            WINDOW as u32,
        )]))
        .await;
    client.send(&frame::window_update(0, 10 << 20)).await;
    let (_error, data) = open(&mut client, port, "0").await;
    let mut stream = accept(&listener).await;
    let bytes = pattern(3_000_000);
    let (sent, length) = (bytes.clone(), bytes.len());
    let serving = tokio::spawn(async move { stream.write_all(&sent).await });
    let come = |client: &Spdy| client.data.get(&data).map_or(0, Vec::len);
    let mut allowed = WINDOW;
    loop {
        client
            .until(|client| come(client) >= allowed.min(length))
            .await;
        // Nothing comes until the window is opened: what is answered was sent after it.
        client.send(&frame::ping(1)).await;
        client.until(|client| !client.pings.is_empty()).await;
        client.pings.clear();
        assert_eq!(come(&client), allowed.min(length));
        if allowed >= length {
            break;
        }
        client
            .send(&frame::window_update(data, WINDOW as u32))
            .await;
        allowed += WINDOW;
    }
    client.until(|client| client.ended.contains(&data)).await;
    assert!(client.data[&data] == bytes);
    serving.await.expect("no panic").expect("a client");
}

/// A client that reads nothing holds up its pods, and costs no more than it may.
#[tokio::test]
async fn a_client_that_is_not_reading_holds_up_its_pod() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let mut client = site.spdy(&site.ports(&[]), PROTOCOL).await;
    let (_error, data) = open(&mut client, port, "0").await;
    let mut stream = accept(&listener).await;
    let block = pattern(1 << 20);
    let mut sent = 0;
    // Two sockets' buffers and a pipe take some; then nothing more goes.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), stream.write(&block)).await
    {
        sent += written.expect("a client");
        assert!(sent < 64 << 20, "it goes on without its reader");
    }
    drop(stream);
    client.until(|client| client.ended.contains(&data)).await;
    assert_eq!(client.data[&data].len(), sent);
}

/// Wraps what a SPDY client writes into messages, and takes what it reads out of them.
async fn through_a_tunnel(mut outside: TcpStream) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inside = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (mut end, _) = listener.accept().await.unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 100];
        loop {
            let mut peeked = [0; 1];
            tokio::select! {
                read = end.read(&mut bytes) => match read {
                    Ok(count @ 1..) => {
                        let head = [0x82, 0x80 | count as u8, 0, 0, 0, 0];
                        outside.write_all(&head).await.unwrap();
                        outside.write_all(&bytes[..count]).await.unwrap();
                    }
                    _ => return,
                },
                Ok(1..) = outside.peek(&mut peeked) => {
                    let payload = receive(&mut outside, 2).await;
                    end.write_all(&payload).await.unwrap();
                }
            }
        }
    });
    inside
}

#[tokio::test]
async fn a_tunnel_carries_spdy() {
    let site = Site::start().await;
    let (listener, port) = pod().await;
    let path = site.ports(&[]);
    let outside = site.websocket(&path, "SPDY/3.1+portforward.k8s.io").await;
    let mut client = Spdy::new(through_a_tunnel(outside).await);
    let (error, data) = open(&mut client, port, "0").await;
    let mut stream = accept(&listener).await;
    let bytes: Vec<u8> = (0..50_000_u32).map(|n| n as u8 & 0x7f).collect();
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    client.until(|client| client.ended.contains(&data)).await;
    assert_eq!(client.text(data).as_bytes(), bytes);
    client.data(data, b"back", true).await;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "back");
    client.until(|client| client.ended.contains(&error)).await;
}
