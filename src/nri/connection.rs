//! A connection with a plugin: our calls to it, and its calls to us.
//!
//! One task reads and one writes; both end with the connection. Whoever calls waits for its own answer only, and for so
//! long only as it says. What has gone wrong once is not mended: the connection is closed.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carpel_api::ttrpc::{Request, Response, Status};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::frame::{self, Malformed, Message, Messages, PartHeader};

/// The connection on which we call, and the one on which the plugin does.
const OURS: u32 = 1;
const THEIRS: u32 = 2;

/// Messages that wait to be written.
const WAITING: usize = 32;

/// The calls of a plugin's that are worked on at once.
const CALLS: usize = 16;

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The plugin says so, with a code as gRPC's.
    Refused(Code, String),
    /// The request is too long for any plugin.
    TooLong(usize),
    /// There is no connection any more.
    Closed(String),
}

/// Answers what a plugin calls.
pub(super) trait Service: Send + Sync + 'static {
    fn call(&self, method: String, payload: Vec<u8>) -> Answer<'_>;
}

pub(super) type Answer<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, Status>> + Send + 'a>>;

/// The service by which a plugin knows its runtime, and that by which we know a plugin.
pub(super) const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";
const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";

type Pending = HashMap<u32, oneshot::Sender<Response>>;

/// A connection. Whoever drops it closes it.
pub(super) struct Connection {
    outbox: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    next: AtomicU32,
}

struct Shared {
    pending: Mutex<Pending>,
    why: Mutex<Option<String>>,
    closed: CancellationToken,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason counts.
    fn close(&self, why: &str) {
        let mut first = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| why.to_owned());
        drop(first);
        self.closed.cancel();
        self.pending().clear();
    }

    fn why(&self) -> String {
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        why.clone().unwrap_or_else(|| "closed".to_owned())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.close("closed");
    }
}

impl Connection {
    /// Begins to read and to write. `service` answers what the plugin calls; `patience` is how long the plugin may
    /// take to read a message.
    pub(super) fn open(stream: UnixStream, service: Arc<dyn Service>, patience: Duration) -> Self {
        let (reader, writer) = stream.into_split();
        let (outbox, queue) = mpsc::channel(WAITING);
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            why: Mutex::default(),
            closed: CancellationToken::new(),
        });
        let inbound = Inbound {
            shared: Arc::clone(&shared),
            outbox: outbox.downgrade(),
            service,
            calls: Arc::new(Semaphore::new(CALLS)),
        };
        let reading = Arc::clone(&shared);
        tokio::spawn(async move {
            let read = reading.closed.run_until_cancelled(inbound.read(reader));
            if let Some(why) = read.await {
                reading.close(&why);
            }
        });
        let writing = Arc::clone(&shared);
        tokio::spawn(async move {
            let written = writing
                .closed
                .run_until_cancelled(write(writer, queue, patience));
            if let Some(Err(why)) = written.await {
                writing.close(&why);
            }
        });
        Self {
            outbox,
            shared,
            next: AtomicU32::new(1),
        }
    }

    /// Calls the plugin. No answer in time closes the connection.
    pub(super) async fn call(
        &self,
        method: &str,
        payload: Vec<u8>,
        time: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let request = Request {
            service: PLUGIN.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(time.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let data = request.encode_to_vec();
        if data.len() > frame::MAX_DATA {
            return Err(Failure::TooLong(data.len()));
        }
        // A client's streams have odd numbers.
        let stream = self.next.fetch_add(2, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        self.shared.pending().insert(stream, answered);
        let message = frame::encode(OURS, stream, frame::REQUEST, &data);
        let answered = timeout(time, async {
            // One that is closed drops the sender of the answer.
            let _ = self.outbox.send(message).await;
            if self.shared.closed.is_cancelled() {
                return None;
            }
            answer.await.ok()
        });
        match answered.await {
            Ok(Some(Response { status, payload })) => match status {
                Some(status) if status.code != 0 => Err(Failure::Refused(
                    Code::from_i32(status.code),
                    status.message,
                )),
                _ => Ok(payload),
            },
            Ok(None) => Err(Failure::Closed(self.shared.why())),
            Err(_) => {
                let why = format!("no answer to {method} after {} s", time.as_secs_f32());
                self.shared.close(&why);
                Err(Failure::Closed(why))
            }
        }
    }

    pub(super) fn close(&self, why: &str) {
        self.shared.close(why);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled()
    }

    /// Waits for the end: why it came.
    pub(super) fn closed(&self) -> impl Future<Output = String> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            shared.closed.cancelled().await;
            shared.why()
        }
    }
}

async fn write(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
    patience: Duration,
) -> Result<(), String> {
    while let Some(message) = queue.recv().await {
        match timeout(patience, writer.write_all(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("it does not read: {} s", patience.as_secs_f32())),
        }
    }
    Ok(())
}

