//! What can go wrong when a mount is started, stopped or asked, for the person at the terminal.

use crate::connection::OpenError;
use crate::keys::KeyError;
use chronofs_core::time::BadInstant;
use chronofs_wire::http::ClientError;
use chronofs_wire::token::BadToken;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// See the module.
#[derive(Debug, Error)]
pub enum MountError {
    /// The directory cannot be mounted on.
    #[error("cannot mount on {}: {reason}", dir.display())]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The folder of the disk cache cannot be used.
    #[error("the disk cache in {}: {reason}", dir.display())]
    DiskCache {
        /// The folder.
        dir: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no chronofs mount.
    #[error("{} is not a chronofs mount; `chronofs mount list` shows those there are", .0.display())]
    NotMounted(PathBuf),
    /// Something still uses the mount.
    #[error(
        "{} is in use: close what is open in it (`fuser -vm {}` shows who) and try again", .0.display(), .0.display()
    )]
    InUse(PathBuf),
    /// The token does not read.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// The instant does not read.
    #[error(transparent)]
    Instant(#[from] BadInstant),
    /// The admin server did not help.
    #[error(transparent)]
    Admin(#[from] ClientError),
    /// The keys of an encrypted volume are not to be had.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// No session.
    #[error("cannot mount the volume '{volume}': {source}")]
    Open {
        /// The volume.
        volume: String,
        /// Why not.
        source: Box<OpenError>,
    },
    /// The bucket cannot be used with the mount's own credentials.
    #[error("cannot mount the volume '{volume}' with credentials of its bucket: {reason}")]
    Direct {
        /// The volume.
        volume: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The child that was to serve the mount said why it does not.
    #[error("{0}")]
    Child(String),
    /// What was written could not all be stored.
    #[error(
        "{volume}: not everything that was written could be stored ({errno}): {bytes} bytes are lost; the log says of which \
         files"
    )]
    Unflushed {
        /// The volume.
        volume: String,
        /// What is lost of it.
        bytes: u64,
        /// The last error.
        errno: chronofs_core::Errno,
    },
    /// The process that served a mount goes on storing what was written.
    #[error(
        "{} is unmounted, and not all that was written is stored yet ({what}); process {pid} keeps it and goes on for as \
         long as it takes; `kill {pid}` gives up what cannot be stored", dir.display()
    )]
    StillStoring {
        /// Where it was mounted.
        dir: PathBuf,
        /// The process.
        pid: u32,
        /// What is not stored, and why.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
}

impl MountError {
    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| MountError::System { action, source }
    }

    /// Whether the server refused because of the instant: outside the window, in the future, or in a gap.
    pub fn is_refused(&self) -> bool {
        matches!(self, MountError::Open { source, .. } if matches!(**source, OpenError::Refused(_)))
    }
}
