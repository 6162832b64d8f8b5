//! One operation at a time for each sandbox; different sandboxes do not meet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::SandboxId;

/// The sandboxes that are being worked on or waited for.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<SandboxId, Arc<tokio::sync::Mutex<()>>>>);

/// The right to work on a sandbox, or to wait for it.
#[derive(Debug)]
pub(super) struct Held<'a> {
    locks: &'a Locks,
    sandbox: SandboxId,
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits until nobody works on `sandbox`.
    pub(super) async fn lock(&self, sandbox: SandboxId) -> Held<'_> {
        let mut held = Held {
            locks: self,
            sandbox,
            guard: None,
        };
        let lock = Arc::clone(self.map().entry(sandbox).or_default());
        held.guard = Some(lock.lock_owned().await);
        held
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut map = self.locks.map();
        self.guard = None;
        // The map's own reference is the last one: nobody waits.
        if map
            .get(&self.sandbox)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            map.remove(&self.sandbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_stays() {
        let locks = Locks::default();
        let (a, b) = (SandboxId::random(), SandboxId::random());
        let first = locks.lock(a).await;
        let _other = locks.lock(b).await;
        let waits = tokio::time::timeout(Duration::from_millis(10), locks.lock(a)).await;
        assert!(waits.is_err());
        drop(first);
        drop(locks.lock(a).await);
        assert_eq!(locks.map().len(), 1);
    }
}
