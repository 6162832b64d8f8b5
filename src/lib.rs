//! carpel: a container runtime for Kubernetes nodes. `docs/architecture.md` is the map.

#![deny(unsafe_code)]

pub mod apparmor;
pub mod cdi;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod container;
#[cfg(test)]
mod corpus;
pub mod cri;
pub mod daemon;
pub mod error;
pub mod failpoint;
pub mod ids;
pub mod image;
pub mod metrics;
pub mod network;
pub mod node;
pub mod nri;
pub mod sandbox;
pub mod seccomp;
pub mod selinux;
pub mod spec;
pub mod stats;
pub mod store;
pub mod streaming;
pub mod supervisor;
pub mod sys;
pub mod telemetry;
pub mod timeline;
pub mod tls;
pub mod userns;
