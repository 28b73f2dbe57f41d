//! Block stores and metadata stores.

use super::{column, new_id, now_ns, raise_revision, shown, taken, to_sql, unsigned};
use crate::AdminError;
use crate::model::{BlockStore, ChangeBlockStore, MetadataStore, NewBlockStore, check_folder, check_name};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

const BLOCK: &str = "block-store";
const METADATA: &str = "metadata-store";

fn read_block(row: &Row<'_>) -> rusqlite::Result<BlockStore> {
    Ok(BlockStore {
        id: row.get("id")?,
        name: row.get("name")?,
        kind: row.get("kind")?,
        path: row.get("path")?,
        created: shown(unsigned(row, "created_ns")?),
        volumes: Vec::new(),
    })
}

fn read_metadata(row: &Row<'_>) -> rusqlite::Result<MetadataStore> {
    Ok(MetadataStore {
        id: row.get("id")?,
        name: row.get("name")?,
        created: shown(unsigned(row, "created_ns")?),
        address: row.get("address")?,
        epoch: unsigned(row, "epoch")?,
        connected: false,
        volumes: Vec::new(),
        token: None,
    })
}

/// Creates a block store.
pub fn create_block(tx: &Transaction<'_>, new: &NewBlockStore) -> Result<BlockStore, AdminError> {
    check_name(BLOCK, &new.name)?;
    if new.kind != "local" {
        return Err(AdminError::Invalid(format!("'{}' is not a kind of block store: write local", new.kind)));
    }
    let path = check_folder(&new.path)?;
    let id = new_id();
    tx.execute(
        "INSERT INTO block_store (id, name, kind, path, created_ns) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, new.name, new.kind, path, to_sql(now_ns())],
    )
    .map_err(taken(BLOCK, &new.name))?;
    find_block(tx, &id)
}

/// All block stores by name.
pub fn list_blocks(tx: &Transaction<'_>) -> Result<Vec<BlockStore>, AdminError> {
    let mut statement = tx.prepare_cached("SELECT * FROM block_store ORDER BY name")?;
    let mut stores = statement.query_map([], read_block)?.collect::<Result<Vec<_>, _>>()?;
    for store in &mut stores {
        store.volumes = block_volumes(tx, &store.id)?;
    }
    Ok(stores)
}

/// The block store with this name or id.
pub fn find_block(tx: &Transaction<'_>, key: &str) -> Result<BlockStore, AdminError> {
    let sql = "SELECT * FROM block_store WHERE name = ?1 OR id = ?1";
    let found = tx.query_row(sql, [key], read_block).optional()?;
    let mut store = found.ok_or_else(|| AdminError::NotFound { what: BLOCK, name: key.to_owned() })?;
    store.volumes = block_volumes(tx, &store.id)?;
    Ok(store)
}

fn block_volumes(tx: &Transaction<'_>, id: &str) -> Result<Vec<String>, AdminError> {
    column(tx, "SELECT name FROM volume WHERE block_store = ?1 AND deleted_ns IS NULL ORDER BY name", id)
}

/// A block store that is to move.
pub struct Move {
    /// Its id.
    pub store: Uuid,
    /// Where to.
    pub path: String,
    /// Ids and names of the metadata stores that have volumes in it.
    pub servers: Vec<(String, String)>,
}

/// Who must look before the block store moves.
pub fn plan_move(tx: &Transaction<'_>, key: &str, path: &str) -> Result<Move, AdminError> {
    let path = check_folder(path)?;
    let store = find_block(tx, key)?;
    let sql = "SELECT DISTINCT metadata_store.id, metadata_store.name FROM volume
        JOIN metadata_store ON metadata_store.id = volume.metadata_store
        WHERE block_store = ?1 AND deleted_ns IS NULL ORDER BY metadata_store.name";
    let mut statement = tx.prepare_cached(sql)?;
    let servers = statement.query_map([&store.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let servers = servers.collect::<Result<_, _>>()?;
    let store = store.id.parse().map_err(|e| AdminError::Internal(format!("id of block store: {e}")))?;
    Ok(Move { store, path, servers })
}

/// Changes a block store; the metadata servers of its volumes learn of it.
pub fn change_block(
    tx: &Transaction<'_>,
    key: &str,
    change: &ChangeBlockStore,
) -> Result<BlockStore, AdminError> {
    let store = find_block(tx, key)?;
    if let Some(path) = &change.path {
        let path = check_folder(path)?;
        tx.execute("UPDATE block_store SET path = ?2 WHERE id = ?1", params![store.id, path])?;
        let sql = "SELECT DISTINCT metadata_store FROM volume WHERE block_store = ?1";
        for id in column::<String>(tx, sql, &store.id)? {
            raise_revision(tx, &id)?;
        }
    }
    find_block(tx, &store.id)
}

/// Deletes a block store that no volume uses. Its folder stays as it is.
pub fn delete_block(tx: &Transaction<'_>, key: &str) -> Result<(), AdminError> {
    let store = find_block(tx, key)?;
    refuse_used(BLOCK, &store.name, &store.volumes)?;
    let sql = "SELECT DISTINCT metadata_store FROM volume WHERE block_store = ?1";
    for id in column::<String>(tx, sql, &store.id)? {
        raise_revision(tx, &id)?;
    }
    tx.execute("DELETE FROM volume WHERE block_store = ?1", [&store.id])?;
    tx.execute("DELETE FROM block_store WHERE id = ?1", [&store.id])?;
    Ok(())
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
    }
    Ok(stores)
}

/// The metadata store with this name or id.
pub fn find_metadata(tx: &Transaction<'_>, key: &str) -> Result<MetadataStore, AdminError> {
    let sql = format!("{SELECT_METADATA} WHERE metadata_store.name = ?1 OR metadata_store.id = ?1");
    let found = tx.query_row(&sql, [key], read_metadata).optional()?;
    let mut store = found.ok_or_else(|| AdminError::NotFound { what: METADATA, name: key.to_owned() })?;
    store.volumes = metadata_volumes(tx, &store.id)?;
    Ok(store)
}

fn metadata_volumes(tx: &Transaction<'_>, id: &str) -> Result<Vec<String>, AdminError> {
    column(tx, "SELECT name FROM volume WHERE metadata_store = ?1 AND deleted_ns IS NULL ORDER BY name", id)
}

/// Deletes a metadata store that holds no volume, with its token. The folder of its server stays as it is.
pub fn delete_metadata(tx: &Transaction<'_>, key: &str) -> Result<(), AdminError> {
    let store = find_metadata(tx, key)?;
    refuse_used(METADATA, &store.name, &store.volumes)?;
    tx.execute("DELETE FROM volume WHERE metadata_store = ?1", [&store.id])?;
    tx.execute("DELETE FROM metadata_store WHERE id = ?1", [&store.id])?;
    Ok(())
}

fn refuse_used(what: &'static str, name: &str, volumes: &[String]) -> Result<(), AdminError> {
    if volumes.is_empty() {
        return Ok(());
    }
    let users = volumes.iter().map(|volume| format!("volume '{volume}'")).collect();
    Err(AdminError::InUse { what, name: name.to_owned(), users })
}
