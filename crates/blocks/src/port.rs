//! What the rest of chronofs sees of an object store: put an object, get a range of it.
//!
//! A trait, so that a client works the same on a folder of its own, through the metadata server, and on the
//! failing stores of the tests.

use crate::hedge::Hedges;
use crate::pin::{PINS, Pin, pin_name};
use crate::signed::Action;
use bytes::Bytes;
use chronofs_core::{Errno, Ino, SignedRequest};
use futures::future::BoxFuture;
use std::time::Duration;
use thiserror::Error;
use uuid::Uuid;

/// Which block of which file shows the bytes that are read. Who reads for others lets them see no more than that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShownBy {
    /// The file.
    pub ino: Ino,
    /// Number of the block.
    pub block: u32,
}

/// Somewhere objects can be put once and read in ranges.
pub trait ObjectPort: Send + Sync + 'static {
    /// Stores `bytes` as the object `name`. When it returns, they survive a power cut. Putting the same bytes
    /// again is no error; other bytes under a name that is taken are refused.
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Exactly `len` bytes of the object `name` from `offset`.
    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>>;

    /// As [`ObjectPort::get`], for the stored bytes of one whole slice. Stores do not care who shows it.
    fn get_slice<'a>(
        &'a self,
        _shown_by: ShownBy,
        name: &'a str,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.get(name, offset, len)
    }

    /// A request for the object `name` that whoever holds it may send for as long as `valid`. `None`: it cannot be signed.
    fn sign<'a>(
        &'a self,
        _action: Action,
        _name: &'a str,
        _valid: Duration,
    ) -> BoxFuture<'a, Option<SignedRequest>> {
        Box::pin(async { None })
    }

    /// Reads that were sent a second time. None, where nothing is.
    fn hedges(&self) -> Hedges {
        Hedges::default()
    }
}

/// A store that its owner can also look through and delete from. Clients never have one.
pub trait StorePort: ObjectPort {
    /// All bytes of the object `name`. One of more than `max` bytes is damaged, and is not read.
    fn whole<'a>(&'a self, name: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, StoreError>>;

    /// Puts `bytes` in the place of the object `name`, whatever is there: at once, so that a reader gets the old or the new. When it
    /// returns, they survive a power cut. Only for who puts together again what is damaged.
    fn replace<'a>(&'a self, name: &'a str, _bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        let refused = StoreError::unavailable(name, Errno::EROFS, "nothing is replaced in this store");
        Box::pin(async { Err(refused) })
    }

    /// Has the object `name` gone. One that is not there is no error; a place that is not the store's is.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// A page of what lies where objects lie, from `from` on (`None`: from the start). Any trouble is an error: what is
    /// left out without one is not there.
    fn list(&self, from: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>>;

    /// When the object `name` was stored, nanoseconds since the epoch by the clock of the store; none if it is not there, or the
    /// store does not say. For people alone: nothing is decided by it.
    fn stored_ns<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    /// Stores a note, which is no object: a pin, a reader, the record of a snapshot. When it returns, it survives a power
    /// cut. The same again is no error; another one under its name is.
    fn put_note<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Has a note gone. One that is not there is no error.
    fn remove_note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>>;

    /// All that lies in a folder of notes, with its bytes, whatever it is. Any trouble is an error.
    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>>;

    /// Stores a pin, as a note.
    fn put_pin<'a>(&'a self, pin: &'a Pin) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let name = pin.name();
            let bytes = pin.encode().map_err(|error| StoreError::damaged(&name, error.to_string()))?;
            self.put_note(&name, bytes).await
        })
    }

    /// Has a pin gone.
    fn remove_pin(&self, volume: Uuid, id: Uuid) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.remove_note(&pin_name(volume, id)).await })
    }

    /// All that lies where pins lie.
    fn pins(&self) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, StoreError>> {
        self.notes(PINS)
    }
}

/// A page of a listing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListPage {
    /// Names, with the bytes under them, in no order. Some may be of strangers.
    pub names: Vec<(String, u64)>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<String>,
}

