//! From a checked configuration and an image to an OCI spec and then to a Plan.

pub mod capability;
pub mod config;
