//! The commands that a person types. Each prints its result on stdout; an error is one line on stderr,
//! `carpel: what: why`, with what to do next where that is known, and exit status 1 (2 for wrong usage).

mod config;
mod image;
mod serve;
mod socket;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use serve::serve;

/// A container runtime for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: serve the CRI on a unix socket
    Serve(serve::ServeArgs),
    /// Show and check the daemon's configuration
    Config(config::ConfigArgs),
    /// Work with the images of a running daemon
    Image(image::ImageArgs),
}

/// Carries out a command and tells of its error.
pub fn run(cli: Cli) -> ExitCode {
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Config(args) => config::run(args),
        Command::Image(args) => image::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("carpel: {error:#}");
            ExitCode::FAILURE
        }
    }
}
