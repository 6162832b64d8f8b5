//! Compiles `proto/` without protoc: protox parses it in Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}");
    let files = protox::compile(["cri.proto", "carpel.proto"], [root])?;
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
