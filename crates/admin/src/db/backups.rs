//! Backups. Their records are JSON: nothing here asks for one by what is in it. Beside what a record says, its row keeps which
//! volumes there were when it was made: rows of volumes go in the end, and a backup that had one that is gone is not whole.

use super::{epochs, maybe_unsigned, restored, taken, to_sql};
use crate::AdminError;
use chronofs_backup::record::{Backup, Stands};
use chronofs_backup::schedule::Schedule;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What a row has beside the record.
#[derive(Deserialize)]
struct Beside {
    /// The volumes that there were, by their ids; rows of earlier versions do not say.
    volumes: Option<BTreeMap<String, String>>,
}

fn read(uid: &str, text: &str) -> Result<Backup, AdminError> {
    serde_json::from_str(text).map_err(|e| AdminError::Internal(format!("the record of backup {uid}: {e}")))
}

/// All records, newest first.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Backup>, AdminError> {
    let mut statement = tx.prepare("SELECT uid, record FROM backup")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut backups = Vec::new();
    for row in rows {
        let (uid, text) = row?;
        backups.push(read(&uid, &text)?);
    }
    backups.sort_by_key(|backup| std::cmp::Reverse(backup.started_ns));
    Ok(backups)
}

/// The record of a backup.
pub fn find(tx: &Transaction<'_>, uid: &str) -> Result<Option<Backup>, AdminError> {
    let sql = "SELECT record FROM backup WHERE uid = ?1";
    let text: Option<String> = tx.query_row(sql, [uid], |row| row.get(0)).optional()?;
    text.map(|text| read(uid, &text)).transpose()
}

/// Saves a record, in the place of an earlier one of the same backup. The volumes are those that there are the first time.
pub fn save(tx: &Transaction<'_>, backup: &Backup) -> Result<(), AdminError> {
    let sql = "SELECT record FROM backup WHERE uid = ?1";
    let earlier: Option<String> = tx.query_row(sql, [&backup.uid], |row| row.get(0)).optional()?;
    let volumes = match earlier {
        Some(earlier) => beside(&backup.uid, &earlier)?.volumes,
        None => Some(there_at(tx, backup.point_ns.unwrap_or(u64::MAX))?),
    };
    let internal = |e: serde_json::Error| AdminError::Internal(e.to_string());
    let mut record = serde_json::to_value(backup).map_err(internal)?;
    if let Some(volumes) = volumes {
        record["volumes"] = serde_json::to_value(volumes).map_err(internal)?;
    }
    let text = record.to_string();
    tx.execute("INSERT OR REPLACE INTO backup (uid, record) VALUES (?1, ?2)", params![backup.uid, text])?;
    Ok(())
}

fn beside(uid: &str, text: &str) -> Result<Beside, AdminError> {
    serde_json::from_str(text).map_err(|e| AdminError::Internal(format!("the record of backup {uid}: {e}")))
}

