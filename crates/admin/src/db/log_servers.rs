//! Log servers: what keeps copies of logs for metadata servers, under which epoch, and for whom.

use super::directory::check_registration;
use super::{logs, new_id, now_ns, raise_revision, shown, taken, to_sql, unsigned};
use crate::AdminError;
use crate::model::{LogServer, check_name};
use chronofs_wire::admin::{Register, Registered};
use chronofs_wire::identity::{Secret, Sha256};
use chronofs_wire::secrets::SecretBox;
use chronofs_wire::tlog::{AllowedStore, LogAssignment, LogServerAccess, REMOTE, access_secret, server_of};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::collections::BTreeSet;
use uuid::Uuid;

const WHAT: &str = "log-server";

fn read(row: &Row<'_>) -> rusqlite::Result<LogServer> {
    Ok(LogServer {
        id: row.get("id")?,
        name: row.get("name")?,
        created: shown(unsigned(row, "created_ns")?),
        address: row.get("address")?,
        epoch: unsigned(row, "epoch")?,
        connected: false,
        stores: Vec::new(),
        token: None,
    })
}

/// Creates a log server, without a token.
pub fn create(tx: &Transaction<'_>, name: &str) -> Result<LogServer, AdminError> {
    check_name(WHAT, name)?;
    let id = new_id();
    let sql = "INSERT INTO log_server (id, name, created_ns) VALUES (?1, ?2, ?3)";
    tx.execute(sql, params![id, name, to_sql(now_ns())]).map_err(taken(WHAT, name))?;
    find(tx, &id)
}

/// All log servers by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<LogServer>, AdminError> {
    let mut statement = tx.prepare_cached("SELECT * FROM log_server ORDER BY name")?;
    let mut servers = statement.query_map([], read)?.collect::<Result<Vec<_>, _>>()?;
    for server in &mut servers {
        server.stores = users(tx, &server.name)?.into_iter().map(|(_, name)| name).collect();
    }
    Ok(servers)
}

/// The log server with this name or id.
pub fn find(tx: &Transaction<'_>, key: &str) -> Result<LogServer, AdminError> {
    let sql = "SELECT * FROM log_server WHERE name = ?1 OR id = ?1";
    let found = tx.query_row(sql, [key], read).optional()?;
    let mut server = found.ok_or_else(|| AdminError::NotFound { what: WHAT, name: key.to_owned() })?;
    server.stores = users(tx, &server.name)?.into_iter().map(|(_, name)| name).collect();
    Ok(server)
}

/// Whether there is one of this name.
pub fn exists(tx: &Transaction<'_>, name: &str) -> Result<bool, AdminError> {
    let found = tx.query_row("SELECT 1 FROM log_server WHERE name = ?1", [name], |_| Ok(())).optional()?;
    Ok(found.is_some())
}

/// Deletes a log server that no metadata store uses, with its token. Its folder stays as it is.
pub fn delete(tx: &Transaction<'_>, key: &str) -> Result<(), AdminError> {
    let server = find(tx, key)?;
    if !server.stores.is_empty() {
        let users =
            server.stores.iter().map(|store| format!("the log of metadata store '{store}'")).collect();
        return Err(AdminError::InUse { what: WHAT, name: server.name, users });
    }
    tx.execute("DELETE FROM log_server WHERE id = ?1", [server.id])?;
    Ok(())
}

/// Whether copies on a log server of this name are wanted or count.
fn uses(log: &chronofs_wire::log::LogEpoch, name: &str) -> bool {
    let copies = log.wanted.copies.iter().chain(&log.members.copies);
    copies.filter_map(|copy| server_of(copy)).any(|server| server == name)
}

/// Id and name of the metadata stores that want a copy on this server, or whose copy there counts.
fn users(tx: &Transaction<'_>, name: &str) -> Result<Vec<(String, String)>, AdminError> {
    let mut statement = tx.prepare_cached("SELECT id, name FROM metadata_store ORDER BY name")?;
    let stores = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut users = Vec::new();
    for store in stores {
        let store: (String, String) = store?;
        if uses(&logs::of(tx, &store.0)?, name) {
            users.push(store);
        }
    }
    Ok(users)
}

/// Log servers with copies that count, each with the ids of the stores whose copies these are.
pub fn counting(tx: &Transaction<'_>) -> Result<Vec<(LogServer, Vec<String>)>, AdminError> {
    let mut counting = Vec::new();
    for server in list(tx)? {
        let copy = format!("{REMOTE}{}", server.name);
        let mut stores = Vec::new();
        for (store, _) in users(tx, &server.name)? {
            if logs::of(tx, &store)?.members.copies.contains(&copy) {
                stores.push(store);
            }
        }
        if !stores.is_empty() {
            counting.push((server, stores));
        }
    }
    Ok(counting)
}

/// Records that the server with this boot goes by the name. As with metadata servers, the newest start is the server, and an
/// older one that comes back is refused.
pub fn register(tx: &Transaction<'_>, id: &str, register: &Register) -> Result<Registered, AdminError> {
    check_registration(register)?;
    let found = find(tx, id)?;
    let server = found.id.parse().map_err(|e| AdminError::Internal(format!("id of log server: {e}")))?;
    let known = epoch_of(tx, &found.id, register.boot)?;
    let epoch = match known {
        _ if register.epoch > found.epoch => register.epoch + 1,
        Some(epoch) if epoch < found.epoch => return Err(superseded(&found, epoch)),
        Some(epoch) => epoch,
        None => found.epoch + 1,
    };
    tx.execute(
        "INSERT OR REPLACE INTO log_registration (log_server, boot, epoch) VALUES (?1, ?2, ?3)",
        params![found.id, register.boot.to_string(), to_sql(epoch)],
    )?;
    tx.execute(
        "DELETE FROM log_registration WHERE log_server = ?1 AND epoch < ?2",
        params![found.id, to_sql(epoch.saturating_sub(super::directory::REGISTRATIONS_KEPT))],
    )?;
    tx.execute(
        "UPDATE log_server SET epoch = ?2, address = ?3, certificate_sha256 = ?4 WHERE id = ?1",
        params![found.id, to_sql(epoch), register.address, register.certificate_sha256],
    )?;
    for (store, _) in users(tx, &found.name)? {
        raise_revision(tx, &store)?;
    }
    Ok(Registered { store: server, name: found.name, epoch, ..Registered::default() })
}

