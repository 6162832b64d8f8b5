//! From what a request says to what it may mean: one pure function for each RPC, run before any side
//! effect.
//!
//! What comes out are the checked types of [`crate::spec::config`], which nothing checks again. What
//! does not come out is a [`Rejected`] that names the field and the object. What this build cannot do is
//! refused by the field that asks for it, never ignored; the defaults that every kubelet sends pass.

mod calls;
mod container;
mod limits;
mod mounts;
mod pull;
mod sandbox;
mod security;
mod streams;
mod sysctl;
mod text;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::spec::config::Scope;

pub use calls::{
    ContainerQuery, IdText, SandboxQuery, container_id, container_query, container_stats_query,
    exec_sync, image_filter, image_name, pod_cidr, sandbox_id, sandbox_query, sandbox_stats_query,
    stop_timeout, update_container, update_sandbox,
};
pub use container::{container_config, create_container, fits_sandbox};
pub use limits::updated as updated_resources;
pub use pull::{export, import, own_image_name, pull, pull_image, tag, verify};
pub use sandbox::run_pod_sandbox;
pub use streams::{Exec, attach, exec, port_forward};

/// What the node's kernel has, where it decides whether a request can be honoured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Platform {
    pub apparmor: bool,
    /// `mount_setattr(2)`, which makes a mount read-only with all that is below it.
    pub recursive_read_only: bool,
    /// Cgroup v2 with its controllers: limits may name its files.
    pub unified: bool,
}

/// Checks kernel settings that plugins want.
///
/// # Errors
/// As of a request.
pub fn plugins_sysctls(
    wanted: BTreeMap<String, String>,
    network: Scope,
    ipc: Scope,
) -> Result<BTreeMap<String, String>, Rejected> {
    sysctl::sysctls(&Field::root("sysctl"), wanted, network, ipc)
}

/// A request that is refused as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It can mean nothing.
    #[error("{0}")]
    Invalid(String),
    /// It means something that carpel does not do.
    #[error("{0}")]
    Unsupported(String),
}

impl Rejected {
    /// Adds which object it is about: `config.hostname: must not … (sandbox "ns/pod")`.
    fn about(self, object: &impl fmt::Display) -> Self {
        match self {
            Self::Invalid(text) => Self::Invalid(format!("{text} ({object})")),
            Self::Unsupported(text) => Self::Unsupported(format!("{text} ({object})")),
        }
    }
}

/// A field of a request, by its path in the interface: `config.mounts[3].host_path`. Costs nothing until
/// it is printed.
#[derive(Clone, Copy)]
struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    name: Name<'a>,
}

#[derive(Clone, Copy)]
enum Name<'a> {
    Member(&'static str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Field<'a> {
    const fn root(name: &'static str) -> Self {
        Self {
            parent: None,
            name: Name::Member(name),
        }
    }

    fn member(&'a self, name: &'static str) -> Self {
        Self {
            parent: Some(self),
            name: Name::Member(name),
        }
    }

    fn index(&'a self, index: usize) -> Self {
        Self {
            parent: Some(self),
            name: Name::Index(index),
        }
    }

    fn key(&'a self, key: &'a str) -> Self {
        Self {
            parent: Some(self),
            name: Name::Key(key),
        }
    }

    fn invalid(&self, problem: impl fmt::Display) -> Rejected {
        Rejected::Invalid(format!("{self}: {problem}"))
    }

    fn unsupported(&self, problem: impl fmt::Display) -> Rejected {
        Rejected::Unsupported(format!("{self}: {problem}"))
    }

    fn must_be_set(&self) -> Rejected {
        self.invalid("must be set")
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            fmt::Display::fmt(parent, f)?;
        }
        match self.name {
            Name::Member(name) if self.parent.is_some() => write!(f, ".{name}"),
            Name::Member(name) => f.write_str(name),
            Name::Index(index) => write!(f, "[{index}]"),
            Name::Key(key) => write!(f, "[{}]", Shown(key)),
        }
    }
}

/// Somebody else's text in a message: quoted, without control characters, cut to what a person reads.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 80;
        match self.0.char_indices().nth(LONGEST) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}
