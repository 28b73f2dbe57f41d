//! Disk snapshots. Their records are JSON: nothing here asks for one by what is in it.

use super::{new_id, set_setting, setting};
use crate::AdminError;
use chronofs_snapshot::protocol::Record;
use rusqlite::{Transaction, params};

/// The setting that holds the id of the cluster.
const CLUSTER: &str = "cluster";

/// The id of the cluster, drawn when it is first asked for.
pub fn cluster(tx: &Transaction<'_>) -> Result<String, AdminError> {
    if let Some(id) = setting(tx, CLUSTER)? {
        return Ok(id);
    }
    let id = new_id();
    set_setting(tx, CLUSTER, &id)?;
    Ok(id)
}

/// All records.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Record>, AdminError> {
    let mut statement = tx.prepare("SELECT uid, record FROM snapshot ORDER BY uid")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut records = Vec::new();
    for row in rows {
        let (uid, text) = row?;
        let read = serde_json::from_str(&text);
        records.push(read.map_err(|e| AdminError::Internal(format!("the record of snapshot {uid}: {e}")))?);
    }
    Ok(records)
}

/// Saves a record, in the place of an earlier one of the same snapshot.
pub fn save(tx: &Transaction<'_>, record: &Record) -> Result<(), AdminError> {
    let text = serde_json::to_string(record).map_err(|e| AdminError::Internal(e.to_string()))?;
    let uid = record.intent.attempt.uid.as_str();
    tx.execute("INSERT OR REPLACE INTO snapshot (uid, record) VALUES (?1, ?2)", params![uid, text])?;
    Ok(())
}
