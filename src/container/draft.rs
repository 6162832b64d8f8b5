//! A container that is being created, from its folder to its place in the tables.
//!
//! ```text
//!  furnish ──▶ draft ──▶ adjust ──▶ enter
//!  root        spec      plugins,    record, tables
//!              of the    then the
//!              request   Plan
//! ```
//!
//! What fails leaves its folder behind, which whoever called removes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::create::{Found, cdi_failed, invalid};
use super::{Container, Limits, Prepared, Record, State, net_devices};
use crate::error::Error;
use crate::failpoint;
use crate::ids::ContainerId;
use crate::image::Image;
use crate::node::{Adjusted, Newcomer, Node};
use crate::nri::Subject;
use crate::sandbox::{self, Sandbox, files};
use crate::selinux::Label;
use crate::spec::config::{ContainerConfig, IdMap, UserNamespace};
use crate::spec::hooks;
use crate::spec::oci::{self, ContainerInput, SandboxFiles, Source};
use crate::spec::plan::{self, Compiled};
use crate::spec::signal;
use crate::spec::user::{self, User};
use crate::store::RootFd;
use crate::store::layers::LayerId;
use crate::store::rootfs::Overlay;

/// A container that is not on record yet.
pub(super) struct Draft {
    id: ContainerId,
    pub(super) config: ContainerConfig,
    request: Vec<u8>,
    rootfs: RootFd,
    user: User,
    cgroup: String,
    pub(super) source: Source,
}

impl Draft {
    pub(super) fn newcomer<'a>(&'a self, sandbox: &'a Sandbox, image: &'a Image) -> Newcomer<'a> {
        Newcomer {
            id: &self.id,
            sandbox,
            config: &self.config,
            image,
            request: &self.request,
        }
    }
}

impl Node {
    /// Makes what a container is run from: its folder and its root. Its image volumes are only tried.
    pub(super) async fn furnish(
        &self,
        id: &ContainerId,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        found: &Found,
    ) -> Result<RootFd, Error> {
        let Found { images, labels, .. } = found;
        let mount_label = labels.as_ref().map(|labels| labels.mount.to_string());
        let mount_label = mount_label.as_deref();
        let dir = self.paths.container(id);
        crate::node::make_dir(&dir)
            .map_err(Error::at(format!("make the folder of container {id}")))?;
        let rootfs = self.make_rootfs(id, &images.own.layers, sandbox, mount_label);
        let rootfs = rootfs.await?;
        self.try_image_volumes(config, &images.volumes, sandbox, mount_label)
            .await?;
        failpoint::hit("create:prepared")?;
        Ok(rootfs)
    }

    /// Says what a container is to be, as the request, its image, its devices and the node's operator want it.
    pub(super) fn draft(
        &self,
        id: ContainerId,
        sandbox: &Sandbox,
        config: ContainerConfig,
        request: Vec<u8>,
        found: &Found,
        rootfs: RootFd,
    ) -> Result<Draft, Error> {
        let image = &found.images.own;
        let user = user::resolve(&rootfs, image_user(image), &config.security)
            .map_err(|error| invalid(&config, &error))?;
        check_mapped(&config, &user, sandbox.config.user_namespace)?;
        let cgroup = self.cgroup_path(sandbox.config.cgroup_parent.as_deref(), &id.to_string());
        let mut source = self.source(&id, sandbox, &config, found, &user, &cgroup)?;
        self.base.apply(&mut source.spec);
        found
            .devices
            .apply(&mut source.spec)
            .map_err(|error| Error::InvalidArgument(cdi_failed(&config, "CDI_devices", &error)))?;
        Ok(Draft {
            id,
            config,
            request,
            rootfs,
            user,
            cgroup,
            source,
        })
    }

    /// Lets plugins change a draft, and compiles what comes of it.
    pub(super) async fn adjust(
        &self,
        draft: &mut Draft,
        sandbox: &Sandbox,
        image: &Image,
        told: Option<&Subject>,
    ) -> Result<(Compiled, Adjusted), Error> {
        let mut adjusted = Adjusted::default();
        if let Some(subject) = told {
            let new = Newcomer {
                id: &draft.id,
                sandbox,
                config: &draft.config,
                image,
                request: &draft.request,
            };
            adjusted = self.ask_plugins(&new, subject, &mut draft.source).await?;
        }
        if let Some(cgroup) = adjusted.cgroup.take() {
            draft.cgroup = cgroup;
        }
        let source = &mut draft.source;
        source.net_devices = net_devices::find(sandbox, &draft.config, source)?;
        if hooks::any(&source.spec) {
            let bundle = self.paths.bundle(&draft.id);
            if source.in_user_namespace() && hooks::in_sight(&source.spec) {
                source.cover = Some(super::hooks::cover(&bundle));
            }
            source.bundle = Some(bundle);
        }
        let compiled = plan::compile_container(source, &self.host)
            .map_err(|error| invalid(&draft.config, &error))?;
        Ok((compiled, adjusted))
    }

    /// Puts a container on record and into the tables. `spans`: when it was begun, and when its root was there.
    pub(super) fn enter(
        &self,
        draft: Draft,
        sandbox: &Sandbox,
        image: &Image,
        compiled: Compiled,
        limits: Option<Limits>,
        (start, furnished): (Instant, Instant),
    ) -> Result<Arc<Container>, Error> {
        let Draft {
            id,
            config,
            request,
            rootfs,
            user,
            cgroup,
            source,
        } = draft;
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
        if let Some(limits) = limits {
            container.set_limits(limits);
        }
        let timeline = &container.timeline;
        timeline.note_span("rootfs", start, furnished - start);
        timeline.note_span("spec and plan", furnished, resolved - furnished);
        self.write_container(&container)?;
        failpoint::hit("create:recorded")?;
        self.insert_ready(&container, sandbox)?;
        timeline.note("record", resolved);
        Ok(container)
    }

    /// From here on a container is found.
    fn insert_ready(&self, container: &Arc<Container>, sandbox: &Sandbox) -> Result<(), Error> {
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
