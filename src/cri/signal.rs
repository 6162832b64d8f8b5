//! The interface's numbers of signals and the kernel's.

use carpel_api::cri::Signal;

use crate::spec::signal::parse;

/// The kernel's number. `None` for the default, which is no signal of its own.
pub fn number(signal: Signal) -> Option<i32> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
    parse(&name.replace("PLUS", "+").replace("MINUS", "-"))
}

/// The interface's name of a kernel's number; the default if it has none.
pub fn from_number(kernel: i32) -> Signal {
    // Of several names the first in the interface's order is the usual one.
    (1..)
        .map_while(|raw| Signal::try_from(raw).ok())
        .find(|signal| number(*signal) == Some(kernel))
        .unwrap_or(Signal::RuntimeDefault)
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
