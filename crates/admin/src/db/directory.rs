//! The directory: which server owns a metadata store, under which epoch, what it is to serve and what it reports.

use super::{
    block_stores, deleted, epochs, log_servers, logs, maybe_unsigned, now_ns, parsed, restored, set_setting,
    setting, shown, stores, to_sql, unsigned, volumes,
};
use crate::AdminError;
use crate::model::MetadataStore;
use chronofs_core::store::Credentials;
use chronofs_core::volume::VolumeSpec;
use chronofs_wire::admin::{
    AssignedStore, AssignedToken, AssignedVolume, Assignment, Register, Registered, Report, Resolved,
    StorePlace,
};
use chronofs_wire::identity::Sha256;
use chronofs_wire::secrets::SecretBox;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

/// Registrations of a store that are kept, so that an old server that comes back is known as old.
pub(super) const REGISTRATIONS_KEPT: u64 = 1000;
/// More starts than there can be; a server that claims a higher epoch is not believed.
const EPOCH_MAX: u64 = 1 << 48;

/// Records that the server with this boot serves the store. A new boot gets a higher epoch and owns the store; the
/// owner that registers again keeps its epoch; one that was followed by another is refused. A server that has held a
/// higher epoch than is known here shows that this database is an old copy: it gets one above that.
pub fn register(tx: &Transaction<'_>, store: &str, register: &Register) -> Result<Registered, AdminError> {
    check_registration(register)?;
    let found = stores::find_metadata(tx, store)?;
    let id = found.id.parse().map_err(|e| AdminError::Internal(format!("id of metadata store: {e}")))?;
    let boot = register.boot.to_string();
    let (restore, restored) = epochs::admit(tx, &found, register)?;
    must_be_no_old_copy(tx, &found, register)?;
    let known = epoch_of(tx, &found.id, &boot)?;
    let behind = register.epoch > found.epoch;
    if behind {
        tracing::warn!(
            store = %found.name, held = register.epoch, known = found.epoch,
            "this server has held a higher epoch than is known here: the database is an old copy; what was configured \
             after it was made is missing"
        );
    }
    let epoch = match known {
        _ if restored => epochs::far_above(found.epoch.max(register.epoch)).min(EPOCH_MAX),
        _ if behind => register.epoch + 1,
        Some(epoch) if epoch < found.epoch => return Err(superseded(&found, epoch)),
        Some(epoch) => epoch,
        None => found.epoch + 1,
    };
    tx.execute(
        "INSERT OR REPLACE INTO registration
            (metadata_store, boot, epoch, address, certificate_sha256, registered_ns)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            found.id,
            boot,
            to_sql(epoch),
            register.address,
            register.certificate_sha256,
            to_sql(now_ns())
        ],
    )?;
    tx.execute("UPDATE metadata_store SET epoch = ?2 WHERE id = ?1", params![found.id, to_sql(epoch)])?;
    tx.execute(
        "DELETE FROM registration WHERE metadata_store = ?1 AND epoch < ?2",
        params![found.id, to_sql(epoch.saturating_sub(REGISTRATIONS_KEPT))],
    )?;
    let review = epochs::wants_review(tx, &found.name)?;
    let admin_epoch = epochs::admin_epoch(tx)?;
    Ok(Registered { store: id, name: found.name, epoch, cluster: None, restore, review, admin_epoch })
}

/// Setting, with the id of the metadata store behind it: the highest epoch that a folder holds whose server had volumes to serve.
const KEPT_EPOCH: &str = "kept-epoch:";

fn kept_epoch(tx: &Transaction<'_>, store: &str) -> Result<u64, AdminError> {
    let kept = setting(tx, &format!("{KEPT_EPOCH}{store}"))?;
    Ok(kept.and_then(|kept| kept.parse().ok()).unwrap_or(0))
}

fn keep_epoch(tx: &Transaction<'_>, store: &str, epoch: u64) -> Result<(), AdminError> {
    set_setting(tx, &format!("{KEPT_EPOCH}{store}"), &epoch.to_string())
}

