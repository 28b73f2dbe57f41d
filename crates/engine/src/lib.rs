//! Ordered key-value engines with atomic batches: the trait, and the engines that chronofs ships.
//!
//! An engine keeps byte keys in byte order and takes *commits*: a batch of changes at a version, with an opaque
//! tag that can be read back after a restart. It knows nothing of files or of history. It may depend on
//! `chronofs-core` alone.

pub mod copies;
pub mod embedded;
pub mod memory;
mod overlay;
pub mod sim;

pub use overlay::Overlay;

use bytes::Bytes;
use chronofs_core::Version;
use std::sync::Arc;
use thiserror::Error;

/// One change of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The key has this value from now on.
    Put(Bytes, Bytes),
    /// The key is gone.
    Delete(Bytes),
}

impl Change {
    /// The key that changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put(key, _) | Change::Delete(key) => key,
        }
    }
}

/// Changes that happen together or not at all. A later change of a key wins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch(pub Vec<Change>);

/// One step of the metadata store's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Its version: above the version of every commit before it.
    pub version: Version,
    /// What the engine's user needs to find again after a crash (session, request id, compact reply).
    pub tag: Bytes,
    /// The changes. May be empty.
    pub batch: Batch,
}

/// Why an engine could not do what it was asked. None of these is to be retried, but for
/// [`EngineError::NoSpace`].
#[derive(Debug, Error)]
pub enum EngineError {
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Stored bytes are not what was written.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// File and offset, or table and key.
        what: String,
        /// What was found, and the next step.
        detail: String,
    },
    /// The store beneath failed.
    #[error("store: {0}")]
    Store(String),
    /// These commits cannot be taken, now or later; the engine's user has made a mistake. Nothing has changed.
    #[error("a group of commits is refused: {0}")]
    Refused(String),
    /// The engine stopped after an earlier failure and serves nothing more.
    #[error("the engine stopped after an earlier failure: {0}")]
    Stopped(String),
    /// The disk is full. Nothing has changed: the engine goes on once there is space.
    #[error(
        "{action} {path}: {source}; nothing was changed: make room on that disk, then it goes on by itself"
    )]
    NoSpace {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Another process has the engine's folder.
    #[error(
        "{path} is held by {holder}: a folder serves one process at a time; stop that one, or name another folder"
    )]
    InUse {
        /// The lock file.
        path: String,
        /// Who holds it.
        holder: String,
    },
}

/// Why a read gave nothing: the state machine on top stops with it, and runs again when it can go on.
#[derive(Debug, Error)]
pub enum ReadStop {
    /// An engine with asynchronous reads has to fetch these keys first.
    #[error("keys are needed first")]
    Need(Vec<Bytes>),
    /// The read failed.
    #[error(transparent)]
    Failed(#[from] EngineError),
}

/// Point and range reads of one state.
pub trait Reads {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop>;

    /// Up to `limit` pairs with `from <= key < to`, in key order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop>;

    /// The first pair with `from <= key < to`.
    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, ReadStop> {
        Ok(self.scan(from, to, 1)?.pop())
    }
}

impl<R: Reads + ?Sized> Reads for &R {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        (**self).get(key)
    }
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        (**self).scan(from, to, limit)
    }
}

/// A consistent view of the state after some commit; later commits do not show in it.
pub trait View: Reads + Send + Sync {
    /// The last commit in the view.
    fn version(&self) -> Version;
}

/// A tag that survived: what [`Engine::recovered`] gives back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The commit's version.
    pub version: Version,
    /// The commit's tag.
    pub tag: Bytes,
}

/// An ordered key-value engine.
///
/// Commits come from one thread; views and `durable` may be used from any.
pub trait Engine: Send + Sync {
    /// Applies `commits` in order; their versions must be above [`Engine::applied`]. When it returns they are
    /// *applied*: visible to new views, and a killed process loses none of them.
    ///
    /// On [`EngineError::NoSpace`] and [`EngineError::Refused`] none of them shows, now or later; the engine goes on,
    /// and `apply` may be called again. After any other error none of them shows now, the engine takes no more, and
    /// only the next start can say which of them, from the first on, got into the log.
    fn apply(&self, commits: Vec<Commit>) -> Result<(), EngineError>;

    /// A view of everything applied.
    fn view(&self) -> Arc<dyn View>;

    /// The version of the last applied commit; after a start the highest version that may have been handed out
    /// before it, which can lie a little above the last commit that survived. No commit lies in between.
    fn applied(&self) -> Version;

    /// The version up to which everything survives a power cut.
    fn durable(&self) -> Version;

    /// Returns once everything applied before the call is durable. May be called from several threads at once;
    /// their waits share one fdatasync.
    fn sync(&self) -> Result<Version, EngineError>;

    /// Tags of commits at or after the last [`Engine::mark`], oldest first, as found when the engine was opened. A
    /// mark that was set shortly before a crash may be forgotten: then there are older ones too.
    fn recovered(&self) -> Vec<Recovered>;

    /// Everything that tags before `version` say is now in the state itself: they need not be recovered any more,
    /// and what only they kept may go.
    fn mark(&self, version: Version) -> Result<(), EngineError>;
}
