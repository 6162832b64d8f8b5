//! The commands that a person types. Each prints its result on stdout; an error is one line on stderr,
//! `carpel: what: why`, with what to do next where that is known.
//!
//! All but `serve`, `config` and `cni` are clients of a CRI socket: carpel's, or with `--endpoint` any other
//! runtime's. They end with:
//!
//! | status | |
//! |---|---|
//! | 0 | done; also when whoever read the output has gone |
//! | 1 | not done, or `doctor` found something that must be put right |
//! | 2 | wrong usage |
//! | 125 | `run`, `exec` and `attach`: not done; any other status is the command's own |
//! | 130 | ended by Ctrl-C |

mod attach;
mod client;
mod cni;
mod completions;
mod config;
mod cp;
mod df;
mod doctor;
mod events;
mod exec;
mod image;
mod images;
mod info;
mod inspect;
mod labels;
mod log_file;
mod log_rotated;
mod logs;
mod net;
mod output;
mod pods;
mod port_forward;
mod progress;
mod ps;
mod pull;
mod resolve;
mod rm;
mod run;
mod serve;
mod stats;
mod stop;
mod stream;
mod svg;
mod table;
mod units;
mod version;

use std::future::Future;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Endpoint, Flags};

/// What a command ended with: its exit status, or an error to tell.
type Outcome = anyhow::Result<u8>;

const SUCCESS: u8 = 0;
const FAILURE: u8 = 1;
/// `run`, `exec` and `attach` failed themselves; other statuses are the command's.
const OWN_FAILURE: u8 = 125;
/// What a shell shows for a command that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// A container runtime for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true)]
#[command(
    after_help = "A pod or container is named by its name, namespace/name or pod/container, its id, or the beginning of that."
)]
pub struct Cli {
    // As people are used to from other clients: also before the command, which then finds it under this name. Commands
    // that talk to no runtime have none.
    #[arg(long, global = true, hide = true, value_name = "ENDPOINT")]
    endpoint: Option<Endpoint>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a container in a pod of its own, pulling its image if it is not here
    Run(Box<run::RunArgs>),
    /// List containers
    Ps(ps::PsArgs),
    /// List pods
    Pods(pods::PodsArgs),
    /// List images
    Images(images::ImagesArgs),
    /// Pull images from their registries
    Pull(pull::PullArgs),
    /// Run a command in a running container
    Exec(exec::ExecArgs),
    /// Go to a running container's own input and output
    Attach(attach::AttachArgs),
    /// Copy files into and out of a running container
    Cp(cp::CpArgs),
    /// Make ports of a pod ports of this machine
    PortForward(port_forward::PortForwardArgs),
    /// Show what a container has written
    Logs(logs::LogsArgs),
    /// Stop pods and containers
    Stop(stop::StopArgs),
    /// Remove pods and containers
    Rm(rm::RmArgs),
    /// Show a pod, a container or an image in full, or where the time of a pod's start went
    Inspect(inspect::InspectArgs),
    /// Show what containers or pods use
    Stats(stats::StatsArgs),
    /// Show what happens to containers, as it happens
    Events(events::EventsArgs),
    /// Show the state of the runtime
    Info(info::InfoArgs),
    /// Check whether this machine is fit for carpel, and say what is missing
    Doctor(doctor::DoctorArgs),
    /// Show the disk space that images and containers take
    Df(df::DfArgs),
    /// Show the versions of this command and of the daemon
    Version(version::VersionArgs),
    /// List, name, import, pin, remove and clear away images
    Image(image::ImageArgs),
    /// Draw the way that a pod's packets take, or follow one and say where it would stop
    Net(net::NetArgs),
    /// Install carpel's CNI plugins under their own names
    Cni(cni::CniArgs),
    /// Run the daemon: serve the CRI on a unix socket
    Serve(Flags),
    /// Show and check the daemon's configuration
    Config(config::ConfigArgs),
    /// Print a script that completes commands in a shell
    Completions(completions::CompletionsArgs),
}

impl Command {
    /// Whether it is a client of a runtime.
    fn has_runtime(&self) -> bool {
        !matches!(
            self,
            Self::Serve(_) | Self::Config(_) | Self::Cni(_) | Self::Completions(_)
        )
    }
}

