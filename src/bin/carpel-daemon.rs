//! The daemon, which `carpel serve` becomes. It takes the flags of `carpel serve`.

use std::process::ExitCode;

use clap::Parser;

use carpel::config::Flags;
use carpel::store::unpack;
use carpel::{cli, daemon, userns};

/// The daemon of carpel, a container runtime for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(version, name = "carpel-daemon")]
struct Daemon {
    #[command(flatten)]
    flags: Flags,
}

fn main() -> ExitCode {
    let asked = userns::serve_if_asked().or_else(unpack::serve_if_asked);
    if let Some(status) = asked {
        return status;
    }
    match daemon::run(Daemon::parse().flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::tell(&error);
            ExitCode::FAILURE
        }
    }
}
