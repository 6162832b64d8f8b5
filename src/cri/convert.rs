//! From the daemon's types to the interface's: lists and statuses.

use std::collections::BTreeMap;

use carpel_api::cri;
use prost::Message;

use super::domain::{
    ContainerDetail, ContainerState, ContainerView, ImageView, SandboxDetail, SandboxView,
};
use super::validate::{ContainerQuery, SandboxQuery};
use super::{signal, update};
use crate::spec::config::{PidScope, SandboxConfig, Scope};

/// Whether each of the wanted labels is there with just that value.
fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

// ── sandboxes ──

/// Whether a list with this filter shows the sandbox.
pub fn sandbox_matches(view: &SandboxView, query: &SandboxQuery) -> bool {
    let id = query.id.as_ref();
    id.is_none_or(|id| view.id.to_string().starts_with(id.as_str()))
        && query.state.is_none_or(|state| state == sandbox_state(view))
        && has_labels(&view.config.labels, &query.labels)
}

fn sandbox_state(view: &SandboxView) -> cri::PodSandboxState {
    if view.ready {
        cri::PodSandboxState::SandboxReady
    } else {
        cri::PodSandboxState::SandboxNotready
    }
}

pub fn sandbox_metadata(config: &SandboxConfig) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: config.name.name.clone(),
        uid: config.name.uid.clone(),
        namespace: config.name.namespace.clone(),
        attempt: config.name.attempt,
    }
}

/// A sandbox of a list.
pub fn sandbox_item(view: &SandboxView) -> cri::PodSandbox {
    cri::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(sandbox_metadata(&view.config)),
        state: sandbox_state(view).into(),
        created_at: view.created_at,
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.clone(),
        runtime_handler: view.config.runtime_handler.clone(),
    }
}

/// A sandbox in full.
pub fn sandbox_status(detail: &SandboxDetail) -> cri::PodSandboxStatus {
    let view = &detail.view;
    let mut ips = view.ips.iter().map(ToString::to_string);
    cri::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(sandbox_metadata(&view.config)),
        state: sandbox_state(view).into(),
        created_at: view.created_at,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(namespace_options(detail)),
            }),
        }),
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.clone(),
        runtime_handler: view.config.runtime_handler.clone(),
    }
}

/// The namespace options as they were sent: a kubelet that finds others makes the pod anew. If nothing was
/// sent, what that meant.
fn namespace_options(detail: &SandboxDetail) -> cri::NamespaceOption {
    let sent = cri::PodSandboxConfig::decode(&*detail.request).ok();
    let context = sent
        .and_then(|config| config.linux)
        .and_then(|linux| linux.security_context);
    if let Some(options) = context.and_then(|context| context.namespace_options) {
        return options;
    }
    let config = &detail.view.config;
    let scope = |scope: Scope| match scope {
        Scope::Pod => cri::NamespaceMode::Pod,
        Scope::Node => cri::NamespaceMode::Node,
    };
    let pid = match config.pid {
        PidScope::Pod => cri::NamespaceMode::Pod,
        PidScope::Node => cri::NamespaceMode::Node,
        PidScope::Container | PidScope::Target(_) => cri::NamespaceMode::Container,
    };
    cri::NamespaceOption {
        network: scope(config.network).into(),
        ipc: scope(config.ipc).into(),
        pid: pid.into(),
        ..Default::default()
    }
}

// ── containers ──

/// Whether a list with this filter shows the container.
pub fn container_matches(view: &ContainerView, query: &ContainerQuery) -> bool {
    let (id, sandbox) = (query.id.as_ref(), query.sandbox.as_ref());
    id.is_none_or(|id| view.id.to_string().starts_with(id.as_str()))
        && sandbox.is_none_or(|id| view.sandbox.to_string().starts_with(id.as_str()))
        && query
            .state
            .is_none_or(|state| state == container_state(&view.state))
        && has_labels(&view.config.labels, &query.labels)
}

