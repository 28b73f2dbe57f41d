//! Volumes.

use super::{
    block_stores, column, deleted, holds, maybe_unsigned, new_id, now_ns, parsed, raise_revision, shown,
    stores, taken, to_sql, tokens, unsigned,
};
use crate::AdminError;
use crate::model::{
    ChangeVolume, ChangeVolumeKeys, NewVolume, Volume, check_block_size, check_name, check_quota,
};
use crate::retention::{Next, Standing};
use chronofs_core::Retention;
use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
use chronofs_keys::SealedKeys;
use chronofs_wire::admin::KeptKeys;
use chronofs_wire::identity;
use rusqlite::{OptionalExtension, Row, Transaction, params};

const WHAT: &str = "volume";
const DAY_S: u64 = 86_400;

/// The retention of a volume that was created without one.
pub const RETENTION_DEFAULT: Retention = Retention::Seconds(7 * DAY_S);

const SELECT: &str = "
SELECT volume.*, block_store.name AS block_store_name, metadata_store.name AS metadata_store_name
FROM volume
    JOIN block_store ON block_store.id = volume.block_store
    JOIN metadata_store ON metadata_store.id = volume.metadata_store
WHERE deleted_ns IS NULL";

/// A volume with the id of its metadata store, which tells whether its server is connected.
pub struct Found {
    /// The volume; `state` says `waiting` when there is no report yet.
    pub volume: Volume,
    /// Id of its metadata store.
    pub metadata_store: String,
}

/// How a compression is written.
pub fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

/// Reads what [`compression_name`] wrote.
pub fn parse_compression(text: &str) -> Result<Compression, AdminError> {
    match text {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(Compression::Zstd),
        _ => Err(AdminError::Invalid(format!("'{text}' is not a compression: write lz4, zstd or none"))),
    }
}

pub(super) fn compression(row: &Row<'_>) -> rusqlite::Result<Compression> {
    let text: String = row.get("compression")?;
    parse_compression(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

fn standing(row: &Row<'_>) -> rusqlite::Result<Standing> {
    let next = match maybe_unsigned(row, "retention_next_ns")? {
        Some(from_ns) => Some(Next { retention: parsed(row, "retention_next")?, from_ns }),
        None => None,
    };
    Ok(Standing { now: parsed(row, "retention")?, next })
}

fn read(row: &Row<'_>) -> rusqlite::Result<Found> {
    let born = maybe_unsigned(row, "born_ns")?;
    let problem: Option<String> = row.get("problem")?;
    let state = match (&problem, born) {
        (Some(_), _) => "problem",
        (None, Some(_)) => "ready",
        (None, None) => "waiting",
    };
    let next = standing(row)?.next;
    let encryption = row.get::<_, Option<String>>("keys")?.map(|keys| match SealedKeys::parse(&keys) {
        Ok(keys) => keys.shown(),
        Err(error) => error.to_string(),
    });
    let volume = Volume {
        id: row.get("id")?,
        name: row.get("name")?,
        block_store: row.get("block_store_name")?,
        metadata_store: row.get("metadata_store_name")?,
        block_size: row.get("block_size")?,
        compression: compression(row)?,
        retention: parsed(row, "retention")?,
        next_retention: next.map(|next| next.retention),
        next_retention_at: next.map(|next| shown(next.from_ns)),
        next_earliest: next.map(|next| next.earliest().to_string()),
        max_bytes: maybe_unsigned(row, "max_bytes")?,
        max_inodes: maybe_unsigned(row, "max_inodes")?,
        created: shown(unsigned(row, "created_ns")?),
        state: state.to_owned(),
        detail: problem,
        earliest: maybe_unsigned(row, "earliest_ns")?.map(shown),
        encryption,
        used_bytes: maybe_unsigned(row, "used_bytes")?,
        used_inodes: maybe_unsigned(row, "used_inodes")?,
        sessions: row.get("sessions")?,
    };
    Ok(Found { volume, metadata_store: row.get("metadata_store")? })
}

/// Creates a volume; its metadata server learns of it.
pub fn create(tx: &Transaction<'_>, new: &NewVolume) -> Result<Found, AdminError> {
    check_name(WHAT, &new.name)?;
    let block_size = check_block_size(new.block_size.unwrap_or(BLOCK_SIZE_DEFAULT.into()))?;
    check_quota("bytes", new.max_bytes)?;
    check_quota("inodes", new.max_inodes)?;
    let block_store = block_stores::find(tx, &new.block_store)?;
    let metadata_store = stores::find_metadata(tx, &new.metadata_store)?;
    let keys = new.keys.as_ref().map(written).transpose()?;
    // Keys are bound to the id of their volume.
    let id = new.keys.as_ref().map_or_else(new_id, |keys| keys.volume().to_string());
    tx.execute(
        "INSERT INTO volume (id, name, block_store, metadata_store, block_size, compression, retention, max_bytes,
            max_inodes, hash_key, created_ns, keys, keys_revision)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            id,
            new.name,
            block_store.id,
            metadata_store.id,
            block_size,
            compression_name(new.compression.unwrap_or(Compression::Lz4)),
            new.retention.unwrap_or(RETENTION_DEFAULT).to_string(),
            new.max_bytes.map(to_sql),
            new.max_inodes.map(to_sql),
            identity::random::<16>()?,
            to_sql(now_ns()),
            keys,
            new.keys.as_ref().map(|keys| to_sql(keys.revision())),
        ],
    )
    .map_err(taken(WHAT, &new.name))?;
    raise_revision(tx, &metadata_store.id)?;
    find(tx, &id)
}