/// What comes from a plugin.
struct Inbound {
    shared: Arc<Shared>,
    outbox: mpsc::WeakSender<Vec<u8>>,
    service: Arc<dyn Service>,
    calls: Arc<Semaphore>,
}

impl Inbound {
    /// Reads to the end: why it came.
    async fn read(&self, mut reader: OwnedReadHalf) -> String {
        let mut answers = Messages::default();
        let mut calls = Messages::default();
        let mut piece = vec![0; PIECE];
        loop {
            let mut header = [0; PartHeader::SIZE];
            if let Err(error) = reader.read_exact(&mut header).await {
                return match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => "it has closed the connection".to_owned(),
                    _ => error.to_string(),
                };
            }
            let mut left = match PartHeader::parse(header) {
                Ok(header) => {
                    // Any other connection is nobody's: what comes on it is read and lost.
                    let messages = match header.connection {
                        OURS => Some(&mut answers),
                        THEIRS => Some(&mut calls),
                        _ => None,
                    };
                    (messages, header.length)
                }
                Err(malformed) => return malformed.to_string(),
            };
            while left.1 > 0 {
                let room = left.1.min(PIECE);
                let read = match reader.read(&mut piece[..room]).await {
                    Ok(0) => return "it has closed the connection".to_owned(),
                    Ok(read) => read,
                    Err(error) => return error.to_string(),
                };
                left.1 -= read;
                if let Some(messages) = &mut left.0 {
                    messages.add(&piece[..read]);
                }
            }
            if let Err(malformed) = self.take(&mut answers, &mut calls) {
                return malformed.to_string();
            }
        }
    }

    fn take(&self, answers: &mut Messages, calls: &mut Messages) -> Result<(), Malformed> {
        while let Some(message) = answers.next()? {
            self.answered(message);
        }
        while let Some(message) = calls.next()? {
            self.called(message);
        }
        Ok(())
    }

    fn answered(&self, message: Message) {
        if message.kind != frame::RESPONSE {
            return;
        }
        let Some(waiting) = self.shared.pending().remove(&message.stream) else {
            return;
        };
        let response = Response::decode(&*message.data).unwrap_or_else(|error| Response {
            status: Some(status(Code::Internal, &format!("its answer: {error}"))),
            payload: Vec::new(),
        });
        let _ = waiting.send(response);
    }

    fn called(&self, message: Message) {
        if message.kind != frame::REQUEST {
            return;
        }
        let stream = message.stream;
        let Ok(turn) = Arc::clone(&self.calls).try_acquire_owned() else {
            let text = format!("more than {CALLS} calls at once");
            return self.answer(stream, Err(status(Code::ResourceExhausted, &text)));
        };
        let service = Arc::clone(&self.service);
        let (outbox, shared) = (self.outbox.clone(), Arc::clone(&self.shared));
        tokio::spawn(async move {
            let _turn = turn;
            let answer = async {
                if message.flags & frame::OPEN != 0 {
                    return Err(status(Code::Unimplemented, "there are no streams"));
                }
                let request = Request::decode(&*message.data)
                    .map_err(|error| status(Code::InvalidArgument, &error.to_string()))?;
                if request.service != RUNTIME {
                    let text = format!("there is no service {:?}", request.service);
                    return Err(status(Code::Unimplemented, &text));
                }
                service.call(request.method, request.payload).await
            };
            if let Some(answer) = shared.closed.run_until_cancelled(answer).await
                && let Some(outbox) = outbox.upgrade()
            {
                let _ = outbox.send(encoded(stream, answer)).await;
            }
        });
    }

    fn answer(&self, stream: u32, answer: Result<Vec<u8>, Status>) {
        let Some(outbox) = self.outbox.upgrade() else {
            return;
        };
        if outbox.try_send(encoded(stream, answer)).is_err() {
            self.shared.close("it does not read what it is answered");
        }
    }
}

fn encoded(stream: u32, answer: Result<Vec<u8>, Status>) -> Vec<u8> {
    let response = match answer {
        Ok(payload) if payload.len() < frame::MAX_DATA / 2 => Response {
            status: None,
            payload,
        },
        Ok(payload) => {
            let text = format!("the answer of {} bytes is too long", payload.len());
            Response {
                status: Some(status(Code::ResourceExhausted, &text)),
                payload: Vec::new(),
            }
        }
        Err(status) => Response {
            status: Some(status),
            payload: Vec::new(),
        },
    };
    frame::encode(THEIRS, stream, frame::RESPONSE, &response.encode_to_vec())
}

pub(super) fn status(code: Code, message: &str) -> Status {
    Status {
        code: code.into(),
        message: message.to_owned(),
    }
}
