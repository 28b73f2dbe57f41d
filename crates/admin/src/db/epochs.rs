//! Restores in place. Each restore of a metadata server gives its store a higher restore epoch, under which, from when it has
//! begun, only folders of that restore are heard: one of before would serve what was taken over, and delete what it does not
//! know. A restore of this
//! server's own database is kept with what metadata servers were told since; tokens that were revoked open nothing until
//! somebody has looked at that.

use super::{
    audit, column, directory, logs, maybe_unsigned, now_ns, set_setting, setting, stores, to_sql, unsigned,
};
use crate::AdminError;
use crate::model::MetadataStore;
use chronofs_wire::admin::{Known, ParkedBytes, Register, RestoreEpoch};
use chronofs_wire::status::{RestoredAdmin, RestoredServer, Review};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A restored server goes on under an epoch so far above all that is known: an admin server that was restored with it does not
/// know which were given since, and mounts that have seen those would take a lower one for a server of the past.
const EPOCHS_LEFT_OUT: u64 = 1 << 20;
/// The bits of an instant below these are left out of the epoch that it gives: one lasts about a millisecond.
const EPOCH_BITS: u32 = 20;
/// So many mounts of a volume are heard of what they had of files that a restore has lost.
pub const PARKED_MAX: u64 = 1000;
/// The longest name of a mount, and path, that is written down.
const PARKED_TEXT_MAX: usize = 200;
/// Setting: JSON of [`RestoredAdmin`].
const RESTORED_ADMIN: &str = "restored-admin";

/// The epoch of ownership of a restored server, `known` being the highest one known. It follows the clock, so that the second
/// restore from a database that knows nothing of the first is above that, too.
pub fn far_above(known: u64) -> u64 {
    known.max(now_ns() >> EPOCH_BITS).saturating_add(EPOCHS_LEFT_OUT)
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, AdminError> {
    serde_json::to_string(value).map_err(|e| AdminError::Internal(e.to_string()))
}

fn read(row: &Row<'_>) -> rusqlite::Result<(String, u64, Option<u64>)> {
    Ok((row.get("record")?, unsigned(row, "learned_ns")?, maybe_unsigned(row, "accepted_ns")?))
}

fn find(
    tx: &Transaction<'_>,
    store: &MetadataStore,
    begun: bool,
) -> Result<Option<RestoredServer>, AdminError> {
    let sql = "SELECT * FROM restore_epoch
        WHERE metadata_store = ?1 AND (json_extract(record, '$.began_ns') IS NOT NULL) = ?2 ORDER BY epoch DESC LIMIT 1";
    let Some((record, learned_ns, accepted_ns)) =
        tx.query_row(sql, params![store.id, begun], read).optional()?
    else {
        return Ok(None);
    };
    let restore = serde_json::from_str(&record)
        .map_err(|e| AdminError::Internal(format!("the restore of metadata store '{}': {e}", store.name)))?;
    Ok(Some(RestoredServer { store: store.name.clone(), restore, learned_ns, accepted_ns }))
}

/// The newest restore of a store in place that has begun: folders of before it are refused.
pub fn newest(tx: &Transaction<'_>, store: &MetadataStore) -> Result<Option<RestoredServer>, AdminError> {
    find(tx, store, true)
}

/// The one that was heard of and has not begun. Its store may never open, so nobody is refused for it.
fn pending(tx: &Transaction<'_>, store: &MetadataStore) -> Result<Option<RestoredServer>, AdminError> {
    find(tx, store, false)
}

/// The newest restore of each store that was restored in place, and the one that has not begun.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<RestoredServer>, AdminError> {
    let mut found = Vec::new();
    for store in stores::list_metadata(tx)? {
        found.extend(newest(tx, &store)?);
        found.extend(pending(tx, &store)?);
    }
    Ok(found)
}

/// What a server goes on from that registers.
enum Verdict {
    /// The newest restore, or none ever was.
    As(Option<RestoreEpoch>),
    /// The same, and it says more of it.
    Changed(RestoreEpoch),
    /// One that was not heard of.
    New(RestoreEpoch),
}

