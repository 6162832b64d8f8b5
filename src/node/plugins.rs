//! The node's side of plugins: what they are told of pods and containers, and what becomes of what they want.
//!
//! A container is told of once at each station: that it was created is undone by "stopped" and "removed", and whoever
//! comes first of an exit, a stop and a removal tells of its stop ([`Heard`]).

use std::sync::{Arc, Weak};

use carpel_api::nri::{
    self, CdiDevice, ContainerEviction, ContainerState, ContainerUpdate, Event, LinuxNamespace,
    LinuxPodSandbox, PodSandbox, SecurityProfile, security_profile::ProfileType,
};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Node;
use crate::container::{Asked, Container, Heard, Limits, Status};
use crate::error::Error;
use crate::ids::ContainerId;
use crate::image::Image;
use crate::nri::{Beside, Runtime, Subject, Wanted, adjust, view};
use crate::sandbox::{Live, PodLimits, Sandbox, State};
use crate::spec::config::{ContainerConfig, Resources, SeccompProfile};
use crate::spec::oci::{self, Source};

/// What plugins have made of a container that is being created.
#[derive(Default)]
pub(crate) struct Adjusted {
    pub limits: Option<Limits>,
    pub cgroup: Option<String>,
    pub wanted: Wanted,
}

/// A container that is being created, as far as plugins see it.
pub(crate) struct Newcomer<'a> {
    pub id: &'a ContainerId,
    pub sandbox: &'a Sandbox,
    pub config: &'a ContainerConfig,
    pub image: &'a Image,
    pub request: &'a [u8],
}

impl Node {
    /// Has plugins come in.
    pub async fn start_plugins(self: &Arc<Self>) {
        let runtime: Weak<dyn Runtime> = Arc::downgrade(&(Arc::clone(self) as Arc<dyn Runtime>));
        self.nri.start(runtime).await;
    }

    /// Tells plugins that the daemon ends.
    pub async fn stop_plugins(&self) {
        self.nri.stop().await;
    }

    /// What plugins are told of a container that is about to be made. `None`: there is none to be told.
    pub(crate) fn newcomer(
        &self,
        new: &Newcomer<'_>,
        source: &Source,
    ) -> Result<Option<Subject>, Error> {
        if !self.nri.has_plugins() {
            return Ok(None);
        }
        Ok(Some(Subject {
            pod: self.plugins_pod(new.sandbox, None)?,
            container: Some(newcomer(new, source)),
        }))
    }

    /// Asks plugins, who are told of `subject`, how a container is to be made, and makes its spec so.
    pub(crate) async fn ask_plugins(
        &self,
        new: &Newcomer<'_>,
        subject: &Subject,
        source: &mut Source,
    ) -> Result<Adjusted, Error> {
        let named = |why: &str| {
            let name = &new.config.name.name;
            Error::FailedPrecondition(format!("container {name:?}: {why}"))
        };
        let pod = subject.pod.clone();
        let container = subject.container.clone().unwrap_or_default();
        let answer = self.nri.create(pod, container).await;
        let (adjust, wanted) = answer.map_err(|refused| named(&refused.to_string()))?;
        let adjusted = tokio::task::block_in_place(|| {
            adjust::apply(adjust, source, &self.cdi)
                .map_err(|why| named(&format!("plugins want what cannot be: {why}")))
        })?;
        let limits = self.adjusted_limits(new, source, &adjusted)?;
        self.adjust_sysctls(new.sandbox, source, adjusted.sysctl)?;
        let cgroup = adjusted.cgroups_path;
        if let Some(path) = &cgroup {
            self.check_plugins_cgroup(path).map_err(|why| named(&why))?;
            if let Some(linux) = source.spec.linux_mut() {
                linux.set_cgroups_path(Some(path.into()));
            }
        }
        Ok(Adjusted {
            limits,
            cgroup,
            wanted,
        })
    }

    fn adjusted_limits(
        &self,
        new: &Newcomer<'_>,
        source: &mut Source,
        adjusted: &Beside,
    ) -> Result<Option<Limits>, Error> {
        if adjusted.resources.is_none() && adjusted.oom_score_adj.is_none() {
            return Ok(None);
        }
        let wanted = adjusted.resources.clone().unwrap_or_default();
        let score = adjusted.oom_score_adj;
        let limits = self.amend(None, new.request, &wanted, score)?;
        oci::set_limits(&mut source.spec, &limits.resources);
        Ok(Some(limits))
    }

    fn amend(
        &self,
        asked: Option<&Asked>,
        created: &[u8],
        wanted: &nri::LinuxResources,
        score: Option<i64>,
    ) -> Result<Limits, Error> {
        let asked = asked.map(|asked| &*asked.0);
        let unified = self.host.cgroups == crate::spec::host::CgroupLayout::V2;
        let (resources, asked) = (self.decode.amend)(asked, created, wanted, score, unified)?;
        Ok(Limits {
            resources,
            asked: Some(Asked(asked)),
        })
    }

