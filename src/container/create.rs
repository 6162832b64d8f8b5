//! CreateContainer: every mistake in the request shows here, and no process exists yet.

use std::sync::Arc;
use std::time::Instant;

use carpel_api::nri::Event;

use super::volumes::Images;
use super::{Container, State};
use crate::cdi;
use crate::error::Error;
use crate::ids::{ContainerId, SandboxId};
use crate::node::{ContainerLabels, EventKind, Node};
use crate::sandbox::{self, Sandbox};
use crate::spec::config::{ContainerConfig, MountSource, PidScope};
use crate::store::bind;

impl Node {
    /// Makes a container, or returns the one of that name that the sandbox has already.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what the image or the host cannot fulfil,
    /// [`Error::NotFound`] for an unknown sandbox or image. Nothing is left behind.
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox: &SandboxId,
        config: ContainerConfig,
        request: Vec<u8>,
    ) -> Result<ContainerId, Error> {
        let (node, sandbox) = (Arc::clone(self), *sandbox);
        let key = (sandbox, config.name.clone());
        self.creates
            .join(key, || async move {
                node.make_container(&sandbox, config, request).await
            })
            .await
    }

    async fn make_container(
        self: Arc<Self>,
        sandbox: &SandboxId,
        mut config: ContainerConfig,
        request: Vec<u8>,
    ) -> Result<ContainerId, Error> {
        let sandbox = self.sandbox(sandbox).ok_or_else(|| Error::NotFound {
            kind: "sandbox",
            id: sandbox.to_string(),
        })?;
        let named = |container: &Arc<Container>| container.config.name == config.name;
        if let Some(existing) = self.containers_of(&sandbox.id).into_iter().find(named) {
            return if existing.with_state(|state| matches!(state, State::Removing(_))) {
                let name = &config.name.name;
                let text = format!("container {name:?} ({}) is being removed", existing.id);
                Err(Error::FailedPrecondition(text))
            } else {
                Ok(existing.id)
            };
        }
        if !matches!(*sandbox.lock(), sandbox::State::Ready(_)) {
            return Err(sandbox.refuses());
        }
        self.check_target(&sandbox, &config)?;
        let apparmor = self.apparmor.available(config.security.apparmor).await;
        config.security.apparmor = apparmor?;
        let labels = self.labels_of_container(&sandbox, &config)?;
        let images = self.find_images(&config)?;
        let devices = tokio::task::block_in_place(|| {
            let devices = self.find_cdi_devices(&config)?;
            check_mounts(&config)?;
            if let Some(labels) = &labels {
                self.check_relabelled(labels, &config)?;
            }
            Ok::<_, Error>(devices)
        })?;
        let id = ContainerId::random();
        let found = Found {
            images,
            devices,
            labels,
        };
        let made = self.prepare(id, &sandbox, config, request, &found).await;
        if made.is_err() {
            self.delete_container_files(&id)?;
        }
        made
    }

    async fn prepare(
        &self,
        id: ContainerId,
        sandbox: &Sandbox,
        config: ContainerConfig,
        request: Vec<u8>,
        found: &Found,
    ) -> Result<ContainerId, Error> {
        let start = Instant::now();
        let rootfs = self.furnish(&id, sandbox, &config, found).await?;
        let furnished = Instant::now();
        let mut draft = self.draft(id, sandbox, config, request, found, rootfs)?;
        if let Some(labels) = &found.labels {
            // It takes as long as there are files, and what follows holds up plugins that come in, and with those
            // whoever comes after them.
            self.relabel(labels, &draft.config, sandbox).await?;
        }
        // Until it is in the tables no plugin is synchronized.
        let gate = self.nri.gate().await;
        let image = &*found.images.own;
        let told = self.newcomer(&draft.newcomer(sandbox, image), &draft.source)?;
        let adjusted = self
            .adjust(&mut draft, sandbox, image, told.as_ref())
            .await
            .and_then(|(compiled, adjusted)| {
                let spans = (start, furnished);
                let container = self.enter(draft, sandbox, image, compiled, adjusted.limits, spans);
                Ok((container?, adjusted.wanted))
            });
        let (container, wanted) = match adjusted {
            Ok(entered) => entered,
            Err(error) => {
                self.untell_plugins(told).await;
                return Err(error);
            }
        };
        drop(gate);
        self.announce_container(EventKind::Created, &container);
        self.nri.carry_out(wanted).await;
        let told = self.tell_of_container(Event::PostCreateContainer, &container);
        if let Err(error) = told.await {
            tracing::warn!(container.id = %id, %error, "creation of a container");
        }
        Ok(id)
    }

    /// What the CDI devices want that a request names, itself or by annotations.
    fn find_cdi_devices(&self, config: &ContainerConfig) -> Result<cdi::Edits, Error> {
        let invalid = |what: &str, why: &dyn std::fmt::Display| {
            Error::InvalidArgument(cdi_failed(config, what, why))
        };
        let mut names = config.cdi_devices.clone();
        if self.cdi.annotations {
            let more = cdi::from_annotations(&config.annotations)
                .map_err(|(key, why)| invalid(&format!("annotations[{key:?}]"), &why))?;
            for name in more {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        self.cdi.find(&names).map_err(|(device, error)| {
            let text = cdi_failed(config, "CDI_devices", &format_args!("{device}: {error}"));
            match error {
                cdi::Error::Unsupported { .. } => Error::Unimplemented(text),
                _ => Error::InvalidArgument(text),
            }
        })
    }

    fn check_target(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<(), Error> {
        let PidScope::Target(target) = config.security.pid else {
            return Ok(());
        };
        match self.container(&target) {
            Some(container) if container.sandbox == sandbox.id => Ok(()),
            _ => Err(Error::InvalidArgument(format!(
                "config.linux.security_context.namespace_options.target_id: \
                 container {target} is not in sandbox {}",
                sandbox.id
            ))),
        }
    }
}

/// What a request needs that is there already.
pub(super) struct Found {
    pub(super) images: Images,
    pub(super) devices: cdi::Edits,
    pub(super) labels: Option<ContainerLabels>,
}

pub(super) fn cdi_failed(
    config: &ContainerConfig,
    field: &str,
    why: &dyn std::fmt::Display,
) -> String {
    format!("container {:?}: config.{field}: {why}", config.name.name)
}

/// What of the host a container mounts is looked at before anything is made, and made where it is missing.
fn check_mounts(config: &ContainerConfig) -> Result<(), Error> {
    for (index, mount) in config.mounts.iter().enumerate() {
        let MountSource::Host(path) = &mount.source else {
            continue;
        };
        bind::prepare(path, mount.propagation).map_err(|error| {
            let field = match &error {
                bind::Error::NotShared { .. } | bind::Error::NotSharedOrSlave { .. } => {
                    "propagation"
                }
                _ => "host_path",
            };
            Error::InvalidArgument(format!(
                "container {:?}: config.mounts[{index}].{field}: {}",
                config.name.name,
                crate::error::chain(&error)
            ))
        })?;
    }
    Ok(())
}

pub(super) fn invalid(
    config: &ContainerConfig,
    error: &(dyn std::error::Error + 'static),
) -> Error {
    Error::InvalidArgument(format!(
        "container {:?}: {}",
        config.name.name,
        crate::error::chain(error)
    ))
}