/// Refuses a server whose folder is of before the newest restore that has begun.
fn judge(tx: &Transaction<'_>, store: &MetadataStore, register: &Register) -> Result<Verdict, AdminError> {
    let current = newest(tx, store)?;
    // Only what copies hold that count is of the newest restore. Where there are none nothing can be recovered.
    let recovers = register.recovers && !logs::of(tx, &store.id)?.members.copies.is_empty();
    let Some(said) = &register.restore else {
        return match current {
            Some(current) if !recovers => Err(fenced(store, &current, "was not restored")),
            current => Ok(Verdict::As(current.map(|current| current.restore))),
        };
    };
    let same = |known: RestoredServer| {
        let restore = RestoreEpoch { epoch: known.restore.epoch, ..said.clone() };
        match restore == known.restore {
            true => Verdict::As(Some(restore)),
            false => Verdict::Changed(restore),
        }
    };
    if let Some(pending) = pending(tx, store)?.filter(|pending| pending.restore.id == said.id) {
        return Ok(same(pending));
    }
    let Some(current) = current else {
        return Ok(Verdict::New(RestoreEpoch { epoch: said.epoch.max(1), ..said.clone() }));
    };
    if current.restore.id == said.id {
        // It begins once; a second copy of what was prepared would give the same numbers again.
        if said.began_ns != current.restore.began_ns {
            let what =
                "is another copy of what was prepared for that, and another one was started: prepare it anew";
            return Err(fenced(store, &current, what));
        }
        return Ok(same(current));
    }
    let sql = "SELECT id FROM restore_epoch WHERE metadata_store = ?1";
    let known: Vec<String> = column(tx, sql, &store.id)?;
    let after = |instant: Option<u64>| instant.map(|ns| Some(ns) > current.restore.began_ns);
    // A folder that has begun, and is not known, shows that this database is an old copy; or it is one of before that.
    let later = match said.began_ns {
        Some(_) => after(said.began_ns) == Some(true) && after(said.prepared_ns) != Some(false),
        None => after(said.prepared_ns).unwrap_or(said.epoch == 0),
    };
    if known.contains(&said.id) || !later {
        let what = match (said.began_ns, said.epoch) {
            (None, _) | (_, 0) => "was prepared before that began, or by a machine whose clock is behind: set that, and prepare \
                 it anew"
                .to_owned(),
            (_, epoch) => format!("is of restore epoch {epoch}"),
        };
        return match recovers {
            true => Ok(Verdict::As(Some(current.restore))),
            false => Err(fenced(store, &current, &what)),
        };
    }
    Ok(Verdict::New(RestoreEpoch { epoch: said.epoch.max(current.restore.epoch + 1), ..said.clone() }))
}

/// Refuses a server whose folder is of before the newest restore, or an older copy; nothing is written down.
pub fn check(tx: &Transaction<'_>, store: &str, register: &Register) -> Result<(), AdminError> {
    let found = stores::find_metadata(tx, store)?;
    let verdict = judge(tx, &found, register)?;
    // What was known of the folders of before ends when it registers as one that has begun.
    let said = register.restore.as_ref().map(|restore| restore.id.as_str());
    let begins = pending(tx, &found)?.is_some_and(|pending| said == Some(pending.restore.id.as_str()));
    match verdict {
        Verdict::New(_) => Ok(()),
        _ if begins => Ok(()),
        _ => directory::must_be_no_old_copy(tx, &found, register),
    }
}

/// The restore that a server goes on from which registers, and whether it is a new one; refused if its folder is of before the
/// newest one. One that has not begun is over when a server registers that is of another: its own has not opened, and may never.
pub fn admit(
    tx: &Transaction<'_>,
    store: &MetadataStore,
    register: &Register,
) -> Result<(Option<RestoreEpoch>, bool), AdminError> {
    let verdict = judge(tx, store, register)?;
    let (restore, changed, new) = match verdict {
        Verdict::As(restore) => (restore, false, false),
        Verdict::Changed(restore) => (Some(restore), true, false),
        Verdict::New(restore) => (Some(restore), false, true),
    };
    let waited = pending(tx, store)?.map(|pending| pending.restore.id);
    let id = restore.as_ref().map(|restore| restore.id.clone());
    if waited.is_some() && waited != id {
        let sql = "DELETE FROM restore_epoch
            WHERE metadata_store = ?1 AND json_extract(record, '$.began_ns') IS NULL AND id IS NOT ?2";
        tx.execute(sql, params![store.id, id])?;
        tracing::warn!(
            store = %store.name, id = waited,
            "a restore of this metadata server in place has not begun, and is over: a server of another state has registered"
        );
    }
    let Some(restore) = restore else { return Ok((None, false)) };
    if changed {
        let sql = "UPDATE restore_epoch SET record = ?3 WHERE metadata_store = ?1 AND epoch = ?2";
        tx.execute(sql, params![store.id, to_sql(restore.epoch), json(&restore)?])?;
    }
    if new {
        let sql = "INSERT INTO restore_epoch (metadata_store, epoch, id, record, learned_ns)
            VALUES (?1, ?2, ?3, ?4, ?5)";
        let row = params![store.id, to_sql(restore.epoch), restore.id, json(&restore)?, to_sql(now_ns())];
        tx.execute(sql, row)?;
    }
    if restore.began_ns.is_some() && (new || waited == id) {
        let (actor, uid) = (format!("metadata-store {}", store.name), &restore.uid);
        let said = format!("from {uid}, restore epoch {}", restore.epoch);
        directory::forget_kept(tx, &store.id)?;
        audit::note(tx, &actor, "restored in place", &said)?;
        tracing::warn!(
            store = %store.name, epoch = restore.epoch, uid,
            "this metadata server was restored in place: folders of before are refused from now on"
        );
    }
    Ok((Some(restore), new))
}

