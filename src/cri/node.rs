//! The node as the services see it.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use carpel_api::carpel::LayerState;
use carpel_api::cri;
use futures::{Stream, StreamExt};
use oci_spec::image::ImageConfiguration;
use prost::Message;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use super::domain::{
    ContainerDetail, ContainerInfo, ContainerState, ContainerView, DiskUsages, Domain, EventView,
    ExecOutput, ImageUse, ImageView, Lookup, Missed, NotReady, Pruned, SandboxDetail, SandboxInfo,
    SandboxView, SecurityModules, SelinuxMode,
};
use super::export::{Chunks, VerifySteps};
use super::import::{Archive, Progress};
use super::pull::Steps;
use super::update::{self, Merge};
use crate::apparmor;
use crate::container::{Asked, Container, Exited, Limits, State, Told};
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::image::pull::Wanted;
use crate::image::reference::Reference;
use crate::image::{self, Artifact, Image, ImageId, Platforms, Unused};
use crate::network::{self, Checked};
use crate::node::{self, Event, Node};
use crate::sandbox::{PodLimits, Sandbox};
use crate::selinux::{Kernel, Selinux};
use crate::spec::config::{ContainerConfig, SandboxConfig};
use crate::stats::{ContainerFigures, DiskTotal, SandboxAccounts, SandboxFigures, Volume};
use crate::streaming::{self, Urls};

/// A node and the configuration that it was opened with.
pub struct Served {
    pub node: Arc<Node>,
    pub configuration: serde_json::Value,
    pub urls: Urls,
}

impl Domain for Served {
    async fn run_sandbox(
        &self,
        config: SandboxConfig,
        request: Vec<u8>,
    ) -> Result<SandboxId, Error> {
        self.node.run_sandbox(config, request).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.node.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.node.remove_sandbox(id).await
    }

    async fn update_sandbox(&self, id: &SandboxId, change: PodLimits) -> Result<(), Error> {
        self.node.update_sandbox(id, change).await
    }

    fn find_sandbox(&self, text: &str) -> Result<SandboxId, Lookup> {
        self.node.find_sandbox(text).map_err(lookup)
    }

    fn sandbox(&self, id: &SandboxId) -> Option<SandboxDetail> {
        let sandbox = self
            .node
            .sandbox(id)
            .filter(|sandbox| sandbox.is_listed())?;
        Some(sandbox_detail(&sandbox, sandbox.is_ready()))
    }

    fn sandbox_info(&self, id: &SandboxId) -> Option<SandboxInfo> {
        let sandbox = self.node.sandbox(id)?;
        Some(SandboxInfo {
            pid: sandbox.live().map(|live| live.supervisor.pid()),
            netns: sandbox.netns.clone(),
            port_mappings: network::port_mappings(&sandbox.config.port_mappings),
            cgroup: sandbox.cgroup.clone(),
            selinux: sandbox.selinux.clone(),
            timeline: sandbox.timeline.spans(),
        })
    }

