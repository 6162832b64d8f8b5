//! `carpel cp`: files and folders into and out of a running container, by the tar program in it.
//!
//! As with kubectl: a folder that is copied here becomes, or is added to, the folder that is named; a folder or
//! file that is copied there goes into a folder that exists.

mod extract;
mod pack;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use carpel_api::cri::{ExecRequest, ExecSyncRequest};
use clap::Args;
use tokio::net::unix::pipe;

use super::client::{CHANGE, Client, Connection};
use super::exec::running;
use super::resolve::Catalogue;
use super::stream::{self, End, Streams};
use super::{Outcome, SUCCESS, output};

#[derive(Debug, Args)]
pub struct CpArgs {
    /// What is copied: a path here, or CONTAINER:PATH
    #[arg(value_name = "SOURCE")]
    source: Place,
    /// Where to: a path here, or CONTAINER:PATH. One of the two must be in a container
    #[arg(value_name = "DESTINATION")]
    destination: Place,
    #[command(flatten)]
    connection: Connection,
}

/// A path here or in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    There { container: String, path: String },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a path without a name")]
struct NoPath;

impl FromStr for Place {
    type Err = NoPath;

    fn from_str(text: &str) -> Result<Self, NoPath> {
        match text.split_once(':') {
            Some(("", _) | (_, "")) => Err(NoPath),
            Some((container, path)) if !container.starts_with(['.', '/']) => Ok(Self::There {
                container: container.to_owned(),
                path: path.to_owned(),
            }),
            _ if text.is_empty() => Err(NoPath),
            _ => Ok(Self::Here(text.into())),
        }
    }
}

impl CpArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let other = |name: &str| -> anyhow::Result<Other> {
            let container = running(&all, name)?;
            Ok(Other {
                client: client.clone(),
                id: container.id.clone(),
                name: all.container_path(container),
            })
        };
        match (self.source, self.destination) {
            (Place::There { container, path }, Place::Here(here)) => {
                other(&container)?.fetch(&path, here).await
            }
            (Place::Here(here), Place::There { container, path }) => {
                other(&container)?.send(here, &path).await
            }
            _ => bail!("one of the two, and no more, must be in a container: CONTAINER:PATH"),
        }
    }
}

/// The container.
struct Other {
    client: Client,
    id: String,
    name: String,
}

impl Other {
    /// Copies from there to here.
    async fn fetch(&self, path: &str, here: PathBuf) -> Outcome {
        let (folder, base) = split(path);
        let what = format!("./{base}");
        let url = self.tar(&["cf", "-", "-C", folder, &what], false).await?;
        let (reader, writer) = std::io::pipe()?;
        let name = base.to_owned();
        let extract =
            tokio::task::spawn_blocking(move || extract::extract(reader, &name, &here, &mut warn));
        let streams = Streams {
            stdin: None,
            stdout: Box::new(pipe::Sender::from_owned_fd(writer.into())?),
            stderr: Box::new(tokio::io::stderr()),
            tty: false,
            detach: false,
        };
        let end = stream::run(&url, streams).await;
        let extracted = extract.await?;
        // What went wrong there is why it went wrong here, unless nobody could read it here any more.
        match end {
            Ok(end) => {
                self.succeeded(end)?;
                extracted
            }
            Err(error) => extracted.and(Err(error)),
        }
        .with_context(|| format!("copy {path} from {}", self.name))?;
        Ok(SUCCESS)
    }

