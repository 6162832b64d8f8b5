//! What a chain of plugins costs, ours beside Debian's in the same run. Prints it; asserts only what holds
//! on a busy machine too. Needs root. CARPEL_CNI_BINARY names another binary of ours, as it is released.

mod common;

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{BINARY, DEBIAN, Netns, Node};
use serde_json::{Value, json};

const ROUNDS: usize = 25;

/// Runs one plugin from inside the host's namespace; gives back what it printed.
fn run(debian: bool, name: &str, command: &str, id: &str, pod: &Netns, config: &Value) -> Value {
    let program = if debian {
        format!("{DEBIAN}/{name}")
    } else {
        std::env::var("CARPEL_CNI_BINARY").unwrap_or_else(|_| BINARY.into())
    };
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", if debian { DEBIAN } else { "/nonexistent" })
        .env("CARPEL_CNI_PLUGIN", name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(config.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name} {command}: {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

struct Times {
    add: [Duration; 2],
    del: [Duration; 2],
}

/// portmap's configuration for two ports from `port` on.
fn portmap(port: u16) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "portmap",
        "runtimeConfig": { "portMappings": [
            { "hostPort": port, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": port + 1, "containerPort": 443, "protocol": "tcp" },
        ] },
    })
}

/// Adds and removes one pod; the times of bridge (with host-local) and portmap.
fn cycle(debian: bool, config: &Value, round: usize) -> Times {
    let pod = Netns::new("pod");
    let id = format!("pod{round}");
    let mut portmap = portmap(9000);
    let timed = |name: &str, command: &str, config: &Value| {
        let start = Instant::now();
        let said = run(debian, name, command, &id, &pod, config);
        (start.elapsed(), said)
    };
    let (bridge_add, result) = timed("bridge", "ADD", config);
    portmap["prevResult"] = result.clone();
    let (portmap_add, _) = timed("portmap", "ADD", &portmap);
    let (portmap_del, _) = timed("portmap", "DEL", &portmap);
    let mut config = config.clone();
    config["prevResult"] = result;
    let (bridge_del, _) = timed("bridge", "DEL", &config);
    Times {
        add: [bridge_add, portmap_add],
        del: [bridge_del, portmap_del],
    }
}

/// The middle of all, in microseconds.
fn median(times: impl Iterator<Item = Duration>) -> u128 {
    let mut times: Vec<_> = times.map(|time| time.as_micros()).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_chain_takes_a_fifth_of_what_debians_takes() {
    let nodes = [false, true].map(|debian| {
        let mut node = Node::new(&["10.231.0.0/16"]);
        node.config["bridge"] = json!(if debian { "br1" } else { "br0" });
        // Another pod stays, as on a node that is in use: what all share is there.
        let stays = Netns::new("stays");
        node.host.inside(|| {
            let mut portmap = portmap(8000);
            portmap["prevResult"] = run(debian, "bridge", "ADD", "stays", &stays, &node.config);
            run(debian, "portmap", "ADD", "stays", &stays, &portmap);
        });
        (debian, node, stays)
    });
    // In turns, so that what else the machine does is the same for both.
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (times, (debian, node, _)) in times.iter_mut().zip(&nodes) {
            times.push(node.host.inside(|| cycle(*debian, &node.config, round)));
        }
    }
    let middle = ["ours", "Debian's"].into_iter().zip(&times).map(|(whose, times)| {
        let of = |pick: fn(&Times) -> Duration| median(times.iter().map(pick));
        let (add, del) = (of(|t| t.add[0] + t.add[1]), of(|t| t.del[0] + t.del[1]));
        println!(
            "{whose}: ADD {add} µs (bridge {}, portmap {}), DEL {del} µs (bridge {}, portmap {})",
            of(|t| t.add[0]),
            of(|t| t.add[1]),
            of(|t| t.del[0]),
            of(|t| t.del[1])
        );
        add
    });
    let middle: Vec<_> = middle.collect();
    assert!(middle[0] * 5 <= middle[1], "{middle:?} µs");
}
