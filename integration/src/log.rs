//! Reads a container's log in the CRI format: `TIME STREAM P|F TEXT`.

use std::path::Path;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// "stdout" or "stderr".
    pub stream: String,
    /// Whether more of the same line follows (tag P).
    pub partial: bool,
    pub text: Vec<u8>,
}

/// The lines of a log file, in order.
#[derive(Debug, Clone, Default)]
pub struct Log(pub Vec<Line>);

impl Log {
    /// Reads a log file.
    ///
    /// # Panics
    /// If a line is not in the CRI format: that is a failed test.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let bytes =
            std::fs::read(path).unwrap_or_else(|error| panic!("log {}: {error}", path.display()));
        assert!(
            bytes.is_empty() || bytes.ends_with(b"\n"),
            "{} ends in the middle of a line",
            path.display()
        );
        Self(
            bytes
                .split_inclusive(|byte| *byte == b'\n')
                .map(|line| parse(&line[..line.len() - 1]))
                .collect(),
        )
    }

    /// What the container wrote to its standard output, put together again.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stream("stdout")
    }

    /// What the container wrote to its standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stream("stderr")
    }

    fn stream(&self, stream: &str) -> String {
        let mut bytes = Vec::new();
        for line in self.0.iter().filter(|line| line.stream == stream) {
            bytes.extend_from_slice(&line.text);
            if !line.partial {
                bytes.push(b'\n');
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn parse(line: &[u8]) -> Line {
    let bad = || -> ! { panic!("not a CRI log line: {:?}", String::from_utf8_lossy(line)) };
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let mut next = || parts.next().unwrap_or_else(|| bad());
    let word = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (time, stream, tag, text) = (word(next()), word(next()), word(next()), next().to_vec());
    // 2026-01-02T03:04:05.123456789Z
    if time.len() < 20 || !time.contains('T') || !time.ends_with('Z') && !time.contains('+') {
        bad();
    }
    if stream != "stdout" && stream != "stderr" {
        bad();
    }
    let partial = match tag.as_str() {
        "P" => true,
        "F" => false,
        _ => bad(),
    };
    Line {
        time,
        stream,
        partial,
        text,
    }
}
