//! A SPDY client's bytes after the upgrade.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carpel::streaming::fuzz::spdy(bytes));
