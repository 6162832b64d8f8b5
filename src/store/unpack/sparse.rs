//! Files with holes: the GNU forms, old (in the header) and PAX 0.0, 0.1 and 1.0.

use std::io::Read;

use super::pax::{Sparse, decimal};
use super::tar::{BLOCK, numeric};
use super::{Limits, UnpackError};

/// A run of data in a file with holes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub length: u64,
}

/// Where the data of a file with holes belong. The pieces ascend, do not overlap and end before `length`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Bytes of the file, holes included.
    pub length: u64,
    pub pieces: Vec<Piece>,
}

impl Map {
    /// Checks a map against the limits and against `stored`, the bytes of data that the archive has.
    fn new(
        length: u64,
        pieces: Vec<Piece>,
        stored: u64,
        limits: &Limits,
    ) -> Result<Self, UnpackError> {
        if length > limits.sparse_length {
            let most = limits.sparse_length;
            let what = "bytes in a sparse file";
            return Err(UnpackError::TooMuch { what, most });
        }
        let mut end = 0_u64;
        let mut data = 0_u64;
        for piece in &pieces {
            if piece.offset < end {
                return Err(bad());
            }
            end = piece.offset.checked_add(piece.length).ok_or_else(bad)?;
            data += piece.length;
            if end > length {
                return Err(bad());
            }
        }
        if data != stored {
            return Err(bad());
        }
        Ok(Self { length, pieces })
    }
}

/// Reads the map of an old GNU entry: four pieces in the header, then blocks of 21. `stored`: the entry's size, of
/// which the further blocks are no part.
pub(super) fn old(
    header: &[u8; BLOCK],
    stored: u64,
    reader: &mut impl Read,
    limits: &Limits,
) -> Result<Map, UnpackError> {
    let length = numeric(&header[483..495]).ok_or_else(bad)?;
    let mut pieces = Vec::new();
    let mut more = take(&header[386..482], &mut pieces, limits)? && header[482] != 0;
    while more {
        let mut block = [0; BLOCK];
        super::tar::read_exact(reader, &mut block)?;
        more = take(&block[..504], &mut pieces, limits)? && block[504] != 0;
    }
    Map::new(length, pieces, stored, limits)
}

/// Takes pieces of 24 bytes each up to the first empty place; false if there was one.
fn take(bytes: &[u8], pieces: &mut Vec<Piece>, limits: &Limits) -> Result<bool, UnpackError> {
    for place in bytes.chunks_exact(24) {
        if place[0] == 0 {
            return Ok(false);
        }
        let offset = numeric(&place[..12]).ok_or_else(bad)?;
        let length = numeric(&place[12..]).ok_or_else(bad)?;
        push(pieces, Piece { offset, length }, limits)?;
    }
    Ok(true)
}

/// Makes the map that an extended header tells of. In form 1.0 the map is the start of the data and is taken off
/// `stored`.
pub(super) fn pax(
    sparse: &Sparse,
    stored: &mut u64,
    reader: &mut impl Read,
    limits: &Limits,
) -> Result<Map, UnpackError> {
    let length = sparse.length.ok_or_else(bad)?;
    let numbers = match (sparse.major, sparse.minor) {
        (Some(1), Some(0)) if sparse.numbers.is_empty() => leading(stored, reader, limits)?,
        (None, None) | (Some(0), Some(0 | 1)) => {
            if sparse.count != Some(sparse.numbers.len() as u64 / 2) {
                return Err(bad());
            }
            sparse.numbers.clone()
        }
        _ => return Err(bad()),
    };
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(bad());
    };
    let mut pieces = Vec::new();
    for &[offset, length] in pairs {
        push(&mut pieces, Piece { offset, length }, limits)?;
    }
    Map::new(length, pieces, *stored, limits)
}

fn push(pieces: &mut Vec<Piece>, piece: Piece, limits: &Limits) -> Result<(), UnpackError> {
    if pieces.len() >= limits.sparse_pieces {
        return Err(UnpackError::TooMuch {
            what: "pieces of a sparse file",
            most: limits.sparse_pieces as u64,
        });
    }
    // An empty piece only says where the file ends.
    if piece.length > 0 {
        pieces.push(piece);
    }
    Ok(())
}

/// Reads the numbers at the start of the data: a count, then twice as many, a line each, filled up to a block.
fn leading(
    stored: &mut u64,
    reader: &mut impl Read,
    limits: &Limits,
) -> Result<Vec<u64>, UnpackError> {
    let mut numbers = Vec::new();
    let mut wanted = None;
    let mut digits = Vec::new();
    loop {
        *stored = stored.checked_sub(BLOCK as u64).ok_or_else(bad)?;
        let mut block = [0; BLOCK];
        super::tar::read_exact(reader, &mut block)?;
        for byte in block {
            if byte != b'\n' {
                digits.push(byte);
                if digits.len() > 20 {
                    return Err(bad());
                }
                continue;
            }
            let number = decimal(&digits).ok_or_else(bad)?;
            digits.clear();
            match wanted {
                None if number > limits.sparse_pieces as u64 => {
                    return Err(UnpackError::TooMuch {
                        what: "pieces of a sparse file",
                        most: limits.sparse_pieces as u64,
                    });
                }
                None => wanted = Some(2 * number),
                Some(_) => numbers.push(number),
            }
            if wanted == Some(numbers.len() as u64) {
                return Ok(numbers);
            }
        }
    }
}

fn bad() -> UnpackError {
    UnpackError::invalid("malformed map of a sparse file")
}
