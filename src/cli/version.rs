//! `carpel version`: this command's version and that of the daemon.

use carpel_api::cri::{VersionRequest, VersionResponse};
use clap::Args;
use serde_json::json;

use super::client::Connection;
use super::output::{self, FormatArgs};
use super::{Outcome, SUCCESS};

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// This command's alone: ask no daemon
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl VersionArgs {
    pub async fn run(self) -> Outcome {
        let own = env!("CARGO_PKG_VERSION");
        let answer = match self.client {
            true => None,
            false => Some(self.ask().await),
        };
        if self.format.is_json() {
            let mut value = json!({ "client": { "version": own } });
            if let Some(Ok(server)) = &answer {
                value["server"] = output::message("VersionResponse", server);
            }
            output::print_json(&value)?;
        } else {
            let mut text = format!("client:  carpel {own}\n");
            if let Some(Ok(server)) = &answer {
                text.push_str(&format!(
                    "daemon:  {} {}, CRI {}\n",
                    server.runtime_name, server.runtime_version, server.runtime_api_version
                ));
            }
            output::print(text)?;
        }
        answer.transpose()?;
        Ok(SUCCESS)
    }

    async fn ask(&self) -> anyhow::Result<VersionResponse> {
        let client = self.connection.connect().await?;
        Ok(client.version(VersionRequest::default()).await?)
    }
}
