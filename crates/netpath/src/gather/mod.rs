//! Reads network namespaces.
//!
//! Each is entered by a thread of its own that ends afterwards: no other thread is ever anywhere else. What stays open
//! are sockets, which remain in the namespace that they were made in, so that the kernel can be asked for routes later.

mod listeners;
mod settings;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use carpel_netlink::Socket;
use carpel_netlink::netfilter::listing;
use carpel_netlink::route::{Found, Question};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Kernel;
use crate::filter::{Ruleset, nft, parse_save};
use crate::place::{Place, PlaceId, World};

/// Why a namespace cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network namespace {}: {error}", .path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error("enter the network namespace of {name}: {error}")]
    Enter { name: String, error: Errno },
    #[error("{what} of {name}: {error}")]
    Read {
        what: &'static str,
        name: String,
        error: Errno,
    },
}

/// A network namespace that was opened.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    /// What tells it from others.
    pub id: (u64, u64),
}

impl Namespace {
    /// Opens it by a file that stands for it.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || {
            let file = File::open(path)?;
            let meta = file.metadata()?;
            Ok(Self {
                id: (meta.dev(), meta.ino()),
                fd: file.into(),
            })
        };
        open().map_err(|error| Error::Open {
            path: path.to_owned(),
            error,
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The namespaces that were read, and the way back to each of them for the kernel's answers.
#[derive(Default)]
pub struct Gathered {
    pub world: World,
    namespaces: Vec<Namespace>,
    sockets: Vec<Mutex<Socket>>,
}

impl Gathered {
    /// Reads one more namespace; if it is there already its number comes back.
    ///
    /// # Errors
    /// If it cannot be entered or read.
    pub fn add(&mut self, name: &str, namespace: Namespace) -> Result<PlaceId, Error> {
        if let Some(known) = self.find(namespace.id) {
            return Ok(known);
        }
        let (place, socket) = enter(name, &namespace)?;
        let id = PlaceId(self.world.0.len());
        self.world.0.push(place);
        self.sockets.push(Mutex::new(socket));
        self.namespaces.push(namespace);
        self.introduce(id);
        Ok(id)
    }

    /// The number of a namespace that was read.
    #[must_use]
    pub fn find(&self, id: (u64, u64)) -> Option<PlaceId> {
        let at = self.namespaces.iter().position(|one| one.id == id);
        at.map(PlaceId)
    }

    /// Notes how a new namespace and the others number each other.
    fn introduce(&mut self, new: PlaceId) {
        for other in 0..self.world.0.len() {
            let other = PlaceId(other);
            for (from, to) in [(new, other), (other, new)] {
                if from == to {
                    continue;
                }
                let number = self.socket(from).number_of(self.namespaces[to.0].as_fd());
                // One that it has never met has no number, and no link leads there.
                if let Ok(Some(number)) = number {
                    self.world.0[from.0].others.insert(number, to);
                }
            }
        }
    }

    fn socket(&self, id: PlaceId) -> std::sync::MutexGuard<'_, Socket> {
        let socket = &self.sockets[id.0];
        socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a namespace of a place's links is one that another namespace stands for: by the number that the place
    /// has for it.
    #[must_use]
    pub fn number_in(&self, place: PlaceId, other: &Namespace) -> Option<i32> {
        self.socket(place).number_of(other.as_fd()).ok().flatten()
    }
}

impl Kernel for Gathered {
    fn route(&self, place: PlaceId, question: &Question) -> Result<Found, Errno> {
        self.socket(place).look_up(question)
    }
}

fn enter(name: &str, namespace: &Namespace) -> Result<(Place, Socket), Error> {
    let inside = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |error| Error::Enter {
                name: name.to_owned(),
                error,
            },
        )?;
        read(name)
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Reads the namespace that the thread is in.
fn read(name: &str) -> Result<(Place, Socket), Error> {
    let failed = |what| {
        move |error| Error::Read {
            what,
            name: name.to_owned(),
            error,
        }
    };
    let mut socket = Socket::route().map_err(failed("netlink socket"))?;
    let mut place = Place {
        name: name.to_owned(),
        links: socket.links_in_full().map_err(failed("links"))?,
        addresses: socket.all_addresses().map_err(failed("addresses"))?,
        routes: socket.all_routes().map_err(failed("routes"))?,
        neighbours: socket.neighbours().map_err(failed("neighbours"))?,
        others: HashMap::new(),
        ..Place::default()
    };
    let cautions = &mut place.cautions;
    place.forwarding = known(
        "what bridges and tunnels know of hardware addresses",
        socket.forwarding(),
        cautions,
    );
    place.memberships = known("the VLANs of bridges", socket.memberships(), cautions);
    place.disciplines = known("how links queue packets", socket.disciplines(), cautions);
    place.settings = settings::read(&place.links, cautions);
    place.listeners = listeners::read(cautions);
    place.rules = rules(&mut place.cautions);
    let unseen = unseen(&mut place.cautions);
    place.cautions.extend(unseen);
    Ok((place, socket))
}

/// What the kernel was asked for. It has none of what it was built without; what else it does not answer is told.
fn known<T>(what: &str, asked: Result<Vec<T>, Errno>, cautions: &mut Vec<String>) -> Vec<T> {
    asked.unwrap_or_else(|error| {
        if error != Errno::OPNOTSUPP {
            cautions.push(format!("{what}: cannot be read: {error}"));
        }
        Vec::new()
    })
}

/// A file below /proc/thread-self/net. There is none of what the kernel was built without; what else is not read is told.
fn text(file: &str, what: &str, cautions: &mut Vec<String>) -> String {
    text_at(Path::new("/proc/thread-self/net"), file, what, cautions)
}

fn text_at(dir: &Path, file: &str, what: &str, cautions: &mut Vec<String>) -> String {
    let path = dir.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            cautions.push(format!(
                "{what}: cannot be read: {}: {error}",
                path.display()
            ));
        }
        String::new()
    })
}

