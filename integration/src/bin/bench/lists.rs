//! How long lists and figures take while many containers are there.

use anyhow::Result;
use carpel_api::cri::{
    ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest,
    ListPodSandboxStatsRequest,
};

use crate::cycle::{Peer, Samples, timed};

/// Containers in a pod.
const PER_POD: u32 = 50;
/// Calls of each kind.
const CALLS: usize = 30;

/// Starts `count` containers, calls each list, and removes them.
pub async fn measure(peer: &Peer, count: u32) -> Result<Samples> {
    let pods = peer.fill(count, PER_POD).await?;
    let mut samples = Samples::default();
    let called = call(peer, count, &mut samples).await;
    for pod in pods {
        peer.remove(&pod).await?;
    }
    called.map(|()| samples)
}

async fn call(peer: &Peer, count: u32, samples: &mut Samples) -> Result<()> {
    let mut client = peer.runtime();
    for _ in 0..CALLS {
        let call = client.list_pod_sandbox(ListPodSandboxRequest::default());
        timed(samples, "ListPodSandbox", call).await?;
        let call = client.list_containers(ListContainersRequest::default());
        let listed = timed(samples, "ListContainers", call).await?.into_inner();
        let listed = listed.containers.len();
        anyhow::ensure!(listed >= count as usize, "{listed} of {count} containers");
        let call = client.list_container_stats(ListContainerStatsRequest::default());
        let figures = timed(samples, "ListContainerStats", call).await?;
        let figures = figures.into_inner().stats.len();
        anyhow::ensure!(figures >= count as usize, "figures of {figures} of {count}");
    }
    for _ in 0..CALLS {
        let call = client.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default());
        if let Err(error) = timed(samples, "ListPodSandboxStats", call).await {
            // containerd 1.6 wants a cgroup parent for that, which not every node has.
            eprintln!("{}: {error}", peer.name);
            break;
        }
    }
    Ok(())
}
