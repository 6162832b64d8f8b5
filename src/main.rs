//! The `carpel` command: the daemon's start and the tools around it, one subcommand each.

use std::process::ExitCode;

use clap::Parser;

use carpel::cli::{Cli, run};
use carpel::userns;

fn main() -> ExitCode {
    match userns::serve_if_asked() {
        Some(status) => status,
        None => run(Cli::parse()),
    }
}
