//! Real connections between namespaces, by threads that enter them.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Netns;

/// What should work is there long before.
const PATIENCE: Duration = Duration::from_secs(10);
/// What works or not, and is compared, is waited for so long.
const EITHER: Duration = Duration::from_millis(1500);
/// What should not work is given up.
const REFUSED: Duration = Duration::from_millis(300);

impl Netns {
    /// Does something in a thread inside the namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap()
        })
    }

    fn enter(&self) {
        let file = File::open(self.path()).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(rustix::fd::AsFd::as_fd(&file), kind).unwrap();
    }

    /// What a server answers to a TCP connection to `to`.
    pub fn tcp(&self, to: &str) -> io::Result<String> {
        self.tcp_within(to, PATIENCE)
    }

    /// Whether a TCP connection comes to nothing.
    pub fn tcp_fails(&self, to: &str) -> bool {
        self.tcp_within(to, REFUSED).is_err()
    }

    /// What a server answers, if one does.
    pub fn answer(&self, to: &str) -> Option<String> {
        self.tcp_within(to, EITHER).ok()
    }

    fn tcp_within(&self, to: &str, wait: Duration) -> io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(|| {
            let mut stream = TcpStream::connect_timeout(&to, wait)?;
            stream.set_read_timeout(Some(wait))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// A UDP socket inside, which talks to `to` only.
    pub fn udp(&self, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(|| {
            let any: IpAddr = if to.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(to).unwrap();
            socket
        })
    }
}

/// Sends a datagram and waits for the answer.
pub fn ask(socket: &UdpSocket) -> io::Result<String> {
    let mut buffer = [0; 256];
    socket.send(b"?")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A server in a namespace that tells every client its name and the address it sees.
pub struct Server {
    stop: Arc<AtomicBool>,
    listener: Option<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn tcp(netns: &Netns, name: &str, port: u16) -> Server {
        let listener = netns.inside(|| TcpListener::bind(("::", port)).unwrap());
        let (stop, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
        let (stopped, accepting) = (stop.clone(), listener.try_clone().unwrap());
        let thread = thread::spawn(move || {
            while let Ok((mut stream, peer)) = accepting.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // The client may be gone.
                let _ = write!(stream, "{name} {}", peer.ip().to_canonical());
            }
        });
        Server {
            stop,
            listener: Some(listener),
            thread: Some(thread),
        }
    }

    pub fn udp(netns: &Netns, name: &str, port: u16) -> Server {
        let socket = netns.inside(|| UdpSocket::bind(("::", port)).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let (stop, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 16];
            while !stopped.load(Ordering::SeqCst) {
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let answer = format!("{name} {}", peer.ip().to_canonical());
                    // The client may be gone.
                    let _ = socket.send_to(answer.as_bytes(), peer);
                }
            }
        });
        Server {
            stop,
            listener: None,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.listener {
            // Ends its accept.
            rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();
        }
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A neighbour of the host that knows no way back to pods: it answers only to the host's addresses,
/// 192.0.2.1 and 2001:db8::1. It has 192.0.2.2 and 2001:db8::2.
pub fn world(host: &Netns) -> Netns {
    let world = Netns::new("world");
    host.sh(&format!(
        "ip link add world type veth peer name host netns {}",
        world.name
    ));
    host.sh("ip addr add 192.0.2.1/24 dev world; ip addr add 2001:db8::1/64 dev world nodad");
    host.sh("ip link set world up; ip link set lo up");
    world.sh("ip addr add 192.0.2.2/24 dev host; ip addr add 2001:db8::2/64 dev host nodad");
    world.sh("ip link set host up; ip link set lo up");
    world
}

/// The addresses and routes of a namespace, one a line, with `link` for the name of the link that differs.
pub fn addresses_and_routes(netns: &Netns, link: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let links = netns.json("ip -j -d addr show");
    for shown in links.as_array().unwrap() {
        let name = shown["ifname"].as_str().unwrap();
        for addr in shown["addr_info"].as_array().unwrap() {
            // Link-local addresses are random, as hardware addresses are.
            if addr["scope"] != "link" {
                let (local, prefix) = (&addr["local"], &addr["prefixlen"]);
                lines.push(format!("{name} {local}/{prefix} {}", addr["scope"]));
            }
        }
    }
    for family in ["-4", "-6"] {
        for line in netns.sh(&format!("ip {family} route show")).lines() {
            if !line.contains("fe80::/64") && !line.contains("ff00::/8") {
                lines.push(line.trim().into());
            }
        }
    }
    for line in &mut lines {
        *line = line.replace(link, "LINK");
    }
    lines.sort();
    lines
}
