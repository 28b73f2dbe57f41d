//! Where bytes that a block store has lost may still be: a copy of the store, the disk cache of a mount, a copy of the files.
//!
//! None of them is believed: what counts is what the seal of a slice says, which is in the metadata. Everything here only reads,
//! and reads of folders nothing but plain files below them.

use super::store::Store;
use super::{Looked, Stop};
use crate::stores::open_marked;
use bytes::Bytes;
use chronofs_blocks::object::{ENTRY_LEN, FOOTER_LEN, LABEL_LEN, Object};
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{CacheSalvage, object_name, seal};
use chronofs_core::ObjectId;
use chronofs_core::slice::{Codec, Seal, Slice};
use chronofs_core::volume::Compression;
use chronofs_wire::admin::{AssignedStore, StoreKind};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What was named.
pub(super) struct Wanted {
    pub(super) from_store: Option<String>,
    pub(super) replica: Option<AssignedStore>,
    pub(super) from_cache: Option<String>,
    pub(super) from_copy: Option<String>,
}

/// See the module.
pub(super) struct Sources {
    volume: Uuid,
    block_size: u32,
    replica: Option<(String, Store)>,
    cache: Option<(String, Arc<CacheSalvage>)>,
    copy: Option<(String, Arc<File>)>,
}

/// Where a file shows a slice, and by what names it can be found.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) block: u32,
    pub(super) slice: Slice,
    /// From the root, with `/` before each name.
    pub(super) paths: Vec<Vec<u8>>,
}

impl Sources {
    /// Opens what was named. What cannot be opened ends the look: it was meant to help.
    pub(super) async fn open(volume: &Looked, wanted: Wanted) -> Result<Sources, Stop> {
        let Wanted { from_store, replica, from_cache, from_copy } = wanted;
        let replica = match from_store {
            Some(named) => {
                let opened = open_replica(volume, &named, replica).await?;
                Some((format!("the block store {named}"), opened))
            }
            None => None,
        };
        let cache = match from_cache {
            Some(dir) => {
                let path = absolute(&dir)?;
                let opened = off_thread(move || CacheSalvage::open(&path)).await?;
                let opened = opened
                    .map_err(|error| Stop::Failed(format!("the cache {dir} cannot be read: {error}")))?;
                Some((format!("the cache {dir}"), Arc::new(opened)))
            }
            None => None,
        };
        let copy = match from_copy {
            Some(dir) => {
                let path = absolute(&dir)?;
                let opened = off_thread(move || {
                    let folder = File::open(&path)?;
                    // Also finds out whether this kernel can keep to the folder.
                    beneath(&folder, b".", OFlags::DIRECTORY)?;
                    Ok::<_, std::io::Error>(folder)
                });
                let opened = opened
                    .await?
                    .map_err(|error| Stop::Failed(format!("the copy {dir} cannot be read: {error}")))?;
                Some((format!("the copy {dir}"), Arc::new(opened)))
            }
            None => None,
        };
        let (volume, block_size) = (volume.id, volume.row.spec.block_size);
        Ok(Sources { volume, block_size, replica, cache, copy })
    }

    /// The same object in the copy of the store, if there is one, with where that is.
    pub(super) async fn replica_of(&self, object: ObjectId) -> Result<Option<(String, Bytes)>, Stop> {
        let Some((named, store)) = &self.replica else { return Ok(None) };
        // What is wrong with the copy of an object is no matter here.
        let found = store.whole(&object_name(self.volume, object)).await?.ok();
        Ok(found.map(|bytes| (named.clone(), bytes)))
    }

    /// Whether these bytes are a whole object under its own name, as its writer put it.
    pub(super) fn is_object(&self, object: ObjectId, bytes: &Bytes) -> bool {
        let read = Object::read(bytes.clone());
        read.is_ok_and(|read| read.label.volume == self.volume && read.label.id == object)
    }

