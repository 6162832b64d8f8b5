//! Exec and attach over both protocols.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use bytes::BytesMut;
use serde_json::{Value, json};

use super::*;
use crate::streaming::inbox;
use crate::streaming::spdy::frame::{self, Decoder, FIN, Frame};

/// A client's side of SPDY. It uses the server's framing; `integration` has one that does not.
pub struct Spdy {
    pub stream: TcpStream,
    buffer: BytesMut,
    decoder: Decoder,
    packer: super::super::spdy::Packer,
    next: u32,
    /// What came on each stream, those that ended, and those that were reset.
    pub data: HashMap<u32, Vec<u8>>,
    pub ended: HashSet<u32>,
    pub reset: HashSet<u32>,
    pub pings: Vec<u32>,
    pub went_away: bool,
}

impl Spdy {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            decoder: Decoder::new(),
            packer: super::super::spdy::Packer::new(),
            next: 1,
            data: HashMap::new(),
            ended: HashSet::new(),
            reset: HashSet::new(),
            pings: Vec::new(),
            went_away: false,
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("a server");
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let packed = self.packer.pack(headers);
        let mut bytes = vec![0x80, 3, 0, 1];
        bytes.extend_from_slice(&(packed.len() as u32 + 10).to_be_bytes());
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&packed);
        self.send(&bytes).await;
        id
    }

    pub async fn open_kinds<const N: usize>(&mut self, kinds: [&str; N]) -> [u32; N] {
        let mut ids = [0; N];
        for (id, kind) in ids.iter_mut().zip(kinds) {
            *id = self.open(&[("streamtype", kind)]).await;
        }
        ids
    }

    pub async fn data(&mut self, id: u32, bytes: &[u8], fin: bool) {
        let flags = if fin { FIN } else { 0 };
        self.send(&frame::data_head(id, flags, bytes.len())).await;
        self.send(bytes).await;
    }

    /// Takes the next frame; whether there was one.
    pub async fn step(&mut self) -> bool {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.buffer).expect("frames") {
                match frame {
                    Frame::Data { id, bytes, fin } => {
                        self.data.entry(id).or_default().extend_from_slice(&bytes);
                        if fin {
                            self.ended.insert(id);
                        }
                    }
                    Frame::Reset { id } => {
                        self.reset.insert(id);
                    }
                    Frame::Ping(id) => self.pings.push(id),
                    Frame::GoAway => self.went_away = true,
                    _ => {}
                }
                return true;
            }
            let read = tokio::time::timeout(LONG, self.stream.read_buf(&mut self.buffer)).await;
            if !matches!(read.expect("it happens soon"), Ok(1..)) {
                return false;
            }
        }
    }

    pub async fn until(&mut self, mut reached: impl FnMut(&Self) -> bool) {
        while !reached(self) {
            assert!(self.step().await, "the server ended the connection");
        }
    }

    pub async fn finish(&mut self) {
        while self.step().await {}
    }

    pub fn text(&self, id: u32) -> &str {
        let bytes = self.data.get(&id).map_or(&[][..], Vec::as_slice);
        std::str::from_utf8(bytes).expect("text")
    }

    pub fn json(&self, id: u32) -> Value {
        serde_json::from_str(self.text(id)).expect("a document")
    }
}

fn wanted(stdin: bool, stdout: bool) -> Wanted {
    Wanted {
        stdin,
        stdout,
        ..Wanted::default()
    }
}

#[tokio::test]
async fn spdy_carries_a_command_to_its_end() {
    let site = Site::start().await;
    let path = site.exec(&["cat"], wanted(true, true));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    let [error, stdin, stdout] = client.open_kinds(["error", "stdin", "stdout"]).await;
    client.data(stdin, b"hello", false).await;
    client.until(|client| client.text(stdout) == "hello").await;
    client.data(stdin, b" world", true).await;
    client.finish().await;
    assert_eq!(client.text(stdout), "hello world");
    assert_eq!(client.json(error), json!({ "status": "Success" }));
    assert_eq!(client.ended, [error, stdin, stdout].into());
    assert!(client.reset.is_empty() && client.went_away);
}

