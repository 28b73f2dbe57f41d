//! Slices: the runs of bytes that make up the blocks of a file.
//!
//! A block of a file is the newest-wins overlay of its slices, ordered by [`SliceKey`]; what no slice covers is
//! a hole. Each slice is sealed by itself (crate `blocks`), so it can be moved without being opened.

use crate::{ObjectId, SliceId, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How the bytes of a slice were compressed, and whether they were encrypted then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Codec {
    /// Stored as they are.
    Raw,
    /// LZ4 block.
    Lz4,
    /// Zstandard frame.
    Zstd,
    /// As they are, then encrypted.
    SealedRaw,
    /// LZ4 block, then encrypted.
    SealedLz4,
    /// Zstandard frame, then encrypted.
    SealedZstd,
}

impl Codec {
    /// Every one, at the place of its number in objects.
    pub const ALL: [Codec; 6] =
        [Codec::Raw, Codec::Lz4, Codec::Zstd, Codec::SealedRaw, Codec::SealedLz4, Codec::SealedZstd];

    /// Its number where it is written as a byte.
    pub fn number(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
            Codec::SealedRaw => 3,
            Codec::SealedLz4 => 4,
            Codec::SealedZstd => 5,
        }
    }

    /// Whether it takes a key to open it.
    pub fn is_sealed(self) -> bool {
        self.sealed() == self
    }

    /// The same, and encrypted.
    pub fn sealed(self) -> Codec {
        match self {
            Codec::Raw | Codec::SealedRaw => Codec::SealedRaw,
            Codec::Lz4 | Codec::SealedLz4 => Codec::SealedLz4,
            Codec::Zstd | Codec::SealedZstd => Codec::SealedZstd,
        }
    }
}

/// What it takes to open a sealed slice and to know that it is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// The slice's name, also part of what an encrypted seal authenticates.
    pub id: SliceId,
    /// How it was compressed.
    pub codec: Codec,
    /// Bytes as stored.
    pub stored_len: u32,
    /// Bytes once opened.
    pub full_len: u32,
    /// CRC32C over the stored bytes.
    pub crc32c: u32,
}

/// Where the stored bytes of a slice lie.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Place {
    /// Nowhere: the range reads as zeros (punched hole, zeroed range).
    Hole,
    /// In the row itself: at most [`INLINE_MAX`] stored bytes.
    Inline(Seal, Bytes),
    /// In the metadata store's staging table under the slice's id: at most [`STAGED_MAX`] stored bytes.
    Staged(Seal),
    /// In the object of the slice's id, at this offset.
    Object(Seal, u64),
    /// In another object than that of the slice's id, at this offset: packed there by the metadata server. Rows never
    /// say so; it is how replies show staged slices whose bytes were moved.
    Moved(Seal, ObjectId, u64),
}

impl Place {
    /// The seal, of a slice that has bytes.
    pub fn seal(&self) -> Option<&Seal> {
        match self {
            Place::Hole => None,
            Place::Inline(seal, _)
            | Place::Staged(seal)
            | Place::Object(seal, _)
            | Place::Moved(seal, ..) => Some(seal),
        }
    }
}

/// The most stored bytes of a slice kept inside its row.
pub const INLINE_MAX: usize = 512;
/// The most stored bytes of a slice kept in the metadata store's staging table.
pub const STAGED_MAX: usize = 64 << 10;

/// A run of bytes within one block of a file: `offset..offset + len` of the block shows
/// `skip..skip + len` of the opened slice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Slice {
    /// First byte within the block.
    pub offset: u32,
    /// Bytes shown; never 0.
    pub len: u32,
    /// Bytes of the opened slice before the first one shown (a truncated or partly covered slice shows less
    /// than it has).
    pub skip: u32,
    /// Where the bytes are.
    pub place: Place,
}

/// The key of a slice within its file. Later keys of a block lie over earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SliceKey {
    /// Number of the block: file offset / block size.
    pub block: u32,
    /// The version that published the slice.
    pub version: Version,
    /// Its place within that commit.
    pub n: u16,
}

/// A slice as a reader gets it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlacedSlice {
    /// Its key.
    pub key: SliceKey,
    /// Its run and place.
    pub slice: Slice,
    /// The stored bytes of a staged slice, where the reply carries them.
    pub staged: Option<Bytes>,
}

/// A slice that a client publishes. `staged` holds the stored bytes when the place is [`Place::Staged`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewSlice {
    /// Number of the block.
    pub block: u32,
    /// Its run and place.
    pub slice: Slice,
    /// Stored bytes of a staged slice.
    pub staged: Option<Bytes>,
}
