//! Carrying out a Plan, in the process that it is for.
//!
//! The whole Plan is read once before anything is done: a damaged one has no effect. What the end of it
//! needs is prepared before a seccomp filter is loaded, so that after it only the steps themselves make
//! system calls.

mod hooks;
mod mounts;
mod paths;
mod procfs;

use core::ffi::CStr;

use carpel_wire::{FdIndex, NulList, Step, Steps};

use crate::sys::{self, BorrowedFd, Errno, Fd, FdList, PointerArray, Result, errno};
pub use procfs::{open_procfs, write_oom_score_adj};

/// Which step failed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub step: u32,
    pub errno: Errno,
}

/// What a Plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A process of the pod: its last step is [`Step::Exec`], and no other is.
    Process,
    /// The supervisor itself: it execs nothing.
    Setup,
}

/// What a Plan refers to but does not hold.
pub struct Resources<'a> {
    /// What came beside the request. What a step uses up is closed.
    pub fds: &'a mut FdList,
    /// What [`FdIndex::TARGET`] stands for.
    pub target: Option<BorrowedFd<'a>>,
    /// A procfs of the supervisor's, for steps before another mount namespace is entered.
    pub procfs: Option<Fd>,
    /// Whether to make a cgroup namespace once the Plan has joined its cgroups.
    pub unshare_cgroup: bool,
}

/// Facts about a Plan that are found before any of it is done.
struct Outline<'p> {
    /// Index behind the last [`Step::JoinTasks`].
    joined: u32,
    /// Whether the Plan sets the process's umask.
    umask: bool,
    /// The step that says what the process is to run as, and the file of its own that takes it.
    label: Option<(u32, &'static CStr)>,
    /// Candidates, arguments, environment.
    exec: Option<(NulList<'p>, NulList<'p>, NulList<'p>)>,
}

const MALFORMED: Errno = Errno(errno::EBADMSG);

fn outline(plan: &[u8], purpose: Purpose) -> core::result::Result<Outline<'_>, Failure> {
    let mut outline = Outline {
        joined: 0,
        umask: false,
        label: None,
        exec: None,
    };
    let mut count = 0;
    for step in Steps(plan) {
        let malformed = Failure {
            step: count,
            errno: MALFORMED,
        };
        if outline.exec.is_some() {
            return Err(malformed);
        }
        match step.map_err(|_| malformed)? {
            Step::JoinTasks { .. } => outline.joined = count + 1,
            Step::Umask { .. } => outline.umask = true,
            Step::AppArmor { .. } => outline.label = Some((count, procfs::APPARMOR)),
            Step::ExecLabel { .. } => outline.label = Some((count, procfs::SELINUX)),
            Step::Exec {
                candidates,
                arguments,
                environment,
            } => {
                outline.exec = Some((candidates, arguments, environment));
            }
            _ => {}
        }
        count += 1;
    }
    if outline.exec.is_some() != (purpose == Purpose::Process) {
        return Err(Failure {
            step: count.saturating_sub(1),
            errno: MALFORMED,
        });
    }
    Ok(outline)
}

/// Carries out every step of `plan`. For [`Purpose::Process`] it returns only if one failed.
///
/// # Errors
/// The first step that failed; EBADMSG if it could not be read, EBADF if a descriptor is not there.
pub fn carry_out(
    plan: &[u8],
    purpose: Purpose,
    resources: Resources<'_>,
) -> core::result::Result<(), Failure> {
    let outline = outline(plan, purpose)?;
    // What a Plan makes has exactly the mode that it says.
    let umask = sys::set_umask(0);
    let mut process = Process {
        unshare_cgroup: resources.unshare_cgroup,
        resources,
        slots: [const { None }; FdIndex::SLOTS as usize],
        root: None,
        cover: None,
        cover_label: None,
        label: None,
        arrays: None,
    };
    if let Some((step, file)) = outline.label {
        let label = process.open_label(file);
        process.label = Some(label.map_err(|errno| Failure { step, errno })?);
    }
    for (index, step) in (0..).zip(Steps(plan)) {
        let failure = |errno| Failure { step: index, errno };
        if index == outline.joined {
            process.unshare_cgroup().map_err(failure)?;
        }
        let step = step.map_err(|_| failure(MALFORMED))?;
        if matches!(step, Step::Seccomp { .. } | Step::Exec { .. }) {
            if !outline.umask {
                sys::set_umask(umask);
            }
            process.prepare_exec(&outline).map_err(failure)?;
        }
        process.step(&step).map_err(failure)?;
    }
    sys::set_umask(umask);
    Ok(())
}

