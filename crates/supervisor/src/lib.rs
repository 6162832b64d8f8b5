//! A pod's supervisor: see `docs/architecture.md`.
#![no_std]
