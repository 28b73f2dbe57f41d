//! The form of a segment of the disk cache. Version 1; all numbers little-endian.
//!
//! ```text
//! records             header, then the stored bytes of a slice; one record after the other
//! table               16 bytes for each record: hash of the key u64 | at u32 | stored length u32
//! footer, 32 bytes    magic "CFSCACH1" | records u32 | table at u32 | CRC32C of the table u32 | 0 (8 bytes)
//!                     | CRC32C of the 28 bytes before u32
//!
//! header, 64 bytes    magic "CFR1" | stored length u32 | volume (16 bytes) | incarnation u16 | 0 u16
//!                     | slice index u32 | session u64 | n u64 | 0 (12 bytes) | CRC32C of the 60 bytes before
//! ```
//!
//! Table and footer are written when a segment is full. A segment without them is read record by record, up to the
//! first thing that is no header. Nothing here vouches for the stored bytes: whoever reads a slice checks them against
//! its seal, which comes from the metadata.

use chronofs_core::{ObjectId, SessionId, SliceId};
use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use uuid::Uuid;

const HEADER_MAGIC: &[u8; 4] = b"CFR1";
const FOOTER_MAGIC: &[u8; 8] = b"CFSCACH1";

/// Bytes of the header of a record.
pub(super) const HEADER_LEN: usize = 64;
/// Bytes of a row of the table.
pub(super) const ROW_LEN: usize = 16;
/// Bytes of the footer.
pub(super) const FOOTER_LEN: usize = 32;

/// What a record is kept under. An id is never used twice in a volume, so it never means other bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub(super) volume: Uuid,
    pub(super) slice: SliceId,
}

/// A record as the table names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// Of the key: two keys with one hash push each other out, and the header tells them apart.
    pub(super) hash: u64,
    /// Where the record begins.
    pub(super) at: u32,
    /// Bytes after its header.
    pub(super) stored_len: u32,
}

impl Key {
    fn bytes(&self) -> [u8; 40] {
        let object = self.slice.object;
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(self.volume.as_bytes());
        bytes[16..18].copy_from_slice(&object.incarnation.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.slice.index.to_le_bytes());
        bytes[24..32].copy_from_slice(&object.session.0.to_le_bytes());
        bytes[32..].copy_from_slice(&object.n.to_le_bytes());
        bytes
    }

    /// The same in every process and version: it is part of the format.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = SipHasher24::new();
        hasher.write(&self.bytes());
        hasher.finish()
    }

    /// The header of a record of `stored_len` bytes.
    pub(super) fn header(&self, stored_len: u32) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(HEADER_MAGIC);
        header[4..8].copy_from_slice(&stored_len.to_le_bytes());
        header[8..48].copy_from_slice(&self.bytes());
        let check = crc32c::crc32c(&header[..60]);
        header[60..].copy_from_slice(&check.to_le_bytes());
        header
    }
}

/// Key and stored length of the record that `bytes` begin with, if they do.
pub(super) fn parse_header(bytes: &[u8]) -> Option<(Key, u32)> {
    let header = bytes.get(..HEADER_LEN)?;
    if &header[..4] != HEADER_MAGIC || u32_at(header, 60)? != crc32c::crc32c(&header[..60]) {
        return None;
    }
    let volume = Uuid::from_slice(&header[8..24]).ok()?;
    let incarnation = u16::from_le_bytes(header[24..26].try_into().ok()?);
    let object = ObjectId { incarnation, session: SessionId(u64_at(header, 32)?), n: u64_at(header, 40)? };
    let slice = SliceId { object, index: u32_at(header, 28)? };
    Some((Key { volume, slice }, u32_at(header, 4)?))
}

