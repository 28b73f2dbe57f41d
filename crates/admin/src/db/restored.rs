//! A cluster that was restored from a disk snapshot: of which one, and whether somebody has accepted that.

use super::{now_ns, set_setting, setting};
use crate::AdminError;
use chronofs_wire::status::RestoredCluster;
use rusqlite::Transaction;

/// Setting: JSON of [`RestoredCluster`].
const RESTORED: &str = "restored";

/// What the cluster was restored from, if it was.
pub fn find(tx: &Transaction<'_>) -> Result<Option<RestoredCluster>, AdminError> {
    let text = setting(tx, RESTORED)?;
    let read = text.map(|text| serde_json::from_str(&text)).transpose();
    read.map_err(|e| AdminError::Internal(format!("what the cluster was restored from: {e}")))
}

/// Keeps what the cluster was restored from.
pub fn save(tx: &Transaction<'_>, restored: &RestoredCluster) -> Result<(), AdminError> {
    let text = serde_json::to_string(restored).map_err(|e| AdminError::Internal(e.to_string()))?;
    set_setting(tx, RESTORED, &text)
}

/// The snapshot that the cluster was restored from, once that is accepted.
pub fn accepted(tx: &Transaction<'_>) -> Result<Option<String>, AdminError> {
    Ok(find(tx)?.filter(|restored| restored.accepted_ns.is_some()).map(|restored| restored.uid))
}

/// The restore is as it should be; metadata servers learn of it. Doing it again changes nothing.
pub fn accept(tx: &Transaction<'_>) -> Result<RestoredCluster, AdminError> {
    let found = find(tx)?;
    let mut restored = found.ok_or_else(|| {
        AdminError::Invalid(
            "this cluster was not restored from a disk snapshot, so there is nothing to accept".to_owned(),
        )
    })?;
    if restored.accepted_ns.is_none() {
        restored.accepted_ns = Some(now_ns());
        save(tx, &restored)?;
        tx.execute("UPDATE metadata_store SET revision = revision + 1", [])?;
    }
    Ok(restored)
}
