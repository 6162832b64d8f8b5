//! NRI, the node resource interface: plugins of the node's operator that hear of pods and containers, and have a say in
//! how containers are made.
//!
//! ```text
//!  a plugin connects ──▶ RegisterPlugin ──▶ Configure ──▶ Synchronize ──▶ events, one at a time, in order of indexes
//!     or is started         (its name)      (its wishes)   (what is there)      │
//!                                                                               └─ hangs, ends, talks nonsense: dropped
//! ```
//!
//! What must always hold: events are told one after the other, to one plugin after the other, as plugins expect it. A
//! plugin hears of everything that is there, either by Synchronize or by an event: what changes the tables holds the
//! [`Gate`] from before the event until the change is done. A plugin that says no has the last word; one that does
//! not work has none. Everything waits for a bounded time. With no plugin connected all of this is the load of a number.

mod accept;
pub mod adjust;
mod connection;
mod frame;
mod launch;
mod merge;
mod plugin;
pub mod view;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use carpel_api::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest,
    CreateContainerResponse, Event, LinuxResources, PluginInstance, PodSandbox,
    StopContainerResponse, UpdateContainerRequest, UpdateContainerResponse,
    UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest,
    ValidateContainerAdjustmentResponse,
};
use futures::future::BoxFuture;
use prost::Message;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, Semaphore};

pub use adjust::Beside;
pub use launch::Folders;
pub use merge::Wanted;
use merge::{Creation, Updates};
use plugin::{Plugin, Refusal, method};

/// The version of the interface that is spoken.
const VERSION: &str = "v0.12.0";

/// The most plugins, and how many may be on their way at once.
const MOST: usize = 64;
const COMING: usize = 16;

/// How long plugins may take to hear that the daemon ends, all together.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long plugins may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// From the connection to the registration, and for each part of the state.
    pub registration: Duration,
    /// For an answer.
    pub request: Duration,
}

/// How plugins are taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where plugins connect.
    pub socket: PathBuf,
    /// Plugins that are started with the daemon.
    pub folders: Folders,
    pub times: Times,
}

/// What plugins ask of the node.
pub trait Runtime: Send + Sync + 'static {
    /// All pods and containers that are there.
    ///
    /// # Errors
    /// What is on record of one is damaged.
    fn state(&self) -> Result<(Vec<PodSandbox>, Vec<Container>), String>;
    /// Gives containers other limits. Those come back that could not be changed.
    fn update(
        self: Arc<Self>,
        updates: Vec<ContainerUpdate>,
    ) -> BoxFuture<'static, Vec<ContainerUpdate>>;
    /// Begins to stop containers.
    fn evict(self: Arc<Self>, evictions: Vec<ContainerEviction>);
}

/// What an event is about.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    pub pod: PodSandbox,
    /// None: it is about the pod.
    pub container: Option<Container>,
}

/// A plugin has refused, or two contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// While it is there no plugin is synchronized.
pub type Gate<'a> = RwLockReadGuard<'a, ()>;

/// The plugins of a node.
pub struct Nri {
    settings: Option<Settings>,
    /// In the order in which they are called. Locked for the time of an event.
    plugins: Mutex<Vec<Arc<Plugin>>>,
    /// How many there are.
    count: AtomicUsize,
    gate: RwLock<()>,
    runtime: OnceLock<Weak<dyn Runtime>>,
    coming: Semaphore,
}

impl Nri {
    /// `None`: there are no plugins, ever.
    #[must_use]
    pub fn new(settings: Option<Settings>) -> Self {
        Self {
            settings,
            plugins: Mutex::default(),
            count: AtomicUsize::new(0),
            gate: RwLock::default(),
            runtime: OnceLock::new(),
            coming: Semaphore::new(COMING),
        }
    }

    /// Starts the plugins that are installed, and begins to let others connect.
    pub async fn start(self: &Arc<Self>, runtime: Weak<dyn Runtime>) {
        let Some(settings) = &self.settings else {
            return;
        };
        let _ = self.runtime.set(runtime);
        self.launch(&settings.folders).await;
        self.listen(&settings.socket);
    }

