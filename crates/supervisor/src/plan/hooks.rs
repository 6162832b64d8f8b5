//! Programs that run on the way of a container: the hooks of its spec.

use core::ffi::CStr;

use carpel_wire::{ENDED, FdIndex, NulList, Step};

use crate::number::Decimal;
use crate::sys::{self, BorrowedFd, Child, Cloned, Errno, PointerArray, Result, errno};

use super::paths::{self, Links, Missing};
use super::{MALFORMED, Process, string};

/// Exit status of a hook that could not be executed: as a shell gives it.
const NOT_EXECUTED: i32 = 127;

/// How long the end of a killed hook is awaited.
const KILLED_MS: u32 = 10_000;

impl Process<'_, '_> {
    /// The steps of hooks; `None` for any other.
    pub(super) fn hook_step(&mut self, step: &Step<'_>) -> Option<Result<()>> {
        Some(match *step {
            Step::Unshare { flags } => sys::unshare(flags).map(|()| self.forget_root()),
            Step::AttachRoot { root, target } => {
                string(target).and_then(|target| self.attach_root(root, target))
            }
            Step::EnterRoot => self.enter_root(),
            Step::Rendezvous { channel } => self.meet(channel),
            Step::Hook {
                state,
                output,
                seconds,
                path,
                arguments,
                environment,
            } => string(path).and_then(|path| {
                let program = (path, arguments, environment);
                self.run_hook(state, output, seconds, program)
            }),
            _ => return None,
        })
    }

    fn attach_root(&mut self, root: FdIndex, target: &CStr) -> Result<()> {
        let mount = self.take(root)?;
        let missing = Missing::Directory(0o755);
        let target = paths::open_or_make(self.root()?, target, Links::Follow, missing)?;
        sys::attach(mount.borrow(), target.borrow())?;
        self.forget_root();
        self.root = Some(mount);
        Ok(())
    }

    fn enter_root(&mut self) -> Result<()> {
        sys::change_directory(self.root()?)?;
        sys::pivot_to_working_directory()?;
        self.forget_root();
        self.root = Some(sys::open_root()?);
        Ok(())
    }

    /// The daemon learns from the socket who writes. When it has gone there is nothing to go on for.
    fn meet(&mut self, channel: FdIndex) -> Result<()> {
        let channel = self.take(channel)?;
        sys::write_whole(channel.borrow(), b"!")?;
        let mut answer = [0];
        match sys::read(channel.borrow(), &mut answer)? {
            1 => Ok(()),
            _ => Err(Errno(errno::ECANCELED)),
        }
    }

    fn run_hook(
        &mut self,
        state: FdIndex,
        output: FdIndex,
        seconds: u32,
        (path, arguments, environment): (&CStr, NulList<'_>, NulList<'_>),
    ) -> Result<()> {
        if !arguments.is_terminated() || !environment.is_terminated() {
            return Err(MALFORMED);
        }
        let arguments = PointerArray::new(arguments)?;
        let environment = PointerArray::new(environment)?;
        let (state, output) = (self.fd(state)?, self.fd(output)?);
        // The hooks share one file.
        sys::rewind(state)?;
        match sys::fork()? {
            Cloned::Child => {
                let error = match redirect(state, output) {
                    Ok(()) => sys::execute(path, &arguments, &environment),
                    Err(error) => error,
                };
                let number = Decimal::new(i64::from(error.number()));
                let _ = sys::write(BorrowedFd::STDERR, b"cannot be executed: error ");
                let _ = sys::write(BorrowedFd::STDERR, number.bytes());
                sys::exit(NOT_EXECUTED)
            }
            Cloned::Parent { pid, pidfd } => {
                let in_time = sys::wait_readable(pidfd.borrow(), seconds.saturating_mul(1000));
                if !in_time {
                    let _ = sys::signal_process(pidfd.borrow(), sys::SIGKILL);
                    sys::wait_readable(pidfd.borrow(), KILLED_MS);
                }
                let ended = sys::wait(Child::Pid(pid), true);
                match ended.map(|ended| ended.wait_status) {
                    _ if !in_time => Err(Errno(errno::ETIMEDOUT)),
                    Some(0) => Ok(()),
                    Some(status) => Err(Errno((ENDED | status).cast_unsigned())),
                    None => Err(Errno(errno::ECHILD)),
                }
            }
        }
    }
}

fn redirect(state: BorrowedFd<'_>, output: BorrowedFd<'_>) -> Result<()> {
    sys::duplicate_onto(state, BorrowedFd::STDIN)?;
    sys::duplicate_onto(output, BorrowedFd::STDOUT)?;
    sys::duplicate_onto(output, BorrowedFd::STDERR)?;
    sys::close_on_exec_from(3)
}
