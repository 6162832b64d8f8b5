//! Writing archives for tests, sound and hostile ones.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// An archive being written.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(path.as_bytes(), b'0', b"", data)
    }

    pub(crate) fn folder(self, path: &str) -> Self {
        self.entry(path.as_bytes(), b'5', b"", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path.as_bytes(), b'2', target.as_bytes(), b"")
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(path.as_bytes(), b'1', target.as_bytes(), b"")
    }

    pub(crate) fn entry(self, path: &[u8], kind: u8, link: &[u8], data: &[u8]) -> Self {
        self.with(path, kind, link, data, |_| {})
    }

    /// As [`Self::entry`], with the header changed before its sum is written.
    pub(crate) fn with(
        mut self,
        path: &[u8],
        kind: u8,
        link: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut [u8; 512]),
    ) -> Self {
        let mut header = header(path, kind, link, data.len() as u64);
        change(&mut header);
        sum(&mut header);
        self.0.extend_from_slice(&header);
        self.data(data)
    }

    pub(crate) fn device(self, path: &str, kind: u8, major: u32, minor: u32) -> Self {
        self.with(path.as_bytes(), kind, b"", b"", |header| {
            header[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
            header[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        })
    }

    /// An extended header for the entry after it.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        self.entry(b"PaxHeaders/x", b'x', b"", &bytes)
    }

    /// Data, filled up to a block.
    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Without the two blocks at the end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn header(path: &[u8], kind: u8, link: &[u8], size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    header[..path.len()].copy_from_slice(path);
    let mode: &[u8] = if kind == b'5' {
        b"0000755\0"
    } else {
        b"0000644\0"
    };
    header[100..108].copy_from_slice(mode);
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000001750\0");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    header
}

pub(crate) fn sum(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Runs a tool that the tests need, and gives what it writes.
pub(crate) fn tool(program: &str, arguments: &[&str], folder: &Path, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

/// What is at a path, for comparing trees: everything but the times of access.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) device: u64,
    pub(crate) links: u64,
    pub(crate) mtime: (i64, i64),
    /// Data of a file or target of a link.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// Everything below `root`, itself included as "", sorted by path.
pub(crate) fn look(root: &Path) -> Vec<Seen> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut seen = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let mut content = Vec::new();
        if metadata.is_symlink() {
            content = std::fs::read_link(&path)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec();
        } else if metadata.is_file() {
            content = std::fs::read(&path).unwrap();
        } else if metadata.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        seen.push(Seen {
            path: path
                .strip_prefix(root)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .escape_ascii()
                .to_string(),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: metadata.rdev(),
            links: if metadata.is_dir() {
                0
            } else {
                metadata.nlink()
            },
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            content,
            xattrs: xattrs(&path),
        });
    }
    seen.sort();
    seen
}

pub(crate) fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found = Vec::new();
    for name in names[..length]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        found.push((String::from_utf8_lossy(name).into_owned(), value));
    }
    found.sort();
    found
}
