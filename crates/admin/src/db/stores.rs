//! Metadata stores.

use super::{
    column, deleted, holds, logs, new_id, now_ns, set_setting, setting, shown, taken, to_sql, unsigned,
};
use crate::AdminError;
use crate::model::{MetadataStore, check_name};
use chronofs_wire::log::LogEpoch;
use rusqlite::{OptionalExtension, Row, Transaction, params};

/// Setting: id of the metadata store that holds the operators' key space.
const KEY_STORE: &str = "key_store";

const METADATA: &str = "metadata-store";

fn read_metadata(row: &Row<'_>) -> rusqlite::Result<MetadataStore> {
    Ok(MetadataStore {
        id: row.get("id")?,
        name: row.get("name")?,
        created: shown(unsigned(row, "created_ns")?),
        address: row.get("address")?,
        epoch: unsigned(row, "epoch")?,
        connected: false,
        volumes: Vec::new(),
        log: LogEpoch::default(),
        token: None,
    })
}

/// Creates a metadata store, without a token.
pub fn create_metadata(tx: &Transaction<'_>, name: &str) -> Result<MetadataStore, AdminError> {
    check_name(METADATA, name)?;
    let id = new_id();
    tx.execute(
        "INSERT INTO metadata_store (id, name, created_ns) VALUES (?1, ?2, ?3)",
        params![id, name, to_sql(now_ns())],
    )
    .map_err(taken(METADATA, name))?;
    find_metadata(tx, &id)
}

/// A metadata store that was known before under this id, without a token.
pub fn bring_back(tx: &Transaction<'_>, id: &str, name: &str) -> Result<(), AdminError> {
    check_name(METADATA, name)?;
    let sql = "INSERT INTO metadata_store (id, name, created_ns) VALUES (?1, ?2, ?3)";
    tx.execute(sql, params![id, name, to_sql(now_ns())]).map_err(taken(METADATA, name))?;
    Ok(())
}

const SELECT_METADATA: &str = "
SELECT metadata_store.*, registration.address AS address
FROM metadata_store LEFT JOIN registration
    ON registration.metadata_store = metadata_store.id AND registration.epoch = metadata_store.epoch";

/// All metadata stores by name.
pub fn list_metadata(tx: &Transaction<'_>) -> Result<Vec<MetadataStore>, AdminError> {
    let mut statement = tx.prepare_cached(&format!("{SELECT_METADATA} ORDER BY name"))?;
    let mut stores = statement.query_map([], read_metadata)?.collect::<Result<Vec<_>, _>>()?;
    for store in &mut stores {
        store.volumes = metadata_volumes(tx, &store.id)?;
        store.log = logs::of(tx, &store.id)?;
    }
    Ok(stores)
}

/// The metadata store with this name or id.
pub fn find_metadata(tx: &Transaction<'_>, key: &str) -> Result<MetadataStore, AdminError> {
    let sql = format!("{SELECT_METADATA} WHERE metadata_store.name = ?1 OR metadata_store.id = ?1");
    let found = tx.query_row(&sql, [key], read_metadata).optional()?;
    let mut store = found.ok_or_else(|| AdminError::NotFound { what: METADATA, name: key.to_owned() })?;
    store.volumes = metadata_volumes(tx, &store.id)?;
    store.log = logs::of(tx, &store.id)?;
    Ok(store)
}

fn metadata_volumes(tx: &Transaction<'_>, id: &str) -> Result<Vec<String>, AdminError> {
    column(tx, "SELECT name FROM volume WHERE metadata_store = ?1 AND deleted_ns IS NULL ORDER BY name", id)
}

/// The metadata store that holds the operators' key space: the oldest one when that was asked for first. It stays the same
/// until it is deleted, with its keys.
pub fn key_store(tx: &Transaction<'_>) -> Result<Option<MetadataStore>, AdminError> {
    let known = match setting(tx, KEY_STORE)? {
        Some(id) => find_metadata(tx, &id).ok(),
        None => None,
    };
    if known.is_some() {
        return Ok(known);
    }
    let sql = "SELECT id FROM metadata_store ORDER BY created_ns, id LIMIT 1";
    let oldest: Option<String> = tx.query_row(sql, [], |row| row.get(0)).optional()?;
    let Some(id) = oldest else { return Ok(None) };
    set_setting(tx, KEY_STORE, &id)?;
    find_metadata(tx, &id).map(Some)
}

/// Deletes a metadata store that holds no volume, with its token. The folder of its server stays as it is.
pub fn delete_metadata(tx: &Transaction<'_>, key: &str) -> Result<(), AdminError> {
    let store = find_metadata(tx, key)?;
    refuse_used(METADATA, &store.name, &store.volumes, deleted::kept_in(tx, "metadata_store", &store.id)?)?;
    tx.execute("DELETE FROM volume WHERE metadata_store = ?1", [&store.id])?;
    holds::remove_of_store(tx, &store.id)?;
    tx.execute("DELETE FROM metadata_store WHERE id = ?1", [&store.id])?;
    Ok(())
}

/// Refuses to take away what volumes are in, also deleted ones that can be taken back.
pub(super) fn refuse_used(
    what: &'static str,
    name: &str,
    volumes: &[String],
    kept: Vec<String>,
) -> Result<(), AdminError> {
    let users: Vec<String> = volumes.iter().map(|volume| format!("volume '{volume}'")).chain(kept).collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(AdminError::InUse { what, name: name.to_owned(), users })
}
