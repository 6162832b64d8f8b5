//! What happens to sandboxes and containers, told to whoever listens.
//!
//! What must always hold: each change is announced once, by whoever made it, after it is in the tables;
//! nobody waits for a listener, and none keeps anything of a pod open. One that falls behind by more than
//! [`BACKLOG`] learns that it has, and must list anew.

use std::sync::Arc;

use tokio::sync::broadcast::{self, Receiver, Sender};

use super::Node;
use crate::container::{Container, Told};
use crate::sandbox::Sandbox;

/// How many events are kept for the slowest listener.
const BACKLOG: usize = 1024;

/// A change, and how the pod was just after it.
#[derive(Clone)]
pub struct Event {
    /// The container that changed, or the sandbox itself.
    pub object: String,
    pub kind: EventKind,
    /// Nanoseconds since the epoch.
    pub at: i64,
    pub sandbox: Arc<Sandbox>,
    pub ready: bool,
    pub containers: Vec<(Arc<Container>, Told)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Where events are announced.
pub(crate) struct Events(Sender<Arc<Event>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Node {
    /// Every event from now on.
    pub fn events(&self) -> Receiver<Arc<Event>> {
        self.events.0.subscribe()
    }

    /// Tells of a change of a container that is made. Not to be called with the lock of a state.
    pub(crate) fn announce_container(&self, kind: EventKind, container: &Container) {
        if self.events.0.receiver_count() == 0 {
            return;
        }
        // A pod that is gone has told so itself.
        if let Some(sandbox) = self.sandbox(&container.sandbox) {
            self.announce(kind, container.id.to_string(), sandbox);
        }
    }

    /// Tells of a change of a sandbox that is made. Not to be called with the lock of a state.
    pub(crate) fn announce_sandbox(&self, kind: EventKind, sandbox: &Arc<Sandbox>) {
        if self.events.0.receiver_count() > 0 {
            self.announce(kind, sandbox.id.to_string(), Arc::clone(sandbox));
        }
    }

    fn announce(&self, kind: EventKind, object: String, sandbox: Arc<Sandbox>) {
        // Before the states are read: a kubelet drops what is older than what it knows, and must not take
        // a state for newer than it is.
        let at = super::now();
        let containers = self.containers_of(&sandbox.id);
        let containers = containers.into_iter().map(|container| {
            let told = container.told();
            (container, told)
        });
        let event = Event {
            object,
            kind,
            at,
            ready: sandbox.is_ready(),
            containers: containers.collect(),
            sandbox,
        };
        // Nobody listens any more: nobody needs to know.
        let _ = self.events.0.send(Arc::new(event));
    }
}
