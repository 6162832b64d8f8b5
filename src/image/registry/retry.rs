//! When to try again, and for how long.

use std::time::Duration;

use http::HeaderMap;
use http::header::{DATE, HeaderName, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

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
        let pause = FIRST * 2_u32.pow(self.failures - 1);
        // Those that failed together shall not come back together.
        let pause = pause.mul_f64(rand::random_range(0.75..1.25));
        match error {
            Error::Status {
                retry_after: Some(asked),
                ..
            } => (*asked <= LONGEST).then_some(pause.max(*asked)),
            _ => Some(pause),
        }
    }
}

/// How long a registry asks to be left alone: seconds, or the time until a date. A date is compared with the
/// registry's own clock, if it shows that.
pub(super) fn after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = text(DATE).and_then(date).unwrap_or_else(Timestamp::now);
    let left = date(asked)?.duration_since(now);
    // What is past asks for nothing.
    Some(Duration::try_from(left).unwrap_or_default())
}

/// A date of HTTP. The two older forms are not sent any more.
fn date(text: &str) -> Option<Timestamp> {
    DateTimeParser::new()
        .relaxed_weekday(true)
        .parse_timestamp(text)
        .ok()
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
    fn a_date_is_as_good_as_seconds() {
        let after = |headers: &[(HeaderName, &str)]| {
            let headers = headers.iter().cloned();
            let headers = headers.map(|(name, value)| (name, value.parse().unwrap()));
            super::after(&headers.collect())
        };
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(after(&[]), None);
        assert_eq!(after(&[(RETRY_AFTER, "7")]), Some(Duration::from_secs(7)));
        assert_eq!(after(&[(RETRY_AFTER, date)]), Some(Duration::ZERO));
        let own = (DATE, "Sun, 06 Nov 1994 08:49:30 GMT");
        let seven = Some(Duration::from_secs(7));
        assert_eq!(after(&[(RETRY_AFTER, date), own]), seven);
        let late = (DATE, "Sun, 06 Nov 1994 08:50:00 GMT");
        assert_eq!(after(&[(RETRY_AFTER, date), late]), Some(Duration::ZERO));
        let future = "Fri, 31 Dec 9998 23:59:59 GMT";
        assert!(after(&[(RETRY_AFTER, future)]).unwrap() > Duration::from_secs(1 << 30));
        for bad in ["", "soon", "-1", "Sun, 99 Nov 1994 08:49:37 GMT", "1.5"] {
            assert_eq!(after(&[(RETRY_AFTER, bad)]), None, "{bad:?}");
        }
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
