//! Deleted volumes. What one holds is kept for a time; then it is due, which its metadata server is told. That server gives it
//! up, when it has known the volume to be deleted for as long, and says so. Until then it can be taken back.

use super::{holds, maybe_unsigned, now_ns, parsed, raise_revision, shown, taken, to_sql, unsigned, volumes};
use crate::AdminError;
use crate::db::volumes::Found;
use crate::model::{DeletedVolume, Undelete, check_name};
use chronofs_core::Retention;
use chronofs_wire::admin::VolumeReport;
use rusqlite::{Row, Transaction, params};

const WHAT: &str = "deleted-volume";
const DAY_S: u64 = 86_400;
/// The state of what cannot be taken back.
const GIVEN_UP: &str = "given up";

const SELECT: &str = "
SELECT volume.*, block_store.name AS block_store_name, metadata_store.name AS metadata_store_name
FROM volume
    JOIN block_store ON block_store.id = volume.block_store
    JOIN metadata_store ON metadata_store.id = volume.metadata_store
WHERE deleted_ns IS NOT NULL AND gone_ns IS NULL";

/// How long a volume is kept when it is deleted, unless it is said: as long as its past reaches back, but a day at least,
/// because nobody notices a mistake at once.
pub fn keep_for(retention: Retention) -> Retention {
    match retention {
        Retention::None => Retention::Seconds(DAY_S),
        Retention::Seconds(s) => Retention::Seconds(s.max(DAY_S)),
        Retention::Forever => Retention::Forever,
    }
}

/// Seconds to keep something for; `None` for ever.
pub(super) fn seconds(keep: Retention) -> Option<u64> {
    match keep {
        Retention::None => Some(0),
        Retention::Seconds(s) => Some(s),
        Retention::Forever => None,
    }
}

/// Until when something is kept for so many seconds from now on.
pub(super) fn until_ns(keep_s: Option<u64>, now_ns: u64) -> Option<i64> {
    keep_s.map(|s| to_sql(now_ns.saturating_add(s.saturating_mul(1_000_000_000))))
}

fn read(row: &Row<'_>) -> rusqlite::Result<(DeletedVolume, String)> {
    let state = match (maybe_unsigned(row, "due_ns")?, maybe_unsigned(row, "given_up_ns")?) {
        (_, Some(_)) => GIVEN_UP,
        (Some(_), None) => "due",
        (None, None) => "kept",
    };
    let volume = DeletedVolume {
        id: row.get("id")?,
        name: row.get("name")?,
        block_store: row.get("block_store_name")?,
        metadata_store: row.get("metadata_store_name")?,
        retention: parsed(row, "retention")?,
        deleted: shown(unsigned(row, "deleted_ns")?),
        state: state.to_owned(),
        detail: row.get("problem")?,
        kept_until: maybe_unsigned(row, "keep_until_ns")?.map(shown),
        used_bytes: maybe_unsigned(row, "used_bytes")?,
        used_inodes: maybe_unsigned(row, "used_inodes")?,
    };
    Ok((volume, row.get("metadata_store")?))
}

