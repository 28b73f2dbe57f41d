//! Extended attributes: those of files, and two that the mount itself answers on any of its files.

use super::{Vfs, reply};
use crate::objects::outage::OnStoreOutage;
use bytes::Bytes;
use chronofs_blocks::{CacheFigures, StoreOutage};
use chronofs_core::ops::{Reply, Request, XattrMode};
use chronofs_core::{Caller, Errno, Ino};
use serde::{Deserialize, Serialize};

/// Flushes the mount and gives the committed version. Not listed.
pub(crate) const INSTANT_XATTR: &str = "chronofs.instant";
/// How the mount is, in JSON, without asking the server. Not listed.
const STATUS_XATTR: &str = "chronofs.status";
/// The same. The kernel lets it through without asking for the attributes of the file, which would wait for a server
/// that is away.
pub(crate) const STATUS_XATTR_UNCHECKED: &str = "system.chronofs.status";

/// What [`STATUS_XATTR`] says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the volume.
    pub volume: String,
    /// The directory it is mounted on.
    pub dir: String,
    /// The instant shown, if not the present.
    pub at: Option<String>,
    /// Writing is refused.
    pub read_only: bool,
    /// How long the volume's past is kept, as the server said last: `7d`, `0` (not), `-1` (for ever).
    #[serde(default)]
    pub retention: Option<String>,
    /// The earliest instant of the volume that could be mounted then.
    #[serde(default)]
    pub earliest: Option<String>,
    /// The session.
    pub session: u64,
    /// Operations are answered now; else they wait.
    pub connected: bool,
    /// The error that the server refuses the mount with.
    pub refused: Option<String>,
    /// Address of the metadata server.
    pub server: String,
    /// Another session may change the volume.
    pub shared: bool,
    /// Requests without an answer.
    pub waiting: usize,
    /// Bytes that were written and are not stored.
    #[serde(default)]
    pub unstored_bytes: u64,
    /// What operations do that need the block store while it cannot be used.
    pub on_store_outage: OnStoreOutage,
    /// Since when and why the block store cannot be used, if it cannot.
    pub store_outage: Option<StoreOutage>,
    /// Reads of a bucket that were sent a second time because the first answer took long.
    #[serde(default)]
    pub hedged_reads: u64,
    /// Of those, how many were answered by the second request.
    #[serde(default)]
    pub hedged_reads_won: u64,
    /// The process.
    pub pid: u32,
    /// The disk cache, if there is one.
    #[serde(default)]
    pub disk_cache: Option<CacheFigures>,
}

impl Vfs {
    /// The value of `name`, if the mount itself knows it.
    pub(crate) fn try_getxattr(&self, name: &[u8]) -> Option<Result<Bytes, Errno>> {
        if name != STATUS_XATTR.as_bytes() && name != STATUS_XATTR_UNCHECKED.as_bytes() {
            return None;
        }
        Some(serde_json::to_vec(&self.status()).map(Bytes::from).map_err(|_| Errno::EIO))
    }

    /// The value of the attribute `name` of `ino`.
    pub(crate) async fn getxattr(&self, caller: Caller, ino: Ino, name: Bytes) -> Result<Bytes, Errno> {
        if name == INSTANT_XATTR.as_bytes() {
            return Ok(Bytes::from(self.sync_all().await?.to_string()));
        }
        match self.call(caller, Request::GetXattr { ino, name }).await? {
            (_, Reply::Bytes(value)) => Ok(value),
            (_, other) => Err(reply::unexpected(&other)),
        }
    }

    /// The names of the attributes of `ino`, each ended by a NUL as listxattr(2) gives them.
    pub(crate) async fn listxattr(&self, caller: Caller, ino: Ino) -> Result<Vec<u8>, Errno> {
        match self.call(caller, Request::ListXattr { ino }).await? {
            (_, Reply::Names(names)) => {
                Ok(names.iter().flat_map(|name| name.iter().copied().chain([0])).collect())
            }
            (_, other) => Err(reply::unexpected(&other)),
        }
    }

    /// Sets the attribute `name` of `ino`.
    pub(crate) async fn setxattr(
        &self,
        caller: Caller,
        ino: Ino,
        (name, value): (Bytes, Bytes),
        mode: XattrMode,
    ) -> Result<(), Errno> {
        self.writable()?;
        refuse_virtual(&name)?;
        let (version, _) = self.call(caller, Request::SetXattr { ino, name, value, mode }).await?;
        // The ctime changed, and with an ACL the mode.
        self.cache.changed(ino, version);
        Ok(())
    }

    /// Removes the attribute `name` of `ino`.
    pub(crate) async fn removexattr(&self, caller: Caller, ino: Ino, name: Bytes) -> Result<(), Errno> {
        self.writable()?;
        refuse_virtual(&name)?;
        let (version, _) = self.call(caller, Request::RemoveXattr { ino, name }).await?;
        self.cache.changed(ino, version);
        Ok(())
    }

    fn status(&self) -> Status {
        let (connection, hedges) = (self.connection.status(), self.data.hedges());
        Status {
            volume: self.labels.volume.clone(),
            dir: self.labels.dir.display().to_string(),
            at: self.at.map(|at| at.to_string()),
            read_only: self.read_only,
            retention: connection.window.map(|window| window.retention.to_string()),
            earliest: connection.window.map(|window| window.earliest.to_string()),
            session: connection.session.0,
            connected: connection.connected,
            refused: connection.refused.map(|errno| errno.to_string()),
            server: connection.address,
            shared: self.ttl().is_none(),
            waiting: connection.waiting,
            unstored_bytes: self.unstored(),
            on_store_outage: self.patience.on_outage,
            store_outage: self.patience.outage(),
            hedged_reads: hedges.sent,
            hedged_reads_won: hedges.won,
            pid: std::process::id(),
            disk_cache: self.data.disk().map(|disk| disk.figures()),
        }
    }
}

fn refuse_virtual(name: &Bytes) -> Result<(), Errno> {
    if name.starts_with(b"chronofs.") || name.starts_with(b"system.chronofs.") {
        Err(Errno::EPERM)
    } else {
        Ok(())
    }
}