/// A process on its way through a Plan.
struct Process<'a, 'p> {
    resources: Resources<'a>,
    unshare_cgroup: bool,
    slots: [Option<Fd>; FdIndex::SLOTS as usize],
    /// The present root directory.
    root: Option<Fd>,
    /// The file system that masks directories, attached.
    cover: Option<Fd>,
    /// The SELinux label of that file system.
    cover_label: Option<&'p CStr>,
    /// Where it is written what the process is to run as.
    label: Option<Fd>,
    /// Arguments and environment for the kernel.
    arrays: Option<(PointerArray<'p>, PointerArray<'p>)>,
}

impl<'p> Process<'_, 'p> {
    fn unshare_cgroup(&mut self) -> Result<()> {
        if core::mem::take(&mut self.unshare_cgroup) {
            sys::unshare(sys::CLONE_NEWCGROUP)?;
        }
        Ok(())
    }

    fn prepare_exec(&mut self, outline: &Outline<'p>) -> Result<()> {
        let (None, Some((candidates, arguments, environment))) = (&self.arrays, outline.exec)
        else {
            return Ok(());
        };
        if !candidates.is_terminated() {
            return Err(MALFORMED);
        }
        self.arrays = Some((
            PointerArray::new(arguments)?,
            PointerArray::new(environment)?,
        ));
        sys::close_on_exec_from(3)
    }

    fn fd(&self, index: FdIndex) -> Result<BorrowedFd<'_>> {
        let fd = match slot(index) {
            Some(slot) => self
                .slots
                .get(slot)
                .and_then(Option::as_ref)
                .map(Fd::borrow),
            None if index == FdIndex::TARGET => self.resources.target,
            None => self.resources.fds.get(index),
        };
        fd.ok_or(Errno(errno::EBADF))
    }

    /// A descriptor that the step uses up.
    fn take(&mut self, index: FdIndex) -> Result<Fd> {
        let fd = match slot(index) {
            Some(slot) => self.slots.get_mut(slot).and_then(Option::take),
            None => self.resources.fds.take(index),
        };
        fd.ok_or(Errno(errno::EBADF))
    }

    fn fill(&mut self, index: FdIndex, fd: Fd) -> Result<()> {
        let slot = slot(index).and_then(|slot| self.slots.get_mut(slot));
        *slot.ok_or(Errno(errno::EBADF))? = Some(fd);
        Ok(())
    }

    /// Another root directory, and other mounts: what was known of the old ones is void.
    fn forget_root(&mut self) {
        self.root = None;
        self.cover = None;
        self.resources.procfs = None;
    }

    fn step(&mut self, step: &Step<'p>) -> Result<()> {
        match *step {
            Step::JoinTasks { tasks } => sys::write_whole(self.take(tasks)?.borrow(), b"0"),
            Step::SetNs { pidfd, flags } => self.enter(pidfd, flags),
            Step::SetNsFd { namespace, flags } => self.enter(namespace, flags),
            Step::LoopbackUp => sys::loopback_up(),
            Step::Hostname { name } => sys::set_hostname(name),
            Step::Sysctl { path, value } => self.write_sysctl(string(path)?, value),
            Step::SysctlAs { uid, path, value } => self.write_sysctl_as(uid, string(path)?, value),
            Step::OomScoreAdj { value } => self.write_oom_score_adj(value),
            Step::Rlimit {
                resource,
                soft,
                hard,
            } => sys::set_limit(resource, soft, hard),
            Step::SetSid => sys::lead_session(),
            Step::Stdio {
                stdin,
                stdout,
                stderr,
            } => {
                sys::duplicate_onto(self.fd(stdin)?, BorrowedFd::STDIN)?;
                sys::duplicate_onto(self.fd(stdout)?, BorrowedFd::STDOUT)?;
                sys::duplicate_onto(self.fd(stderr)?, BorrowedFd::STDERR)
            }
            Step::ControllingTerminal => sys::take_terminal(),
            Step::Umask { mask } => {
                sys::set_umask(mask);
                Ok(())
            }
            Step::Chdir { path } => self.change_directory(string(path)?),
            Step::Exec { candidates, .. } => Err(self.execute(candidates)),
            Step::MaskLabel { label } => {
                self.cover_label = Some(string(label)?);
                Ok(())
            }
            _ => match self.privilege_step(step).or_else(|| self.hook_step(step)) {
                Some(result) => result,
                None => self.mount_step(step),
            },
        }
    }

    /// The steps that give privileges up; `None` for any other.
    fn privilege_step(&mut self, step: &Step<'_>) -> Option<Result<()>> {
        Some(match *step {
            Step::BoundingSet { keep } => sys::limit_bounding_set(keep),
            Step::KeepCaps => sys::keep_capabilities(),
            Step::Groups { gids } => sys::set_groups(gids),
            Step::Ids { uid, gid } => sys::set_ids(uid, gid),
            Step::Capabilities {
                effective,
                permitted,
                inheritable,
            } => sys::set_capabilities(effective, permitted, inheritable),
            Step::Ambient { raise } => sys::set_ambient(raise),
            Step::AppArmor { profile } => self.write_label(b"exec ", profile),
            Step::ExecLabel { label } => self.write_label(b"", label),
            Step::NoNewPrivs => sys::set_no_new_privileges(),
            Step::Seccomp { program, flags } => sys::load_filter(program, flags),
            _ => return None,
        })
    }

    fn enter(&mut self, namespace: FdIndex, flags: u64) -> Result<()> {
        sys::enter_namespace(self.fd(namespace)?, flags)?;
        if flags & sys::CLONE_NEWNS != 0 {
            self.forget_root();
        }
        Ok(())
    }

    fn change_directory(&mut self, path: &CStr) -> Result<()> {
        let flags = sys::O_PATH | sys::O_DIRECTORY;
        let directory = sys::open_in(self.root()?, path, flags, sys::Resolve::IN_ROOT)?;
        sys::change_directory(directory.borrow())?;
        if sys::directory_is_inside()? {
            Ok(())
        } else {
            Err(Errno(errno::EXDEV))
        }
    }

    fn execute(&self, candidates: NulList<'_>) -> Errno {
        let Some((arguments, environment)) = &self.arrays else {
            return MALFORMED;
        };
        let mut error = Errno(errno::ENOENT);
        for candidate in candidates.iter() {
            let Ok(path) = string(candidate) else {
                return MALFORMED;
            };
            match sys::execute(path, arguments, environment) {
                Errno(errno::ENOENT | errno::ENOTDIR) if error.0 == errno::EACCES => {}
                next @ Errno(errno::ENOENT | errno::ENOTDIR | errno::EACCES) => error = next,
                other => return other,
            }
        }
        error
    }
}

