//! A plugin of NRI, written from the protocol alone: it shares the messages with the daemon, and no framing.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use carpel_api::nri::{ConfigureResponse, Event, RegisterPluginRequest};
use carpel_api::ttrpc::{Request, Response, Status};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::host;

/// The connection on which the runtime calls, and the one on which the plugin does.
const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;

/// How a plugin answers a call.
#[derive(Debug, Clone)]
pub enum Answer {
    Message(Vec<u8>),
    /// With a code of gRPC.
    Error(i32, String),
    /// Never.
    Silence,
}

impl Answer {
    pub fn message(message: &impl Message) -> Self {
        Self::Message(message.encode_to_vec())
    }

    /// What a plugin's author writes as an error.
    #[must_use]
    pub fn error(text: &str) -> Self {
        Self::Error(2, text.to_owned())
    }
}

/// What a plugin was called for.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: String,
    pub payload: Vec<u8>,
}

impl Call {
    /// The request.
    ///
    /// # Panics
    /// If it is none of that type.
    #[must_use]
    pub fn request<M: Message + Default>(&self) -> M {
        M::decode(&*self.payload).expect("a request")
    }
}

type Answers = HashMap<&'static str, Box<dyn Fn(&[u8]) -> Answer + Send + Sync>>;

/// What a plugin will do.
pub struct Behaviour {
    index: String,
    name: String,
    answers: Answers,
    /// Before it answers.
    delays: HashMap<&'static str, Duration>,
}

impl Behaviour {
    /// One that hears everything and wants nothing.
    #[must_use]
    pub fn new(index: &str, name: &str) -> Self {
        Self {
            index: index.to_owned(),
            name: name.to_owned(),
            answers: Answers::new(),
            delays: HashMap::new(),
        }
        // Not of those who have the last word.
        .on("Configure", |_| {
            let all = (1 << (Event::Last as i32 - 1)) - 1;
            let validate = 1 << (Event::ValidateContainerAdjustment as i32 - 1);
            let events = all & !validate;
            Answer::message(&ConfigureResponse { events })
        })
    }

    #[must_use]
    pub fn on(
        mut self,
        method: &'static str,
        answer: impl Fn(&[u8]) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.answers.insert(method, Box::new(answer));
        self
    }

    /// As [`Behaviour::on`], always the same.
    #[must_use]
    pub fn answers(self, method: &'static str, answer: Answer) -> Self {
        self.on(method, move |_| answer.clone())
    }

    #[must_use]
    pub fn slow(mut self, method: &'static str, delay: Duration) -> Self {
        self.delays.insert(method, delay);
        self
    }
}

/// A plugin that is connected.
pub struct Plugin {
    calls: Arc<Mutex<Vec<Call>>>,
    outbox: mpsc::UnboundedSender<Vec<u8>>,
    pending: Arc<Mutex<HashMap<u32, oneshot::Sender<Response>>>>,
    next: Mutex<u32>,
    reading: tokio::task::JoinHandle<()>,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Plugin {
    /// Connects and registers, and waits until it is synchronized.
    ///
    /// # Errors
    /// The runtime's refusal.
    pub async fn start(socket: &Path, behaviour: Behaviour) -> Result<Self, Status> {
        let registration = RegisterPluginRequest {
            plugin_name: behaviour.name.clone(),
            plugin_idx: behaviour.index.clone(),
            nri_version: "v0.12.0".to_owned(),
        };
        let plugin = Self::connect(socket, behaviour).await;
        plugin.call("RegisterPlugin", &registration).await?;
        plugin.wait_for("Synchronize", 1).await;
        // What it hears now it hears by events.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(plugin)
    }

    /// Connects, and says nothing.
    ///
    /// # Panics
    /// If nobody listens.
    pub async fn connect(socket: &Path, behaviour: Behaviour) -> Self {
        let stream = UnixStream::connect(socket)
            .await
            .expect("the socket of plugins");
        Self::on_stream(stream, behaviour)
    }

    /// Speaks on a connection that is there.
    #[must_use]
    pub fn on_stream(stream: UnixStream, behaviour: Behaviour) -> Self {
        let (reader, mut writer) = stream.into_split();
        let (outbox, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        let calls = Arc::new(Mutex::new(Vec::new()));
        let pending = Arc::new(Mutex::new(HashMap::new()));
        let inbound = Inbound {
            calls: Arc::clone(&calls),
            outbox: outbox.clone(),
            pending: Arc::clone(&pending),
            behaviour: Arc::new(behaviour),
        };
        let reading = tokio::spawn(async move {
            let pending = Arc::clone(&inbound.pending);
            let _ = inbound.read(reader).await;
            pending.lock().unwrap().clear();
        });
        Self {
            calls,
            outbox,
            pending,
            next: Mutex::new(1),
            reading,
        }
    }

    /// Calls the runtime.
    ///
    /// # Errors
    /// The runtime's; code 14 if the connection is closed.
    pub async fn call(&self, method: &str, request: &impl Message) -> Result<Vec<u8>, Status> {
        let service = "nri.pkg.api.v1alpha1.Runtime";
        self.call_service(service, method, request).await
    }

    /// # Errors
    /// As [`Plugin::call`].
    pub async fn call_service(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<Vec<u8>, Status> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            ..Request::default()
        };
        let stream = {
            let mut next = self.next.lock().unwrap();
            *next += 2;
            *next
        };
        let (answered, answer) = oneshot::channel();
        self.pending.lock().unwrap().insert(stream, answered);
        let _ = self
            .outbox
            .send(frame(RUNTIME, stream, 1, &request.encode_to_vec()));
        let gone = || Status {
            code: 14,
            message: "the connection is closed".to_owned(),
        };
        if self.is_closed() {
            return Err(gone());
        }
        let response = tokio::time::timeout(host::patience(Duration::from_secs(20)), answer);
        let response = response.await.expect("an answer in time");
        let response = response.map_err(|_| gone())?;
        match response.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(response.payload),
        }
    }

