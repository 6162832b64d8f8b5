//! `carpel pull`: images from their registries, with how far they are.
//!
//! carpel's own call tells its progress; a runtime that does not have it is asked through the CRI.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use carpel_api::carpel::pull_response::Step;
use carpel_api::carpel::{Credentials, PullRequest};
use carpel_api::cri::{AuthConfig, Image, ImageSpec, ImageStatusRequest, PullImageRequest};
use clap::Args;
use indicatif::MultiProgress;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, Connection};
use super::output::{self, FormatArgs, Screen};
use super::progress::Pull;
use super::{FAILURE, Outcome, SUCCESS, images};
use crate::image::Reference;

/// Most bytes of a password and of a file of them.
const MAX_PASSWORD: u64 = 64 << 10;
const MAX_AUTH_FILE: u64 = 1 << 20;

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Images, as in registry/name:tag or registry/name@sha256:…
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    login: LoginArgs,
    /// Print the images' ids and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

/// Who asks the registry.
#[derive(Debug, Default, Args)]
pub struct LoginArgs {
    /// Name at the registry
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from the standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// File with credentials for registries, as `docker login` writes it (config.json)
    #[arg(long, value_name = "FILE", conflicts_with = "username")]
    authfile: Option<PathBuf>,
}

impl PullArgs {
    pub async fn run(self) -> Outcome {
        let login = self.login.load()?;
        let client = self.connection.connect().await?;
        let bars = MultiProgress::new();
        let pulls = self.images.iter().map(async |image| {
            let credentials = login.for_image(image);
            let progress = Pull::begin(image, self.quiet, &bars);
            (image, pull(&client, image, credentials, progress).await)
        });
        let mut pulled = Vec::new();
        let mut status = SUCCESS;
        for (image, outcome) in futures::future::join_all(pulls).await {
            match outcome {
                Ok(image) => pulled.push(image),
                Err(error) if self.images.len() == 1 => return Err(error),
                Err(error) => {
                    super::tell(&error.context(image.clone()));
                    status = FAILURE;
                }
            }
        }
        if self.quiet {
            output::print_ids(pulled.iter().map(|one| one.id.as_str()))?;
        } else if self.format.is_json() {
            let images: Vec<_> = pulled.iter().map(|i| output::message("Image", i)).collect();
            output::print_json(&json!({ "images": images }))?;
        } else if !pulled.is_empty() {
            output::print(images::table(&pulled, false, false).render(&Screen::detect()))?;
        }
        Ok(status)
    }
}

/// Pulls an image and returns what is here now.
///
/// # Errors
/// The runtime's answer.
pub async fn pull(
    client: &Client,
    image: &str,
    credentials: Option<Credentials>,
    mut progress: Pull,
) -> anyhow::Result<Image> {
    let outcome = match steps(client, image, credentials.clone(), &mut progress).await {
        Ok(None) => by_cri(client, image, credentials).await,
        Ok(Some(pulled)) => Ok(pulled),
        Err(error) => Err(error),
    };
    progress.end(outcome.as_ref().err());
    outcome.map_err(|error| {
        let advice = advice(image, &format!("{error:#}"));
        anyhow::anyhow!("pull {image}: {error:#}{advice}")
    })
}

/// What to do about an error of a pull.
fn advice(image: &str, error: &str) -> String {
    // By these words a kubelet knows it, too.
    let unreachable = error.contains("RegistryUnavailable");
    match image.parse::<Reference>() {
        Ok(reference) if unreachable => {
            let host = reference.repository().domain();
            format!("; `carpel doctor --registry {host}` looks into it")
        }
        _ => String::new(),
    }
}

/// Pulls by carpel's own call. `None`: the runtime does not have it.
async fn steps(
    client: &Client,
    image: &str,
    credentials: Option<Credentials>,
    progress: &mut Pull,
) -> anyhow::Result<Option<Image>> {
    let request = PullRequest {
        image: image.to_owned(),
        credentials,
    };
    let mut carpel = client.carpel();
    let mut steps = match client.unbounded("Pull", carpel.pull(request)).await {
        Err(error) if error.is_unimplemented() => return Ok(None),
        steps => steps?,
    };
    let mut pulled = None;
    loop {
        let step = steps.message().await;
        match step.map_err(|status| client.error("Pull", status))? {
            Some(step) => match step.step {
                Some(Step::Manifest(manifest)) => progress.manifest(&manifest),
                Some(Step::Layer(layer)) => progress.layer(&layer),
                Some(Step::Image(image)) => pulled = Some(image),
                // Something that a newer daemon tells of.
                None => {}
            },
            None => break,
        }
    }
    let pulled = pulled.context("the daemon ended its answer without an image")?;
    Ok(Some(Image {
        id: pulled.id,
        repo_tags: pulled.tags,
        repo_digests: pulled.digests,
        size: pulled.size,
        ..Image::default()
    }))
}

