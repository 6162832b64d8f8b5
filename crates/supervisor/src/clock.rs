//! Time as the log has it: UTC, RFC 3339 with nine digits of nanoseconds.

/// Bytes of a formatted time.
pub const LENGTH: usize = 30;

/// Formats times. The part down to the second is kept, as most lines come within the same one.
pub struct Clock {
    second: i64,
    /// All zeros before the first time.
    text: [u8; LENGTH],
}

impl Clock {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            second: 0,
            text: [0; LENGTH],
        }
    }

    /// `nanoseconds` since the epoch as `2026-11-22T18:41:03.123456789Z`. Years stay within 0 to 9999.
    pub fn format(&mut self, nanoseconds: i64) -> &[u8; LENGTH] {
        let second = nanoseconds.div_euclid(1_000_000_000);
        if second != self.second || self.text[0] == 0 {
            self.second = second;
            self.set_second(second);
        }
        let fraction = nanoseconds.rem_euclid(1_000_000_000).cast_unsigned();
        put_digits(&mut self.text[20..29], fraction);
        &self.text
    }

    fn set_second(&mut self, second: i64) {
        self.text = *b"0000-00-00T00:00:00.000000000Z";
        let (year, month, day) = civil_from_days(second.div_euclid(86_400));
        let of_day = second.rem_euclid(86_400).cast_unsigned();
        put_digits(&mut self.text[0..4], year.clamp(0, 9999).cast_unsigned());
        put_digits(&mut self.text[5..7], month);
        put_digits(&mut self.text[8..10], day);
        put_digits(&mut self.text[11..13], of_day / 3600);
        put_digits(&mut self.text[14..16], of_day / 60 % 60);
        put_digits(&mut self.text[17..19], of_day % 60);
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn put_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
///
/// Years are counted from March here, so that the leap day is the last of one: then the lengths of the
/// months follow a straight line (153 days in every five months).
fn civil_from_days(days: i64) -> (i64, u64, u64) {
    const DAYS_PER_ERA: i64 = 146_097;
    const DAYS_BEFORE_EPOCH: i64 = 719_468;
    let days = days + DAYS_BEFORE_EPOCH;
    let era = days.div_euclid(DAYS_PER_ERA);
    let of_era = days.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month.cast_unsigned(), day.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nanoseconds: i64) -> String {
        String::from_utf8(Clock::new().format(nanoseconds).to_vec()).unwrap()
    }

    #[test]
    fn known_times() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            text(1_795_372_863_123_456_789),
            "2026-11-22T18:41:03.123456789Z"
        );
        assert_eq!(
            text(951_782_400_000_000_001),
            "2000-02-29T00:00:00.000000001Z"
        );
        assert_eq!(text(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(text(i64::MAX), "2262-04-11T23:47:16.854775807Z");
        assert_eq!(text(i64::MIN), "1677-09-21T00:12:43.145224192Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let length = |year: i64, month| match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let (mut year, mut month, mut day) = civil_from_days(-110_000);
        for days in -109_999..110_000 {
            day += 1;
            if day > length(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
            assert_eq!(civil_from_days(days), (year, month, day));
        }
    }

    #[test]
    fn the_kept_second_is_renewed() {
        let mut clock = Clock::new();
        for time in [5, 5_000_000_007, 4_999_999_999, 86_400_000_000_000] {
            assert_eq!(clock.format(time).to_vec(), text(time).into_bytes());
        }
    }
}