    /// Sends bytes as they are.
    pub fn send(&self, bytes: Vec<u8>) {
        let _ = self.outbox.send(bytes);
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.reading.is_finished()
    }

    /// Waits until the runtime closes the connection.
    ///
    /// # Panics
    /// If it does not.
    pub async fn wait_closed(&self) {
        let deadline = Instant::now() + host::soon();
        while !self.is_closed() {
            assert!(Instant::now() < deadline, "the connection stays open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it was called for so far.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The names of the calls that are events.
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        let calls = self.calls().into_iter().map(|call| call.method);
        let beginning = ["Configure", "Synchronize"];
        calls
            .filter(|method| !beginning.contains(&&**method))
            .collect()
    }

    /// Waits for so many calls of a method, and returns the last.
    ///
    /// # Panics
    /// If they do not come.
    pub async fn wait_for(&self, method: &str, count: usize) -> Call {
        let deadline = Instant::now() + host::soon();
        loop {
            let calls = self.calls();
            let mut calls = calls.into_iter().filter(|call| call.method == method);
            if let Some(call) = calls.nth(count - 1) {
                return call;
            }
            assert!(
                Instant::now() < deadline,
                "no {method}: {:?}",
                self.events()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Forgets what it was called for.
    ///
    /// # Panics
    /// Never.
    pub fn forget(&self) {
        self.calls.lock().unwrap().clear();
    }
}

struct Inbound {
    calls: Arc<Mutex<Vec<Call>>>,
    outbox: mpsc::UnboundedSender<Vec<u8>>,
    pending: Arc<Mutex<HashMap<u32, oneshot::Sender<Response>>>>,
    behaviour: Arc<Behaviour>,
}

impl Inbound {
    async fn read(&self, mut reader: impl tokio::io::AsyncRead + Unpin) -> io::Result<()> {
        let mut streams: HashMap<u32, Vec<u8>> = HashMap::new();
        loop {
            let connection = reader.read_u32().await?;
            let length = reader.read_u32().await? as usize;
            let mut part = vec![0; length];
            reader.read_exact(&mut part).await?;
            let bytes = streams.entry(connection).or_default();
            // As the usual library: a part must fit into what it is read for.
            let rest = match bytes.get(..4) {
                Some(length) => {
                    10 + u32::from_be_bytes(length.try_into().unwrap()) as usize - bytes.len()
                }
                None => 4096,
            };
            assert!(part.len() <= rest.max(4096), "a part of {}", part.len());
            bytes.extend(part);
            while bytes.len() >= 10 {
                let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
                if bytes.len() < 10 + length {
                    break;
                }
                let stream = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
                let (kind, data) = (bytes[8], bytes[10..10 + length].to_vec());
                bytes.drain(..10 + length);
                match (connection, kind) {
                    (PLUGIN, 1) => self.called(stream, &data),
                    (RUNTIME, 2) => {
                        let response = Response::decode(&*data).expect("a response");
                        if let Some(waiting) = self.pending.lock().unwrap().remove(&stream) {
                            let _ = waiting.send(response);
                        }
                    }
                    other => panic!("a message of {other:?}"),
                }
            }
        }
    }

    fn called(&self, stream: u32, data: &[u8]) {
        let request = Request::decode(data).expect("a request");
        assert_eq!(request.service, "nri.pkg.api.v1alpha1.Plugin");
        assert!(request.timeout_nano > 0);
        assert_eq!(stream % 2, 1);
        self.calls.lock().unwrap().push(Call {
            method: request.method.clone(),
            payload: request.payload.clone(),
        });
        let (behaviour, outbox) = (Arc::clone(&self.behaviour), self.outbox.clone());
        tokio::spawn(async move {
            let method = request.method.as_str();
            if let Some(delay) = behaviour.delays.get(method) {
                tokio::time::sleep(*delay).await;
            }
            let answer = match behaviour.answers.get(method) {
                Some(answer) => answer(&request.payload),
                None => Answer::Message(Vec::new()),
            };
            let response = match answer {
                Answer::Message(payload) => Response {
                    status: None,
                    payload,
                },
                Answer::Error(code, message) => Response {
                    status: Some(Status { code, message }),
                    payload: Vec::new(),
                },
                Answer::Silence => return,
            };
            let _ = outbox.send(frame(PLUGIN, stream, 2, &response.encode_to_vec()));
        });
    }
}

/// A message, with its header in a part of its own and the rest in small ones.
fn frame(connection: u32, stream: u32, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    header.extend(stream.to_be_bytes());
    header.extend([kind, 0]);
    let mut bytes = Vec::new();
    for piece in std::iter::once(&header[..]).chain(data.chunks(1000)) {
        bytes.extend(connection.to_be_bytes());
        bytes.extend(u32::try_from(piece.len()).unwrap().to_be_bytes());
        bytes.extend(piece);
    }
    bytes
}
