//! What an owner, or a recovery, asks of a copy. The copy in a folder does it here, a remote one through a connection.

use super::fence::Refusal;
use crate::embedded::Place;
use bytes::Bytes;
use std::sync::Arc;
use thiserror::Error;

/// Why a copy did not do what it was asked.
#[derive(Debug, Error)]
pub enum CopyError {
    /// It obeys an owner of this later epoch.
    #[error("it obeys a later owner, of epoch {0}")]
    Fenced(u64),
    /// It goes on elsewhere.
    #[error("it goes on at offset {} of segment {}", .0.offset, .0.segment)]
    Elsewhere(Place),
    /// It cannot be used now.
    #[error("{0}")]
    Unusable(String),
}

impl From<Refusal> for CopyError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fenced(epoch) => CopyError::Fenced(epoch),
            Refusal::Elsewhere(end) => CopyError::Elsewhere(end),
        }
    }
}

/// A segment that a copy holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its number.
    pub number: u64,
    /// Bytes of it.
    pub length: u64,
}

/// What a copy holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holding {
    /// Segments, oldest first.
    pub segments: Vec<Held>,
    /// All before this was durable everywhere, as its newest bytes say.
    pub known_durable: Place,
    /// It began empty and was not caught up since, so nothing can be recovered from it.
    pub filling: bool,
}

impl Holding {
    /// Where it ends.
    pub fn end(&self) -> Place {
        self.segments
            .last()
            .map_or(Place::default(), |last| Place { segment: last.number, offset: last.length })
    }
}

/// Called when a copy has answered.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A copy. One user at a time; a call may block for as long as its disk or connection takes.
pub trait Link: Send {
    /// Nobody of an epoch below `epoch` is obeyed from now on, and nobody of this one yet.
    fn seal(&mut self, epoch: u64) -> Result<Holding, CopyError>;

    /// The owner of `epoch` is going to append; nobody of a lower one is obeyed.
    fn open(&mut self, epoch: u64) -> Result<Holding, CopyError>;

    /// Puts `bytes` where the copy ends, and returns when they are on its disk.
    fn append(&mut self, epoch: u64, place: Place, bytes: &Bytes) -> Result<(), CopyError>;

    /// Appends, and need not wait: [`Link::unanswered`] says how it goes. After one that failed all others do, until the copy
    /// is opened again.
    fn begin_append(&mut self, epoch: u64, place: Place, bytes: &Bytes) -> Result<(), CopyError> {
        self.append(epoch, place, bytes)
    }

    /// How many of the appends that were begun have no answer yet; the others are done, in their order. It does not block.
    fn unanswered(&mut self) -> Result<usize, CopyError> {
        Ok(0)
    }

    /// Whom to call when there is an answer to an append that was begun.
    fn wake_with(&mut self, _wake: Wake) {}

    /// It has been caught up: from now on it can be recovered from.
    fn whole(&mut self, epoch: u64) -> Result<(), CopyError>;

    /// Forgets all from `place` on.
    fn cut(&mut self, epoch: u64, place: Place) -> Result<(), CopyError>;

    /// Forgets the segments before this one.
    fn pop(&mut self, epoch: u64, before: u64) -> Result<(), CopyError>;

    /// The checksum of the first `length` bytes of a segment.
    fn sum(&mut self, segment: u64, length: u64) -> Result<[u8; 32], CopyError>;

    /// Up to `length` bytes from `place` on; fewer at the end of the segment.
    fn read(&mut self, place: Place, length: u64) -> Result<Bytes, CopyError>;
}
