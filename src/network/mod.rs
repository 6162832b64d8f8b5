//! The daemon's side of CNI: which network pods get, and the chain of plugins that gives and takes it.
//!
//! ```text
//!              folder watched ──▶ network in use ◀── STATUS, beside the requests
//!                                      │
//! add: entry written ──▶ ADD a ──▶ ADD b ──▶ result written ──▶ attachment
//!                          │ an error: DEL of what was started, in reverse
//! del: entry read ──▶ DEL b ──▶ DEL a ──▶ entry removed
//! ```
//!
//! What always holds:
//! - An entry is on disk before the first plugin starts and until every DEL has succeeded. DEL works from the
//!   entry, whatever the folder says by then.
//! - One sandbox has one operation at a time; different sandboxes share nothing but the processor. Only GC is
//!   alone, as the CNI specification demands.
//! - A plugin is a subprocess that is bounded in time and output; it dies with the future that awaits it, or
//!   before the next daemon runs another.
//! - What a plugin or a file says is input: parsed within bounds, never trusted to be a path.

mod cache;
mod chain;
mod conf;
mod current;
mod device;
mod examine;
mod exec;
mod folder;
mod leftover;
mod locks;
pub mod netns;
mod pod_cidr;
mod result;
mod runtime_config;
mod template;
#[cfg(test)]
mod tests;
mod undo;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tracing::{info, warn};

use crate::ids::SandboxId;
use crate::timeline::Timeline;
use cache::{Cache, Entry, Found};
use chain::{Chain, Unfinished};
use conf::NetworkConf;
use current::Current;
use exec::Bins;
use locks::Locks;
use pod_cidr::{PodCidr, Template};

pub use conf::{Invalid, Version};
pub use current::NotReady;
pub use examine::{Examined, examine};
pub use exec::{Excerpt, Failure, SHIPPED};
pub use pod_cidr::{InvalidPodCidr, Unwritten};
pub use result::Attachment;
pub use runtime_config::{PodNetwork, port_mappings};

