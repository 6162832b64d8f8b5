//! Whether a registry can be reached, is one, and is who it says.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::{Check, Verdict, fail, ok, warn};
use crate::config::Registry;
use crate::image::registry::{self, Origin, Registries, RegistryHost};
use crate::tls;

/// How long each of the steps may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of an answer's head that are read.
const MAX_HEAD: u64 = 16 << 10;
const NAME: &str = "registry";

/// Reads `HOST[:PORT]`, or the same with a scheme, which then counts; else it is as for a pull.
fn place(text: &str, registries: &Registries) -> Option<Origin> {
    let host = |rest: &str| rest.trim_end_matches('/').parse::<RegistryHost>().ok();
    match text.split_once("://") {
        Some(("http", rest)) => Some(Origin::of(host(rest)?, true)),
        Some(("https", rest)) => Some(Origin::of(host(rest)?, false)),
        Some(_) => None,
        None => Some(registries.origin(host(text)?)),
    }
}

/// The registries that are asked for, and those of the configuration.
pub async fn checks(asked: &[String], config: &Registry) -> Vec<Check> {
    let registries = Registries::new(registry::Settings {
        plain_http: config.plain_http.clone(),
        token_hosts: config.token_hosts.clone(),
        parallel_layers: config.parallel_layers,
        timeout: config.timeout,
    });
    let mut checks = Vec::new();
    for text in asked {
        checks.push(check(text, place(text, &registries)).await);
    }
    for host in &config.plain_http {
        let text = host.to_string();
        if !asked.contains(&text) {
            let check = check(&text, Some(registries.origin(host.clone()))).await;
            // Nobody asked whether it is there now.
            checks.push(match check.verdict {
                Verdict::Fail => warn(NAME, check.found, check.advice),
                _ => check,
            });
        }
    }
    checks
}

async fn check(text: &str, place: Option<Origin>) -> Check {
    let Some(place) = place else {
        return fail(
            NAME,
            format!("{text:?} is no registry"),
            "give HOST[:PORT] or http://HOST[:PORT]",
        );
    };
    let shown = place.to_string();
    let looked = tokio::task::spawn_blocking(move || look(&place)).await;
    match looked {
        Ok(answer) => verdict(&shown, answer),
        Err(_) => fail(NAME, format!("{shown}: not tried"), "try once more"),
    }
}

/// Why there was no answer.
#[derive(Debug)]
enum Failure {
    Name(io::Error),
    Connect(io::Error),
    Tls(io::Error),
    NoCertificates,
    Talk(io::Error),
}

/// The status line's code, whether the registry says that it is one, and how long it took.
type Answer = Result<(u16, bool, Duration), Failure>;

fn verdict(registry: &str, answer: Answer) -> Check {
    let (found, advice) = match answer {
        Ok((200 | 401 | 403, true, time)) => {
            return ok(
                NAME,
                format!("{registry} answers in {} ms", time.as_millis().max(1)),
            );
        }
        Ok((200 | 401 | 403, false, _)) => {
            return warn(
                NAME,
                format!("{registry} answers, but does not say that it is a registry"),
                "there may be a proxy or a log-in page in between",
            );
        }
        Ok((429 | 503, ..)) => {
            return warn(
                NAME,
                format!("{registry} is busy"),
                "try again later, or use a mirror",
            );
        }
        Ok((status, ..)) => (
            format!("{registry} answers /v2/ with HTTP status {status}"),
            "it is no registry, or not at this address",
        ),
        Err(Failure::Name(error)) => (
            format!("{registry}: its name is not known: {error}"),
            "look at /etc/resolv.conf and at the name",
        ),
        Err(Failure::Connect(error)) => (
            format!("{registry}: no connection: {error}"),
            "look at routes, firewalls and proxies",
        ),
        Err(Failure::NoCertificates) => (
            format!("{registry}: this machine trusts no certificate authority"),
            "install the package ca-certificates",
        ),
        Err(Failure::Tls(error)) => (
            format!("{registry}: no TLS: {error}"),
            "trust its authority's certificate on this machine, or, if it has no TLS, name it in registry.plain_http",
        ),
        Err(Failure::Talk(error)) => (
            format!("{registry}: no answer: {error}"),
            "look at the registry's own log, and at proxies in between",
        ),
    };
    fail(NAME, found, advice)
}

