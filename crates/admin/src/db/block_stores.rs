//! Block stores. Their credentials are sealed before they are written, and unsealed for metadata servers and probes only.

use super::stores::refuse_used;
use super::{
    column, deleted, maybe_unsigned, new_id, now_ns, raise_revision, shown, taken, to_sql, unsigned,
};
use crate::AdminError;
use crate::model::BlockStore;
use chronofs_blocks::probe::Report;
use chronofs_core::store::{Credentials, StoreKind};
use chronofs_wire::admin::AssignedStore;
use chronofs_wire::secrets::SecretBox;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// Its word in messages.
pub(crate) const BLOCK: &str = "block-store";

/// What is written of a block store besides its name, all of it checked.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it is.
    pub definition: StoreKind,
    /// What opens it.
    pub credentials: Credentials,
    /// What its probe found, if it was probed.
    pub probe: Option<Report>,
}

/// An id for a new block store.
pub(crate) fn draw_id() -> String {
    new_id()
}

/// A column of JSON that this program wrote.
fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(e)))
}

/// The definition in `column`.
pub(super) fn definition(row: &Row<'_>, column: &str) -> rusqlite::Result<StoreKind> {
    json(row, column)
}

/// Whether the store was seen to be honest about create-only puts.
pub(super) fn create_only(row: &Row<'_>) -> rusqlite::Result<bool> {
    Ok(probe(row)?.is_some_and(|report| report.create_only))
}

