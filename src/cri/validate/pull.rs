//! Pulls: what to pull, and what to show to the registry.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carpel_api::carpel::{ExportRequest, PullRequest, TagRequest, VerifyRequest};
use carpel_api::cri;

use super::calls::image_reference;
use super::{Field, Rejected, Shown, image_name};
use crate::image::pull::Wanted;
use crate::image::registry::Credentials;
use crate::image::{Platforms, Reference};

/// Checks PullImage.
///
/// # Errors
/// If the image is no reference, or the credentials cannot be sent.
pub fn pull_image(request: cri::PullImageRequest) -> Result<Wanted, Rejected> {
    let name = image_name(request.image)?;
    let reference = reference(&Field::root("image").member("image"), &name)?;
    let credentials = match request.auth {
        Some(auth) => credentials(auth, &reference)?,
        None => Credentials::default(),
    };
    Ok(Wanted {
        reference,
        credentials,
    })
}

/// Checks a pull that carpel's own client asks for.
///
/// # Errors
/// As [`pull_image`].
pub fn pull(request: PullRequest) -> Result<Wanted, Rejected> {
    let field = Field::root("image");
    let name = image_reference(&field, request.image)?;
    let reference = reference(&field, &name)?;
    let auth = request.credentials.map(|credentials| cri::AuthConfig {
        username: credentials.username,
        password: credentials.password,
        identity_token: credentials.identity_token,
        registry_token: credentials.registry_token,
        ..cri::AuthConfig::default()
    });
    let credentials = match auth {
        Some(auth) => credentials(auth, &reference)?,
        None => Credentials::default(),
    };
    Ok(Wanted {
        reference,
        credentials,
    })
}

/// Checks for which platforms an archive is imported.
///
/// # Errors
/// If the platform is none, or both one and all are wanted.
pub fn import(platform: &str, all: bool) -> Result<Platforms, Rejected> {
    let field = Field::root("platform");
    match (platform, all) {
        ("", false) => Ok(Platforms::This),
        ("", true) => Ok(Platforms::All),
        (_, true) => Err(field.invalid("must be empty with all_platforms")),
        (text, false) => {
            let platform = text.parse();
            let wrong = |why| field.invalid(format_args!("{}: {why}", Shown(text)));
            Ok(Platforms::One(platform.map_err(wrong)?))
        }
    }
}

/// Checks the name or id of an image in a request of carpel's own.
///
/// # Errors
/// If it is none.
pub fn own_image_name(raw: String) -> Result<String, Rejected> {
    image_reference(&Field::root("image"), raw)
}

/// Checks that an image is to have more tags.
///
/// # Errors
/// If there is none, or one is no name with a tag.
pub fn tag(request: TagRequest) -> Result<(String, Vec<Reference>), Rejected> {
    let image = own_image_name(request.image)?;
    let field = Field::root("tags");
    if request.tags.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    if request.tags.len() > MOST_TAGS {
        return Err(field.invalid(format_args!("more than {MOST_TAGS}")));
    }
    let mut tags = Vec::new();
    for (n, raw) in request.tags.into_iter().enumerate() {
        let field = field.index(n);
        let name = image_reference(&field, raw)?;
        let tag = reference(&field, &name)?;
        if tag.digest().is_some() {
            return Err(field.invalid("a digest cannot be given to an image: name a tag"));
        }
        tags.push(tag);
    }
    Ok((image, tags))
}

/// Checks the names or ids of images to export.
///
/// # Errors
/// If there is none, or one is none.
pub fn export(request: ExportRequest) -> Result<Vec<String>, Rejected> {
    if request.images.is_empty() {
        return Err(Field::root("images").invalid("must not be empty"));
    }
    image_names(request.images)
}

/// Checks the names or ids of images to compare.
///
/// # Errors
/// If one is none.
pub fn verify(request: VerifyRequest) -> Result<Vec<String>, Rejected> {
    image_names(request.images)
}

fn image_names(names: Vec<String>) -> Result<Vec<String>, Rejected> {
    let field = Field::root("images");
    let checked = |(n, raw)| image_reference(&field.index(n), raw);
    names.into_iter().enumerate().map(checked).collect()
}

/// Tags in one request.
const MOST_TAGS: usize = 100;

fn reference(field: &Field<'_>, name: &str) -> Result<Reference, Rejected> {
    name.parse().map_err(|error| field.invalid(error))
}