/// The interface's name in every pod.
const INTERFACE: &str = "eth0";
/// How long one run of ADD or DEL may take unless the settings say otherwise. The kubelet waits 240 s.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long GC may take at most, all plugins together: no pod gets a network meanwhile.
const GC_TIME: Duration = Duration::from_secs(15);
/// How often and how many times GC looks for a moment in which nothing else is under way.
const GC_PAUSE: Duration = Duration::from_millis(50);
const GC_TRIES: usize = 200;
/// How many sandboxes are deleted at a time by garbage collection.
const GC_PARALLEL: usize = 4;

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of network configurations.
    pub conf_dir: PathBuf,
    /// The folders of plugin binaries, in the order of search.
    pub bin_dirs: Vec<PathBuf>,
    /// carpel's own plugins: one binary that goes by the name it is called by. It is run for the types that it
    /// has and that no folder has.
    pub own_plugins: Option<PathBuf>,
    /// The folder of what was done for each sandbox. It outlives a reboot.
    pub cache_dir: PathBuf,
    /// For one ADD, or one DEL, of a whole chain.
    pub timeout: Duration,
    /// A network configuration (JSON) for when the folder has none, if the operator asked for it.
    pub default_network: Option<String>,
    /// What the folder gets a configuration from, as soon as the range of pod addresses is known.
    pub conf_template: Option<PathBuf>,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("network {network}: plugin {plugin}: {verb}: {failure}")]
    Plugin {
        network: String,
        plugin: String,
        verb: &'static str,
        failure: Box<Failure>,
    },
    #[error("network {network}: {why}")]
    Unusable { network: String, why: String },
    #[error("annotation {annotation}: {value:?} is no rate from 1k to 1P")]
    Bandwidth {
        annotation: &'static str,
        value: String,
    },
    #[error("{key}: {value:?} cannot be an argument of a plugin")]
    Argument { key: &'static str, value: String },
    #[error("network cache {}: {error}", .path.display())]
    Cache { path: PathBuf, error: io::Error },
    #[error("network cache of sandbox {sandbox}: {invalid}")]
    Cached {
        sandbox: SandboxId,
        invalid: Invalid,
    },
    #[error(
        "network cache of sandbox {sandbox} is damaged ({why}) and there is no network to delete it from"
    )]
    Lost { sandbox: SandboxId, why: String },
    #[error("default network: {0}")]
    DefaultNetwork(Invalid),
    #[error("plugin folders: {0}")]
    BinDirs(#[from] std::env::JoinPathsError),
    #[error("network configuration folder {}: {error}", .path.display())]
    ConfDir { path: PathBuf, error: io::Error },
    #[error(transparent)]
    PodCidr(#[from] InvalidPodCidr),
    #[error(transparent)]
    Template(#[from] Unwritten),
    #[error("the network needs a running tokio runtime: {0}")]
    Runtime(#[from] tokio::runtime::TryCurrentError),
}

/// What garbage collection did.
#[derive(Debug, Default)]
pub struct Collected {
    /// Sandboxes whose attachments are gone.
    pub deleted: Vec<SandboxId>,
    /// Sandboxes whose DEL did not succeed; their entries stay.
    pub failed: Vec<(SandboxId, Error)>,
    /// Why the plugins' own collection (the verb GC) did not succeed, if it was run and did not.
    pub plugins: Option<Error>,
}

/// What a check of a sandbox's network came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// The plugins find everything as they left it.
    Fine { network: String },
    /// They were not asked, and why.
    NotChecked { network: String, why: &'static str },
    /// What one of them says is wrong.
    Wrong { network: String, problem: String },
}

/// The node's pod network. Clones are the same network.
#[derive(Debug, Clone)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: Arc<Current>,
    bins: Arc<Bins>,
    cache: Cache,
    timeout: Duration,
    locks: Locks,
    /// Read by ADD and DEL, written by GC.
    gate: tokio::sync::RwLock<()>,
    template: Option<Template>,
    watcher: tokio::task::AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Network {
    /// Reads the folder of configurations and begins to watch it. The folder need not be there. Plugins that an
    /// earlier daemon left running are dead afterwards.
    ///
    /// # Errors
    /// If the default network is not valid, the cache folder cannot be made or read, a folder's name cannot
    /// be used, or no tokio runtime is there. A bad file in the folder is no error, see [`Network::status`].
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::try_current()?;
        let path = &settings.cache_dir;
        let cache = Cache::open(path.clone()).map_err(|error| cache_error(path, error))?;
        let sandboxes = cache.list().map_err(|error| cache_error(path, error))?;
        leftover::end(&sandboxes);
        let pod_cidr = PodCidr::load(path).unwrap_or_else(|error| {
            warn!("pod CIDR kept in {}: {error}", path.display());
            None
        });
        let bins = Arc::new(Bins::new(settings.bin_dirs, settings.own_plugins)?);
        let path = settings.conf_dir;
        let conf_dir =
            std::path::absolute(&path).map_err(|error| Error::ConfDir { path, error })?;
        let default = settings.default_network.as_deref();
        let current = Current::new(
            conf_dir.clone(),
            default,
            Arc::clone(&bins),
            pod_cidr,
            settings.timeout,
            runtime.clone(),
        )
        .map_err(Error::DefaultNetwork)?;
        let watcher = runtime.spawn(current::watch(Arc::downgrade(&current), conf_dir.clone()));
        let template = settings
            .conf_template
            .map(|path| Template { path, conf_dir });
        Ok(Self(Arc::new(Inner {
            current,
            bins,
            cache,
            timeout: settings.timeout,
            locks: Locks::default(),
            gate: tokio::sync::RwLock::default(),
            template,
            watcher: watcher.abort_handle(),
        })))
    }

    /// The name of the network if a pod could get it now. From memory.
    ///
    /// # Errors
    /// Why none could.
    pub fn status(&self) -> Result<String, NotReady> {
        self.0.current.status()
    }

    /// What is wrong with files in the folder of configurations, even if another file's network is in use.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.0.current.warnings()
    }

    /// Remembers the node's range of pod addresses ("10.1.0.0/24", or one of each family with a comma between
    /// them), also for the next daemon. If the default network is in use, it gives addresses of this range to
    /// later pods; so does a plugin with the capability ipRanges. If there is a template, and the folder of
    /// configurations holds none, one is made of it.
    ///
    /// # Errors
    /// If it is no such range, or cannot be written down.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        let cidr = PodCidr::parse(cidr)?;
        let dir = self.0.cache.dir();
        if let Some(template) = &self.0.template {
            template.fill_in(&cidr, self.0.current.pod_cidr().as_ref())?;
        }
        cidr.store(dir).map_err(|error| cache_error(dir, error))?;
        self.0.current.set_pod_cidr(cidr);
        Ok(())
    }

    /// Gives a pod its network. What an earlier, broken ADD for the same sandbox left is deleted first. If the
    /// future is dropped, the plugins are killed and [`Network::del`] undoes what they did.
    ///
    /// # Errors
    /// Everything was undone then, as far as DEL succeeded; else [`Network::del`] tries again.
    pub async fn add(&self, pod: &PodNetwork, timeline: &Timeline) -> Result<Attachment, Error> {
        let _held = self.0.locks.lock(pod.sandbox).await;
        let _shared = self.0.gate.read().await;
        let network = self.0.current.network()?;
        let mut entry = Entry::new(pod.sandbox, &network, INTERFACE);
        entry.netns.clone_from(&pod.netns);
        entry.args = pod.args()?;
        entry.capabilities = pod.capabilities(self.0.current.pod_cidr().as_ref())?;
        if !pod.port_mappings.is_empty() && !network.maps_ports() {
            // No error: there are networks that open them by means of their own.
            info!(sandbox.id = %pod.sandbox, network = network.name,
                "the pod asks for host ports, and no plugin has the capability portMappings");
        }
        let chain = self.0.chain(&network);
        // Before anything is done: a chain that cannot be run whole is not begun.
        let programs = chain.find_all("ADD")?;
        if let Some(earlier) = self.0.load(&pod.sandbox)? {
            self.0.delete(&earlier).await?;
        }
        self.0.store(&entry)?;
        let added = chain.add(&programs, &entry, self.0.timeout, timeline).await;
        let unfinished = match added {
            Ok(last) => match self.0.finish(&mut entry, &network, last) {
                Ok(attachment) => return Ok(attachment),
                Err(error) => Unfinished {
                    started: network.plugins.len(),
                    last: entry.result.take(),
                    error,
                },
            },
            Err(unfinished) => unfinished,
        };
        entry.started = Some(unfinished.started);
        entry.result = unfinished.last;
        if let Err(error) = self.0.undo(&mut entry, &unfinished.error).await {
            // Logged, because the caller hears of the first error.
            warn!(sandbox.id = %pod.sandbox, "undo of the pod's network: {error}");
            if let Err(error) = self.0.store(&entry) {
                warn!(sandbox.id = %pod.sandbox, "{error}");
            }
        }
        Err(unfinished.error)
    }

    /// Takes a sandbox's network away. Nothing known of it is fine, and so is a network namespace that is
    /// gone.
    ///
    /// # Errors
    /// If a plugin's DEL did not succeed; what is known of the sandbox stays, for the next try.
    pub async fn del(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let _held = self.0.locks.lock(*sandbox).await;
        let _shared = self.0.gate.read().await;
        match self.0.load(sandbox)? {
            Some(entry) => self.0.delete(&entry).await,
            None => Ok(()),
        }
    }

    /// Has the plugins check a sandbox's network, as CNI 0.4 has it. `None`: it has none of its own.
    ///
    /// # Errors
    /// If it is not known what the plugins did.
    pub async fn check(&self, sandbox: &SandboxId) -> Result<Option<Checked>, Error> {
        let _held = self.0.locks.lock(*sandbox).await;
        let _shared = self.0.gate.read().await;
        let Some(entry) = self.0.load(sandbox)? else {
            return Ok(None);
        };
        let conf = entry.network().map_err(|invalid| Error::Cached {
            sandbox: *sandbox,
            invalid,
        })?;
        let network = conf.name.clone();
        let why = if conf.version < Version::V0_4_0 {
            Some("its CNI version, before 0.4.0, has no CHECK")
        } else if conf.disable_check {
            Some("its configuration says disableCheck")
        } else if entry.result.is_none() {
            Some("it has no complete result of ADD")
        } else {
            None
        };
        if let Some(why) = why {
            return Ok(Some(Checked::NotChecked { network, why }));
        }
        let checked = self.0.chain(&conf).check(&entry, self.0.timeout).await;
        Ok(Some(match checked {
            Ok(()) => Checked::Fine { network },
            Err(error) => Checked::Wrong {
                network,
                problem: error.to_string(),
            },
        }))
    }

    /// Deletes what is left of sandboxes other than `valid`, then has plugins that know how (CNI 1.1) collect
    /// what is of none. A sandbox whose ADD begins after the call is safe, whenever the future is awaited.
    pub fn gc(&self, valid: HashSet<SandboxId>) -> impl Future<Output = Collected> + use<> {
        let mut stale = self.cached();
        stale.retain(|id| !valid.contains(id));
        let network = self.clone();
        async move {
            let network = &network;
            let deletions = futures::stream::iter(stale.clone())
                .map(|id| async move { (id, network.del(&id).await) });
            let mut deletions = deletions.buffer_unordered(GC_PARALLEL);
            let mut collected = Collected::default();
            while let Some((id, outcome)) = deletions.next().await {
                match outcome {
                    Ok(()) => collected.deleted.push(id),
                    Err(error) => collected.failed.push((id, error)),
                }
            }
            collected.plugins = network.0.gc_plugins(&valid, &stale).await.err();
            collected
        }
    }

    /// The sandboxes that have, or may have, a network.
    #[must_use]
    pub fn cached(&self) -> Vec<SandboxId> {
        self.0.cache.list().unwrap_or_else(|error| {
            warn!("network cache {}: {error}", self.0.cache.dir().display());
            Vec::new()
        })
    }
}

