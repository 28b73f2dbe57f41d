//! What the embedded engine needs of the ordered store behind its log.

use super::log::format::Place;
use crate::{Commit, EngineError, Reads};
use chronofs_core::Version;
use std::path::Path;

/// How far into the log a store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// The last commit that the store holds.
    pub version: Version,
    /// Where its group ends in the log.
    pub place: Place,
}

/// An ordered store whose content becomes durable in steps: each step holds the commits up to one [`Position`], all
/// of them and no others.
pub trait Store: Send + Sync + 'static {
    /// A consistent view.
    type Snapshot: Reads + Send + Sync + 'static;

    /// Takes the commits of one group, which ends at `position`. One thread at a time. Keys are not empty.
    fn write(&self, commits: &[Commit], position: Position) -> Result<(), EngineError>;

    /// A view of everything written.
    fn snapshot(&self) -> Self::Snapshot;

    /// Starts to make durable everything written until now and nothing written later. Not at the same time as
    /// `write`. Returns before it is done.
    fn flush(&self) -> Result<(), EngineError>;

    /// Whether every flush that was started is done; an error if one has failed.
    fn is_flushed(&self) -> Result<bool, EngineError>;

    /// How far what is durable goes; `None` if that is nothing. Asked once, before the first write.
    fn position(&self) -> Result<Option<Position>, EngineError>;

    /// Makes the folder `place`, which is not there, on the same volume: a store that holds what is durable of this one, durably.
    /// Says how far that goes.
    fn image(&self, place: &Path) -> Result<Position, EngineError>;

    /// Whether there is room on the disk for a flush of what is not flushed. One that was started without is lost
    /// with the store that failed in it.
    fn has_room(&self) -> bool;

    /// Bytes of memory taken by what is not flushed.
    fn unflushed_bytes(&self) -> u64;

    /// Never flush again, not even when closed: the log cannot vouch any more for what was written.
    fn abandon(&self);
}