fn fenced(store: &MetadataStore, current: &RestoredServer, what: &str) -> AdminError {
    let RestoreEpoch { epoch, uid, .. } = &current.restore;
    AdminError::Fenced(format!(
        "metadata store '{}' was restored from {uid} (restore epoch {epoch}), and the folder of this server {what}: it must not \
         serve any more, and is not started; keep it until the restore is accepted (chronofs restore status), then remove it",
        store.name
    ))
}

/// Of a store that was restored in place: its newest restore as its server calls it, once somebody has accepted that.
pub fn accepted(tx: &Transaction<'_>, store: &MetadataStore) -> Result<Option<Option<String>>, AdminError> {
    let newest = newest(tx, store)?;
    Ok(newest.map(|newest| newest.accepted_ns.map(|_| newest.restore.id)))
}

/// Says of all restores in place that they are as they should be. Whether there was one, accepted or not.
pub fn accept(tx: &Transaction<'_>) -> Result<bool, AdminError> {
    // One that has not begun shows nothing that somebody could have looked at.
    let sql = "SELECT count(*) AS n FROM restore_epoch WHERE json_extract(record, '$.began_ns') IS NOT NULL";
    let any: u64 = tx.query_row(sql, [], |row| unsigned(row, "n"))?;
    let sql = "UPDATE restore_epoch SET accepted_ns = ?1
        WHERE accepted_ns IS NULL AND json_extract(record, '$.began_ns') IS NOT NULL";
    let mut changed = tx.execute(sql, [to_sql(now_ns())])? > 0;
    let admin = restored_admin(tx)?;
    let was = admin.is_some();
    if let Some(mut admin) = admin.filter(|admin| admin.accepted_ns.is_none()) {
        admin.accepted_ns = Some(now_ns());
        save_admin(tx, &admin)?;
        changed = true;
    }
    if changed {
        tx.execute("UPDATE metadata_store SET revision = revision + 1", [])?;
    }
    Ok(any > 0 || was)
}

/// Writes into the audit log what a mount had of files that the newest restore has lost: once for each mount, and of no more than
/// [`PARKED_MAX`]. The reports in the volume's lost+found say the rest.
pub fn parked(
    tx: &Transaction<'_>,
    (store, volume, name): (&str, &str, &str),
    said: &ParkedBytes,
) -> Result<(), AdminError> {
    let found = stores::find_metadata(tx, store)?;
    let Some(restore) = newest(tx, &found)?.map(|newest| newest.restore) else {
        return Err(AdminError::Invalid(format!(
            "metadata store '{}' was not restored, so no file of volume '{name}' was lost with that",
            found.name
        )));
    };
    let short =
        |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(PARKED_TEXT_MAX).collect() };
    let (mount, path) = (short(&said.mount), short(&said.path));
    let epoch = to_sql(restore.epoch);
    let sql = "SELECT count(*) AS n FROM parked WHERE metadata_store = ?1 AND epoch = ?2 AND volume = ?3";
    let heard: u64 = tx.query_row(sql, params![found.id, epoch, volume], |row| unsigned(row, "n"))?;
    if heard >= PARKED_MAX {
        return Ok(());
    }
    let sql = "INSERT OR IGNORE INTO parked (metadata_store, epoch, volume, mount) VALUES (?1, ?2, ?3, ?4)";
    if tx.execute(sql, params![found.id, epoch, volume, mount])? == 0 {
        return Ok(());
    }
    let ParkedBytes { files, bytes, .. } = said;
    let object = format!(
        "{bytes} bytes of {files} files lost with restore epoch {} by the mount {mount}, the first in {path}",
        restore.epoch
    );
    audit::note(tx, &format!("volume {name}"), "parked", &object)
}