    fn sandboxes(&self) -> Vec<SandboxView> {
        self.node
            .sandboxes()
            .iter()
            .map(|sandbox| sandbox_view(sandbox, sandbox.is_ready()))
            .collect()
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
        request: Vec<u8>,
    ) -> Result<ContainerId, Error> {
        self.node.create_container(sandbox, config, request).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.node.start_container(id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        self.node.stop_container(id, grace).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.node.remove_container(id).await
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        arguments: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        self.node.exec_sync(id, arguments, timeout).await
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.node.reopen_log(id).await
    }

    fn find_container(&self, text: &str) -> Result<ContainerId, Lookup> {
        self.node.find_container(text).map_err(lookup)
    }

    async fn update_container(&self, id: &ContainerId, merge: Merge) -> Result<(), Error> {
        let merge = move |container: &Container| {
            let created = cri::ContainerConfig::decode(&*container.request)
                .map_err(Error::at("recorded request of a container"))?;
            let asked = container.limits().asked.map(|asked| asked.0);
            let (resources, asked) = merge(update::asked(asked.as_deref(), &created)?)?;
            Ok(Limits {
                resources,
                asked: Some(Asked(asked)),
            })
        };
        self.node.update_container(id, Box::new(merge)).await
    }

    fn container(&self, id: &ContainerId) -> Option<ContainerDetail> {
        let container = self.node.container(id)?;
        Some(container_detail(&container, &container.told()))
    }

    fn container_info(&self, id: &ContainerId) -> Option<ContainerInfo> {
        let container = self.node.container(id)?;
        Some(ContainerInfo {
            sandbox_id: container.sandbox.to_string(),
            pid: container.running().map(|running| running.pid),
            dropped_log_lines: container.with_state(|state| match state {
                State::Exited(exited) => Some(exited.dropped_log_lines),
                _ => None,
            }),
            cgroup: container.cgroup.clone(),
            stdin: container.config.stdin,
            timeline: container.timeline.spans(),
            runtime_spec: Arc::new(container.source.spec.clone()),
        })
    }

    fn containers_of(&self, sandbox: &SandboxId) -> Vec<ContainerDetail> {
        self.node
            .containers_of(sandbox)
            .iter()
            .map(|container| container_detail(container, &container.told()))
            .collect()
    }

    fn containers(&self) -> Vec<ContainerView> {
        self.node
            .containers()
            .iter()
            .map(|container| container_view(container, &container.told()))
            .collect()
    }

    async fn container_figures(
        &self,
        ids: Vec<ContainerId>,
    ) -> Result<Vec<(ContainerId, ContainerFigures)>, Error> {
        let containers: Vec<_> = ids
            .iter()
            .filter_map(|id| self.node.container(id))
            .collect();
        let found: Vec<_> = containers.iter().map(|container| container.id).collect();
        let figures = self.node.container_figures(containers).await?;
        Ok(found.into_iter().zip(figures).collect())
    }

    async fn sandbox_figures(
        &self,
        ids: Vec<SandboxId>,
    ) -> Result<Vec<(SandboxId, SandboxFigures)>, Error> {
        let sandboxes: Vec<_> = ids.iter().filter_map(|id| self.node.sandbox(id)).collect();
        let found: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.id).collect();
        let figures = self.node.sandbox_figures(sandboxes).await?;
        let found = found.into_iter().zip(figures);
        Ok(found
            .filter_map(|(id, figures)| Some((id, figures?)))
            .collect())
    }

