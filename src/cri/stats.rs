//! The calls about figures.

use std::collections::HashMap;
use std::path::Path;

use carpel_api::cri;
use tonic::Status;

use super::domain::{ContainerView, Domain, SandboxView};
use super::lists::{self, Messages};
use super::status::{require_container, require_sandbox, vanished};
use super::{convert, validate};
use crate::cgroup::{MemoryUsage, Pressure, Stall, Usage};
use crate::ids::ContainerId;
use crate::stats::{ContainerFigures, DiskUsage, Figures, Interface, NetworkUsage, SandboxFigures};

// ── containers ──

pub async fn container<D: Domain>(
    domain: &D,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Status> {
    let id = validate::container_id(&request.container_id)?;
    let id = require_container(domain, &id)?;
    let gone = || vanished("container", &id);
    let view = domain.container(&id).ok_or_else(gone)?.view;
    let figures = domain.container_figures(vec![id]).await?;
    let (_, figures) = figures.into_iter().next().ok_or_else(gone)?;
    Ok(cri::ContainerStatsResponse {
        stats: Some(container_stats(domain.root(), &view, &figures)),
    })
}

pub async fn containers<D: Domain>(
    domain: &D,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Status> {
    let answer = cri::ListContainerStatsResponse {
        stats: matching_containers(domain, request.filter).await?.collect(),
    };
    lists::one_message(answer, "StreamContainerStats")
}

pub async fn stream_containers<D: Domain>(
    domain: &D,
    request: cri::StreamContainerStatsRequest,
) -> Result<Messages<cri::StreamContainerStatsResponse>, Status> {
    let stats = matching_containers(domain, request.filter).await?;
    Ok(lists::messages(stats, |container_stats| {
        cri::StreamContainerStatsResponse { container_stats }
    }))
}

/// All figures are read at once.
async fn matching_containers<D: Domain>(
    domain: &D,
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<impl Iterator<Item = cri::ContainerStats> + Send + use<D>, Status> {
    let query = validate::container_stats_query(filter)?;
    let mut views = domain.containers();
    views.retain(|view| convert::container_matches(view, &query));
    let ids = views.iter().map(|view| view.id).collect();
    let figures: HashMap<_, _> = domain.container_figures(ids).await?.into_iter().collect();
    let root = domain.root().to_owned();
    Ok(views.into_iter().filter_map(move |view| {
        let figures = figures.get(&view.id)?;
        Some(container_stats(&root, &view, figures))
    }))
}

/// One that does not run has no figures but the space that it takes. On cgroup v1 there are no pressures, so `io` is
/// absent (it holds nothing else); where swap is not accounted for, `swap` is.
fn container_stats(
    root: &Path,
    view: &ContainerView,
    all: &ContainerFigures,
) -> cri::ContainerStats {
    let figures = all.figures.as_ref();
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: view.id.to_string(),
            metadata: Some(convert::container_metadata(view)),
            labels: view.config.labels.clone(),
            annotations: view.config.annotations.clone(),
        }),
        cpu: figures.and_then(cpu),
        memory: figures.and_then(memory),
        writable_layer: all.disk.map(|disk| writable_layer(root, disk)),
        swap: figures.and_then(swap),
        io: figures.and_then(io),
    }
}

// ── sandboxes ──

