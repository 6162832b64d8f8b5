//! `carpel exec`: a command in a running container, with its output and its exit status.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use carpel_api::cri::{ContainerState, ExecSyncRequest};
use clap::Args;

use super::client::{CHANGE, Connection};
use super::output::{self, FormatArgs};
use super::resolve::{Among, Catalogue, container_state};
use super::{Outcome, SUCCESS};

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The container; a pod's name will do if it has just one
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Kill the command after so many seconds [default: let it run]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// Pass the standard input on (not there yet)
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal (not there yet)
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl ExecArgs {
    pub async fn run(self) -> Outcome {
        if self.interactive || self.tty {
            bail!(
                "interactive commands (-i, -t) are not supported yet; without these flags the command \
                 runs with no input, and its output is shown when it has ended"
            );
        }
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let container = all.container(&self.name, Among::Living)?;
        if container.state() != ContainerState::ContainerRunning {
            bail!(
                "container {} does not run (it is {}); a command needs a running one",
                all.container_path(container),
                container_state(container.state()).to_lowercase()
            );
        }
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
        let answer =
            answer.with_context(|| format!("exec in {}", all.container_path(container)))?;
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
