//! What rotations have left of a container's log: the kubelet renames `0.log` to `0.log.20261126-123456` and packs the
//! older ones as `….gz`.
//!
//! The files go while they are read (renamed, packed, removed): one that has gone is no error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use jiff::Timestamp;

use super::log_file::{LogFile, tail};

/// What a packed file's name ends with.
const PACKED: &str = ".gz";
/// Bytes of a packed file that are kept, at first, while its end is looked for.
const KEPT: usize = 1 << 20;

/// The files before a log, the oldest first.
#[derive(Debug)]
pub struct Rotated(Vec<PathBuf>);

/// One of them, from where it is to be shown.
pub struct Older {
    pub path: PathBuf,
    content: Content,
}

enum Content {
    Plain(LogFile),
    Packed(Box<BufReader<MultiGzDecoder<BufReader<File>>>>),
    /// The end of a packed one.
    Text(Vec<u8>),
    /// One whose end was not found.
    Damaged(io::Error),
}

impl Rotated {
    /// Finds the files that were written to since a time, without the one that is the log itself meanwhile.
    pub fn find(log: &LogFile, since: Option<Timestamp>) -> Self {
        // By when they were rotated. Plain comes before packed, and one is as good as the other.
        let mut found = BTreeMap::new();
        let entries = log.path().parent().and_then(|dir| dir.read_dir().ok());
        for entry in entries.into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(time) = rotated_at(log.path(), &path) else {
                continue;
            };
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let written = metadata.modified().ok().map(Timestamp::try_from);
            let is_older = |since| matches!(written, Some(Ok(written)) if written < since);
            if log.is(&metadata) || since.is_some_and(is_older) {
                continue;
            }
            let known = found.entry(time.to_owned()).or_insert_with(|| path.clone());
            if is_packed(known) {
                *known = path;
            }
        }
        Self(found.into_values().collect())
    }

    /// All of them.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open_all(&self) -> io::Result<Vec<Older>> {
        let mut all = Vec::new();
        for path in &self.0 {
            all.extend(open(path)?);
        }
        Ok(all)
    }

    /// Those that the last `count` lines are in, the first of them where these begin.
    ///
    /// # Errors
    /// As `open(2)`. What cannot be read shows when it is.
    pub fn open_tail(&self, mut count: usize) -> io::Result<Vec<Older>> {
        let mut all = Vec::new();
        for path in self.0.iter().rev() {
            let Some(mut older) = open(path)? else {
                continue;
            };
            let left = older.seek_tail(count);
            let enough = matches!(left, Ok(None));
            match left {
                Ok(left) => count = left.unwrap_or(0),
                Err(error) => older.content = Content::Damaged(error),
            }
            all.push(older);
            if enough {
                break;
            }
        }
        all.reverse();
        Ok(all)
    }
}

impl Older {
    /// As [`LogFile::seek_tail`].
    fn seek_tail(&mut self, count: usize) -> io::Result<Option<usize>> {
        match &mut self.content {
            Content::Plain(log) => log.seek_tail(count),
            Content::Packed(packed) => {
                let (text, left) = packed_tail(packed, count)?;
                self.content = Content::Text(text);
                Ok(left)
            }
            Content::Text(_) | Content::Damaged(_) => Ok(None),
        }
    }

    /// Calls `line` for every whole line, without its newline.
    ///
    /// # Errors
    /// As `read(2)`, or `line`'s.
    pub fn read_lines(self, mut line: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut reader: Box<dyn BufRead> = match self.content {
            Content::Plain(mut log) => return log.read_lines(line).map(drop),
            Content::Packed(packed) => packed,
            Content::Text(text) => Box::new(io::Cursor::new(text)),
            Content::Damaged(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes)? > 0 {
            line(bytes.strip_suffix(b"\n").unwrap_or(&bytes))?;
            bytes.clear();
        }
        Ok(())
    }
}

/// The time in the name of a file that a rotation of `log` has left.
fn rotated_at<'a>(log: &Path, path: &'a Path) -> Option<&'a str> {
    let name = path.file_name()?.to_str()?;
    let time = name
        .strip_prefix(log.file_name()?.to_str()?)?
        .strip_prefix('.')?;
    let time = time.strip_suffix(PACKED).unwrap_or(time);
    let (date, clock) = time.split_once('-')?;
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    (digits(date, 8) && digits(clock, 6)).then_some(time)
}

