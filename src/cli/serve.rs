//! `carpel serve`: becomes the daemon.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;

use super::Outcome;
use crate::config::Flags;

/// Has the configuration checked, so that an error is told by the command that was typed, and runs `carpel-daemon`
/// in this process's place: whoever started us sees its pid, its signals and its exit status.
pub fn run(flags: Flags) -> Outcome {
    let (config, _) = flags.load()?;
    let daemon = config.libexec.find_daemon()?;
    // The flags as they were typed: all that follows "serve", before which nothing of the daemon's stands.
    let flags = std::env::args_os().skip_while(|arg| arg != "serve").skip(1);
    let error = Command::new(&daemon).args(flags).exec();
    Err(error).with_context(|| format!("run {}", daemon.display()))
}