/// Setting, with the id of the metadata store behind it: the last commit that its owner has told to be durable, and which start told
/// that, with a blank between them.
const KEPT_COMMIT: &str = "kept-commit:";

/// The last commit that is known of a store, and the start that told it.
fn kept_commit(tx: &Transaction<'_>, store: &str) -> Result<Option<(u64, u64)>, AdminError> {
    let kept = setting(tx, &format!("{KEPT_COMMIT}{store}"))?;
    let read = |kept: String| {
        let (commit, boot) = kept.split_once(' ')?;
        Some((commit.parse::<u64>().ok()?, boot.parse::<u64>().ok()?))
    };
    Ok(kept.and_then(read))
}

/// Keeps what the owner has told. What one that was followed by another tells late is of no use; and another start may have been
/// admitted with less, from images.
fn keep_commit(tx: &Transaction<'_>, store: &str, report: &Report) -> Result<(), AdminError> {
    let found = stores::find_metadata(tx, store)?;
    let owns = epoch_of(tx, &found.id, &report.boot.to_string())? == Some(found.epoch);
    let news = match kept_commit(tx, store)? {
        Some((commit, boot)) => boot != report.boot || commit < report.durable_ns,
        None => true,
    };
    if owns && news && report.durable_ns > 0 {
        let told = format!("{} {}", report.durable_ns, report.boot);
        set_setting(tx, &format!("{KEPT_COMMIT}{store}"), &told)?;
    }
    Ok(())
}

/// Forgets what the folder of a store holds: a restore in place has begun, which has numbers of its own.
pub fn forget_kept(tx: &Transaction<'_>, store: &str) -> Result<(), AdminError> {
    for key in [KEPT_EPOCH, KEPT_COMMIT] {
        tx.execute("DELETE FROM setting WHERE key = ?1 || ?2", [key, store])?;
    }
    Ok(())
}

/// Forgets what all folders hold: they are those of another cluster.
pub fn forget_all_kept(tx: &Transaction<'_>) -> Result<(), AdminError> {
    for key in [KEPT_EPOCH, KEPT_COMMIT] {
        tx.execute("DELETE FROM setting WHERE key LIKE ?1 || '%'", [key])?;
    }
    Ok(())
}

/// Refuses a folder that is an older copy of one that has served since: sessions, inodes and objects would get numbers that
/// others have, and newer objects would look like leftovers. A restore in place has other numbers, and copies of the log bring
/// the folder up to date. A folder that knows of no epoch is new, or was put together of images.
pub fn must_be_no_old_copy(
    tx: &Transaction<'_>,
    found: &MetadataStore,
    register: &Register,
) -> Result<(), AdminError> {
    let recovers = register.recovers && !logs::of(tx, &found.id)?.members.copies.is_empty();
    let begins = register.restore.as_ref().is_some_and(|restore| restore.began_ns.is_none());
    if begins || register.epoch == 0 || recovers {
        return Ok(());
    }
    let kept = kept_epoch(tx, &found.id)?;
    let known = epoch_of(tx, &found.id, &register.boot.to_string())?;
    let of_earlier_start = register.epoch < kept && known.is_none();
    // A start that has served tells of what it has done since it was opened, and may register again. One that was followed by another
    // is told so, and not to go on from its folder as from an old copy.
    let is_followed = known.is_some_and(|epoch| epoch < found.epoch);
    let missing = match (kept_commit(tx, &found.id)?, register.last_commit_ns) {
        (Some((commit, boot)), Some(last)) if last < commit && boot != register.boot && !is_followed => {
            Some((last, commit))
        }
        _ => None,
    };
    let why = match missing {
        _ if of_earlier_start => {
            format!(
                "it knows of epoch {}, and a server has served from one with epoch {kept}",
                register.epoch
            )
        }
        Some((last, commit)) => {
            format!(
                "its last commit is of {}, and a server has served from one up to {}",
                shown(last),
                shown(commit)
            )
        }
        None => return Ok(()),
    };
    Err(AdminError::Fenced(format!(
        "the folder of this server is an older copy of that of metadata store '{}': {why}. What that gave numbers to would be mistaken \
         for something else, so this one is not started. If the newer folder is there, start the server on it; if it is lost, go on \
         from this one as from a restore: chronofs meta init creds --old-copy --token TOKEN --db-folder DIR",
        found.name
    )))
}