/// Volumes that were there at an instant, with those that were deleted and not given up yet: ids and names.
fn there_at(tx: &Transaction<'_>, at_ns: u64) -> Result<BTreeMap<String, String>, AdminError> {
    let sql = "SELECT id, name FROM volume
        WHERE created_ns <= ?1 AND (given_up_ns IS NULL OR given_up_ns > ?1)";
    let mut statement = tx.prepare_cached(sql)?;
    let named = |row: &Row<'_>| rusqlite::Result::Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
    let rows = statement.query_map([to_sql(at_ns)], named)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets a backup.
pub fn remove(tx: &Transaction<'_>, uid: &str) -> Result<(), AdminError> {
    tx.execute("DELETE FROM backup WHERE uid = ?1", [uid])?;
    Ok(())
}

/// The volumes that a backup had, as they stand now, by name.
pub fn volumes_of(tx: &Transaction<'_>, backup: &Backup) -> Result<Vec<Stands>, AdminError> {
    let sql = "SELECT record FROM backup WHERE uid = ?1";
    let text: Option<String> = tx.query_row(sql, [&backup.uid], |row| row.get(0)).optional()?;
    let said = text.map(|text| beside(&backup.uid, &text)).transpose()?.and_then(|beside| beside.volumes);
    let had = match said {
        Some(had) => had,
        None => there_at(tx, backup.point_ns.unwrap_or(u64::MAX))?,
    };
    let sql = "SELECT name, earliest_ns, given_up_ns, gone_ns FROM volume WHERE id = ?1";
    let mut statement = tx.prepare_cached(sql)?;
    let mut volumes = Vec::new();
    for (id, name) in had {
        let unknown = || Stands { name, earliest_ns: None, gone: Some("not known any more".to_owned()) };
        volumes.push(statement.query_row([&id], stands).optional()?.unwrap_or_else(unknown));
    }
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(volumes)
}

fn stands(row: &Row<'_>) -> rusqlite::Result<Stands> {
    let gone = match (maybe_unsigned(row, "given_up_ns")?, maybe_unsigned(row, "gone_ns")?) {
        (_, Some(_)) => Some("deleted, and nothing of it is left"),
        (Some(_), None) => Some("deleted and given up"),
        (None, None) => None,
    };
    let earliest_ns = maybe_unsigned(row, "earliest_ns")?;
    Ok(Stands { name: row.get("name")?, earliest_ns, gone: gone.map(str::to_owned) })
}

/// Since when there has been something that could be lost: a volume. What was before a restore does not count.
pub fn wanted_since(tx: &Transaction<'_>) -> Result<Option<u64>, AdminError> {
    let sql = "SELECT min(created_ns) AS since_ns FROM volume WHERE deleted_ns IS NULL";
    let oldest = tx.query_row(sql, [], |row| maybe_unsigned(row, "since_ns"))?;
    let clone = restored::find(tx)?.map(|restored| restored.prepared_ns);
    let admin = epochs::restored_admin(tx)?.map(|restored| restored.prepared_ns);
    let servers = epochs::list(tx)?.into_iter().map(|restored| restored.learned_ns);
    Ok(oldest.map(|oldest| servers.chain(clone).chain(admin).fold(oldest, u64::max)))
}

const SCHEDULE: &str = "backup-schedule";

fn text(schedule: &Schedule) -> Result<String, AdminError> {
    serde_json::to_string(schedule).map_err(|e| AdminError::Internal(e.to_string()))
}

fn read_schedule(text: &str) -> Result<Schedule, AdminError> {
    serde_json::from_str(text).map_err(|e| AdminError::Internal(format!("a schedule of backups: {e}")))
}

/// All schedules by name.
pub fn schedules(tx: &Transaction<'_>) -> Result<Vec<Schedule>, AdminError> {
    let mut statement = tx.prepare("SELECT record FROM backup_schedule ORDER BY name")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|text| read_schedule(&text?)).collect()
}

/// Creates a schedule with the sealed key of its place.
pub fn create_schedule(tx: &Transaction<'_>, schedule: &Schedule, key: &[u8]) -> Result<(), AdminError> {
    let sql = "INSERT INTO backup_schedule (name, record, key) VALUES (?1, ?2, ?3)";
    let made = tx.execute(sql, params![schedule.name, text(schedule)?, key]);
    made.map(drop).map_err(taken(SCHEDULE, &schedule.name))
}

/// Changes a schedule; one that is gone stays gone.
pub fn change_schedule(
    tx: &Transaction<'_>,
    name: &str,
    change: impl FnOnce(&mut Schedule),
) -> Result<(), AdminError> {
    let sql = "SELECT record FROM backup_schedule WHERE name = ?1";
    let found: Option<String> = tx.query_row(sql, [name], |row| row.get(0)).optional()?;
    let Some(found) = found else { return Ok(()) };
    let mut schedule = read_schedule(&found)?;
    change(&mut schedule);
    let sql = "UPDATE backup_schedule SET record = ?2 WHERE name = ?1";
    tx.execute(sql, params![name, text(&schedule)?])?;
    Ok(())
}

/// The sealed key of a schedule.
pub fn schedule_key(tx: &Transaction<'_>, name: &str) -> Result<Vec<u8>, AdminError> {
    let sql = "SELECT key FROM backup_schedule WHERE name = ?1";
    let found = tx.query_row(sql, [name], |row| row.get(0)).optional()?;
    found.ok_or_else(|| AdminError::NotFound { what: SCHEDULE, name: name.to_owned() })
}

/// Deletes a schedule.
pub fn remove_schedule(tx: &Transaction<'_>, name: &str) -> Result<(), AdminError> {
    match tx.execute("DELETE FROM backup_schedule WHERE name = ?1", [name])? {
        0 => Err(AdminError::NotFound { what: SCHEDULE, name: name.to_owned() }),
        _ => Ok(()),
    }
}

