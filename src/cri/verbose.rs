//! What a verbose answer adds: names with JSON, for people and test suites.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tonic::Status;

pub type Info = BTreeMap<String, String>;

/// What is added when nobody asked.
pub fn none() -> Info {
    Info::new()
}

/// One entry.
pub fn info(name: &str, value: &impl Serialize) -> Result<Info, Status> {
    let json = serde_json::to_string(value)
        .map_err(|error| Status::internal(format!("write {name} as JSON: {error}")))?;
    Ok(Info::from([(name.to_owned(), json)]))
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
