//! The data path of a mount: written bytes on their way into slices and objects, and back.
//!
//! It knows neither FUSE nor the network. It speaks to the metadata server through [`Meta`] and to the object
//! store through [`ObjectPort`](chronofs_blocks::ObjectPort), and is tested over implementations in memory that
//! fail and dawdle.
//!
//! [`Data`] is one volume as mounted: memory budget, slice cache, object counters, background flushing.
//! [`FileData`] is the content of one inode, shared by all its open handles. What a VFS does with them:
//!
//! | the kernel asks | the VFS calls |
//! |---|---|
//! | open, create | `data.file(&attr)`, then `file.opened(&attr, slices)`; keep `file.error_mark()` in the handle |
//! | read | `file.try_read(offset, len)` on the FUSE thread; when that is `None`, `file.read(offset, len).await` |
//! | write | `file.try_write(..)` on the FUSE thread; when that is `None`, `file.write(..).await` |
//! | flush (close) | `file.flush(&mark).await` |
//! | fsync | `file.flush(&mark).await`, then `Sync` to the server, then `file.check(&mark)` |
//! | setattr of more than the atime | `file.set_attr(&set, async { SetAttr to the server }).await` |
//! | getattr, lookup, readdirplus | `file.overlay(attr)` if `data.existing(ino)` has one: shows unflushed size and mtime |
//! | fallocate without flags | `file.extend(end, kill_priv)` |
//! | fallocate punch hole, zero range | `file.zero(offset, len, extend, kill_priv).await` |
//! | lseek DATA, HOLE | `file.seek(offset, Seek::Data).await` |
//! | release of an unlinked inode's last handle | `file.discard()` |
//! | syncfs, `instant` | `data.flush_all().await` |
//! | unmount | `data.close()`, `data.flush_all().await`, then `data.stop()` |
//! | a new session after a reconnect | `data.set_grant(..)` |
//!
//! ```text
//! Config { volume: Uuid, incarnation: u16, session: SessionId, grant: (u64, u64), block_size: u32,
//!          compression: Compression, read_only: bool, keys: Option<Arc<KeyRing>>, disk: Option<Arc<DiskCache>>,
//!          tuning: Tuning (Default) }
//! Data::start(config, meta: Arc<M>, port: Arc<dyn ObjectPort>) -> Arc<Data<M>>      within a tokio runtime
//! Data::file(&self, &Attr) -> Arc<FileData<M>>        Data::existing(&self, Ino) -> Option<Arc<FileData<M>>>
//! Data::flush_all(&self) async -> Result<(), Errno>   Data::set_grant(&self, incarnation, session, (first, end))
//! Data::close(&self)                                  ENOTCONN for what is written from then on
//! FileData::opened(&self, &Attr, Option<Vec<PlacedSlice>>)          the reply of Open, or of Create
//! FileData::overlay(&self, Attr) -> Attr              FileData::error_mark(&self) -> ErrorMark
//! FileData::read(&self, offset: u64, len: u32) async -> Result<Bytes, Errno>     short only at the end of file
//! FileData::try_read(&self, offset: u64, len: u32) -> Option<Result<Bytes, Errno>>
//! FileData::write(&self, offset: u64, &[u8], kill_priv: bool) async -> Result<(), Errno>
//! FileData::try_write(&self, offset: u64, &[u8], kill_priv: bool) -> Option<Result<(), Errno>>
//! FileData::append(&self, &[u8], kill_priv: bool) async -> Result<u64, Errno>    at the end of file; gives the offset
//! FileData::flush(&self, &ErrorMark) async -> Result<(), Errno>    FileData::check(&self, &ErrorMark) -> Result<(), Errno>
//! FileData::set_attr(&self, &SetAttr, impl Future<Output = Result<Attr, Errno>>) async -> Result<Attr, Errno>
//! FileData::extend(&self, end: u64, kill_priv: bool) -> Result<(), Errno>
//! FileData::zero(&self, offset: u64, len: u64, extend: bool, kill_priv: bool) async -> Result<(), Errno>
//! FileData::seek(&self, offset: u64, Seek) async -> Result<u64, Errno>           ENXIO past the end
//! FileData::discard(&self)
//! ```
//! All take `self: &Arc<Self>` where they start background work.
//!
//! Dropping the last `Arc<FileData>` while bytes are unpublished is safe: the background flusher holds it.

mod budget;
mod counters;
mod dirty;
mod file;
mod lost;
mod merge;
mod meta;
mod parked;
mod read;
mod slice_map;
mod slices;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod volume;
mod write_back;

pub use file::FileData;
pub use lost::ErrorMark;
pub use meta::{Made, Meta, ParkedAt, Publish, PublishError, SliceList};
pub use read::Seek;
pub use volume::Data;

use crate::keys::KeyRing;
use chronofs_blocks::DiskCache;
use chronofs_core::SessionId;
use chronofs_core::volume::Compression;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// A volume as it is mounted.
#[derive(Clone, Debug)]
pub struct Config {
    /// The volume.
    pub volume: Uuid,
    /// Its incarnation.
    pub incarnation: u16,
    /// The session that writes.
    pub session: SessionId,
    /// The session's object counters: first and end.
    pub grant: (u64, u64),
    /// Bytes per block.
    pub block_size: u32,
    /// Compression of new slices.
    pub compression: Compression,
    /// Writing is refused, and nothing is merged.
    pub read_only: bool,
    /// The keys of an encrypted volume.
    pub keys: Option<Arc<KeyRing>>,
    /// Where slices of objects are kept beyond memory.
    pub disk: Option<Arc<DiskCache>>,
    /// Memory and times.
    pub tuning: Tuning,
}

/// How much memory and how many requests the data path of one mount takes.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Unpublished bytes of all files together; beyond it writers wait.
    pub dirty_bytes_max: u64,
    /// Opened slices kept.
    pub cache_bytes_max: u64,
    /// Written bytes are published after this long, whatever the program does.
    pub dirty_age_max: Duration,
    /// Seals and puts at once.
    pub uploads_max: usize,
    /// Read-aheads at once.
    pub read_aheads_max: usize,
    /// Bytes fetched ahead of a sequential reader, if the read-aheads suffice; at least a block.
    pub read_ahead_bytes: u64,
    /// Slices of a block beyond which they are merged.
    pub slices_per_block_max: usize,
    /// Draws what share of the longest wait comes before another try. A simulation draws by its seed, or not at all.
    pub random_share: fn() -> f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            dirty_bytes_max: 256 << 20,
            cache_bytes_max: 256 << 20,
            dirty_age_max: Duration::from_secs(2),
            uploads_max: 8,
            read_aheads_max: 16,
            read_ahead_bytes: 32 << 20,
            slices_per_block_max: chronofs_core::ops::SLICES_PER_BLOCK_MAX,
            random_share: crate::clock::random_share,
        }
    }
}

/// Locks what is never held across an await or a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
