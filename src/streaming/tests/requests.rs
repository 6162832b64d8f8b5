//! What comes before the upgrade.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const SPDY: [&str; 3] = [
    "Connection: Upgrade",
    "Upgrade: SPDY/3.1",
    "X-Stream-Protocol-Version: v4.channel.k8s.io",
];

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).expect("a status")
}

/// The values of a header.
fn header<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    let named = |line: &'a str| {
        let (this, value) = line.split_once(':')?;
        this.eq_ignore_ascii_case(name).then(|| value.trim())
    };
    answer.lines().filter_map(named).collect()
}

#[tokio::test]
async fn a_url_is_good_once() {
    let site = Site::start().await;
    let line = format!("POST {}", site.exec(&["stuck"], Wanted::default()));
    let (answer, _stream) = site.request(&line, &SPDY).await;
    assert_eq!(status(&answer), "101");
    // With "close" beside it Go's HTTP drops the header, and its clients see no upgrade.
    assert_eq!(header(&answer, "connection"), ["Upgrade"]);
    let (answer, mut stream) = site.request(&line, &SPDY).await;
    assert_eq!(status(&answer), "404");
    assert_eq!(header(&answer, "connection"), ["close"]);
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    let _ = tokio::time::timeout(LONG, end).await.expect("it ends soon");
}

#[tokio::test]
async fn a_url_is_used_up_by_whatever_comes() {
    let site = Site::start().await;
    let good = site.exec(&["stuck"], Wanted::default());
    let line = format!("GET {good}");
    assert_eq!(status(&site.request(&line, &[]).await.0), "400");
    assert_eq!(status(&site.request(&line, &SPDY).await.0), "404");
}

#[tokio::test]
async fn everything_else_is_not_found() {
    let site = Site::start().await;
    let path = site.exec(&["stuck"], Wanted::default());
    let token = path.rsplit('/').next().expect("a token");
    for (line, expected) in [
        ("GET /".to_owned(), "404"),
        ("GET /exec".to_owned(), "404"),
        ("GET /exec/".to_owned(), "404"),
        ("GET /exec/AAAAAAAAAAAAAAAAAAAAAA".to_owned(), "404"),
        (format!("GET /other/{token}"), "404"),
        (format!("PUT {path}"), "405"),
        (format!("GET {path}/more"), "404"),
        // Those did not use it up; a request for the wrong thing does.
        (format!("GET /portforward/{token}"), "404"),
        (format!("GET {path}"), "404"),
    ] {
        assert_eq!(
            status(&site.request(&line, &SPDY).await.0),
            expected,
            "{line}"
        );
    }
}

#[tokio::test]
async fn who_does_not_ask_is_cut_off() {
    let site = Site::start_with(|settings| settings.head = Duration::from_millis(100)).await;
    let mut stream = TcpStream::connect(site.address).await.expect("a server");
    stream.write_all(b"GET /exec/").await.expect("a server");
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    let _ = tokio::time::timeout(LONG, end)
        .await
        .expect("it happens soon");
    assert!(!rest.starts_with(b"HTTP/1.1 2"));
}

#[tokio::test]
async fn a_websocket_names_its_ports() {
    let site = Site::start().await;
    let headers = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    for ports in [&[][..], &[1; 128]] {
        let line = format!("GET {}", site.ports(ports));
        assert_eq!(status(&site.request(&line, &headers).await.0), "400");
    }
}