/// All rules that there are.
fn rules(cautions: &mut Vec<String>) -> Ruleset {
    let listed = Socket::netfilter().and_then(|mut socket| listing::list(&mut socket));
    let mut rules = match listed {
        Ok(listed) => nft::ruleset(listed),
        // The kernel has no packet filter.
        Err(Errno::PROTONOSUPPORT) => Ruleset::default(),
        Err(error) => {
            cautions.push(format!("the rules of nf_tables cannot be read: {error}"));
            Ruleset::default()
        }
    };
    for (is_ipv4, listing, program) in [
        (true, "ip_tables_names", "iptables-legacy-save"),
        (false, "ip6_tables_names", "ip6tables-legacy-save"),
    ] {
        let tables = text(listing, "the tables of the iptables of old", cautions);
        if tables.trim().is_empty() {
            continue;
        }
        match save(program) {
            Ok(text) => rules.extend(parse_save(&text, is_ipv4)),
            Err(why) => {
                let tables = tables.split_whitespace().collect::<Vec<_>>().join(", ");
                cautions.push(format!(
                    "there are rules of the iptables of old (tables {tables}), and they cannot be read: {program}: {why}"
                ));
            }
        }
    }
    rules
}

fn save(program: &str) -> Result<String, String> {
    let output = Command::new(program)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What has a say in where packets go and is not followed.
fn unseen(cautions: &mut Vec<String>) -> Option<String> {
    let services = text("ip_vs", "the services of IPVS", cautions);
    let mut services = services.lines().skip(3);
    let any = services.any(|line| !line.trim().is_empty());
    any.then(|| "there are IPVS services; where they lead is not followed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_and_what_is_not_there_is_none() {
        let mut cautions = Vec::new();
        assert!(known::<u8>("x", Err(Errno::OPNOTSUPP), &mut cautions).is_empty());
        assert_eq!(known("x", Ok(vec![1]), &mut cautions), [1]);
        let dir = Path::new("/proc/self");
        assert_eq!(text_at(dir, "not-there", "y", &mut cautions), "");
        assert!(!text_at(dir, "status", "y", &mut cautions).is_empty());
        assert!(cautions.is_empty(), "{cautions:?}");
        assert!(known::<u8>("x", Err(Errno::NOBUFS), &mut cautions).is_empty());
        // A folder.
        assert_eq!(text_at(dir, "task", "y", &mut cautions), "");
        assert!(
            cautions[0].starts_with("x: cannot be read: No buffer"),
            "{cautions:?}"
        );
        assert!(
            cautions[1].starts_with("y: cannot be read: /proc/self/task: "),
            "{cautions:?}"
        );
        assert_eq!(cautions.len(), 2);
    }
}
