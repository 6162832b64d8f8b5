//! How fast bytes come out of a pod: a command's output, and a forwarded port, both over SPDY as a kubelet asks.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use carpel_api::cri::{ExecRequest, PortForwardRequest};
use carpel_integration::host::HostNet;
use carpel_integration::streams::spdy::{Command, Spdy, Stream, Wanted};

use crate::cycle::Peer;

const MIB: usize = 512;
const PORT: i32 = 9000;
/// The server needs a moment to listen.
const TRIES: usize = 50;

/// MiB per second.
pub struct Rates {
    pub exec: f64,
    pub port_forward: f64,
}

/// Has a container write [`MIB`] in both ways.
pub async fn measure(peer: &Peer, net: &HostNet) -> Result<Rates> {
    let pod = peer.empty_pod("").await?;
    let mut config = peer.container_config("writer");
    let write = format!(
        "exec /bin/busybox dd if=/dev/zero bs=64k count={} 2>/dev/null",
        MIB * 16
    );
    // Each connection gets a program of its own.
    let serve = format!("exec /bin/busybox nc -lk -p {PORT} -e /bin/sh -c '{write}'");
    config.command = ["/bin/sh", "-c", &serve].map(str::to_owned).to_vec();
    let container = peer.create(&pod, config).await?;
    peer.start_container(&container).await?;
    let exec = exec(peer, net, &container, &write).await;
    let port_forward = port_forward(peer, net, pod.id()).await;
    peer.remove(&pod).await?;
    Ok(Rates {
        exec: exec?,
        port_forward: port_forward?,
    })
}

async fn exec(peer: &Peer, net: &HostNet, container: &str, script: &str) -> Result<f64> {
    let request = ExecRequest {
        container_id: container.to_owned(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    };
    let url = peer.runtime().exec(request).await?.into_inner().url;
    let start = Instant::now();
    let mut command = Command::connect(net, &url, &["v4.channel.k8s.io"], Wanted::OUTPUT).await;
    let stdout = command.stdout.as_mut().context("a stream for stdout")?;
    read(stdout, start).await
}

async fn port_forward(peer: &Peer, net: &HostNet, pod: &str) -> Result<f64> {
    for _ in 0..TRIES {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: vec![PORT],
        };
        let url = peer.runtime().port_forward(request).await?.into_inner().url;
        let start = Instant::now();
        let mut spdy = Spdy::connect(net, &url, &["portforward.k8s.io"])
            .await
            .map_err(|head| anyhow::anyhow!("{head:?}"))?;
        let port = PORT.to_string();
        let port = port.as_str();
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", "0")];
        let opened = |end| anyhow::anyhow!("a stream ended with {end:?}");
        let _error = spdy.open(&headers("error")).await.map_err(opened)?;
        let mut data = spdy.open(&headers("data")).await.map_err(opened)?;
        if let Ok(rate) = read(&mut data, start).await {
            return Ok(rate);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("port {PORT} of the pod gives less than it has")
}

/// Reads a stream to its end.
async fn read(stream: &mut Stream, start: Instant) -> Result<f64> {
    let mut read = 0;
    while let Ok(bytes) = stream.next().await {
        read += bytes.len();
        if read >= MIB << 20 {
            break;
        }
    }
    let elapsed = start.elapsed();
    ensure!(read >= MIB << 20, "{read} bytes of {MIB} MiB came");
    Ok(MIB as f64 / elapsed.as_secs_f64())
}
