//! The user namespace of a pod: made by its supervisor with the pod's other namespaces, and from then on kept by
//! them alone. No record and no process of its own is needed to find it again: the kernel says whose they are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use carpel_wire::{Call, FdIndex, IdRange, Reply, RequestBody, Setup};

use super::Sandbox;
use crate::container::processes::Descriptors;
use crate::error::Error;
use crate::node::{Node, orphans};
use crate::spec::config::{IdMap, SandboxConfig};
use crate::spec::plan;
use crate::supervisor::{self, Supervisor};
use crate::sys;

impl Node {
    /// Refuses a pod with a user namespace where none can be had.
    pub(super) fn check_user_namespace(&self, config: &SandboxConfig) -> Result<(), Error> {
        match (config.user_namespace, self.user_namespaces()) {
            (Some(_), Err(why)) => Err(Error::FailedPrecondition(format!(
                "pod {}/{}: user namespaces do not work on this node: {why}",
                config.name.namespace, config.name.name
            ))),
            _ => Ok(()),
        }
    }
}

/// The request that makes a pod's namespaces.
pub(super) fn unshare(config: &SandboxConfig) -> RequestBody {
    let flags = plan::sandbox_namespaces(config);
    let range = |ids: IdMap| IdRange {
        first: ids.host,
        count: ids.count,
    };
    match config.user_namespace {
        None => RequestBody::Unshare { flags },
        Some(user) => RequestBody::UnshareUser {
            flags,
            uids: range(user.uids),
            gids: range(user.gids),
        },
    }
}

/// Says why there are no namespaces.
pub(super) fn not_made(error: supervisor::Error, sandbox: &Sandbox) -> Error {
    let doing = format!("make the namespaces of sandbox {}", sandbox.id);
    let supervisor::Error::Refused(Reply::CallFailed {
        call: Call::UserNamespace,
        errno,
    }) = error
    else {
        return Error::wrap(doing, error);
    };
    let cause = io::Error::from_raw_os_error(errno);
    match errno {
        libc::ENOSPC => Error::ResourceExhausted(format!(
            "{doing}: user namespace: the sysctl user.max_user_namespaces, or one for another kind of namespace, \
             is reached: {cause}"
        )),
        _ => Error::wrap(format!("{doing}: user namespace"), cause),
    }
}

/// The user namespace of a pod that is to have one, found by its IPC namespace, which is always its own.
pub(crate) fn of(
    config: &SandboxConfig,
    supervisor: &Supervisor,
) -> io::Result<Option<Arc<OwnedFd>>> {
    if config.user_namespace.is_none() {
        return Ok(None);
    }
    let ipc = File::open(format!("/proc/{}/ns/ipc", supervisor.pid()))?;
    // Or else the pid may have been another's.
    match supervisor.pidfd() {
        Some(pidfd) if !orphans::has_ended(&pidfd) => {}
        _ => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
    sys::owner_of_namespace(ipc.as_fd()).map(|namespace| Some(Arc::new(namespace)))
}

/// The request that sets a supervisor up.
pub(super) fn set_up(
    setup: Setup,
    namespace: Option<&OwnedFd>,
    descriptors: &mut Descriptors,
) -> io::Result<RequestBody> {
    // It is for the reaper of a shared PID namespace, and nothing else.
    let Some(namespace) = namespace.filter(|_| setup.shared_pid_namespace) else {
        return Ok(RequestBody::Setup(setup));
    };
    let namespace: FdIndex = descriptors.add(namespace.try_clone()?);
    Ok(RequestBody::SetupUser { setup, namespace })
}
