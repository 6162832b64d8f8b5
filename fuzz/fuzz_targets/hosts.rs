//! A registry's `hosts.toml`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carpel::image::registry::fuzz::hosts(bytes));