    async fn sandbox_accounts(
        &self,
        ids: Vec<SandboxId>,
    ) -> Result<Vec<(SandboxId, SandboxAccounts)>, Error> {
        let sandboxes: Vec<_> = ids.iter().filter_map(|id| self.node.sandbox(id)).collect();
        let found: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.id).collect();
        let accounts = self.node.accounts(sandboxes).await?;
        let found = found.into_iter().zip(accounts);
        Ok(found
            .filter_map(|(id, accounts)| Some((id, accounts?)))
            .collect())
    }

    fn volume(&self) -> Option<Volume> {
        self.node.volume()
    }

    fn events(&self) -> impl Stream<Item = Result<EventView, Missed>> + Send + 'static {
        BroadcastStream::new(self.node.events()).map(|event| match event {
            Ok(event) => Ok(event_view(&event)),
            Err(BroadcastStreamRecvError::Lagged(count)) => Err(Missed(count)),
        })
    }

    fn image(&self, name: &str) -> Result<Option<ImageView>, Error> {
        Ok(self
            .node
            .images
            .resolve(name)
            .map(|image| image_view(&image)))
    }

    fn image_spec(&self, id: &str) -> Option<ImageConfiguration> {
        let image = self.node.images.resolve(id);
        let image = image.filter(|image| image.artifact.is_none());
        image.map(|image| image.config.clone())
    }

    fn artifact(&self, id: &str) -> Option<Artifact> {
        self.node.images.resolve(id)?.artifact.clone()
    }

    fn images(&self) -> Vec<ImageView> {
        self.node
            .images
            .list()
            .iter()
            .map(|image| image_view(image))
            .collect()
    }

    async fn remove_image(&self, name: &str) -> Result<(), Error> {
        self.node.remove_image(name).await
    }

    async fn image_usage(&self) -> Result<DiskUsages, Error> {
        let images = self.node.images.disk_usage();
        Ok(DiskUsages {
            images: DiskTotal {
                bytes: images.bytes,
                inodes: images.inodes,
            },
            writable_layers: self.node.writable_layers(),
        })
    }

    async fn pull(&self, wanted: Wanted, steps: Option<Steps>) -> Result<ImageView, Error> {
        let pull = self.node.pull_image(wanted);
        let image = match steps {
            None => pull.outcome().await?,
            Some(mut steps) => steps.follow(&pull).await?,
        };
        Ok(image_view(&image))
    }

    async fn import(
        &self,
        archive: Archive,
        platforms: Platforms,
        progress: Progress,
    ) -> Result<Vec<ImageView>, Error> {
        let report = move |step: image::Progress| match step {
            image::Progress::Received { bytes } => progress.received(bytes),
            image::Progress::Shared { layer } => {
                progress.layer(layer.to_string(), LayerState::Shared)
            }
            image::Progress::Unpacking { layer } => {
                progress.layer(layer.to_string(), LayerState::Unpacking)
            }
            image::Progress::Unpacked { layer } => {
                progress.layer(layer.to_string(), LayerState::Unpacked)
            }
            // The answer itself says so.
            image::Progress::Recorded { .. } => {}
        };
        let images = self.node.import_images(archive, platforms, report).await?;
        Ok(images.iter().map(|image| image_view(image)).collect())
    }

    async fn export(&self, images: Vec<String>, archive: Chunks) -> Result<(), Error> {
        let wanted = archive.wanted();
        self.node.export_images(&images, archive, wanted).await
    }

    async fn verify(
        &self,
        images: Vec<String>,
        set_aside: bool,
        steps: VerifySteps,
    ) -> Result<(), Error> {
        let wanted = steps.clone();
        let proceed = move || wanted.is_wanted();
        let tell = move |step| steps.tell(step);
        self.node
            .verify_images(&images, set_aside, tell, proceed)
            .await
    }

    async fn tag_image(&self, name: &str, tags: Vec<Reference>) -> Result<ImageUse, Error> {
        let image = self.node.tag_image(name, tags).await?;
        Ok(self.image_use(image_view(&image)))
    }

    async fn pin_image(&self, name: &str, pinned: bool) -> Result<ImageUse, Error> {
        let image = self.node.pin_image(name, pinned).await?;
        Ok(self.image_use(image_view(&image)))
    }

    fn image_uses(&self) -> Vec<ImageUse> {
        let mut users: HashMap<ImageId, Vec<ContainerId>> = HashMap::new();
        for container in self.node.containers() {
            for image in container.image_ids().collect::<HashSet<_>>() {
                users.entry(image).or_default().push(container.id);
            }
        }
        let uses = self.node.images_usage().into_iter().map(|usage| ImageUse {
            image: image_view(&usage.image),
            unshared: usage.unshared,
            containers: users.remove(&usage.image.id).unwrap_or_default(),
        });
        uses.collect()
    }

    async fn prune_images(&self, which: Unused, dry_run: bool) -> Result<Pruned, Error> {
        let mut images = self.image_uses();
        let (gone, freed) = self.node.prune_images(which, dry_run).await?;
        let gone: HashSet<String> = gone.iter().map(ToString::to_string).collect();
        images.retain(|one| gone.contains(&one.image.id));
        Ok(Pruned { images, freed })
    }

    fn root(&self) -> &Path {
        &self.node.paths.root
    }

    fn runtime_status(&self) -> Result<(), NotReady> {
        self.node.paths.check_writable().map_err(|error| NotReady {
            reason: "StateNotWritable".to_owned(),
            message: error.to_string(),
        })
    }

    fn network_warnings(&self) -> Vec<String> {
        self.node.network.warnings()
    }

    fn network_status(&self) -> Result<(), NotReady> {
        match self.node.network.status() {
            Ok(_name) => Ok(()),
            Err(why) => Err(NotReady {
                reason: why.reason.to_owned(),
                message: why.message,
            }),
        }
    }

    async fn check_network(&self, sandbox: &SandboxId) -> Result<Option<Checked>, Error> {
        let checked = self.node.network.check(sandbox).await;
        checked.map_err(Error::at("check the pod's network"))
    }

    fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        self.node
            .network
            .set_pod_cidr(cidr)
            .map_err(|error| match error {
                network::Error::PodCidr(invalid) => Error::InvalidArgument(invalid.to_string()),
                // What the administrator has configured, not what the kubelet asks for.
                network::Error::Template(unwritten) => {
                    Error::FailedPrecondition(unwritten.to_string())
                }
                other => Error::wrap("remember the pod CIDR", other),
            })
    }

    fn stream_url(&self, request: streaming::Request) -> Result<String, Error> {
        self.urls.url(request)
    }

    fn security_modules(&self) -> SecurityModules {
        let selinux = self.node.selinux.as_ref().map(Selinux::kernel);
        SecurityModules {
            apparmor: apparmor::is_enabled(),
            selinux: match selinux.map(Kernel::is_enforcing) {
                Some(true) => SelinuxMode::Enforcing,
                Some(false) => SelinuxMode::Permissive,
                None => SelinuxMode::Off,
            },
        }
    }

    fn configuration(&self) -> serde_json::Value {
        self.configuration.clone()
    }

    fn user_namespaces(&self) -> bool {
        self.node.user_namespaces().is_ok()
    }
}

