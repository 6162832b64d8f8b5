//! Which protocol a request and we agree on. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use super::websocket::Coding;

const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";
/// What RFC 6455 has a server hash with the client's key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a URL is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Exec and attach.
    Command,
    PortForward,
}

/// How a command's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By a sentence if something went wrong; `v1` to `v3`.
    Text,
    /// By a JSON document; `v4` and later.
    Json,
}

/// What is spoken on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `resize`: with a stream for the terminal's sizes.
    Spdy {
        status: Status,
        resize: bool,
    },
    Channels {
        status: Status,
        coding: Coding,
    },
    /// SPDY for ports, in the messages of a WebSocket.
    Tunnel,
}

struct Known {
    name: &'static str,
    protocol: Protocol,
}

const fn spdy(name: &'static str, status: Status, resize: bool) -> Known {
    let protocol = Protocol::Spdy { status, resize };
    Known { name, protocol }
}

const fn channels(name: &'static str, status: Status, base64: bool, closes: bool) -> Known {
    let coding = Coding { base64, closes };
    let protocol = Protocol::Channels { status, coding };
    Known { name, protocol }
}

const SPDY_COMMAND: &[Known] = &[
    spdy("v4.channel.k8s.io", Status::Json, true),
    spdy("v3.channel.k8s.io", Status::Text, true),
    spdy("v2.channel.k8s.io", Status::Text, false),
    spdy("channel.k8s.io", Status::Text, false),
];
const SPDY_PORTS: &[Known] = &[spdy("portforward.k8s.io", Status::Text, false)];
const WEBSOCKET_COMMAND: &[Known] = &[
    channels("v5.channel.k8s.io", Status::Json, false, true),
    channels("v4.channel.k8s.io", Status::Json, false, false),
    channels("v4.base64.channel.k8s.io", Status::Json, true, false),
    channels("v3.channel.k8s.io", Status::Text, false, false),
    channels("v2.channel.k8s.io", Status::Text, false, false),
    channels("channel.k8s.io", Status::Text, false, false),
    channels("base64.channel.k8s.io", Status::Text, true, false),
    channels("", Status::Text, false, false),
];
const WEBSOCKET_PORTS: &[Known] = &[
    Known {
        name: "SPDY/3.1+portforward.k8s.io",
        protocol: Protocol::Tunnel,
    },
    channels("v4.channel.k8s.io", Status::Text, false, false),
    channels("v4.base64.channel.k8s.io", Status::Text, true, false),
    channels("", Status::Text, false, false),
];

/// Why a request is not upgraded.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub text: String,
    pub headers: HeaderMap,
}

impl Refusal {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            headers: HeaderMap::new(),
        }
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }
}

/// The protocol, and the answer that switches to it.
///
/// The request's Origin does not count, as with other runtimes: its right is the token, which no foreign page knows,
/// and the kubelet passes on the origin of whatever page a browser's terminal is on.
///
/// # Errors
/// What a client gets to read if there is none.
pub fn agree(
    purpose: Purpose,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(Protocol, Response<()>), Refusal> {
    if !words(headers, CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "connection: must ask for an upgrade",
        ));
    }
    let upgrade = |to: &str| words(headers, UPGRADE).any(|word| word.eq_ignore_ascii_case(to));
    if upgrade("websocket") {
        return websocket(purpose, method, headers);
    }
    if !upgrade(SPDY) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "upgrade: must be SPDY/3.1 or websocket",
        ));
    }
    let known = match purpose {
        Purpose::Command => SPDY_COMMAND,
        Purpose::PortForward => SPDY_PORTS,
    };
    if words(headers, VERSION).next().is_none() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "x-stream-protocol-version: must be set",
        ));
    }
    let Some(known) = first_known(known, words(headers, VERSION)) else {
        let text = "x-stream-protocol-version: names no protocol that is spoken here";
        let refusal = Refusal::new(StatusCode::FORBIDDEN, text);
        return Err(known
            .iter()
            .fold(refusal, |refusal, known| refusal.with(ACCEPTED, known.name)));
    };
    let answer = switch(SPDY).header(VERSION, known.name).body(());
    Ok((known.protocol, answer.expect("the headers are valid")))
}

fn websocket(
    purpose: Purpose,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(Protocol, Response<()>), Refusal> {
    if method != Method::GET {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "a WebSocket begins with GET",
        ));
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .map(HeaderValue::as_bytes)
        != Some(b"13")
    {
        let text = "sec-websocket-version: must be 13";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, text).with(SEC_WEBSOCKET_VERSION, "13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let valid = |key: &&[u8]| STANDARD.decode(key).is_ok_and(|key| key.len() == 16);
    let Some(key) = key.filter(valid) else {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "sec-websocket-key: must be 16 bytes in base64",
        ));
    };
    let known = match purpose {
        Purpose::Command => WEBSOCKET_COMMAND,
        Purpose::PortForward => WEBSOCKET_PORTS,
    };
    let mut asked = words(headers, SEC_WEBSOCKET_PROTOCOL).peekable();
    let agreed = match asked.peek() {
        Some(_) => first_known(known, asked),
        None => first_known(known, [""].into_iter()),
    };
    let agreed = agreed.ok_or_else(|| {
        let text = "sec-websocket-protocol: names no protocol that is spoken here";
        Refusal::new(StatusCode::FORBIDDEN, text)
    })?;
    let hash = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        &[key, GUID].concat(),
    );
    let mut answer = switch("websocket").header(SEC_WEBSOCKET_ACCEPT, STANDARD.encode(hash));
    if !agreed.name.is_empty() {
        answer = answer.header(SEC_WEBSOCKET_PROTOCOL, agreed.name);
    }
    Ok((
        agreed.protocol,
        answer.body(()).expect("the headers are valid"),
    ))
}

