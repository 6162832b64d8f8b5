//! How an exit is written down: a fixed-size record with a checksum, appended by one `write(2)`.

use crate::ObjectId;

const MAGIC: [u8; 4] = *b"CPX1";

/// The exit of a container's or an exec's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    pub id: ObjectId,
    /// As `wait(2)` returns it: exit code in bits 8 to 15, or the signal in bits 0 to 6; or
    /// [`crate::UNKNOWN_STATUS`].
    pub wait_status: i32,
    /// Pid of the process, as the supervisor saw it.
    pub pid: u32,
    /// Nanoseconds since the epoch (CLOCK_REALTIME).
    pub started_at: i64,
    pub finished_at: i64,
}

impl ExitRecord {
    /// Bytes of one record.
    pub const SIZE: usize = 64;

    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..36].copy_from_slice(&self.id);
        bytes[36..40].copy_from_slice(&self.wait_status.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.pid.to_le_bytes());
        bytes[44..52].copy_from_slice(&self.started_at.to_le_bytes());
        bytes[52..60].copy_from_slice(&self.finished_at.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads one record; `None` if it is torn or damaged.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let long = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[at..at + 8]);
            i64::from_le_bytes(raw)
        };
        if bytes[0..4] != MAGIC || crc32fast::hash(&bytes[..60]) != u32::from_le_bytes(word(60)) {
            return None;
        }
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[4..36]);
        Some(Self {
            id,
            wait_status: i32::from_le_bytes(word(36)),
            pid: u32::from_le_bytes(word(40)),
            started_at: long(44),
            finished_at: long(52),
        })
    }
}

/// The records in a file's bytes. A damaged or torn one is passed over: the rest still counts.
pub struct ExitRecords<'a>(pub &'a [u8]);

impl Iterator for ExitRecords<'_> {
    type Item = ExitRecord;

    fn next(&mut self) -> Option<ExitRecord> {
        while let Some((head, rest)) = self.0.split_first_chunk::<{ ExitRecord::SIZE }>() {
            if let Some(record) = ExitRecord::from_bytes(head) {
                self.0 = rest;
                return Some(record);
            }
            self.0 = &self.0[1..];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> ExitRecord {
        ExitRecord {
            id: [n; 32],
            wait_status: i32::from(n) << 8,
            pid: 100 + u32::from(n),
            started_at: -1,
            finished_at: i64::MAX,
        }
    }

    #[test]
    fn a_record_survives_the_round_trip() {
        assert_eq!(
            ExitRecord::from_bytes(&record(7).to_bytes()),
            Some(record(7))
        );
    }

    #[test]
    fn a_damaged_record_does_not_hide_the_next() {
        let mut bytes = record(1).to_bytes().to_vec();
        bytes[40] ^= 1;
        bytes.extend_from_slice(&record(2).to_bytes()[..30]);
        bytes.extend_from_slice(&record(3).to_bytes());
        bytes.extend_from_slice(&record(4).to_bytes()[..63]);
        assert_eq!(ExitRecords(&bytes).collect::<Vec<_>>(), [record(3)]);
    }
}