pub async fn sandbox<D: Domain>(
    domain: &D,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Status> {
    let id = validate::sandbox_id(&request.pod_sandbox_id)?;
    let id = require_sandbox(domain, &id)?;
    let gone = || vanished("sandbox", &id);
    let view = domain.sandbox(&id).ok_or_else(gone)?.view;
    let figures = domain.sandbox_figures(vec![id]).await?;
    let not_ready =
        || Status::failed_precondition(format!("sandbox {id} is not ready: it has no figures"));
    let (_, figures) = figures.into_iter().next().ok_or_else(not_ready)?;
    let views = container_views(domain);
    Ok(cri::PodSandboxStatsResponse {
        stats: Some(sandbox_stats(domain.root(), &view, &figures, &views)),
    })
}

pub async fn sandboxes<D: Domain>(
    domain: &D,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Status> {
    let answer = cri::ListPodSandboxStatsResponse {
        stats: matching_sandboxes(domain, request.filter).await?.collect(),
    };
    lists::one_message(answer, "StreamPodSandboxStats")
}

pub async fn stream_sandboxes<D: Domain>(
    domain: &D,
    request: cri::StreamPodSandboxStatsRequest,
) -> Result<Messages<cri::StreamPodSandboxStatsResponse>, Status> {
    let stats = matching_sandboxes(domain, request.filter).await?;
    Ok(lists::messages(stats, |pod_sandbox_stats| {
        cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }
    }))
}

/// All figures are read at once.
async fn matching_sandboxes<D: Domain>(
    domain: &D,
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Result<impl Iterator<Item = cri::PodSandboxStats> + Send + use<D>, Status> {
    let query = validate::sandbox_stats_query(filter)?;
    let mut sandboxes = domain.sandboxes();
    sandboxes.retain(|view| convert::sandbox_matches(view, &query));
    let ids = sandboxes.iter().map(|view| view.id).collect();
    let figures: HashMap<_, _> = domain.sandbox_figures(ids).await?.into_iter().collect();
    let views = container_views(domain);
    let root = domain.root().to_owned();
    Ok(sandboxes.into_iter().filter_map(move |view| {
        let figures = figures.get(&view.id)?;
        Some(sandbox_stats(&root, &view, figures, &views))
    }))
}

fn container_views<D: Domain>(domain: &D) -> HashMap<ContainerId, ContainerView> {
    let views = domain.containers().into_iter();
    views.map(|view| (view.id, view)).collect()
}

fn sandbox_stats(
    root: &Path,
    view: &SandboxView,
    all: &SandboxFigures,
    views: &HashMap<ContainerId, ContainerView>,
) -> cri::PodSandboxStats {
    let containers = all.containers.iter().filter_map(|(id, figures)| {
        let view = views.get(id)?;
        Some(container_stats(root, view, figures))
    });
    let figures = &all.figures;
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: view.id.to_string(),
            metadata: Some(convert::sandbox_metadata(&view.config)),
            labels: view.config.labels.clone(),
            annotations: view.config.annotations.clone(),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: cpu(figures),
            memory: memory(figures),
            network: all.network.as_ref().map(network),
            process: figures.usage.pids.map(|count| cri::ProcessUsage {
                timestamp: figures.at,
                process_count: value(count),
            }),
            containers: containers.collect(),
            io: io(figures),
        }),
        // This node runs Linux.
        windows: None,
    }
}

// ── the parts ──

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn cpu(figures: &Figures) -> Option<cri::CpuUsage> {
    let cpu = figures.usage.cpu?;
    Some(cri::CpuUsage {
        timestamp: figures.at,
        usage_core_nano_seconds: value(cpu.total),
        usage_nano_cores: figures.nano_cores.and_then(value),
        psi: cpu.pressure.map(psi),
    })
}

fn memory(figures: &Figures) -> Option<cri::MemoryUsage> {
    let memory = figures.usage.memory?;
    let MemoryUsage {
        limit, working_set, ..
    } = memory;
    Some(cri::MemoryUsage {
        timestamp: figures.at,
        working_set_bytes: value(working_set),
        available_bytes: limit.and_then(|limit| value(limit.saturating_sub(working_set))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.faults),
        major_page_faults: value(memory.major_faults),
        psi: memory.pressure.map(psi),
    })
}

fn swap(figures: &Figures) -> Option<cri::SwapUsage> {
    let swap = figures.usage.swap?;
    let available = |limit: u64| limit.saturating_sub(swap.usage);
    Some(cri::SwapUsage {
        timestamp: figures.at,
        swap_available_bytes: swap.limit.map(available).and_then(value),
        swap_usage_bytes: value(swap.usage),
    })
}

fn io(figures: &Figures) -> Option<cri::IoUsage> {
    let Usage { io_pressure, .. } = figures.usage;
    io_pressure.map(|pressure| cri::IoUsage {
        timestamp: figures.at,
        psi: Some(psi(pressure)),
    })
}

/// The kernel tells totals in microseconds, the interface in nanoseconds.
fn psi(pressure: Pressure) -> cri::PsiStats {
    let data = |stall: Stall| {
        Some(cri::PsiData {
            total: stall.total.saturating_mul(1000),
            avg10: stall.avg10,
            avg60: stall.avg60,
            avg300: stall.avg300,
        })
    };
    cri::PsiStats {
        full: data(pressure.full),
        some: data(pressure.some),
    }
}

fn writable_layer(root: &Path, disk: DiskUsage) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: disk.at,
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: root.display().to_string(),
        }),
        used_bytes: value(disk.bytes),
        inodes_used: value(disk.inodes),
    }
}

fn network(usage: &NetworkUsage) -> cri::NetworkUsage {
    cri::NetworkUsage {
        timestamp: usage.at,
        default_interface: usage.main.as_ref().map(interface),
        interfaces: usage.others.iter().map(interface).collect(),
    }
}

fn interface(interface: &Interface) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.rx_bytes),
        rx_errors: value(interface.rx_errors),
        tx_bytes: value(interface.tx_bytes),
        tx_errors: value(interface.tx_errors),
    }
}