impl Inner {
    fn chain<'a>(&'a self, network: &'a NetworkConf) -> Chain<'a> {
        Chain {
            network,
            bins: &self.bins,
        }
    }

    /// Writes down the result of a whole chain and reads what the pod got.
    fn finish(
        &self,
        entry: &mut Entry,
        network: &NetworkConf,
        last: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Attachment, Error> {
        let attachment = result::attachment(&last, &network.name, INTERFACE);
        entry.result = Some(last);
        let attachment = attachment.map_err(|why| Error::Unusable {
            network: network.name.clone(),
            why: why.to_string(),
        })?;
        self.store(entry)?;
        Ok(attachment)
    }

    fn store(&self, entry: &Entry) -> Result<(), Error> {
        self.cache
            .store(entry)
            .map_err(|error| cache_error(self.cache.dir(), error))
    }

    /// What is known of a sandbox. If that is damaged, what the network in use says takes its place: most
    /// plugins find by the sandbox's id what they gave it.
    fn load(&self, sandbox: &SandboxId) -> Result<Option<Entry>, Error> {
        let found = self
            .cache
            .load(sandbox)
            .map_err(|error| cache_error(self.cache.dir(), error))?;
        let why = match found {
            Found::Nothing => return Ok(None),
            Found::Entry(entry) => return Ok(Some(*entry)),
            Found::Damaged(why) => why,
        };
        let Ok(network) = self.current.network() else {
            let sandbox = *sandbox;
            return Err(Error::Lost { sandbox, why });
        };
        let entry = Entry::new(*sandbox, &network, INTERFACE);
        let aside = self
            .cache
            .replace(&entry)
            .map_err(|error| cache_error(self.cache.dir(), error))?;
        warn!(sandbox.id = %sandbox, "network cache damaged, moved to {}: {why}", aside.display());
        Ok(Some(entry))
    }

    /// Runs the verb GC while nothing else is under way, if there ever is such a moment: it does not queue,
    /// or a plugin that hangs would keep every other pod waiting.
    async fn gc_plugins(
        &self,
        valid: &HashSet<SandboxId>,
        stale: &[SandboxId],
    ) -> Result<(), Error> {
        let Ok(network) = self.current.network() else {
            return Ok(());
        };
        let chain = self.chain(&network);
        if !chain.speaks_1_1() || network.disable_gc {
            return Ok(());
        }
        let mut tries = 0;
        let _alone = loop {
            match self.gate.try_write() {
                Ok(alone) => break alone,
                Err(_) if tries < GC_TRIES => tries += 1,
                Err(_) => {
                    let network = network.name.clone();
                    let why = "no moment without ADD or DEL to run GC in".to_owned();
                    return Err(Error::Unusable { network, why });
                }
            }
            tokio::time::sleep(GC_PAUSE).await;
        };
        let listed = self
            .cache
            .list()
            .map_err(|error| cache_error(self.cache.dir(), error))?;
        let added = listed.into_iter().filter(|id| !stale.contains(id));
        let mut all: Vec<_> = valid.iter().copied().chain(added).collect();
        all.sort_unstable();
        all.dedup();
        let time = self.timeout.min(GC_TIME);
        chain.gc(&all, INTERFACE, time).await
    }
}

fn cache_error(path: &std::path::Path, error: io::Error) -> Error {
    let path = path.to_owned();
    Error::Cache { path, error }
}
