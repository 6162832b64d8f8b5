//! Work that is given up when nobody waits for it any more.
//!
//! As in [`super::work`], equal requests share one task. But what they ask for is of use to them only: when the last of
//! them leaves, the task is told to end, and undoes what it did. A request that comes then begins anew.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio_util::sync::CancellationToken;

use super::work::panicked;
use crate::error::Error;

/// The tasks of one kind that are under way. `P`: what all who wait may look at.
pub struct Joint<K, P, T>(Arc<Mutex<HashMap<K, Task<P, T>>>>);

struct Task<P, T> {
    waiters: usize,
    /// Tells it from a later one of the same key.
    progress: Arc<P>,
    cancel: CancellationToken,
    outcome: Shared<BoxFuture<'static, Result<T, Error>>>,
}

/// Somebody who waits. Dropped, he waits no more.
pub struct Waiter<K: Eq + Hash, P, T> {
    tasks: Joint<K, P, T>,
    key: K,
    progress: Arc<P>,
    outcome: Shared<BoxFuture<'static, Result<T, Error>>>,
}

impl<K, P, T> Default for Joint<K, P, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, P, T> Clone for Joint<K, P, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, P, T> Joint<K, P, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Task<P, T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, P, T> Joint<K, P, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    P: Default + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work on `key`, or begins it. The work is told by its token when it is to end; it is never dropped.
    pub fn join<F>(
        &self,
        key: K,
        begin: impl FnOnce(Arc<P>, CancellationToken) -> F,
    ) -> Waiter<K, P, T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut tasks = self.lock();
        let task = tasks.entry(key.clone()).or_insert_with(|| {
            let (progress, cancel) = (Arc::new(P::default()), CancellationToken::new());
            let work = begin(Arc::clone(&progress), cancel.clone());
            let outcome = self.spawn(key.clone(), Arc::clone(&progress), work);
            Task {
                waiters: 0,
                progress,
                cancel,
                outcome,
            }
        });
        task.waiters += 1;
        Waiter {
            tasks: self.clone(),
            key,
            progress: Arc::clone(&task.progress),
            outcome: task.outcome.clone(),
        }
    }

    fn spawn<F>(
        &self,
        key: K,
        progress: Arc<P>,
        work: F,
    ) -> Shared<BoxFuture<'static, Result<T, Error>>>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let tasks = self.clone();
        let task = tokio::spawn(tracing::Instrument::in_current_span(async move {
            let result = AssertUnwindSafe(work).catch_unwind().await;
            tasks.forget(&key, &progress);
            result.unwrap_or_else(|panic| Err(Error::Internal(panicked(&*panic))))
        }));
        task.map(|joined| joined.unwrap_or_else(|error| Err(Error::Internal(error.to_string()))))
            .boxed()
            .shared()
    }
}

impl<K: Eq + Hash, P, T> Joint<K, P, T> {
    fn forget(&self, key: &K, progress: &Arc<P>) {
        let mut tasks = self.lock();
        if tasks
            .get(key)
            .is_some_and(|task| Arc::ptr_eq(&task.progress, progress))
        {
            tasks.remove(key);
        }
    }
}

impl<K: Eq + Hash, P, T: Clone> Waiter<K, P, T> {
    /// How far the work is.
    pub fn progress(&self) -> &P {
        &self.progress
    }

    /// Waits for the end. May be called again.
    ///
    /// # Errors
    /// The work's own; [`Error::Internal`] if it panicked.
    pub async fn outcome(&self) -> Result<T, Error> {
        self.outcome.clone().await
    }
}

impl<K: Eq + Hash, P, T> Drop for Waiter<K, P, T> {
    fn drop(&mut self) {
        let mut tasks = self.tasks.lock();
        let Some(task) = tasks.get_mut(&self.key) else {
            return;
        };
        if !Arc::ptr_eq(&task.progress, &self.progress) {
            return;
        }
        task.waiters -= 1;
        if task.waiters == 0 {
            task.cancel.cancel();
            tasks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Nothing;

    static BEGUN: AtomicU32 = AtomicU32::new(0);

    async fn until_cancelled(_: Arc<Nothing>, cancel: CancellationToken) -> Result<u32, Error> {
        let number = BEGUN.fetch_add(1, Ordering::SeqCst);
        cancel.cancelled().await;
        Ok(number)
    }

    #[tokio::test]
    async fn the_last_to_leave_ends_the_work_and_a_later_one_begins_anew() {
        let joint: Joint<&str, Nothing, u32> = Joint::default();
        let one = joint.join("a", until_cancelled);
        let two = joint.join("a", until_cancelled);
        let outcome = one.outcome.clone();
        drop(one);
        assert!(outcome.clone().now_or_never().is_none());
        drop(two);
        let three = joint.join("a", until_cancelled);
        assert_eq!(outcome.await, Ok(0));
        // The end of the first does not take the second away.
        tokio::task::yield_now().await;
        assert!(Arc::ptr_eq(&joint.lock()["a"].progress, &three.progress));
        let outcome = three.outcome.clone();
        drop(three);
        assert_eq!(outcome.await, Ok(1));
        assert!(joint.lock().is_empty());
    }

    #[tokio::test]
    async fn work_that_ends_is_forgotten_and_a_panic_costs_those_who_wait() {
        let joint: Joint<&str, Nothing, u32> = Joint::default();
        let waiter = joint.join("a", |_, _| async { Ok(7) });
        assert_eq!(waiter.outcome().await, Ok(7));
        assert!(joint.lock().is_empty());
        let waiter = joint.join("a", |_, _| async { panic!("boom") });
        let Err(Error::Internal(text)) = waiter.outcome().await else {
            panic!("no panic");
        };
        assert!(text.contains("boom"), "{text}");
    }
}
