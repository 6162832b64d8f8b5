//! carpel's CNI plugins in one binary, drop-in replacements of the reference plugins; [`PLUGINS`] lists them.
//!
//! Which one it is says the name it is started by, else the variable `CARPEL_CNI_PLUGIN`, else the
//! first argument. It reads a configuration on stdin and `CNI_*` variables, does one command, and
//! prints a result or an error as JSON. It has one thread and waits for nothing but locks.

mod args;
mod bandwidth;
mod bridge;
mod container;
mod error;
mod firewall;
mod hash;
mod host_device;
mod host_local;
mod ipam;
mod label;
mod loopback;
mod macvlan;
mod masquerade;
mod netns;
mod pair;
mod portmap;
mod ptp;
mod request;
mod result;
mod static_ipam;
mod sys;
mod sysctl;
mod tuning;
mod verify;
mod version;

use std::{
    env,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use carpel_netlink::{self as netlink, ipnet, netfilter};
use serde_json::{Value, json};

use error::{Code, Error};
use request::{Command, Request};
use result::AddResult;
use version::Version;

const PLUGIN_VARIABLE: &str = "CARPEL_CNI_PLUGIN";

/// What a plugin does for each command.
struct Plugin {
    name: &'static str,
    add: fn(&Request) -> Result<AddResult, Error>,
    check: fn(&Request) -> Result<(), Error>,
    del: fn(&Request) -> Result<(), Error>,
    gc: fn(&Request) -> Result<(), Error>,
    status: fn(&Request) -> Result<(), Error>,
}

/// A plugin whose module has a function for each command.
macro_rules! plugin {
    ($name:literal, $module:ident) => {
        Plugin {
            name: $name,
            add: $module::add,
            check: $module::check,
            del: $module::del,
            gc: $module::gc,
            status: $module::status,
        }
    };
}

static PLUGINS: &[Plugin] = &[
    plugin!("loopback", loopback),
    plugin!("bridge", bridge),
    plugin!("host-local", host_local),
    plugin!("ptp", ptp),
    plugin!("macvlan", macvlan),
    plugin!("host-device", host_device),
    plugin!("static", static_ipam),
    plugin!("portmap", portmap),
    plugin!("tuning", tuning),
    plugin!("bandwidth", bandwidth),
    plugin!("firewall", firewall),
];

impl Plugin {
    fn named(name: &str) -> Option<&'static Plugin> {
        PLUGINS.iter().find(|plugin| plugin.name == name)
    }

    /// The names of all, as a sentence has them.
    fn names() -> String {
        let names: Vec<_> = PLUGINS.iter().map(|plugin| plugin.name).collect();
        names.join(", ")
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
        "carpel-cni {version}: CNI plugins {}\nCNI versions: {spoken}",
        Plugin::names()
    );
}

fn run(plugin: Option<&Plugin>) -> Result<Option<Value>, Error> {
    let command: Command = variable("CNI_COMMAND")?.parse()?;
    if command == Command::Version {
        let spoken = Version::ALL.map(Version::as_str);
        let newest = Version::V1_1_0.as_str();
        return Ok(Some(
            json!({ "cniVersion": newest, "supportedVersions": spoken }),
        ));
    }
    let plugin = plugin.ok_or_else(|| {
        let names = Plugin::names();
        let msg = format!("start this as one of {names}, or set {PLUGIN_VARIABLE}");
        Error::new(Code::InvalidEnvironment, msg)
    })?;
    let request = Request::read(command, variable, io::stdin())?;
    match command {
        Command::Add => {
            let result = (plugin.add)(&request)?;
            return Ok(Some(result.to_json(request.version)));
        }
        Command::Check => (plugin.check)(&request)?,
        Command::Del => (plugin.del)(&request)?,
        Command::Gc => (plugin.gc)(&request)?,
        Command::Status => (plugin.status)(&request)?,
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
