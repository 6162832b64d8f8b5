//! `carpel completions`: scripts that complete commands and flags in a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Outcome, SUCCESS, output};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Whose syntax the script is in, as in: source <(carpel completions bash)
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "carpel", &mut script);
    output::print(script)?;
    Ok(SUCCESS)
}