#[tokio::test]
async fn spdy_tells_codes_and_failures() {
    let site = Site::start().await;
    let mut outcomes = Vec::new();
    for (command, protocol) in [
        (["exit", "3"], "v4.channel.k8s.io"),
        (["fail", ""], "v4.channel.k8s.io"),
        (["fail", ""], "channel.k8s.io"),
        (["exit", "0"], "v2.channel.k8s.io"),
    ] {
        let mut client = site
            .spdy(&site.exec(&command, wanted(false, true)), protocol)
            .await;
        let [error, _stdout] = client.open_kinds(["error", "stdout"]).await;
        client.finish().await;
        outcomes.push(client.text(error).to_owned());
    }
    let code: Value = serde_json::from_str(&outcomes[0]).unwrap();
    assert_eq!(code["details"]["causes"][0]["message"], "3");
    let failed = "Internal error occurred: error executing command in container: no such program";
    let document: Value = serde_json::from_str(&outcomes[1]).unwrap();
    assert_eq!(document["message"], failed);
    assert_eq!(outcomes[2..], [failed, ""]);
}

#[tokio::test]
async fn spdy_has_windows_for_who_heeds_them() {
    let site = Site::start().await;
    let path = site.exec(&["fill", "100000"], wanted(false, true));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    client.send(&frame::settings(&[(7, 1000)])).await;
    let [error, stdout] = client.open_kinds(["error", "stdout"]).await;
    let length = |client: &Spdy| client.text(stdout).len();
    client.until(|client| length(client) == 1000).await;
    client.send(&frame::window_update(stdout, 500)).await;
    client.send(&frame::ping(1)).await;
    // The answer to the ping comes after everything that the window lets through, and nothing else does.
    client.until(|client| client.pings == [1]).await;
    client.until(|client| length(client) == 1500).await;
    client.send(&frame::window_update(stdout, 1 << 30)).await;
    // Now it is the session's window that counts.
    client.until(|client| length(client) == 64 << 10).await;
    client.send(&frame::ping(3)).await;
    client.until(|client| client.pings == [1, 3]).await;
    assert_eq!(length(&client), 64 << 10);
    client.send(&frame::window_update(0, 1 << 20)).await;
    client.finish().await;
    assert_eq!(length(&client), 100_000);
    assert_eq!(client.json(error), json!({ "status": "Success" }));
}

#[tokio::test]
async fn spdy_does_not_wait_for_windows_that_nobody_opens() {
    let site = Site::start().await;
    let path = site.exec(&["fill", "3000000"], wanted(false, true));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    let [_error, stdout] = client.open_kinds(["error", "stdout"]).await;
    client.finish().await;
    assert_eq!(client.text(stdout).len(), 3_000_000);
}

#[tokio::test]
async fn who_sends_more_than_a_window_that_it_heeds_is_reset() {
    let site = Site::start().await;
    let path = site.exec(&["stuck"], wanted(true, false));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    client.send(&frame::settings(&[(7, 1000)])).await;
    let [_error, stdin] = client.open_kinds(["error", "stdin"]).await;
    client.data(stdin, &vec![0; inbox::STREAM], false).await;
    client.data(stdin, b"x", false).await;
    client.until(|client| client.reset.contains(&stdin)).await;
}

#[tokio::test]
async fn a_terminal_has_sizes() {
    let site = Site::start().await;
    let wanted = Wanted {
        tty: true,
        ..wanted(false, true)
    };
    let path = site.exec(&["sizes", "2"], wanted);
    let mut client = site.spdy(&path, "v3.channel.k8s.io").await;
    let [_error, stdout, resize] = client.open_kinds(["error", "stdout", "resize"]).await;
    client
        .data(resize, b"{\"Width\":80,\"Height\":24}{\"Wid", false)
        .await;
    client.data(resize, b"th\":10,\"Height\":5}\n", false).await;
    client.finish().await;
    assert_eq!(client.text(stdout), "80x24 10x5 ");
    // Before `v3` there is no such stream, and a terminal all the same.
    let path = site.exec(&["sizes", "0"], wanted);
    let mut client = site.spdy(&path, "v2.channel.k8s.io").await;
    let [error, _stdout] = client.open_kinds(["error", "stdout"]).await;
    client.finish().await;
    assert_eq!(client.text(error), "");
}

#[tokio::test]
async fn who_opens_too_few_streams_is_told() {
    let site = Site::start_with(|settings| settings.creation = Duration::from_secs(1)).await;
    let path = site.exec(&["exit", "0"], wanted(true, true));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    let [error, _one, twice, unknown] = client
        .open_kinds(["error", "stdin", "stdin", "stderr"])
        .await;
    client.until(|client| client.reset.contains(&unknown)).await;
    assert!(client.reset.contains(&twice));
    client.until(|client| client.went_away).await;
    let message = client.json(error)["message"].to_string();
    assert!(message.contains("within 1 s"), "{message}");
}

