//! Machines of namespaces: a node and two pods, in which somebody listens on a port.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use carpel_netpath::gather::{Gathered, Namespace};
use carpel_netpath::packet::Protocol;
use carpel_netpath::walk::{Errand, Journey, journey};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where somebody listens in every namespace.
pub const PORT: u16 = 8080;
/// How long a connection is waited for: one that is thrown away never comes.
const PATIENCE: Duration = Duration::from_millis(500);

static VARIABLES: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Sets a variable of the shell lines to come.
pub fn set_variable(name: &str, value: &str) {
    let mut all = VARIABLES.lock().unwrap();
    all.retain(|(known, _)| known != name);
    all.push((name.to_owned(), value.to_owned()));
}

/// A node and two pods, a and b.
pub struct Machine {
    prefix: String,
    listeners: Vec<TcpListener>,
}

impl Machine {
    /// Each pod on a pair of its own, with the node's routes between.
    pub fn pairs() -> Self {
        let mut machine = Self::new();
        for (pod, addr) in [("a", 2), ("b", 3)] {
            let peer = machine.name(pod);
            machine.sh(
                "node",
                &format!(
                    "ip link add veth{pod} type veth peer name eth0 netns {peer}
                 ip addr add 10.88.0.1/32 dev veth{pod}
                 ip addr add fd88::1/128 dev veth{pod} nodad
                 ip link set veth{pod} up"
                ),
            );
            machine.sh(
                pod,
                &format!(
                    "ip addr add 10.88.0.{addr}/32 dev eth0
                 ip addr add fd88::{addr}/128 dev eth0 nodad
                 ip link set eth0 up
                 ip route add 10.88.0.1 dev eth0
                 ip route add default via 10.88.0.1
                 ip -6 route add fd88::1 dev eth0
                 ip -6 route add default via fd88::1 dev eth0"
                ),
            );
            machine.sh("node", &format!(
                "ip route add 10.88.0.{addr} dev veth{pod}; ip -6 route add fd88::{addr} dev veth{pod}"
            ));
        }
        machine.listen();
        machine
    }

    /// Both pods on a bridge.
    pub fn bridged() -> Self {
        let mut machine = Self::new();
        let line =
            "ip link add cni0 type bridge; ip addr add 10.88.0.1/16 dev cni0; ip link set cni0 up";
        machine.sh("node", line);
        for (pod, addr) in [("a", 2), ("b", 3)] {
            let peer = machine.name(pod);
            machine.sh(
                "node",
                &format!(
                    "ip link add veth{pod} type veth peer name eth0 netns {peer}
                 ip link set veth{pod} master cni0 up"
                ),
            );
            machine.sh(pod, &format!(
                "ip addr add 10.88.0.{addr}/16 dev eth0; ip link set eth0 up; ip route add default via 10.88.0.1"
            ));
            machine.sh("node", &format!("bridge link set dev veth{pod} state 3"));
        }
        machine.listen();
        machine
    }

    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let machine = Self {
            prefix: format!("carpel-netpath-{}-{next}", std::process::id()),
            listeners: Vec::new(),
        };
        for place in ["node", "a", "b"] {
            run(&format!("ip netns add {}", machine.name(place)));
            let line = "ip link set lo up; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0";
            machine.sh(place, line);
        }
        let line = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";
        machine.sh("node", line);
        machine
    }

    fn listen(&mut self) {
        for place in ["node", "a", "b"] {
            let listener = self.inside(place, || TcpListener::bind(("::", PORT)));
            self.listeners.push(listener.expect("a port"));
        }
    }

    fn name(&self, place: &str) -> String {
        format!("{}-{place}", self.prefix)
    }

    fn path(&self, place: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(place))
    }

    /// Runs a shell line in a namespace, which must succeed.
    pub fn sh(&self, place: &str, line: &str) {
        // The nft command wants an end of line before it closes what it has opened.
        let line = line.replace("; }", ";\n}").replace("} }", "}\n}");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(place), "sh", "-ec", &line]);
        for (name, value) in VARIABLES.lock().unwrap().iter() {
            command.env(name, value);
        }
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place}: {line}: {errors}");
    }

    /// Does something on a thread in a namespace.
    fn inside<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path(place)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Whether a connection comes about.
    pub fn connects(&self, from: &str, to: &str, port: u16) -> io::Result<()> {
        let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), port);
        self.inside(from, || TcpStream::connect_timeout(&to, PATIENCE).map(drop))
    }

    /// What the walk says.
    pub fn walk(&self, from: &str, to: &str, port: Option<u16>) -> Journey {
        let mut gathered = Gathered::default();
        let mut start = None;
        for place in ["node", "a", "b"] {
            let namespace = Namespace::open(&self.path(place)).unwrap();
            let id = gathered.add(place, namespace).unwrap();
            start = start.or((place == from).then_some(id));
        }
        let errand = Errand {
            from: start.unwrap(),
            to: to.parse().unwrap(),
            protocol: Protocol::Tcp,
            port,
        };
        journey(&gathered.world, &gathered, errand)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.listeners.clear();
        for place in ["node", "a", "b"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(place)])
                .status();
        }
    }
}

fn run(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
}
