//! Copying between a process's pipes or terminal and a client.
//!
//! What must always hold: nothing here blocks, and every wait can be broken off and taken up again without
//! a byte lost. Whoever drops a copy closes its descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::streams::TerminalSize;
use crate::supervisor::{Exit, ExitWait, Lost};
use crate::sys;

/// The most that is read at a time, in bytes.
const CHUNK: usize = 64 << 10;
/// How long output is waited for after the exit, in all. A child that was left in the background may hold
/// the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(200);
/// The most that a terminal holds for its reader, in bytes.
const TERMINAL_CAPACITY: usize = 128 << 10;

/// One output stream, on its way to a client.
struct Output<W> {
    /// `None` once it has ended.
    from: Option<AsyncFd<OwnedFd>>,
    to: W,
    /// What was read; of it, what was passed on.
    buffer: Vec<u8>,
    passed: usize,
    /// The client takes no more.
    broken: bool,
}

impl<W: AsyncWrite + Unpin> Output<W> {
    /// # Errors
    /// As `epoll_ctl(2)`.
    fn new(from: OwnedFd, to: W) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&from, true)?;
        Ok(Self {
            from: Some(sys::async_fd_for(from, Interest::READABLE)?),
            to,
            buffer: Vec::new(),
            passed: 0,
            broken: false,
        })
    }

    /// Copies until the stream or the client ends.
    async fn copy(&mut self) {
        loop {
            self.pass_on().await;
            if self.read().await == 0 {
                return;
            }
        }
    }

    /// Copies what the process can have written before its exit: as much as the pipe holds, and no more.
    async fn drain(&mut self) {
        let capacity = |from| rustix::pipe::fcntl_getpipe_size(from).unwrap_or(TERMINAL_CAPACITY);
        let mut left = self.from.as_ref().map_or(0, capacity);
        let mut wait = DRAIN;
        self.pass_on().await;
        while left > 0 {
            let begin = Instant::now();
            match tokio::time::timeout(wait, self.read()).await {
                Ok(count @ 1..) => left = left.saturating_sub(count),
                Ok(0) | Err(_) => return,
            }
            wait = wait.saturating_sub(begin.elapsed());
            self.pass_on().await;
        }
    }

    /// Passes on what has been read.
    async fn pass_on(&mut self) {
        while self.passed < self.buffer.len() && !self.broken {
            match self.to.write(&self.buffer[self.passed..]).await {
                Ok(count @ 1..) => self.passed += count,
                Ok(0) | Err(_) => self.broken = true,
            }
        }
        if self.passed > 0 && !self.broken {
            self.broken = self.to.flush().await.is_err();
        }
        if self.broken {
            // So that the process is told by its next write.
            self.from = None;
        }
        self.buffer.clear();
        self.passed = 0;
    }

    /// Reads what is there next, once all before it has been passed on. 0: the end.
    async fn read(&mut self) -> usize {
        while let Some(from) = &self.from {
            let Ok(mut ready) = from.readable().await else {
                break;
            };
            self.buffer.reserve_exact(CHUNK);
            let read = ready.try_io(|from| {
                let count = rustix::io::read(from, spare_capacity(&mut self.buffer))?;
                Ok(count)
            });
            match read {
                Ok(Ok(count @ 1..)) => return count,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // EIO: nobody has the terminal open any more.
                Ok(Ok(0) | Err(_)) => break,
                Err(_would_block) => {}
            }
        }
        self.from = None;
        0
    }
}

/// The output streams of a process: stdout and stderr, or a terminal as the first.
pub(crate) struct Outputs<W>([Option<Output<W>>; 2]);

