//! Pushing an image to an open registry over http: the little of the protocol that it takes.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::image::{Built, digest};

/// Pushes an image; returns the digest of its manifest. Must be called where `host` can be reached.
///
/// # Panics
/// If the registry refuses anything.
#[must_use]
pub fn push(host: &str, repository: &str, tag: &str, image: &Built) -> String {
    for blob in image.layers.iter().chain([&image.config]) {
        let begin = format!("/v2/{repository}/blobs/uploads/");
        let (status, head) = exchange(host, "POST", &begin, "", &[]);
        assert_eq!(status, 202, "{head}");
        let location = header(&head, "location").expect("a location");
        let path = location.trim_start_matches(&format!("http://{host}"));
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{mark}digest={}", digest(blob));
        let (status, head) = exchange(host, "PUT", &path, "application/octet-stream", blob);
        assert_eq!(status, 201, "{head}");
    }
    let kind = "application/vnd.oci.image.manifest.v1+json";
    push_document(host, repository, tag, kind, &image.manifest)
}

/// Pushes an index whose manifests are there; returns its digest.
///
/// # Panics
/// If the registry refuses it.
#[must_use]
pub fn push_index(host: &str, repository: &str, tag: &str, index: &[u8]) -> String {
    let kind = "application/vnd.oci.image.index.v1+json";
    push_document(host, repository, tag, kind, index)
}

fn push_document(host: &str, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> String {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let (status, head) = exchange(host, "PUT", &path, kind, bytes);
    assert_eq!(status, 201, "{head}");
    digest(bytes)
}

fn exchange(host: &str, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(host).expect("connect to the registry");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
    )
    .expect("send");
    stream.write_all(body).expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("receive");
    let answer = String::from_utf8_lossy(&answer);
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.expect("a status"), head.to_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
