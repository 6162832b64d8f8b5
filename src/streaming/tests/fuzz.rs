//! The corpus of the fuzz targets, and changes of it, through the same functions.

use proptest::prelude::*;

use crate::corpus::{changed, of};
use crate::streaming::fuzz;

type Target = fn(&[u8]);

#[test]
fn the_corpus_breaks_nothing() {
    let targets: [(&str, Target); 3] = [
        ("spdy", fuzz::spdy),
        ("websocket", fuzz::websocket),
        ("sizes", fuzz::sizes),
    ];
    for (name, target) in targets {
        of(name).iter().for_each(|bytes| target(bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_spdy_breaks_nothing(bytes in changed("spdy")) {
        fuzz::spdy(&bytes);
    }

    #[test]
    fn changed_messages_break_nothing(bytes in changed("websocket")) {
        fuzz::websocket(&bytes);
    }

    #[test]
    fn changed_sizes_break_nothing(bytes in changed("sizes")) {
        fuzz::sizes(&bytes);
    }

    #[test]
    fn noise_breaks_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        fuzz::spdy(&bytes);
        fuzz::websocket(&bytes);
        fuzz::sizes(&bytes);
    }
}
