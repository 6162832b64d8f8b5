//! `make bench`: how long a pod takes and what it weighs, for any CRI runtime.
//!
//! Every peer gets the same requests in the same run, one after the other: the same image, the same network
//! configuration (it is the peers' own set-up that sees to that), the runtime's default seccomp profile,
//! warm caches. Times are of the client, so that they hold the whole way over the socket.

mod cycle;
mod lists;
mod logs;
mod pull;
mod report;
mod runtimes;
mod streams;
mod usage;

use std::time::Duration;

use anyhow::{Context, Result};
use carpel_integration::image::Packing;
use clap::{Parser, ValueEnum};

use cycle::{Peer, Samples};
use report::Report;

/// Measures CRI runtimes side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// A runtime: NAME=ENDPOINT, as carpel=unix:///run/carpel/carpel.sock. The first one is compared with
    /// the others. Without any, carpel is started from this tree and beside it the containerd at hand.
    #[arg(long = "peer", value_name = "NAME=ENDPOINT")]
    peers: Vec<String>,
    /// Processes that belong to a runtime, by the beginning of their names: NAME=PREFIX,PREFIX
    #[arg(long = "processes", value_name = "NAME=PREFIX,…")]
    processes: Vec<String>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::value_variants().to_vec())]
    parts: Vec<Part>,
    /// Image that the containers run; it must be there already, with /bin/busybox in it
    #[arg(long, default_value = runtimes::IMAGE)]
    image: String,
    /// Images that are pulled; they must not be there. Without --peer, a registry with two is started
    #[arg(long, value_name = "IMAGE", value_delimiter = ',')]
    pull: Vec<String>,
    /// Runtime handler (RuntimeClass) of the pods
    #[arg(long, default_value = "")]
    handler: String,
    /// Pods one after the other
    #[arg(long, default_value_t = 100)]
    count: u32,
    /// Pods at once in the parallel series
    #[arg(long, default_value_t = 8)]
    parallel: u32,
    /// Numbers of pods to hold while memory is read
    #[arg(long, value_delimiter = ',', default_values_t = [50, 100])]
    hold: Vec<u32>,
    /// Numbers of containers to hold while lists are called
    #[arg(long, value_delimiter = ',', default_values_t = [50, 100, 1000])]
    lists: Vec<u32>,
    /// MiB of lines that a container writes
    #[arg(long, default_value_t = 512)]
    log_mib: usize,
    /// Also write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
    /// The writer in a container: BLOCK,BYTES
    #[arg(long, hide = true, value_delimiter = ',', num_args = 1)]
    write_lines: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Pods' lives, one after the other and several at once
    Cycles,
    /// What held pods weigh
    Memory,
    /// Lists and figures with many containers
    Lists,
    /// Log lines per second
    Logs,
    /// Images from a registry
    Pull,
    /// Bytes per second of a command's output and of a forwarded port; not with --peer
    Streams,
    /// The runtime's processor time while 100 pods are idle
    Idle,
}

/// How long idle pods are watched.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_PODS: u32 = 100;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let [block, bytes] = arguments.write_lines[..] {
        return logs::write(block, bytes);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(arguments))
}