#[tokio::test]
async fn a_command_is_told_that_its_client_is_gone() {
    let site = Site::start().await;
    let path = site.exec(&["stuck"], wanted(true, false));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    client.open_kinds(["error", "stdin"]).await;
    site.fake.reaches(1, 0).await;
    drop(client);
    site.fake.reaches(1, 1).await;
}

/// What it sent before is not read by anybody, so that its end does not come up in reading.
#[tokio::test]
async fn a_client_that_is_held_up_is_seen_to_go() {
    let site = Site::start().await;
    let path = site.exec(&["stuck"], wanted(true, false));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    let [_error, stdin] = client.open_kinds(["error", "stdin"]).await;
    site.fake.reaches(1, 0).await;
    client.data(stdin, &vec![0; inbox::STREAM + 1], false).await;
    // Nothing is read any more: what is sent on stays in the sockets.
    while client.stream.try_write(&[0; 4096]).is_ok() {}
    drop(client);
    site.fake.reaches(1, 1).await;
}

#[tokio::test]
async fn who_breaks_the_protocol_is_thrown_out() {
    let site = Site::start().await;
    for noise in [
        &b"\0\0\0\0 stream zero"[..],
        &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
        &frame::syn_reply(1, b"noise"),
        &frame::settings(&[(7, u32::MAX)]),
    ] {
        let path = site.exec(&["stuck"], wanted(true, false));
        let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
        client.send(noise).await;
        client.finish().await;
    }
    // A stream that is none of the client's, and one that is older than the last.
    for ids in [&[2][..], &[5, 3], &[1, 1]] {
        let path = site.exec(&["stuck"], wanted(true, false));
        let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
        for id in ids {
            client.next = *id;
            client.open(&[("streamtype", "error")]).await;
        }
        client.finish().await;
        assert!(client.went_away, "{ids:?}");
    }
}

#[tokio::test]
async fn nothing_is_left_of_what_fails() {
    let site = Site::start().await;
    let handle = tokio::runtime::Handle::current();
    let before = handle.metrics().num_alive_tasks();
    for round in 0..100 {
        let path = match round % 2 {
            0 => site.exec(&["fail"], wanted(true, true)),
            _ => site.exec(&["stuck"], wanted(true, true)),
        };
        let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
        client.open_kinds(["error", "stdin", "stdout"]).await;
        site.fake.reaches(round + 1, round).await;
        drop(client);
        site.fake.reaches(round + 1, round + 1).await;
    }
    // The last connections' tasks end just after what they ran.
    let gone = async {
        while handle.metrics().num_alive_tasks() > before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, gone)
        .await
        .expect("it happens soon");
}

/// A message as a client sends it.
fn message(payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    let mask = [3, 1, 4, 1];
    let mut frame = vec![0x82, 0x80 | payload.len() as u8];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    frame
}

