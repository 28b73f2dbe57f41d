//! Opened slices: fetched from the disk cache or from where they lie, verified, decrypted, decompressed, and kept in bounded memory
//! under their ids.

use super::lock;
use super::meta::Meta;
use super::volume::Data;
use bytes::Bytes;
use chronofs_blocks::seal::{self, OpenError};
use chronofs_blocks::{ShownBy, Trouble, object_name};
use chronofs_core::slice::{Place, PlacedSlice, Seal};
use chronofs_core::{Errno, Ino, ObjectId, SliceId};
use chronofs_keys::VolumeKeys;
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// Beyond this many slices in trouble, further ones are no longer remembered as reported.
const REPORTED_MAX: usize = 10_000;
/// From this many stored bytes on, opening goes to a thread for such work.
const OPEN_BLOCKING_MIN: u32 = 256 << 10;
/// A part of the memory with a lock of its own has at least this much room, many times the largest slice: what does not
/// fit into its part is not kept at all.
const SHARD_BYTES_MIN: u64 = 64 << 20;
/// How much of the memory is for what was asked for more than once. What is read ahead has to wait in the rest.
const HOT_SHARE: f64 = 0.5;
/// What loading a slice answers that its block does not show any more: its slices are to be asked for again.
pub(super) const NOT_SHOWN: Errno = Errno::ESTALE;

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<SliceId, Bytes> for ByBytes {
    fn weight(&self, _: &SliceId, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + 64
    }
}

/// The cache of a volume.
#[derive(Debug)]
pub(super) struct SliceCache {
    opened: Cache<SliceId, Bytes, ByBytes>,
    /// Slices whose trouble is in the log already.
    reported: Mutex<HashSet<SliceId>>,
}

impl SliceCache {
    pub(super) fn new(bytes_max: u64) -> Self {
        let items = (bytes_max >> 16).clamp(1, 1 << 20) as usize;
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(bytes_max)
            .shards((bytes_max / SHARD_BYTES_MIN).clamp(1, 64) as usize)
            .hot_allocation(HOT_SHARE)
            .build();
        let opened = match options {
            Ok(options) => Cache::with_options(options, ByBytes, <_>::default(), <_>::default()),
            // What an option lacks, which is none.
            Err(_) => Cache::with_weighter(items, bytes_max, ByBytes),
        };
        SliceCache { opened, reported: Mutex::default() }
    }

    pub(super) fn get(&self, id: &SliceId) -> Option<Bytes> {
        self.opened.get(id)
    }

    pub(super) fn insert(&self, id: SliceId, opened: Bytes) {
        self.opened.insert(id, opened);
    }

    /// Whether the trouble of this slice was not reported before.
    fn is_news(&self, id: SliceId) -> bool {
        let mut reported = lock(&self.reported);
        if reported.len() >= REPORTED_MAX {
            reported.clear();
        }
        reported.insert(id)
    }
}

/// Why a slice gives no bytes.
#[derive(Debug)]
struct Unreadable {
    reason: String,
    errno: Errno,
    /// Looked for again without a word, since it may be there next time.
    passing: bool,
    /// It is not there: it may have been moved since its block was listed, or replaced and collected.
    missing: bool,
}

