//! Where the time of a pod's start went: named spans, kept with the pod so that it can be explained later.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

/// A span, in microseconds since the request arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    pub name: String,
    pub start_us: u64,
    pub duration_us: u64,
}

/// The spans of one request. Cheap: a handful of spans behind a lock that nobody else wants.
#[derive(Debug)]
pub struct Timeline {
    origin: Instant,
    spans: Mutex<Vec<Span>>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            spans: Mutex::default(),
        }
    }
}

impl Timeline {
    /// Notes that `name` took from `start` until now.
    pub fn note(&self, name: impl Into<String>, start: Instant) {
        self.note_span(name, start, start.elapsed());
    }

    /// Notes that `name` began at `start` and took `duration`.
    pub fn note_span(&self, name: impl Into<String>, start: Instant, duration: Duration) {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let span = Span {
            name: name.into(),
            start_us: micros(start.saturating_duration_since(self.origin)),
            duration_us: micros(duration),
        };
        self.lock().push(span);
    }

    /// The spans so far, in the order of their end.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Span>> {
        self.spans
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