    /// Whether these bytes are an object of which every byte is of a slice that its own index names, and every slice is right.
    pub(super) fn is_complete(&self, bytes: &Bytes) -> bool {
        let Ok(read) = Object::read(bytes.clone()) else { return false };
        let mut entries = read.entries.clone();
        entries.sort_by_key(|entry| entry.at);
        let mut upto = 0;
        for entry in &entries {
            let right = |stored: Bytes| seal::verify(&entry.seal, &stored).is_ok();
            if entry.at > upto || !read.stored(entry).is_some_and(right) {
                return false;
            }
            upto = upto.max(entry.at.saturating_add(u64::from(entry.seal.stored_len)));
        }
        upto + (LABEL_LEN + entries.len() * ENTRY_LEN + FOOTER_LEN) as u64 == bytes.len() as u64
    }

    /// The stored bytes of a slice from a cache or a copy of the files, if they are there, with where.
    pub(super) async fn stored(
        &self,
        sealed: Seal,
        shown: Vec<Shown>,
    ) -> Result<Option<(String, Bytes)>, Stop> {
        if let Some((named, cache)) = &self.cache {
            let (cache, volume) = (cache.clone(), self.volume);
            if let Some(stored) = off_thread(move || cache.get(volume, &sealed)).await? {
                return Ok(Some((named.clone(), stored)));
            }
        }
        if let Some((named, folder)) = &self.copy {
            let (folder, block_size) = (folder.clone(), self.block_size);
            let found = off_thread(move || {
                shown.iter().find_map(|shown| of_files(&folder, &sealed, shown, block_size))
            });
            return Ok(found.await?.map(|stored| (named.clone(), stored)));
        }
        Ok(None)
    }

    /// Whether paths of files are of use.
    pub(super) fn wants_paths(&self) -> bool {
        self.copy.is_some()
    }
}

fn absolute(dir: &str) -> Result<PathBuf, Stop> {
    match dir.starts_with('/') {
        true => Ok(PathBuf::from(dir)),
        false => Err(Stop::Failed(format!(
            "'{dir}' is no absolute path; it is one of the metadata server's machine"
        ))),
    }
}

/// A copy carries the marker of what it was copied from; a store that was made for the copies has its own.
async fn open_replica(volume: &Looked, named: &str, store: Option<AssignedStore>) -> Result<Store, Stop> {
    let own = volume.collector.stores.id_of(volume.id);
    let own = own.ok_or_else(|| {
        Stop::Failed(format!(
            "which block store volume {} has is not known yet; try again",
            volume.row.spec.name
        ))
    })?;
    let (store, ids) = match store {
        Some(store) => {
            let ids = vec![own, store.id];
            (store, ids)
        }
        None => {
            let kind = StoreKind::Local { path: absolute(named)?.to_string_lossy().into_owned() };
            let store = AssignedStore { id: own, kind, credentials: Default::default(), create_only: false };
            (store, vec![own])
        }
    };
    let mut why = String::new();
    for id in ids {
        match open_marked(&AssignedStore { id, ..store.clone() }).await {
            Ok(opened) => return Ok(Store::new(opened)),
            // The first says what a copy should be.
            Err(error) if why.is_empty() => why = error,
            Err(_) => {}
        }
    }
    Err(Stop::Failed(format!("the copy {named} of the block store cannot be used: {why}")))
}

/// The stored bytes of a slice, made from what a file of the copy has where the slice was written. The whole slice must be there as
/// it was, also what later writes lay over.
fn of_files(folder: &File, sealed: &Seal, shown: &Shown, block_size: u32) -> Option<Bytes> {
    let begin = u64::from(shown.block) * u64::from(block_size) + u64::from(shown.slice.offset);
    let begin = begin.checked_sub(u64::from(shown.slice.skip))?;
    if sealed.full_len > seal::FULL_LEN_MAX {
        return None;
    }
    let compression = match sealed.codec {
        Codec::Raw => Compression::None,
        Codec::Lz4 => Compression::Lz4,
        Codec::Zstd => Compression::Zstd,
        // Without the key nobody makes these bytes again.
        Codec::SealedRaw | Codec::SealedLz4 | Codec::SealedZstd => return None,
    };
    shown.paths.iter().find_map(|path| {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let file = beneath(folder, path, OFlags::NONBLOCK).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = vec![0; sealed.full_len as usize];
        file.read_exact_at(&mut bytes, begin).ok()?;
        let (found, stored) = seal::seal(sealed.id, compression, &Bytes::from(bytes));
        (found == *sealed).then_some(stored)
    })
}

