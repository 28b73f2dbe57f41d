//! What a backup says about itself. It is sealed, so nobody without the key can change or read it, and it is written last.

use chronofs_snapshot::Role;
use chronofs_snapshot::protocol::Record;
use chronofs_snapshot::tree::Entry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format that this program writes.
pub(crate) const FORMAT: u32 = 1;

/// A backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Its format, 1.
    pub format: u32,
    /// The record of its snapshot: members, cuts, until when what it needs is kept.
    pub record: Record,
    /// Its images.
    pub images: Vec<Image>,
}

/// The image of a role of a server. While a backup is being made, it lies in the place by itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Image {
    /// Number of the attempt that it was made in.
    pub number: u64,
    /// Id of the server among the members.
    pub node: String,
    /// Its role.
    pub role: Role,
    /// Its files, each with its checksum. Its pieces are named by that.
    pub files: Vec<Entry>,
    /// How long the pieces of each file are as they lie there, by its path.
    pub sealed: BTreeMap<String, Vec<u64>>,
    /// Bytes that had to be stored for it, because they were not there yet.
    pub stored: u64,
}

impl Manifest {
    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files().map(|file| file.size).sum()
    }

    /// Bytes that it had to store.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.images.iter().map(|image| image.stored).sum()
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &Entry> {
        self.images.iter().flat_map(|image| &image.files)
    }
}
