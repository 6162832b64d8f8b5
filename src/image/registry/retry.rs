//! When to try again, and for how long.

use std::time::Duration;

use super::Error;

/// Attempts without any progress in between.
const MOST_ATTEMPTS: u32 = 5;
/// Attempts in all, however much each of them brought.
const MOST_IN_ALL: u32 = 50;
const FIRST: Duration = Duration::from_millis(250);
/// A registry that asks for more is given up for now: the kubelet comes again.
const LONGEST: Duration = Duration::from_secs(20);

/// How often something has been tried.
#[derive(Debug)]
pub(super) struct Attempts {
    failures: u32,
    in_all: u32,
    /// Attempts without any progress in between.
    most: u32,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            failures: 0,
            in_all: 0,
            most: MOST_ATTEMPTS,
        }
    }
}

impl Attempts {
    /// At something that others have, too: it is given up at once, unless it has brought something.
    pub(super) fn hasty() -> Self {
        Self {
            most: 1,
            ..Self::default()
        }
    }

    /// There was progress: what comes next fails for another reason.
    pub(super) fn progress(&mut self) {
        self.failures = 0;
        self.most = self.most.max(2);
    }

    /// Waits before another attempt.
    ///
    /// # Errors
    /// The error given, if there should be none.
    pub(super) async fn failed(&mut self, error: Error) -> Result<(), Error> {
        let Some(pause) = self.pause(&error) else {
            return Err(error);
        };
        tracing::debug!(%error, ?pause, "registry is asked again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn pause(&mut self, error: &Error) -> Option<Duration> {
        self.failures += 1;
        self.in_all += 1;
        if !error.is_transient() || self.failures >= self.most || self.in_all >= MOST_IN_ALL {
            return None;
        }
        if let Error::Status {
            retry_after: Some(asked),
            ..
        } = error
        {
            return (*asked <= LONGEST).then_some(*asked);
        }
        let pause = FIRST * 2_u32.pow(self.failures - 1);
        // Those that failed together shall not come back together.
        Some(pause.mul_f64(rand::random_range(0.75..1.25)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn busy(seconds: Option<u64>) -> Error {
        let retry_after = seconds.map(Duration::from_secs);
        Error::of_status(StatusCode::TOO_MANY_REQUESTS, String::new(), retry_after)
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut attempts = Attempts::default();
        let pauses: Vec<_> = std::iter::from_fn(|| attempts.pause(&busy(None))).collect();
        assert_eq!(pauses.len(), 4);
        assert!(pauses[0] < Duration::from_millis(320), "{pauses:?}");
        assert!(pauses[3] > Duration::from_millis(1490), "{pauses:?}");
    }

    #[test]
    fn a_registry_that_says_when_is_believed_up_to_a_point() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.pause(&busy(Some(3))), Some(Duration::from_secs(3)));
        assert_eq!(attempts.pause(&busy(Some(3600))), None);
    }

    #[test]
    fn what_others_have_too_is_given_up_early() {
        let broken = || Error::Broken(String::new());
        assert_eq!(Attempts::hasty().pause(&broken()), None);
        let mut attempts = Attempts::hasty();
        attempts.progress();
        assert!(attempts.pause(&broken()).is_some());
        assert_eq!(attempts.pause(&broken()), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_progress_counts() {
        let mut attempts = Attempts::default();
        let forbidden = Error::of_status(StatusCode::FORBIDDEN, String::new(), None);
        assert_eq!(attempts.pause(&forbidden), None);
        let mut attempts = Attempts::default();
        let mut count = 0;
        while attempts.pause(&Error::Broken(String::new())).is_some() {
            attempts.progress();
            count += 1;
        }
        assert_eq!(count, MOST_IN_ALL - 1);
    }
}