fn epoch_of(tx: &Transaction<'_>, store: &str, boot: &str) -> Result<Option<u64>, AdminError> {
    let sql = "SELECT epoch FROM registration WHERE metadata_store = ?1 AND boot = ?2";
    let epoch: Option<i64> = tx.query_row(sql, params![store, boot], |row| row.get(0)).optional()?;
    Ok(epoch.map(i64::unsigned_abs))
}

/// Refuses a start that does not own the store, or not any more. Metadata servers delete nothing without hearing that
/// they do.
pub fn check_owner(tx: &Transaction<'_>, store: &str, boot: u64) -> Result<(), AdminError> {
    let found = stores::find_metadata(tx, store)?;
    match epoch_of(tx, &found.id, &boot.to_string())? {
        Some(epoch) if epoch == found.epoch => Ok(()),
        Some(epoch) => Err(superseded(&found, epoch)),
        None => {
            let name = &found.name;
            let reason = format!("this start of the server of metadata store '{name}' is not registered");
            Err(AdminError::Unavailable(reason))
        }
    }
}

fn superseded(found: &MetadataStore, epoch: u64) -> AdminError {
    AdminError::Superseded(format!(
        "metadata store '{}' has been taken over by the server at {} (epoch {}, yours is {epoch}); stop this server, or \
         restart it to take the store back",
        found.name,
        found.address.as_deref().unwrap_or("another address"),
        found.epoch,
    ))
}

pub(super) fn check_registration(register: &Register) -> Result<(), AdminError> {
    let port = register.address.rsplit_once(':').and_then(|(host, port)| {
        let port: u16 = port.parse().ok()?;
        (!host.is_empty() && port != 0).then_some(port)
    });
    if port.is_none() {
        return Err(AdminError::Invalid(format!(
            "'{}' is not an address for clients: write HOST:PORT",
            register.address
        )));
    }
    if register.epoch > EPOCH_MAX {
        return Err(AdminError::Invalid(format!("{} cannot have been an epoch", register.epoch)));
    }
    let pin: Result<Sha256, _> = register.certificate_sha256.parse();
    pin.map(drop).map_err(|e| AdminError::Invalid(format!("certificate: {e}")))
}

/// The revision of a metadata store's assignment.
pub fn revision(tx: &Transaction<'_>, store: &str) -> Result<u64, AdminError> {
    let sql = "SELECT revision FROM metadata_store WHERE id = ?1";
    Ok(tx.query_row(sql, [store], |row| unsigned(row, "revision"))?)
}

