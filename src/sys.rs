//! System calls that have no safe wrapper in the crates used. The only module with `unsafe` in it.
