//! The interface's numbers of signals and the kernel's.

use carpel_api::cri::Signal;

/// First and last real-time signal as the interface counts them: those of programs on glibc.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;
/// The interface's number of SIGRTMIN.
const FIRST_REAL_TIME: i32 = Signal::Sigrtmin as i32;

/// Every signal that has a name, by which a number is found again; further names of a signal come last.
const NAMED: [(Signal, i32); 34] = [
    (Signal::Sigabrt, libc::SIGABRT),
    (Signal::Sigalrm, libc::SIGALRM),
    (Signal::Sigbus, libc::SIGBUS),
    (Signal::Sigchld, libc::SIGCHLD),
    (Signal::Sigcont, libc::SIGCONT),
    (Signal::Sigfpe, libc::SIGFPE),
    (Signal::Sighup, libc::SIGHUP),
    (Signal::Sigill, libc::SIGILL),
    (Signal::Sigint, libc::SIGINT),
    (Signal::Sigio, libc::SIGIO),
    (Signal::Sigkill, libc::SIGKILL),
    (Signal::Sigpipe, libc::SIGPIPE),
    (Signal::Sigprof, libc::SIGPROF),
    (Signal::Sigpwr, libc::SIGPWR),
    (Signal::Sigquit, libc::SIGQUIT),
    (Signal::Sigsegv, libc::SIGSEGV),
    (Signal::Sigstkflt, libc::SIGSTKFLT),
    (Signal::Sigstop, libc::SIGSTOP),
    (Signal::Sigsys, libc::SIGSYS),
    (Signal::Sigterm, libc::SIGTERM),
    (Signal::Sigtrap, libc::SIGTRAP),
    (Signal::Sigtstp, libc::SIGTSTP),
    (Signal::Sigttin, libc::SIGTTIN),
    (Signal::Sigttou, libc::SIGTTOU),
    (Signal::Sigurg, libc::SIGURG),
    (Signal::Sigusr1, libc::SIGUSR1),
    (Signal::Sigusr2, libc::SIGUSR2),
    (Signal::Sigvtalrm, libc::SIGVTALRM),
    (Signal::Sigwinch, libc::SIGWINCH),
    (Signal::Sigxcpu, libc::SIGXCPU),
    (Signal::Sigxfsz, libc::SIGXFSZ),
    (Signal::Sigcld, libc::SIGCHLD),
    (Signal::Sigiot, libc::SIGABRT),
    (Signal::Sigpoll, libc::SIGIO),
];

/// The kernel's number. `None` for the default, which is no signal of its own.
pub fn number(signal: Signal) -> Option<i32> {
    if signal as i32 >= FIRST_REAL_TIME {
        return Some(SIGRTMIN + (signal as i32 - FIRST_REAL_TIME));
    }
    let named = NAMED.iter().find(|(named, _)| *named == signal);
    named.map(|&(_, number)| number)
}

/// The interface's name of a kernel's number; the default if it has none.
pub fn from_number(number: i32) -> Signal {
    if (SIGRTMIN..=SIGRTMAX).contains(&number) {
        let signal = Signal::try_from(FIRST_REAL_TIME + (number - SIGRTMIN));
        return signal.unwrap_or(Signal::RuntimeDefault);
    }
    let named = NAMED.iter().find(|(_, named)| *named == number);
    named.map_or(Signal::RuntimeDefault, |&(signal, _)| signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_goes_there_and_back() {
        for raw in 1..=65 {
            let signal = Signal::try_from(raw).expect("the interface has 65 signals");
            let kernel = number(signal).expect("every one has a number");
            assert!((1..=64).contains(&kernel), "{signal:?} {kernel}");
            assert_eq!(number(from_number(kernel)), Some(kernel), "{signal:?}");
        }
        assert_eq!(number(Signal::Sigterm), Some(15));
        assert_eq!(number(Signal::Sigrtminplus3), Some(37));
        assert_eq!(number(Signal::Sigrtmaxminus14), Some(50));
        assert_eq!(number(Signal::Sigrtmax), Some(64));
        assert_eq!(number(Signal::RuntimeDefault), None);
        for nameless in [0, 32, 33, 65, -1, i32::MAX] {
            assert_eq!(from_number(nameless), Signal::RuntimeDefault);
        }
    }
}