/// The slot that an index means, if it means one.
fn slot(index: FdIndex) -> Option<usize> {
    let slot = index.0.checked_sub(FdIndex::FIRST_SLOT)?;
    (slot < FdIndex::SLOTS).then_some(usize::from(slot))
}

/// A NUL-terminated string of a Plan, for the kernel.
fn string(bytes: &[u8]) -> Result<&CStr> {
    CStr::from_bytes_with_nul(bytes).map_err(|_| MALFORMED)
}

#[cfg(test)]
mod tests {
    use carpel_wire::PlanWriter;

    use super::*;

    fn plan(steps: &[Step<'_>]) -> Vec<u8> {
        let mut writer = PlanWriter::default();
        for step in steps {
            writer.push(step);
        }
        writer.bytes().to_vec()
    }

    fn exec() -> Step<'static> {
        let list = NulList::new(b"/x\0").unwrap();
        Step::Exec {
            candidates: list,
            arguments: list,
            environment: NulList::default(),
        }
    }

    fn refused(plan: &[u8], purpose: Purpose) -> Option<u32> {
        outline(plan, purpose).err().map(|failure| {
            assert_eq!(failure.errno, MALFORMED);
            failure.step
        })
    }

    #[test]
    fn exec_is_the_last_step_of_a_process_and_no_other() {
        let join = Step::JoinTasks { tasks: FdIndex(0) };
        let good = plan(&[join, join, Step::SetSid, exec()]);
        assert_eq!(outline(&good, Purpose::Process).unwrap().joined, 2);
        assert_eq!(refused(&good, Purpose::Setup), Some(3));
        assert_eq!(refused(&plan(&[exec(), exec()]), Purpose::Process), Some(1));
        assert_eq!(refused(&plan(&[Step::SetSid]), Purpose::Process), Some(0));
        assert_eq!(refused(&[], Purpose::Process), Some(0));
        assert_eq!(refused(&[], Purpose::Setup), None);
    }

    #[test]
    fn a_damaged_plan_is_refused_whole() {
        let mut bytes = plan(&[Step::SetSid, Step::NoNewPrivs]);
        bytes.push(0xff);
        assert_eq!(refused(&bytes, Purpose::Setup), Some(2));
        let whole = plan(&[Step::Hostname { name: b"pod" }]);
        assert_eq!(refused(&whole[..whole.len() - 1], Purpose::Setup), Some(0));
    }

    #[test]
    fn slots_and_descriptors_do_not_mix() {
        assert_eq!(slot(FdIndex(0)), None);
        assert_eq!(slot(FdIndex(FdIndex::FIRST_SLOT)), Some(0));
        assert_eq!(slot(FdIndex(FdIndex::FIRST_SLOT + FdIndex::SLOTS)), None);
        assert_eq!(slot(FdIndex::TARGET), None);
    }
}
