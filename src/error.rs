//! Why a request about a sandbox or container was refused or broke off, as far as the caller's next
//! step depends on it. The gRPC code is chosen in `cri/`; the text is what a person reads.

use std::fmt::Display;
use std::io::ErrorKind;

/// Cloned to everyone who waits for the same piece of work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{kind} {id} not found")]
    NotFound { kind: &'static str, id: String },
    /// Something that is not this node's.
    #[error("{0}")]
    Absent(String),
    /// A registry refuses the credentials, or wants some.
    #[error("{0}")]
    Denied(String),
    /// A registry cannot be reached, or does not work. The kubelet knows the word.
    #[error("RegistryUnavailable: {0}")]
    RegistryUnavailable(String),
    /// The policy does not allow the image. The kubelet knows the word.
    #[error("SignatureValidationFailed: {0}")]
    SignatureValidationFailed(String),
    /// The request can never succeed as it is.
    #[error("{0}")]
    InvalidArgument(String),
    /// The object's state does not allow it.
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    DeadlineExceeded(String),
    /// Disk, memory or descriptors are used up.
    #[error("{0}")]
    ResourceExhausted(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Wraps a cause with what was being done: "make cgroup /a/b: no space left on device".
    pub fn wrap(doing: impl Display, cause: impl std::error::Error + 'static) -> Self {
        let text = format!("{doing}: {}", chain(&cause));
        if out_of_space(&cause) {
            Self::ResourceExhausted(text)
        } else {
            Self::Internal(text)
        }
    }

    /// For `map_err`: wraps an error of any kind.
    pub fn at<E: std::error::Error + 'static>(doing: impl Display) -> impl FnOnce(E) -> Self {
        move |cause| Self::wrap(doing, cause)
    }
}

/// An error and its sources in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent wrapper repeats its source's text.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn out_of_space(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            let full = [
                libc::ENOSPC,
                libc::EDQUOT,
                libc::EMFILE,
                libc::ENFILE,
                libc::ENOMEM,
            ];
            let kinds = [
                ErrorKind::StorageFull,
                ErrorKind::QuotaExceeded,
                ErrorKind::OutOfMemory,
            ];
            if io.raw_os_error().is_some_and(|errno| full.contains(&errno))
                || kinds.contains(&io.kind())
            {
                return true;
            }
        }
        cause = error.source();
    }
    false
}