fn container_state(state: &ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => cri::ContainerState::ContainerExited,
        ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

pub fn container_metadata(view: &ContainerView) -> cri::ContainerMetadata {
    cri::ContainerMetadata {
        name: view.config.name.name.clone(),
        attempt: view.config.name.attempt,
    }
}

/// The image by the name that a person would know: the kubelet creates containers by id and says beside
/// it what the pod's author wrote. Annotations and handler of a request's image choose what is pulled; here they would
/// say nothing of the container. Its digest is the container's own `image_ref`.
pub fn image_spec(view: &ContainerView) -> cri::ImageSpec {
    let config = &view.config;
    let by_id = config.image == view.image_id;
    let image = match config.user_specified_image.as_str() {
        written if by_id && !written.is_empty() => written,
        _ => &config.image,
    };
    cri::ImageSpec {
        image: image.to_owned(),
        user_specified_image: config.user_specified_image.clone(),
        ..Default::default()
    }
}

/// A container of a list.
pub fn container_item(view: &ContainerView) -> cri::Container {
    cri::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.sandbox.to_string(),
        metadata: Some(container_metadata(view)),
        image: Some(image_spec(view)),
        image_ref: view.image_ref.clone(),
        state: container_state(&view.state).into(),
        created_at: view.created_at,
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.clone(),
        image_id: view.image_id.clone(),
    }
}

/// A container in full.
pub fn container_status(detail: &ContainerDetail) -> cri::ContainerStatus {
    let view = &detail.view;
    let sent = cri::ContainerConfig::decode(&*detail.request).unwrap_or_default();
    let mut status = cri::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(container_metadata(view)),
        state: container_state(&view.state).into(),
        created_at: view.created_at,
        image: Some(image_spec(view)),
        image_ref: view.image_ref.clone(),
        image_id: view.image_id.clone(),
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.clone(),
        stop_signal: match sent.stop_signal() {
            cri::Signal::RuntimeDefault => signal::from_number(detail.stop_signal).into(),
            asked => asked.into(),
        },
        // As they were asked for, not as the kernel rounds them: a kubelet that resizes compares.
        resources: Some(cri::ContainerResources {
            // One that cannot be read is in no table: the daemon sets such a record aside as it starts.
            linux: update::asked(detail.limits.as_deref(), &sent).ok(),
            // This node runs Linux.
            windows: None,
        }),
        mounts: mounts(sent.mounts, &detail.image_volumes),
        log_path: detail
            .log_path
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        user: Some(cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: detail.uid.into(),
                gid: detail.gid.into(),
                supplemental_groups: detail.groups.iter().map(|&gid| gid.into()).collect(),
            }),
        }),
        ..Default::default()
    };
    match &view.state {
        ContainerState::Created | ContainerState::Unknown => {}
        ContainerState::Running { started_at } => status.started_at = *started_at,
        ContainerState::Exited {
            started_at,
            finished_at,
            exit_code,
            reason,
            message,
        } => {
            status.started_at = *started_at;
            status.finished_at = *finished_at;
            status.exit_code = *exit_code;
            status.reason.clone_from(reason);
            status.message.clone_from(message);
        }
    }
    status
}

/// The mounts as they were sent, and which image it is that a name stood for.
fn mounts(mut sent: Vec<cri::Mount>, images: &[String]) -> Vec<cri::Mount> {
    let specs = sent.iter_mut().filter_map(|mount| mount.image.as_mut());
    for (spec, id) in specs.zip(images) {
        spec.image_ref.clone_from(id);
    }
    sent
}

// ── images ──

/// An image of a list or a status. Its `spec` has no annotations: those of a manifest are not kept, and would not say
/// which manifest they are of where an image has many names.
pub fn image(view: ImageView) -> cri::Image {
    let (user, _group) = view.user.split_once(':').unwrap_or((&view.user, ""));
    let uid = user.parse::<i64>().ok();
    cri::Image {
        uid: uid.map(|value| cri::Int64Value { value }),
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        spec: Some(cri::ImageSpec {
            image: view.id.clone(),
            ..Default::default()
        }),
        id: view.id,
        repo_tags: view.tags,
        repo_digests: view.digests,
        // The interface has no image of size 0, and an image without layers has.
        size: view.size.max(1),
        pinned: view.pinned,
    }
}