    /// Tells plugins that the daemon ends.
    pub async fn stop(&self) {
        let plugins = std::mem::take(&mut *self.plugins.lock().await);
        self.count.store(0, Ordering::Release);
        let farewells = plugins.iter().map(|plugin| async move {
            let _: Result<carpel_api::nri::Empty, _> = plugin.ask("Shutdown", Vec::new()).await;
        });
        let _ = tokio::time::timeout(FAREWELL, futures::future::join_all(farewells)).await;
    }

    /// Whether anybody is to be told anything.
    #[must_use]
    pub fn has_plugins(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// To be held by who tells of a change and makes it.
    pub async fn gate(&self) -> Gate<'_> {
        self.gate.read().await
    }

    fn runtime(&self) -> Option<Arc<dyn Runtime>> {
        self.runtime.get()?.upgrade()
    }

    /// Tells of an event.
    ///
    /// # Errors
    /// The first plugin that refuses; those after it are not told.
    pub async fn tell(&self, event: Event, subject: &Subject) -> Result<(), Refused> {
        // All requests are alike: a pod, and perhaps a container.
        let request = CreateContainerRequest {
            pod: Some(subject.pod.clone()),
            container: subject.container.clone(),
        };
        self.tell_with(event, subject, &request.encode_to_vec())
            .await
    }

    async fn tell_with(
        &self,
        event: Event,
        subject: &Subject,
        request: &[u8],
    ) -> Result<(), Refused> {
        let mut plugins = self.plugins.lock().await;
        let mut outcome = Ok(());
        for plugin in plugins.iter().filter(|plugin| plugin.wants(event)) {
            let told = plugin.tell(event, request, subject).await;
            outcome = judge(plugin, event, told.map(Some)).map(drop);
            if outcome.is_err() {
                break;
            }
        }
        self.drop_closed(&mut plugins);
        outcome
    }

