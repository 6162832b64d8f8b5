//! A command's streams over SPDY, opened and read as client-go does.

use super::Ran;
use super::spdy::{End, Spdy, Stream};
use crate::host::HostNet;

/// Which streams a client opens for a command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub resize: bool,
}

impl Wanted {
    /// Output and errors.
    pub const OUTPUT: Self = Self {
        stdin: false,
        stdout: true,
        stderr: true,
        resize: false,
    };
    /// As `kubectl exec -it`.
    pub const TERMINAL: Self = Self {
        stdin: true,
        stdout: true,
        stderr: false,
        resize: true,
    };
}

/// The streams of a command.
pub struct Command {
    pub spdy: Spdy,
    pub error: Stream,
    pub stdin: Option<Stream>,
    pub stdout: Option<Stream>,
    pub stderr: Option<Stream>,
    pub resize: Option<Stream>,
}

impl Command {
    /// Connects and opens the streams in client-go's order.
    ///
    /// # Panics
    /// If the server does not go along.
    pub async fn connect(net: &HostNet, url: &str, protocols: &[&str], wanted: Wanted) -> Self {
        let spdy = Spdy::connect(net, url, protocols).await;
        let mut spdy = spdy.unwrap_or_else(|head| panic!("{head:?}"));
        let mut streams = Vec::new();
        for (kind, wanted) in [
            ("error", true),
            ("stdin", wanted.stdin),
            ("stdout", wanted.stdout),
            ("stderr", wanted.stderr),
            ("resize", wanted.resize),
        ] {
            streams.push(match wanted {
                true => Some(spdy.open(&[("streamtype", kind)]).await.expect(kind)),
                false => None,
            });
        }
        let mut streams = streams.into_iter();
        let mut next = || streams.next().flatten();
        Self {
            spdy,
            error: next().expect("it is always opened"),
            stdin: next(),
            stdout: next(),
            stderr: next(),
            resize: next(),
        }
    }

    /// Reads everything to its end, while stdin is given `input` and then closed; and closes the connection.
    ///
    /// # Panics
    /// If a stream, or the connection, ends in another way than it should.
    pub async fn run(mut self, input: &[u8]) -> Ran {
        let feed = async {
            if let Some(stdin) = &self.stdin {
                // A command that does not read all of it may have ended.
                let _ = stdin.write(input).await;
                stdin.close().await;
            }
        };
        let (_, stdout, stderr, status) = tokio::join!(
            feed,
            to_end(self.stdout.as_mut()),
            to_end(self.stderr.as_mut()),
            to_end(Some(&mut self.error)),
        );
        assert_eq!(self.spdy.goes_away().await, Some(0));
        Ran {
            stdout,
            stderr,
            status,
        }
    }
}

async fn to_end(stream: Option<&mut Stream>) -> Vec<u8> {
    match stream {
        Some(stream) => {
            let (bytes, end) = stream.read_to_end().await;
            assert_eq!(end, End::Fin, "stream {}", stream.id);
            bytes
        }
        None => Vec::new(),
    }
}
