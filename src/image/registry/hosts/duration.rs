//! Durations as Go writes them: `1m30s`, `1.5s`, `300ms`.

use std::time::Duration;

/// Longer ones are a mistake.
const LONGEST: Duration = Duration::from_secs(3600);

/// A duration of more than nothing.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut all = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let length = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(length.unwrap_or(after.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        let part = Duration::try_from_secs_f64(number * seconds).ok()?;
        all = all.checked_add(part)?;
        rest = after;
    }
    (all > Duration::ZERO && all <= LONGEST).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_go_writes_them() {
        for (text, millis) in [
            ("1s", 1000),
            ("300ms", 300),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            (".5s", 500),
            ("1h", 3_600_000),
            ("2000us", 2),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "", "1", "s", "0s", "-1s", "1 s", "1d", "1s2", "..s", "99999h", "1e3s", "1.s.",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = parse(&text);
        }
    }
}
