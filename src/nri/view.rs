//! An OCI spec, as plugins are shown it.

use carpel_api::nri::{
    Container, Hook, Hooks, HugepageLimit, LinuxContainer, LinuxCpu, LinuxDevice, LinuxMemory,
    LinuxNamespace, LinuxNetDevice, LinuxPids, LinuxResources, Mount, OptionalFileMode,
    OptionalInt, OptionalInt64, OptionalUInt32, OptionalUInt64, PosixRlimit, User,
};
use oci_spec::runtime::{Hook as OciHook, LinuxDeviceType, Spec};

use crate::spec::config::{Ceiling, Resources};
use crate::spec::hooks::{self, Point};
use crate::spec::net_devices;

/// What a spec says of a container. The rest (who it is, how it is) is the caller's to say.
#[must_use]
pub fn container(spec: &Spec, limits: &Resources) -> Container {
    let process = spec.process().as_ref();
    let list = |list: Option<&Option<Vec<String>>>| list.cloned().flatten().unwrap_or_default();
    Container {
        annotations: spec
            .annotations()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        args: list(process.map(|process| process.args())),
        env: list(process.map(|process| process.env())),
        mounts: spec.mounts().iter().flatten().map(mount).collect(),
        hooks: Some(hooks_of(spec)),
        linux: Some(linux(spec, limits)),
        rlimits: process
            .into_iter()
            .flat_map(|process| process.rlimits().iter().flatten())
            .map(|limit| PosixRlimit {
                r#type: limit.typ().to_string(),
                hard: limit.hard(),
                soft: limit.soft(),
            })
            .collect(),
        user: process.map(|process| User {
            uid: process.user().uid(),
            gid: process.user().gid(),
            additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
        }),
        ..Container::default()
    }
}

fn mount(mount: &oci_spec::runtime::Mount) -> Mount {
    let source = mount.source().as_ref();
    Mount {
        destination: mount.destination().to_string_lossy().into_owned(),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: source
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

fn hooks_of(spec: &Spec) -> Hooks {
    // A prestart hook is one of createRuntime's.
    let of = |point| hooks::of(spec, point).into_iter().map(hook).collect();
    Hooks {
        prestart: Vec::new(),
        create_runtime: of(Point::CreateRuntime),
        create_container: of(Point::CreateContainer),
        start_container: of(Point::StartContainer),
        poststart: of(Point::Poststart),
        poststop: of(Point::Poststop),
    }
}

fn hook(hook: &OciHook) -> Hook {
    Hook {
        path: hook.path().to_string_lossy().into_owned(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().map(|value| OptionalInt { value }),
    }
}

fn linux(spec: &Spec, limits: &Resources) -> LinuxContainer {
    let score = spec
        .process()
        .as_ref()
        .and_then(|process| process.oom_score_adj());
    let Some(linux) = spec.linux() else {
        return LinuxContainer::default();
    };
    let path = linux.cgroups_path().as_ref();
    LinuxContainer {
        namespaces: linux
            .namespaces()
            .iter()
            .flatten()
            .map(|namespace| LinuxNamespace {
                r#type: namespace.typ().to_string(),
                path: namespace
                    .path()
                    .as_ref()
                    .map(|path| path.to_string_lossy().into_owned())
                    .unwrap_or_default(),
            })
            .collect(),
        devices: linux.devices().iter().flatten().map(device).collect(),
        resources: Some(resources(limits)),
        oom_score_adj: score.map(|score| OptionalInt {
            value: score.into(),
        }),
        cgroups_path: path
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        sysctl: linux
            .sysctl()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        net_devices: net_devices::of(spec)
            .into_iter()
            .map(|(host, name)| (host, LinuxNetDevice { name }))
            .collect(),
        ..LinuxContainer::default()
    }
}

fn device(device: &oci_spec::runtime::LinuxDevice) -> LinuxDevice {
    LinuxDevice {
        path: device.path().to_string_lossy().into_owned(),
        r#type: match device.typ() {
            LinuxDeviceType::B => "b",
            LinuxDeviceType::P => "p",
            LinuxDeviceType::C | LinuxDeviceType::U => "c",
            LinuxDeviceType::A => "a",
        }
        .to_owned(),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(|value| OptionalFileMode { value }),
        uid: device.uid().map(|value| OptionalUInt32 { value }),
        gid: device.gid().map(|value| OptionalUInt32 { value }),
    }
}

/// Limits. What is not limited is not there.
#[must_use]
pub fn resources(limits: &Resources) -> LinuxResources {
    let signed = |value: u64| OptionalInt64 {
        value: i64::try_from(value).unwrap_or(i64::MAX),
    };
    let unsigned = |value: Option<u64>| value.map(|value| OptionalUInt64 { value });
    let ceiling = |value: Ceiling| match value {
        Ceiling::Unlimited => -1,
        Ceiling::At(value) => i64::try_from(value).unwrap_or(i64::MAX),
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: limits.memory_limit.map(signed),
            swap: limits.memory_swap_limit.map(|limit| OptionalInt64 {
                value: ceiling(limit),
            }),
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            shares: unsigned(limits.cpu_shares),
            quota: limits.cpu_quota.map(|quota| OptionalInt64 {
                value: ceiling(quota),
            }),
            period: unsigned(limits.cpu_period),
            cpus: text(&limits.cpuset_cpus),
            mems: text(&limits.cpuset_mems),
            ..LinuxCpu::default()
        }),
        hugepage_limits: limits
            .huge_pages
            .iter()
            .map(|(size, limit)| HugepageLimit {
                page_size: size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: limits.unified.clone(),
        pids: limits.pids_limit.map(|limit| LinuxPids {
            limit: ceiling(limit),
        }),
        ..LinuxResources::default()
    }
}
