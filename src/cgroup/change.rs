//! Changing limits of a cgroup that is in use: all of them or none.

use std::io;

use rustix::io::Errno;

use super::Error;
use super::dir::Dir;
use super::limits::Limit;

/// A file that has been written, and what stood in it.
struct Done<'a> {
    limit: &'a Limit,
    dir: &'a Dir,
    before: Option<String>,
}

/// Writes each limit to its directory. `missing` is the error for a file that is not there.
///
/// # Errors
/// The first limit that cannot be set. What was written before it is as it was.
pub(super) fn apply(
    path: &str,
    places: &[(&Limit, &Dir)],
    missing: impl Fn(&Limit) -> Error,
) -> Result<(), Error> {
    let mut done = Vec::with_capacity(places.len());
    let applied = write_all(path, places, missing, &mut done);
    if applied.is_err() {
        undo(&done);
    }
    applied
}

fn write_all<'a>(
    path: &str,
    places: &[(&'a Limit, &'a Dir)],
    missing: impl Fn(&Limit) -> Error,
    done: &mut Vec<Done<'a>>,
) -> Result<(), Error> {
    let mut again = Vec::new();
    for &(limit, dir) in places {
        let before = match dir.read(&limit.file) {
            Ok(text) => Some(text.trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if limit.optional {
                    continue;
                }
                return Err(missing(limit));
            }
            // Some can only be written.
            Err(_) => None,
        };
        if before.as_deref() == Some(limit.value.as_str()) {
            continue;
        }
        let entry = Done { limit, dir, before };
        if limit.file == "memory.max" {
            make_room(path, limit, dir)?;
        }
        match dir.write(&limit.file, &limit.value) {
            Ok(()) => done.push(entry),
            // Two limits may not contradict each other at any time (on v1 memory may not exceed memory
            // and swap together): if not in this order, then in the other.
            Err(Errno::INVAL) => again.push(entry),
            Err(error) => return Err(refused(path, limit, dir, error)),
        }
    }
    for entry in again {
        match entry.dir.write(&entry.limit.file, &entry.limit.value) {
            Ok(()) => done.push(entry),
            Err(error) => return Err(refused(path, entry.limit, entry.dir, error)),
        }
    }
    Ok(())
}

/// On v2 a limit below what is in use kills: so as much is reclaimed before, and if that is not enough the
/// limit is refused, as v1 does by itself.
fn make_room(path: &str, limit: &Limit, dir: &Dir) -> Result<(), Error> {
    let Ok(max) = limit.value.parse::<u64>() else {
        return Ok(());
    };
    let excess = |used: Option<u64>| {
        used.unwrap_or(0)
            .checked_sub(max)
            .filter(|excess| *excess > 0)
    };
    let Some(excess_now) = excess(used(dir)) else {
        return Ok(());
    };
    // Linux 5.19; it fails when it cannot reclaim all of it.
    let _ = dir.write("memory.reclaim", &excess_now.to_string());
    match used(dir) {
        Some(still) if still > max => Err(Error::InUse {
            cgroup: path.to_owned(),
            file: limit.file.clone(),
            value: limit.value.clone(),
            used: still,
        }),
        _ => Ok(()),
    }
}

fn used(dir: &Dir) -> Option<u64> {
    ["memory.current", "memory.usage_in_bytes"]
        .iter()
        .find_map(|file| dir.read(file).ok()?.trim().parse().ok())
}

fn refused(path: &str, limit: &Limit, dir: &Dir, error: Errno) -> Error {
    let memory = limit.controller == "memory";
    match used(dir) {
        Some(used) if memory && error == Errno::BUSY => Error::InUse {
            cgroup: path.to_owned(),
            file: limit.file.clone(),
            value: limit.value.clone(),
            used,
        },
        _ => Error::Write {
            cgroup: path.to_owned(),
            file: limit.file.clone(),
            value: limit.value.clone(),
            source: error.into(),
        },
    }
}

/// Writes back what stood there, last first. What the kernel took once it takes again, but for a memory limit
/// that is in use by now; nobody can help that.
fn undo(done: &[Done<'_>]) {
    for entry in done.iter().rev() {
        let lines: Vec<String> = match &entry.before {
            None => continue,
            Some(before) if before.is_empty() => vec![nothing_said(entry)],
            // A file of many lines takes one in each write.
            Some(before) => before.lines().map(str::to_owned).collect(),
        };
        for line in lines {
            if let Err(error) = entry.dir.write(&entry.limit.file, &line) {
                tracing::warn!(file = entry.limit.file, line, %error, "limit is not as it was");
            }
        }
    }
}

/// What to write to a file that was empty: that is a cpuset of v2, which cannot be emptied while there are
/// processes in it. All that the parent has means the same.
fn nothing_said(entry: &Done<'_>) -> String {
    let parents = format!("../{}.effective", entry.limit.file);
    match entry.dir.read(&parents) {
        Ok(all) => all.trim_end().to_owned(),
        Err(_) => "\n".to_owned(),
    }
}
