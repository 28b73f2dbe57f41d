//! What a request comes with, and what comes out of it.

use chronofs_core::ops::Reply;
use chronofs_core::{Caller, Errno, Ino, SessionId, Version, VolumeIndex};
use chronofs_engine::{Batch, ReadStop};
use uuid::Uuid;

/// What one commit removes of an inode that goes, at the most: so many rows, or KiB of them. The rest goes step by step.
pub const FREED_MAX: usize = 1024;

/// Around a client's request: who asks, for what volume, at which version.
#[derive(Clone)]
pub struct Ctx<'a> {
    /// The volume.
    pub volume: VolumeIndex,
    /// The version of this commit; for reads the last applied one.
    pub version: Version,
    /// The instant to read, if not now.
    pub at: Option<Version>,
    /// Who asks.
    pub caller: Caller,
    /// The session that asks.
    pub session: SessionId,
    /// The root of what the session may see.
    pub root: Ino,
    /// The session may not write.
    pub read_only: bool,
    /// Whether anybody has an inode open.
    pub is_open: &'a dyn Fn(Ino) -> bool,
    /// Whether the session that asks has an inode open.
    pub holds: &'a dyn Fn(Ino) -> bool,
    /// What one commit may remove of an inode that goes: [`FREED_MAX`], less in tests.
    pub freed_max: usize,
    /// The inode number that a create had before a power cut took it. It has it again if nobody else was given it.
    pub made: Option<Ino>,
}

/// Around a request of the server itself.
#[derive(Clone)]
pub struct SystemCtx<'a> {
    /// The version of this commit.
    pub version: Version,
    /// Whether anybody has an inode open (a reap of such a one does nothing).
    pub is_open: &'a dyn Fn(Ino) -> bool,
    /// See [`Ctx::freed_max`].
    pub freed_max: usize,
    /// Where a volume is, as far as that is known. Of all others every row of a volume is read, also of those that are gone.
    pub place: &'a dyn Fn(Uuid) -> Option<VolumeIndex>,
}

/// What a mutation comes to. With an error the batch is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What the client is told.
    pub reply: Result<Reply, Errno>,
    /// What changes.
    pub batch: Batch,
}

/// Why a request goes no further: it is refused, or a read stopped.
#[derive(Debug)]
pub(crate) enum Fail {
    Errno(Errno),
    Stop(ReadStop),
}

impl From<Errno> for Fail {
    fn from(errno: Errno) -> Fail {
        Fail::Errno(errno)
    }
}

impl From<ReadStop> for Fail {
    fn from(stop: ReadStop) -> Fail {
        Fail::Stop(stop)
    }
}

pub(crate) type Done<T> = Result<T, Fail>;

/// Parts a refusal, which is an answer, from a stop, which is none.
pub(crate) fn answered<T>(result: Done<T>) -> Result<Result<T, Errno>, ReadStop> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Fail::Errno(errno)) => Ok(Err(errno)),
        Err(Fail::Stop(stop)) => Err(stop),
    }
}