/// Carries out a command and tells of its error.
pub fn run(cli: Cli) -> ExitCode {
    if cli.endpoint.is_some() && !cli.command.has_runtime() {
        let text = "--endpoint is for commands that talk to a runtime; the daemon's own socket is `serve --listen`";
        Cli::command()
            .error(ErrorKind::ArgumentConflict, text)
            .exit();
    }
    let failure = match cli.command {
        Command::Run(_) | Command::Exec(_) | Command::Attach(_) => OWN_FAILURE,
        _ => FAILURE,
    };
    let outcome = dispatch(cli.command);
    // Whatever came in between.
    stream::terminal::restore();
    match outcome {
        Ok(status) => ExitCode::from(status),
        // Nobody reads what is still to be printed: that is no error of anybody's.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(failure)
        }
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(args) => uninterrupted(|| args.run()),
        Command::Exec(args) => client(|| args.run()),
        Command::Attach(args) => client(|| args.run()),
        Command::Cp(args) => client(|| args.run()),
        Command::PortForward(args) => client(|| args.run()),
        Command::Ps(args) => client(|| args.run()),
        Command::Pods(args) => client(|| args.run()),
        Command::Images(args) => client(|| args.run()),
        Command::Pull(args) => client(|| args.run()),
        Command::Logs(args) => client(|| args.run()),
        Command::Stop(args) => client(|| args.run()),
        Command::Rm(args) => client(|| args.run()),
        Command::Inspect(args) => client(|| args.run()),
        Command::Stats(args) => client(|| args.run()),
        Command::Events(args) => client(|| args.run()),
        Command::Info(args) => client(|| args.run()),
        Command::Doctor(args) => client(|| args.run()),
        Command::Df(args) => client(|| args.run()),
        Command::Version(args) => client(|| args.run()),
        Command::Image(args) => client(|| args.run()),
        Command::Net(args) => client(|| args.run()),
        Command::Cni(args) => args.run(),
        Command::Serve(flags) => serve::run(flags),
        Command::Config(args) => config::run(args).map(|()| SUCCESS),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Prints an error. That of a standard error that nobody reads is nobody's.
pub fn tell(error: &anyhow::Error) {
    use std::io::Write;
    let text = output::printable_lines(&format!("{error:#}"));
    let _ = writeln!(std::io::stderr(), "carpel: {text}");
}

/// Runs a client until it ends or Ctrl-C comes.
fn client<F: Future<Output = Outcome>>(work: impl FnOnce() -> F + Send + 'static) -> Outcome {
    let (done, outcome) = tokio::sync::oneshot::channel();
    // A thread of its own: a write that waits for its reader does not keep Ctrl-C waiting.
    std::thread::spawn(move || done.send(uninterrupted(work)).ok());
    uninterrupted(|| async {
        tokio::select! {
            outcome = outcome => outcome?,
            _ = tokio::signal::ctrl_c() => {
                progress::leave_line();
                Ok(INTERRUPTED)
            }
        }
    })
}

/// Runs a client that sees to Ctrl-C itself.
fn uninterrupted<F: Future<Output = Outcome>>(work: impl FnOnce() -> F) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async { work().await });
    // A read of a terminal or a pipe cannot be called off: it is left behind.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_endpoint_may_stand_anywhere() {
        let lines = [
            "carpel --endpoint /a.sock image ls",
            "carpel image --endpoint /a.sock ls",
            "carpel image ls --endpoint /a.sock",
            "carpel --endpoint /b.sock image ls --endpoint /a.sock",
        ];
        for line in lines {
            let matches = Cli::command().get_matches_from(line.split(' '));
            let leaf = matches.subcommand_matches("image").unwrap();
            let leaf = leaf.subcommand_matches("ls").unwrap();
            let endpoint = leaf.get_one::<Endpoint>("endpoint").unwrap();
            assert_eq!(endpoint.to_string(), "unix:///a.sock", "{line}");
        }
        let serve = Cli::parse_from(["carpel", "serve"]);
        assert!(!serve.command.has_runtime());
    }
}
