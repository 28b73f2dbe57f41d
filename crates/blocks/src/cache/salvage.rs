//! Reads a cache's folder for somebody who repairs a block store: all segments, also those that a mount writes at the moment,
//! without a lock and without changing anything. What is found must still be what a seal says.

use super::folder::Folder;
use super::index::SegmentId;
use super::record::{HEADER_LEN, Key, parse_header};
use crate::seal;
use bytes::Bytes;
use chronofs_core::slice::Seal;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use uuid::Uuid;

/// So many slices are known of a folder at the most.
const ROWS_MAX: usize = 16 << 20;

/// A cache's folder as it was when it was opened.
#[derive(Debug)]
pub struct CacheSalvage {
    folder: Folder,
    /// Where records lie whose key has this hash.
    rows: HashMap<u64, Vec<(SegmentId, u32)>>,
}

impl CacheSalvage {
    /// Looks what is in `dir`, which must be there. Blocks the calling thread.
    pub fn open(dir: &Path) -> io::Result<CacheSalvage> {
        let folder = Folder::new(dir);
        let (mut rows, mut count) = (HashMap::<u64, Vec<_>>::new(), 0);
        for id in folder.list()?.into_keys() {
            let found = match folder.written(id) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            for row in found {
                count += 1;
                if count > ROWS_MAX {
                    return Err(io::Error::other(format!("it has more than {ROWS_MAX} slices")));
                }
                rows.entry(row.hash).or_default().push((id, row.at));
            }
        }
        Ok(CacheSalvage { folder, rows })
    }

    /// The stored bytes of a slice, if they are there and are what its seal says. Blocks the calling thread.
    pub fn get(&self, volume: Uuid, sealed: &Seal) -> Option<Bytes> {
        let key = Key { volume, slice: sealed.id };
        let len = HEADER_LEN + sealed.stored_len as usize;
        self.rows.get(&key.hash())?.iter().find_map(|(id, at)| {
            // Segments go as the mount goes on: that is a miss.
            let record = Bytes::from(self.folder.read(*id, *at, len).ok()?);
            let (found, stored_len) = parse_header(&record)?;
            let stored = record.slice(HEADER_LEN..);
            let right =
                found == key && stored_len == sealed.stored_len && seal::verify(sealed, &stored).is_ok();
            right.then_some(stored)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiskCache;
    use chronofs_core::volume::Compression;
    use chronofs_core::{ObjectId, SessionId, SliceId};
    use std::os::unix::fs::FileExt;

    const VOLUME: Uuid = Uuid::from_u128(1);

    fn slice(n: u32) -> (Seal, Bytes) {
        let object = ObjectId { incarnation: 0, session: SessionId(5), n: 1 };
        let bytes = Bytes::from(vec![n as u8; 5000]);
        seal::seal(SliceId { object, index: n }, Compression::None, &bytes)
    }

    #[test]
    fn what_a_mount_keeps_is_found_while_it_runs_and_after_it_and_only_if_it_is_whole() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("cache");
        assert!(CacheSalvage::open(&dir).is_err(), "there is no cache");
        let cache = DiskCache::start(&dir, 64 << 20);
        for n in 0..3 {
            let (seal, stored) = slice(n);
            cache.put(VOLUME, &seal, stored);
        }
        // A thread writes them, one after the other.
        let running = loop {
            let found =
                CacheSalvage::open(&dir).ok().filter(|found| found.get(VOLUME, &slice(2).0).is_some());
            match found {
                Some(found) => break found,
                None => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        };
        cache.close();
        let ended = CacheSalvage::open(&dir).unwrap();
        for found in [&running, &ended] {
            for n in 0..3 {
                let (seal, stored) = slice(n);
                assert_eq!(found.get(VOLUME, &seal), Some(stored));
                assert_eq!(found.get(Uuid::from_u128(2), &seal), None, "of another volume");
                assert_eq!(found.get(VOLUME, &Seal { crc32c: seal.crc32c ^ 1, ..seal }), None);
            }
            assert_eq!(found.get(VOLUME, &slice(3).0), None);
        }
        let segment = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let segment = segment.filter(|path| path.to_string_lossy().contains("cache1-")).min().unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(segment).unwrap();
        file.write_all_at(&[255], HEADER_LEN as u64 + 100).unwrap();
        let damaged = CacheSalvage::open(&dir).unwrap();
        let found = (0..3).filter(|n| damaged.get(VOLUME, &slice(*n).0).is_some()).count();
        assert_eq!(found, 2);
    }
}
