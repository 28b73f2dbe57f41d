//! Backups: sets of images of all servers, in pieces that are named by their content and sealed, in a folder or a bucket.
//!
//! A backup is a disk snapshot whose program is built in ([`PROGRAM`]): each member stores its own images ([`Depot::store`]),
//! and when the set is complete the coordinator writes the [`Manifest`], last ([`Depot::finish`]). What has no manifest is no
//! backup. Pieces that an earlier backup stored are not stored again, and no backup needs another: there is no chain.
//!
//! Whoever has the key and the place can list, verify and restore, without any server.

mod at_once;
mod bucket;
mod depot;
mod error;
mod folder;
mod key;
mod lease;
mod manifest;
mod member;
mod piece;
mod place;
pub mod record;
pub mod schedule;

pub use depot::{Damage, Depot, Depth, Listed, Stored};
pub use error::Error;
pub use key::{Key, Unlock};
pub use lease::Lease;
pub use manifest::{Image, Manifest};
pub use member::{Plan, store_image};
pub use place::{Place, Where};

/// What stands in a snapshot's record in the place of a program.
pub use chronofs_snapshot::agent::BACKUP as PROGRAM;
