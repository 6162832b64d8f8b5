//! The daemon, `carpel-daemon`: everything around the node — log, locks, socket, signals.
//!
//! It is a program of its own, which `carpel serve` becomes: so the memory of a node holds nothing of the commands.

mod socket;

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use futures::Stream;
use nix::sys::stat::{Mode, umask};
use sd_notify::NotifyState;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::Routes;

use crate::cdi::Cdi;
use crate::cgroup::{self, Cgroups};
use crate::config::{Config, Flags};
use crate::image::registry::{self, Proxies, Registries};
use crate::image::{ImageStore, Pinned};
use crate::network::{self, Network};
use crate::node::{self, Decode, Node, Parts, Paths};
use crate::selinux::Selinux;
use crate::spec::host::HostFacts;
use crate::store::rootfs::Builder;
use crate::store::syncer::Syncer;
use crate::store::unpack::Unpacker;
use crate::supervisor::Binary;
use crate::telemetry::{self, trace};
use crate::{apparmor, cri, metrics, streaming, sys, userns};

/// The network of `--default-network`.
const DEFAULT_NETWORK: &str = include_str!("../../cni-conf/10-carpel-bridge.conflist");

/// The name by which critest looks, in a verbose Status, for the file system that containers' root file systems
/// lie on.
pub const STATE_DIR: &str = "stateDir";

/// How often free memory is given back to the kernel: a millisecond's work.
const MEMORY_INTERVAL: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Those of the configuration, and those of [`serve`].
pub fn run(flags: Flags) -> anyhow::Result<()> {
    let (config, files) = flags.load()?;
    sys::economize_memory();
    let exporter = telemetry::init(&config.log, &config.telemetry);
    for file in files {
        tracing::info!(file = %file.display(), "configuration read");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(async {
        let exporting = exporter.map(trace::Exporter::start);
        let outcome = serve(config).await;
        if let Some(exporting) = exporting {
            exporting.finish().await;
        }
        outcome
    });
    // What is under way ends here: the next start finishes or undoes it.
    runtime.shutdown_background();
    outcome
}

/// Serves until SIGTERM or SIGINT. Pods go on without the daemon.
///
/// # Errors
/// The root or the socket belongs to another daemon, something of the host is missing, or the state
/// cannot be read.
async fn serve(config: Config) -> anyhow::Result<()> {
    // First of all, so that a signal during recovery stops the daemon as one during service does.
    let mut stop = stop_signals()?;
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("carpel serve must run as root");
    }
    // What only root may see lies in folders that only root may enter. The rest (logs, folders made for
    // volumes) has the modes that others expect.
    umask(Mode::from_bits_truncate(0o022));
    let cgroups = Cgroups::detect().context("cgroups")?;
    let host =
        HostFacts::detect(cgroups.version() == cgroup::Version::V2).context("look at the host")?;
    sys::raise_open_files().context("raise the limit on open files")?;
    socket::private_dir(&config.root)?;
    socket::private_dir(&config.state)?;
    // Until the process ends: some of our tasks live until then.
    std::mem::forget(socket::lock_root(&config.root)?);
    let listener = socket::bind(&config.listen)?;
    let listener = UnixListener::from_std(listener).context("socket")?;
    let endpoint = config.listen.clone();

    let made = Made::default();
    let outcome = tokio::select! {
        outcome = answer(config, host, cgroups, listener, &made) => outcome,
        signal = &mut stop => {
            tracing::info!(signal, "stopping; pods keep running");
            Ok(())
        }
    };
    notify(&[NotifyState::Stopping]);
    if let Some(clients) = made.clients.get() {
        clients.end().await;
    }
    if let Some(node) = made.node.get() {
        node.stop_plugins().await;
    }
    // Gone while we hold the root's lock, so that it is ours and no successor's.
    let _ = std::fs::remove_file(endpoint.path());
    outcome
}

/// What there is to end in order, as far as it has been made.
#[derive(Default)]
struct Made {
    node: OnceLock<Arc<Node>>,
    clients: OnceLock<streaming::Clients>,
}

/// Brings the node up and answers requests for ever.
async fn answer(
    config: Config,
    host: HostFacts,
    cgroups: Cgroups,
    listener: UnixListener,
    made: &Made,
) -> anyhow::Result<()> {
    let endpoint = config.listen.clone();
    let calls = trace::CallLayer {
        enabled: config.telemetry.traces.is_some(),
    };
    let services = services(config, host, cgroups, made).await?;
    tracing::info!(%endpoint, version = env!("CARGO_PKG_VERSION"), "serving");
    notify(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving on {endpoint}")),
    ]);
    tonic::transport::Server::builder()
        .layer(metrics::RpcLayer)
        .layer(calls)
        .add_routes(services)
        .serve_with_incoming(incoming(listener))
        .await
        .context("serve")
}

/// The connections that come. While none can be taken (no descriptor is left), it is tried again now and then.
fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, async |listener| {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    })
}