/// The payload of the next frame, if it is of this kind.
pub async fn receive(stream: &mut TcpStream, kind: u8) -> Vec<u8> {
    let receive = async {
        assert_eq!(stream.read_u8().await.expect("a frame"), 0x80 | kind);
        let length = match stream.read_u8().await.expect("a length") {
            126 => usize::from(stream.read_u16().await.expect("a length")),
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.expect("a payload");
        payload
    };
    tokio::time::timeout(LONG, receive)
        .await
        .expect("it happens soon")
}

#[tokio::test]
async fn a_websocket_closes_stdin_by_a_message() {
    let site = Site::start().await;
    let path = site.exec(&["cat"], wanted(true, true));
    let mut client = site.websocket(&path, "v5.channel.k8s.io").await;
    assert_eq!(receive(&mut client, 2).await, [1]);
    client.write_all(&message(b"\0hello")).await.unwrap();
    assert_eq!(receive(&mut client, 2).await, b"\x01hello");
    client.write_all(&message(&[255, 0])).await.unwrap();
    assert_eq!(
        receive(&mut client, 2).await,
        b"\x03{\"status\":\"Success\"}"
    );
    assert_eq!(receive(&mut client, 8).await, [3, 0xe8]);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_websocket_may_speak_base64() {
    let site = Site::start().await;
    let both = Wanted {
        stderr: true,
        ..wanted(false, true)
    };
    let path = site.exec(&["both"], both);
    let mut client = site.websocket(&path, "base64.channel.k8s.io").await;
    assert_eq!(receive(&mut client, 1).await, b"1");
    assert_eq!(receive(&mut client, 1).await, b"1b3V0");
    assert_eq!(receive(&mut client, 1).await, b"2ZXJy");
    assert_eq!(receive(&mut client, 8).await, [3, 0xe8]);
    let path = site.exec(
        &["sizes", "1"],
        Wanted {
            tty: true,
            ..wanted(true, true)
        },
    );
    let mut client = site.websocket(&path, "v4.base64.channel.k8s.io").await;
    assert_eq!(receive(&mut client, 1).await, b"1");
    let size = message(b"4eyJXaWR0aCI6MiwiSGVpZ2h0IjoxfQ==");
    client.write_all(&size).await.unwrap();
    assert_eq!(receive(&mut client, 1).await, b"1MngxIA==");
}

#[tokio::test]
async fn a_websocket_answers_pings_and_its_end() {
    let site = Site::start().await;
    let path = site.exec(&["stuck"], wanted(true, false));
    let mut client = site.websocket(&path, "v4.channel.k8s.io").await;
    assert_eq!(receive(&mut client, 2).await, [3]);
    let mut ping = message(b"?");
    ping[0] = 0x89;
    client.write_all(&ping).await.unwrap();
    assert_eq!(receive(&mut client, 10).await, b"?");
    let mut close = message(b"");
    close[0] = 0x88;
    client.write_all(&close).await.unwrap();
    assert_eq!(receive(&mut client, 8).await, [3, 0xe8]);
    site.fake.reaches(1, 1).await;
}

#[tokio::test]
async fn a_websocket_that_makes_no_sense_is_closed() {
    let site = Site::start().await;
    let path = site.exec(&["stuck"], wanted(true, false));
    let mut client = site.websocket(&path, "v5.channel.k8s.io").await;
    assert_eq!(receive(&mut client, 2).await, [3]);
    client.write_all(&message(&[255])).await.unwrap();
    assert_eq!(receive(&mut client, 8).await, [3, 0xea]);
    site.fake.reaches(1, 1).await;
}

#[tokio::test]
async fn an_attachment_ends_with_success() {
    let site = Site::start().await;
    let path = site.path(Request::Attach {
        container: ContainerId::random(),
        wanted: wanted(false, true),
    });
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    let [error, stdout] = client.open_kinds(["error", "stdout"]).await;
    client.finish().await;
    assert_eq!(client.text(stdout), "attached");
    assert_eq!(client.json(error), json!({ "status": "Success" }));
}

/// To a client a connection that ends without a word is a command that has succeeded.
#[tokio::test]
async fn who_is_there_when_the_server_ends_is_told() {
    let site = Site::start().await;
    let path = site.exec(&["stuck"], wanted(true, true));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    let [error, _stdin, stdout] = client.open_kinds(["error", "stdin", "stdout"]).await;
    let path = site.exec(&["stuck"], wanted(true, false));
    let mut other = site.websocket(&path, "v5.channel.k8s.io").await;
    assert_eq!(receive(&mut other, 2).await, [3]);
    site.fake.reaches(2, 0).await;

    let begin = Instant::now();
    let clients = site.clients.clone();
    let ending = tokio::spawn(async move { clients.end().await });
    client.finish().await;
    let outcome = client.json(error);
    let text = outcome["message"].as_str().expect("a message");
    assert!(text.contains("carpel is being stopped"), "{outcome}");
    assert_eq!(outcome["status"], "Failure");
    assert_eq!(client.text(stdout), "");
    let told = receive(&mut other, 2).await;
    let told = String::from_utf8(told).expect("text");
    assert!(told.contains("carpel is being stopped"), "{told}");
    assert_eq!(receive(&mut other, 8).await, [3, 0xe8]);
    drop(client);
    drop(other);
    ending.await.expect("an end");
    // Nobody was waited for who had heard it.
    assert!(begin.elapsed() < Duration::from_millis(900));
    site.fake.reaches(2, 2).await;
}

#[tokio::test]
async fn who_says_nothing_for_long_is_gone() {
    let idle = Duration::from_millis(320);
    let site = Site::start_with(|settings| settings.idle = idle).await;
    let path = site.exec(&["stuck"], wanted(true, false));
    let mut client = site.spdy(&path, "v4.channel.k8s.io").await;
    let [_error, stdin] = client.open_kinds(["error", "stdin"]).await;
    // For as long as it says something it stays.
    for _ in 0..20 {
        client.data(stdin, b"x", false).await;
        tokio::time::sleep(idle / 10).await;
    }
    site.fake.reaches(1, 0).await;
    assert!(!client.went_away);
    client.data(stdin, b"x", false).await;
    client.finish().await;
    site.fake.reaches(1, 1).await;
}