/// Whether this database has ever heard of a volume.
pub fn is_known(tx: &Transaction<'_>, id: &str) -> Result<bool, AdminError> {
    Ok(tx.query_row("SELECT EXISTS (SELECT 1 FROM volume WHERE id = ?1)", [id], |row| row.get(0))?)
}

/// A volume that was known before, in the block store and the metadata store with these ids; its metadata server learns of it.
pub fn bring_back(
    tx: &Transaction<'_>,
    (block_store, metadata_store): (&str, &str),
    name: &str,
    spec: &VolumeSpec,
    keys: Option<&SealedKeys>,
) -> Result<(), AdminError> {
    check_name(WHAT, name)?;
    check_block_size(spec.block_size.into())?;
    tx.execute(
        "INSERT INTO volume (id, name, block_store, metadata_store, block_size, compression, retention, max_bytes,
            max_inodes, hash_key, created_ns, born_ns, keys, keys_revision)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12, ?13)",
        params![
            spec.id.to_string(),
            name,
            block_store,
            metadata_store,
            spec.block_size,
            compression_name(spec.compression),
            spec.retention.to_string(),
            spec.max_bytes.map(to_sql),
            spec.max_inodes.map(to_sql),
            spec.hash_key,
            to_sql(now_ns()),
            keys.map(written).transpose()?,
            keys.map(|keys| to_sql(keys.revision())),
        ],
    )
    .map_err(taken(WHAT, name))?;
    raise_revision(tx, metadata_store)
}

/// A volume that was brought back was deleted before. How long it was to be kept nobody knows, so it is until somebody says.
pub fn bring_back_deleted(tx: &Transaction<'_>, id: &str) -> Result<(), AdminError> {
    let sql = "UPDATE volume SET deleted_ns = ?2, keep_s = NULL, keep_until_ns = NULL WHERE id = ?1";
    tx.execute(sql, params![id, to_sql(now_ns())])?;
    Ok(())
}

/// All volumes by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Found>, AdminError> {
    let mut statement = tx.prepare_cached(&format!("{SELECT} ORDER BY volume.name"))?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The volume with this name or id.
pub fn find(tx: &Transaction<'_>, key: &str) -> Result<Found, AdminError> {
    let sql = format!("{SELECT} AND (volume.name = ?1 OR volume.id = ?1)");
    let found = tx.query_row(&sql, [key], read).optional()?;
    found.ok_or_else(|| AdminError::NotFound { what: WHAT, name: key.to_owned() })
}

