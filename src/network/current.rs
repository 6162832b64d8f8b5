//! Which network is in use now and whether it is ready: always in memory, kept true by two things that run
//! beside the requests.
//!
//! - The *watcher* reads the folder anew when inotify says so, and every half minute anyway.
//! - The *check* looks for the plugins' binaries and runs STATUS (CNI 1.1). Someone's question for the status
//!   sets it off, at most every few seconds; the answer is that of the check before.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::chain::Chain;
use super::conf::{Invalid, NetworkConf};
use super::exec::Bins;
use super::folder::{self, Scan, Watch};
use super::pod_cidr::PodCidr;

/// How often the folder is read although nothing was seen to change: links may point out of it.
const REREAD: Duration = Duration::from_secs(30);
/// How often it is read if it cannot be watched.
const REREAD_UNWATCHED: Duration = Duration::from_secs(3);
/// How old a check's answer may be before a question sets off another.
const RECHECK_READY: Duration = Duration::from_secs(10);
const RECHECK_NOT_READY: Duration = Duration::from_secs(2);
/// How long STATUS may take at most, all plugins together.
const CHECK_TIME: Duration = Duration::from_secs(10);

/// Why pods cannot get a network now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotReady {
    /// One word in CamelCase: `NoNetworkConfig`, `InvalidNetworkConfig`, `NetworkPluginNotReady` or
    /// `NetworkPluginNotChecked`.
    pub reason: &'static str,
    pub message: String,
}

/// The network in use.
#[derive(Debug)]
pub(super) struct Current {
    conf_dir: PathBuf,
    default: Option<NetworkConf>,
    bins: Arc<Bins>,
    check_time: Duration,
    runtime: tokio::runtime::Handle,
    /// Held while the folder is read, so that an old reading never replaces a new one.
    reading: Mutex<Option<PodCidr>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    network: Result<Arc<NetworkConf>, NotReady>,
    bad: Vec<String>,
    health: Result<(), NotReady>,
    /// When the last check ended. `None`: there was none of this network.
    checked: Option<Instant>,
    checking: bool,
}

impl Current {
    /// Reads the folder for the first time.
    ///
    /// # Errors
    /// If the default network is no valid configuration.
    pub(super) fn new(
        conf_dir: PathBuf,
        default: Option<&str>,
        bins: Arc<Bins>,
        pod_cidr: Option<PodCidr>,
        timeout: Duration,
        runtime: tokio::runtime::Handle,
    ) -> Result<Arc<Self>, Invalid> {
        let default = default.map(|text| NetworkConf::parse(text.as_bytes())?.complete());
        let not_read = NotReady {
            reason: "NoNetworkConfig",
            message: "the network configuration was not read yet".into(),
        };
        let current = Arc::new(Self {
            conf_dir,
            default: default.transpose()?,
            bins,
            check_time: timeout.min(CHECK_TIME),
            runtime,
            reading: Mutex::new(pod_cidr),
            state: Mutex::new(State {
                network: Err(not_read),
                bad: Vec::new(),
                health: Ok(()),
                checked: None,
                checking: false,
            }),
        });
        current.reread();
        Ok(current)
    }

    /// The network for the next pod.
    pub(super) fn network(&self) -> Result<Arc<NetworkConf>, NotReady> {
        self.state().network.clone()
    }