/// Asks for /v2/, as each client of a registry does first.
fn look(place: &Origin) -> Answer {
    let begin = Instant::now();
    let addresses = (bare(place), place.port()).to_socket_addrs();
    let addresses: Vec<_> = addresses.map_err(Failure::Name)?.collect();
    let stream = connect(&addresses).map_err(Failure::Connect)?;
    let request = format!(
        "GET /v2/ HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: carpel/{}\r\nConnection: close\r\n\r\n",
        place.host(),
        place.port(),
        env!("CARGO_PKG_VERSION")
    );
    let head = match place.is_tls() {
        true => exchange(&mut secured(bare(place), stream)?, &request),
        false => exchange(&mut { stream }, &request),
    };
    let head = head.map_err(Failure::Talk)?;
    let (status, registry) = read_head(&head).ok_or_else(|| {
        Failure::Talk(io::Error::new(
            io::ErrorKind::InvalidData,
            "that is no HTTP",
        ))
    })?;
    Ok((status, registry, begin.elapsed()))
}

/// The host without the brackets of an IPv6 address.
fn bare(place: &Origin) -> &str {
    place.host().trim_matches(['[', ']'])
}

/// Connects to the first address that lets us.
fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn secured(
    host: &str,
    mut stream: TcpStream,
) -> Result<rustls::StreamOwned<ClientConnection, TcpStream>, Failure> {
    let wrong = |error: rustls::Error| Failure::Tls(io::Error::other(error));
    let config = tls::client().map_err(|_| Failure::NoCertificates)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| Failure::Tls(io::Error::other(error)))?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(wrong)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(Failure::Tls)?;
    }
    Ok(rustls::StreamOwned::new(connection, stream))
}

/// Sends the request and reads the answer's head.
fn exchange(stream: &mut (impl Read + Write), request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while head.len() as u64 <= MAX_HEAD && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(&chunk[..read]),
            // Many servers end a connection without TLS's own farewell.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

/// An answer's status, and whether it has the header of registries.
fn read_head(head: &[u8]) -> Option<(u16, bool)> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ');
    if !words.next()?.starts_with("HTTP/") {
        return None;
    }
    let status = words.next()?.parse().ok()?;
    let registry = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| {
            name.eq_ignore_ascii_case("docker-distribution-api-version")
                && value.trim().starts_with("registry/2")
        });
    Some((status, registry))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn registries(plain: &[&str]) -> Registries {
        Registries::new(registry::Settings {
            plain_http: plain.iter().map(|host| host.parse().unwrap()).collect(),
            token_hosts: Vec::new(),
            parallel_layers: 1,
            timeout: PATIENCE,
        })
    }

    #[test]
    fn a_place_is_read_as_a_pull_would() {
        let registries = registries(&["plain.example:5000"]);
        for (text, expected) in [
            ("a.example", "https://a.example"),
            ("docker.io", "https://registry-1.docker.io"),
            ("plain.example:5000", "http://plain.example:5000"),
            ("plain.example:5001", "https://plain.example:5001"),
            ("localhost:5000", "http://localhost:5000"),
            ("http://a.example:5000/", "http://a.example:5000"),
            ("https://[::1]:5000", "https://[::1]:5000"),
            ("https://plain.example:5000", "https://plain.example:5000"),
        ] {
            let place = place(text, &registries).unwrap();
            assert_eq!(place.to_string(), expected);
        }
        for bad in [
            "", "ftp://x", "a:b", "a/b", "a b", "[::1", "a\r\nb", "http://", "a:99999",
        ] {
            assert_eq!(place(bad, &registries), None, "{bad}");
        }
    }

    /// Serves one answer on a port and returns what the doctor says.
    fn against(answer: &'static str) -> Check {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /v2/ HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let place = place(&format!("127.0.0.1:{port}"), &registries(&[])).unwrap();
        let check = verdict("it", look(&place));
        server.join().unwrap();
        check
    }

    #[test]
    fn answers_are_told_apart() {
        let registry =
            "HTTP/1.1 401 Unauthorized\r\ndocker-distribution-API-version: registry/2.0\r\n\r\n";
        assert_eq!(against(registry).verdict, Verdict::Ok);
        assert_eq!(
            against("HTTP/1.1 200 OK\r\n\r\n<html>").verdict,
            Verdict::Warn
        );
        let check = against("HTTP/1.1 404 Not Found\r\n\r\n");
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("404"), "{}", check.found);
        for nonsense in ["hello", "", "HTTP/1.1 x"] {
            assert_eq!(against(nonsense).verdict, Verdict::Fail, "{nonsense}");
        }
    }

    #[test]
    fn what_does_not_answer_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let place = place(&format!("https://127.0.0.1:{port}"), &registries(&[])).unwrap();
        let check = verdict("it", look(&place));
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("no connection"), "{}", check.found);
    }
}
