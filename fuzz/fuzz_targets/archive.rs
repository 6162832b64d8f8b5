//! An archive of images, as an import reads it.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|bytes: &[u8]| {
    let ground = tempfile::tempdir().expect("a folder");
    carpel::image::fuzz::archive(bytes, ground.path());
});

// Most of what is changed of a tar stream is refused because of a header's sum, unless that is put right.
fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, most);
    if seed % 8 != 0 {
        carpel::store::unpack::fuzz::mend(&mut data[..size]);
    }
    size
});
