//! The CRI as carpel serves it: requests are checked, handed to the domain, and its answers turned back
//! into the interface's types. gRPC codes are chosen here and nowhere else.

mod signal;
pub mod validate;
