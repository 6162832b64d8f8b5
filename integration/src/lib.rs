//! End-to-end tests and benchmarks: the real binaries, driven over their socket.
//!
//! A test looks like this:
//!
//! ```ignore
//! #[tokio::test]
//! async fn a_container_says_hello() {
//!     let node = TestNode::start().await;
//!     let pod = node.run_pod(&node.pod("hello")).await;
//!     let id = node.start_container(&pod, &sh("greeter", "echo hello")).await;
//!     assert_eq!(node.wait_exit(&id).await.exit_code, 0);
//!     assert_eq!(node.log(&pod, "greeter").stdout(), "hello\n");
//!     node.finish().await;
//! }
//! ```
//!
//! [`TestNode`] starts `carpel serve` on folders, cgroups and a network namespace of its own, so tests
//! run beside each other. [`TestNode::finish`] removes every pod and fails the test if anything is left
//! behind. [`image`] makes images, [`request`] the usual requests, [`cri`] is the gRPC client.
//!
//! On a machine that is slower than usual (an emulated one) `CARPEL_TEST_SLOWNESS=8` stretches every bound on time.
//!
//! The binaries are those in `CARPEL_BIN_DIR`, else in `target/carpel`: `make test` builds them.

pub mod certificates;
pub mod cli;
pub mod cri;
pub mod host;
pub mod image;
pub mod lan;
pub mod leaks;
pub mod log;
pub mod node;
pub mod nri;
pub mod registry;
pub mod request;
pub mod streams;

pub use carpel_api as api;
pub use carpel_api::cri as v1;
pub use log::{Line, Log};
pub use node::{Plugins, Pod, TestNode};
pub use request::{ContainerConfigExt, PodConfigExt, container, sh};

/// The folder of the binaries under test.
#[must_use]
pub fn bin_dir() -> std::path::PathBuf {
    if let Some(dir) = std::env::var_os("CARPEL_BIN_DIR") {
        return dir.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        Into::into,
    );
    target.join("carpel")
}