fn switch(to: &'static str) -> http::response::Builder {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, to)
}

/// The first that the client names and we know.
fn first_known<'a>(
    known: &'static [Known],
    mut asked: impl Iterator<Item = &'a str>,
) -> Option<&'static Known> {
    asked.find_map(|asked| known.iter().find(|known| known.name == asked))
}

/// The words of a header that may be a list, and may be there more than once.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let parsed = pairs.iter().map(|&(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        let mut headers = HeaderMap::new();
        parsed.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    fn spdy_request(more: &[(&'static str, &'static str)]) -> HeaderMap {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        request(&[&upgrade[..], more].concat())
    }

    fn websocket_request(more: &[(&'static str, &'static str)]) -> HeaderMap {
        let upgrade = [
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            // The example of RFC 6455.
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        request(&[&upgrade[..], more].concat())
    }

    #[test]
    fn the_clients_first_known_protocol_counts() {
        let headers = spdy_request(&[
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            (
                "x-stream-protocol-version",
                "v3.channel.k8s.io, v4.channel.k8s.io",
            ),
        ]);
        let (protocol, answer) = agree(Purpose::Command, &Method::POST, &headers).unwrap();
        let expected = Protocol::Spdy {
            status: Status::Text,
            resize: true,
        };
        assert_eq!(protocol, expected);
        assert_eq!(answer.headers()[VERSION], "v3.channel.k8s.io");
        assert_eq!(answer.headers()[UPGRADE], "SPDY/3.1");
        assert_eq!(answer.status(), 101);
    }

    #[test]
    fn spdy_must_name_a_protocol() {
        let refused = agree(Purpose::Command, &Method::POST, &spdy_request(&[])).unwrap_err();
        assert_eq!(refused.status, 400);
        let headers = spdy_request(&[("x-stream-protocol-version", "portforward.k8s.io")]);
        let refused = agree(Purpose::Command, &Method::POST, &headers).unwrap_err();
        assert_eq!(refused.status, 403);
        let accepted: Vec<_> = refused.headers.get_all(ACCEPTED).iter().collect();
        let all = [
            "v4.channel.k8s.io",
            "v3.channel.k8s.io",
            "v2.channel.k8s.io",
            "channel.k8s.io",
        ];
        assert_eq!(accepted, all);
        agree(Purpose::PortForward, &Method::POST, &headers).unwrap();
    }

    #[test]
    fn a_websocket_may_name_none() {
        let headers = websocket_request(&[("origin", "https://console.example.org")]);
        let (protocol, answer) = agree(Purpose::Command, &Method::GET, &headers).unwrap();
        let coding = Coding {
            base64: false,
            closes: false,
        };
        let status = Status::Text;
        assert_eq!(protocol, Protocol::Channels { status, coding });
        let accept = &answer.headers()[SEC_WEBSOCKET_ACCEPT];
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!answer.headers().contains_key(SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn websockets_have_their_protocols() {
        let agree = |purpose, names| {
            let headers = websocket_request(&[("sec-websocket-protocol", names)]);
            agree(purpose, &Method::GET, &headers).map(|(protocol, answer)| {
                let name = answer.headers()[SEC_WEBSOCKET_PROTOCOL].clone();
                (protocol, name)
            })
        };
        let (protocol, name) = agree(Purpose::Command, "x, v5.channel.k8s.io").unwrap();
        assert_eq!(name, "v5.channel.k8s.io");
        let coding = Coding {
            base64: false,
            closes: true,
        };
        let status = Status::Json;
        assert_eq!(protocol, Protocol::Channels { status, coding });
        let tunnel = agree(Purpose::PortForward, "SPDY/3.1+portforward.k8s.io").unwrap();
        assert_eq!(tunnel.0, Protocol::Tunnel);
        assert_eq!(agree(Purpose::Command, "x").unwrap_err().status, 403);
        let refused = agree(Purpose::PortForward, "v5.channel.k8s.io");
        assert_eq!(refused.unwrap_err().status, 403);
    }

    #[test]
    fn half_a_handshake_is_refused() {
        let cases = [
            (request(&[("upgrade", "SPDY/3.1")]), 400),
            (
                request(&[("connection", "upgrade"), ("upgrade", "h2c")]),
                400,
            ),
            (
                request(&[("connection", "upgrade"), ("upgrade", "websocket")]),
                400,
            ),
        ];
        for (headers, status) in cases {
            let refused = agree(Purpose::Command, &Method::GET, &headers).unwrap_err();
            assert_eq!(refused.status, status, "{headers:?}");
        }
        let headers = websocket_request(&[]);
        let refused = agree(Purpose::Command, &Method::POST, &headers).unwrap_err();
        assert_eq!(refused.status, 405);
        let mut headers = websocket_request(&[]);
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("short"));
        let refused = agree(Purpose::Command, &Method::GET, &headers).unwrap_err();
        assert_eq!(refused.status, 400);
    }
}
