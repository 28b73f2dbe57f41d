//! The schema, its versions, and how a file is opened. `PRAGMA user_version` holds the version; each migration runs
//! in a transaction with the step of that number.

use crate::AdminError;
use rusqlite::{Connection, TransactionBehavior};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Marks the file as ours ("chra").
const APPLICATION_ID: i32 = 0x6368_7261;

/// Migration `i` leads from version `i` to `i + 1`. Never change one that was released: add one.
const MIGRATIONS: &[&str] = &[
    VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8, VERSION_9,
    VERSION_10, VERSION_11, VERSION_12,
];

/// The newest schema this program knows.
pub const SCHEMA_VERSION: usize = MIGRATIONS.len();

const VERSION_1: &str = "
CREATE TABLE setting (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE account (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT;

-- Tokens of accounts and of metadata stores: exactly one of the two owners.
CREATE TABLE token (
    id TEXT PRIMARY KEY,
    account TEXT REFERENCES account (id) ON DELETE CASCADE,
    metadata_store TEXT REFERENCES metadata_store (id) ON DELETE CASCADE,
    secret_sha256 TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    CHECK ((account IS NULL) <> (metadata_store IS NULL))
) STRICT;

CREATE TABLE block_store (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind = 'local'),
    path TEXT NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT;

CREATE TABLE metadata_store (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_ns INTEGER NOT NULL,
    -- Rises with every change of its volumes and their tokens.
    revision INTEGER NOT NULL DEFAULT 1,
    -- Epoch of the newest registration.
    epoch INTEGER NOT NULL DEFAULT 0,
    reported_revision INTEGER
) STRICT;

-- Every start of a metadata server that registered. The one with the highest epoch owns the store.
CREATE TABLE registration (
    metadata_store TEXT NOT NULL REFERENCES metadata_store (id) ON DELETE CASCADE,
    boot TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    address TEXT NOT NULL,
    certificate_sha256 TEXT NOT NULL,
    registered_ns INTEGER NOT NULL,
    PRIMARY KEY (metadata_store, boot)
) STRICT;

CREATE TABLE volume (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    block_store TEXT NOT NULL REFERENCES block_store (id),
    metadata_store TEXT NOT NULL REFERENCES metadata_store (id),
    block_size INTEGER NOT NULL,
    compression TEXT NOT NULL,
    retention TEXT NOT NULL,
    max_bytes INTEGER,
    max_inodes INTEGER,
    hash_key BLOB NOT NULL,
    created_ns INTEGER NOT NULL,
    -- Kept when deleted, so that its metadata server learns of it.
    deleted_ns INTEGER,
    -- As last reported by its metadata server.
    born_ns INTEGER,
    earliest_ns INTEGER,
    used_bytes INTEGER,
    used_inodes INTEGER,
    sessions INTEGER,
    problem TEXT
) STRICT;
CREATE UNIQUE INDEX volume_name ON volume (name) WHERE deleted_ns IS NULL;

CREATE TABLE volume_token (
    id TEXT PRIMARY KEY,
    volume TEXT NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    secret_sha256 TEXT NOT NULL,
    path TEXT,
    read_only INTEGER NOT NULL,
    past INTEGER NOT NULL,
    ends_ns INTEGER,
    created_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX volume_token_volume ON volume_token (volume);
";

/// Block stores in buckets. A table whose constraints change is made anew and takes the old one's name, so foreign
/// keys are off meanwhile (see [`open`]).
const VERSION_2: &str = "
CREATE TABLE block_store_new (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- Where it is: JSON.
    definition TEXT NOT NULL,
    -- JSON, sealed with the key of this folder for the id of the store.
    credentials BLOB,
    -- What may be shown of them.
    credentials_shown TEXT,
    -- What the last probe found: JSON.
    probe TEXT,
    probed_ns INTEGER,
    created_ns INTEGER NOT NULL
) STRICT;
INSERT INTO block_store_new (id, name, definition, created_ns)
    SELECT id, name, json_object('kind', kind, 'path', path), created_ns FROM block_store;
DROP TABLE block_store;
ALTER TABLE block_store_new RENAME TO block_store;
";

/// Deleted volumes are kept for a time. Those that were deleted before get a week from now.
const VERSION_3: &str = "
-- How long a deleted volume is kept, and until when that is; NULL: for ever.
ALTER TABLE volume ADD COLUMN keep_s INTEGER;
ALTER TABLE volume ADD COLUMN keep_until_ns INTEGER;
-- Its time is over: its metadata server may give up what it holds,
ALTER TABLE volume ADD COLUMN due_ns INTEGER;
-- and says that it has. From then on it cannot be taken back.
ALTER TABLE volume ADD COLUMN given_up_ns INTEGER;
-- Its metadata server says that nothing of it is left.
ALTER TABLE volume ADD COLUMN gone_ns INTEGER;
UPDATE volume SET keep_s = 604800, keep_until_ns = (CAST(strftime('%s', 'now') AS INTEGER) + 604800) * 1000000000
    WHERE deleted_ns IS NOT NULL;
";

const VERSION_4: &str = "
-- Disk snapshots, from their intent to their end; those that are deleted stay, so that what servers keep for them goes.
CREATE TABLE snapshot (
    uid TEXT PRIMARY KEY,
    -- JSON.
    record TEXT NOT NULL
) STRICT;
";

/// Copies of logs.
const VERSION_5: &str = "
-- The copies that operators want: JSON.
ALTER TABLE metadata_store ADD COLUMN log_wanted TEXT NOT NULL DEFAULT '{\"copies\":[]}';
-- Those that count, the epoch since which they do, and the epoch that it ended.
ALTER TABLE metadata_store ADD COLUMN log_members TEXT NOT NULL DEFAULT '{\"copies\":[]}';
ALTER TABLE metadata_store ADD COLUMN log_epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE metadata_store ADD COLUMN log_after INTEGER NOT NULL DEFAULT 0;
-- Who opened it.
ALTER TABLE metadata_store ADD COLUMN log_boot TEXT;
";

/// Log servers. Tokens get a third kind of owner, so their table is made anew.
const VERSION_6: &str = "
CREATE TABLE log_server (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_ns INTEGER NOT NULL,
    -- Epoch of the newest registration, and what it said.
    epoch INTEGER NOT NULL DEFAULT 0,
    address TEXT,
    certificate_sha256 TEXT
) STRICT;

-- Every start of a log server that registered.
CREATE TABLE log_registration (
    log_server TEXT NOT NULL REFERENCES log_server (id) ON DELETE CASCADE,
    boot TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (log_server, boot)
) STRICT;

CREATE TABLE token_new (
    id TEXT PRIMARY KEY,
    account TEXT REFERENCES account (id) ON DELETE CASCADE,
    metadata_store TEXT REFERENCES metadata_store (id) ON DELETE CASCADE,
    log_server TEXT REFERENCES log_server (id) ON DELETE CASCADE,
    secret_sha256 TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    CHECK ((account IS NOT NULL) + (metadata_store IS NOT NULL) + (log_server IS NOT NULL) = 1)
) STRICT;
INSERT INTO token_new (id, account, metadata_store, secret_sha256, created_ns)
    SELECT id, account, metadata_store, secret_sha256, created_ns FROM token;
DROP TABLE token;
ALTER TABLE token_new RENAME TO token;

-- What the secrets are made of that open log servers for the store; sealed with the key of this folder for the id of the store.
ALTER TABLE metadata_store ADD COLUMN log_key BLOB;
";

/// Backups.
const VERSION_7: &str = "
-- Backups that are known, also those that failed.
CREATE TABLE backup (
    uid TEXT PRIMARY KEY,
    -- JSON.
    record TEXT NOT NULL
) STRICT;

-- When backups are made by themselves.
CREATE TABLE backup_schedule (
    name TEXT PRIMARY KEY,
    -- JSON.
    record TEXT NOT NULL,
    -- The key of its place, sealed.
    key BLOB NOT NULL
) STRICT;
";

/// Holds.
const VERSION_8: &str = "
-- Instants of volumes that operators keep beyond the window.
CREATE TABLE hold (
    id TEXT PRIMARY KEY,
    -- JSON.
    record TEXT NOT NULL
) STRICT;
";

/// Shorter retentions wait.
const VERSION_9: &str = "
-- A shorter retention, and when it comes into force.
ALTER TABLE volume ADD COLUMN retention_next TEXT;
ALTER TABLE volume ADD COLUMN retention_next_ns INTEGER;
";

/// Who did what.
const VERSION_10: &str = "
CREATE TABLE audit (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ns INTEGER NOT NULL,
    actor TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    -- NULL: it has begun.
    outcome TEXT,
    times INTEGER NOT NULL DEFAULT 1,
    refused INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX audit_refused ON audit (n) WHERE refused = 1;
CREATE TRIGGER audit_is_final BEFORE UPDATE ON audit WHEN OLD.outcome IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'what the audit log says cannot be changed'); END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
    WHEN OLD.refused = 0 AND OLD.time_ns > (CAST(strftime('%s', 'now') AS INTEGER) - 34560000) * 1000000000
    BEGIN SELECT RAISE(ABORT, 'what the audit log says is kept for 400 days'); END;
";

/// Restores of metadata servers in place. The newest of a store fences the folders of before.
const VERSION_11: &str = "
CREATE TABLE restore_epoch (
    metadata_store TEXT NOT NULL REFERENCES metadata_store (id) ON DELETE CASCADE,
    epoch INTEGER NOT NULL,
    -- Drawn when the folder was prepared.
    id TEXT NOT NULL,
    -- JSON.
    record TEXT NOT NULL,
    learned_ns INTEGER NOT NULL,
    accepted_ns INTEGER,
    PRIMARY KEY (metadata_store, epoch),
    UNIQUE (metadata_store, id)
) STRICT;
-- Mounts that have said what they had of files that a restore has lost.
CREATE TABLE parked (
    metadata_store TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    volume TEXT NOT NULL,
    mount TEXT NOT NULL,
    PRIMARY KEY (metadata_store, epoch, volume, mount),
    FOREIGN KEY (metadata_store, epoch) REFERENCES restore_epoch (metadata_store, epoch) ON DELETE CASCADE
) STRICT;
";

/// Encrypted volumes.
const VERSION_12: &str = "
-- The sealed keys of an encrypted volume, and their revision: JSON. They open nothing to this server.
ALTER TABLE volume ADD COLUMN keys TEXT;
ALTER TABLE volume ADD COLUMN keys_revision INTEGER;
";

/// Opens the file, makes it if it is missing, brings it to the newest schema, and refuses one that is newer still.
pub(super) fn open(path: &Path) -> Result<Connection, AdminError> {
    // Made here and not by SQLite, so that nobody else can ever read it.
    let made = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map_err(AdminError::io(format!("open {}", path.display())))?;
    let unusable = |reason: String| AdminError::Unusable { path: path.to_owned(), reason };
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let found: Result<(i64, i32), _> = (|| {
        let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok::<_, rusqlite::Error>((
            version,
            connection.query_row("PRAGMA application_id", [], |row| row.get(0))?,
        ))
    })();
    let (version, application) = found.map_err(|e| unusable(format!("{e}; restore it from a copy")))?;
    if version != 0 && application != APPLICATION_ID {
        return Err(unusable("it is the database of another program; choose another folder".to_owned()));
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > SCHEMA_VERSION {
        return Err(unusable(format!(
            "its schema is version {version}, this program knows up to {SCHEMA_VERSION}; use the newer chronofs that \
             wrote it"
        )));
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", false)?;
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", step + 1)?;
        transaction.commit()?;
    }
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_has_the_newest_schema_and_opens_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for _ in 0..2 {
            let connection = open(&path).unwrap();
            let version: usize = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!(version, SCHEMA_VERSION);
            let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
            let synchronous: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
            assert_eq!((mode.as_str(), synchronous), ("wal", 2));
        }
    }

    #[test]
    fn block_stores_of_the_first_schema_are_kept_with_their_volumes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(VERSION_1).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        old.execute_batch(
            "INSERT INTO block_store VALUES ('b', 'disk', 'local', '/srv/\"b\"', 7);
             INSERT INTO metadata_store (id, name, created_ns) VALUES ('m', 'names', 7);
             INSERT INTO volume (id, name, block_store, metadata_store, block_size, compression, retention, hash_key,
                created_ns) VALUES ('v', 'data', 'b', 'm', 1, 'lz4', '7d', x'00', 7);",
        )
        .unwrap();
        drop(old);
        let connection = open(&path).unwrap();
        let sql = "SELECT definition FROM block_store JOIN volume ON volume.block_store = block_store.id";
        let definition: String = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        let kind: chronofs_core::store::StoreKind = serde_json::from_str(&definition).unwrap();
        assert_eq!(kind, chronofs_core::store::StoreKind::Local { path: "/srv/\"b\"".to_owned() });
        assert!(connection.execute("DELETE FROM block_store", []).is_err(), "foreign keys still hold");
        let faults = connection
            .prepare("PRAGMA foreign_key_check")
            .unwrap()
            .query([])
            .unwrap()
            .next()
            .unwrap()
            .is_some();
        assert!(!faults);
    }

    #[test]
    fn a_newer_schema_and_a_foreign_database_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let newer = open(&path).unwrap_err().to_string();
        assert!(newer.contains("version 99") && newer.contains("newer chronofs"), "{newer}");
        let other = folder.path().join("y");
        Connection::open(&other).unwrap().pragma_update(None, "user_version", 1).unwrap();
        let foreign = open(&other).unwrap_err().to_string();
        assert!(foreign.contains("another program"), "{foreign}");
        let text = folder.path().join("z");
        std::fs::write(&text, "no database at all, but long enough to be looked at as one".repeat(40))
            .unwrap();
        let damaged = open(&text).unwrap_err().to_string();
        assert!(damaged.contains("not a database"), "{damaged}");
    }
}
