//! From a checked configuration and an image to an OCI spec and then to a Plan.
//!
//! ```text
//! image's passwd ─▶ user ─┐
//! request, image ─────────┴─▶ oci::build ─▶ oci::Source ─▶ plan::compile_container ─▶ Compiled
//!                                              │ recorded
//!                                              └─────────▶ plan::compile_exec ──────▶ Compiled
//! ```
//!
//! All of it is plain functions that change nothing. What a request can have wrong is found here, before
//! there is a process; a Plan, once compiled, has no choices left.

pub mod base;
pub mod capability;
pub mod config;
pub mod devices;
pub mod env;
pub mod hooks;
pub mod host;
pub mod mounts;
pub mod net_devices;
pub mod oci;
pub mod plan;
pub mod signal;
pub mod user;
