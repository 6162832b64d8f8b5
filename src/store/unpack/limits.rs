//! How much a layer may ask for.

use serde::{Deserialize, Serialize};

/// Bounds of one layer or archive. What goes beyond is an error, never cut.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Limits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the unpacked archive, headers and padding included.
    pub bytes: u64,
    /// Unpacked bytes for each packed one, once more than `ratio_floor` bytes were unpacked.
    pub ratio: u64,
    /// Bytes that may be unpacked at any ratio.
    pub ratio_floor: u64,
    /// Length of a sparse file in bytes, holes included.
    pub sparse_length: u64,
    /// Pieces of data in a sparse file.
    pub sparse_pieces: usize,
    /// Bytes of one extended header.
    pub header: u64,
    /// Bytes of a path or the target of a link.
    pub path: usize,
    /// Bytes of the window that a zstd stream may look back.
    pub window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            bytes: 256 << 30,
            // Deflate cannot exceed 1032; text and programs stay below 30.
            ratio: 250,
            ratio_floor: 1 << 30,
            sparse_length: 1 << 40,
            sparse_pieces: 65_536,
            header: 1 << 20,
            path: 4096,
            window: 128 << 20,
        }
    }
}
