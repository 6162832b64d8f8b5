//! How fast a counter of CPU time runs, from one look to the next.

use std::sync::{Mutex, PoisonError};

/// Looks closer together than this, in nanoseconds, say nothing: the last rate stands.
const SHORTEST: i64 = 500_000_000;
/// A cgroup this young at the first look has its rate since its start; an older one has none yet.
const YOUNG: i64 = 60_000_000_000;

/// Remembers the last look.
#[derive(Default)]
pub(crate) struct Rate(Mutex<Option<Sample>>);

#[derive(Clone, Copy)]
struct Sample {
    /// Nanoseconds since the epoch.
    at: i64,
    /// Nanoseconds of CPU time.
    total: u64,
    rate: Option<u64>,
}

impl Rate {
    /// Notes that the counter stood at `total` at the time `at`, and returns how much it grows in a second.
    pub fn sample(&self, at: i64, total: u64, started_at: Option<i64>) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (*last).or_else(|| {
            let started_at = started_at.filter(|start| at.saturating_sub(*start) < YOUNG)?;
            Some(Sample {
                at: started_at,
                total: 0,
                rate: None,
            })
        });
        let rate = match before {
            Some(before) if at.saturating_sub(before.at) >= SHORTEST => {
                per_second(total.saturating_sub(before.total), at - before.at)
            }
            // A clock that was set back makes the last look one of the future: it begins anew.
            Some(before) if at >= before.at => return before.rate,
            _ => None,
        };
        *last = Some(Sample { at, total, rate });
        rate
    }
}

fn per_second(growth: u64, nanoseconds: i64) -> Option<u64> {
    let time = u128::try_from(nanoseconds).ok().filter(|time| *time > 0)?;
    u64::try_from(u128::from(growth) * 1_000_000_000 / time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_is_that_between_two_looks() {
        let rate = Rate::default();
        assert_eq!(rate.sample(100 * SECOND, 5_000_000_000, None), None);
        assert_eq!(
            rate.sample(102 * SECOND, 6_000_000_000, None),
            Some(500_000_000)
        );
        // Too soon to tell.
        assert_eq!(
            rate.sample(102 * SECOND + 1000, 6_900_000_000, None),
            Some(500_000_000)
        );
        assert_eq!(
            rate.sample(103 * SECOND, 7_000_000_000, None),
            Some(1_000_000_000)
        );
        // A counter that began anew, and a clock that was set back.
        assert_eq!(rate.sample(104 * SECOND, 1, None), Some(0));
        assert_eq!(rate.sample(50 * SECOND, 1_000_000_000, None), None);
        assert_eq!(
            rate.sample(51 * SECOND, 1_500_000_000, None),
            Some(500_000_000)
        );
    }

    #[test]
    fn a_young_cgroup_has_its_rate_since_its_start() {
        let rate = Rate::default();
        assert_eq!(
            rate.sample(104 * SECOND, 1_000_000_000, Some(100 * SECOND)),
            Some(250_000_000)
        );
        let rate = Rate::default();
        assert_eq!(
            rate.sample(4000 * SECOND, 1_000_000_000, Some(100 * SECOND)),
            None
        );
        let rate = Rate::default();
        assert_eq!(
            rate.sample(100 * SECOND + 5, 7, Some(100 * SECOND)),
            None,
            "a first look at once says nothing"
        );
    }
}
