//! The configuration database: one SQLite file in WAL mode, synced at every commit, so that what was acknowledged is
//! there after a crash.
//!
//! Every change of what a metadata server must know raises the `revision` of its store in the same transaction.

pub mod accounts;
pub mod audit;
pub mod backups;
pub mod block_stores;
pub mod deleted;
pub mod directory;
pub mod epochs;
pub mod holds;
pub mod log_servers;
pub mod logs;
pub mod restored;
mod schema;
pub mod snapshots;
pub mod stores;
pub mod tokens;
pub mod volumes;

pub use schema::SCHEMA_VERSION;

use crate::AdminError;
use chronofs_core::Version;
use rusqlite::backup::Backup;
use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Name of the database's file in the folder of the admin server.
pub const DATABASE_FILE: &str = "admin.sqlite";

/// The database, for any number of tasks; they take turns.
#[derive(Clone)]
pub struct Database {
    connection: Arc<Mutex<Connection>>,
}

impl Database {
    /// Opens the database in `folder`, and makes or migrates it first if that is needed.
    pub fn open(folder: &Path) -> Result<Self, AdminError> {
        let connection = schema::open(&folder.join(DATABASE_FILE))?;
        Ok(Database { connection: Arc::new(Mutex::new(connection)) })
    }

    /// Runs `job` in one transaction that is durable when this returns `Ok`. An error leaves everything as it was.
    pub fn write<T>(
        &self,
        job: impl FnOnce(&Transaction<'_>) -> Result<T, AdminError>,
    ) -> Result<T, AdminError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = job(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// [`Database::write`] for asynchronous callers.
    pub async fn run<T, F>(&self, job: F) -> Result<T, AdminError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, AdminError> + Send + 'static,
    {
        let database = self.clone();
        tokio::task::spawn_blocking(move || database.write(job))
            .await
            .map_err(|e| AdminError::Internal(format!("the database task ended: {e}")))?
    }

    /// Makes the file `to`, which is not there, with all that is committed now. It is not synced yet.
    pub fn copy(&self, to: &Path) -> Result<(), AdminError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut target = Connection::open(to)?;
        // Half a copy is none, so nothing need be undone in it, and one sync at the end is enough.
        target.pragma_update(None, "journal_mode", "OFF")?;
        target.pragma_update(None, "synchronous", "OFF")?;
        Backup::new(&connection, &mut target)?.run_to_completion(i32::MAX, Duration::ZERO, None)?;
        Ok(())
    }

    /// Rises with every change that this process makes.
    pub fn changes(&self) -> u64 {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).total_changes()
    }

    /// Moves everything from the WAL into the database file.
    pub fn checkpoint(&self) -> Result<(), AdminError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

/// Makes a change; as a dry run it gives what that would give, or why it would be refused, and leaves everything as it was.
pub(crate) fn tried<T>(
    tx: &Transaction<'_>,
    dry_run: bool,
    change: impl FnOnce(&Transaction<'_>) -> Result<T, AdminError>,
) -> Result<T, AdminError> {
    if !dry_run {
        return change(tx);
    }
    tx.execute_batch("SAVEPOINT dry_run")?;
    let would = change(tx);
    tx.execute_batch("ROLLBACK TO dry_run; RELEASE dry_run")?;
    would
}

/// The value of a setting.
pub fn setting(tx: &Transaction<'_>, key: &str) -> Result<Option<String>, AdminError> {
    let sql = "SELECT value FROM setting WHERE key = ?1";
    Ok(tx.query_row(sql, [key], |row| row.get(0)).optional()?)
}

/// Sets a setting.
pub fn set_setting(tx: &Transaction<'_>, key: &str, value: &str) -> Result<(), AdminError> {
    tx.execute("INSERT OR REPLACE INTO setting (key, value) VALUES (?1, ?2)", [key, value])?;
    Ok(())
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// An instant as people read it.
pub(crate) fn shown(ns: u64) -> String {
    Version(ns).to_string()
}

/// SQLite has signed integers only; everything that is stored was checked to fit, or is cut to fit.
pub(crate) fn to_sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.unsigned_abs())
}

pub(crate) fn maybe_unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(i64::unsigned_abs))
}

/// A column that this program wrote as text and reads as something else.
pub(crate) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|e: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e))
    })
}

/// One column of all rows.
pub(crate) fn column<T: FromSql>(tx: &Transaction<'_>, sql: &str, key: &str) -> Result<Vec<T>, AdminError> {
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map(params![key], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Turns "the name is taken" of the database into ours.
pub(crate) fn taken(what: &'static str, name: &str) -> impl FnOnce(rusqlite::Error) -> AdminError {
    let name = name.to_owned();
    move |error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ConstraintViolation) => AdminError::Exists { what, name },
        _ => error.into(),
    }
}

/// A new id; ids rise with time.
pub(crate) fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// The server of metadata store `id` has something new to learn.
pub(crate) fn raise_revision(tx: &Transaction<'_>, id: &str) -> Result<(), AdminError> {
    tx.execute("UPDATE metadata_store SET revision = revision + 1 WHERE id = ?1", [id])?;
    Ok(())
}
