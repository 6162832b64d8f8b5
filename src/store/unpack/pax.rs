//! Extended headers in PAX form: `<length> <key>=<value>\n`, one after the other.

use super::UnpackError;

/// The most extended attributes that a file may have: each that comes is compared with those before it.
const MAX_XATTRS: usize = 256;

/// A point in time, seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What an extended header says of the entry that follows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub atime: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// The GNU keys for files with holes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub length: Option<u64>,
    pub count: Option<u64>,
    /// Offsets and lengths, alternating.
    pub numbers: Vec<u64>,
}

impl Sparse {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Pax {
    /// Reads all records. `pieces`: most pieces of a sparse file.
    ///
    /// # Errors
    /// [`UnpackError`] for what is not exactly of that form.
    pub(super) fn parse(mut bytes: &[u8], pieces: usize) -> Result<Self, UnpackError> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or_else(|| bad("record"))?;
            pax.set(key, value, pieces)?;
            bytes = rest;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8], pieces: usize) -> Result<(), UnpackError> {
        // An empty value takes an earlier one away.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| text(value, "path")).transpose()?,
            b"linkpath" => self.link = given.then(|| text(value, "linkpath")).transpose()?,
            b"size" => self.size = number(value, given, "size")?,
            b"uid" => self.uid = number(value, given, "uid")?,
            b"gid" => self.gid = number(value, given, "gid")?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            b"atime" => self.atime = given.then(|| time(value)).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    if self.xattrs.len() == MAX_XATTRS {
                        return Err(UnpackError::TooMuch {
                            what: "extended attributes of a file",
                            most: MAX_XATTRS as u64,
                        });
                    }
                    self.xattrs.push((text(name, "xattr")?, value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.set_sparse(name, value, pieces)?;
                }
            }
        }
        Ok(())
    }

    fn set_sparse(&mut self, key: &[u8], value: &[u8], pieces: usize) -> Result<(), UnpackError> {
        let sparse = &mut self.sparse;
        let need = |value| number(value, true, "sparse file");
        match key {
            b"major" => sparse.major = need(value)?,
            b"minor" => sparse.minor = need(value)?,
            b"name" => sparse.name = Some(text(value, "sparse file")?),
            b"size" | b"realsize" => sparse.length = need(value)?,
            b"numblocks" => sparse.count = need(value)?,
            b"offset" | b"numbytes" => {
                // Strictly alternating, an offset first.
                if sparse.numbers.len().is_multiple_of(2) != (key == b"offset") {
                    return Err(bad("sparse file"));
                }
                sparse.numbers.extend(need(value)?);
            }
            b"map" => {
                sparse.numbers.clear();
                for piece in value.split(|&b| b == b',').take(2 * pieces + 2) {
                    sparse.numbers.extend(need(piece)?);
                }
            }
            _ => return Err(bad("sparse file")),
        }
        if sparse.numbers.len() > 2 * pieces {
            return Err(UnpackError::TooMuch {
                what: "pieces of a sparse file",
                most: pieces as u64,
            });
        }
        Ok(())
    }
}

/// Splits the first record off.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let digits = &bytes[..space];
    if digits.first() == Some(&b'0') {
        return None;
    }
    let length = usize::try_from(decimal(digits)?).ok()?;
    let record = bytes.get(space + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, &bytes[length..]))
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn number(value: &[u8], given: bool, what: &str) -> Result<Option<u64>, UnpackError> {
    if !given {
        return Ok(None);
    }
    decimal(value).map(Some).ok_or_else(|| bad(what))
}

fn text(value: &[u8], what: &str) -> Result<Vec<u8>, UnpackError> {
    if value.is_empty() || value.contains(&0) {
        return Err(bad(what));
    }
    Ok(value.to_vec())
}

/// Seconds as a decimal fraction, perhaps negative; what is finer than nanoseconds is cut off downwards.
fn time(value: &[u8]) -> Result<Time, UnpackError> {
    parse_time(value).ok_or_else(|| bad("time"))
}

fn parse_time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&b| b == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if fraction.len() > 100 || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| u32::from(fraction.get(at).map_or(0, |b| b - b'0'));
    let mut nanoseconds = (0..9).fold(0, |sum, at| sum * 10 + digit(at));
    let mut seconds = whole;
    if negative {
        let finer = fraction.iter().skip(9).any(|&b| b != b'0');
        nanoseconds += u32::from(finer);
        seconds = -whole;
        if nanoseconds > 0 {
            seconds -= 1;
            nanoseconds = 1_000_000_000 - nanoseconds;
        }
    }
    Some(Time {
        seconds,
        nanoseconds,
    })
}

fn bad(what: &str) -> UnpackError {
    UnpackError::invalid(format!("malformed {what} in an extended header"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Option<Pax> {
        Pax::parse(text, 4).ok()
    }

    #[test]
    fn records_are_read() {
        let pax = parse(b"12 path=a/b\n20 mtime=12.0000005\n6 a=b\n9 uid=77\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.uid, Some(77));
        let (seconds, nanoseconds) = (12, 500);
        assert_eq!(
            pax.mtime,
            Some(Time {
                seconds,
                nanoseconds
            })
        );
        let pax = parse(b"8 uid=1\n7 uid=\n31 SCHILY.xattr.user.a=x\0\ny=z\n\n");
        let pax = pax.unwrap();
        assert_eq!(pax.uid, None);
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\0\ny=z\n".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"11 path=a/b\n"[..],
            b"13 path=a/b\n",
            b"12 path=a/b",
            b"012 path=ab\n",
            b"5 =ab\n",
            b"99999999999999999999999 a=b\n",
            b" 6 a=b\n",
            b"-6 a=b\n",
            b"6 a-b\n",
            b"12 path=a\0b\n",
            b"9 uid=-1\n",
            b"11 size=0x1\n",
            b"10 size=1 \n",
            b"9 mtime=\n0",
            b"13 mtime=1e9\n",
            b"32 GNU.sparse.map=1,1,1,1,1,1,1,1,1,1\n",
            b"22 GNU.sparse.what=1\n",
            b"25 GNU.sparse.numbytes=1\n",
        ] {
            assert!(parse(bad).is_none(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_are_exact() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1", 1, 0),
            ("1.", 1, 0),
            ("1.5", 1, 500_000_000),
            ("1.123456789", 1, 123_456_789),
            ("1.1234567899", 1, 123_456_789),
            ("-1", -1, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.000000001", -1, 999_999_999),
            ("-0.9999999999", -1, 0),
        ] {
            let expected = Time {
                seconds,
                nanoseconds,
            };
            assert_eq!(parse_time(text.as_bytes()), Some(expected), "{text}");
        }
        for bad in ["", "-", ".5", "+1", "1.5.5", "1 ", "99999999999999999999"] {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_record_makes_it_panic(key in "[a-zA-Z.]{1,20}|GNU.sparse.[a-z]{1,9}", value: Vec<u8>) {
            let mut record = [key.as_bytes(), b"=", &value, b"\n"].concat();
            let mut length = record.len() + 2;
            length += usize::from(length + 1 > 9) + usize::from(length + 1 > 99);
            let mut whole = format!("{length} ").into_bytes();
            whole.append(&mut record);
            let _ = parse(&whole);
        }

        #[test]
        fn times_never_overflow(text in "-?[0-9]{1,20}(\\.[0-9]{0,20})?") {
            if let Some(time) = parse_time(text.as_bytes()) {
                prop_assert!(time.nanoseconds < 1_000_000_000);
            }
        }
    }
}