    fn adjust_sysctls(
        &self,
        sandbox: &Sandbox,
        source: &mut Source,
        wanted: std::collections::BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let wanted: std::collections::BTreeMap<_, _> = wanted
            .into_iter()
            // There are none to take away.
            .filter(|(key, _)| !key.starts_with('-'))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let config = &sandbox.config;
        let checked = (self.decode.sysctls)(wanted, config.network, config.ipc)?;
        if let Some(linux) = source.spec.linux_mut() {
            linux.set_sysctl(Some(checked.into_iter().collect()));
        }
        Ok(())
    }

    /// A cgroup of a plugin's choice must be one that can be made and removed with the container.
    fn check_plugins_cgroup(&self, path: &str) -> Result<(), String> {
        let at = |why: &str| Err(format!("plugins want linux.cgroups_path {path:?}: {why}"));
        if crate::spec::mounts::normal(path).as_deref() != Some(path) {
            return at("not an absolute and normal path below the root");
        }
        let taken = self.containers().iter().any(|other| other.cgroup == path);
        if taken || self.cgroups.open(path).exists() {
            return at("there is such a cgroup already");
        }
        Ok(())
    }

    /// What plugins were told of a container that there is none of after all.
    pub(crate) async fn untell_plugins(&self, told: Option<Subject>) {
        let Some(subject) = told else {
            return;
        };
        let stopped = self.nri.stopped(&subject).await.map(drop);
        let removed = self.nri.tell(Event::RemoveContainer, &subject).await;
        for error in [stopped, removed].into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "plugins are told of a container that was not made");
        }
    }

    /// Tells of an event of a pod.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`]: a plugin refuses.
    pub(crate) async fn tell_of_pod(
        &self,
        event: Event,
        sandbox: &Sandbox,
        live: Option<&Live>,
    ) -> Result<(), Error> {
        if !self.nri.has_plugins() {
            return Ok(());
        }
        let subject = Subject {
            pod: self.plugins_pod(sandbox, live)?,
            container: None,
        };
        let told = self.nri.tell(event, &subject).await;
        told.map_err(|refused| {
            Error::FailedPrecondition(format!("pod {}: {refused}", sandbox.pod()))
        })
    }

    /// Tells plugins what a pod as a whole is to have.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`]: a plugin refuses.
    pub(crate) async fn ask_about_pod(
        &self,
        sandbox: &Sandbox,
        change: &PodLimits,
    ) -> Result<(), Error> {
        if !self.nri.has_plugins() {
            return Ok(());
        }
        let before = sandbox.limits();
        let wanted = PodLimits {
            overhead: change.overhead.clone().or(before.overhead),
            resources: change.resources.clone().or(before.resources),
        };
        let (overhead, resources) = (self.decode.pod_resources)(&sandbox.request, &wanted)?;
        let shown = |resources: Option<Resources>| resources.as_ref().map(view::resources);
        let subject = Subject {
            pod: self.plugins_pod(sandbox, None)?,
            container: None,
        };
        let told = self
            .nri
            .update_pod(&subject, shown(overhead), shown(resources));
        told.await.map_err(|refused| {
            Error::FailedPrecondition(format!("pod {}: {refused}", sandbox.pod()))
        })
    }

    /// Tells of an event of a container.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`]: a plugin refuses.
    pub(crate) async fn tell_of_container(
        &self,
        event: Event,
        container: &Container,
    ) -> Result<(), Error> {
        if !self.nri.has_plugins() {
            return Ok(());
        }
        let told = self.nri.tell(event, &self.subject(container)?).await;
        told.map_err(|refused| {
            let name = &container.config.name.name;
            Error::FailedPrecondition(format!("container {name:?} ({}): {refused}", container.id))
        })
    }

    /// Tells that a container has stopped, unless that is known.
    pub(crate) async fn tell_stopped(&self, container: &Container) {
        let mut heard = container.heard.lock().await;
        self.tell_stop(container, &mut heard).await;
    }

    /// Tells that a container is removed, after its stop.
    pub(crate) async fn tell_removed(&self, container: &Container) {
        let mut heard = container.heard.lock().await;
        self.tell_stop(container, &mut heard).await;
        if std::mem::replace(&mut *heard, Heard::Removed) == Heard::Removed {
            return;
        }
        let _gate = self.nri.gate().await;
        let told = self.tell_of_container(Event::RemoveContainer, container);
        if let Err(error) = told.await {
            tracing::warn!(container.id = %container.id, %error, "removal of a container");
        }
    }

    async fn tell_stop(&self, container: &Container, heard: &mut Heard) {
        if *heard >= Heard::Stopped {
            return;
        }
        *heard = Heard::Stopped;
        // A plugin that is being synchronized has been told otherwise.
        let _gate = self.nri.gate().await;
        if !self.nri.has_plugins() {
            return;
        }
        let stopped = async {
            let subject = self.subject(container)?;
            let stopped = self.nri.stopped(&subject).await;
            stopped.map_err(|refused| Error::FailedPrecondition(refused.to_string()))
        };
        match stopped.await {
            // Not waited for: who is here has a turn, perhaps, and those others wait for it.
            Ok(wanted) => drop(self.nri.carry_out(wanted)),
            Err(error) => {
                tracing::warn!(container.id = %container.id, %error, "stop of a container");
            }
        }
    }

    /// Asks plugins about other limits of a container.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`]: a plugin refuses.
    pub(crate) async fn ask_about_limits(
        &self,
        container: &Container,
        limits: Limits,
    ) -> Result<(Limits, Wanted), Error> {
        if !self.nri.has_plugins() {
            return Ok((limits, Wanted::default()));
        }
        let asked = view::resources(&limits.resources);
        let Subject {
            pod,
            container: shown,
        } = self.subject(container)?;
        let shown = shown.unwrap_or_default();
        let answer = self.nri.update(pod, shown, asked.clone()).await;
        let (wanted, beside) = answer.map_err(|refused| {
            let name = &container.config.name.name;
            Error::FailedPrecondition(format!("container {name:?} ({}): {refused}", container.id))
        })?;
        if wanted == asked {
            return Ok((limits, beside));
        }
        let score = limits.resources.oom_score_adj.into();
        let limits = self.amend(
            limits.asked.as_ref(),
            &container.request,
            &wanted,
            Some(score),
        )?;
        Ok((limits, beside))
    }

    /// A pod, as plugins are shown it.
    fn plugins_pod(&self, sandbox: &Sandbox, live: Option<&Live>) -> Result<PodSandbox, Error> {
        let config = &sandbox.config;
        let live = live.cloned().or_else(|| match sandbox.state() {
            State::Ready(live) => Some(live),
            _ => None,
        });
        let pid = live.as_ref().map_or(0, |live| live.supervisor.pid());
        let attached = live.and_then(|live| live.attachment);
        let ips = attached.map_or_else(|| sandbox.ips(), |attachment| attachment.ips);
        let (overhead, resources) =
            (self.decode.pod_resources)(&sandbox.request, &sandbox.limits())
                .map_err(Error::at(format!("sandbox {}", sandbox.id)))?;
        let shown = |resources: Option<Resources>| resources.as_ref().map(view::resources);
        Ok(PodSandbox {
            id: sandbox.id.to_string(),
            name: config.name.name.clone(),
            uid: config.name.uid.clone(),
            namespace: config.name.namespace.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: config.runtime_handler.clone(),
            linux: Some(LinuxPodSandbox {
                pod_overhead: shown(overhead),
                pod_resources: shown(resources),
                cgroup_parent: config.cgroup_parent.clone().unwrap_or_default(),
                cgroups_path: sandbox.cgroup.clone(),
                namespaces: namespaces(sandbox, pid),
                resources: None,
            }),
            pid,
            ips: ips.iter().map(ToString::to_string).collect(),
        })
    }

    fn subject(&self, container: &Container) -> Result<Subject, Error> {
        let pod = match self.sandbox(&container.sandbox) {
            Some(sandbox) => self.plugins_pod(&sandbox, None)?,
            None => PodSandbox {
                id: container.sandbox.to_string(),
                ..PodSandbox::default()
            },
        };
        Ok(Subject {
            pod,
            container: Some(shown(container)),
        })
    }

    async fn update_for_plugin(self: &Arc<Self>, update: &ContainerUpdate) -> Result<(), Error> {
        let Ok(id) = self.find_container(&update.container_id) else {
            // It is gone meanwhile.
            return Ok(());
        };
        let wanted = update
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.clone());
        let wanted = wanted.unwrap_or_default();
        let node = Arc::clone(self);
        let merge = move |container: &Container| {
            let asked = container.limits().asked;
            node.amend(asked.as_ref(), &container.request, &wanted, None)
        };
        self.change_limits(&id, Box::new(merge)).await
    }
}

