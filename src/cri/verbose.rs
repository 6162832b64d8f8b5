//! What a verbose answer adds: names with JSON, for people and test suites.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use carpel_api::cri;
use serde::Serialize;
use serde_json::{Map, Value, json};
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

/// Limits as JSON, with the names of protobuf's JSON. As there, what is not set is left out.
pub fn limits(limits: &cri::LinuxContainerResources) -> Value {
    let mut shown = Map::new();
    let numbers = [
        ("cpuPeriod", limits.cpu_period),
        ("cpuQuota", limits.cpu_quota),
        ("cpuShares", limits.cpu_shares),
        ("memoryLimitInBytes", limits.memory_limit_in_bytes),
        ("oomScoreAdj", limits.oom_score_adj),
        ("memorySwapLimitInBytes", limits.memory_swap_limit_in_bytes),
    ];
    for (name, number) in numbers.into_iter().filter(|(_, number)| *number != 0) {
        shown.insert(name.to_owned(), number.into());
    }
    let texts = [
        ("cpusetCpus", &limits.cpuset_cpus),
        ("cpusetMems", &limits.cpuset_mems),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        shown.insert(name.to_owned(), text.clone().into());
    }
    if !limits.hugepage_limits.is_empty() {
        let pages = limits.hugepage_limits.iter();
        let pages = pages.map(|it| json!({ "pageSize": it.page_size, "limit": it.limit }));
        shown.insert("hugepageLimits".to_owned(), pages.collect());
    }
    if !limits.unified.is_empty() {
        shown.insert("unified".to_owned(), json!(limits.unified));
    }
    Value::Object(shown)
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
