//! Images of a running engine for a disk snapshot: a folder with its store, a folder with its log. Neither ever changes
//! again, and together they open as the engine was at the end of the log's image.
//!
//! While a [`LogHold`] lives no segment goes. So when the store's image was made under it, and the log's after that, the
//! log's holds everything that the store's does not. The store's is as of its last flush: one snapshot after the other flushes
//! nothing that is not much, which would cost clients more than the snapshots. Commits go on meanwhile; they wait only while a
//! segment is ended.

use super::disk::Disk;
use super::log::format::Place;
use super::maintain::Unflushed;
use super::store::{Position, Store};
use super::{Embedded, lock};
use crate::EngineError;
use chronofs_core::Version;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// An image of the log may have so much that the store's has not: what is restored applies it again, and programs copy it.
const LOG_BYTES: u64 = 32 << 20;
/// In so many segments: each image ends one, and nothing that is not flushed goes.
const LOG_SEGMENTS: u64 = 32;
/// The same as it is in the memory of the store.
const UNFLUSHED_BYTES: u64 = 16 << 20;
/// How long the flush may take that this needs.
const FLUSH_WITHIN: Duration = Duration::from_secs(20);

/// The end of an image of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// The last commit in it.
    pub version: Version,
    /// Where it ends.
    pub place: Place,
}

/// Keeps every segment of the log until it is dropped.
pub struct LogHold<S: Store, D: Disk> {
    engine: Arc<Embedded<S, D>>,
}

impl<S: Store, D: Disk> Embedded<S, D> {
    /// Has the store flush, if it has not for so long that images would be worse for it.
    pub fn prepare_image(&self) -> Result<(), EngineError> {
        let Unflushed { bytes, log_bytes, log_segments } = self.core.unflushed();
        match bytes > UNFLUSHED_BYTES || log_bytes > LOG_BYTES || log_segments > LOG_SEGMENTS {
            true => self.core.flush_within(FLUSH_WITHIN),
            false => Ok(()),
        }
    }

    /// From now on no segment of the log goes.
    pub fn hold_log(self: &Arc<Self>) -> LogHold<S, D> {
        self.core.log.hold();
        LogHold { engine: self.clone() }
    }
}

impl<S: Store, D: Disk> LogHold<S, D> {
    /// Makes the folder `place`, on the store's volume, with everything that is flushed, and says how far that goes. An error leaves
    /// the engine as it was, and perhaps a part of the folder.
    pub fn image_store(&self, place: &Path) -> Result<Position, EngineError> {
        let core = &self.engine.core;
        core.durability.check()?;
        core.store.image(place)
    }

    /// Ends the log's segment, makes everything in it durable, and makes the folder `place`, on the log's volume, with the
    /// log up to there. An error leaves the engine as it was, and perhaps a part of the folder.
    pub fn image_log(&self, place: &Path) -> Result<Sealed, EngineError> {
        let core = &self.engine.core;
        core.durability.check()?;
        let end = {
            let mut writer = lock(&core.writer);
            core.roll(&mut writer, 0)?
        };
        core.log.image(&end, place)?;
        Ok(Sealed { version: end.version, place: end.place })
    }
}

impl<S: Store, D: Disk> Drop for LogHold<S, D> {
    fn drop(&mut self) {
        self.engine.core.log.let_go();
    }
}
