//! Errors of backups: what was tried, on what, why it failed, what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a backup failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Error {
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{place}: {why}")]
    Place { place: String, why: String },
    #[error(transparent)]
    Key(#[from] chronofs_keys::Error),
    #[error("the cipher refuses to work")]
    Cipher,
    #[error("{0} is not opened by this key: name the key file that its first backup was made with")]
    WrongKey(String),
    #[error(
        "{0} is opened by a passphrase, and not by this key: name it with --passphrase-file or --passphrase"
    )]
    ByPassphrase(String),
    #[error(
        "{0} is opened by a key, and not by a passphrase: name the key file that its first backup was made with"
    )]
    ByKey(String),
    #[error("{0} is not opened by this passphrase")]
    WrongPassphrase(String),
    #[error("{place} holds the backups of cluster {found}, and not of {wanted}: name another place")]
    AnotherCluster { place: String, found: String, wanted: String },
    #[error(
        "{0} holds no backups: it has no chronofs-backup.json; is it the right place, and is its disk mounted?"
    )]
    NotADepot(String),
    #[error(
        "{0} holds something else than backups: name an empty folder, or one that a backup was made into"
    )]
    NotEmpty(String),
    #[error(
        "{0} is another place of backups than on the admin server: mount the same folder on every server"
    )]
    AnotherDepot(String),
    #[error("{name} in {place} is damaged: {why}")]
    Damaged { place: String, name: String, why: String },
    #[error("there is no backup {uid} in {place}: see chronofs backup list")]
    NoBackup { uid: String, place: String },
    #[error(
        "{file} of the image has other content than its label says: the disk or the memory of this server is damaged"
    )]
    Changed { file: String },
    #[error("the image of {role} of {node} was not stored here: is {place} the same folder on every server?")]
    NotStored { role: String, node: String, place: String },
    #[error("{place} is in use: {what} holds it for {seconds} s more at the most, unless that goes on")]
    Busy { place: String, what: String, seconds: u64 },
    #[error("the lease on {0} was lost to somebody else: is there a second admin server?")]
    LeaseLost(String),
    #[error("it was stopped")]
    Stopped,
    #[error(transparent)]
    Image(#[from] chronofs_snapshot::Error),
}

impl Error {
    /// For `map_err` on a call of the system.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }
}