/// All that the server of a metadata store has to know.
pub fn assignment(tx: &Transaction<'_>, secrets: &SecretBox, store: &str) -> Result<Assignment, AdminError> {
    let mut statement = tx.prepare_cached(
        "SELECT volume.*, block_store.id AS store_id, block_store.name AS store_name, block_store.definition,
            block_store.credentials, block_store.probe
            FROM volume JOIN block_store ON block_store.id = volume.block_store
            WHERE metadata_store = ?1 AND gone_ns IS NULL ORDER BY volume.id",
    )?;
    let read = statement.query_map([store], |row| {
        Ok((
            read_volume(row)?,
            row.get::<_, String>("store_name")?,
            row.get::<_, Option<Vec<u8>>>("credentials")?,
        ))
    })?;
    let mut volumes = Vec::new();
    for row in read {
        let (mut volume, name, sealed) = row?;
        // Those of a deleted volume, too: disk snapshots keep what it needs, and a store is opened once for all its volumes.
        volume.store.credentials =
            block_stores::unseal(secrets, &volume.store.id.to_string(), &name, sealed)?;
        volumes.push(volume);
    }
    let mut statement = tx.prepare_cached(
        "SELECT volume_token.* FROM volume_token JOIN volume ON volume.id = volume_token.volume
            WHERE volume.metadata_store = ?1 AND volume.deleted_ns IS NULL ORDER BY volume_token.id",
    )?;
    let mut tokens: Vec<AssignedToken> =
        statement.query_map([store], read_token)?.collect::<Result<_, _>>()?;
    let held_back = epochs::held_back(tx)?;
    tokens.retain(|token| !held_back.contains(&token.id));
    let log = logs::of(tx, store)?;
    // A restore of this store in place came after that of the whole cluster.
    let accepted_restore = match epochs::accepted(tx, &stores::find_metadata(tx, store)?)? {
        Some(in_place) => in_place,
        None => restored::accepted(tx)?,
    };
    let admin_epoch = epochs::admin_epoch(tx)?;
    let told: Vec<Uuid> = volumes.iter().map(|volume| volume.store.id).collect();
    Ok(Assignment {
        revision: revision(tx, store)?,
        volumes,
        tokens,
        probes: Vec::new(),
        log,
        log_servers: log_servers::access(tx, secrets, store)?,
        accepted_restore,
        copy_restored: restored::copies(tx)?,
        reader_stores: restored::reader_stores(tx, secrets, store, &told)?,
        admin_epoch,
    })
}

fn read_volume(row: &Row<'_>) -> rusqlite::Result<AssignedVolume> {
    let spec = VolumeSpec {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        block_size: row.get("block_size")?,
        compression: volumes::compression(row)?,
        retention: parsed(row, "retention")?,
        max_bytes: maybe_unsigned(row, "max_bytes")?,
        max_inodes: maybe_unsigned(row, "max_inodes")?,
        hash_key: row.get("hash_key")?,
    };
    let store = AssignedStore {
        id: parsed(row, "store_id")?,
        kind: block_stores::definition(row, "definition")?,
        credentials: Credentials::Ambient,
        create_only: block_stores::create_only(row)?,
    };
    let deleted = row.get::<_, Option<i64>>("deleted_ns")?.is_some();
    let (give_up_after_s, keys) = (deleted::give_up_after_s(row)?, volumes::kept_keys(row)?);
    let born_ns = maybe_unsigned(row, "born_ns")?.unwrap_or(0);
    Ok(AssignedVolume { spec, deleted, born_ns, give_up_after_s, store, keys })
}

fn read_token(row: &Row<'_>) -> rusqlite::Result<AssignedToken> {
    Ok(AssignedToken {
        id: parsed(row, "id")?,
        secret_sha256: row.get("secret_sha256")?,
        volume: parsed(row, "volume")?,
        path: row.get("path")?,
        read_only: row.get("read_only")?,
        past: row.get("past")?,
        ends_ns: maybe_unsigned(row, "ends_ns")?,
    })
}

fn is_of(tx: &Transaction<'_>, store: &str, volume: Uuid) -> Result<bool, AdminError> {
    let sql = "SELECT count(*) FROM volume WHERE id = ?1 AND metadata_store = ?2";
    let count: i64 = tx.query_row(sql, params![volume.to_string(), store], |row| row.get(0))?;
    Ok(count > 0)
}