/// What kind of trouble an object is in: decides whether to try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The object is not there. Trying again does not help.
    Missing,
    /// The object is there and not what was stored. Trying again does not help.
    Damaged,
    /// The store did not do it now: no connection, no space, no permission. Worth another try.
    Unavailable,
    /// It is named after a session that is over, so it cannot be stored any more. Its bytes can, under the name that
    /// the next session gives them.
    SessionOver,
    /// The block that was said to show it does not, or not any more: ask for its slices again.
    NotShown,
}

/// Why an object could not be stored or read.
#[derive(Clone, Debug, Error)]
#[error("object {name}: {reason}; {next_step}")]
pub struct StoreError {
    /// The object.
    pub name: String,
    /// The kind of trouble.
    pub trouble: Trouble,
    /// What an application gets to see.
    pub errno: Errno,
    /// What was tried and why it failed.
    pub reason: String,
    /// What to do about it.
    pub next_step: &'static str,
}

impl StoreError {
    /// The object is not in the store.
    pub fn missing(name: &str, reason: impl Into<String>) -> Self {
        StoreError {
            name: name.to_owned(),
            trouble: Trouble::Missing,
            errno: Errno::EIO,
            reason: reason.into(),
            next_step: "put it back from a copy of the block store; files that use it fail with EIO meanwhile",
        }
    }

    /// The object's bytes are not what was stored.
    pub fn damaged(name: &str, reason: impl Into<String>) -> Self {
        StoreError {
            name: name.to_owned(),
            trouble: Trouble::Damaged,
            errno: Errno::EIO,
            reason: reason.into(),
            next_step: "check the disk of the block store and put the object back from a copy",
        }
    }

    /// The store could not do it now. An application sees `errno`, unless that would tell it something else: that
    /// its file is non-blocking, or not there.
    pub fn unavailable(name: &str, errno: Errno, reason: impl Into<String>) -> Self {
        let misleads = matches!(errno, Errno::EAGAIN | Errno::ENOENT);
        let errno = if misleads { Errno::EIO } else { errno };
        StoreError {
            name: name.to_owned(),
            trouble: Trouble::Unavailable,
            errno,
            reason: reason.into(),
            next_step: "check that the block store is reachable, writable and not full; it is tried again",
        }
    }

    /// The session that the object is named after is over.
    pub fn session_over(name: &str) -> Self {
        StoreError {
            name: name.to_owned(),
            trouble: Trouble::SessionOver,
            errno: Errno::ESTALE,
            reason: "the session that it is named after is over".to_owned(),
            next_step: "its bytes are stored under another name",
        }
    }

    /// The block that was said to show the bytes shows others.
    pub fn not_shown(name: &str) -> Self {
        StoreError {
            name: name.to_owned(),
            trouble: Trouble::NotShown,
            errno: Errno::EIO,
            reason: "the block does not show these bytes of it".to_owned(),
            next_step: "ask for the slices of the block again",
        }
    }

    /// The error that a server answered with for `name` (see [`StoreError::wire_errno`]).
    pub fn from_wire(name: &str, errno: Errno) -> Self {
        match errno {
            Errno::ENOENT => Self::missing(name, "the metadata server does not find it in the block store"),
            Errno::EIO => Self::damaged(name, "the metadata server found it damaged"),
            Errno::ESTALE => Self::not_shown(name),
            other => Self::unavailable(name, other, format!("the metadata server answered {other}")),
        }
    }

    /// The error number that carries the kind of trouble over the wire.
    pub fn wire_errno(&self) -> Errno {
        match self.trouble {
            Trouble::Missing => Errno::ENOENT,
            Trouble::Damaged => Errno::EIO,
            Trouble::SessionOver | Trouble::NotShown => Errno::ESTALE,
            Trouble::Unavailable if self.errno == Errno::EIO => Errno::EAGAIN,
            Trouble::Unavailable => self.errno,
        }
    }
}
