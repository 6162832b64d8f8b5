//! Whether a registry can be reached, is one, and is who it says; asked as a pull asks, mirrors and all.

use std::time::Duration;

use super::{Check, Verdict, fail, ok, warn};
use crate::config::Registry;
use crate::image::registry::{
    self, Error, Origin, Presence, Probe, Proxies, Registries, RegistryHost,
};
use crate::tls;

/// How long each of the steps may take.
const PATIENCE: Duration = Duration::from_secs(5);
const NAME: &str = "registry";
const FILES: &str = "registry file";
const NO_TLS: &str = "trust its authority's certificate on this machine or in its hosts.toml, or, if it has no TLS, name it in registry.plain_http";

/// What is to be asked: a registry of images' names, or whatever is at an origin.
#[derive(Debug, PartialEq)]
enum Place {
    Domain(RegistryHost),
    Origin(Origin),
}

/// Reads `HOST[:PORT]`, or the same with a scheme, which then counts; else it is as for a pull.
fn place(text: &str) -> Option<Place> {
    let host = |rest: &str| rest.trim_end_matches('/').parse::<RegistryHost>().ok();
    match text.split_once("://") {
        Some(("http", rest)) => Some(Place::Origin(Origin::of(host(rest)?, true))),
        Some(("https", rest)) => Some(Place::Origin(Origin::of(host(rest)?, false))),
        Some(_) => None,
        None => Some(Place::Domain(host(text)?)),
    }
}

/// The files that say how registries are spoken to, the registries that are asked for, and those of the configuration.
pub async fn checks(asked: &[String], config: &Registry) -> Vec<Check> {
    let proxies = match Proxies::of_environment() {
        Ok(proxies) => proxies,
        Err(error) => {
            let found = crate::error::chain(&error);
            return vec![fail(
                NAME,
                found,
                "correct the variable, and in the daemon's unit, too",
            )];
        }
    };
    let registries = Registries::new(registry::Settings {
        plain_http: config.plain_http.clone(),
        token_hosts: config.token_hosts.clone(),
        config_path: config.config_path.dirs().to_vec(),
        auth_files: config.auth_files.clone(),
        proxies,
        parallel_layers: config.parallel_layers,
        timeout: config.timeout.min(PATIENCE),
    });
    let mut checks = files(&registries, config).await;
    for text in asked {
        checks.extend(check(text, &registries).await);
    }
    for host in &config.plain_http {
        let text = host.to_string();
        if !asked.contains(&text) {
            // Nobody asked whether it is there now.
            checks.extend(check(&text, &registries).await.into_iter().map(softened));
        }
    }
    checks
}

fn softened(check: Check) -> Check {
    match check.verdict {
        Verdict::Fail => warn(NAME, check.found, check.advice),
        _ => check,
    }
}

/// Whether what a pull would read can be read.
async fn files(registries: &Registries, config: &Registry) -> Vec<Check> {
    let faults = registries.faults().await.into_iter();
    let fault = |fault| {
        let found = crate::error::chain(&fault);
        fail(FILES, found, "correct it: pulls that need it are refused")
    };
    let missing = config.auth_files.iter().filter(|file| !file.exists());
    let missing = missing.map(|file| {
        let found = format!("{} of registry.auth_files is not there", file.display());
        warn(FILES, found, "pulls go without its credentials")
    });
    faults.map(fault).chain(missing).collect()
}

async fn check(text: &str, registries: &Registries) -> Vec<Check> {
    let probes = match place(text) {
        None => {
            let advice = "give HOST[:PORT] or http://HOST[:PORT]";
            return vec![fail(NAME, format!("{text:?} is no registry"), advice)];
        }
        Some(Place::Origin(origin)) => vec![registries.probe_at(origin).await],
        Some(Place::Domain(domain)) => match registries.probe(&domain.to_string()).await {
            Ok(probes) => probes,
            Err(error) => {
                let found = format!("{text}: {}", crate::error::chain(&error));
                return vec![fail(
                    NAME,
                    found,
                    "correct it: pulls from there are refused",
                )];
            }
        },
    };
    let last = probes.len().saturating_sub(1);
    let checks = probes.iter().enumerate().map(|(at, probe)| {
        let check = verdict(probe);
        // Behind a mirror there is another that is asked.
        if at < last { softened(check) } else { check }
    });
    checks.collect()
}

