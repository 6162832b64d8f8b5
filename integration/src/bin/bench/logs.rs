//! How fast a container's output reaches its log, and what that costs.
//!
//! The writer is this program itself, in a container that sees the host's libraries: so every byte that it
//! writes is known, and the time runs from its start until it has exited and the last byte is in the log.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use carpel_api::cri::{ContainerConfig, ContainerState, ContainerStatusRequest, Mount};

use crate::cycle::Peer;
use crate::usage;

/// A line with its end, in bytes.
const LINE: usize = 100;
/// A log that has not grown for so long is at its end.
const QUIET: Duration = Duration::from_millis(300);

/// What a flood of log lines cost.
pub struct Flood {
    pub mib_per_second: f64,
    /// Processor time of the runtime for each GiB of lines.
    pub seconds_per_gib: f64,
}

/// The writer's side: `bytes` of lines, `block` at a time.
pub fn write(block: usize, bytes: usize) -> Result<()> {
    let mut line = [b'x'; LINE];
    line[LINE - 1] = b'\n';
    // A block may end within a line: the next goes on with it.
    let lines = line.repeat(block.div_ceil(LINE) + 1);
    // Without a buffer in between.
    let mut stdout = std::fs::File::from(rustix::io::dup(rustix::stdio::stdout())?);
    let mut written = 0;
    while written < bytes {
        let from = written % LINE;
        let length = block.min(bytes - written);
        stdout.write_all(&lines[from..from + length])?;
        written += length;
    }
    Ok(())
}

/// Has a container write `bytes` of lines, `block` at a time.
pub async fn measure(peer: &Peer, block: usize, bytes: usize) -> Result<Flood> {
    let bytes = bytes / LINE * LINE;
    let dir = tempfile::Builder::new()
        .prefix("carpel-bench-logs-")
        .tempdir()?;
    let program = std::env::current_exe().context("this program")?;
    let mount = |host: &str, container: &str| Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        readonly: true,
        ..Mount::default()
    };
    let config = ContainerConfig {
        command: vec![
            "/bench".to_owned(),
            format!("--write-lines={block},{bytes}"),
        ],
        mounts: vec![
            mount(&program.display().to_string(), "/bench"),
            mount("/lib", "/lib"),
            mount("/lib64", "/lib64"),
            mount("/usr/lib", "/usr/lib"),
        ],
        log_path: "writer.log".to_owned(),
        ..peer.container_config("writer")
    };
    let logs = dir.path().display().to_string();
    let pod = peer.empty_pod(|pod| pod.log_directory = logs).await?;
    let container = peer.create(&pod, config).await?;
    let before = usage::processor_time(peer.processes())?;
    let start = Instant::now();
    peer.start_container(&container).await?;
    wait_exit(peer, &container).await?;
    let end = wait_log(&dir.path().join("writer.log"), bytes / LINE).await?;
    let elapsed = end.duration_since(start);
    let used = usage::processor_time(peer.processes())?.saturating_sub(before);
    peer.remove(&pod).await?;
    let mib = bytes as f64 / f64::from(1 << 20);
    Ok(Flood {
        mib_per_second: mib / elapsed.as_secs_f64(),
        seconds_per_gib: used.as_secs_f64() * 1024.0 / mib,
    })
}

async fn wait_exit(peer: &Peer, container: &str) -> Result<()> {
    loop {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        let answer = peer.runtime().container_status(request).await?;
        let status = answer.into_inner().status.context("a status")?;
        if status.state() == ContainerState::ContainerExited {
            ensure!(status.exit_code == 0, "the writer ended with {status:?}");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// When the log came to its end. Some runtimes tell of an exit before they have written all lines.
async fn wait_log(log: &Path, lines: usize) -> Result<Instant> {
    let (mut length, mut grown) = (0, Instant::now());
    while grown.elapsed() < QUIET {
        let now = std::fs::metadata(log)?.len();
        if now > length {
            (length, grown) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut reader = std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(log)?);
    let mut found = 0;
    loop {
        let part = reader.fill_buf()?;
        if part.is_empty() {
            break;
        }
        found += part.iter().filter(|byte| **byte == b'\n').count();
        let length = part.len();
        reader.consume(length);
    }
    // Lines that were split count more than once.
    ensure!(found >= lines, "{found} of {lines} lines are in the log");
    Ok(grown)
}
