//! `carpel config`: what the daemon would run with.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::config::{DEFAULT_TEXT, Flags};

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a configuration file with every key at its default, explained
    Default,
    /// Print the configuration that `carpel serve` would run with, given the same flags
    Show(Flags),
    /// Check the configuration files without starting anything
    Check(Flags),
}

pub fn run(args: ConfigArgs) -> anyhow::Result<()> {
    let text = match args.command {
        ConfigCommand::Default => DEFAULT_TEXT.to_owned(),
        ConfigCommand::Show(flags) => flags.load()?.0.to_toml(),
        ConfigCommand::Check(flags) => {
            let (config, files) = flags.load()?;
            config.libexec.find_daemon()?;
            config.libexec.find_supervisor()?;
            config.runtime.base_spec().context("runtime.base_spec")?;
            config.image.policy().context("image.signature_policy")?;
            let mut text = String::new();
            for file in &files {
                text.push_str(&format!("{}: ok\n", file.display()));
            }
            if files.is_empty() {
                text.push_str("no configuration file: the defaults apply\n");
            }
            text
        }
    };
    // A closed pipe (`carpel config default | head`) is no error.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