fn verdict(Probe { origin, result }: &Probe) -> Check {
    let (found, advice) = match result {
        Ok(answer) => return answered(origin, answer),
        Err(Error::Connect(why)) if why.contains("lookup address") => (
            format!("{origin}: its name is not known: {why}"),
            "look at /etc/resolv.conf and at the name",
        ),
        // Who speaks no TLS may hang up without a word.
        Err(Error::Connect(why)) if why.contains("tls handshake") => {
            (format!("{origin}: no TLS: {why}"), NO_TLS)
        }
        Err(Error::Connect(why)) => (
            format!("{origin}: no connection: {why}"),
            "look at routes, firewalls and proxies",
        ),
        Err(Error::Tls(_)) if tls::roots().is_err() => (
            format!("{origin}: this machine trusts no certificate authority"),
            "install the package ca-certificates",
        ),
        Err(Error::Tls(why)) => (format!("{origin}: no TLS: {why}"), NO_TLS),
        Err(error) => (
            format!("{origin}: no answer: {error}"),
            "look at the registry's own log, and at proxies in between",
        ),
    };
    fail(NAME, found, advice)
}

fn answered(origin: &Origin, answer: &Presence) -> Check {
    match (answer.status.as_u16(), answer.says_so) {
        (200 | 401 | 403, true) => {
            let millis = answer.time.as_millis().max(1);
            ok(NAME, format!("{origin} answers in {millis} ms"))
        }
        (200 | 401 | 403, false) => warn(
            NAME,
            format!("{origin} answers, but does not say that it is a registry"),
            "there may be a proxy or a log-in page in between",
        ),
        (429 | 503, _) => warn(
            NAME,
            format!("{origin} is busy"),
            "try again later, or use a mirror",
        ),
        (status, _) => fail(
            NAME,
            format!("{origin} answers /v2/ with HTTP status {status}"),
            "it is no registry, or not at this address",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    async fn ask(text: &str) -> Check {
        let registries = Registries::new(registry::Settings {
            plain_http: Vec::new(),
            token_hosts: Vec::new(),
            config_path: Vec::new(),
            auth_files: Vec::new(),
            proxies: Proxies::default(),
            parallel_layers: 1,
            timeout: PATIENCE,
        });
        check(text, &registries).await.remove(0)
    }

    #[test]
    fn a_place_is_a_registry_or_an_origin() {
        let host = |text: &str| text.parse::<RegistryHost>().unwrap();
        for (text, expected) in [
            ("a.example", Place::Domain(host("a.example"))),
            ("[::1]:5000", Place::Domain(host("[::1]:5000"))),
            (
                "http://a.example:5000/",
                Place::Origin(Origin::of(host("a.example:5000"), true)),
            ),
            (
                "https://[::1]:5000",
                Place::Origin(Origin::of(host("[::1]:5000"), false)),
            ),
        ] {
            assert_eq!(place(text), Some(expected));
        }
        for bad in [
            "", "ftp://x", "a:b", "a/b", "a b", "[::1", "a\r\nb", "http://", "a:99999",
        ] {
            assert_eq!(place(bad), None, "{bad}");
        }
    }

    /// Serves one answer on a port and returns what the doctor says.
    async fn against(answer: &'static str) -> Check {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /v2/ HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let check = ask(&format!("127.0.0.1:{port}")).await;
        server.join().unwrap();
        check
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let registry =
            "HTTP/1.1 401 Unauthorized\r\ndocker-distribution-API-version: registry/2.0\r\n\r\n";
        assert_eq!(against(registry).await.verdict, Verdict::Ok);
        let page = against("HTTP/1.1 200 OK\r\n\r\n<html>").await;
        assert_eq!(page.verdict, Verdict::Warn);
        let check = against("HTTP/1.1 404 Not Found\r\n\r\n").await;
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("404"), "{}", check.found);
        for nonsense in ["hello", "", "HTTP/1.1 x"] {
            let check = against(nonsense).await;
            assert_eq!(check.verdict, Verdict::Fail, "{nonsense}");
        }
    }

    #[tokio::test]
    async fn what_does_not_answer_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let check = ask(&format!("https://127.0.0.1:{port}")).await;
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("no connection"), "{}", check.found);
    }
}