impl<M: Meta> Data<M> {
    /// The opened bytes of a slice, from the cache or from where they lie. A slice in trouble is EIO, and the
    /// first time a line in the log; one that its block does not show any more is [`NOT_SHOWN`].
    pub(super) async fn load(self: &Arc<Self>, ino: Ino, placed: &PlacedSlice) -> Result<Bytes, Errno> {
        let Some(seal) = placed.slice.place.seal() else {
            return Ok(Bytes::from(vec![0; (placed.slice.skip + placed.slice.len) as usize]));
        };
        if let Some(opened) = self.cache.get(&seal.id) {
            return Ok(opened);
        }
        let loaded = self.cache.opened.get_or_insert_async(&seal.id, self.fetch(ino, placed, seal)).await;
        let trouble = match loaded {
            Ok(opened) => return Ok(opened),
            Err(trouble) if trouble.missing && self.is_replaced(ino, placed).await => return Err(NOT_SHOWN),
            Err(trouble) => trouble,
        };
        if trouble.errno != NOT_SHOWN && (trouble.passing || self.cache.is_news(seal.id)) {
            let (block, offset) = (placed.key.block, placed.slice.offset);
            let object = match placed.slice.place {
                Place::Moved(_, object, _) => object,
                _ => seal.id.object,
            };
            let object = object_name(self.config.volume, object);
            tracing::error!(
                %ino, block, offset, len = placed.slice.len, slice = %seal.id, object,
                "part of a file cannot be read: {}", trouble.reason
            );
        }
        Err(trouble.errno)
    }

    /// Whether the slice's block does not show it any more, or elsewhere: it was packed. Of one that was not staged any more
    /// nothing has to be seen: that it was packed may have been lost with the server's power meanwhile, and it is staged again.
    async fn is_replaced(&self, ino: Ino, placed: &PlacedSlice) -> bool {
        match self.meta.slices(ino, placed.key.block, 1).await {
            Ok(_) if matches!(placed.slice.place, Place::Staged(_)) => true,
            Ok(list) => !list.slices.iter().any(|shown| shown.slice.place == placed.slice.place),
            Err(_) => false,
        }
    }

    async fn fetch(
        self: &Arc<Self>,
        ino: Ino,
        placed: &PlacedSlice,
        seal: &Seal,
    ) -> Result<Bytes, Unreadable> {
        let stored = match &placed.slice.place {
            Place::Inline(_, stored) => stored.clone(),
            Place::Staged(_) => match &placed.staged {
                Some(stored) => stored.clone(),
                None => self.fetch_staged(ino, seal.id).await?,
            },
            Place::Object(_, at) => {
                let shown_by = ShownBy { ino, block: placed.key.block };
                return self.fetch_from_object(shown_by, seal, (seal.id.object, *at)).await;
            }
            Place::Moved(_, object, at) => {
                let shown_by = ShownBy { ino, block: placed.key.block };
                return self.fetch_from_object(shown_by, seal, (*object, *at)).await;
            }
            Place::Hole => Bytes::new(),
        };
        self.open(seal, stored).await
    }

    /// From the disk cache, or from the store and then into the cache: what it is given was verified.
    async fn fetch_from_object(
        self: &Arc<Self>,
        shown_by: ShownBy,
        seal: &Seal,
        (object, at): (ObjectId, u64),
    ) -> Result<Bytes, Unreadable> {
        let volume = self.config.volume;
        if let Some(disk) = self.config.disk.clone()
            && let Some(found) = disk.find(volume, seal)
            && let keys = self.keys()
            && let Ok(Some(opened)) =
                tokio::task::spawn_blocking(move || disk.read(&found, keys.as_deref())).await
        {
            return Ok(opened);
        }
        let name = object_name(volume, object);
        let got = self.port.get_slice(shown_by, &name, at, seal.stored_len).await;
        let stored = got.map_err(|error| Unreadable {
            passing: error.trouble == Trouble::Unavailable,
            missing: error.trouble == Trouble::Missing,
            reason: error.to_string(),
            errno: if error.trouble == Trouble::NotShown { NOT_SHOWN } else { Errno::EIO },
        })?;
        let opened = self.open(seal, stored.clone()).await?;
        if let Some(disk) = &self.config.disk {
            disk.put(volume, seal, stored);
        }
        Ok(opened)
    }