impl<W: AsyncWrite + Unpin> Outputs<W> {
    /// Each stream with its client; one that has none is closed.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub(crate) fn new(from: [Option<OwnedFd>; 2], to: [Option<W>; 2]) -> io::Result<Self> {
        let ([stdout, stderr], [stdout_to, stderr_to]) = (from, to);
        let new = |from: Option<_>, to| {
            let both = from.zip(to);
            both.map(|(from, to)| Output::new(from, to)).transpose()
        };
        Ok(Self([new(stdout, stdout_to)?, new(stderr, stderr_to)?]))
    }

    /// Copies until all have ended.
    pub(crate) async fn copy(&mut self) {
        let [stdout, stderr] = self.0.each_mut().map(async |output| {
            if let Some(output) = output {
                output.copy().await;
            }
        });
        tokio::join!(stdout, stderr);
    }

    /// Copies until the process has exited. The output may end long before that, and the other way round.
    pub(crate) async fn until_exit(&mut self, exit: &mut ExitWait) -> Result<Exit, Lost> {
        tokio::select! {
            exit = exit.wait() => return exit,
            () = self.copy() => {}
        }
        exit.wait().await
    }

    /// After the exit: copies what is left.
    pub(crate) async fn drain(&mut self) {
        let [stdout, stderr] = self.0.each_mut().map(async |output| {
            if let Some(output) = output {
                output.drain().await;
            }
        });
        tokio::join!(stdout, stderr);
    }

    /// The clients that still take output.
    pub(crate) fn into_clients(self) -> [Option<W>; 2] {
        self.0.map(|output| {
            let output = output.filter(|output| !output.broken)?;
            Some(output.to)
        })
    }
}

/// A client that keeps so many bytes and throws the rest away.
pub(crate) struct Collected {
    pub(crate) bytes: Vec<u8>,
    room: usize,
}

impl Collected {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            bytes: Vec::new(),
            room,
        }
    }
}