impl Runtime for Node {
    fn state(&self) -> Result<(Vec<PodSandbox>, Vec<nri::Container>), String> {
        let sandboxes = self.sandboxes();
        let pods: Result<_, Error> = sandboxes
            .iter()
            .filter(|sandbox| !matches!(sandbox.state(), State::Removing))
            .map(|sandbox| self.plugins_pod(sandbox, None))
            .collect();
        let pods = pods.map_err(|error| crate::error::chain(&error))?;
        let lives = |container: &Arc<Container>| {
            matches!(
                container.status(),
                Status::Created | Status::Running(_) | Status::Unseen
            )
        };
        let containers = self.containers().into_iter().filter(lives);
        let containers = containers.map(|container| shown(&container)).collect();
        Ok((pods, containers))
    }

    fn update(
        self: Arc<Self>,
        updates: Vec<ContainerUpdate>,
    ) -> BoxFuture<'static, Vec<ContainerUpdate>> {
        async move {
            let mut failed = Vec::new();
            for update in updates {
                if let Err(error) = self.update_for_plugin(&update).await {
                    let id = &update.container_id;
                    tracing::warn!(container.id = id, %error, "update that a plugin wants");
                    if !update.ignore_failure {
                        failed.push(update);
                    }
                }
            }
            failed
        }
        .boxed()
    }

    fn evict(self: Arc<Self>, evictions: Vec<ContainerEviction>) {
        for eviction in evictions {
            let Ok(id) = self.find_container(&eviction.container_id) else {
                continue;
            };
            let reason = eviction.reason;
            tracing::info!(container.id = %id, reason, "a plugin wants a container stopped");
            let node = Arc::clone(&self);
            tokio::spawn(async move {
                let stopped = node.stop_container(&id, std::time::Duration::ZERO).await;
                if let Err(error) = stopped {
                    tracing::warn!(container.id = %id, %error, "eviction");
                }
            });
        }
    }
}