fn epoch_of(tx: &Transaction<'_>, id: &str, boot: u64) -> Result<Option<u64>, AdminError> {
    let sql = "SELECT epoch FROM log_registration WHERE log_server = ?1 AND boot = ?2";
    Ok(tx.query_row(sql, params![id, boot.to_string()], |row| unsigned(row, "epoch")).optional()?)
}

fn superseded(found: &LogServer, epoch: u64) -> AdminError {
    AdminError::Superseded(format!(
        "log server '{}' is the one at {} now (epoch {}, yours is {epoch}); stop this server",
        found.name,
        found.address.as_deref().unwrap_or("another address"),
        found.epoch,
    ))
}

/// Refuses a start that is not the newest of its log server.
pub fn check_boot(tx: &Transaction<'_>, id: &str, boot: u64) -> Result<(), AdminError> {
    let found = find(tx, id)?;
    match epoch_of(tx, id, boot)? {
        Some(epoch) if epoch == found.epoch => Ok(()),
        Some(epoch) => Err(superseded(&found, epoch)),
        None => Err(AdminError::Unavailable(format!(
            "this start of log server '{}' is not registered",
            found.name
        ))),
    }
}

/// The key of a store, of which the secrets for log servers are made; drawn when it is needed first.
fn store_key(tx: &Transaction<'_>, secrets: &SecretBox, store: &str) -> Result<Secret, AdminError> {
    let sql = "SELECT log_key FROM metadata_store WHERE id = ?1";
    let sealed: Option<Vec<u8>> = tx.query_row(sql, [store], |row| row.get(0))?;
    if let Some(sealed) = sealed {
        let key = Secret::from_hex(&secrets.unseal(store, &sealed)?);
        return key.ok_or_else(|| AdminError::Internal("the log key of a store is damaged".to_owned()));
    }
    let key = Secret::draw()?;
    let sealed = secrets.seal(store, &key.to_hex())?;
    tx.execute("UPDATE metadata_store SET log_key = ?2 WHERE id = ?1", params![store, sealed])?;
    Ok(key)
}

/// The store's secrets are others from now on: what its server, or who stole its token, knows opens no log server.
pub fn forget_key(tx: &Transaction<'_>, store: &str) -> Result<(), AdminError> {
    tx.execute("UPDATE metadata_store SET log_key = NULL WHERE id = ?1", [store])?;
    raise_revision(tx, store)
}

/// How the server of a metadata store reaches the log servers that it has copies on.
pub fn access(
    tx: &Transaction<'_>,
    secrets: &SecretBox,
    store: &str,
) -> Result<Vec<LogServerAccess>, AdminError> {
    let log = logs::of(tx, store)?;
    let names: BTreeSet<&str> =
        log.wanted.copies.iter().chain(&log.members.copies).filter_map(|copy| server_of(copy)).collect();
    let mut all = Vec::new();
    for name in names {
        let sql = "SELECT id, address, certificate_sha256 FROM log_server WHERE name = ?1";
        let found =
            tx.query_row(sql, [name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
        let Some((id, address, certificate_sha256)) = found else { continue };
        let secret = access_secret(&store_key(tx, secrets, store)?, uuid_of(id)?);
        let access = LogServerAccess::new(name.to_owned(), &secret);
        all.push(LogServerAccess { address, certificate_sha256, ..access });
    }
    Ok(all)
}

fn uuid_of(id: String) -> Result<Uuid, AdminError> {
    id.parse().map_err(|e| AdminError::Internal(format!("id {id}: {e}")))
}

/// For whom a log server keeps copies.
pub fn assignment(tx: &Transaction<'_>, secrets: &SecretBox, id: &str) -> Result<LogAssignment, AdminError> {
    let server = find(tx, id)?;
    let mut stores = Vec::new();
    for (store, name) in users(tx, &server.name)? {
        let secret = access_secret(&store_key(tx, secrets, &store)?, uuid_of(server.id.clone())?);
        stores.push(AllowedStore { id: uuid_of(store)?, name, secret_sha256: secret.sha256() });
    }
    let text = serde_json::to_vec(&stores).map_err(|e| AdminError::Internal(e.to_string()))?;
    let revision = Sha256::of(&text).0.first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes));
    // 0 is what nobody has.
    Ok(LogAssignment { revision: revision.max(1), stores })
}

/// Clones have none: those of the source stay the source's.
pub fn delete_all(tx: &Transaction<'_>) -> Result<(), AdminError> {
    tx.execute("DELETE FROM log_server", [])?;
    tx.execute("UPDATE metadata_store SET log_key = NULL", [])?;
    Ok(())
}

/// The names of all, as copies are named.
pub fn copy_names(tx: &Transaction<'_>) -> Result<Vec<String>, AdminError> {
    Ok(list(tx)?.into_iter().map(|server| format!("{REMOTE}{}", server.name)).collect())
}
