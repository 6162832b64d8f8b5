//! A container's log file, read as it grows: `TIME STREAM TAG TEXT` a line, as the CRI has it.
//!
//! The file may be rotated meanwhile (renamed, and another one in its place) or cut to nothing.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Where a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339.
    pub time: &'a str,
    pub stream: Stream,
    /// Whether the container's line goes on in this stream's next entry.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads a line of the file, without its newline. `None`: it is in no format that we know.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    if !time.contains('T') {
        return None;
    }
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // There may be more tags, with colons between them. The first is what we need.
    let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry {
        time,
        stream,
        partial,
        text: fields.next().unwrap_or_default(),
    })
}

/// A log file, read from some point on.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes of the file that were read.
    position: u64,
    /// What was read after the last newline.
    rest: Vec<u8>,
}

impl LogFile {
    /// Opens a log at its beginning.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: File::open(path)?,
            position: 0,
            rest: Vec::new(),
        })
    }

    /// Goes to where the container's last `count` lines begin. A line in several parts is one. Returns how many lines
    /// are missing if that is the file's beginning; what it begins with may be the end of a line, too.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn seek_tail(&mut self, count: usize) -> io::Result<Option<usize>> {
        let end = self.file.seek(SeekFrom::End(0))?;
        let mut from = end;
        let mut size = CHUNK as u64;
        // From the end backwards, twice as much each time: the cost is that of what is shown.
        let (start, left) = loop {
            from = from.saturating_sub(size);
            size *= 2;
            let mut bytes = Vec::new();
            self.file.seek(SeekFrom::Start(from))?;
            (&mut self.file).take(end - from).read_to_end(&mut bytes)?;
            if let Some(tail) = tail(&bytes, count, from == 0) {
                break (from + tail.start as u64, tail.left);
            }
        };
        self.position = self.file.seek(SeekFrom::Start(start))?;
        self.rest.clear();
        Ok(left)
    }

    /// Reads what the file has beyond what was read, and calls `line` for every whole line of it, without
    /// its newline. Returns whether there was anything.
    ///
    /// # Errors
    /// As `read(2)`, or `line`'s.
    pub fn read_lines(
        &mut self,
        mut line: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        if self.file.metadata()?.len() < self.position {
            // Cut: what is there now was written since.
            self.position = self.file.seek(SeekFrom::Start(0))?;
            self.rest.clear();
        }
        let mut any = false;
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = self.file.read(&mut chunk)?;
            if read == 0 {
                return Ok(any);
            }
            any = true;
            self.position += read as u64;
            let mut lines = chunk[..read].split_inclusive(|byte| *byte == b'\n');
            if !self.rest.is_empty()
                && let Some(first) = lines.next()
            {
                self.rest.extend_from_slice(first);
                if let Some(whole) = self.rest.strip_suffix(b"\n") {
                    line(whole)?;
                    self.rest.clear();
                }
            }
            for one in lines {
                match one.strip_suffix(b"\n") {
                    Some(whole) => line(whole)?,
                    None => self.rest.extend_from_slice(one),
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the file, whatever it is called now.
    pub fn is(&self, metadata: &Metadata) -> bool {
        let own = self.file.metadata();
        own.is_ok_and(|own| identity(&own) == identity(metadata))
    }

    /// The file that has taken this one's place, if another has.
    pub fn successor(&self) -> Option<Self> {
        let next = Self::open(&self.path).ok()?;
        let (old, new) = (self.file.metadata().ok()?, next.file.metadata().ok()?);
        (identity(&old) != identity(&new)).then_some(next)
    }

    /// Whether anything is in the file.
    pub fn has_data(&self) -> bool {
        self.file
            .metadata()
            .is_ok_and(|metadata| metadata.len() > 0)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Where the last lines of a container begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tail {
    pub start: usize,
    /// How many lines are missing, if there are no more.
    pub left: Option<usize>,
}

/// Where in `bytes` the last `count` lines of a container begin. `bytes` begin in the middle of a line,
/// unless `whole` says that they are all there is. `None`: further up.
pub fn tail(bytes: &[u8], count: usize, whole: bool) -> Option<Tail> {
    // A line without a newline is not written to its end yet, and will be shown then.
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let mut lines = 0;
    let mut at = end;
    while at > 0 {
        let begin = bytes[..at - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        if begin == 0 && !whole {
            return None;
        }
        // Each entry that ends a line is the end of what is above it.
        let ends = parse(&bytes[begin..at - 1]).is_none_or(|entry| !entry.partial);
        if ends && lines == count {
            return Some(Tail {
                start: at,
                left: None,
            });
        }
        lines += usize::from(ends);
        at = begin;
    }
    whole.then_some(Tail {
        start: 0,
        left: Some(count - lines),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TIME: &str = "2026-01-02T15:04:05.000000001Z";

    fn lines(log: &mut LogFile) -> Vec<String> {
        let mut lines = Vec::new();
        log.read_lines(|line| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            Ok(())
        })
        .unwrap();
        lines
    }

    #[test]
    fn a_line_is_parsed_or_left_alone() {
        let line = format!("{TIME} stdout F hello  world ");
        let entry = parse(line.as_bytes()).unwrap();
        assert_eq!(entry.time, TIME);
        assert_eq!(entry.stream, Stream::Stdout);
        assert!(!entry.partial);
        assert_eq!(entry.text, b"hello  world ");
        let line = [TIME.as_bytes(), b" stderr P:x:y \xff"].concat();
        let entry = parse(&line).unwrap();
        assert!(entry.partial);
        assert_eq!(entry.stream, Stream::Stderr);
        // An empty line, with and without the blank.
        for line in [format!("{TIME} stdout F "), format!("{TIME} stdout F")] {
            assert_eq!(parse(line.as_bytes()).unwrap().text, b"", "{line}");
        }
        for bad in [
            "",
            "hello",
            "x stdout F a",
            "T other F a",
            "T stdout X a",
            "T stdout",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse(b"\xff\xfeT stdout F a"), None);
    }

    #[test]
    fn lines_come_whole_however_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut file = File::create(&path).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        assert!(lines(&mut log).is_empty());
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(lines(&mut log), ["one"]);
        file.write_all(b"o").unwrap();
        assert!(lines(&mut log).is_empty());
        file.write_all(b"\n\nfour\n").unwrap();
        assert_eq!(lines(&mut log), ["two", "", "four"]);
        let long = "x".repeat(3 * CHUNK + 5);
        file.write_all(format!("{long}\nshort\n").as_bytes())
            .unwrap();
        assert_eq!(lines(&mut log), [long.as_str(), "short"]);
        // Cut to nothing and written anew.
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(b"new\n").unwrap();
        assert_eq!(lines(&mut log), ["new"]);
    }

    #[test]
    fn a_rotated_file_has_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "old\n").unwrap();
        let mut log = LogFile::open(&path).unwrap();
        assert!(log.successor().is_none());
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        assert!(log.successor().is_none());
        std::fs::write(&path, "").unwrap();
        let mut next = log.successor().unwrap();
        assert!(!next.has_data());
        assert_eq!(lines(&mut log), ["old"]);
        std::fs::write(&path, "new\n").unwrap();
        assert!(next.has_data());
        assert_eq!(lines(&mut next), ["new"]);
    }

    #[test]
    fn the_tail_counts_the_containers_lines() {
        let entry = |tag: &str, text: &str| format!("{TIME} stdout {tag} {text}\n");
        let text = [
            entry("F", "1"),
            entry("P", "2a"),
            entry("P", "2b"),
            entry("F", "2c"),
            entry("F", "3"),
        ]
        .concat();
        let from = |count| &text[tail(text.as_bytes(), count, true).unwrap().start..];
        assert_eq!(from(0), "");
        assert_eq!(from(1), entry("F", "3"));
        assert!(from(2).starts_with(&entry("P", "2a")));
        assert_eq!(from(3), text);
        assert_eq!(from(99), text);
        assert_eq!(tail(text.as_bytes(), 3, false), None);
        let left = |bytes: &[u8], count| tail(bytes, count, true).unwrap().left;
        assert_eq!(left(b"", 3), Some(3));
        assert_eq!(left(b"unfinished", 3), Some(3));
        assert_eq!(left(text.as_bytes(), 2), None);
        assert_eq!(left(text.as_bytes(), 3), Some(0));
        // A partial line that has not ended yet belongs to the tail.
        let open = format!("{text}{}", entry("P", "4a"));
        let start = tail(open.as_bytes(), 1, true).unwrap().start;
        assert!(
            open[start..].starts_with(&entry("F", "3")),
            "{}",
            &open[start..]
        );
    }

    #[test]
    fn the_tail_of_a_long_file_is_found_from_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let text: String = (0..50_000)
            .map(|n| format!("{TIME} stdout F line {n}\n"))
            .collect();
        std::fs::write(&path, &text).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        for count in [0, 1, 10, 5000, 49_999, 50_000, 60_000] {
            log.seek_tail(count).unwrap();
            let got = lines(&mut log);
            assert_eq!(got.len(), count.min(50_000));
            if let Some(last) = got.last() {
                assert!(last.ends_with("line 49999"));
            }
        }
    }
}