/// Forgets all: they are those of another cluster.
pub fn forget_all(tx: &Transaction<'_>) -> Result<(), AdminError> {
    tx.execute("DELETE FROM restore_epoch", [])?;
    directory::forget_all_kept(tx)?;
    tx.execute("DELETE FROM setting WHERE key = ?1", [RESTORED_ADMIN])?;
    Ok(())
}

/// The restore of this server's own database, if it was restored in place.
pub fn restored_admin(tx: &Transaction<'_>) -> Result<Option<RestoredAdmin>, AdminError> {
    let text = setting(tx, RESTORED_ADMIN)?;
    let read = text.map(|text| serde_json::from_str(&text)).transpose();
    read.map_err(|e| AdminError::Internal(format!("what this admin server was restored from: {e}")))
}

/// Keeps it.
pub fn save_admin(tx: &Transaction<'_>, restored: &RestoredAdmin) -> Result<(), AdminError> {
    set_setting(tx, RESTORED_ADMIN, &json(restored)?)
}

/// The epoch of the last restore of this server in place; 0: there was none.
pub fn admin_epoch(tx: &Transaction<'_>) -> Result<u64, AdminError> {
    Ok(restored_admin(tx)?.map_or(0, |restored| restored.epoch))
}

/// Whether the server of a store is to say what it was told before this database was restored.
pub fn wants_review(tx: &Transaction<'_>, store: &str) -> Result<bool, AdminError> {
    let waits = restored_admin(tx)?.filter(|restored| restored.accepted_ns.is_none());
    Ok(waits.is_some_and(|restored| !restored.reviews.contains_key(store)))
}

/// Keeps how what a metadata server was told differs from what is here. Only the first time, and only of what was said before the
/// restore: what it was told from here since shows no difference, whatever was revoked.
pub fn review(tx: &Transaction<'_>, store: &MetadataStore, known: &Known) -> Result<(), AdminError> {
    if !wants_review(tx, &store.name)? {
        return Ok(());
    }
    let Some(mut restored) = restored_admin(tx)? else { return Ok(()) };
    if known.admin_epoch >= restored.epoch {
        return Ok(());
    }
    let sql = "SELECT volume_token.id FROM volume_token JOIN volume ON volume.id = volume_token.volume
        WHERE volume.metadata_store = ?1 AND volume.deleted_ns IS NULL ORDER BY volume_token.id";
    let here: BTreeSet<String> = column(tx, sql, &store.id)?.into_iter().collect();
    let there: BTreeSet<String> = known.tokens.iter().map(Uuid::to_string).collect();
    let live: BTreeSet<String> =
        column(tx, "SELECT id FROM volume WHERE metadata_store = ?1 AND deleted_ns IS NULL", &store.id)?
            .into_iter()
            .collect();
    let all: BTreeSet<String> =
        column(tx, "SELECT id FROM volume WHERE metadata_store = ?1", &store.id)?.into_iter().collect();
    let names = |of: &BTreeMap<Uuid, String>, keep: &dyn Fn(&str) -> bool| -> Vec<String> {
        of.iter().filter(|(id, _)| keep(&id.to_string())).map(|(_, name)| name.clone()).collect()
    };
    let review = Review {
        revoked: here.difference(&there).cloned().collect(),
        made: there.difference(&here).cloned().collect(),
        volumes_made: names(&known.volumes, &|id| !all.contains(id)),
        volumes_deleted: names(&known.deleted, &|id| live.contains(id)),
    };
    for line in (RestoredAdmin { reviews: [(store.name.clone(), review.clone())].into(), ..restored.clone() })
        .to_review()
    {
        tracing::warn!("to be looked at: {line}");
    }
    restored.reviews.insert(store.name.clone(), review);
    save_admin(tx, &restored)?;
    tx.execute("UPDATE metadata_store SET revision = revision + 1 WHERE id = ?1", [&store.id])?;
    Ok(())
}

/// Volume tokens that open nothing until the restore of this server is accepted: they were revoked after its copy was made.
pub fn held_back(tx: &Transaction<'_>) -> Result<BTreeSet<Uuid>, AdminError> {
    let waits = restored_admin(tx)?.filter(|restored| restored.accepted_ns.is_none());
    let reviews = waits.map(|restored| restored.reviews).unwrap_or_default();
    Ok(reviews.values().flat_map(|review| &review.revoked).filter_map(|id| id.parse().ok()).collect())
}
