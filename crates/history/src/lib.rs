//! Versioned tables on an engine: rows that can be read and scanned now or at any instant.
//!
//! Live tables hold the present with no trace of history in their keys. A row that is superseded moves to the
//! history table with the interval [since, until) in which it held, so the present pays nothing for the past.
//! No I/O, clock or randomness of its own; it may depend on `chronofs-core` and `chronofs-engine`.
//!
//! Keys, all numbers big-endian:
//! ```text
//! live     table u8 | volume u32 | key          -> 1 | since u64 | row       (versioned)
//!                                               -> 1 | row                   (not versioned)
//! history  0x80 | table u8 | volume u32 | key | until u64  -> 1 | since u64 | row
//! ```
//! Keys of one versioned table all have one length, so that the rows of a key stand together in history.

mod expire;
mod page;
mod protected;
mod snapshot;
mod txn;

pub use expire::{Expired, expire};
pub use page::{Page, page};
pub use protected::Protected;
pub use snapshot::{PastRow, Snapshot};
pub use txn::Txn;

use bytes::{BufMut, Bytes, BytesMut};
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::{EngineError, ReadStop};

/// The format of every row, in its first byte.
pub const ROW_FORMAT: u8 = 1;
const HISTORY: u8 = 0x80;

/// A table: its number (1 to 0x7f, never reused) and the length of its keys behind the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// First byte of every live key.
    pub number: u8,
    /// Bytes of key behind the volume.
    pub key_len: usize,
    /// Name in messages.
    pub name: &'static str,
}

impl Table {
    /// The engine's key of `key` in this table.
    pub fn live_key(self, volume: VolumeIndex, key: &[u8]) -> Bytes {
        assert_eq!(key.len(), self.key_len, "key of table {}", self.name);
        self.prefix(volume, key)
    }

    /// The engine's key of the start of a range: `part` may be shorter than a key.
    fn prefix(self, volume: VolumeIndex, part: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(5 + part.len());
        out.put_u8(self.number);
        out.put_u32(volume.0);
        out.put_slice(part);
        out.freeze()
    }

    fn history_prefix(self, volume: VolumeIndex, part: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(6 + part.len());
        out.put_u8(HISTORY);
        out.put_u8(self.number);
        out.put_u32(volume.0);
        out.put_slice(part);
        out.freeze()
    }

    /// Which row of this table in `volume` the engine's key stands for: its key and, if it is one of the past, until
    /// when it held. `None`: it is none of the table.
    pub fn parse(self, volume: VolumeIndex, engine_key: &[u8]) -> Option<(&[u8], Option<Version>)> {
        let past = engine_key.strip_prefix(&[HISTORY]);
        let (number, place) = past.unwrap_or(engine_key).split_first()?;
        let (index, key) = place.split_first_chunk::<4>()?;
        if *number != self.number || u32::from_be_bytes(*index) != volume.0 {
            return None;
        }
        if past.is_none() {
            return Some((key, None));
        }
        let (key, until) = key.split_last_chunk::<8>()?;
        Some((key, Some(Version(u64::from_be_bytes(*until)))))
    }

    /// The engine's key of the row of `key` that held until `until`.
    pub fn history_key(self, volume: VolumeIndex, key: &[u8], until: Version) -> Bytes {
        assert_eq!(key.len(), self.key_len, "key of table {}", self.name);
        let mut out = BytesMut::with_capacity(14 + key.len());
        out.put_u8(HISTORY);
        out.put_u8(self.number);
        out.put_u32(volume.0);
        out.put_slice(key);
        out.put_u64(until.0);
        out.freeze()
    }
}

/// A row with the version since which it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The commit that wrote it.
    pub since: Version,
    /// Its bytes, without format and since.
    pub value: Bytes,
}

/// Reads what the engine holds under the key of a versioned row.
pub fn stored_row(engine_key: &[u8], stored: &Bytes) -> Result<Row, ReadStop> {
    decode_versioned(engine_key, stored)
}

/// What the engine holds for a versioned row.
pub fn encode_versioned(since: Version, row: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(9 + row.len());
    out.put_u8(ROW_FORMAT);
    out.put_u64(since.0);
    out.put_slice(row);
    out.freeze()
}

/// What the engine holds for a row of a table that is not versioned.
pub fn encode_plain(row: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + row.len());
    out.put_u8(ROW_FORMAT);
    out.put_slice(row);
    out.freeze()
}

fn decode_versioned(key: &[u8], stored: &Bytes) -> Result<Row, ReadStop> {
    match stored.first_chunk::<9>() {
        Some([ROW_FORMAT, since @ ..]) => {
            Ok(Row { since: Version(u64::from_be_bytes(*since)), value: stored.slice(9..) })
        }
        _ => Err(damaged(key, stored)),
    }
}

fn decode_plain(key: &[u8], stored: &Bytes) -> Result<Bytes, ReadStop> {
    match stored.first() {
        Some(&ROW_FORMAT) => Ok(stored.slice(1..)),
        _ => Err(damaged(key, stored)),
    }
}

fn damaged(key: &[u8], stored: &[u8]) -> ReadStop {
    let detail = match stored.first() {
        Some(&format) if format > ROW_FORMAT => {
            format!("row format {format} is newer than this program's {ROW_FORMAT}; start the newer chronofs")
        }
        _ => "the row's header is not one; run `chronofs meta verify`".to_owned(),
    };
    let what = format!("row {}", key.escape_ascii());
    ReadStop::Failed(EngineError::Damaged { what, detail })
}
