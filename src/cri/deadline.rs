//! The time that a client gives a call.
//!
//! gRPC's server ends a call whose time is up with CANCELLED. Clients take only DEADLINE_EXCEEDED for what it is, so a
//! call that may take long ends itself, just before.

use std::future::Future;
use std::time::Duration;

use tonic::Status;
use tonic::metadata::MetadataMap;

/// How much earlier than the server: its clock ticks in milliseconds.
const EARLIER: Duration = Duration::from_millis(2);

/// The time that the client gives, if it says so.
pub fn of(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Runs a call for as long as the client gives it.
///
/// # Errors
/// The call's own; DEADLINE_EXCEEDED.
pub async fn within<T>(
    time: Option<Duration>,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let Some(time) = time else {
        return call.await;
    };
    let outcome = tokio::time::timeout(time.saturating_sub(EARLIER), call).await;
    outcome.unwrap_or_else(|_| Err(Status::deadline_exceeded("the client's time is up")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, expected) in [
            ("1m", Some(Duration::from_millis(1))),
            ("2S", Some(Duration::from_secs(2))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("S", None),
            ("5", None),
            ("-1S", None),
            ("", None),
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(of(&metadata), expected, "{text:?}");
        }
        assert_eq!(of(&MetadataMap::new()), None);
    }

    #[tokio::test]
    async fn a_call_ends_when_its_time_is_up() {
        let never = || std::future::pending::<Result<(), Status>>();
        let status = within(Some(Duration::from_millis(1)), never())
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        let good = within(None, async { Ok(7) }).await;
        assert_eq!(good.unwrap(), 7);
    }
}
