//! The terminal that a command runs at: raw while a session has it, as it was before on every way out.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// How the terminal was, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

fn before() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether keys come from a terminal.
pub fn is_there() -> bool {
    std::io::stdin().is_terminal()
}

/// A terminal that is raw: every key goes to the other side.
pub struct Raw(());

impl Raw {
    /// # Errors
    /// As `tcsetattr(3)`.
    pub fn enter() -> std::io::Result<Self> {
        let now = tcgetattr(stdin())?;
        before().get_or_insert_with(|| now.clone());
        let raw = Self(());
        raw.again()?;
        Ok(raw)
    }

    /// Makes it raw again, after whoever had stopped us has changed it.
    ///
    /// # Errors
    /// As `tcsetattr(3)`.
    pub fn again(&self) -> std::io::Result<()> {
        let mut raw = tcgetattr(stdin())?;
        raw.make_raw();
        Ok(tcsetattr(stdin(), OptionalActions::Now, &raw)?)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was. Whoever ends the program calls this, whatever happened.
pub fn restore() {
    if let Some(termios) = before().take() {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &termios);
    }
}

/// Columns and rows.
pub fn size() -> Option<(u16, u16)> {
    let of = |fd: BorrowedFd<'_>| {
        let size = isatty(fd).then(|| tcgetwinsize(fd))?.ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    };
    of(stdout().as_fd()).or_else(|| of(stdin().as_fd()))
}
