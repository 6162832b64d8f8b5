//! `carpel logs`: what a container has written, and with `-f` what it writes until it exits.
//!
//! The file is read directly, so a log is there whether the daemon is busy or gone; the runtime says only
//! where it is and whether the container has exited. What rotations have left of it is shown, too, which `kubectl logs`
//! does not.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use carpel_api::cri::{ContainerState, ContainerStatus};
use clap::Args;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::json;
use tokio::io::unix::AsyncFd;

use super::client::{Client, Connection};
use super::log_file::{LogFile, Stream, parse};
use super::log_rotated::{Older, Rotated};
use super::output::{self, FormatArgs};
use super::resolve::{Among, Catalogue};
use super::{Outcome, SUCCESS, units};
use crate::sys;

/// How long after the container's last word, or exit, it is looked for more: at first, and at most.
const SOON: Duration = Duration::from_millis(5);
const LATE: Duration = Duration::from_millis(250);
/// How long the old file of a rotation is still read from while nothing is in the new one.
const ROTATION: Duration = Duration::from_millis(200);
/// Bytes that are kept before they are printed.
const BUFFER: usize = 64 << 10;

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The container; a pod's name will do if it has just one
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// Go on until the container exits
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,
    /// Only what was written since a time (as in 2026-01-02T15:04:05Z) or a while ago (as in 10m)
    #[arg(long, value_name = "TIME", value_parser = units::parse_since)]
    since: Option<Timestamp>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

impl LogsArgs {
    pub async fn run(self) -> Outcome {
        let client = self.connection.connect().await?;
        let all = Catalogue::fetch(&client).await?;
        let container = all.container(&self.name, Among::Living)?;
        let status = client.require_status(&container.id).await?;
        let mut printer = Printer::new(self.since, self.timestamps, self.format.is_json());
        let Some(mut log) = open(&status, &self.name)? else {
            if self.follow {
                follow(&client, &status, None, &mut printer).await?;
            }
            return Ok(SUCCESS);
        };
        let older = self.older(&mut log);
        let older = older.with_context(|| status.log_path.clone())?;
        let damaged = show(older, &mut printer)?;
        if self.follow {
            follow(&client, &status, Some(log), &mut printer).await?;
        } else {
            log.read_lines(|line| printer.line(line))?;
            printer.flush()?;
        }
        damaged.map_or(Ok(SUCCESS), Err)
    }
}

/// Prints what is before the log. What cannot be read is told at the end: the rest is wanted all the more.
fn show(older: Vec<Older>, printer: &mut Printer) -> anyhow::Result<Option<anyhow::Error>> {
    let mut damaged = None;
    for one in older {
        let path = one.path.clone();
        let mut printed = Ok(());
        let read = one.read_lines(|line| {
            printed = printer.line(line);
            match printed {
                Ok(()) => Ok(()),
                Err(_) => Err(io::ErrorKind::Interrupted.into()),
            }
        });
        printed?;
        if let Err(error) = read {
            damaged = Some(anyhow::Error::new(error).context(path.display().to_string()));
        }
    }
    Ok(damaged)
}

impl LogsArgs {
    /// Goes to where in the log it begins to be shown, and finds what is shown of the files before it.
    fn older(&self, log: &mut LogFile) -> io::Result<Vec<Older>> {
        let Some(count) = self.tail else {
            return Rotated::find(log, self.since).open_all();
        };
        match log.seek_tail(count)? {
            Some(left) => Rotated::find(log, self.since).open_tail(left),
            None => Ok(Vec::new()),
        }
    }
}

/// Opens a container's log. `None`: it has not been started yet, so there is no file.
fn open(status: &ContainerStatus, name: &str) -> anyhow::Result<Option<LogFile>> {
    if status.log_path.is_empty() {
        bail!("container {name} keeps no log: its pod was made without a folder for logs");
    }
    let path = Path::new(&status.log_path);
    match LogFile::open(path) {
        Ok(log) => Ok(Some(log)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && not_started(status) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("log {}", path.display())),
    }
}

fn not_started(status: &ContainerStatus) -> bool {
    status.state() == ContainerState::ContainerCreated
}

/// Prints a container's log until the container has exited, and all of what it wrote before. `log` is the file
/// if it was opened already.
///
/// Returns the container's last status; `None` if it was removed meanwhile.
///
/// # Errors
/// The log cannot be read, or what it says not printed.
pub async fn follow(
    client: &Client,
    status: &ContainerStatus,
    mut log: Option<LogFile>,
    printer: &mut Printer,
) -> anyhow::Result<Option<ContainerStatus>> {
    let path = Path::new(&status.log_path);
    let watch = Watch::begin(path.parent());
    let mut rotation = None;
    let mut last = Life::Goes;
    let mut pause = SOON;
    loop {
        if log.is_none() {
            log = LogFile::open(path).ok();
        }
        let mut any = false;
        if let Some(log) = &mut log {
            any = log
                .read_lines(|line| printer.line(line))
                .with_context(|| path.display().to_string())?;
            printer.flush()?;
            if rotation.is_none() {
                rotation = log.successor().map(|next| (next, Instant::now()));
            }
        }
        if let Some((next, since)) = rotation.take() {
            // The writer may not have changed over yet: what it writes to the old file goes before.
            if any || last.goes() && !next.has_data() && since.elapsed() < ROTATION {
                rotation = Some((next, since));
            } else {
                log = Some(next);
                continue;
            }
        }
        if any {
            pause = SOON;
        } else if let Life::Over(end) = last {
            return Ok(end.map(|end| *end));
        } else {
            last = Life::ask(client, &status.id).await;
            if !last.goes() {
                // Once more: it may have written between our last look and its exit.
                continue;
            }
        }
        if reader_is_gone() {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        watch.changed_within(pause).await;
        pause = (pause * 2).min(LATE);
    }
}

/// Whether a container may still write.
enum Life {
    Goes,
    /// With its status, unless it was removed.
    Over(Option<Box<ContainerStatus>>),
}

impl Life {
    async fn ask(client: &Client, id: &str) -> Self {
        match client.require_status(id).await {
            Ok(status) if status.state() == ContainerState::ContainerExited => {
                Self::Over(Some(Box::new(status)))
            }
            Err(error) if error.is_not_found() => Self::Over(None),
            // A daemon that does not answer is being restarted: its containers do not notice.
            Ok(_) | Err(_) => Self::Goes,
        }
    }

    fn goes(&self) -> bool {
        matches!(self, Self::Goes)
    }
}

/// Whether the standard output is a pipe that nobody reads any more. Else that shows only with the next line,
/// which may be hours away.
fn reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ready = poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0);
    ready && fds[0].revents().contains(PollFlags::ERR)
}

