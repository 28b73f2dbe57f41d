//! Holds. Their records are JSON: nothing here asks for one by what is in it.

use super::now_ns;
use crate::AdminError;
use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

/// How far a hold is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its server was asked, and has not said that it is in force. Nobody was told that it is.
    Asked,
    /// It is in force.
    Kept,
    /// It is to end, and its server has not said that it has.
    Ending,
}

/// A hold, as it is kept in the database.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Id of the volume.
    pub volume: String,
    /// The volume's name when it was made.
    pub name: String,
    /// Id of the metadata store.
    pub metadata_store: String,
    /// The first instant, nanoseconds since the epoch.
    pub from_ns: u64,
    /// The last one.
    pub to_ns: u64,
    /// The account that made it.
    pub owner: String,
    /// What for.
    pub reason: String,
    /// When it was made.
    pub created_ns: u64,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_ns: Option<u64>,
    /// How far it is.
    pub stage: Stage,
}

impl Record {
    /// Its time is over.
    pub fn is_over(&self, now_ns: u64) -> bool {
        self.ends_ns.is_some_and(|ends_ns| ends_ns <= now_ns)
    }
}

fn read(text: &str) -> Result<Record, AdminError> {
    serde_json::from_str(text).map_err(|e| AdminError::Internal(format!("the record of a hold: {e}")))
}

/// All records, the newest first.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Record>, AdminError> {
    let mut statement = tx.prepare("SELECT record FROM hold")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    let mut records = rows.map(|text| read(&text?)).collect::<Result<Vec<_>, AdminError>>()?;
    records.sort_by_key(|record| std::cmp::Reverse(record.created_ns));
    Ok(records)
}

/// A record.
pub fn find(tx: &Transaction<'_>, id: &str) -> Result<Option<Record>, AdminError> {
    let text: Option<String> =
        tx.query_row("SELECT record FROM hold WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    text.map(|text| read(&text)).transpose()
}

/// The holds of a volume that nobody has ended, as what uses it.
pub(super) fn of_volume(tx: &Transaction<'_>, volume: &str) -> Result<Vec<String>, AdminError> {
    let now_ns = now_ns();
    let all = list(tx)?.into_iter();
    // Of one that is to end its server lets go, also when the volume is deleted.
    let in_force = all.filter(|record| record.stage != Stage::Ending && !record.is_over(now_ns));
    Ok(in_force
        .filter(|record| record.volume == volume)
        .map(|record| format!("hold '{}'", record.id))
        .collect())
}

/// Saves a record, in the place of an earlier one of the same hold.
pub fn save(tx: &Transaction<'_>, record: &Record) -> Result<(), AdminError> {
    let text = serde_json::to_string(record).map_err(|e| AdminError::Internal(e.to_string()))?;
    tx.execute("INSERT OR REPLACE INTO hold (id, record) VALUES (?1, ?2)", params![record.id, text])?;
    Ok(())
}

/// Goes from one stage to another; `false`: it was in another one, and stays there.
pub fn go(tx: &Transaction<'_>, id: &str, from: Stage, to: Stage) -> Result<bool, AdminError> {
    let Some(record) = find(tx, id)?.filter(|record| record.stage == from) else { return Ok(false) };
    save(tx, &Record { stage: to, ..record })?;
    Ok(true)
}

/// Forgets a hold.
pub fn remove(tx: &Transaction<'_>, id: &str) -> Result<(), AdminError> {
    tx.execute("DELETE FROM hold WHERE id = ?1", [id])?;
    Ok(())
}

/// Forgets the holds of a metadata store that is deleted: nobody is left who could let go of them.
pub(super) fn remove_of_store(tx: &Transaction<'_>, store: &str) -> Result<(), AdminError> {
    list(tx)?
        .iter()
        .filter(|record| record.metadata_store == store)
        .try_for_each(|record| remove(tx, &record.id))
}

/// A start: those that were asked for when the process went down are to end, since nobody was told that they are in force.
pub fn begin(tx: &Transaction<'_>) -> Result<(), AdminError> {
    for record in list(tx)? {
        go(tx, &record.id, Stage::Asked, Stage::Ending)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, volume: &str, stage: Stage, ends_ns: Option<u64>) -> Record {
        Record {
            id: id.to_owned(),
            volume: volume.to_owned(),
            name: "v".to_owned(),
            metadata_store: "m".to_owned(),
            from_ns: 1,
            to_ns: 1,
            owner: "root".to_owned(),
            reason: "audit".to_owned(),
            created_ns: 1,
            ends_ns,
            stage,
        }
    }

    #[test]
    fn holds_that_never_came_to_their_end_go_with_their_metadata_store() {
        let folder = tempfile::tempdir().unwrap();
        let database = crate::db::Database::open(folder.path()).unwrap();
        let left = database.write(|tx| {
            let metadata_store = crate::db::stores::create_metadata(tx, "m")?.id;
            save(tx, &Record { metadata_store, ..record("gone", "v", Stage::Ending, None) })?;
            save(tx, &record("another", "v", Stage::Ending, None))?;
            crate::db::stores::delete_metadata(tx, "m")?;
            list(tx)
        });
        let left: Vec<String> = left.unwrap().into_iter().map(|record| record.id).collect();
        assert_eq!(left, ["another"]);
    }

    #[test]
    fn a_volume_is_used_by_holds_that_nobody_has_ended_and_whose_time_is_not_over() {
        let folder = tempfile::tempdir().unwrap();
        let database = crate::db::Database::open(folder.path()).unwrap();
        let users = database.write(|tx| {
            save(tx, &record("kept", "v", Stage::Kept, None))?;
            save(tx, &record("later", "v", Stage::Kept, Some(u64::MAX)))?;
            save(tx, &record("asked", "v", Stage::Asked, None))?;
            save(tx, &record("ending", "v", Stage::Ending, None))?;
            save(tx, &record("over", "v", Stage::Kept, Some(1)))?;
            save(tx, &record("another", "w", Stage::Kept, None))?;
            of_volume(tx, "v")
        });
        let mut users = users.unwrap();
        users.sort();
        assert_eq!(users, ["hold 'asked'", "hold 'kept'", "hold 'later'"]);
    }
}
