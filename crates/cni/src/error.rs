//! The error that a plugin reports: a number of the CNI specification, a
//! sentence, and optionally details.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Error numbers of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's `cniVersion` is not spoken here.
    IncompatibleVersion,
    /// The configuration asks for something this plugin cannot do.
    UnsupportedField,
    /// A `CNI_*` variable is missing or malformed.
    InvalidEnvironment,
    /// Reading or writing failed: stdin, stdout, the address store.
    Io,
    /// Something is not the JSON it should be.
    Decode,
    /// The configuration is well-formed but makes no sense.
    InvalidConfig,
    /// `CNI_NETNS` names no usable network namespace.
    InvalidNetns,
    /// The plugin cannot serve an ADD now.
    NotAvailable,
    /// Anything else, above all what the kernel refused.
    Internal,
}

impl Code {
    fn number(self) -> u32 {
        match self {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decode => 6,
            Code::InvalidConfig => 7,
            Code::InvalidNetns => 8,
            Code::NotAvailable => 50,
            Code::Internal => 999,
        }
    }
}

/// What goes to stdout, as JSON, when a command fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    #[serde(default)]
    pub code: u32,
    #[serde(default)]
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    pub fn new(code: Code, msg: impl Into<String>) -> Error {
        Error {
            code: code.number(),
            msg: msg.into(),
            details: String::new(),
        }
    }

    pub fn internal(msg: impl Into<String>) -> Error {
        Error::new(Code::Internal, msg)
    }

    pub fn config(msg: impl Into<String>) -> Error {
        Error::new(Code::InvalidConfig, msg)
    }

    pub fn details(mut self, details: impl Into<String>) -> Error {
        self.details = details.into();
        self
    }

    #[cfg(test)]
    pub fn is(&self, code: Code) -> bool {
        self.code == code.number()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Says what was being done when a lower call failed.
pub trait Doing<T> {
    /// Turns the cause into an [`Error`] of `code` whose message starts with what `doing` returns.
    fn doing(self, code: Code, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, code: Code, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::new(code, format!("{}: {cause}", doing())))
    }
}