/// Changes a volume; its metadata server learns of it.
pub fn change(tx: &Transaction<'_>, key: &str, change: &ChangeVolume) -> Result<Found, AdminError> {
    let Found { volume, metadata_store } = find(tx, key)?;
    let name = change.name.as_ref().unwrap_or(&volume.name);
    check_name(WHAT, name)?;
    let quota = |new: Option<u64>, old: Option<u64>| match new {
        None => old,
        Some(0) => None,
        Some(n) => Some(n),
    };
    let max_bytes = quota(change.max_bytes, volume.max_bytes);
    let max_inodes = quota(change.max_inodes, volume.max_inodes);
    check_quota("bytes", max_bytes)?;
    check_quota("inodes", max_inodes)?;
    let mut retention = tx.query_row("SELECT * FROM volume WHERE id = ?1", [&volume.id], standing)?;
    if change.undo_retention {
        retention = retention.undo().map_err(AdminError::Invalid)?;
    }
    if let Some(to) = change.retention {
        retention = retention.change(to, change.grace_seconds, now_ns());
    } else if change.grace_seconds.is_some() {
        return Err(AdminError::Invalid("a time of grace goes with a retention".to_owned()));
    }
    set_retention(tx, &volume.id, retention)?;
    tx.execute(
        "UPDATE volume SET name = ?2, compression = ?3, max_bytes = ?4, max_inodes = ?5 WHERE id = ?1",
        params![
            volume.id,
            name,
            compression_name(change.compression.unwrap_or(volume.compression)),
            max_bytes.map(to_sql),
            max_inodes.map(to_sql),
        ],
    )
    .map_err(taken(WHAT, name))?;
    raise_revision(tx, &metadata_store)?;
    find(tx, &volume.id)
}

fn set_retention(tx: &Transaction<'_>, id: &str, Standing { now, next }: Standing) -> Result<(), AdminError> {
    let sql = "UPDATE volume SET retention = ?2, retention_next = ?3, retention_next_ns = ?4 WHERE id = ?1";
    let (then, from_ns) = (next.map(|n| n.retention.to_string()), next.map(|n| to_sql(n.from_ns)));
    tx.execute(sql, params![id, now.to_string(), then, from_ns])?;
    Ok(())
}

fn written(keys: &SealedKeys) -> Result<String, AdminError> {
    let refused = |error: chronofs_keys::Error| AdminError::Invalid(error.to_string());
    let text = keys.to_json().map_err(refused)?;
    SealedKeys::parse(&text).map_err(refused)?;
    Ok(text)
}

/// The sealed keys of a volume. Errors: it is not encrypted.
pub fn keys(tx: &Transaction<'_>, key: &str) -> Result<SealedKeys, AdminError> {
    let Found { volume, .. } = find(tx, key)?;
    let sql = "SELECT keys FROM volume WHERE id = ?1";
    let kept: Option<String> = tx.query_row(sql, [&volume.id], |row| row.get(0))?;
    let kept = kept.ok_or_else(|| {
        AdminError::Invalid(format!(
            "volume '{}' is not encrypted, and a volume is so from the start or never: make one with --encrypt and copy it",
            volume.name
        ))
    })?;
    SealedKeys::parse(&kept).map_err(|error| AdminError::Internal(format!("the keys of a volume: {error}")))
}

/// Keeps other sealed keys of a volume; its metadata server learns of them. Nothing can be opened here, so what is checked is
/// that no key is left out.
pub fn set_keys(tx: &Transaction<'_>, key: &str, change: &ChangeVolumeKeys) -> Result<Found, AdminError> {
    let Found { volume, metadata_store } = find(tx, key)?;
    let (kept, text) = (keys(tx, key)?, written(&change.keys)?);
    let fits = if change.from_copy { change.keys.is_ahead_of(&kept) } else { change.keys.follows(&kept) };
    if !fits {
        return Err(AdminError::Conflict(format!(
            "the keys of volume '{}' are those of revision {}, and these do not follow them: somebody else has changed them, or \
             they are of another volume; look and try again",
            volume.name,
            kept.revision()
        )));
    }
    put_keys(tx, &volume.id, &text, change.keys.revision())?;
    raise_revision(tx, &metadata_store)?;
    find(tx, &volume.id)
}

fn put_keys(tx: &Transaction<'_>, id: &str, keys: &str, revision: u64) -> Result<(), AdminError> {
    let sql = "UPDATE volume SET keys = ?2, keys_revision = ?3 WHERE id = ?1";
    tx.execute(sql, params![id, keys, to_sql(revision)])?;
    Ok(())
}

