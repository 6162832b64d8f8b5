//! The kernel's texts. What they do not say as expected is left out.

use super::{Pressure, Stall};

/// A file with one number. "max", and what v1 writes for it, is none.
pub fn number(text: &str) -> Option<u64> {
    /// The kernel's largest memory limit, in pages of 4 KiB or more, stands for no limit on v1.
    const NO_LIMIT: u64 = 1 << 62;
    text.trim().parse().ok().filter(|value| *value < NO_LIMIT)
}

/// Some of the lines "key value" of a file, in the order of `keys`.
pub fn keyed<const N: usize>(text: &str, keys: [&str; N]) -> [Option<u64>; N] {
    let mut values = [None; N];
    let mut missing = N;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else {
            continue;
        };
        if let Some(at) = keys.iter().position(|wanted| *wanted == key) {
            values[at] = value.trim().parse().ok();
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    values
}

/// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same with "full", which old kernels leave out
/// for the CPU.
pub fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut found = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        *stall = stalled(words);
        found = true;
    }
    found.then_some(pressure)
}

fn stalled<'a>(words: impl Iterator<Item = &'a str>) -> Stall {
    let mut stall = Stall::default();
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let percent = || value.parse().unwrap_or(0.0);
        match key {
            "avg10" => stall.avg10 = percent(),
            "avg60" => stall.avg60 = percent(),
            "avg300" => stall.avg300 = percent(),
            "total" => stall.total = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    stall
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_limit_has_two_spellings() {
        assert_eq!(number("4096\n"), Some(4096));
        assert_eq!(number("max\n"), None);
        assert_eq!(number("9223372036854771712\n"), None);
        assert_eq!(number(""), None);
    }

    #[test]
    fn keys_are_whole_words() {
        let text = "anon 1\nanon_thp 2\npgfault 3\nbroken\nanon";
        assert_eq!(
            keyed(text, ["pgfault", "anon", "file"]),
            [Some(3), Some(1), None]
        );
    }

    #[test]
    fn pressures_are_read_as_the_kernel_writes_them() {
        let text = include_str!("fixtures/v2/memory.pressure");
        let stall = |avg10, avg60, avg300, total| Stall {
            avg10,
            avg60,
            avg300,
            total,
        };
        assert_eq!(
            pressure(text),
            Some(Pressure {
                some: stall(12.85, 35.14, 44.76, 6_406_573_193),
                full: stall(1.5, 0.25, 0.0, 17),
            })
        );
        let half = pressure("some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n").unwrap();
        assert_eq!((half.some.total, half.full), (5, Stall::default()));
        assert_eq!(pressure(""), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_them_panic(text: String) {
            number(&text);
            keyed(&text, ["a", "b"]);
            pressure(&text);
        }
    }
}
