//! `carpel exec`: a command in a running container, with its streams and its exit status.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use carpel_api::cri::{Container, ContainerState, ExecRequest, ExecSyncRequest};
use clap::Args;

use super::client::{CHANGE, Client, Connection};
use super::output::{self, FormatArgs};
use super::resolve::{Among, Catalogue, container_state};
use super::stream::{self, End, Streams, terminal};
use super::{Outcome, SUCCESS};

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The container; a pod's name will do if it has just one
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Pass the standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Kill the command after so many seconds, and show its output only at its end
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(conflicts_with_all = ["interactive", "tty"])]
    timeout: Option<u32>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl ExecArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let container = running(&all, &self.name)?;
        let path = all.container_path(container);
        if self.timeout.is_some() || self.format.is_json() {
            if self.interactive || self.tty {
                bail!("-i and -t do not go with -o json: its output comes as it is written");
            }
            return self.collect(&client, container, &path).await;
        }
        let tty = self.tty && has_terminal(self.interactive);
        let request = ExecRequest {
            container_id: container.id.clone(),
            cmd: self.command,
            tty,
            stdin: self.interactive,
            stdout: true,
            stderr: !tty,
        };
        let at = || format!("exec in {path}");
        let url = client.exec(request).await.with_context(at)?.url;
        let end = stream::run(&url, Streams::own(self.interactive, tty));
        status(end.await.with_context(at)?).with_context(at)
    }

    /// Has the runtime collect the output.
    async fn collect(self, client: &Client, container: &Container, path: &str) -> Outcome {
        let request = ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: self.command,
            timeout: self.timeout.unwrap_or(0).into(),
        };
        let mut runtime = client.runtime();
        let call = runtime.exec_sync(request);
        let answer = match self.timeout {
            Some(seconds) => {
                let time = CHANGE + Duration::from_secs(seconds.into());
                client.within("ExecSync", time, call).await
            }
            None => client.unbounded("ExecSync", call).await,
        };
        let answer = answer.with_context(|| format!("exec in {path}"))?;
        if self.format.is_json() {
            output::print_json(&output::message("ExecSyncResponse", &answer))?;
            return Ok(SUCCESS);
        }
        // A command's words are shown even if there is nobody for its errors.
        let _ = std::io::stderr().write_all(&answer.stderr);
        output::print(&answer.stdout)?;
        Ok(exit_status(answer.exit_code))
    }
}

/// The container of this name, which must run.
///
/// # Errors
/// It does not, or there is none.
pub fn running<'a>(all: &'a Catalogue, name: &str) -> anyhow::Result<&'a Container> {
    let container = all.container(name, Among::Living)?;
    if container.state() != ContainerState::ContainerRunning {
        bail!(
            "container {} does not run (it is {}); a command needs a running one",
            all.container_path(container),
            container_state(container.state()).to_lowercase()
        );
    }
    Ok(container)
}

/// Whether a command can have a terminal: one that is typed at must be there.
fn has_terminal(interactive: bool) -> bool {
    let there = !interactive || terminal::is_there();
    if !there {
        let _ = writeln!(
            std::io::stderr(),
            "carpel: the input is no terminal, so the command gets none"
        );
    }
    there
}

/// A session's end as our own status.
///
/// # Errors
/// It was no command's end.
pub fn status(end: End) -> Outcome {
    match end {
        End::Exit(code) => Ok(exit_status(code)),
        End::Signalled(signal) => Ok(exit_status(128 + signal)),
        End::Detached => Ok(SUCCESS),
        End::Failed(why) => bail!(why),
        End::Broken => bail!("the runtime has broken the connection off"),
    }
}

/// A command's exit code as our own status: its lowest eight bits, as a shell has it. What has no such status
/// at all (-1) is not taken for success.
pub fn exit_status(code: i32) -> u8 {
    match u8::try_from(code & 0xff) {
        Ok(0) if code != 0 => u8::MAX,
        Ok(status) => status,
        Err(_) => u8::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::exit_status;

    #[test]
    fn an_exit_code_is_a_status() {
        for (code, status) in [
            (0, 0),
            (3, 3),
            (137, 137),
            (255, 255),
            (-1, 255),
            (256, 255),
        ] {
            assert_eq!(exit_status(code), status, "{code}");
        }
    }
}