fn lookup(why: node::Lookup) -> Lookup {
    match why {
        node::Lookup::NotFound => Lookup::NotFound,
        node::Lookup::Ambiguous => Lookup::Ambiguous,
    }
}

fn sandbox_view(sandbox: &Sandbox, ready: bool) -> SandboxView {
    SandboxView {
        id: sandbox.id,
        config: Arc::clone(&sandbox.config),
        created_at: sandbox.created_at,
        ready,
        ips: sandbox.ips(),
    }
}

fn sandbox_detail(sandbox: &Sandbox, ready: bool) -> SandboxDetail {
    SandboxDetail {
        view: sandbox_view(sandbox, ready),
        request: sandbox.request.clone(),
        limits: sandbox.limits(),
    }
}

fn container_view(container: &Container, told: &Told) -> ContainerView {
    ContainerView {
        id: container.id,
        sandbox: container.sandbox,
        config: Arc::clone(&container.config),
        image_id: container.image_id.to_string(),
        image_ref: container.image_ref.clone(),
        created_at: container.created_at,
        state: match told {
            Told::Created => ContainerState::Created,
            Told::Running { started_at } => ContainerState::Running {
                started_at: *started_at,
            },
            Told::Exited(exited) | Told::Removing(Some(exited)) => exited_view(exited),
            Told::Unknown | Told::Removing(None) => ContainerState::Unknown,
        },
    }
}

fn container_detail(container: &Container, told: &Told) -> ContainerDetail {
    ContainerDetail {
        view: container_view(container, told),
        request: container.request.clone(),
        limits: container.limits().asked.map(|asked| asked.0),
        log_path: container.log_path.clone(),
        uid: container.user.uid,
        gid: container.user.gid,
        groups: container.user.groups.clone(),
        stop_signal: container.stop_signal,
        image_volumes: container
            .source
            .image_volumes
            .iter()
            .map(|volume| volume.image.clone())
            .collect(),
    }
}

fn event_view(event: &Event) -> EventView {
    let containers = event.containers.iter();
    EventView {
        object: event.object.clone(),
        kind: event.kind,
        at: event.at,
        sandbox: sandbox_detail(&event.sandbox, event.ready),
        containers: containers
            .map(|(container, told)| container_detail(container, told))
            .collect(),
    }
}

fn exited_view(exited: &Exited) -> ContainerState {
    ContainerState::Exited {
        started_at: exited.started_at,
        finished_at: exited.finished_at,
        exit_code: exited.exit_code,
        reason: exited.reason.clone(),
        message: exited.message.clone(),
    }
}

impl Served {
    /// An image as it is, and who uses it.
    fn image_use(&self, image: ImageView) -> ImageUse {
        let same = |one: &ImageUse| one.image.id == image.id;
        let known = self.image_uses().into_iter().find(same);
        // Somebody may have removed it meanwhile.
        known.unwrap_or(ImageUse {
            image,
            unshared: 0,
            containers: Vec::new(),
        })
    }
}

fn image_view(image: &Image) -> ImageView {
    let config = image.config.config().as_ref();
    ImageView {
        id: image.id.to_string(),
        tags: image.tags.clone(),
        digests: image.digests.clone(),
        size: image.size,
        user: config
            .and_then(|config| config.user().clone())
            .unwrap_or_default(),
        pinned: image.pinned,
    }
}
