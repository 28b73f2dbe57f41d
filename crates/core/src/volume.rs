//! What a volume is made with, and what may be changed later.

use crate::Retention;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How new slices of a volume are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4 (the default).
    Lz4,
    /// Zstandard, level 1.
    Zstd,
}

/// The least and the greatest block size, and the one taken unless told otherwise, in bytes. Powers of two.
pub const BLOCK_SIZE_MIN: u32 = 256 << 10;
/// See [`BLOCK_SIZE_MIN`].
pub const BLOCK_SIZE_MAX: u32 = 8 << 20;
/// See [`BLOCK_SIZE_MIN`].
pub const BLOCK_SIZE_DEFAULT: u32 = 4 << 20;

/// A volume as the admin server defines it and the metadata server owns it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeSpec {
    /// Its identity for ever; the name may change hands.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Bytes per block, a power of two within the limits; fixed at creation.
    pub block_size: u32,
    /// Compression of new slices.
    pub compression: Compression,
    /// How long the past is kept.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub retention: Retention,
    /// Quota in bytes of allocated content, if any.
    pub max_bytes: Option<u64>,
    /// Quota in inodes, if any.
    pub max_inodes: Option<u64>,
    /// Secret key of the name hash; fixed at creation.
    pub hash_key: [u8; 16],
}
