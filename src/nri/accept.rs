//! How plugins come in: by the socket, or already connected.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use carpel_api::nri::{
    Empty, RegisterPluginRequest, UpdateContainersRequest, UpdateContainersResponse,
};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::Code;

use super::connection::{Answer, Connection, Service, status};
use super::plugin::{Identity, Plugin};
use super::{MOST, Nri};

/// A plugin that we have started.
pub(super) struct Launched {
    pub identity: Identity,
    pub config: String,
    pub process: Child,
}

impl Nri {
    /// Lets plugins connect. Where they cannot, the node does without.
    pub(super) fn listen(self: &Arc<Self>, socket: &Path) {
        match bind(socket) {
            Ok(listener) => {
                tracing::info!(socket = %socket.display(), "plugins may connect");
                tokio::spawn(Arc::clone(self).accept(listener));
            }
            Err(error) => {
                tracing::warn!(socket = %socket.display(), %error, "no plugin can connect");
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Descriptors have run out, most likely.
                    tracing::warn!(%error, "accept a plugin");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    continue;
                }
            };
            let nri = Arc::clone(&self);
            tokio::spawn(async move {
                let Ok(_place) = nri.coming.try_acquire() else {
                    tracing::warn!("a plugin is turned away: too many come at once");
                    return;
                };
                if let Err(why) = nri.welcome(stream, None).await {
                    tracing::warn!(why, "a plugin is turned away");
                }
            });
        }
    }

    /// Takes a plugin in, from its registration to its first event.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) async fn welcome(
        self: &Arc<Self>,
        stream: UnixStream,
        launched: Option<Launched>,
    ) -> Result<(), String> {
        let Some(settings) = &self.settings else {
            return Err("there are no plugins here".to_owned());
        };
        let times = settings.times;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (registered, identity) = oneshot::channel();
        let (known, config, process) = match launched {
            Some(launched) => (
                Some(launched.identity),
                launched.config,
                Some(launched.process),
            ),
            None => (None, String::new(), None),
        };
        let ready = Arc::new(AtomicBool::new(false));
        let service = Requests {
            nri: Arc::downgrade(self),
            known,
            registered: Mutex::new(Some(registered)),
            ready: Arc::clone(&ready),
        };
        let connection = Connection::open(stream, Arc::new(service), times.request);
        let closed = connection.closed();
        let identity = tokio::select! {
            identity = timeout(times.registration, identity) => match identity {
                Ok(Ok(Ok(identity))) => identity,
                Ok(Ok(Err(why))) => {
                    // It is told first.
                    let farewell = std::time::Duration::from_millis(200);
                    let _ = timeout(farewell, connection.closed()).await;
                    return Err(why);
                }
                Ok(Err(_)) => return Err("it was gone before it had registered".to_owned()),
                Err(_) => {
                    let seconds = times.registration.as_secs_f32();
                    return Err(format!("not registered after {seconds} s"));
                }
            },
            why = closed => return Err(format!("not registered: {why}")),
        };
        let name = identity.to_string();
        let named = |why| format!("{name}: {why}");
        let plugin = Plugin::configure(identity, connection, process, config, times)
            .await
            .map_err(named)?;
        let plugin = Arc::new(plugin);
        self.add(&plugin).await.map_err(named)?;
        ready.store(true, Ordering::Release);
        tracing::info!(plugin = name, pid, "plugin connected");
        let (nri, closed) = (Arc::downgrade(self), plugin.closed());
        tokio::spawn(async move {
            let why = closed.await;
            tracing::warn!(plugin = name, why, "plugin gone");
            if let Some(nri) = nri.upgrade() {
                let mut plugins = nri.plugins.lock().await;
                nri.drop_closed(&mut plugins);
            }
        });
        Ok(())
    }

    /// Synchronizes a plugin, which hears of every event from then on.
    async fn add(&self, plugin: &Arc<Plugin>) -> Result<(), String> {
        let runtime = self.runtime().ok_or("the daemon ends")?;
        let gate = self.gate.write().await;
        let mut plugins = self.plugins.lock().await;
        if plugins.len() >= MOST {
            return Err(format!("there are {MOST} plugins already"));
        }
        let (pods, containers) = runtime.state()?;
        let updates = plugin.synchronize(pods, containers).await?;
        let place = plugins.partition_point(|other| other.order(plugin).is_le());
        plugins.insert(place, Arc::clone(plugin));
        self.drop_closed(&mut plugins);
        drop(plugins);
        drop(gate);
        if !updates.is_empty() {
            runtime.update(updates).await;
        }
        Ok(())
    }
}

/// Binds the socket, for root alone. One that nobody answers at is an old one.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent()
        && !folder.is_dir()
    {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another runtime listens there",
        ));
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What a plugin asks of us.
struct Requests {
    nri: Weak<Nri>,
    /// What we know it by, if we have started it.
    known: Option<Identity>,
    registered: Mutex<Option<oneshot::Sender<Result<Identity, String>>>>,
    /// Whether it is synchronized.
    ready: Arc<AtomicBool>,
}

impl Service for Requests {
    fn call(&self, method: String, payload: Vec<u8>) -> Answer<'_> {
        Box::pin(async move {
            let bad = |error: prost::DecodeError| status(Code::InvalidArgument, &error.to_string());
            match method.as_str() {
                "RegisterPlugin" => {
                    let request = RegisterPluginRequest::decode(&*payload).map_err(bad)?;
                    self.register(&request)
                        .map(|()| Empty {}.encode_to_vec())
                        .map_err(|why| status(Code::InvalidArgument, &why))
                }
                "UpdateContainers" => {
                    let request = UpdateContainersRequest::decode(&*payload).map_err(bad)?;
                    let failed = self.update(request).await?;
                    Ok(UpdateContainersResponse { failed }.encode_to_vec())
                }
                other => {
                    let text = format!("there is no call {other:?}");
                    Err(status(Code::Unimplemented, &text))
                }
            }
        })
    }
}

impl Requests {
    fn register(&self, request: &RegisterPluginRequest) -> Result<(), String> {
        let registered = self.registered.lock();
        let registered = registered.unwrap_or_else(PoisonError::into_inner).take();
        let registered = registered.ok_or("it is registered already")?;
        let identity = match &self.known {
            Some(known) => Ok(known.clone()),
            None => Identity::checked(&request.plugin_idx, &request.plugin_name),
        };
        let outcome = identity.as_ref().map(drop).map_err(String::clone);
        let _ = registered.send(identity);
        outcome
    }

    async fn update(
        &self,
        request: UpdateContainersRequest,
    ) -> Result<Vec<carpel_api::nri::ContainerUpdate>, carpel_api::ttrpc::Status> {
        if !self.ready.load(Ordering::Acquire) {
            let text = "it is not synchronized yet";
            return Err(status(Code::FailedPrecondition, text));
        }
        let runtime = self.nri.upgrade().and_then(|nri| nri.runtime());
        let runtime = runtime.ok_or_else(|| status(Code::Unavailable, "the daemon ends"))?;
        if !request.evict.is_empty() {
            Arc::clone(&runtime).evict(request.evict);
        }
        Ok(runtime.update(request.update).await)
    }
}
