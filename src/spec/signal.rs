//! Signals by the names that images use.

use nix::sys::signal::Signal;

/// First and last realtime signal, as the C library numbers them: the kernel's first two are its own.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of "SIGTERM", "TERM", "15", "SIGRTMIN+3" or "RTMAX-1".
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = match name {
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        _ => {
            let above = name
                .strip_prefix("RTMIN+")
                .and_then(|n| n.parse::<u8>().ok());
            let below = name
                .strip_prefix("RTMAX-")
                .and_then(|n| n.parse::<u8>().ok());
            above
                .map(|n| RTMIN + i32::from(n))
                .or(below.map(|n| RTMAX - i32::from(n)))
        }
    };
    match realtime {
        Some(number) => (RTMIN..=RTMAX).contains(&number).then_some(number),
        None => format!("SIG{}", usual(name))
            .parse::<Signal>()
            .ok()
            .map(|signal| signal as i32),
    }
}

/// The usual name of a signal that has two.
fn usual(name: &str) -> &str {
    match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_and_numbers() {
        let known = [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("SIGIOT", 6),
            ("poll", 29),
        ];
        for (text, number) in known {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in [
            "", "SIG", "0", "65", "-1", "RTMIN+31", "RTMAX-31", "SIGNOPE", "RTMIN-1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