    /// What is wrong in the folder, though a network may be in use all the same.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.state().bad.clone()
    }

    /// The network's name if it is ready. Sets off a check if the last one is old.
    pub(super) fn status(self: &Arc<Self>) -> Result<String, NotReady> {
        let (status, due) = {
            let mut state = self.state();
            let every = if state.health.is_ok() {
                RECHECK_READY
            } else {
                RECHECK_NOT_READY
            };
            let old = state
                .checked
                .is_none_or(|checked| checked.elapsed() >= every);
            let due = state.network.is_ok() && old && !state.checking;
            state.checking |= due;
            let status = state
                .network
                .as_ref()
                .map_err(NotReady::clone)
                .and_then(|network| {
                    state.health.clone()?;
                    Ok(network.name.clone())
                });
            (status, due)
        };
        if due {
            self.begin_check();
        }
        status
    }

    /// Remembers the range of pod addresses and uses it from the next pod on.
    pub(super) fn set_pod_cidr(self: &Arc<Self>, cidr: PodCidr) {
        *lock(&self.reading) = Some(cidr);
        self.reread();
    }

    /// The range of pod addresses, if it is known.
    pub(super) fn pod_cidr(&self) -> Option<PodCidr> {
        lock(&self.reading).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Reads the folder and takes what it says.
    fn reread(self: &Arc<Self>) {
        let reading = lock(&self.reading);
        let scan = folder::scan(&self.conf_dir);
        let new = self.choose(&scan, reading.as_ref());
        let mut state = self.state();
        if state.bad != scan.bad {
            scan.bad
                .iter()
                .for_each(|bad| warn!("network configuration passed over: {bad}"));
            state.bad = scan.bad;
        }
        let same = match (&state.network, &new) {
            (Ok(old), Ok(new)) => **old == *new,
            (Err(old), Err(new)) => old == new,
            _ => false,
        };
        if same {
            return;
        }
        match &new {
            Ok(network) => {
                info!(network = network.name, version = %network.version, "network in use")
            }
            Err(not_ready) => warn!("no network: {not_ready}"),
        }
        let chain = new.as_ref().map(|network| Chain {
            network,
            bins: &self.bins,
        });
        state.health = chain.map_or(Ok(()), first_look);
        state.network = new.map(Arc::new);
        state.checked = None;
        // A check that is under way is of the network before, and will see that.
        state.checking = state.network.is_ok();
        let begin = state.checking;
        drop(state);
        drop(reading);
        if begin {
            self.begin_check();
        }
    }

    fn choose(&self, scan: &Scan, pod_cidr: Option<&PodCidr>) -> Result<NetworkConf, NotReady> {
        if let Some(network) = &scan.network {
            return Ok(network.clone());
        }
        // A mistake in a file must not put pods on another network than the one that was meant.
        if !scan.bad.is_empty() {
            return Err(NotReady {
                reason: "InvalidNetworkConfig",
                message: format!("no valid network configuration: {}", scan.bad.join("; ")),
            });
        }
        let Some(default) = &self.default else {
            return Err(NotReady {
                reason: "NoNetworkConfig",
                message: format!("no network configuration in {}", self.conf_dir.display()),
            });
        };
        let mut network = default.clone();
        if let Some(cidr) = pod_cidr {
            cidr.apply(&mut network);
        }
        Ok(network)
    }

    /// Checks the network in use, beside the caller.
    fn begin_check(self: &Arc<Self>) {
        let current = Arc::clone(self);
        self.runtime.spawn(async move {
            let Ok(network) = current.network() else {
                return;
            };
            let chain = Chain {
                network: &network,
                bins: &current.bins,
            };
            let health = match chain.speaks_1_1() {
                true => chain.status(current.check_time).await,
                false => chain.find_all("ADD").map(drop),
            };
            let health = health.map_err(|error| not_ready(&error));
            let mut state = current.state();
            if !state
                .network
                .as_ref()
                .is_ok_and(|now| Arc::ptr_eq(now, &network))
            {
                return;
            }
            if state.health != health {
                match &health {
                    Ok(()) => info!(network = network.name, "network ready"),
                    Err(not_ready) => warn!("network not ready: {not_ready}"),
                }
            }
            state.health = health;
            state.checked = Some(Instant::now());
            state.checking = false;
        });
    }
}

/// What can be said of a network that was not checked yet.
fn first_look(chain: Chain<'_>) -> Result<(), NotReady> {
    chain.find_all("ADD").map_err(|error| not_ready(&error))?;
    if !chain.speaks_1_1() {
        return Ok(());
    }
    Err(NotReady {
        reason: "NetworkPluginNotChecked",
        message: format!(
            "network {}: the plugins are being asked for their status",
            chain.network.name
        ),
    })
}

fn not_ready(error: &super::Error) -> NotReady {
    NotReady {
        reason: "NetworkPluginNotReady",
        message: error.to_string(),
    }
}

/// Keeps the network in use true to the folder until it is dropped.
///
/// When this returns the folder is watched, and has been read since; each next watch is made before the last is
/// given up.
pub(super) fn watch(current: Weak<Current>, conf_dir: PathBuf) -> impl Future<Output = ()> {
    let mut watch = Watch::begin(&conf_dir);
    if let Some(current) = current.upgrade() {
        current.reread();
    }
    let mut told = false;
    async move {
        loop {
            match &watch {
                Ok(watch) => {
                    // Either way the folder is read anew; a broken watch is made anew.
                    let _ = tokio::time::timeout(REREAD, watch.changed()).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(
                            "{}: not watched, read every few seconds: {error}",
                            conf_dir.display()
                        );
                    }
                    tokio::time::sleep(REREAD_UNWATCHED).await;
                }
            }
            watch = Watch::begin(&conf_dir);
            match current.upgrade() {
                Some(current) => current.reread(),
                None => return,
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