impl AsyncWrite for Collected {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let kept = bytes.len().min(self.room);
        self.room -= kept;
        self.bytes.extend_from_slice(&bytes[..kept]);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Which side a copy of input ended at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputEnd {
    Client,
    Process,
}

/// Copies a client's input to a pipe or terminal, which is closed then.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub(crate) async fn input(mut from: impl AsyncRead + Unpin, to: OwnedFd) -> io::Result<InputEnd> {
    rustix::io::ioctl_fionbio(&to, true)?;
    let to = sys::async_fd_for(to, Interest::WRITABLE)?;
    let mut buffer = Vec::with_capacity(CHUNK);
    loop {
        buffer.clear();
        if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
            return Ok(InputEnd::Client);
        }
        if write_all(&to, &buffer).await.is_err() {
            return Ok(InputEnd::Process);
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = to.writable().await?;
        match ready.try_io(|to| Ok(rustix::io::write(to, bytes)?)) {
            // A terminal may take nothing for now, without a word.
            Ok(Ok(0)) => ready.clear_ready(),
            Ok(Ok(count)) => bytes = &bytes[count..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Gives a terminal the sizes of a client's, as they change.
pub(crate) async fn sizes(mut sizes: mpsc::Receiver<TerminalSize>, terminal: impl AsFd) {
    while let Some(size) = sizes.recv().await {
        set_size(&terminal, size);
    }
}

/// A size of nothing, which some clients send at first, changes nothing.
pub(crate) fn set_size(terminal: impl AsFd, size: TerminalSize) {
    if size.columns == 0 || size.rows == 0 {
        return;
    }
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    if let Err(error) = tcsetwinsize(terminal, size) {
        tracing::debug!(%error, "terminal's size");
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    fn collecting(from: OwnedFd, room: usize) -> Outputs<Collected> {
        Outputs::new([Some(from), None], [Some(Collected::new(room)), None]).unwrap()
    }

    fn bytes_of(outputs: Outputs<Collected>) -> Vec<u8> {
        outputs.into_clients()[0].take().unwrap().bytes
    }

    async fn read(from: &mut DuplexStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        from.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn what_exceeds_the_room_is_thrown_away() {
        let (from, write) = pipe();
        let mut outputs = collecting(from, 10);
        rustix::io::write(&write, b"0123456789abc").unwrap();
        drop(write);
        outputs.copy().await;
        assert_eq!(bytes_of(outputs), b"0123456789");
    }

    #[tokio::test]
    async fn after_the_exit_only_so_much_is_waited_for() {
        let (from, write) = pipe();
        let mut outputs = collecting(from, 1 << 20);
        rustix::io::write(&write, b"all of it").unwrap();
        let begin = Instant::now();
        outputs.drain().await;
        // Somebody still holds the pipe.
        assert!(begin.elapsed() >= DRAIN && begin.elapsed() < 20 * DRAIN);
        assert_eq!(bytes_of(outputs), b"all of it");
        drop(write);
    }

    #[tokio::test]
    async fn one_that_never_stops_writing_does_not_hang_a_drain() {
        let (from, write) = pipe();
        let capacity = fcntl_getpipe_size(&from).unwrap();
        let mut outputs = collecting(from, usize::MAX);
        let flood = std::thread::spawn(
            move || {
                while rustix::io::write(&write, &[b'x'; 4096]).is_ok() {}
            },
        );
        outputs.drain().await;
        let length = bytes_of(outputs).len();
        assert!(length >= capacity && length < capacity + CHUNK, "{length}");
        flood.join().unwrap();
    }

    #[tokio::test]
    async fn a_slow_client_gets_all_that_was_written_before_the_exit() {
        let (from, write) = pipe();
        let (mut client, to) = duplex(16);
        let mut outputs = Outputs::new([Some(from), None], [Some(to), None]).unwrap();
        let text: Vec<u8> = (0..60_000_u32).map(|n| n as u8).collect();
        rustix::io::write(&write, &text).unwrap();
        // Broken off in the midst of a write to the client, as by the exit.
        let begun = async {
            tokio::select! {
                () = outputs.copy() => panic!("the client has not read"),
                seen = read(&mut client, 1000) => seen,
            }
        };
        let mut seen = begun.await;
        drop(write);
        let (more, ()) = tokio::join!(read(&mut client, text.len() - 1000), outputs.drain());
        seen.extend(more);
        assert!(seen == text);
    }

    #[tokio::test]
    async fn a_client_that_is_gone_closes_the_pipe() {
        let (from, write) = pipe();
        let (client, to) = duplex(16);
        let mut outputs = Outputs::new([Some(from), None], [Some(to), None]).unwrap();
        drop(client);
        rustix::io::write(&write, b"text").unwrap();
        outputs.copy().await;
        let error = rustix::io::write(&write, b"text").unwrap_err();
        assert_eq!(error, rustix::io::Errno::PIPE);
        assert!(outputs.into_clients()[0].is_none());
    }

    #[tokio::test]
    async fn input_ends_with_its_client() {
        let (read_end, to) = pipe();
        let text = vec![b'x'; 300_000];
        let (mut client, from) = duplex(1000);
        let sent = async {
            client.write_all(&text).await.unwrap();
            drop(client);
        };
        let mut reader = collecting(read_end, usize::MAX);
        let (end, (), ()) = tokio::join!(input(from, to), sent, reader.copy());
        assert_eq!(end.unwrap(), InputEnd::Client);
        assert_eq!(bytes_of(reader), text);
    }

    #[tokio::test]
    async fn input_ends_with_its_process() {
        let (read_end, to) = pipe();
        drop(read_end);
        let end = input(&b"text"[..], to).await.unwrap();
        assert_eq!(end, InputEnd::Process);
    }

    #[tokio::test]
    async fn a_terminal_has_its_size_its_echo_and_its_end() {
        let terminal = crate::store::bind::terminal(crate::spec::mounts::TTY, None).unwrap();
        let size = |columns, rows| TerminalSize { columns, rows };
        let (sender, receiver) = mpsc::channel(4);
        for size in [size(80, 24), size(132, 0), size(100, 30), size(0, 0)] {
            sender.send(size).await.unwrap();
        }
        drop(sender);
        sizes(receiver, &terminal.master).await;
        let found = rustix::termios::tcgetwinsize(&terminal.slave).unwrap();
        assert_eq!((found.ws_col, found.ws_row), (100, 30));

        let to = terminal.master.try_clone().unwrap();
        let end = input(&b"typed\n"[..], to).await.unwrap();
        assert_eq!(end, InputEnd::Client);
        // As a program does that answers: the kernel echoes a line before it gives it out, but not at once.
        let mut line = [0; 16];
        let count = rustix::io::read(&terminal.slave, &mut line).unwrap();
        assert_eq!(&line[..count], b"typed\n");
        rustix::io::write(&terminal.slave, b"answer\n").unwrap();
        let mut outputs = collecting(terminal.master, 1000);
        drop(terminal.slave);
        outputs.copy().await;
        assert_eq!(bytes_of(outputs), b"typed\r\nanswer\r\n");
    }
}