/// Table and footer of a segment whose records end at `table_at`.
pub(super) fn table(rows: &[Row], table_at: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len() * ROW_LEN + FOOTER_LEN);
    for row in rows {
        bytes.extend_from_slice(&row.hash.to_le_bytes());
        bytes.extend_from_slice(&row.at.to_le_bytes());
        bytes.extend_from_slice(&row.stored_len.to_le_bytes());
    }
    let check = crc32c::crc32c(&bytes);
    let mut footer = [0; FOOTER_LEN];
    footer[..8].copy_from_slice(FOOTER_MAGIC);
    footer[8..12].copy_from_slice(&(rows.len() as u32).to_le_bytes());
    footer[12..16].copy_from_slice(&table_at.to_le_bytes());
    footer[16..20].copy_from_slice(&check.to_le_bytes());
    let check = crc32c::crc32c(&footer[..28]);
    footer[28..].copy_from_slice(&check.to_le_bytes());
    bytes.extend_from_slice(&footer);
    bytes
}

/// Where the table of a segment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footer {
    pub(super) table_at: u32,
    pub(super) rows: u32,
    check: u32,
}

impl Footer {
    /// Reads the last bytes of a segment of `len` bytes.
    pub(super) fn parse(bytes: &[u8], len: u64) -> Option<Footer> {
        let footer = bytes.get(..FOOTER_LEN)?;
        if &footer[..8] != FOOTER_MAGIC || u32_at(footer, 28)? != crc32c::crc32c(&footer[..28]) {
            return None;
        }
        let [rows, table_at, check] = [u32_at(footer, 8)?, u32_at(footer, 12)?, u32_at(footer, 16)?];
        let end = u64::from(table_at) + u64::from(rows) * ROW_LEN as u64 + FOOTER_LEN as u64;
        (end == len).then_some(Footer { table_at, rows, check })
    }

    /// The rows of the table, if it is what was written.
    pub(super) fn rows(&self, table: &[u8]) -> Option<Vec<Row>> {
        if table.len() != self.rows as usize * ROW_LEN || crc32c::crc32c(table) != self.check {
            return None;
        }
        let row = |row: &[u8]| {
            Some(Row { hash: u64_at(row, 0)?, at: u32_at(row, 8)?, stored_len: u32_at(row, 12)? })
        };
        table.chunks_exact(ROW_LEN).map(row).collect()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::slice_id;
    use proptest::prelude::*;

    fn key() -> Key {
        Key { volume: Uuid::from_u128(0x0102), slice: slice_id(7, 3) }
    }

    /// The form as it was laid down; a change of it is a new version, with another magic.
    #[test]
    fn version_1_is_as_it_was() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&key().header(5)), include_str!("../../tests/golden/cache-header-1.hex").trim());
        let rows = [Row { hash: key().hash(), at: 0, stored_len: 5 }];
        assert_eq!(hex(&table(&rows, 69)), include_str!("../../tests/golden/cache-table-1.hex").trim());
    }

    #[test]
    fn a_header_and_a_table_read_back_and_any_changed_bit_shows() {
        let header = key().header(4711);
        assert_eq!(parse_header(&header), Some((key(), 4711)));
        let rows: Vec<Row> =
            (0..5).map(|n| Row { hash: n * 77, at: n as u32 * 100, stored_len: 36 }).collect();
        let written = table(&rows, 500);
        let len = 500 + written.len() as u64;
        let read = |bytes: &[u8]| {
            let (table, footer) = bytes.split_at(bytes.len() - FOOTER_LEN);
            Footer::parse(footer, len)?.rows(table)
        };
        assert_eq!(read(&written), Some(rows));
        for bit in 0..header.len() * 8 {
            let mut changed = header;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_header(&changed), None, "bit {bit} of the header");
        }
        for bit in 0..written.len() * 8 {
            let mut changed = written.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&changed), None, "bit {bit} of the table");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(256)))]

        #[test]
        fn whatever_is_read_as_header_or_footer_is_refused_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..80), len in any::<u64>(),
        ) {
            prop_assert_eq!(parse_header(&bytes), None);
            prop_assert_eq!(Footer::parse(&bytes, len), None);
        }
    }
}
