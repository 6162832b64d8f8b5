//! The stream of a terminal's sizes.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carpel::streaming::fuzz::sizes(bytes));
