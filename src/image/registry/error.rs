//! Why a registry did not give what was asked of it.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

use super::origin::InvalidHost;
use crate::config::ConfigError;

/// Why what this node's files say of a registry does not count.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The image's domain cannot be a host.
    #[error(transparent)]
    Host(#[from] InvalidHost),
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("{}: {why}", .path.display())]
    Unfit { path: PathBuf, why: String },
}

/// Says what went wrong, and neither where (the caller names image and registry) nor with which credentials. A URL never
/// appears: its query may be one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Connect(String),
    /// The certificate is not accepted, or the two share no version of TLS.
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no {what} within {} s", .within.as_secs_f32())]
    Timeout {
        what: &'static str,
        within: Duration,
    },
    #[error("connection broke: {0}")]
    Broken(String),
    #[error("answers {status}{detail}")]
    Status {
        status: StatusCode,
        /// What the registry says about it.
        detail: String,
        retry_after: Option<Duration>,
    },
    #[error("{what} not found{detail}")]
    NotFound { what: String, detail: String },
    /// The credentials, or the lack of them, are at fault.
    #[error("{0}")]
    Denied(String),
    /// It does what it must not.
    #[error("{0}")]
    Protocol(String),
    /// What it gave is not what was asked for.
    #[error("{0}")]
    Content(String),
    /// Whoever the bytes were for takes no more.
    #[error("broken off")]
    Abandoned,
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Whether another attempt may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Timeout { .. } | Self::Broken(_) => true,
            Self::Status { status, .. } => {
                status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            _ => false,
        }
    }

    /// Whether the registry could not be reached, or did not work.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.is_transient() || matches!(self, Self::Tls(_))
    }

    pub(super) fn of_status(
        status: StatusCode,
        detail: String,
        retry_after: Option<Duration>,
    ) -> Self {
        match status {
            StatusCode::FORBIDDEN => Self::Denied(format!("access denied{detail}")),
            status => Self::Status {
                status,
                detail,
                retry_after,
            },
        }
    }
}
