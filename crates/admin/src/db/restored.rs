//! A cluster that was restored from a disk snapshot: of which one, and whether somebody has accepted that.

use super::{block_stores, now_ns, parsed, set_setting, setting};
use crate::AdminError;
use chronofs_wire::admin::AssignedStore;
use chronofs_wire::secrets::SecretBox;
use chronofs_wire::status::RestoredCluster;
use rusqlite::Transaction;
use std::collections::BTreeMap;
use uuid::Uuid;

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

/// The block stores that volumes lie in, by their metadata stores: there a clone registers as a reader.
pub fn stores_of_volumes(tx: &Transaction<'_>) -> Result<BTreeMap<String, Vec<Uuid>>, AdminError> {
    let sql =
        "SELECT DISTINCT metadata_store, block_store AS id FROM volume WHERE gone_ns IS NULL ORDER BY 1, 2";
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, parsed::<Uuid>(row, "id")?)))?;
    let mut stores: BTreeMap<String, Vec<Uuid>> = BTreeMap::new();
    for row in rows {
        let (metadata_store, block_store) = row?;
        stores.entry(metadata_store).or_default().push(block_store);
    }
    Ok(stores)
}

/// Block stores in which the server of a metadata store may be registered as a reader, but for those that it is told of anyway.
/// One that was deleted here cannot be told any more.
pub fn reader_stores(
    tx: &Transaction<'_>,
    secrets: &SecretBox,
    store: &str,
    told: &[Uuid],
) -> Result<Vec<AssignedStore>, AdminError> {
    let attached = find(tx)?.filter(|restored| restored.detached_ns.is_none());
    let all = attached.and_then(|mut restored| restored.stores.remove(store)).unwrap_or_default();
    let mut stores = Vec::new();
    for id in all.into_iter().filter(|id| !told.contains(id)) {
        stores.extend(block_stores::assigned(tx, secrets, id)?);
    }
    Ok(stores)
}

/// Whether what the clone needs of its source is to be copied.
pub fn copies(tx: &Transaction<'_>) -> Result<bool, AdminError> {
    Ok(find(tx)?.is_some_and(|restored| restored.copying_ns.is_some()))
}

fn found(tx: &Transaction<'_>, nothing: &str) -> Result<RestoredCluster, AdminError> {
    find(tx)?.ok_or_else(|| {
        AdminError::Invalid(format!("this cluster was not restored from a disk snapshot, so {nothing}"))
    })
}

fn change(tx: &Transaction<'_>, restored: &RestoredCluster) -> Result<(), AdminError> {
    save(tx, restored)?;
    tx.execute("UPDATE metadata_store SET revision = revision + 1", [])?;
    Ok(())
}

/// The restore is as it should be; metadata servers learn of it. Doing it again changes nothing.
pub fn accept(tx: &Transaction<'_>) -> Result<RestoredCluster, AdminError> {
    let mut restored = found(tx, "there is nothing to accept")?;
    if restored.accepted_ns.is_none() {
        restored.accepted_ns = Some(now_ns());
        change(tx, &restored)?;
    }
    Ok(restored)
}

/// What the clone needs of its source is to be copied, or not any more; metadata servers learn of it. Doing it again changes
/// nothing.
pub fn copy(tx: &Transaction<'_>, copies: bool) -> Result<RestoredCluster, AdminError> {
    let mut restored = found(tx, "it needs nothing of another cluster")?;
    if copies && restored.accepted_ns.is_none() {
        return Err(AdminError::Conflict(format!(
            "nobody has accepted the restore of snapshot {}, and until then nothing is copied: look at the clone, then chronofs \
             restore accept",
            restored.uid
        )));
    }
    if copies != restored.copying_ns.is_some() {
        restored.copying_ns = copies.then(now_ns);
        change(tx, &restored)?;
    }
    Ok(restored)
}

/// The clone is registered nowhere any more.
pub fn detached(tx: &Transaction<'_>) -> Result<RestoredCluster, AdminError> {
    let mut restored = found(tx, "it reads none of another cluster")?;
    if restored.detached_ns.is_none() {
        restored.detached_ns = Some(now_ns());
        change(tx, &restored)?;
    }
    Ok(restored)
}