    async fn fetch_staged(&self, ino: Ino, id: SliceId) -> Result<Bytes, Unreadable> {
        match self.meta.staged(ino, vec![id]).await {
            Ok(mut stored) if stored.len() == 1 => Ok(stored.swap_remove(0)),
            Ok(stored) => {
                Err(damaged(format!("the metadata server gave {} staged slices for one", stored.len())))
            }
            // It is not staged any more; a program that reads did nothing wrong.
            Err(Errno::EINVAL) => Err(Unreadable {
                reason: "the metadata server has it not staged any more".to_owned(),
                errno: Errno::EIO,
                passing: true,
                missing: true,
            }),
            Err(errno) => Err(Unreadable {
                reason: format!("the metadata server answered {errno}"),
                errno,
                passing: true,
                missing: false,
            }),
        }
    }

    /// Brings staged slices that came without their bytes into the cache with few requests. Whatever goes wrong
    /// shows when a slice is loaded.
    pub(super) async fn prefetch_staged(&self, ino: Ino, placed: &[PlacedSlice]) {
        let is_wanted = |placed: &&PlacedSlice| {
            matches!(&placed.slice.place, Place::Staged(seal) if self.cache.get(&seal.id).is_none())
                && placed.staged.is_none()
        };
        let mut wanted: Vec<Seal> =
            placed.iter().filter(is_wanted).filter_map(|p| p.slice.place.seal().copied()).collect();
        wanted.dedup_by_key(|seal| seal.id);
        while wanted.len() > 1 {
            let Ok(stored) = self.meta.staged(ino, wanted.iter().map(|seal| seal.id).collect()).await else {
                return;
            };
            if stored.is_empty() || stored.len() > wanted.len() {
                return;
            }
            let keys = self.keys();
            for (seal, stored) in wanted.drain(..stored.len()).zip(stored) {
                if let Ok(opened) = seal::open_with(&seal, stored, keys.as_deref()) {
                    self.cache.insert(seal.id, opened);
                }
            }
        }
    }

    /// The stored bytes of a slice, opened. One that was encrypted with a key made since this mount read the volume's keys
    /// has them read again.
    async fn open(&self, seal: &Seal, stored: Bytes) -> Result<Bytes, Unreadable> {
        let keys = self.keys();
        match open(seal, stored.clone(), keys).await? {
            Err(OpenError::UnknownKey { number, slice }) => {
                let learnt = match &self.config.keys {
                    Some(ring) => ring.learn(number).await,
                    None => Err("the volume is mounted without a key".to_owned()),
                };
                let keys = learnt.map_err(|reason| Unreadable {
                    reason: format!("{}: {reason}", OpenError::UnknownKey { slice, number }),
                    errno: Errno::EIO,
                    passing: true,
                    missing: false,
                })?;
                open(seal, stored, Some(keys)).await?.map_err(|error| damaged(error.to_string()))
            }
            opened => opened.map_err(|error| damaged(error.to_string())),
        }
    }

    /// The keys of the volume, if it is encrypted.
    fn keys(&self) -> Option<Arc<VolumeKeys>> {
        self.config.keys.as_ref().map(|ring| ring.now())
    }

    /// Moves staged bytes that came along with slices into the cache, where memory is bounded.
    pub(super) fn keep_staged(&self, slices: &mut [PlacedSlice]) {
        let keys = self.keys();
        for placed in slices {
            if let (Place::Staged(seal), Some(stored)) = (&placed.slice.place, placed.staged.take())
                && let Ok(opened) = seal::open_with(seal, stored, keys.as_deref())
            {
                self.cache.insert(seal.id, opened);
            }
        }
    }
}

async fn open(
    seal: &Seal,
    stored: Bytes,
    keys: Option<Arc<VolumeKeys>>,
) -> Result<Result<Bytes, OpenError>, Unreadable> {
    let seal = *seal;
    if seal.stored_len < OPEN_BLOCKING_MIN {
        return Ok(seal::open_with(&seal, stored, keys.as_deref()));
    }
    let opening = tokio::task::spawn_blocking(move || seal::open_with(&seal, stored, keys.as_deref())).await;
    opening.map_err(|error| damaged(format!("opening it was given up: {error}")))
}

fn damaged(reason: String) -> Unreadable {
    Unreadable { reason, errno: Errno::EIO, passing: false, missing: false }
}
