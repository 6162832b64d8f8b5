//! `carpel attach`: a person at a running container's own streams.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use carpel_api::cri::{AttachRequest, ContainerState, ContainerStatusRequest};
use clap::Args;
use serde_json::Value;

use super::client::{Client, Connection};
use super::exec::{exit_status, running, status};
use super::output;
use super::resolve::Catalogue;
use super::stream::{self, End, Streams};
use super::{Outcome, SUCCESS};

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The container; a pod's name will do if it has just one
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// Only watch: pass no input on
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    connection: Connection,
}

impl AttachArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let container = running(&all, &self.name)?;
        let path = all.container_path(container);
        let at = || format!("attach to {path}");
        let (tty, takes_input) = has_streams(&client, &container.id).await.with_context(at)?;
        let stdin = takes_input && !self.no_stdin;
        let request = AttachRequest {
            container_id: container.id.clone(),
            stdin,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let url = client.attach(request).await.with_context(at)?.url;
        if stdin && tty && std::io::stderr().is_terminal() {
            tell(format_args!("attached to {path}; Ctrl-P Ctrl-Q leaves it"));
        }
        let streams = Streams {
            detach: true,
            ..Streams::own(stdin, tty)
        };
        match stream::run(&url, streams).await.with_context(at)? {
            End::Detached => {
                tell(format_args!("\n{path} goes on"));
                Ok(SUCCESS)
            }
            // The end of an attachment is not that of a container.
            End::Exit(0) => exit_code(&client, &container.id).await.with_context(at),
            End::Broken => bail!("{}: the connection broke; the container may go on", at()),
            end => status(end).with_context(at),
        }
    }
}

/// Whoever reads it or not.
fn tell(words: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Whether a container has a terminal, and whether it takes input: as far as the runtime tells.
async fn has_streams(client: &Client, id: &str) -> anyhow::Result<(bool, bool)> {
    let request = ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let answer = client.container_status(request).await?;
    let value = output::verbose_message("ContainerStatusResponse", &answer);
    let flag = |paths: &[&str]| -> Option<bool> {
        let find = |path: &&str| value.pointer(path).and_then(Value::as_bool);
        paths.iter().find_map(find)
    };
    // Each runtime has them in another place.
    let tty = flag(&[
        "/info/runtimeSpec/process/terminal",
        "/info/info/runtimeSpec/process/terminal",
        "/info/info/config/tty",
    ]);
    let stdin = flag(&["/info/info/stdin", "/info/info/config/stdin"]);
    Ok((tty.unwrap_or(false), stdin.unwrap_or(true)))
}

/// The container's exit code, if it has exited.
async fn exit_code(client: &Client, id: &str) -> Outcome {
    match client.require_status(id).await {
        Ok(found) if found.state() == ContainerState::ContainerExited => {
            Ok(exit_status(found.exit_code))
        }
        Ok(_) => Ok(SUCCESS),
        // Its pod is gone with it.
        Err(error) if error.is_not_found() => Ok(SUCCESS),
        Err(error) => Err(error.into()),
    }
}