/// All deleted volumes of which something is left, by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<DeletedVolume>, AdminError> {
    let mut statement = tx.prepare_cached(&format!("{SELECT} ORDER BY volume.name, deleted_ns"))?;
    let rows = statement.query_map([], |row| Ok(read(row)?.0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The deleted volume with this id, or with this name if it is the only one.
pub fn find(tx: &Transaction<'_>, key: &str) -> Result<DeletedVolume, AdminError> {
    Ok(find_with_store(tx, key)?.0)
}

fn find_with_store(tx: &Transaction<'_>, key: &str) -> Result<(DeletedVolume, String), AdminError> {
    let mut statement = tx.prepare_cached(&format!("{SELECT} AND (volume.name = ?1 OR volume.id = ?1)"))?;
    let mut found = statement.query_map([key], read)?.collect::<Result<Vec<_>, _>>()?;
    match (found.pop(), found.len()) {
        (None, _) => Err(AdminError::NotFound { what: WHAT, name: key.to_owned() }),
        (Some(found), 0) => Ok(found),
        (Some(_), n) => Err(AdminError::Invalid(format!(
            "{} deleted volumes were called '{key}': give the id of one, `chronofs configure list {WHAT}` shows them",
            n + 1
        ))),
    }
}

/// Takes a deleted volume back, as it was when it was deleted, perhaps under another name. Its tokens are gone.
pub fn undelete(tx: &Transaction<'_>, key: &str, undelete: &Undelete) -> Result<Found, AdminError> {
    let (volume, metadata_store) = find_with_store(tx, key)?;
    must_be_kept(&volume)?;
    let name = undelete.new_name.as_ref().unwrap_or(&volume.name);
    check_name("volume", name)?;
    tx.execute(
        "UPDATE volume SET name = ?2, deleted_ns = NULL, keep_s = NULL, keep_until_ns = NULL, due_ns = NULL WHERE id = ?1",
        params![volume.id, name],
    )
    .map_err(taken("volume", name))?;
    raise_revision(tx, &metadata_store)?;
    volumes::find(tx, &volume.id)
}

/// The time of a deleted volume is over at once: nobody has to wait for its end.
pub fn give_up(tx: &Transaction<'_>, key: &str) -> Result<(), AdminError> {
    let (volume, metadata_store) = find_with_store(tx, key)?;
    must_be_kept(&volume)?;
    // Nothing of it would go, and nobody could look at what is held any more.
    let users = holds::of_volume(tx, &volume.id)?;
    if !users.is_empty() {
        return Err(AdminError::InUse { what: WHAT, name: volume.name, users });
    }
    let sql = "UPDATE volume SET keep_s = 0, keep_until_ns = ?2, due_ns = ?2 WHERE id = ?1";
    tx.execute(sql, params![volume.id, to_sql(now_ns())])?;
    raise_revision(tx, &metadata_store)
}

fn must_be_kept(volume: &DeletedVolume) -> Result<(), AdminError> {
    let DeletedVolume { id, name, state, .. } = volume;
    if state != GIVEN_UP {
        return Ok(());
    }
    Err(AdminError::Invalid(format!(
        "deleted volume '{name}' ({id}) is given up already: what it held is going, and cannot be taken back"
    )))
}

/// The volumes whose time is over are due. Names and ids of those.
pub fn note_due(tx: &Transaction<'_>) -> Result<Vec<(String, String)>, AdminError> {
    let sql = "UPDATE volume SET due_ns = ?1
        WHERE deleted_ns IS NOT NULL AND due_ns IS NULL AND keep_until_ns <= ?1 RETURNING name, id, metadata_store";
    let mut statement = tx.prepare_cached(sql)?;
    let due = statement.query_map([to_sql(now_ns())], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let due: Vec<(String, String, String)> = due.collect::<Result<_, _>>()?;
    due.iter().try_for_each(|(_, _, store)| raise_revision(tx, store))?;
    Ok(due.into_iter().map(|(name, id, _)| (name, id)).collect())
}

/// The server of a store says that it has given up a volume, and perhaps that nothing of it is left, or why it stays. False: it is
/// not deleted here, so that what is said of it is nothing but a problem.
pub fn note_given_up(tx: &Transaction<'_>, store: &str, volume: &VolumeReport) -> Result<bool, AdminError> {
    let sql =
        "UPDATE volume SET given_up_ns = COALESCE(given_up_ns, ?3), gone_ns = iif(?4, ?3, NULL), problem = ?5
        WHERE id = ?2 AND metadata_store = ?1 AND deleted_ns IS NOT NULL AND gone_ns IS NULL";
    let VolumeReport { id, gone, problem, .. } = volume;
    let noted = tx.execute(sql, params![store, id.to_string(), to_sql(now_ns()), gone, problem])? > 0;
    if noted && *gone {
        tracing::info!(volume = %id, "nothing is left of the deleted volume");
    }
    Ok(noted)
}

/// What of a store is still kept, so that the store must stay: `column` is `block_store` or `metadata_store`.
pub(super) fn kept_in(tx: &Transaction<'_>, column: &str, id: &str) -> Result<Vec<String>, AdminError> {
    let sql = format!(
        "SELECT name FROM volume WHERE {column} = ?1 AND deleted_ns IS NOT NULL AND due_ns IS NULL ORDER BY name"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    let names = statement.query_map([id], |row| row.get::<_, String>(0))?;
    Ok(names.map(|name| Ok(format!("deleted-volume '{}'", name?))).collect::<rusqlite::Result<_>>()?)
}

/// For how long the server itself keeps a volume whose time is over.
pub(super) fn give_up_after_s(row: &Row<'_>) -> rusqlite::Result<Option<u64>> {
    match maybe_unsigned(row, "due_ns")? {
        Some(_) => maybe_unsigned(row, "keep_s"),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_kept_for_as_long_as_its_past_but_at_least_a_day() {
        let week = Retention::Seconds(7 * DAY_S);
        assert_eq!(keep_for(week), week);
        assert_eq!(keep_for(Retention::Seconds(3)), Retention::Seconds(DAY_S));
        assert_eq!(keep_for(Retention::None), Retention::Seconds(DAY_S));
        assert_eq!(seconds(keep_for(Retention::Forever)), None);
        assert_eq!(until_ns(None, 7), None);
        assert_eq!(until_ns(seconds(week), 7), Some(7 * 86_400_000_000_000 + 7));
        assert_eq!(until_ns(Some(u64::MAX), 7), Some(i64::MAX));
    }
}