/// Pulls as a kubelet does.
async fn by_cri(
    client: &Client,
    image: &str,
    credentials: Option<Credentials>,
) -> anyhow::Result<Image> {
    let spec = |image: &str| {
        Some(ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        })
    };
    let request = PullImageRequest {
        image: spec(image),
        auth: credentials.map(|credentials| AuthConfig {
            username: credentials.username,
            password: credentials.password,
            identity_token: credentials.identity_token,
            registry_token: credentials.registry_token,
            ..AuthConfig::default()
        }),
        sandbox_config: None,
    };
    let mut images = client.images();
    let answer = client
        .unbounded("PullImage", images.pull_image(request))
        .await?;
    let request = ImageStatusRequest {
        image: spec(&answer.image_ref),
        verbose: false,
    };
    let status = client.image_status(request).await?;
    status
        .image
        .with_context(|| format!("{} was pulled and is gone already", answer.image_ref))
}

/// The credentials that were given.
#[derive(Debug)]
pub enum Login {
    None,
    /// For whatever is pulled.
    One(Box<Credentials>),
    /// By registry.
    File(AuthFile),
}

/// The part of docker's config.json that holds credentials.
#[derive(Debug, Default, Deserialize)]
pub struct AuthFile {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, AuthEntry>,
}

#[derive(Default, Deserialize)]
struct AuthEntry {
    /// Name and password with a colon between them, in base64.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl std::fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthEntry").finish_non_exhaustive()
    }
}

impl LoginArgs {
    /// Reads what the flags name.
    ///
    /// # Errors
    /// The file or the standard input cannot be read or holds something else.
    pub fn load(&self) -> anyhow::Result<Login> {
        if let Some(username) = &self.username {
            let credentials = Credentials {
                username: username.clone(),
                password: read_password()?,
                ..Credentials::default()
            };
            return Ok(Login::One(Box::new(credentials)));
        }
        match &self.authfile {
            None => Ok(Login::None),
            Some(path) => AuthFile::read(path).map(Login::File),
        }
    }
}

fn read_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        bail!("--password-stdin: pipe the password in, it would be seen on this terminal");
    }
    let mut password = String::new();
    let mut input = stdin.lock().take(MAX_PASSWORD);
    input
        .read_to_string(&mut password)
        .context("password on the standard input")?;
    Ok(password.trim_end_matches(['\n', '\r']).to_owned())
}

impl Login {
    /// The credentials for the registry of `image`, if there are any.
    pub fn for_image(&self, image: &str) -> Option<Credentials> {
        match self {
            Self::None => None,
            Self::One(credentials) => Some(credentials.as_ref().clone()),
            Self::File(file) => file.credentials(image),
        }
    }
}

impl AuthFile {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        let parsed = serde_json::from_reader(file.take(MAX_AUTH_FILE));
        // Without the parser's words: they may quote a secret.
        parsed.map_err(|error| {
            anyhow::anyhow!(
                "{}: line {}: no file of credentials",
                path.display(),
                error.line()
            )
        })
    }

    fn credentials(&self, image: &str) -> Option<Credentials> {
        let reference: Reference = image.parse().ok()?;
        let registry = reference.repository().domain();
        let entry = self.auths.iter().find(|(key, _)| host(key) == registry)?.1;
        let mut credentials = Credentials {
            username: entry.username.clone(),
            password: entry.password.clone(),
            identity_token: entry.identitytoken.clone(),
            registry_token: entry.registrytoken.clone(),
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(&entry.auth);
        let pair = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some((username, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) {
            credentials.username = username.to_owned();
            credentials.password = password.trim_end_matches('\0').to_owned();
        }
        Some(credentials)
    }
}

/// The host and port of a file's key, which may be a URL. The index of a registry is that registry.
fn host(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    host.strip_prefix("index.").unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_registry_alone() {
        let encoded = base64::engine::general_purpose::STANDARD.encode("ann:pa:ss");
        let text = json!({ "auths": {
            "https://one.example:5000/v2/": { "auth": encoded },
            "two.example": { "username": "bob", "password": "x", "identitytoken": "t" },
        }, "credsStore": "desktop" });
        let file: AuthFile = serde_json::from_value(text).unwrap();
        let found = |image: &str| file.credentials(image).map(|c| (c.username, c.password));
        assert_eq!(
            found("one.example:5000/a/b:1"),
            Some(("ann".into(), "pa:ss".into()))
        );
        assert_eq!(found("two.example/x"), Some(("bob".into(), "x".into())));
        for image in [
            "one.example/a",
            "two.example.evil/a",
            "x/two.example/y",
            "busybox",
        ] {
            assert_eq!(found(image), None, "{image}");
        }
    }

    #[test]
    fn a_broken_file_of_credentials_is_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{\"auths\":{\"a\":\n{\"password\": SECRET}}}").unwrap();
        let error = AuthFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(!error.contains("SECRET"), "{error}");
        std::fs::write(&path, "{\"auths\":{\"a\":{\"password\": [\"SECRET\"]}}}").unwrap();
        let error = format!("{:?}", AuthFile::read(&path).unwrap_err());
        assert!(!error.contains("SECRET"), "{error}");
    }
}
