//! What the data path asks of a metadata server.

use bytes::Bytes;
use chronofs_core::ops::Merge;
use chronofs_core::slice::{NewSlice, PlacedSlice};
use chronofs_core::{Attr, Errno, Ino, SessionId, SliceId, Version};
use std::future::Future;

/// The slices of some blocks as of `version`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceList {
    /// The version that was read (of `ToClient::Return`).
    pub version: Version,
    /// By key: oldest first within a block. Staged ones may carry their bytes.
    pub slices: Vec<PlacedSlice>,
}

/// A publish as the data path asks for it: see `Request::Publish`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// The inode.
    pub ino: Ino,
    /// In the order written.
    pub slices: Vec<NewSlice>,
    /// The file is at least this long afterwards.
    pub size_min: Option<u64>,
    /// When the last of it was written; `None` leaves it.
    pub mtime_ns: Option<i64>,
    /// Clear setuid and setgid.
    pub kill_priv: bool,
    /// A merge instead of a write.
    pub merge: Option<Merge>,
}

/// Why something written is not part of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PublishError {
    /// The server's answer.
    Answered(Errno),
    /// There is none, because the server refuses the mount for now: nobody decided anything about these bytes.
    NoAnswer(Errno),
    /// The session it was asked under, or whose ids it names, is over: it is to be asked again under the next one.
    SessionOver,
}

/// Two new files: one for what was written to a file that is lost, and one for what is to be said of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParkedAt {
    /// For the bytes.
    pub attr: Attr,
    /// For the report.
    pub report: Attr,
    /// The path of the first, as people find it.
    pub path: String,
    /// How the report begins.
    pub head: String,
}

/// What of [`ParkedAt`] is there already.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Made {
    /// The file for the bytes, with its name.
    pub file: Option<(Attr, String)>,
    /// The one for the report.
    pub report: Option<Attr>,
}

/// A connection to the metadata server of one volume.
///
/// Calls wait while the server cannot be reached and are sent again by themselves; an error is the server's
/// answer. Publishes of one inode are called one after the other.
pub trait Meta: Send + Sync + 'static {
    /// The attributes of `ino`.
    fn attributes(&self, ino: Ino) -> impl Future<Output = Result<Attr, Errno>> + Send;

    /// The slices of blocks `first..first + count`, with as many staged bytes as fit.
    fn slices(
        &self,
        ino: Ino,
        first: u32,
        count: u32,
    ) -> impl Future<Output = Result<SliceList, Errno>> + Send;

    /// The stored bytes of staged slices, in the order asked; at least the first.
    fn staged(&self, ino: Ino, ids: Vec<SliceId>) -> impl Future<Output = Result<Vec<Bytes>, Errno>> + Send;

    /// Makes written bytes part of the file; the attributes afterwards.
    fn publish(&self, publish: Publish) -> impl Future<Output = Result<Attr, PublishError>> + Send;

    /// A further range `first..end` of object counters of the session.
    fn grant(&self, count: u64) -> impl Future<Output = Result<(u64, u64), Errno>> + Send;

    /// From now on nothing is published that lies in an object of `session` with a counter below `floor`.
    fn published_below(&self, session: SessionId, floor: u64) {
        let _ = (session, floor);
    }

    /// Another one after each start of the server, before anything of it is heard: what an earlier one answered may have
    /// been lost with its power.
    fn boot(&self) -> u64;

    /// How often answered changes of `ino` were lost that way since the volume was mounted.
    fn lost(&self, ino: Ino) -> u64;

    /// How often the server was put back from a copy since the volume was mounted: files may be lost that were made after that.
    fn restores(&self) -> u64 {
        0
    }

    /// Makes files in the lost+found of the volume for what was written to `ino`, which is lost. What is `made` already, by a call
    /// that failed later, is not made again.
    fn park(&self, ino: Ino, made: &mut Made) -> impl Future<Output = Result<ParkedAt, Errno>> + Send {
        let _ = (ino, made);
        std::future::ready(Err(Errno::EACCES))
    }

    /// So many bytes of `ino` lie in the file at `path` now.
    fn parked(&self, ino: Ino, path: &str, bytes: u64) {
        let _ = (ino, path, bytes);
    }

    /// The server's clock, nanoseconds since the epoch.
    fn now_ns(&self) -> i64;

    /// Whether no other session may change the volume now: what is cached stays right after an own publish.
    fn exclusive(&self) -> bool;
}