    /// Copies from here to there.
    async fn send(&self, here: PathBuf, path: &str) -> Outcome {
        let at = || format!("copy {} to {}", here.display(), self.name);
        std::fs::symlink_metadata(&here).with_context(|| here.display().to_string())?;
        let (folder, name) = if self.is_folder(path).await? {
            let own = std::fs::canonicalize(&here).with_context(at)?;
            let name = own.file_name().unwrap_or("root".as_ref());
            (path.to_owned(), name.to_owned())
        } else {
            match split(path) {
                (folder, base) if base != "." => (folder.to_owned(), OsString::from(base)),
                _ => bail!("{}: there is no folder {path}", at()),
            }
        };
        let url = self.tar(&["xmf", "-", "-C", &folder], true).await?;
        let (reader, writer) = std::io::pipe()?;
        let source = here.clone();
        let pack = tokio::task::spawn_blocking(move || {
            pack::pack(writer, &source, name.as_bytes(), &mut warn)
        });
        let streams = Streams {
            stdin: Some(Box::new(pipe::Receiver::from_owned_fd(reader.into())?)),
            stdout: Box::new(tokio::io::stdout()),
            stderr: Box::new(tokio::io::stderr()),
            tty: false,
            detach: false,
        };
        let end = stream::run(&url, streams).await;
        let packed = pack.await?;
        self.succeeded(end.with_context(at)?).with_context(at)?;
        packed.with_context(at)?;
        Ok(SUCCESS)
    }

    async fn tar(&self, arguments: &[&str], stdin: bool) -> anyhow::Result<String> {
        let command = [&["tar"], arguments].concat();
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: command.into_iter().map(str::to_owned).collect(),
            tty: false,
            stdin,
            stdout: true,
            stderr: true,
        };
        Ok(self.client.exec(request).await?.url)
    }

    async fn is_folder(&self, path: &str) -> anyhow::Result<bool> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: ["test", "-d", path].map(str::to_owned).to_vec(),
            timeout: 60,
        };
        let mut runtime = self.client.runtime();
        let call = runtime.exec_sync(request);
        let answer = self.client.within("ExecSync", CHANGE, call).await;
        // As kubectl: without such a program nothing is a folder.
        Ok(answer.is_ok_and(|answer| answer.exit_code == 0))
    }

    fn succeeded(&self, end: End) -> anyhow::Result<()> {
        match end {
            End::Exit(0) => Ok(()),
            End::Exit(code) => bail!("tar in {} ended with status {code}", self.name),
            End::Failed(why) => bail!("{} has no tar that works: {why}", self.name),
            _ => bail!("the runtime has broken the connection off"),
        }
    }
}

/// Folder and name of a path; the name is "." if the path has none.
fn split(path: &str) -> (&str, &str) {
    let trimmed = match path.trim_end_matches('/') {
        "" => return (path, "."),
        trimmed => trimmed,
    };
    let (folder, base) = match trimmed.rsplit_once('/') {
        Some(("", base)) => ("/", base),
        Some((folder, base)) => (folder, base),
        None => (".", trimmed),
    };
    match base {
        "." | ".." => (path, "."),
        base => (folder, base),
    }
}

/// Whoever reads it or not.
fn warn(words: String) {
    let _ = writeln!(std::io::stderr(), "carpel: {words}");
}

/// A path for people: it may come from a container, and a terminal obeys some characters.
fn shown(path: &Path) -> String {
    output::printable(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let there = |container: &str, path: &str| {
            Ok(Place::There {
                container: container.into(),
                path: path.into(),
            })
        };
        assert_eq!("web:/etc".parse(), there("web", "/etc"));
        assert_eq!("ns/pod/web:x:y".parse(), there("ns/pod/web", "x:y"));
        for here in ["x", "/a:b", "./a:b", "../a:b"] {
            assert_eq!(here.parse(), Ok(Place::Here(here.into())));
        }
        for bad in ["", ":x", "web:"] {
            assert_eq!(bad.parse::<Place>(), Err(NoPath), "{bad}");
        }
    }

    #[test]
    fn a_path_has_a_folder_and_a_name() {
        for (path, expected) in [
            ("/a/b", ("/a", "b")),
            ("/a/b/", ("/a", "b")),
            ("/a", ("/", "a")),
            ("a", (".", "a")),
            ("-x", (".", "-x")),
            ("/", ("/", ".")),
            ("/a/.", ("/a/.", ".")),
            ("..", ("..", ".")),
        ] {
            assert_eq!(split(path), expected, "{path}");
        }
    }
}