/// What a metadata server still has of a volume's keys, and is newer than what is kept here: this database is an old copy.
pub(super) fn take_newer_keys(tx: &Transaction<'_>, id: &str, keys: &KeptKeys) -> Result<(), AdminError> {
    let sql = "SELECT name, metadata_store, keys_revision FROM volume WHERE id = ?1";
    let found = tx.query_row(sql, [id], |row| {
        let ids: (String, String) = (row.get("name")?, row.get("metadata_store")?);
        Ok((ids, maybe_unsigned(row, "keys_revision")?))
    });
    let Some(((name, store), kept)) = found.optional()? else { return Ok(()) };
    let usable = SealedKeys::parse(&keys.sealed)
        .is_ok_and(|sealed| sealed.volume().to_string() == id && sealed.revision() == keys.revision);
    if !usable || kept.is_some_and(|kept| kept >= keys.revision) {
        return Ok(());
    }
    tracing::warn!(volume = %name, revision = keys.revision, "its metadata server has newer keys, which are taken over");
    put_keys(tx, id, &keys.sealed, keys.revision)?;
    raise_revision(tx, &store)
}

/// The sealed keys of a volume as metadata servers keep them.
pub(super) fn kept_keys(row: &Row<'_>) -> rusqlite::Result<Option<KeptKeys>> {
    let sealed: Option<String> = row.get("keys")?;
    let revision = maybe_unsigned(row, "keys_revision")?;
    Ok(sealed.zip(revision).map(|(sealed, revision)| KeptKeys { revision, sealed }))
}

/// How a volume would be after a change, which is not made.
pub fn preview(tx: &Transaction<'_>, key: &str, wanted: &ChangeVolume) -> Result<Found, AdminError> {
    super::tried(tx, true, |tx| change(tx, key, wanted))
}

/// Shorter retentions whose time of grace is over come into force; their metadata servers learn of it. Gives the volumes'
/// names with them.
pub fn apply_due(tx: &Transaction<'_>) -> Result<Vec<(String, Retention)>, AdminError> {
    let now_ns = now_ns();
    let sql = "SELECT * FROM volume WHERE deleted_ns IS NULL AND retention_next_ns <= ?1";
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map([to_sql(now_ns)], |row| {
        let ids: (String, String, String) = (row.get("id")?, row.get("name")?, row.get("metadata_store")?);
        Ok((ids, standing(row)?))
    })?;
    let due = rows.collect::<Result<Vec<_>, _>>()?;
    let mut applied = Vec::new();
    for ((id, name, metadata_store), standing) in due {
        let standing = standing.at(now_ns);
        set_retention(tx, &id, standing)?;
        raise_revision(tx, &metadata_store)?;
        applied.push((name, standing.now));
    }
    Ok(applied)
}

/// Deletes a volume that is not mounted, of which nothing is held, and that has no tokens that still work; its metadata server learns of it. What it holds
/// is kept for as long as is said, or as [`deleted::keep_for`] says.
pub fn delete(tx: &Transaction<'_>, key: &str, keep: Option<Retention>) -> Result<(), AdminError> {
    let Found { volume, metadata_store } = find(tx, key)?;
    let mut users: Vec<String> = tokens::live_of_volume(tx, &volume.id)?;
    users.extend(holds::of_volume(tx, &volume.id)?);
    if let Some(n) = volume.sessions.filter(|n| *n > 0) {
        users.push(if n == 1 { "1 mount".to_owned() } else { format!("{n} mounts") });
    }
    if !users.is_empty() {
        return Err(AdminError::InUse { what: WHAT, name: volume.name, users });
    }
    tx.execute("DELETE FROM volume_token WHERE volume = ?1", [&volume.id])?;
    let now_ns = now_ns();
    let keep_s = deleted::seconds(keep.unwrap_or(deleted::keep_for(volume.retention)));
    tx.execute(
        "UPDATE volume SET deleted_ns = ?2, keep_s = ?3, keep_until_ns = ?4, sessions = NULL, problem = NULL
            WHERE id = ?1",
        params![volume.id, to_sql(now_ns), keep_s.map(to_sql), deleted::until_ns(keep_s, now_ns)],
    )?;
    raise_revision(tx, &metadata_store)
}

/// How many volumes there are, and the bytes in them, as last reported.
pub fn used(tx: &Transaction<'_>) -> Result<(u64, u64), AdminError> {
    let sql =
        "SELECT count(*) AS n, coalesce(sum(used_bytes), 0) AS used FROM volume WHERE deleted_ns IS NULL";
    Ok(tx.query_row(sql, [], |row| Ok((unsigned(row, "n")?, unsigned(row, "used")?)))?)
}

/// Names of all volumes; for tests and counts.
pub fn names(tx: &Transaction<'_>) -> Result<Vec<String>, AdminError> {
    column(tx, "SELECT name FROM volume WHERE deleted_ns IS NULL AND name <> ?1 ORDER BY name", "")
}
