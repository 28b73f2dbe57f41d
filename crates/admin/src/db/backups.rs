//! Backups. Their records are JSON: nothing here asks for one by what is in it.

use super::taken;
use crate::AdminError;
use chronofs_backup::record::Backup;
use chronofs_backup::schedule::Schedule;
use rusqlite::{OptionalExtension, Transaction, params};

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

/// Saves a record, in the place of an earlier one of the same backup.
pub fn save(tx: &Transaction<'_>, backup: &Backup) -> Result<(), AdminError> {
    let text = serde_json::to_string(backup).map_err(|e| AdminError::Internal(e.to_string()))?;
    tx.execute("INSERT OR REPLACE INTO backup (uid, record) VALUES (?1, ?2)", params![backup.uid, text])?;
    Ok(())
}

/// Forgets a backup.
pub fn remove(tx: &Transaction<'_>, uid: &str) -> Result<(), AdminError> {
    tx.execute("DELETE FROM backup WHERE uid = ?1", [uid])?;
    Ok(())
}

/// Each volume with the earliest instant that its past reaches back to, as last reported.
pub fn reaches(tx: &Transaction<'_>) -> Result<Vec<(String, Option<u64>)>, AdminError> {
    let sql = "SELECT name, earliest_ns FROM volume WHERE deleted_ns IS NULL ORDER BY name";
    let mut statement = tx.prepare(sql)?;
    let rows =
        statement.query_map([], |row| Ok((row.get(0)?, super::maybe_unsigned(row, "earliest_ns")?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
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
