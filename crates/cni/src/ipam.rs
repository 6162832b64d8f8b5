//! Address management: another plugin by its name, or host-local or static in this process.

use std::{
    ffi::OsStr,
    fs,
    io::{Read, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Child, Stdio},
};

use serde_json::Value;

use crate::{
    error::{Code, Doing, Error},
    host_local,
    request::{Command, Request},
    result::AddResult,
    static_ipam,
};

/// A plugin that prints more is at fault, in bytes.
const MAX_OUTPUT: u64 = 1024 * 1024;

/// Who gives out addresses.
#[derive(Debug, PartialEq, Eq)]
pub enum Ipam {
    /// Nobody: the network has no addresses.
    None,
    /// host-local, here.
    HostLocal,
    /// static, here.
    Static,
    /// The plugin in this file.
    Program(PathBuf),
}

impl Ipam {
    /// Finds who the configuration's `ipam.type` names: a file of that name in the plugin folders
    /// goes before what is built in.
    pub fn find(request: &Request) -> Result<Ipam, Error> {
        let name = match request.config.get("ipam").and_then(|ipam| ipam.get("type")) {
            None | Some(Value::Null) => return Ok(Ipam::None),
            Some(Value::String(name)) if name.is_empty() => return Ok(Ipam::None),
            Some(Value::String(name)) => name,
            Some(_) => return Err(Error::new(Code::Decode, "ipam.type is not a text")),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !name.bytes().all(plain) || name.starts_with('.') {
            return Err(Error::config(format!(
                "ipam.type {name:?} is not the name of a plugin"
            )));
        }
        let built_in = match name.as_str() {
            "host-local" => Some(Ipam::HostLocal),
            "static" => Some(Ipam::Static),
            _ => None,
        };
        let own = fs::metadata("/proc/self/exe")
            .map(|meta| (meta.dev(), meta.ino()))
            .ok();
        let found = request.plugin_dirs.iter().find_map(|folder| {
            let path = folder.join(name);
            let meta = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some((path, (meta.dev(), meta.ino())))
        });
        match found {
            Some((path, id)) if built_in.is_none() || own != Some(id) => Ok(Ipam::Program(path)),
            _ => built_in
                .ok_or_else(|| Error::config(format!("ipam plugin {name:?} is not in CNI_PATH"))),
        }
    }

    /// Allocates addresses; nothing if the network has none.
    pub fn add(&self, request: &Request) -> Result<Option<AddResult>, Error> {
        match self {
            Ipam::None => Ok(None),
            Ipam::HostLocal => host_local::add(request).map(Some),
            Ipam::Static => static_ipam::add(request).map(Some),
            Ipam::Program(path) => {
                let output = run(path, Command::Add, request)?;
                let result = serde_json::from_slice(&output)
                    .doing(Code::Decode, || format!("result of {}", path.display()))
                    .and_then(AddResult::from_json);
                if result.is_err() {
                    // What it allocated is not known. The error to report is the first.
                    let _ = self.del(request);
                }
                result.map(Some)
            }
        }
    }

    pub fn check(&self, request: &Request) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => host_local::check(request),
            Ipam::Static => static_ipam::check(request),
            Ipam::Program(path) => run(path, Command::Check, request).map(drop),
        }
    }

    pub fn del(&self, request: &Request) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => host_local::del(request),
            Ipam::Static => static_ipam::del(request),
            Ipam::Program(path) => run(path, Command::Del, request).map(drop),
        }
    }

    pub fn gc(&self, request: &Request) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => host_local::gc(request),
            Ipam::Static => static_ipam::gc(request),
            Ipam::Program(path) => run(path, Command::Gc, request).map(drop),
        }
    }

    pub fn status(&self, request: &Request) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::HostLocal => host_local::status(request),
            Ipam::Static => static_ipam::status(request),
            Ipam::Program(path) => run(path, Command::Status, request).map(drop),
        }
    }
}

/// GC of a plugin: its configuration is checked, then unwanted addresses are freed.
pub fn gc<C>(request: &Request, parse: fn(&Request) -> Result<C, Error>) -> Result<C, Error> {
    let config = parse(request)?;
    Ipam::find(request)?.gc(request)?;
    Ok(config)
}

/// STATUS of a plugin: its configuration is checked, and whether addresses could be given.
pub fn status<C>(request: &Request, parse: fn(&Request) -> Result<C, Error>) -> Result<C, Error> {
    let config = parse(request)?;
    Ipam::find(request)?.status(request)?;
    Ok(config)
}

/// Runs a plugin with this request's environment and configuration; gives back what it printed.
fn run(path: &PathBuf, command: Command, request: &Request) -> Result<Vec<u8>, Error> {
    let named = || format!("ipam plugin {}", path.display());
    let mut child = std::process::Command::new(path)
        .arg0(path.file_name().unwrap_or(OsStr::new("")))
        .env("CNI_COMMAND", command.as_str())
        .env_remove("CARPEL_CNI_PLUGIN")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .doing(Code::Internal, named)?;
    let output = talk(&mut child, &request.stdin);
    if output.is_err() {
        // It may hang with its pipes closed. That it is gone already is fine.
        let _ = child.kill();
    }
    let status = child.wait().doing(Code::Internal, named)?;
    let output = output.doing(Code::Io, named)?;
    if status.success() {
        return Ok(output);
    }
    match serde_json::from_slice::<Error>(&output) {
        Ok(error) if error.code != 0 || !error.msg.is_empty() => Err(error),
        _ => Err(Error::internal(format!("{}: {status}", named()))),
    }
}

/// Feeds the plugin and reads its answer, within bounds.
fn talk(child: &mut Child, stdin: &[u8]) -> std::io::Result<Vec<u8>> {
    if let Some(mut pipe) = child.stdin.take() {
        match pipe.write_all(stdin) {
            // It need not read all.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    let mut output = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(MAX_OUTPUT + 1).read_to_end(&mut output)?;
    }
    if output.len() as u64 > MAX_OUTPUT {
        return Err(std::io::Error::other("more than 1 MiB of output"));
    }
    Ok(output)
}
