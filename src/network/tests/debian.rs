//! Debian's plugins (containernetworking-plugins) as root, in a network namespace of the test's own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::*;
use crate::spec::config::{PortMapping, Protocol};

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Does `work` on a thread in a new network namespace, with `lo` up.
fn in_new_netns<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        run("ip", &["link", "set", "lo", "up"]);
        work()
    });
    thread.join().unwrap()
}

/// A server in the namespace at `netns` that greets so many clients.
fn greet(netns: &Path, port: u16, clients: usize) -> thread::JoinHandle<()> {
    let namespace = fs::File::open(netns).unwrap();
    let (ready, wait) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        ready.send(()).unwrap();
        for _ in 0..clients {
            listener.accept().unwrap().0.write_all(b"hello").unwrap();
        }
    });
    wait.recv().unwrap();
    server
}

fn fetch(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_pod_gets_and_loses_its_network() {
    let node = Node::new();
    let leases = node.dir.path().join("leases");
    let bridge = format!("ct{}", std::process::id());
    let ipam = json!({"type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.213.7.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}]});
    let conf = json!({"cniVersion": "1.0.0", "name": "carpel-test", "plugins": [
        {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]});
    node.conf("10-test.conflist", &conf.to_string());
    let settings = Settings {
        bin_dirs: vec!["/usr/lib/cni".into()],
        ..node.settings.clone()
    };
    let mut pod = pod();
    pod.netns = node.dir.path().join("pod");
    pod.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_port: 18080,
        host_ip: None,
    }];
    let at = pod.netns.clone();
    in_new_netns(move || netns::pin(Path::new("/proc/thread-self/ns/net"), &at)).unwrap();
    let lease = leases.join("carpel-test");
    in_new_netns(move || {
        // Subprocesses start on this thread, in its namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(live_and_die(settings, pod, &lease));
    });
}

async fn live_and_die(settings: Settings, pod: PodNetwork, leases: &Path) {
    let network = Network::open(settings).unwrap();
    assert_eq!(network.status().unwrap(), "carpel-test");
    let attachment = add(&network, &pod).await.unwrap();
    let ip = attachment.ips[0];
    assert_eq!(ip.to_string(), "10.213.7.2");
    assert!(attachment.mac.is_some());
    assert!(leases.join("10.213.7.2").exists());
    let server = greet(&pod.netns, 80, 2);
    for address in [
        SocketAddr::new(ip, 80),
        SocketAddr::from(([127, 0, 0, 1], 18080)),
    ] {
        assert_eq!(fetch(address), "hello", "{address}");
    }
    server.join().unwrap();
    let id = pod.sandbox.to_string();
    assert!(run("iptables-save", &["-t", "nat"]).contains(&id));
    network.del(&pod.sandbox).await.unwrap();
    assert!(!leases.join("10.213.7.2").exists());
    assert!(!run("iptables-save", &["-t", "nat"]).contains(&id));
    assert!(!run("ip", &["-o", "link"]).contains("veth"));

    // The namespace is gone before DEL: the address comes back all the same.
    add(&network, &pod).await.unwrap();
    netns::unpin(&pod.netns).unwrap();
    network.del(&pod.sandbox).await.unwrap();
    assert_eq!(network.cached(), []);
    let left = fs::read_dir(leases)
        .unwrap()
        .filter_map(|file| file.unwrap().file_name().into_string().ok());
    let left: Vec<_> = left.filter(|name| name.starts_with("10.")).collect();
    assert!(left.is_empty(), "{left:?}");
}
