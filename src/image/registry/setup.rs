//! From what this node's files say to the endpoints that a pull may ask.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::auth::{Auth, Credentials};
use super::auth_file::AuthFiles;
use super::dial::Route;
use super::endpoint::{Endpoint, Part};
use super::error::SetupError;
use super::hosts::{self, Host, Place, TlsFiles};
use super::origin::{Origin, RegistryHost};
use super::transport::{Link, Transport};
use super::{DOCKER_DOMAIN, Registries};
use crate::tls::Special;

/// The endpoints for a repository of a domain, in the order in which they are asked. Reads files.
///
/// # Errors
/// What is wrong with the domain or with a file.
pub(super) fn endpoints(
    registries: &Registries,
    domain: &str,
    repository: &str,
    given: &Credentials,
) -> Result<Vec<Endpoint>, SetupError> {
    let inner = &registries.0;
    let parsed: RegistryHost = domain.parse()?;
    let files = AuthFiles::read(&inner.auth_files)?;
    let mut endpoints = Vec::new();
    for host in hosts::read(&inner.config_path, domain)? {
        let special = special(&host.tls)?;
        let (place, is_own) = place(registries, &parsed, &host);
        let origin = Origin::of(place.host.clone(), place.plain);
        // Credentials are for the registry that the image names, and for no other.
        let credentials = match is_own {
            true if given.is_none() => files.find(domain, repository)?,
            true => given.clone(),
            false => files.find(&place.host.to_string(), repository)?,
        };
        let link = Link {
            host: origin.host().to_owned(),
            special,
            dial_timeout: host.dial_timeout,
            route: Route {
                own: host.proxy,
                proxies: Arc::clone(&inner.proxies),
            },
        };
        endpoints.push(Endpoint::new(Part {
            transport: Transport::new(registries.clone(), link),
            registries: registries.clone(),
            auth: Auth::new(credentials),
            origin,
            root: place.root,
            repository: repository.to_owned(),
            namespace: (!is_own).then(|| domain.to_owned()),
            headers: host.headers,
            pull: host.pull,
            resolve: host.pull && host.resolve,
        }));
    }
    Ok(endpoints)
}

/// An endpoint of which nothing is known but where it is.
pub(super) fn bare(registries: &Registries, origin: Origin) -> Endpoint {
    let link = Link {
        host: origin.host().to_owned(),
        special: None,
        dial_timeout: None,
        route: Route {
            own: None,
            proxies: Arc::clone(&registries.0.proxies),
        },
    };
    Endpoint::new(Part {
        transport: Transport::new(registries.clone(), link),
        registries: registries.clone(),
        auth: Auth::new(Credentials::default()),
        origin,
        root: hosts::ROOT.to_owned(),
        repository: String::new(),
        namespace: None,
        headers: http::HeaderMap::new(),
        pull: true,
        resolve: true,
    })
}

/// What is wrong with this node's files, those of registries that nobody has asked for included.
pub(super) fn faults(registries: &Registries) -> Vec<SetupError> {
    let inner = &registries.0;
    let mut faults: Vec<_> = AuthFiles::read(&inner.auth_files)
        .err()
        .into_iter()
        .collect();
    for dir in &inner.config_path {
        let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = names.filter(|entry| entry.path().is_dir());
        let mut names: Vec<_> = names.map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names.iter().filter_map(|name| name.to_str()) {
            let hosts = hosts::read(std::slice::from_ref(dir), name);
            let special = |hosts: Vec<Host>| {
                hosts
                    .iter()
                    .try_for_each(|host| special(&host.tls).map(drop))
            };
            faults.extend(hosts.and_then(special).err());
        }
    }
    faults
}

/// Where a host is, and whether it is the registry that the images name.
fn place(registries: &Registries, domain: &RegistryHost, host: &Host) -> (Place, bool) {
    let own = registries.origin(domain.clone());
    let Some(place) = &host.place else {
        let plain = match host.tls.is_empty() {
            true => !own.is_tls(),
            // Whoever names certificates means to use them.
            false => registries.0.plain_http.contains(domain),
        };
        let (host, root) = (actual(domain), hosts::ROOT.to_owned());
        return (Place { host, plain, root }, true);
    };
    let place = Place {
        host: actual(&place.host),
        ..place.clone()
    };
    let there = Origin::of(place.host.clone(), place.plain);
    let is_own = actual(domain) == place.host || own == there;
    (place, is_own)
}

/// The host whose API has the images of a domain.
pub(super) fn actual(domain: &RegistryHost) -> RegistryHost {
    match domain.to_string().as_str() {
        DOCKER_DOMAIN => RegistryHost::docker(),
        _ => domain.clone(),
    }
}

fn special(files: &TlsFiles) -> Result<Option<Special>, SetupError> {
    if files.is_empty() {
        return Ok(None);
    }
    let mut ca = Vec::new();
    for path in &files.ca {
        ca.extend(certificates(path)?);
    }
    let client = files.client.iter();
    let client = client.map(|(certificate, key)| pair(certificate, key.as_ref()));
    Ok(Some(Special {
        ca,
        client: client.collect::<Result<_, _>>()?,
        skip_verify: files.skip_verify,
    }))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| unfit(path, error.to_string()))?;
    match read.is_empty() {
        true => Err(unfit(path, "holds no certificate".into())),
        false => Ok(read),
    }
}

fn pair(certificate: &Path, key: Option<&PathBuf>) -> Result<Arc<CertifiedKey>, SetupError> {
    let chain = certificates(certificate)?;
    let path = key.map_or(certificate, PathBuf::as_path);
    let key = PrivateKeyDer::from_pem_file(path).map_err(|error| unfit(path, error.to_string()))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key);
    let key = key.map_err(|error| unfit(path, error.to_string()))?;
    let pair = CertifiedKey::new(chain, key);
    let matched = pair.keys_match();
    matched.map_err(|error| {
        unfit(
            path,
            format!("no key of {}: {error}", certificate.display()),
        )
    })?;
    Ok(Arc::new(pair))
}

fn unfit(path: &Path, why: String) -> SetupError {
    let path = path.to_owned();
    SetupError::Unfit { path, why }
}
