//! Compiles `proto/` without protoc: protox parses it in Rust.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}");
    let files = protox::compile(["cri.proto", "carpel.proto"], [root])?;
    // What messages are called and how they look as JSON, for `DESCRIPTORS`; nobody reads comments there.
    let mut bare = files.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), bare.encode_to_vec())?;
    // Spoken by ttrpc, so that there are messages only; with a compiler of their own, as the other one makes services.
    let plugins = protox::compile(["nri.proto", "ttrpc.proto"], [root])?;
    prost_build::Config::new()
        .btree_map(["."])
        .compile_fds(plugins)?;
    tonic_prost_build::configure()
        .build_server(true)
        .build_client(true)
        // Its Debug is written by hand: secrets must not reach a log.
        .skip_debug(["runtime.v1.AuthConfig", "carpel.v1.Credentials"])
        // Maps in order, so that an encoded message is the same bytes every time.
        .btree_map(".")
        .compile_fds(files)?;
    Ok(())
}
