//! Makes of the image of an admin server's database the one of a clone: another name, another address, tokens of its own for
//! its metadata servers, and nobody registered, so that nobody is led to a server of the source.

use crate::db::{Database, backups, log_servers, logs, now_ns, restored, set_setting, stores, tokens};
use crate::{AdminError, FolderLock, cluster};
use chronofs_wire::cluster::{ClusterFile, ClusterName};
use chronofs_wire::status::RestoredCluster;
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
    database.checkpoint()?;
    drop(database);
    file.write(&cluster::place(folder, None))?;
    for entry in fs::read_dir(folder).map_err(AdminError::io("list the folder of the clone"))? {
        let synced = entry.and_then(|entry| File::open(entry.path())?.sync_all());
        synced.map_err(AdminError::io("sync the folder of the clone"))?;
    }
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(AdminError::io("sync the folder of the clone"))?;
    Ok((made, file))
}
