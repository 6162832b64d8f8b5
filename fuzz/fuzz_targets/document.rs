//! An index, a manifest or a configuration of an image.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carpel::image::fuzz::document(bytes));
