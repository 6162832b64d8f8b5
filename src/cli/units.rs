//! Sizes, times and ids as a person reads and writes them.

use std::time::Duration;

use anyhow::{Context, bail};
use jiff::{SignedDuration, Timestamp};

/// A size in the unit that fits it.
pub fn bytes(size: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = size as f64;
    let mut unit = 0;
    // Not 1024: what rounds to "1024.0 KiB" is "1.0 MiB".
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{size} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// The first 12 digits of an id or a digest.
pub fn short(id: &str) -> &str {
    let digits = id.split_once(':').map_or(id, |(_, digits)| digits);
    digits.get(..12).unwrap_or(digits)
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// How long ago a time (nanoseconds since the epoch) is: "5m30s", "3d4h". "-" for a time that is not set.
pub fn age(then: i64, now: i64) -> String {
    if then <= 0 {
        return "-".to_owned();
    }
    let elapsed = u64::try_from(now.saturating_sub(then)).unwrap_or(0);
    duration(Duration::from_nanos(elapsed))
}

/// A span of time in at most two units.
pub fn duration(time: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let two = |big: u64, a: &str, small: u64, b: &str| match small {
        0 => format!("{big}{a}"),
        _ => format!("{big}{a}{small}{b}"),
    };
    match time.as_secs() {
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s => format!("{}d", s / DAY),
    }
}

/// A time (nanoseconds since the epoch) in UTC, to the second; "" for one that is not set.
pub fn time(nanos: i64) -> String {
    if nanos <= 0 {
        return String::new();
    }
    let time = Timestamp::from_nanosecond(nanos.into()).ok();
    time.map(|time| format!("{time:.0}")).unwrap_or_default()
}

/// A number of bytes as in "512m", "1.5GiB" or "4096". The units are binary.
///
/// # Errors
/// It is something else.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no size: give bytes, or a number with k, m, g or t, as in 512m");
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().to_ascii_lowercase();
    let power = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" if matches!(unit.as_str(), "" | "b") => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let bytes = number * 1024f64.powi(power);
    if !(0.0..9.0e18).contains(&bytes) {
        return Err(wrong());
    }
    // In range: checked above. A part of a byte is dropped.
    Ok(bytes as u64)
}

/// A time as in "10m" (ago), "2h30m", or RFC 3339.
///
/// # Errors
/// It is neither.
pub fn parse_since(text: &str) -> anyhow::Result<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let Ok(ago) = text.parse::<SignedDuration>() else {
        bail!(
            "{text:?} is no time: give how long ago it is, as in 10m, or a time, as in 2026-01-02T15:04:05Z"
        );
    };
    Timestamp::now()
        .checked_sub(ago.abs())
        .with_context(|| format!("{text} ago is too long ago"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (601, "10m"),
            (4 * 3600 + 60, "4h1m"),
            (47 * 3600, "47h"),
            (76 * 3600, "3d4h"),
            (400 * 86400, "400d"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(age(0, 5), "-");
        // A clock that went back.
        assert_eq!(age(10_000_000_000, 5), "0s");
        assert_eq!(age(i64::MIN, i64::MAX), "-");
        assert_eq!(time(0), "");
        assert_eq!(time(1_767_366_245_999_999_999), "2026-01-02T15:04:05Z");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("abc"), "abc");
    }

    #[test]
    fn sizes_and_times_are_read() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("512m", 512 << 20),
            ("512MiB", 512 << 20),
            ("1.5g", 3 << 29),
            ("10 kb", 10 << 10),
            ("7b", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(size), "{text}");
        }
        for text in [
            "", "m", "-1", "1x", "1.2.3m", "1e3", "ib", "9999999t", "1ib",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        let ago = Timestamp::now().as_second() - parse_since("2h30m").unwrap().as_second();
        assert!((9000..9005).contains(&ago), "{ago}");
        let time = parse_since("2026-01-02T15:04:05Z").unwrap();
        assert_eq!(time.as_second(), 1_767_366_245);
        for text in ["", "yesterday", "12", "2026-01-02"] {
            assert!(parse_since(text).is_err(), "{text}");
        }
    }
}