/// Forgets all backups and schedules: they are those of another cluster.
pub fn forget_all(tx: &Transaction<'_>) -> Result<(), AdminError> {
    tx.execute("DELETE FROM backup", [])?;
    tx.execute("DELETE FROM backup_schedule", [])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{Database, now_ns};
    use chronofs_backup::record::{State, Wholeness, judge};

    fn backup(uid: &str, point_ns: u64) -> Backup {
        Backup {
            uid: uid.to_owned(),
            dest: String::new(),
            depot: String::new(),
            schedule: None,
            note: String::new(),
            started_ns: point_ns,
            ended_ns: None,
            keep_until_ns: None,
            state: State::Complete,
            point_ns: Some(point_ns),
            bytes: None,
            stored: None,
            why: None,
        }
    }

    fn volume(tx: &Transaction<'_>, id: &str, created_ns: u64) -> Result<(), AdminError> {
        tx.execute_batch(
            "INSERT OR IGNORE INTO block_store (id, name, definition, created_ns) VALUES ('b', 'b', '{}', 1);
             INSERT OR IGNORE INTO metadata_store (id, name, created_ns) VALUES ('m', 'm', 1);",
        )?;
        tx.execute(
            "INSERT INTO volume (id, name, block_store, metadata_store, block_size, compression, retention, hash_key,
                created_ns, earliest_ns) VALUES (?1, ?1, 'b', 'm', 1048576, 'lz4', '7d', x'00', ?2, ?2)",
            params![id, to_sql(created_ns)],
        )?;
        Ok(())
    }

    #[test]
    fn backups_are_wanted_from_the_first_volume_on_and_anew_after_a_restore() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let since = || database.write(wanted_since).unwrap();
        assert_eq!(since(), None);
        let made = database.write(|tx| {
            volume(tx, "one", 5)?;
            volume(tx, "two", 9)
        });
        made.unwrap();
        assert_eq!(since(), Some(5));
        database
            .write(|tx| Ok(tx.execute_batch("UPDATE volume SET deleted_ns = 7 WHERE id = 'one'")?))
            .unwrap();
        assert_eq!(since(), Some(9));
        let restored = chronofs_wire::status::RestoredAdmin {
            uid: "u".to_owned(),
            cut_ns: 20,
            prepared_ns: 30,
            epoch: 30,
            accepted_ns: Some(31),
            reviews: BTreeMap::new(),
        };
        database.write(|tx| epochs::save_admin(tx, &restored)).unwrap();
        assert_eq!(since(), Some(30));
    }

    #[test]
    fn a_backup_is_not_whole_when_a_volume_that_it_had_is_given_up_or_not_known_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let made = backup("a", now_ns());
        let judged = || {
            let stand = database.write(|tx| volumes_of(tx, &made)).unwrap();
            judge(made.started_ns, None, &stand, made.started_ns + 1)
        };
        database
            .write(|tx| {
                volume(tx, "one", 5)?;
                volume(tx, "two", 6)?;
                save(tx, &made)?;
                // Of what came later the backup has nothing.
                volume(tx, "later", made.started_ns + 9)
            })
            .unwrap();
        assert_eq!(judged().wholeness, Wholeness::Whole, "{}", judged().because);
        let run = |sql: &str| database.write(|tx| Ok(tx.execute_batch(sql)?)).unwrap();
        run("UPDATE volume SET deleted_ns = 7 WHERE id = 'two'");
        assert_eq!(judged().wholeness, Wholeness::Whole, "it can be taken back");
        run("UPDATE volume SET given_up_ns = 8 WHERE id = 'two'");
        assert_eq!(judged().wholeness, Wholeness::Partly);
        assert!(judged().because.contains("files of two (deleted and given up)"), "{}", judged().because);
        // A record that is saved again knows what it had.
        database.write(|tx| save(tx, &Backup { note: "n".to_owned(), ..made.clone() })).unwrap();
        assert_eq!(database.write(|tx| find(tx, "a")).unwrap().unwrap().note, "n");
        run("DELETE FROM volume WHERE id = 'two'");
        assert!(judged().because.contains("files of two (not known any more)"), "{}", judged().because);
        run("UPDATE volume SET deleted_ns = 7, given_up_ns = 8, gone_ns = 9 WHERE id = 'one'");
        assert_eq!(judged().wholeness, Wholeness::Hollow);
    }

    #[test]
    fn a_record_of_before_that_names_no_volumes_had_those_that_there_were_at_its_point() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let old = backup("a", 100);
        let names = database.write(|tx| {
            let text = serde_json::to_string(&old).unwrap();
            tx.execute("INSERT INTO backup (uid, record) VALUES ('a', ?1)", [text])?;
            for (id, created_ns) in [("before", 5), ("gone", 5), ("lost", 5), ("later", 101)] {
                volume(tx, id, created_ns)?;
            }
            tx.execute_batch(
                "UPDATE volume SET deleted_ns = 6, given_up_ns = 99 WHERE id = 'gone';
                 UPDATE volume SET deleted_ns = 6, given_up_ns = 101 WHERE id = 'lost';",
            )?;
            Ok(volumes_of(tx, &old)?.into_iter().map(|volume| (volume.name, volume.gone.is_some())).collect())
        });
        let names: Vec<(String, bool)> = names.unwrap();
        assert_eq!(names, [("before".to_owned(), false), ("lost".to_owned(), true)]);
    }
}
