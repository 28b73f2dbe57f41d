//! Makes of the image of an admin server's database the one of a clone: another name, another address, tokens of its own for
//! its metadata servers, and nobody registered, so that nobody is led to a server of the source. Or the one that goes on in the
//! place of the admin server that the image is of: all stays, but that the set it was taken for is known to be whole.

use crate::db::{
    Database, audit, backups, epochs, log_servers, logs, now_ns, restored, set_setting, setting, snapshots,
    stores, tokens,
};
use crate::{AdminError, FolderLock, cluster};
use chronofs_backup::record::State;
use chronofs_snapshot::protocol::Record;
use chronofs_wire::cluster::{ClusterFile, ClusterName};
use chronofs_wire::status::{RestoredAdmin, RestoredCluster};
use chronofs_wire::token::Token;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

/// What the clone is to be.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// The snapshot's UID.
    pub uid: String,
    /// The cluster that it was taken of.
    pub source: String,
    /// What the clone is called.
    pub name: ClusterName,
    /// Where its admin server is to be.
    pub address: String,
}

/// Prepares the database in `folder`, which holds the files of an image. Gives the tokens of the metadata stores by their
/// ids, and the new cluster file, which is also written into the folder.
pub fn prepare_clone(
    folder: &Path,
    clone: &NewCluster,
) -> Result<(BTreeMap<String, Token>, ClusterFile), AdminError> {
    let _lock = FolderLock::take(folder)?;
    let database = Database::open(folder)?;
    let file = ClusterFile::new(clone.name.clone(), &clone.address);
    let made = database.write(|tx| {
        set_setting(tx, cluster::CLUSTER, clone.name.as_str())?;
        set_setting(tx, tokens::ADDRESS, &clone.address)?;
        // They lie where only the source makes backups; and what they need only the source keeps.
        backups::forget_all(tx)?;
        tx.execute("DELETE FROM registration", [])?;
        tx.execute("UPDATE metadata_store SET revision = revision + 1", [])?;
        // The source's copies of its log are fenced by whoever opens them.
        logs::forget_all(tx)?;
        log_servers::delete_all(tx)?;
        epochs::forget_all(tx)?;
        tx.execute("UPDATE volume SET sessions = NULL, problem = NULL", [])?;
        let (uid, source) = (clone.uid.clone(), clone.source.clone());
        let row = RestoredCluster {
            uid,
            source,
            prepared_ns: now_ns(),
            accepted_ns: None,
            copying_ns: None,
            detached_ns: None,
            stores: restored::stores_of_volumes(tx)?,
        };
        restored::save(tx, &row)?;
        let mut made = BTreeMap::new();
        for store in stores::list_metadata(tx)? {
            made.insert(store.id.clone(), tokens::issue_metadata(tx, &store.id)?);
        }
        Ok(made)
    })?;
    finish(folder, database, &file)?;
    Ok((made, file))
}

/// All is in the files of the folder, and durable.
fn finish(folder: &Path, database: Database, file: &ClusterFile) -> Result<(), AdminError> {
    database.checkpoint()?;
    drop(database);
    file.write(&cluster::place(folder, None))?;
    for entry in fs::read_dir(folder).map_err(AdminError::io("list the folder of the admin server"))? {
        let synced = entry.and_then(|entry| File::open(entry.path())?.sync_all());
        synced.map_err(AdminError::io("sync the folder of the admin server"))?;
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(AdminError::io("sync the folder of the admin server"))
}

/// How an admin server goes on in its own place.
#[derive(Clone, Debug)]
pub struct InPlace {
    /// The record of the snapshot. In the image it is under way still; and what is not known to have become a set goes.
    pub record: Record,
    /// Where the server is from now on, if it was elsewhere.
    pub moved: Option<String>,
    /// All metadata servers are restored from the same set, too: what copies of their logs have is of a time that is lost.
    pub with_servers: bool,
    /// It is later than the restore of this epoch, whatever the clock says.
    pub after: u64,
}

/// Prepares the database in `folder`, which holds the files of an image, for the place of the one that it is an image of. Gives
/// the cluster file, which is also written into the folder.
pub fn prepare_in_place(folder: &Path, wanted: &InPlace) -> Result<ClusterFile, AdminError> {
    let _lock = FolderLock::take(folder)?;
    let database = Database::open(folder)?;
    let file = database.write(|tx| {
        let uid = wanted.record.intent.attempt.uid.to_string();
        snapshots::save(tx, &wanted.record)?;
        let cut_ns = wanted.record.point_ns();
        if let Some(mut backup) = backups::find(tx, &uid)?.filter(|backup| backup.state == State::Running) {
            backup.state = State::Complete;
            (backup.ended_ns, backup.point_ns) = (wanted.record.ended_ns, Some(cut_ns));
            backup.bytes = Some(wanted.record.bytes.values().sum());
            backups::save(tx, &backup)?;
        }
        if wanted.with_servers {
            logs::forget_all(tx)?;
        }
        tx.execute("UPDATE metadata_store SET revision = revision + 1", [])?;
        tx.execute("UPDATE volume SET sessions = NULL, problem = NULL", [])?;
        let name = setting(tx, cluster::CLUSTER)?.unwrap_or_default();
        let name: ClusterName = name
            .parse()
            .map_err(|e| AdminError::Internal(format!("the cluster's name in the database: {e}")))?;
        if let Some(address) = &wanted.moved {
            set_setting(tx, tokens::ADDRESS, address)?;
        }
        let address = setting(tx, tokens::ADDRESS)?.unwrap_or_default();
        // A clock may be behind that of the restore before.
        let prepared_ns = now_ns();
        let known = epochs::admin_epoch(tx)?.max(wanted.after);
        let epoch = prepared_ns.max(known.saturating_add(1));
        let reviews = BTreeMap::new();
        let row = RestoredAdmin { uid: uid.clone(), cut_ns, prepared_ns, epoch, accepted_ns: None, reviews };
        epochs::save_admin(tx, &row)?;
        audit::note(tx, "restore prepare", "restored in place", &format!("the admin server from {uid}"))?;
        Ok(ClusterFile::new(name, &address))
    })?;
    finish(folder, database, &file)?;
    Ok(file)
}
