//! What a registry asks for in `WWW-Authenticate`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carpel::image::registry::fuzz::challenge(bytes));
