//! What a user of the socket sees, topic by topic, against the real binaries. Needs root.
//!
//! One binary, so that everything is linked once and runs side by side: `cargo test -p
//! carpel-integration logs::` runs one topic.

// Lists are compared with lists; a slice of one reference reads worse.
#![allow(clippy::cloned_ref_to_slice_refs)]

mod adoption;
mod apparmor;
mod cdi;
mod cgroups;
mod chaos;
mod cli_doctor;
mod cli_image;
mod cli_inspect;
mod cli_lists;
mod cli_logs;
mod cli_pull;
mod cli_run;
mod cli_streams;
mod cli_terminal;
mod cli_watch;
mod cli_wrong_use;
mod cluster;
mod config;
mod crash;
mod descriptors;
mod devices;
mod disk_faults;
mod events;
mod exec;
mod exit_faults;
mod hooks;
mod hung_volume;
mod image_volumes;
mod images;
mod lifecycle;
mod lists;
mod logs;
mod metrics;
mod mounts;
mod namespaces;
mod net;
mod network;
mod network_many;
mod node_fields;
mod nri;
mod pod_metrics;
mod pod_resources;
mod privileges;
mod process;
mod recovery;
mod registry;
mod resources;
mod resources_update;
mod selinux;
mod serve;
mod silence;
mod start_faults;
mod stats;
mod status_fields;
mod streaming_attach;
mod streaming_exec;
mod streaming_ports;
mod streaming_server;
mod streaming_websocket;
mod streams;
mod traces;
mod userns;
mod wrong_use;

use carpel_integration::request::sleeper;
use carpel_integration::{Pod, TestNode};
use tonic::{Code, Status};

/// The error of a request that must fail, with its code and a part of its text checked.
#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, part: &str) {
    let status = outcome.expect_err("refused");
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(part),
        "{:?} does not say {part:?}",
        status.message()
    );
}

/// A pod with a container that sleeps.
async fn node_with_container() -> (TestNode, Pod, String) {
    let node = TestNode::start().await;
    let pod = node.run_pod(&node.pod("one")).await;
    let id = node.start_container(&pod, &sleeper("a")).await;
    (node, pod, id)
}