/// The node, recovered, behind its gRPC services.
async fn services(
    config: Config,
    host: HostFacts,
    cgroups: Cgroups,
    made: &Made,
) -> anyhow::Result<Routes> {
    let supervisor = config.libexec.find_supervisor()?;
    let binary = Binary::load(&supervisor)
        .with_context(|| format!("supervisor {}", supervisor.display()))?;
    // The orphans of a supervisor that dies come to us, with their exit codes.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("become a subreaper")?;
    let root = config.root.clone();
    let pinned = Pinned::new(config.image.pinned.clone());
    let unpacker = Unpacker::Confined {
        program: "/proc/self/exe".into(),
    };
    let images = tokio::task::spawn_blocking(move || ImageStore::open(&root, pinned, unpacker))
        .await?
        .context("open the images")?;
    let network = Network::open(network::Settings {
        conf_dir: config.network.conf_dir.clone(),
        bin_dirs: config.network.bin_dirs.clone(),
        own_plugins: config.libexec.find_cni().ok(),
        cache_dir: config.root.join("network"),
        timeout: config.network.timeout,
        default_network: config
            .network
            .default_network
            .then(|| DEFAULT_NETWORK.to_owned()),
        conf_template: config.network.conf_template.clone(),
    });
    let registries = Registries::new(registry::Settings {
        plain_http: config.registry.plain_http.clone(),
        token_hosts: config.registry.token_hosts.clone(),
        config_path: config.registry.config_path.dirs().to_vec(),
        auth_files: config.registry.auth_files.clone(),
        proxies: Proxies::of_environment()?,
        parallel_layers: config.registry.parallel_layers,
        timeout: config.registry.timeout,
    });
    let parts = Parts {
        paths: Paths {
            root: config.root.clone(),
            state: config.state.clone(),
            netns: config.network.netns_dir.clone(),
        },
        settings: node::Settings {
            cgroup_parent: config.cgroup.parent.to_string(),
            pids_limit: config.cgroup.pids_limit,
            network_retry: config.network.retry,
        },
        host,
        binary,
        cgroups,
        builder: Builder::start().context("start the rootfs builder")?,
        images,
        registries,
        policy: config.image.policy().context("image.signature_policy")?,
        network: network.context("open the network")?,
        syncer: Syncer::start().context("start the record syncer")?,
        base: config.runtime.base_spec().context("runtime.base_spec")?,
        selinux: match config.runtime.selinux {
            true => Selinux::detect(),
            false => None,
        },
        cdi: Cdi::new(config.cdi.dirs.clone(), config.cdi.annotations),
        nri: config.nri.settings(),
    };
    let decode = Decode {
        sandbox: cri::decode_sandbox,
        container: cri::decode_container,
        resources: cri::decode_resources,
        amend: cri::plugins::amend,
        pod_resources: cri::plugins::pod_resources,
        sysctls: cri::plugins::sysctls,
    };
    let streaming = streaming_server(&config).await?;
    let urls = streaming.urls();
    let builder = parts.builder.clone();
    let (node, user_namespaces) = tokio::join!(
        Node::open(parts, decode),
        probe_user_namespaces(&builder, &config.root)
    );
    let node = node.context("recover")?;
    node.set_user_namespaces(user_namespaces);
    let _ = made.node.set(Arc::clone(&node));
    let _ = made.clients.set(streaming.clients());
    node.start_plugins().await;
    tokio::spawn(streaming.serve(Arc::clone(&node)));
    tokio::spawn(node::orphans::reap_orphans(Arc::clone(&node)));
    tokio::spawn(load_apparmor_profile(Arc::clone(&node)));
    tokio::spawn(Arc::clone(&node).release_networks());
    tokio::spawn(give_memory_back());
    if let Some(address) = config.telemetry.metrics {
        let server = metrics::Server::bind(address)
            .await
            .with_context(|| format!("telemetry.metrics: listen on {address}"))?;
        let address = server.address().context("telemetry.metrics")?;
        tracing::info!(%address, "metrics served");
        tokio::spawn(metrics::serve(server, Arc::downgrade(&node)));
    }
    let mut configuration = serde_json::to_value(&config).context("configuration")?;
    configuration[STATE_DIR] = serde_json::to_value(&config.root).context("configuration")?;
    Ok(cri::routes(Arc::new(cri::Served {
        node,
        configuration,
        urls,
    })))
}

/// Beside the recovery, so that nobody waits for it.
async fn probe_user_namespaces(builder: &Builder, root: &Path) -> Result<(), String> {
    let found = userns::probe(builder, root).await;
    if let Err(why) = &found {
        tracing::warn!("pods cannot have user namespaces: {why}");
    }
    found
}

async fn streaming_server(config: &Config) -> anyhow::Result<streaming::Server> {
    let mut settings = streaming::Settings::new(config.streaming.address);
    if let Some(tls) = &config.streaming.tls {
        settings.tls = Some((tls.certificate.clone(), tls.key.clone()));
    }
    let server = streaming::Server::bind(&settings).await;
    let server = server.context("streaming")?;
    tracing::info!(url = server.base(), "streams served");
    Ok(server)
}

/// Loads the containers' default profile, so that the first of them need not wait for it.
async fn load_apparmor_profile(node: Arc<Node>) {
    if apparmor::is_enabled()
        && let Err(error) = node.apparmor.load_default().await
    {
        tracing::warn!(%error, "no AppArmor profile: containers are unconfined");
    }
}

/// Gives back, now and then, what pods that have gone left free between what others still use.
async fn give_memory_back() {
    let mut times = tokio::time::interval(MEMORY_INTERVAL);
    loop {
        times.tick().await;
        let _ = tokio::task::spawn_blocking(sys::give_memory_back).await;
    }
}

/// Ends with the name of the signal that asks the daemon to stop.
fn stop_signals() -> anyhow::Result<std::pin::Pin<Box<dyn Future<Output = &'static str> + Send>>> {
    let mut term = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    Ok(Box::pin(async move {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    }))
}

/// Tells systemd, if it started us, how far we are.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "readiness not told to the service manager");
    }
}