/// Opens what lies below a folder, and nothing that a link leads to.
fn beneath(folder: &File, path: &[u8], flags: OFlags) -> std::io::Result<File> {
    let path = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(folder, path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty(), resolve)?;
    Ok(File::from(opened))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::slice::Place;
    use chronofs_core::{SessionId, SliceId};
    use std::fs;

    const BLOCK: u32 = 1 << 16;

    fn sealed(compression: Compression, bytes: &[u8]) -> (Seal, Bytes) {
        let object = ObjectId { incarnation: 0, session: SessionId(5), n: 1 };
        seal::seal(SliceId { object, index: 0 }, compression, &Bytes::copy_from_slice(bytes))
    }

    fn shown(seal: Seal, block: u32, offset: u32, skip: u32, paths: &[&str]) -> Shown {
        let slice = Slice { offset, len: seal.full_len - skip, skip, place: Place::Object(seal, 0) };
        Shown { block, slice, paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect() }
    }

    #[test]
    fn a_slice_is_made_again_from_the_file_that_has_its_bytes_however_it_was_compressed() {
        let temp = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..5000u32).map(|n| (n / 50) as u8).collect();
        let mut file = vec![1; BLOCK as usize + 100];
        file.extend_from_slice(&bytes);
        fs::create_dir(temp.path().join("d")).unwrap();
        fs::write(temp.path().join("d/right"), &file).unwrap();
        file[BLOCK as usize + 4000] ^= 1;
        fs::write(temp.path().join("wrong"), &file).unwrap();
        fs::write(temp.path().join("short"), &file[..BLOCK as usize + 2000]).unwrap();
        let folder = File::open(temp.path()).unwrap();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let (seal, stored) = sealed(compression, &bytes);
            let paths = ["/nothing", "/short", "/wrong", "/d", "/d/right"];
            let found = |shown: &Shown| of_files(&folder, &seal, shown, BLOCK);
            assert_eq!(found(&shown(seal, 1, 100, 0, &paths)), Some(stored.clone()), "{compression:?}");
            // Shown without its first bytes it is still the same slice.
            assert_eq!(found(&shown(seal, 1, 600, 500, &paths)), Some(stored));
            assert_eq!(found(&shown(seal, 1, 101, 0, &paths)), None, "at another place");
            assert_eq!(found(&shown(seal, 0, 100, 500, &paths)), None, "before the file");
            assert_eq!(found(&shown(seal, 1, 100, 0, &paths[..4])), None);
        }
    }

    #[test]
    fn nothing_outside_of_the_folder_and_nothing_but_plain_files_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let bytes = vec![3; 100];
        let inside = temp.path().join("copy");
        fs::create_dir(&inside).unwrap();
        fs::write(temp.path().join("outside"), &bytes).unwrap();
        std::os::unix::fs::symlink("../outside", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inside.join("up")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inside.join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let (seal, _) = sealed(Compression::None, &bytes);
        let folder = File::open(&inside).unwrap();
        let paths = ["/link", "/up/outside", "/../outside", "/pipe", "/"];
        assert_eq!(of_files(&folder, &seal, &shown(seal, 0, 0, 0, &paths), BLOCK), None);
        fs::write(inside.join("file"), &bytes).unwrap();
        assert!(of_files(&folder, &seal, &shown(seal, 0, 0, 0, &["/file"]), BLOCK).is_some());
    }
}
