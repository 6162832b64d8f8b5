//! End-to-end tests and benchmarks: the real binaries, driven over their socket.
