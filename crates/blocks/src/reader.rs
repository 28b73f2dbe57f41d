//! Readers as they register in a block store: a clone of a disk snapshot, which reads what the source of the snapshot stored.
//! As long as one is registered, the source goes on keeping what the snapshot needs. Format 1, a [`crate::note`].
//!
//! A clone writes it before it serves anybody, and only then looks whether the source keeps the snapshot; the source takes its
//! pins away first and then looks for readers. So one of both sees the other.

use crate::note::{self, NOTE_BYTES_MAX};
use crate::port::StoreError;
use bytes::Bytes;
use chronofs_core::Version;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where readers lie.
pub const READERS: &str = "readers";
const FORMAT: u32 = 1;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reader {
    /// The form of what follows.
    format: u32,
    /// UID of the snapshot.
    pub snapshot: String,
    /// Drawn by the reader.
    pub id: Uuid,
    /// The cluster that it is of.
    pub cluster: String,
    /// What people call it.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// Since when it reads, in nanoseconds.
    pub since: Version,
}

impl Reader {
    /// A reader of a snapshot.
    pub fn new(
        snapshot: &str,
        id: Uuid,
        cluster: &str,
        (name, address): (&str, &str),
        since: Version,
    ) -> Reader {
        let (snapshot, cluster) = (snapshot.to_owned(), cluster.to_owned());
        Reader {
            format: FORMAT,
            snapshot,
            id,
            cluster,
            name: name.to_owned(),
            address: address.to_owned(),
            since,
        }
    }

    /// Where it lies.
    pub fn name_in_store(&self) -> String {
        format!("{READERS}/{}/{}", self.snapshot, self.id)
    }

    /// Its bytes. Errors: it is longer than notes may be.
    pub fn encode(&self) -> Result<Bytes, StoreError> {
        let bad = |reason: String| StoreError::damaged(&self.name_in_store(), reason);
        let line = serde_json::to_string(self).map_err(|error| bad(error.to_string()))?;
        let bytes = note::seal(&line);
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(bad(format!("it has {} bytes, and may have {NOTE_BYTES_MAX}", bytes.len())));
        }
        Ok(bytes)
    }

    /// The reader that lies under this name; none if it cannot be understood.
    fn decode(name: &str, bytes: &[u8]) -> Option<Reader> {
        let reader: Reader = serde_json::from_str(note::open(bytes)?).ok()?;
        (reader.format == FORMAT && reader.name_in_store() == name).then_some(reader)
    }
}

/// The readers of a snapshot among all that lies where readers lie, for people. What cannot be understood is one, too.
pub fn readers_of(snapshot: &str, found: &[(String, Bytes)]) -> Vec<String> {
    let shown = |(name, bytes): &(String, Bytes)| {
        let of = name.strip_prefix(READERS)?.strip_prefix('/')?.split_once('/').map(|(of, _)| of);
        match Reader::decode(name, bytes) {
            Some(reader) => (reader.snapshot == snapshot).then(|| {
                let Reader { cluster, name, address, since, .. } = reader;
                format!("{name} at {address} of cluster {cluster}, since {since}")
            }),
            None => of.is_none_or(|of| of == snapshot).then(|| format!("{name}, which cannot be understood")),
        }
    };
    found.iter().filter_map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "c50263df28be44ebb596f5c2a849adbb";
    const OTHER: &str = "d50263df28be44ebb596f5c2a849adbb";
    const GOLDEN: &str = include_str!("../tests/golden/reader-1.txt");

    fn reader() -> Reader {
        let since = Version(1_700_000_000_000_000_000);
        Reader::new(UID, Uuid::from_u128(0x99), "lab:7", ("store", "10.0.0.2:8444"), since)
    }

    #[test]
    fn a_reader_of_format_1_has_these_bytes() {
        let reader = reader();
        assert_eq!(reader.name_in_store(), format!("readers/{UID}/00000000-0000-0000-0000-000000000099"));
        let bytes = reader.encode().unwrap();
        assert_eq!(bytes, GOLDEN.as_bytes());
        assert_eq!(Reader::decode(&reader.name_in_store(), &bytes), Some(reader));
    }

    #[test]
    fn whatever_is_not_understood_is_a_reader_of_its_snapshot_or_of_all() {
        let (name, bytes) = (reader().name_in_store(), reader().encode().unwrap());
        let whole = [(name.clone(), bytes.clone())];
        assert_eq!(
            readers_of(UID, &whole),
            ["store at 10.0.0.2:8444 of cluster lab:7, since 2023-11-14T22:13:20.000000000Z"]
        );
        assert_eq!(readers_of(OTHER, &whole), [""; 0]);
        for at in 0..bytes.len() {
            let cut = [(name.clone(), bytes.slice(..at))];
            assert_eq!((readers_of(UID, &cut).len(), readers_of(OTHER, &cut).len()), (1, 0), "cut at {at}");
        }
        let stranger = [("readers/letter".to_owned(), bytes.clone())];
        assert_eq!((readers_of(UID, &stranger).len(), readers_of(OTHER, &stranger).len()), (1, 1));
        let moved = [(name.replace(UID, OTHER), bytes)];
        assert_eq!((readers_of(UID, &moved).len(), readers_of(OTHER, &moved).len()), (0, 1));
    }
}
