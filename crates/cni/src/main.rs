//! carpel's CNI plugins in one binary: `loopback`, `bridge` and `host-local`, drop-in replacements
//! of the reference plugins.
//!
//! Which one it is says the name it is started by, else the variable `CARPEL_CNI_PLUGIN`, else the
//! first argument. It reads a configuration on stdin and `CNI_*` variables, does one command, and
//! prints a result or an error as JSON. It has one thread and waits for nothing but locks.

mod args;
mod bridge;
mod error;
mod hash;
mod host_local;
mod ipam;
mod ipnet;
mod loopback;
mod netfilter;
mod netlink;
mod netns;
mod request;
mod result;
mod sys;
mod sysctl;
mod version;

use std::{
    env,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::{Value, json};

use error::{Code, Error};
use request::{Command, Request};
use version::Version;

const PLUGIN_VARIABLE: &str = "CARPEL_CNI_PLUGIN";

#[derive(Clone, Copy)]
enum Plugin {
    Loopback,
    Bridge,
    HostLocal,
}

impl Plugin {
    fn named(name: &str) -> Option<Plugin> {
        match name {
            "loopback" => Some(Plugin::Loopback),
            "bridge" => Some(Plugin::Bridge),
            "host-local" => Some(Plugin::HostLocal),
            _ => None,
        }
    }

    fn add(self, request: &Request) -> Result<Value, Error> {
        let result = match self {
            Plugin::Loopback => loopback::add(request),
            Plugin::Bridge => bridge::add(request),
            Plugin::HostLocal => host_local::add(request, request.attachment()?),
        }?;
        Ok(result.to_json(request.version))
    }

    fn check(self, request: &Request) -> Result<(), Error> {
        match self {
            Plugin::Loopback => loopback::check(request),
            Plugin::Bridge => bridge::check(request),
            Plugin::HostLocal => host_local::check(request, request.attachment()?),
        }
    }

    fn del(self, request: &Request) -> Result<(), Error> {
        match self {
            Plugin::Loopback => loopback::del(request),
            Plugin::Bridge => bridge::del(request),
            Plugin::HostLocal => host_local::del(request, request.attachment()?),
        }
    }

    fn gc(self, request: &Request) -> Result<(), Error> {
        match self {
            Plugin::Loopback => Ok(()),
            Plugin::Bridge => bridge::gc(request),
            Plugin::HostLocal => host_local::gc(request),
        }
    }

    fn status(self, request: &Request) -> Result<(), Error> {
        match self {
            Plugin::Loopback => Ok(()),
            Plugin::Bridge => bridge::status(request),
            Plugin::HostLocal => host_local::status(request),
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let started_as = arguments.next().unwrap_or_default();
    let name = Path::new(&started_as).file_name().unwrap_or_default();
    let plugin = [
        Some(name.to_owned()),
        env::var_os(PLUGIN_VARIABLE),
        arguments.next(),
    ]
    .into_iter()
    .flatten()
    .find_map(|name| Plugin::named(name.to_str()?));
    if env::var_os("CNI_COMMAND").is_none_or(|command| command.is_empty()) {
        about();
        return ExitCode::SUCCESS;
    }
    let (code, printed) = match run(plugin) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (ExitCode::SUCCESS, value),
        Err(error) => (ExitCode::FAILURE, json!(error)),
    };
    let text = format!("{printed:#}\n");
    match io::stdout()
        .write_all(text.as_bytes())
        .and_then(|()| io::stdout().flush())
    {
        Ok(()) => code,
        // There is nobody left to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Says on stderr what this is, to a person who starts it by hand.
fn about() {
    let spoken = Version::ALL.map(Version::as_str).join(", ");
    let version = env!("CARGO_PKG_VERSION");
    // A closed stderr is no reason to fail.
    let _ = writeln!(
        io::stderr(),
        "carpel-cni {version}: CNI plugins loopback, bridge, host-local\nCNI versions: {spoken}"
    );
}

fn run(plugin: Option<Plugin>) -> Result<Option<Value>, Error> {
    let command: Command = variable("CNI_COMMAND")?.parse()?;
    if command == Command::Version {
        let spoken = Version::ALL.map(Version::as_str);
        let newest = Version::V1_1_0.as_str();
        return Ok(Some(
            json!({ "cniVersion": newest, "supportedVersions": spoken }),
        ));
    }
    let plugin = plugin.ok_or_else(|| {
        let msg = format!("start this as loopback, bridge or host-local, or set {PLUGIN_VARIABLE}");
        Error::new(Code::InvalidEnvironment, msg)
    })?;
    let request = Request::read(command, variable, io::stdin())?;
    match command {
        Command::Add => return plugin.add(&request).map(Some),
        Command::Check => plugin.check(&request)?,
        Command::Del => plugin.del(&request)?,
        Command::Gc => plugin.gc(&request)?,
        Command::Status => plugin.status(&request)?,
        Command::Version => {}
    }
    Ok(None)
}

/// The value of a variable of the environment; empty if it is not set.
fn variable(name: &str) -> Result<String, Error> {
    match env::var(name) {
        Ok(value) => Ok(value),
        Err(env::VarError::NotPresent) => Ok(String::new()),
        Err(env::VarError::NotUnicode(_)) => Err(Error::new(
            Code::InvalidEnvironment,
            format!("{name} is not UTF-8"),
        )),
    }
}