fn is_packed(path: &Path) -> bool {
    path.as_os_str()
        .as_encoded_bytes()
        .ends_with(PACKED.as_bytes())
}

/// Opens a file, or what it has been packed to meanwhile. `None`: it is gone.
fn open(path: &Path) -> io::Result<Option<Older>> {
    let mut packed = path.as_os_str().to_owned();
    if !is_packed(path) {
        match LogFile::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => packed.push(PACKED),
            opened => {
                return Ok(Some(Older {
                    path: path.to_owned(),
                    content: Content::Plain(opened?),
                }));
            }
        }
    }
    match File::open(&packed) {
        Ok(file) => {
            let unpacked = MultiGzDecoder::new(BufReader::new(file));
            Ok(Some(Older {
                path: packed.into(),
                content: Content::Packed(Box::new(BufReader::new(unpacked))),
            }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The last `count` lines, and how many are missing if the file has no more. Keeps no more than twice what it takes.
fn packed_tail(mut reader: impl BufRead, count: usize) -> io::Result<(Vec<u8>, Option<usize>)> {
    let mut text = Vec::new();
    let (mut cut, mut room) = (false, KEPT);
    while reader.read_until(b'\n', &mut text)? > 0 {
        if text.len() >= room {
            let start = tail(&text, count, true).map_or(0, |tail| tail.start);
            cut |= start > 0;
            text.drain(..start);
            room = KEPT.max(2 * text.len());
        }
    }
    let tail = tail(&text, count, true).unwrap_or_default();
    text.drain(..tail.start);
    let left = tail.left.filter(|_| !cut);
    Ok((text, left))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TIME: &str = "2026-01-02T15:04:05.000000001Z";

    fn entry(tag: &str, text: &str) -> String {
        format!("{TIME} stdout {tag} {text}\n")
    }

    fn pack(path: &Path, text: &str) {
        let mut packed =
            flate2::write::GzEncoder::new(File::create(path).unwrap(), Default::default());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap();
    }

    /// A log of seven lines in four files; one of them goes over from the second to the third.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let with = |end: &str| dir.path().join(format!("0.log.{end}"));
        pack(
            &with("20260101-000000.gz"),
            &[entry("F", "1"), entry("F", "2")].concat(),
        );
        pack(
            &with("20260102-000000.gz"),
            &[entry("F", "3"), entry("P", "4a")].concat(),
        );
        let third = [entry("P", "4b"), entry("F", "4c"), entry("F", "5")].concat();
        std::fs::write(with("20260103-000000"), &third).unwrap();
        // It is just being packed.
        pack(&with("20260103-000000.gz.tmp"), "nonsense\n");
        pack(&with("20260103-000000.gz"), "nonsense\n");
        std::fs::write(&path, [entry("F", "6"), entry("F", "7")].concat()).unwrap();
        std::fs::write(dir.path().join("0.log.old"), "nonsense\n").unwrap();
        std::fs::write(dir.path().join("1.log.20260103-000000"), "nonsense\n").unwrap();
        (dir, path)
    }

    fn texts(older: Vec<Older>) -> Vec<String> {
        let mut texts = Vec::new();
        for one in older {
            one.read_lines(|line| {
                let line = String::from_utf8_lossy(line).into_owned();
                texts.push(line.rsplit(' ').next().unwrap().to_owned());
                Ok(())
            })
            .unwrap();
        }
        texts
    }

    #[test]
    fn all_are_found_in_order() {
        let (_dir, path) = folder();
        let log = LogFile::open(&path).unwrap();
        let rotated = Rotated::find(&log, None);
        let all = texts(rotated.open_all().unwrap());
        assert_eq!(all, ["1", "2", "3", "4a", "4b", "4c", "5"]);
        // The log itself is rotated while we read it.
        std::fs::rename(&path, path.with_extension("log.20260104-000000")).unwrap();
        assert_eq!(texts(Rotated::find(&log, None).open_all().unwrap()), all);
    }

    #[test]
    fn the_tail_goes_back_as_far_as_it_must() {
        let (_dir, path) = folder();
        for (count, expected) in [
            (0, &[][..]),
            (1, &[]),
            // Whether the first line of the log is a whole one is seen in the file before.
            (2, &[]),
            (3, &["5"]),
            (4, &["4a", "4b", "4c", "5"]),
            (5, &["3", "4a", "4b", "4c", "5"]),
            (6, &["2", "3", "4a", "4b", "4c", "5"]),
            (99, &["1", "2", "3", "4a", "4b", "4c", "5"]),
        ] {
            let mut log = LogFile::open(&path).unwrap();
            let left = log.seek_tail(count).unwrap();
            let rotated = Rotated::find(&log, None);
            let older = left.map(|left| rotated.open_tail(left).unwrap());
            assert_eq!(texts(older.unwrap_or_default()), expected, "{count}");
        }
    }

    #[test]
    fn what_was_not_written_to_since_is_left_alone() {
        let (dir, path) = folder();
        let log = LogFile::open(&path).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        let first = dir.path().join("0.log.20260101-000000.gz");
        File::open(first).unwrap().set_modified(old).unwrap();
        let since = Timestamp::from_second(2000).unwrap();
        let found = texts(Rotated::find(&log, Some(since)).open_all().unwrap());
        assert_eq!(found.first().map(String::as_str), Some("3"));
    }

    #[test]
    fn one_that_is_packed_or_removed_meanwhile_is_no_error() {
        let (dir, path) = folder();
        let log = LogFile::open(&path).unwrap();
        let rotated = Rotated::find(&log, None);
        let third = dir.path().join("0.log.20260103-000000");
        let text = std::fs::read_to_string(&third).unwrap();
        pack(&dir.path().join("0.log.20260103-000000.gz"), &text);
        std::fs::remove_file(&third).unwrap();
        std::fs::remove_file(dir.path().join("0.log.20260101-000000.gz")).unwrap();
        assert_eq!(
            texts(rotated.open_all().unwrap()),
            ["3", "4a", "4b", "4c", "5"]
        );
    }

    #[test]
    fn a_damaged_file_hides_no_other() {
        let (dir, path) = folder();
        let second = dir.path().join("0.log.20260102-000000.gz");
        std::fs::write(&second, "no gzip").unwrap();
        let rotated = Rotated::find(&LogFile::open(&path).unwrap(), None);
        for older in [rotated.open_all().unwrap(), rotated.open_tail(9).unwrap()] {
            assert_eq!(older.len(), 3);
            for one in older {
                let is_second = one.path == second;
                let read = one.read_lines(|_| Ok(()));
                assert_eq!(read.is_err(), is_second);
            }
        }
    }

    #[test]
    fn a_packed_file_is_not_kept_whole() {
        let text: String = (0..100_000).map(|n| entry("F", &n.to_string())).collect();
        let (end, left) = packed_tail(text.as_bytes(), 3).unwrap();
        assert_eq!(left, None);
        assert_eq!(
            String::from_utf8(end).unwrap(),
            (99_997..100_000)
                .map(|n| entry("F", &n.to_string()))
                .collect::<String>()
        );
        let (_, left) = packed_tail(text.as_bytes(), 100_001).unwrap();
        assert_eq!(left, Some(1));
    }
}
