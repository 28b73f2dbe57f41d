//! Errors of images and of their restore: what was tried, on what, why it failed, what to do.

use crate::tree::Damage;
use std::io;
use std::path::{Path, PathBuf};

/// Why an image or a restore failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Error {
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{0} exists: an image is never overwritten; delete it (snap-create delete) or make another snapshot"
    )]
    Exists(PathBuf),
    #[error("{destdir} lies in {path}, which is to be copied: name a --destdir outside of it")]
    Inside { destdir: PathBuf, path: PathBuf },
    #[error("{0} is no folder: --path names the data folder of the server")]
    NotAFolder(PathBuf),
    #[error(
        "the name {0:?} is not UTF-8, which a manifest cannot hold: rename it, or use a method that does not copy"
    )]
    NotUtf8(PathBuf),
    #[error("{0} is neither file, folder, link, socket nor pipe: take it out of the data folder")]
    Special(PathBuf),
    #[error(
        "cannot share blocks of {from} with {to}: {source}; --method reflink needs both on one btrfs or xfs (with reflink=1): use --method copy or another --destdir"
    )]
    NoReflink { from: PathBuf, to: PathBuf, source: io::Error },
    #[error("{0} is not on btrfs: use another --method, or put the data folder into a subvolume of a btrfs")]
    NotBtrfs(PathBuf),
    #[error(
        "{0} lies in no subvolume that can be reached from it (it may be a bind mount): name it by a path below its subvolume"
    )]
    NoSubvolume(PathBuf),
    #[error(
        "{0} is a subvolume of its own, which the snapshot of the one around it does not hold: make it a plain folder"
    )]
    NestedSubvolume(PathBuf),
    #[error("{command} failed: {said}")]
    Tool { command: String, said: String },
    #[error("--method command needs --command NAME: the name of a program in {0}")]
    NoCommand(PathBuf),
    #[error(transparent)]
    NotWhitelisted(#[from] crate::whitelist::NotWhitelisted),
    #[error("the server's address is not known: {0}; give it with --address IP:PORT")]
    NoAddress(String),
    #[error("{path} is not a cluster file: {why}")]
    ClusterFile { path: PathBuf, why: String },
    #[error("{path} cannot be read as a manifest: {why}; the image counts for nothing, take another")]
    Manifest { path: PathBuf, why: String },
    #[error("no image of {uid} is below {place}: look with snap-create list")]
    NoImages { uid: crate::SnapshotUid, place: PathBuf },
    #[error("{place}: {damage}; this image must not be restored, take another")]
    Damaged { place: PathBuf, damage: Damage },
    #[error(transparent)]
    Restore(#[from] crate::restore::Refused),
    #[error(transparent)]
    Own(#[from] crate::restore::own::Refused),
}

impl Error {
    /// For `map_err` on a call of the system.
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source: source.into() }
    }
}
