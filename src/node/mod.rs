//! x
pub mod work;
