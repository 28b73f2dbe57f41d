//! Images of a running engine for a disk snapshot: a folder with its store, a folder with its log. Neither ever changes
//! again, and together they open as the engine was at the end of the log's image.
//!
//! While a [`LogHold`] lives no segment goes. So when the store's image was made under it, and the log's after that, the
//! log's holds everything that the store's does not. Commits go on meanwhile; they wait only while the store links its
//! files and while a segment is ended.

use super::disk::Disk;
use super::log::format::Place;
use super::store::{Position, Store};
use super::{Embedded, lock};
use crate::EngineError;
use chronofs_core::Version;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What the store may still have to flush while nothing can be applied.
const FLUSH_AT_ONCE_BYTES: u64 = 2 << 20;
/// How often it is tried to get there.
const FLUSHES_BEFORE: u32 = 3;
/// How long one of these may take.
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
    /// Has the store flush most of what it would otherwise flush while it makes its image, and commits wait.
    pub fn prepare_image(&self) -> Result<(), EngineError> {
        for _ in 0..FLUSHES_BEFORE {
            if self.core.store.unflushed_bytes() <= FLUSH_AT_ONCE_BYTES {
                break;
            }
            self.core.flush_within(FLUSH_WITHIN)?;
        }
        Ok(())
    }

    /// From now on no segment of the log goes.
    pub fn hold_log(self: &Arc<Self>) -> LogHold<S, D> {
        self.core.log.hold();
        LogHold { engine: self.clone() }
    }
}

impl<S: Store, D: Disk> LogHold<S, D> {
    /// Makes the folder `place`, on the store's volume, with everything that is applied. An error leaves the engine as it
    /// was, and perhaps a part of the folder.
    pub fn image_store(&self, place: &Path) -> Result<Position, EngineError> {
        let core = &self.engine.core;
        core.durability.check()?;
        // Most of the sync happens here, so that what is left to sync while nothing can be applied is little.
        core.sync()?;
        let writer = lock(&core.writer);
        core.sync()?;
        if !core.has_room() {
            return Err(EngineError::NoSpace {
                action: "flush the store for the image",
                path: place.display().to_string(),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        core.store.image(place)?;
        Ok(writer.position)
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
