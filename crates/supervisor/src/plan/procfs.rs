//! Writes to /proc, through a procfs that nothing else can reach.

use core::ffi::CStr;

use crate::number::Decimal;
use crate::sys::{self, BorrowedFd, Errno, Fd, FsContext, Resolve, Result, errno};

use super::Process;

/// What a process is to run as, by kernel: a profile, or a label.
pub(super) const APPARMOR: &CStr = c"self/attr/apparmor/exec";
pub(super) const SELINUX: &CStr = c"self/attr/exec";

/// A procfs of the present namespaces, mounted nowhere.
///
/// # Errors
/// As `fsopen(2)` and what follows it; EPERM in a user namespace that sees no whole procfs.
pub fn open_procfs() -> Result<Fd> {
    let attrs = sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    let mount = FsContext::open(c"proc")?.mount(attrs)?;
    if sys::file_system(mount.borrow())? == sys::PROCFS_MAGIC {
        Ok(mount)
    } else {
        Err(Errno(errno::EXDEV))
    }
}

/// Writes this process's own oom_score_adj. What may not be set stays.
pub fn write_oom_score_adj(procfs: BorrowedFd<'_>, value: i32) -> Result<()> {
    let text = Decimal::new(i64::from(value));
    let path = c"self/oom_score_adj";
    let file = sys::open_in(procfs, path, sys::O_WRONLY, Resolve::PROCFS)?;
    match sys::write_whole(file.borrow(), text.bytes()) {
        Err(Errno(errno::EACCES | errno::EPERM)) => Ok(()),
        other => other,
    }
}

impl Process<'_, '_> {
    fn procfs(&mut self) -> Result<BorrowedFd<'_>> {
        let procfs = match self.resources.procfs.take() {
            Some(procfs) => procfs,
            None => open_procfs()?,
        };
        Ok(self.resources.procfs.insert(procfs).borrow())
    }

    pub(super) fn write_sysctl(&mut self, path: &CStr, value: &[u8]) -> Result<()> {
        let flags = sys::O_PATH | sys::O_DIRECTORY;
        let sysctls = sys::open_in(self.procfs()?, c"sys", flags, Resolve::PROCFS)?;
        let file = sys::open_in(sysctls.borrow(), path, sys::O_WRONLY, Resolve::BENEATH)?;
        sys::write_whole(file.borrow(), value)
    }

    /// As the user whose namespaces the sysctl belongs to.
    pub(super) fn write_sysctl_as(&mut self, uid: u32, path: &CStr, value: &[u8]) -> Result<()> {
        self.procfs()?;
        sys::set_effective_user(uid)?;
        let written = self.write_sysctl(path, value);
        sys::set_effective_user(0)?;
        written
    }

    /// Without CAP_SYS_RESOURCE the kernel refuses to go below the present value, which then stays.
    pub(super) fn write_oom_score_adj(&mut self, value: i32) -> Result<()> {
        write_oom_score_adj(self.procfs()?, value)
    }

    /// Opens the file that takes what the process is to run as. To be called before other namespaces are
    /// entered: a container's user namespace may see no whole procfs, and then none can be mounted in it.
    pub(super) fn open_label(&mut self, file: &CStr) -> Result<Fd> {
        sys::open_in(self.procfs()?, file, sys::O_WRONLY, Resolve::PROCFS)
    }

    pub(super) fn write_label(&mut self, command: &[u8], name: &[u8]) -> Result<()> {
        let mut text = [0; 4096];
        let Some(place) = text.get_mut(..command.len() + name.len()) else {
            return Err(Errno(errno::ENAMETOOLONG));
        };
        let (start, rest) = place.split_at_mut(command.len());
        start.copy_from_slice(command);
        rest.copy_from_slice(name);
        let label = self.label.as_ref().ok_or(Errno(errno::EBADF))?;
        sys::write_whole(label.borrow(), place)
    }
}