async fn measure(arguments: Arguments) -> Result<()> {
    // Held until the end: they stop when it is dropped.
    let started = if arguments.peers.is_empty() {
        usage::leave_out_present()?;
        Some(runtimes::Runtimes::start()?)
    } else {
        None
    };
    let wanted = match &started {
        Some(started) => started.peers.clone(),
        None => given(&arguments)?,
    };
    let mut peers = Vec::new();
    for (name, endpoint, processes) in wanted {
        let peer = Peer::connect(
            &name,
            &endpoint,
            &arguments.image,
            &arguments.handler,
            processes,
        )
        .await;
        peers.push(peer.with_context(|| format!("{name} at {endpoint}"))?);
    }

    let mut report = Report::new(peers.iter().map(|peer| peer.name.clone()).collect());
    let measured = parts(&arguments, started.as_ref(), &peers, &mut report).await;
    print!("{}", report.text());
    if let Some(path) = arguments.json {
        std::fs::write(&path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    measured
}

async fn parts(
    arguments: &Arguments,
    started: Option<&runtimes::Runtimes>,
    peers: &[Peer],
    report: &mut Report,
) -> Result<()> {
    for part in &arguments.parts {
        match part {
            Part::Cycles => cycles(arguments, peers, report).await?,
            Part::Memory => memory(arguments, peers, report).await?,
            Part::Lists => lists(arguments, peers, report).await?,
            Part::Logs => logs(arguments, peers, report).await?,
            Part::Pull => pulls(arguments, started, peers, report).await?,
            Part::Streams => streams(started, peers, report).await?,
            Part::Idle => idle(peers, report).await?,
        }
    }
    Ok(())
}

async fn cycles(arguments: &Arguments, peers: &[Peer], report: &mut Report) -> Result<()> {
    let (count, parallel) = (arguments.count, arguments.parallel);
    let at_once = format!("{parallel} at once");
    for (title, parallel) in [("one after the other", 1), (&at_once, parallel)] {
        for peer in peers {
            eprintln!("{}: {title}", peer.name);
            peer.series(5, 1, &mut Samples::default())
                .await
                .context("warm-up")?;
            let mut samples = Samples::default();
            let elapsed = peer.series(count, parallel, &mut samples).await?;
            report.series(title, &peer.name, &samples, Some((count, elapsed)));
        }
    }
    for peer in peers {
        let rate = peer.pods_per_second(count, parallel).await?;
        let what = format!("pods started per second, {at_once}");
        report.figure(&what, &peer.name, rate);
    }
    Ok(())
}

async fn memory(arguments: &Arguments, peers: &[Peer], report: &mut Report) -> Result<()> {
    for pods in &arguments.hold {
        for peer in peers {
            eprintln!("{}: {pods} pods held", peer.name);
            let weight = peer.hold(*pods).await?;
            report.weight(*pods, &peer.name, &weight);
        }
    }
    Ok(())
}

async fn lists(arguments: &Arguments, peers: &[Peer], report: &mut Report) -> Result<()> {
    for count in &arguments.lists {
        for peer in peers {
            eprintln!("{}: lists of {count} containers", peer.name);
            let samples = lists::measure(peer, *count).await?;
            report.series(&format!("{count} containers"), &peer.name, &samples, None);
        }
    }
    Ok(())
}

async fn logs(arguments: &Arguments, peers: &[Peer], report: &mut Report) -> Result<()> {
    for (kind, block, share) in [("blocks of 4 KiB", 4096, 1), ("single lines", 100, 4)] {
        for peer in peers {
            eprintln!("{}: log of {kind}", peer.name);
            let flood = logs::measure(peer, block, (arguments.log_mib << 20) / share).await?;
            let what = |unit: &str| format!("log, {kind}: {unit}");
            report.figure(&what("MiB/s"), &peer.name, flood.mib_per_second);
            let cost = flood.seconds_per_gib;
            report.figure(&what("CPU s per GiB"), &peer.name, cost);
        }
    }
    Ok(())
}

async fn pulls(
    arguments: &Arguments,
    started: Option<&runtimes::Runtimes>,
    peers: &[Peer],
    report: &mut Report,
) -> Result<()> {
    let (registry, images) = match started {
        Some(started) if arguments.pull.is_empty() => {
            let (registry, images) = started.registry(&[
                pull::image("gzip", Packing::Gzip)?,
                pull::image("zstd", Packing::Zstd)?,
            ]);
            (Some(registry), images)
        }
        _ => (None, arguments.pull.clone()),
    };
    for image in &images {
        for peer in peers {
            eprintln!("{}: pulls {image}", peer.name);
            let pull = pull::measure(peer, image).await?;
            let what = |unit: &str| format!("pull {image}: {unit}");
            report.figure(&what("MiB/s"), &peer.name, pull.mib_per_second);
            report.figure(&what("peak MiB"), &peer.name, pull.peak_mib);
        }
    }
    drop(registry);
    Ok(())
}

async fn streams(
    started: Option<&runtimes::Runtimes>,
    peers: &[Peer],
    report: &mut Report,
) -> Result<()> {
    let Some(started) = started else {
        eprintln!("streams are measured only with runtimes that the benchmark has started");
        return Ok(());
    };
    for peer in peers {
        eprintln!("{}: streams", peer.name);
        let rates = streams::measure(peer, started.net()).await?;
        for (way, rate) in [
            ("exec, stdout", &rates.exec),
            ("port-forward", &rates.port_forward),
        ] {
            let what = |unit: &str| format!("{way}: {unit}");
            report.figure(&what("MiB/s"), &peer.name, rate.mib_per_second);
            report.figure(&what("CPU s/GiB"), &peer.name, rate.seconds_per_gib);
        }
    }
    Ok(())
}

async fn idle(peers: &[Peer], report: &mut Report) -> Result<()> {
    for peer in peers {
        eprintln!("{}: {IDLE_PODS} idle pods", peer.name);
        let percent = peer.idle(IDLE_PODS, IDLE).await?;
        let what = format!("{IDLE_PODS} idle pods: % of a core");
        report.figure(&what, &peer.name, percent);
    }
    Ok(())
}

/// The runtimes of the command line: name, endpoint, process names.
fn given(arguments: &Arguments) -> Result<Vec<(String, String, Vec<String>)>> {
    let processes = pairs(&arguments.processes)?;
    let named = |(name, endpoint): (String, String)| {
        let of_name = processes.iter().find(|(of, _)| *of == name);
        let prefixes = of_name.map_or(name.as_str(), |(_, prefixes)| prefixes);
        let prefixes = prefixes.split(',').map(str::to_owned).collect();
        (name, endpoint, prefixes)
    };
    Ok(pairs(&arguments.peers)?.into_iter().map(named).collect())
}

fn pairs(arguments: &[String]) -> Result<Vec<(String, String)>> {
    let split = |argument: &String| {
        let pair = argument.split_once('=');
        let (name, value) = pair.with_context(|| format!("{argument:?} is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    arguments.iter().map(split).collect()
}