/// An inotify watch of a log's folder; without one (too many on this machine), only time passes.
struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    fn begin(dir: Option<&Path>) -> Self {
        let watch = || {
            let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
            let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVE;
            inotify::add_watch(&fd, dir?, flags).ok()?;
            sys::async_fd(fd).ok()
        };
        Self(watch())
    }

    /// Waits until something changes, at most as long as this.
    async fn changed_within(&self, time: Duration) {
        let Some(fd) = &self.0 else {
            tokio::time::sleep(time).await;
            return;
        };
        if let Ok(Ok(mut ready)) = tokio::time::timeout(time, fd.readable()).await {
            let mut events = [0; 4096];
            while matches!(rustix::io::read(fd.get_ref(), &mut events), Ok(read) if read > 0) {}
            ready.clear_ready();
        }
    }
}

/// Prints entries: the container's standard output to ours, its standard error to ours.
#[derive(Debug)]
pub struct Printer {
    since: Option<Timestamp>,
    timestamps: bool,
    json: bool,
    /// Whether the last entry of (stdout, stderr) was partial.
    within_line: [bool; 2],
    buffer: Vec<u8>,
    /// Where the buffer goes.
    stream: Stream,
}

impl Printer {
    pub fn new(since: Option<Timestamp>, timestamps: bool, json: bool) -> Self {
        Self {
            since,
            timestamps,
            json,
            within_line: [false; 2],
            buffer: Vec::new(),
            stream: Stream::Stdout,
        }
    }

    /// Takes a line of the file.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(entry) = parse(line) else {
            // Of another format: better seen than lost.
            self.turn_to(Stream::Stdout)?;
            self.buffer.extend_from_slice(line);
            self.buffer.push(b'\n');
            return Ok(());
        };
        if let Some(since) = self.since {
            match entry.time.parse::<Timestamp>() {
                Ok(time) if time < since => return Ok(()),
                // Times only grow: no further line needs a look.
                _ => self.since = None,
            }
        }
        if self.json {
            let text = String::from_utf8_lossy(entry.text);
            let end = if entry.partial { "" } else { "\n" };
            let value = json!({
                "time": entry.time, "stream": entry.stream.name(), "log": format!("{text}{end}"),
            });
            self.buffer
                .extend_from_slice(format!("{value}\n").as_bytes());
        } else {
            self.turn_to(entry.stream)?;
            let within = &mut self.within_line[entry.stream as usize];
            if self.timestamps && !*within {
                self.buffer.extend_from_slice(entry.time.as_bytes());
                self.buffer.push(b' ');
            }
            *within = entry.partial;
            self.buffer.extend_from_slice(entry.text);
            if !entry.partial {
                self.buffer.push(b'\n');
            }
        }
        match self.buffer.len() < BUFFER {
            true => Ok(()),
            false => self.flush(),
        }
    }

    fn turn_to(&mut self, stream: Stream) -> io::Result<()> {
        if self.stream != stream {
            self.flush()?;
            self.stream = stream;
        }
        Ok(())
    }

    /// Prints what was taken.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match self.stream {
            Stream::Stdout => output::print(&self.buffer)?,
            Stream::Stderr => io::stderr().write_all(&self.buffer)?,
        }
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(mut printer: Printer, lines: &[&str]) -> String {
        for line in lines {
            printer.line(line.as_bytes()).unwrap();
        }
        String::from_utf8(std::mem::take(&mut printer.buffer)).unwrap()
    }

    const LINES: [&str; 4] = [
        "2026-01-02T15:04:05.1Z stdout F one",
        "2026-01-02T15:04:06.1Z stdout P two ",
        "2026-01-02T15:04:06.2Z stdout F halves",
        "2026-01-02T15:04:07.1Z stdout F ",
    ];

    #[test]
    fn lines_are_put_together() {
        let text = printed(Printer::new(None, false, false), &LINES);
        assert_eq!(text, "one\ntwo halves\n\n");
        let text = printed(Printer::new(None, true, false), &LINES);
        assert_eq!(
            text,
            "2026-01-02T15:04:05.1Z one\n2026-01-02T15:04:06.1Z two halves\n2026-01-02T15:04:07.1Z \n"
        );
        let text = printed(Printer::new(None, false, false), &["some other format"]);
        assert_eq!(text, "some other format\n");
    }

    #[test]
    fn since_leaves_out_what_is_older() {
        let since = "2026-01-02T15:04:06.15Z".parse().ok();
        let text = printed(Printer::new(since, false, false), &LINES);
        assert_eq!(text, "halves\n\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = printed(Printer::new(None, false, true), &LINES[1..3]);
        let values: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            values[0],
            json!({ "time": "2026-01-02T15:04:06.1Z", "stream": "stdout", "log": "two " })
        );
        assert_eq!(values[1]["log"], "halves\n");
    }
}
