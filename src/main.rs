//! The `carpel` command: the daemon and the tools around it, one subcommand each.

use std::process::ExitCode;

use clap::Parser;

use carpel::cli::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse())
}
