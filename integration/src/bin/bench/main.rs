//! `make bench`: how long a pod takes and what it weighs, for any CRI runtime.
//!
//! Every peer gets the same requests in the same run, one after the other: the same image, the same network
//! configuration (it is the peers' own set-up that sees to that), the runtime's default seccomp profile,
//! warm caches. Times are of the client, so that they hold the whole way over the socket.

mod cycle;
mod memory;
mod report;
mod runtimes;

use anyhow::{Context, Result};
use clap::Parser;

use cycle::{Peer, Samples};

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
    /// Image that the containers run; it must be there already, with /bin/busybox in it
    #[arg(long, default_value = runtimes::IMAGE)]
    image: String,
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
    /// Also write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // Held until the end: they stop when it is dropped.
    let started = if arguments.peers.is_empty() {
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

    let mut report = report::Report::new(peers.iter().map(|peer| peer.name.clone()).collect());
    for peer in &mut peers {
        eprintln!("{}: one after the other", peer.name);
        peer.series(5, 1, &mut Samples::default())
            .await
            .context("warm-up")?;
        let mut samples = Samples::default();
        let elapsed = peer.series(arguments.count, 1, &mut samples).await?;
        report.series(
            "one after the other",
            &peer.name,
            &samples,
            arguments.count,
            elapsed,
        );
    }
    for peer in &mut peers {
        eprintln!("{}: {} at once", peer.name, arguments.parallel);
        let mut samples = Samples::default();
        let elapsed = peer
            .series(arguments.count, arguments.parallel, &mut samples)
            .await?;
        let title = format!("{} at once", arguments.parallel);
        report.series(&title, &peer.name, &samples, arguments.count, elapsed);
    }
    for pods in &arguments.hold {
        for peer in &mut peers {
            eprintln!("{}: {pods} pods held", peer.name);
            let weight = peer.hold(*pods).await?;
            report.weight(*pods, &peer.name, &weight);
        }
    }
    print!("{}", report.text());
    if let Some(path) = arguments.json {
        std::fs::write(&path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
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
