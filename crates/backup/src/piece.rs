//! A piece of a file: where it lies, and how it is packed.

use crate::key::{Name, OVERHEAD, hex};

/// Where pieces lie.
pub(crate) const CHUNKS: &str = "chunks";
/// Files are cut into pieces of this length: what is sealed is in memory once.
pub(crate) const PIECE: u64 = 16 << 20;
/// What a sealed piece begins with: as it is, or by Zstandard. Ends of logs are zeros that were written ahead.
const RAW: u8 = 0;
const PACKED: u8 = 1;
const LEVEL: i32 = 1;

/// A piece of a file.
pub(crate) struct Piece {
    pub(crate) name: Name,
    pub(crate) length: u64,
}

impl Piece {
    /// Where it lies.
    pub(crate) fn object(&self) -> String {
        let name = hex(&self.name);
        format!("{CHUNKS}/{}/{name}", name.get(..2).unwrap_or_default())
    }

    /// How long it is as it lies there, if packing does not make it smaller.
    pub(crate) fn sealed_raw(&self) -> u64 {
        OVERHEAD as u64 + 1 + self.length
    }

    /// What is sealed of it: packed, if that makes it smaller.
    pub(crate) fn pack(bytes: &[u8]) -> Vec<u8> {
        let packed = zstd::bulk::compress(bytes, LEVEL).ok().filter(|packed| packed.len() < bytes.len());
        match packed {
            Some(packed) => [&[PACKED], &packed[..]].concat(),
            None => [&[RAW], bytes].concat(),
        }
    }

    /// What [`Piece::pack`] was given, if it has the length of this piece.
    pub(crate) fn unpack(&self, packed: &[u8]) -> Option<Vec<u8>> {
        let length = usize::try_from(self.length).ok()?;
        let bytes = match packed.split_first()? {
            (&RAW, rest) => rest.to_vec(),
            (&PACKED, rest) => zstd::bulk::decompress(rest, length).ok()?,
            _ => return None,
        };
        (bytes.len() == length).then_some(bytes)
    }
}