fn probe(row: &Row<'_>) -> rusqlite::Result<Option<Report>> {
    match row.get::<_, Option<String>>("probe")? {
        Some(_) => json(row, "probe").map(Some),
        None => Ok(None),
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<BlockStore> {
    let definition: StoreKind = json(row, "definition")?;
    let probe = probe(row)?;
    let weaknesses = probe.as_ref().map(Report::weaknesses).unwrap_or_default();
    Ok(BlockStore {
        id: row.get("id")?,
        name: row.get("name")?,
        kind: definition.word().to_owned(),
        place: definition.to_string(),
        definition,
        credentials: row.get("credentials_shown")?,
        probed: maybe_unsigned(row, "probed_ns")?.map(shown),
        probe,
        weaknesses,
        created: shown(unsigned(row, "created_ns")?),
        volumes: Vec::new(),
    })
}

/// Refuses an id that is known already.
pub fn must_be_unknown(tx: &Transaction<'_>, id: &str) -> Result<(), AdminError> {
    match find(tx, id) {
        Ok(known) => Err(AdminError::Taken(format!("this place is block store '{}' already", known.name))),
        Err(AdminError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a block store. `place` was checked, and so was `name`.
pub fn create(
    tx: &Transaction<'_>,
    secrets: &SecretBox,
    id: &str,
    name: &str,
    place: &Place,
) -> Result<BlockStore, AdminError> {
    tx.execute(
        "INSERT INTO block_store (id, name, definition, created_ns) VALUES (?1, ?2, '{}', ?3)",
        params![id, name, to_sql(now_ns())],
    )
    .map_err(taken(BLOCK, name))?;
    set(tx, secrets, id, place)?;
    find(tx, id)
}

/// Writes where a block store is; the metadata servers of its volumes learn of it.
pub fn set(tx: &Transaction<'_>, secrets: &SecretBox, id: &str, place: &Place) -> Result<(), AdminError> {
    let bucket = place.definition.bucket().is_some();
    let sealed = if bucket { Some(secrets.seal(id, &text(&place.credentials)?)?) } else { None };
    tx.execute(
        "UPDATE block_store SET definition = ?2, credentials = ?3, credentials_shown = ?4 WHERE id = ?1",
        params![id, text(&place.definition)?, sealed, bucket.then(|| place.credentials.describe())],
    )?;
    set_probe(tx, id, place.probe.as_ref())
}

/// Writes what a probe found; `None` when what is there now was not probed.
pub fn set_probe(tx: &Transaction<'_>, id: &str, probe: Option<&Report>) -> Result<(), AdminError> {
    let report = probe.map(text).transpose()?;
    let probed = probe.map(|_| to_sql(now_ns()));
    tx.execute(
        "UPDATE block_store SET probe = ?2, probed_ns = ?3 WHERE id = ?1",
        params![id, report, probed],
    )?;
    tell(tx, id)
}

fn text(value: &impl serde::Serialize) -> Result<String, AdminError> {
    serde_json::to_string(value).map_err(|e| AdminError::Internal(format!("JSON: {e}")))
}

/// A place as it is written, to be compared only: sealed anew, the same credentials are other bytes.
#[derive(PartialEq, Eq)]
pub struct Written(String, Option<Vec<u8>>);

/// The block store with this name or id, and its place as it is written.
pub fn find_written(tx: &Transaction<'_>, key: &str) -> Result<(BlockStore, Written), AdminError> {
    let store = find(tx, key)?;
    let written = written(tx, &store.id)?;
    Ok((store, written))
}

fn written(tx: &Transaction<'_>, id: &str) -> Result<Written, AdminError> {
    let sql = "SELECT definition, credentials FROM block_store WHERE id = ?1";
    Ok(tx.query_row(sql, [id], |row| Ok(Written(row.get(0)?, row.get(1)?)))?)
}

/// Refuses to go on with what was found out about a place that is another now.
pub fn must_be_as_it_was(tx: &Transaction<'_>, id: &str, before: &Written) -> Result<(), AdminError> {
    let store = find(tx, id)?;
    if written(tx, id)? == *before {
        return Ok(());
    }
    Err(AdminError::Changed { what: BLOCK, name: store.name })
}

/// What a store is opened with.
pub fn place(tx: &Transaction<'_>, secrets: &SecretBox, id: &str) -> Result<Place, AdminError> {
    let sql = "SELECT * FROM block_store WHERE id = ?1";
    let (name, sealed, mut place) = tx.query_row(sql, [id], |row| {
        let credentials = Credentials::Ambient;
        let place = Place { definition: json(row, "definition")?, credentials, probe: probe(row)? };
        Ok((row.get::<_, String>("name")?, row.get::<_, Option<Vec<u8>>>("credentials")?, place))
    })?;
    place.credentials = unseal(secrets, id, &name, sealed)?;
    Ok(place)
}

/// What a metadata server is told of a block store, if there is one of this id.
pub(super) fn assigned(
    tx: &Transaction<'_>,
    secrets: &SecretBox,
    id: Uuid,
) -> Result<Option<AssignedStore>, AdminError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM block_store WHERE id = ?1)";
    if !tx.query_row(sql, [id.to_string()], |row| row.get(0))? {
        return Ok(None);
    }
    let place = place(tx, secrets, &id.to_string())?;
    let create_only = place.probe.is_some_and(|report| report.create_only);
    Ok(Some(AssignedStore { id, kind: place.definition, credentials: place.credentials, create_only }))
}

/// The block store with this name or id, with what a metadata server needs to open it.
pub fn find_assigned(
    tx: &Transaction<'_>,
    secrets: &SecretBox,
    key: &str,
) -> Result<AssignedStore, AdminError> {
    let store = find(tx, key)?;
    let id = Uuid::parse_str(&store.id)
        .map_err(|error| AdminError::Internal(format!("block store id '{}': {error}", store.id)))?;
    let none = || AdminError::NotFound { what: BLOCK, name: key.to_owned() };
    assigned(tx, secrets, id)?.ok_or_else(none)
}

/// Opens sealed credentials.
pub(super) fn unseal(
    secrets: &SecretBox,
    id: &str,
    name: &str,
    sealed: Option<Vec<u8>>,
) -> Result<Credentials, AdminError> {
    let Some(sealed) = sealed else { return Ok(Credentials::Ambient) };
    // Not now, but for metadata servers: they go on with what they were told last.
    let unreadable = |why: String| {
        AdminError::Unavailable(format!(
            "the credentials of block-store '{name}' cannot be read: {why}; give them anew with chronofs configure \
             update block-store {name}"
        ))
    };
    let text = secrets.unseal(id, &sealed).map_err(|e| unreadable(e.to_string()))?;
    // What serde would say could hold a part of it.
    serde_json::from_str(&text)
        .map_err(|_| unreadable("they have another form than this program knows".to_owned()))
}

/// Whether there are sealed credentials.
pub fn any_sealed(tx: &Transaction<'_>) -> Result<bool, AdminError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM block_store WHERE credentials IS NOT NULL)";
    Ok(tx.query_row(sql, [], |row| row.get(0))?)
}

/// A folder that a block store is to move to.
pub struct Move {
    /// The id of the block store.
    pub store: Uuid,
    /// Where to.
    pub path: String,
    /// Ids and names of the metadata stores that have volumes in it.
    pub servers: Vec<(String, String)>,
}

/// Who must look before the block store moves.
pub fn plan_move(tx: &Transaction<'_>, id: &str, path: &str) -> Result<Move, AdminError> {
    let sql = "SELECT DISTINCT metadata_store.id, metadata_store.name FROM volume
        JOIN metadata_store ON metadata_store.id = volume.metadata_store
        WHERE block_store = ?1 AND deleted_ns IS NULL ORDER BY metadata_store.name";
    let mut statement = tx.prepare_cached(sql)?;
    let servers = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let servers = servers.collect::<Result<_, _>>()?;
    let store = id.parse().map_err(|e| AdminError::Internal(format!("id of block store: {e}")))?;
    Ok(Move { store, path: path.to_owned(), servers })
}

/// How many block stores there are.
pub fn count(tx: &Transaction<'_>) -> Result<u64, AdminError> {
    Ok(tx.query_row("SELECT count(*) AS n FROM block_store", [], |row| unsigned(row, "n"))?)
}

/// All block stores by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<BlockStore>, AdminError> {
    let mut statement = tx.prepare_cached("SELECT * FROM block_store ORDER BY name")?;
    let mut stores = statement.query_map([], read)?.collect::<Result<Vec<_>, _>>()?;
    for store in &mut stores {
        store.volumes = volumes(tx, &store.id)?;
    }
    Ok(stores)
}

/// Refuses a name that is taken, before anything else is tried.
pub fn must_be_free(tx: &Transaction<'_>, name: &str) -> Result<(), AdminError> {
    match find(tx, name) {
        Err(AdminError::NotFound { .. }) => Ok(()),
        Ok(_) => Err(AdminError::Exists { what: BLOCK, name: name.to_owned() }),
        Err(error) => Err(error),
    }
}

/// The block store with this name or id.
pub fn find(tx: &Transaction<'_>, key: &str) -> Result<BlockStore, AdminError> {
    let sql = "SELECT * FROM block_store WHERE name = ?1 OR id = ?1";
    let found = tx.query_row(sql, [key], read).optional()?;
    let mut store = found.ok_or_else(|| AdminError::NotFound { what: BLOCK, name: key.to_owned() })?;
    store.volumes = volumes(tx, &store.id)?;
    Ok(store)
}

fn volumes(tx: &Transaction<'_>, id: &str) -> Result<Vec<String>, AdminError> {
    column(tx, "SELECT name FROM volume WHERE block_store = ?1 AND deleted_ns IS NULL ORDER BY name", id)
}

fn tell(tx: &Transaction<'_>, id: &str) -> Result<(), AdminError> {
    let sql = "SELECT DISTINCT metadata_store FROM volume WHERE block_store = ?1";
    for metadata in column::<String>(tx, sql, id)? {
        raise_revision(tx, &metadata)?;
    }
    Ok(())
}

/// Deletes a block store that no volume uses. What is in it stays as it is.
pub fn delete(tx: &Transaction<'_>, key: &str) -> Result<(), AdminError> {
    let store = find(tx, key)?;
    refuse_used(BLOCK, &store.name, &store.volumes, deleted::kept_in(tx, "block_store", &store.id)?)?;
    tell(tx, &store.id)?;
    tx.execute("DELETE FROM volume WHERE block_store = ?1", [&store.id])?;
    tx.execute("DELETE FROM block_store WHERE id = ?1", [&store.id])?;
    Ok(())
}
