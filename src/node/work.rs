//! Work that outlives whoever asked for it.
//!
//! A piece of work is a task of its own, keyed by the object's name. A cancelled RPC drops only the
//! waiter; a repeated request joins the work that is under way instead of starting it twice.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use crate::error::Error;

type Running<T> = Shared<BoxFuture<'static, Result<T, Error>>>;

/// The pieces of one kind of work that are under way.
pub struct Work<K, T> {
    running: Arc<Mutex<HashMap<K, Running<T>>>>,
}

impl<K, T> Default for Work<K, T> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K, T> Work<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the work on `key`, or begins it.
    ///
    /// # Errors
    /// The work's own; [`Error::Internal`] if it panicked.
    pub async fn join<F>(&self, key: K, begin: impl FnOnce() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let waiter = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&key) {
                Some(work) => work.clone(),
                None => {
                    let work = self.spawn(key.clone(), begin());
                    running.insert(key, work.clone());
                    work
                }
            }
        };
        waiter.await
    }

    /// The entry goes when the work is done, so that a later request begins anew.
    fn spawn<F>(&self, key: K, work: F) -> Running<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let running = Arc::clone(&self.running);
        let task = tokio::spawn(tracing::Instrument::in_current_span(async move {
            let result = std::panic::AssertUnwindSafe(work).catch_unwind().await;
            running
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            result.unwrap_or_else(|panic| Err(Error::Internal(panicked(&*panic))))
        }));
        task.map(|joined| joined.unwrap_or_else(|error| Err(Error::Internal(error.to_string()))))
            .boxed()
            .shared()
    }
}

pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("bug in carpel: panic: {}", text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn a_repeated_request_joins_and_a_dropped_one_cancels_nothing() {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let work = Arc::new(Work::<&str, u32>::default());
        let body = || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(RUNS.fetch_add(1, Ordering::SeqCst))
        };
        let impatient = tokio::time::timeout(Duration::from_millis(1), work.join("a", body)).await;
        assert!(impatient.is_err());
        let (one, two) = tokio::join!(work.join("a", body), work.join("a", body));
        assert_eq!((one, two), (Ok(0), Ok(0)));
        assert_eq!(work.join("a", body).await, Ok(1));
    }

    #[tokio::test]
    async fn a_panic_costs_one_request() {
        let work = Work::<&str, u32>::default();
        let broken = work.join("a", || async { panic!("boom") }).await;
        assert_eq!(
            broken,
            Err(Error::Internal("bug in carpel: panic: boom".into()))
        );
        assert_eq!(work.join("a", || async { Ok(1) }).await, Ok(1));
    }
}