    /// Tells what a pod as a whole is to have, before that is so.
    ///
    /// # Errors
    /// As [`Nri::tell`].
    pub async fn update_pod(
        &self,
        subject: &Subject,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<(), Refused> {
        let request = UpdatePodSandboxRequest {
            pod: Some(subject.pod.clone()),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        let event = Event::UpdatePodSandbox;
        self.tell_with(event, subject, &request.encode_to_vec())
            .await
    }

    /// Asks how a container is to be made that is about to be.
    ///
    /// # Errors
    /// A plugin refuses, two contradict each other, or one that validates rejects what all want.
    pub async fn create(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<(ContainerAdjustment, Wanted), Refused> {
        let mut plugins = self.plugins.lock().await;
        let pristine = container.clone();
        let mut creation = Creation::new(container);
        let mut outcome = Ok(());
        for plugin in plugins.iter().filter(|p| p.wants(Event::CreateContainer)) {
            let request = CreateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(creation.container.clone()),
            };
            let event = Event::CreateContainer;
            let answer = plugin.ask(method(event), request.encode_to_vec()).await;
            outcome = judge(plugin, event, answer.map(Some)).and_then(|answer| {
                let answer: CreateContainerResponse = answer.unwrap_or_default();
                let name = plugin.identity.to_string();
                creation
                    .take(&name, answer.adjust, answer.update, answer.evict)
                    .map_err(Refused)
            });
            if outcome.is_err() {
                break;
            }
        }
        let (adjust, wanted, owners) = creation.finish();
        if outcome.is_ok() && plugins.iter().any(|plugin| plugin.validates()) {
            let asked = plugins.iter().map(|plugin| PluginInstance {
                name: plugin.identity.name.clone(),
                index: plugin.identity.index.clone(),
            });
            let request = ValidateContainerAdjustmentRequest {
                pod: Some(pod),
                container: Some(pristine),
                adjust: Some(adjust.clone()),
                update: wanted.updates.clone(),
                owners: Some(owners),
                plugins: asked.collect(),
            };
            outcome = validate(&plugins, &request.encode_to_vec()).await;
        }
        self.drop_closed(&mut plugins);
        outcome.map(|()| (adjust, wanted))
    }

    /// Asks what a container is to have that a client wants to have these.
    ///
    /// # Errors
    /// As [`Nri::create`].
    pub async fn update(
        &self,
        pod: PodSandbox,
        container: Container,
        asked: LinuxResources,
    ) -> Result<(LinuxResources, Wanted), Refused> {
        let event = Event::UpdateContainer;
        let mut plugins = self.plugins.lock().await;
        let mut updates = Updates::of(&container.id, asked);
        let mut outcome = Ok(());
        for plugin in plugins.iter().filter(|plugin| plugin.wants(event)) {
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: updates.asked().cloned(),
            };
            let answer = plugin.ask(method(event), request.encode_to_vec()).await;
            outcome = judge(plugin, event, answer.map(Some)).and_then(|answer| {
                let answer: UpdateContainerResponse = answer.unwrap_or_default();
                let name = plugin.identity.to_string();
                updates
                    .take(&name, answer.update, answer.evict)
                    .map_err(Refused)
            });
            if outcome.is_err() {
                break;
            }
        }
        self.drop_closed(&mut plugins);
        outcome?;
        let (own, wanted) = updates.finish();
        Ok((own.unwrap_or_default(), wanted))
    }

    /// Tells that a container has stopped.
    ///
    /// # Errors
    /// As [`Nri::tell`].
    pub async fn stopped(&self, subject: &Subject) -> Result<Wanted, Refused> {
        let event = Event::StopContainer;
        let request = CreateContainerRequest {
            pod: Some(subject.pod.clone()),
            container: subject.container.clone(),
        };
        let request = request.encode_to_vec();
        let mut plugins = self.plugins.lock().await;
        let mut updates = Updates::default();
        let mut outcome = Ok(());
        for plugin in plugins.iter().filter(|plugin| plugin.wants(event)) {
            let answer = plugin.ask(method(event), request.clone()).await;
            outcome = judge(plugin, event, answer.map(Some)).and_then(|answer| {
                let answer: StopContainerResponse = answer.unwrap_or_default();
                let name = plugin.identity.to_string();
                updates
                    .take(&name, answer.update, Vec::new())
                    .map_err(Refused)
            });
            if outcome.is_err() {
                break;
            }
        }
        self.drop_closed(&mut plugins);
        outcome.map(|()| updates.finish().1)
    }

    /// Has the node do what plugins want of containers beside the one that they were asked about. It goes on if nobody
    /// waits for it.
    pub fn carry_out(&self, wanted: Wanted) -> impl Future<Output = ()> + Send + use<> {
        let runtime = self.runtime().filter(|_| wanted != Wanted::default());
        let doing = runtime.map(|runtime| {
            if !wanted.evictions.is_empty() {
                Arc::clone(&runtime).evict(wanted.evictions);
            }
            tokio::spawn(runtime.update(wanted.updates))
        });
        async {
            if let Some(doing) = doing {
                // What could not be done is in the log.
                let _ = doing.await;
            }
        }
    }

    /// A plugin that does not work any more is not asked again.
    fn drop_closed(&self, plugins: &mut Vec<Arc<Plugin>>) {
        plugins.retain(|plugin| !plugin.is_closed());
        self.count.store(plugins.len(), Ordering::Release);
    }
}

/// What a plugin's answer means: `None` is that of one that does not work any more.
fn judge<T>(
    plugin: &Plugin,
    event: Event,
    answer: Result<Option<T>, Refusal>,
) -> Result<Option<T>, Refused> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(Refusal::Said(text)) => Err(Refused(format!(
            "plugin {:?} refuses {}: {text}",
            plugin.identity.to_string(),
            method(event)
        ))),
        // Its end is told by who waits for that.
        Err(Refusal::Broken(why)) => {
            plugin.close(&why);
            Ok(None)
        }
    }
}

async fn validate(plugins: &[Arc<Plugin>], request: &[u8]) -> Result<(), Refused> {
    let event = Event::ValidateContainerAdjustment;
    for plugin in plugins.iter().filter(|plugin| plugin.validates()) {
        let name = plugin.identity.to_string();
        let answer = plugin.ask(method(event), request.to_vec()).await;
        let answer: ValidateContainerAdjustmentResponse = match answer {
            Ok(answer) => answer,
            // Who asks to have the last word is not done without.
            Err(refusal) => {
                let why = refusal.into_text();
                return Err(Refused(format!("plugin {name:?} does not validate: {why}")));
            }
        };
        if answer.reject {
            let why = answer.reason;
            return Err(Refused(format!("plugin {name:?} rejects: {why}")));
        }
    }
    Ok(())
}