/// Keeps what the server of a store reports. Volumes of other stores are left alone.
pub fn report(tx: &Transaction<'_>, store: &str, report: &Report) -> Result<(), AdminError> {
    let sql = "UPDATE metadata_store SET reported_revision = ?2 WHERE id = ?1";
    tx.execute(sql, params![store, to_sql(report.revision)])?;
    // Where one is missing it may be the wrong folder, and the right one is to come.
    let serves = !report.volumes.is_empty() && report.volumes.iter().all(|volume| !volume.missing);
    if serves && report.kept_epoch > kept_epoch(tx, store)? {
        keep_epoch(tx, store, report.kept_epoch.min(EPOCH_MAX))?;
        tracing::info!(
            id = store,
            epoch = report.kept_epoch,
            "older copies of its folder are refused from now on"
        );
    }
    if serves {
        keep_commit(tx, store, report)?;
    }
    let mut statement = tx.prepare_cached(
        "UPDATE volume SET born_ns = ?3, earliest_ns = ?4, used_bytes = ?5, used_inodes = ?6, sessions = ?7,
            problem = ?8 WHERE id = ?2 AND metadata_store = ?1",
    )?;
    for volume in &report.volumes {
        if let Some(keys) = &volume.keys
            && is_of(tx, store, volume.id)?
        {
            volumes::take_newer_keys(tx, &volume.id.to_string(), keys)?;
        }
        if volume.given_up && (deleted::note_given_up(tx, store, volume)? || volume.problem.is_none()) {
            continue;
        }
        if volume.missing {
            // All else is as it was when the volume was there.
            let sql = "UPDATE volume SET problem = ?3, sessions = NULL WHERE id = ?2 AND metadata_store = ?1";
            tx.execute(sql, params![store, volume.id.to_string(), volume.problem])?;
            continue;
        }
        statement.execute(params![
            store,
            volume.id.to_string(),
            to_sql(volume.born_ns),
            to_sql(volume.earliest_ns),
            to_sql(volume.used_bytes),
            to_sql(volume.used_inodes),
            volume.sessions,
            volume.problem,
        ])?;
    }
    Ok(())
}

fn check_opened(id: &str, name: &str, asked: &str) -> Result<(), AdminError> {
    if asked == id || asked == name {
        return Ok(());
    }
    Err(AdminError::NotOpened(format!(
        "the token does not open volume '{asked}': it is one of volume '{name}'; use a token made with \
         chronofs configure create volume-token --volume {asked}"
    )))
}

/// Where the objects of the volume are, for a mount whose token opens volume `id` called `name`.
pub fn store_place(
    tx: &Transaction<'_>,
    id: &str,
    name: &str,
    asked: &str,
) -> Result<StorePlace, AdminError> {
    check_opened(id, name, asked)?;
    let sql = "
        SELECT block_store.id, block_store.definition, block_store.probe
            FROM volume JOIN block_store ON block_store.id = volume.block_store WHERE volume.id = ?1";
    let place = tx.query_row(sql, [id], |row| {
        Ok(StorePlace {
            id: parsed(row, "id")?,
            kind: block_stores::definition(row, "definition")?,
            create_only: block_stores::create_only(row)?,
        })
    })?;
    Ok(place)
}

/// Where the volume is served, for a mount whose token opens volume `id` called `name`.
pub fn resolve(
    tx: &Transaction<'_>,
    id: &str,
    name: &str,
    store: &str,
    asked: &str,
) -> Result<Resolved, AdminError> {
    check_opened(id, name, asked)?;
    let volume: Uuid = id.parse().map_err(|e| AdminError::Internal(format!("id of volume: {e}")))?;
    let sql = "
        SELECT metadata_store.name AS store, registration.* FROM metadata_store
            LEFT JOIN registration ON registration.metadata_store = metadata_store.id
                AND registration.epoch = metadata_store.epoch
            WHERE metadata_store.id = ?1";
    let (store, found) = tx.query_row(sql, [store], |row| {
        let found = match row.get::<_, Option<String>>("address")? {
            Some(address) => Some((address, row.get("certificate_sha256")?, unsigned(row, "epoch")?)),
            None => None,
        };
        Ok((row.get::<_, String>("store")?, found))
    })?;
    let Some((address, certificate_sha256, epoch)) = found else {
        return Err(AdminError::Unavailable(format!(
            "volume '{name}' cannot be mounted yet: no server of metadata store '{store}' has registered; start it \
             with chronofs meta start"
        )));
    };
    let sql = "SELECT keys FROM volume WHERE id = ?1";
    let keys = tx.query_row(sql, [id], |row| row.get(0))?;
    Ok(Resolved { volume, name: name.to_owned(), address, certificate_sha256, epoch, keys })
}
