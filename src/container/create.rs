//! CreateContainer: every mistake in the request shows here, and no process exists yet.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use carpel_api::nri::Event;

use super::volumes::Images;
use super::{Container, Prepared, Record, State, net_devices};
use crate::cdi;
use crate::error::Error;
use crate::failpoint;
use crate::ids::{ContainerId, SandboxId};
use crate::image::Image;
use crate::node::{ContainerLabels, EventKind, Newcomer, Node};
use crate::nri::Subject;
use crate::sandbox::{self, Sandbox, files};
use crate::selinux::Label;
use crate::spec::config::{ContainerConfig, IdMap, MountSource, PidScope, UserNamespace};
use crate::spec::hooks;
use crate::spec::oci::{self, ContainerInput, SandboxFiles, Source};
use crate::spec::plan;
use crate::spec::signal;
use crate::spec::user::{self, User};
use crate::store::RootFd;
use crate::store::bind;
use crate::store::layers::LayerId;
use crate::store::rootfs::Overlay;

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
        let mut told = None;
        let made = self.prepare(id, &sandbox, config, request, &found, &mut told);
        let made = made.await;
        if made.is_err() {
            self.untell_plugins(told).await;
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
        told: &mut Option<Subject>,
    ) -> Result<ContainerId, Error> {
        let Found {
            images,
            devices,
            labels,
        } = found;
        let mount_label = labels.as_ref().map(|labels| labels.mount.to_string());
        let mount_label = mount_label.as_deref();
        let image = &*images.own;
        let start = Instant::now();
        let at = |doing: &str| format!("{doing} of container {id}");
        let dir = self.paths.container(&id);
        crate::node::make_dir(&dir).map_err(Error::at(at("make the folder")))?;
        let rootfs = self.make_rootfs(&id, &image.layers, sandbox, mount_label);
        let rootfs = rootfs.await?;
        self.try_image_volumes(&config, &images.volumes, sandbox, mount_label)
            .await?;
        failpoint::hit("create:prepared")?;
        let made = Instant::now();
        let security = &config.security;
        let user = user::resolve(&rootfs, image_user(image), security)
            .map_err(|error| invalid(&config, &error))?;
        check_mapped(&config, &user, sandbox.config.user_namespace)?;
        let mut cgroup = self.cgroup_path(sandbox.config.cgroup_parent.as_deref(), &id.to_string());
        let mut source = self.source(&id, sandbox, &config, found, &user, &cgroup)?;
        self.base.apply(&mut source.spec);
        devices
            .apply(&mut source.spec)
            .map_err(|error| Error::InvalidArgument(cdi_failed(&config, "CDI_devices", &error)))?;
        // Until it is in the tables no plugin is synchronized.
        let gate = self.nri.gate().await;
        let new = Newcomer {
            id: &id,
            sandbox,
            config: &config,
            image,
            request: &request,
        };
        let adjusted = self.ask_plugins(&new, &mut source, told).await?;
        cgroup = adjusted.cgroup.unwrap_or(cgroup);
        source.net_devices = net_devices::find(sandbox, &config, &source)?;
        if hooks::any(&source.spec) {
            let bundle = self.paths.bundle(&id);
            if source.in_user_namespace() && hooks::in_sight(&source.spec) {
                source.cover = Some(super::hooks::cover(&bundle));
            }
            source.bundle = Some(bundle);
        }
        let compiled = plan::compile_container(&source, &self.host)
            .map_err(|error| invalid(&config, &error))?;
        if let Some(labels) = labels {
            self.relabel(labels, &config, sandbox).await?;
        }
        let record = Record {
            id,
            sandbox: sandbox.id,
            request,
            image_id: image.id,
            image_ref: image
                .digests
                .first()
                .cloned()
                .unwrap_or_else(|| image.id.to_string()),
            layers: image.layers.clone(),
            created_at: crate::node::now(),
            log_path: log_path(sandbox, &config),
            stop_signal: config
                .stop_signal
                .unwrap_or_else(|| image_stop_signal(image)),
            user,
            cgroup,
            source,
            limits: None,
            exited: None,
            removing: false,
        };
        let resolved = Instant::now();
        let pid_namespace = compiled.pid_namespace;
        let state = State::Created(Prepared {
            rootfs: Some(rootfs.into()),
            compiled: Arc::new(compiled),
        });
        let container = Arc::new(Container::new(record, config, pid_namespace, state));
        if let Some(limits) = adjusted.limits {
            container.set_limits(limits);
        }
        container.timeline.note_span("rootfs", start, made - start);
        container
            .timeline
            .note_span("spec and plan", made, resolved - made);
        self.write_container(&container)?;
        failpoint::hit("create:recorded")?;
        self.enter_container(&container, sandbox)?;
        drop(gate);
        self.announce_container(EventKind::Created, &container);
        container.timeline.note("record", resolved);
        self.nri.carry_out(adjusted.wanted).await;
        let told = self.tell_of_container(Event::PostCreateContainer, &container);
        if let Err(error) = told.await {
            tracing::warn!(container.id = %id, %error, "creation of a container");
        }
        Ok(id)
    }

    /// From here on a container is found.
    fn enter_container(&self, container: &Arc<Container>, sandbox: &Sandbox) -> Result<(), Error> {
        // Under the sandbox's lock: a sandbox that stops meanwhile either sees this container or refuses it.
        let state = sandbox.lock();
        if !matches!(&*state, sandbox::State::Ready(_)) {
            return Err(Error::FailedPrecondition(format!(
                "sandbox {} was stopped meanwhile",
                sandbox.id
            )));
        }
        self.insert_container(container);
        Ok(())
    }

    /// The OCI spec of a container and what goes with it.
    fn source(
        &self,
        id: &ContainerId,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        found: &Found,
        user: &User,
        cgroup_path: &str,
    ) -> Result<Source, Error> {
        let (hosts, hostname, resolv_conf) = files::paths(&self.paths.sandbox(&sandbox.id));
        let Found { images, labels, .. } = found;
        let text = |label: &Label| label.to_string();
        let process_label = labels.as_ref().and_then(|labels| labels.process.as_ref());
        let process_label = process_label.map(text);
        let mount_label = labels.as_ref().map(|labels| text(&labels.mount));
        let input = ContainerInput {
            id,
            sandbox: &sandbox.config,
            config,
            image: &images.own.config,
            image_volumes: &images.volumes,
            user,
            cgroup_path,
            files: SandboxFiles {
                hosts,
                hostname,
                resolv_conf,
            },
            process_label: process_label.as_deref(),
            mount_label: mount_label.as_deref(),
            host: &self.host,
        };
        oci::build(&input).map_err(|error| invalid(config, &error))
    }

    /// Makes the overlay of a container that has never run.
    pub(crate) async fn make_rootfs(
        &self,
        id: &ContainerId,
        layers: &[LayerId],
        sandbox: &Sandbox,
        label: Option<&str>,
    ) -> Result<RootFd, Error> {
        let dir = self.paths.container(id);
        let at = |doing: &str| format!("{doing} of container {id}");
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        let layers = self.images.layer_dirs(layers);
        let user = sandbox.config.user_namespace;
        let made = crate::node::make_root_dir(&upper, layers.last().map(PathBuf::as_path), user)
            .and_then(|()| crate::node::make_dir(&work))
            .and_then(|()| match user {
                Some(user) => {
                    let (uid, gid) = (user.uids.host, user.gids.host);
                    std::os::unix::fs::chown(&work, Some(uid), Some(gid))
                }
                None => Ok(()),
            });
        made.map_err(Error::at(at("make the writable layer")))?;
        let overlay = Overlay {
            layers,
            upper,
            work,
            volatile: true,
            user_namespace: sandbox.user_namespace()?,
            label: label.map(str::to_owned),
        };
        let rootfs = self
            .builder
            .overlay(overlay)
            .await
            .map_err(Error::at(at("make the rootfs")))?;
        Ok(RootFd::from(rootfs))
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
struct Found {
    images: Images,
    devices: cdi::Edits,
    labels: Option<ContainerLabels>,
}

fn cdi_failed(config: &ContainerConfig, field: &str, why: &dyn std::fmt::Display) -> String {
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

fn invalid(config: &ContainerConfig, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::InvalidArgument(format!(
        "container {:?}: {}",
        config.name.name,
        crate::error::chain(error)
    ))
}

/// Who is not in the pod's user namespace cannot run in it.
fn check_mapped(
    config: &ContainerConfig,
    user: &User,
    namespace: Option<UserNamespace>,
) -> Result<(), Error> {
    let Some(namespace) = namespace else {
        return Ok(());
    };
    let check = |what: &str, id: u32, ids: IdMap| match ids.to_host(id) {
        Some(_) => Ok(()),
        None => Err(Error::InvalidArgument(format!(
            "container {:?}: {what} {id} is not in the pod's user namespace, which has {}",
            config.name.name, ids.count
        ))),
    };
    check("user", user.uid, namespace.uids)?;
    check("group", user.gid, namespace.gids)?;
    let mut groups = user.groups.iter();
    groups.try_for_each(|group| check("supplementary group", *group, namespace.gids))
}

fn image_user(image: &Image) -> &str {
    image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.user().as_deref())
        .unwrap_or_default()
}

/// The image's stop signal; SIGTERM if it names none, or one that does not exist.
fn image_stop_signal(image: &Image) -> i32 {
    let config = image.config.config().as_ref();
    let name = config.and_then(|config| config.stop_signal().as_deref());
    name.and_then(signal::parse).unwrap_or(libc::SIGTERM)
}

fn log_path(sandbox: &Sandbox, config: &ContainerConfig) -> Option<PathBuf> {
    let directory = sandbox.config.log_directory.as_ref()?;
    Some(directory.join(config.log_path.as_ref()?))
}