/// The namespaces of a pod: that of the network by its pin, for as long as that is there.
fn namespaces(sandbox: &Sandbox, pid: u32) -> Vec<LinuxNamespace> {
    let namespace = |kind: &str, path: String| LinuxNamespace {
        r#type: kind.to_owned(),
        path,
    };
    let mut namespaces = Vec::new();
    if let Some(pin) = sandbox.netns.as_ref().filter(|pin| pin.exists()) {
        namespaces.push(namespace("network", pin.display().to_string()));
    }
    if pid != 0 {
        for kind in ["ipc", "uts"] {
            namespaces.push(namespace(kind, format!("/proc/{pid}/ns/{kind}")));
        }
    }
    namespaces
}

fn newcomer(new: &Newcomer<'_>, source: &Source) -> nri::Container {
    let image = new.image;
    let mut shown = described(new.config, source, &new.config.resources);
    shown.id = new.id.to_string();
    shown.pod_sandbox_id = new.sandbox.id.to_string();
    shown.state = ContainerState::ContainerCreated.into();
    shown.created_at = super::now();
    let reference = image.digests.first().map_or("", String::as_str);
    shown.image = Some(image_of(
        &new.config.image,
        reference,
        &image.id.to_string(),
    ));
    shown
}

/// A container that is there, as plugins are shown it.
fn shown(container: &Container) -> nri::Container {
    let limits = container.limits().resources;
    let mut shown = described(&container.config, &container.source, &limits);
    shown.id = container.id.to_string();
    shown.pod_sandbox_id = container.sandbox.to_string();
    shown.created_at = container.created_at;
    let id = container.image_id.to_string();
    shown.image = Some(image_of(&container.config.image, &container.image_ref, &id));
    let state = match container.status() {
        Status::Created => ContainerState::ContainerCreated,
        Status::Running(running) => {
            shown.pid = running.pid;
            shown.started_at = running.started_at;
            ContainerState::ContainerRunning
        }
        Status::Unseen => ContainerState::ContainerUnknown,
        Status::Exited(exited) | Status::Removing(Some(exited)) => {
            shown.started_at = exited.started_at;
            shown.finished_at = exited.finished_at;
            shown.exit_code = exited.exit_code;
            shown.status_reason = exited.reason;
            shown.status_message = exited.message;
            ContainerState::ContainerStopped
        }
        Status::Removing(None) => ContainerState::ContainerStopped,
    };
    shown.state = state.into();
    shown
}

fn image_of(name: &str, reference: &str, id: &str) -> nri::Image {
    let digest = reference.split_once('@').map_or("", |(_, digest)| digest);
    nri::Image {
        name: name.to_owned(),
        digest: digest.to_owned(),
        config_digest: id.to_owned(),
    }
}

fn described(config: &ContainerConfig, source: &Source, limits: &Resources) -> nri::Container {
    let mut shown = view::container(&source.spec, limits);
    shown.name.clone_from(&config.name.name);
    shown.labels = config.labels.clone();
    shown.annotations.extend(config.annotations.clone());
    let devices = config.cdi_devices.iter();
    shown.cdi_devices = devices
        .map(|device| CdiDevice {
            name: device.to_string(),
        })
        .collect();
    let (kind, path) = match &config.security.seccomp {
        SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SeccompProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SeccompProfile::Localhost(path) => (ProfileType::Localhost, path.display().to_string()),
    };
    let linux = shown.linux.get_or_insert_default();
    linux.seccomp_profile = Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path,
    });
    shown
}
