//! A packed stream: gzip, zstd or neither.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carpel::store::unpack::fuzz::packed(bytes));
