//! The thread that makes records durable in batches, off the path of the requests that wrote them.
//!
//! What must always hold: a path given to [`Syncer::later`] has been synced, file and folder, within a
//! second on a disk that keeps up; dropping the last handle syncs the rest. It syncs single files and never a whole file
//! system, whose dirty pages are mostly the containers' own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// How long a batch gathers.
const GATHER: Duration = Duration::from_millis(500);

enum Message {
    Later(PathBuf),
    Flush(Sender<()>),
}

/// A handle of the thread. Cheap to clone; dropping the last one syncs what is left and ends the thread.
#[derive(Debug, Clone)]
pub struct Syncer(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    sender: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// That of making a thread.
    pub fn start() -> io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("carpel-syncer".into())
            .spawn(move || serve(&receiver))?;
        Ok(Self(Arc::new(Handle {
            sender: Some(sender),
            thread: Some(thread),
        })))
    }

    /// Has the file at `path` and its folder synced within a second. A path that is gone by then was removed; its
    /// folder is synced all the same.
    pub fn later(&self, path: &Path) {
        self.send(Message::Later(path.to_owned()));
    }

    /// Waits until all that was asked for so far is synced.
    pub fn flush(&self) {
        let (done, wait) = channel();
        self.send(Message::Flush(done));
        // An error means that the thread is gone, and so is what it had to do.
        let _ = wait.recv();
    }

    fn send(&self, message: Message) {
        if let Some(sender) = &self.0.sender
            && sender.send(message).is_err()
        {
            tracing::error!("the thread that syncs records is gone: records are not durable");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(receiver: &Receiver<Message>) {
    while let Ok(first) = receiver.recv() {
        let mut paths = BTreeSet::new();
        let mut waiting = Vec::new();
        take(first, &mut paths, &mut waiting);
        let deadline = Instant::now() + GATHER;
        let open = loop {
            if !waiting.is_empty() {
                break true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(message) => take(message, &mut paths, &mut waiting),
                Err(RecvTimeoutError::Timeout) => break true,
                Err(RecvTimeoutError::Disconnected) => break false,
            }
        };
        sync(&paths);
        for done in waiting {
            let _ = done.send(());
        }
        if !open {
            return;
        }
    }
}

fn take(message: Message, paths: &mut BTreeSet<PathBuf>, waiting: &mut Vec<Sender<()>>) {
    match message {
        Message::Later(path) => {
            paths.insert(path);
        }
        Message::Flush(done) => waiting.push(done),
    }
}

/// Files first: a folder's entry must not become durable before what it names.
fn sync(paths: &BTreeSet<PathBuf>) {
    let mut folders = BTreeSet::new();
    for path in paths {
        sync_one(path);
        folders.extend(path.parent());
    }
    for folder in folders {
        sync_one(folder);
    }
}

fn sync_one(path: &Path) {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let synced = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .and_then(|file| file.sync_all());
    match synced {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "sync record"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushing_waits_and_dropping_finishes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "a").unwrap();
        let syncer = Syncer::start().unwrap();
        for _ in 0..1000 {
            syncer.later(&path);
        }
        syncer.later(&folder.path().join("gone"));
        let begin = Instant::now();
        syncer.flush();
        assert!(begin.elapsed() < GATHER + Duration::from_millis(400));
        syncer.later(&path);
        drop(syncer);
    }

    #[test]
    fn asking_costs_microseconds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let syncer = Syncer::start().unwrap();
        let begin = Instant::now();
        for _ in 0..1000 {
            syncer.later(&path);
        }
        assert!(begin.elapsed() < Duration::from_millis(100));
    }
}