/// What is to be shown to the registry of `reference`. Those for another registry are none. Nothing of them is in an
/// error.
fn credentials(auth: cri::AuthConfig, reference: &Reference) -> Result<Credentials, Rejected> {
    let field = Field::root("auth");
    let domain = reference.repository().domain();
    if !auth.server_address.is_empty() && !is_address_of(&auth.server_address, domain) {
        return Ok(Credentials::default());
    }
    let checked = if !auth.registry_token.is_empty() {
        Credentials::token(auth.registry_token)
    } else if !auth.identity_token.is_empty() {
        Credentials::identity(auth.identity_token)
    } else if !auth.username.is_empty() || !auth.password.is_empty() {
        Credentials::password(auth.username, auth.password)
    } else if !auth.auth.is_empty() {
        let field = field.member("auth");
        let malformed = || field.invalid("must be NAME:PASSWORD in base64");
        let bytes = STANDARD.decode(&auth.auth).map_err(|_| malformed())?;
        let text = String::from_utf8(bytes).map_err(|_| malformed())?;
        let (name, password) = text.split_once(':').ok_or_else(malformed)?;
        Credentials::password(name.to_owned(), password.trim_end_matches('\0').to_owned())
    } else {
        Ok(Credentials::default())
    };
    checked.map_err(|error| field.invalid(error))
}

/// Whether `address`, perhaps a URL, is of the registry `domain`.
fn is_address_of(address: &str, domain: &str) -> bool {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    let is_docker = |host: &str| {
        let names = ["docker.io", "index.docker.io", "registry-1.docker.io"];
        names.iter().any(|name| host.eq_ignore_ascii_case(name))
    };
    host.eq_ignore_ascii_case(domain) || is_docker(host) && is_docker(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2";

    fn request(image: &str, auth: cri::AuthConfig) -> cri::PullImageRequest {
        cri::PullImageRequest {
            image: Some(cri::ImageSpec {
                image: image.into(),
                ..Default::default()
            }),
            auth: Some(auth),
            sandbox_config: None,
        }
    }

    fn password() -> cri::AuthConfig {
        cri::AuthConfig {
            username: "me".into(),
            password: SECRET.into(),
            ..Default::default()
        }
    }

    #[test]
    fn every_form_of_credentials_is_taken() {
        let expected = Credentials::password("me".into(), SECRET.into()).unwrap();
        let packed = |text: &str| cri::AuthConfig {
            auth: STANDARD.encode(text),
            ..Default::default()
        };
        for auth in [password(), packed("me:hunter2"), packed("me:hunter2\0\0")] {
            let wanted = pull_image(request("a.example/b", auth)).unwrap();
            assert_eq!(wanted.credentials, expected);
            assert_eq!(wanted.reference.to_string(), "a.example/b:latest");
        }
        let identity = cri::AuthConfig {
            identity_token: SECRET.into(),
            ..password()
        };
        let wanted = pull_image(request("a.example/b", identity)).unwrap();
        assert_eq!(
            wanted.credentials,
            Credentials::identity(SECRET.into()).unwrap()
        );
        let registry = cri::AuthConfig {
            registry_token: SECRET.into(),
            ..Default::default()
        };
        let wanted = pull_image(request("a.example/b", registry)).unwrap();
        assert_eq!(
            wanted.credentials,
            Credentials::token(SECRET.into()).unwrap()
        );
        let none = pull_image(request("a.example/b", cri::AuthConfig::default())).unwrap();
        assert!(none.credentials.is_none());
    }

    #[test]
    fn credentials_of_another_registry_stay_here() {
        for (image, address, used) in [
            ("a.example/b", "a.example", true),
            ("a.example/b", "https://A.example/v1/", true),
            ("a.example:5000/b", "a.example:5000", true),
            ("a.example:5000/b", "a.example", false),
            ("a.example/b", "b.example", false),
            ("a.example/b", "https://b.example/a.example", false),
            ("b", "https://index.docker.io/v1/", true),
            ("a.example/b", "https://index.docker.io/v1/", false),
        ] {
            let auth = cri::AuthConfig {
                server_address: address.into(),
                ..password()
            };
            let wanted = pull_image(request(image, auth)).unwrap();
            assert_eq!(!wanted.credentials.is_none(), used, "{image} {address}");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused_without_being_shown() {
        let packed = STANDARD.encode(SECRET);
        for auth in [
            cri::AuthConfig {
                auth: packed.clone(),
                ..Default::default()
            },
            cri::AuthConfig {
                auth: SECRET.into(),
                ..Default::default()
            },
            cri::AuthConfig {
                password: format!("{SECRET}\n"),
                ..password()
            },
            cri::AuthConfig {
                registry_token: format!("{SECRET}\r\nx: y"),
                ..Default::default()
            },
        ] {
            let error = pull_image(request("a.example/b", auth))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("auth"), "{error}");
            assert!(
                !error.contains(SECRET) && !error.contains(&packed),
                "{error}"
            );
        }
        for image in ["a.example/B", "a.example/b:", &"0".repeat(64)] {
            let error = pull_image(request(image, password()))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("image.image: image name"), "{error}");
        }
    }
}
