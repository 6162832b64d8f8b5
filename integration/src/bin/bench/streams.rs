//! How fast bytes come out of a pod: a command's output, and a forwarded port, both over SPDY as a kubelet asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carpel_api::cri::{ExecRequest, LinuxPodSandboxConfig, PortForwardRequest};
use carpel_integration::host::HostNet;
use carpel_integration::streams::spdy::{Command, Spdy, Stream, Wanted};

use crate::cycle::Peer;
use crate::usage;

const MIB: usize = 512;
/// Of which the median is told.
const ROUNDS: usize = 5;
const PORT: i32 = 9000;
/// The server needs a moment to listen.
const TRIES: usize = 50;

pub struct Rates {
    pub exec: Rate,
    pub port_forward: Rate,
}

/// What came out of a pod in one way.
pub struct Rate {
    pub mib_per_second: f64,
    /// Of the runtime's processes. On a busy machine it says more than the other.
    pub seconds_per_gib: f64,
}

/// Has a container write [`MIB`] in both ways.
pub async fn measure(peer: &Peer, net: &HostNet) -> Result<Rates> {
    // Where BBR is the machine's default, it paces a pod's loopback to what a runtime of any speed could pass on.
    let unpaced = BTreeMap::from([("net.ipv4.tcp_congestion_control".into(), "reno".into())]);
    let unpaced = LinuxPodSandboxConfig {
        sysctls: unpaced,
        ..LinuxPodSandboxConfig::default()
    };
    let pod = peer.empty_pod(|pod| pod.linux = Some(unpaced)).await?;
    let mut config = peer.container_config("writer");
    let write = format!(
        "exec /bin/busybox dd if=/dev/zero bs=64k count={} 2>/dev/null",
        MIB * 16
    );
    // Each connection gets a program of its own.
    let serve = format!("exec /bin/busybox nc -ll -p {PORT} -e /bin/sh -c '{write}'");
    config.command = ["/bin/sh", "-c", &serve].map(str::to_owned).to_vec();
    let container = peer.create(&pod, config).await?;
    peer.start_container(&container).await?;
    let rates = async {
        let (mut execs, mut forwards) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            execs.push(exec(peer, net, &container, &write).await?);
            forwards.push(port_forward(peer, net, pod.id()).await?);
        }
        Ok(Rates {
            exec: median(execs),
            port_forward: median(forwards),
        })
    };
    let rates = rates.await;
    peer.remove(&pod).await?;
    rates
}

fn median(mut rates: Vec<Rate>) -> Rate {
    rates.sort_by(|one, other| one.mib_per_second.total_cmp(&other.mib_per_second));
    rates.swap_remove(ROUNDS / 2)
}

async fn exec(peer: &Peer, net: &HostNet, container: &str, script: &str) -> Result<Rate> {
    let request = ExecRequest {
        container_id: container.to_owned(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    };
    let url = peer.runtime().exec(request).await?.into_inner().url;
    let (start, before) = (Instant::now(), usage::processor_time(peer.processes())?);
    let mut command = Command::connect(net, &url, &["v4.channel.k8s.io"], Wanted::OUTPUT).await;
    let stdout = command.stdout.as_mut().context("a stream for stdout")?;
    read(peer, stdout, start, before).await
}

async fn port_forward(peer: &Peer, net: &HostNet, pod: &str) -> Result<Rate> {
    for _ in 0..TRIES {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: vec![PORT],
        };
        let url = peer.runtime().port_forward(request).await?.into_inner().url;
        let (start, before) = (Instant::now(), usage::processor_time(peer.processes())?);
        let mut spdy = Spdy::connect(net, &url, &["portforward.k8s.io"])
            .await
            .map_err(|head| anyhow::anyhow!("{head:?}"))?;
        let port = PORT.to_string();
        let port = port.as_str();
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", "0")];
        let opened = |end| anyhow::anyhow!("a stream ended with {end:?}");
        let _error = spdy.open(&headers("error")).await.map_err(opened)?;
        let mut data = spdy.open(&headers("data")).await.map_err(opened)?;
        if let Ok(rate) = read(peer, &mut data, start, before).await {
            return Ok(rate);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("port {PORT} of the pod gives less than it has")
}

/// Reads [`MIB`] of a stream.
async fn read(peer: &Peer, stream: &mut Stream, start: Instant, before: Duration) -> Result<Rate> {
    let skipped = stream.skip(MIB << 20).await;
    let elapsed = start.elapsed();
    ensure!(skipped.is_ok(), "less than {MIB} MiB came");
    let used = usage::processor_time(peer.processes())?.saturating_sub(before);
    Ok(Rate {
        mib_per_second: MIB as f64 / elapsed.as_secs_f64(),
        seconds_per_gib: used.as_secs_f64() * 1024.0 / MIB as f64,
    })
}
