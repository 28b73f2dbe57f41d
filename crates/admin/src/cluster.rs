//! The cluster's identity: made once, kept in the database, and told to people and tools by the cluster file.
//!
//! The file is in the server's folder unless another place is named. Its id never changes. Of its addresses the file
//! knows best: whoever moves the server writes the new address there (or gives it to `admin init creds`).

use crate::AdminError;
use crate::db::tokens::ADDRESS;
use crate::db::{Database, set_setting, setting};
use chronofs_wire::cluster::{CLUSTER_FILE, ClusterFile, ClusterName};
use std::path::{Path, PathBuf};

/// Setting: `description:id` of the cluster.
pub(crate) const CLUSTER: &str = "cluster";
/// What a new cluster is called.
const DESCRIPTION: &str = "chronofs";

/// Where the cluster file of the server of `folder` is.
pub(crate) fn place(folder: &Path, given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| folder.join(CLUSTER_FILE), Path::to_owned)
}

/// Brings database and cluster file into agreement: a new cluster gets both, a file that is gone is written again, a file
/// of another cluster is refused. `moved` is the address that somebody says just now; else that of the file counts, else
/// `before`, which is known from earlier.
pub(crate) fn settle(
    database: &Database,
    path: &Path,
    moved: Option<&str>,
    before: &str,
) -> Result<ClusterFile, AdminError> {
    let found = ClusterFile::find(path)?;
    let known = database.write(|tx| setting(tx, CLUSTER))?;
    let known: Option<ClusterName> = match known.map(|name| name.parse()) {
        Some(Err(error)) => {
            return Err(AdminError::Internal(format!("the cluster's name in the database: {error}")));
        }
        known => known.and_then(Result::ok),
    };
    let name = match (known, &found) {
        (Some(known), Some(file)) if file.name != known => return Err(of_another(path, &file.name, &known)),
        (Some(known), _) => known,
        (None, Some(file)) => adopted(path, file, moved.unwrap_or(before))?,
        (None, None) => ClusterName::draw(DESCRIPTION)?,
    };
    let settled = match (moved, &found) {
        (Some(address), _) => ClusterFile::new(name, address),
        (None, Some(file)) => file.clone(),
        (None, None) => ClusterFile::new(name, before),
    };
    // The database first: a file without a cluster would be taken for that of another.
    let address = settled.coordinators.first().cloned().unwrap_or_default();
    database.write(|tx| {
        set_setting(tx, CLUSTER, settled.name.as_str())?;
        set_setting(tx, ADDRESS, &address)
    })?;
    if found.as_ref() != Some(&settled) {
        settled.write(path)?;
        tracing::info!(path = %path.display(), cluster = %settled, "wrote the cluster file");
    }
    if moved.is_none() && address != before {
        tracing::info!(
            before,
            now = address,
            "the cluster file has another address; new tokens name that one"
        );
    }
    Ok(settled)
}

fn of_another(path: &Path, file: &ClusterName, known: &ClusterName) -> AdminError {
    AdminError::Invalid(format!(
        "cluster file {} is of cluster {file}, and this server's database is of cluster {known}: give this server the cluster \
         file of {known} (--cluster-file), or remove the file, and it is written anew",
        path.display()
    ))
}

/// The name of a cluster that has a file and no state yet. A server that is not at its address would be a second one of
/// the same name.
fn adopted(path: &Path, file: &ClusterFile, address: &str) -> Result<ClusterName, AdminError> {
    let own = ClusterFile::new(file.name.clone(), address).coordinators;
    if own.iter().all(|own| file.coordinators.contains(own)) {
        return Ok(file.name.clone());
    }
    Err(AdminError::Invalid(format!(
        "cluster file {} is of cluster {} with its coordinator at {}, and this server, at {address}, has nothing of it: \
         restore the folder of that server here, name another place for the file of a new cluster (--cluster-file), or \
         write {address} into the file",
        path.display(),
        file.name,
        file.coordinators.join(", "),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_of(database: &Database) -> String {
        database.write(|tx| setting(tx, ADDRESS)).unwrap().unwrap()
    }

    #[test]
    fn the_identity_is_made_once_and_the_file_can_be_lost() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let path = place(folder.path(), None);
        let made = settle(&database, &path, None, "a.example:1").unwrap();
        assert_eq!(made.coordinators, ["a.example:1"]);
        assert_eq!(made.name.description(), "chronofs");
        assert_eq!(ClusterFile::read(&path).unwrap(), made);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(settle(&database, &path, None, "a.example:1").unwrap(), made);
        assert_eq!(ClusterFile::read(&path).unwrap(), made);
    }

    #[test]
    fn the_file_says_where_the_server_is_unless_somebody_says_so_now() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let path = folder.path().join("c");
        let made = settle(&database, &path, None, "a:1").unwrap();
        let moved = ClusterFile { coordinators: vec!["b:2".to_owned(), "b:3".to_owned()], ..made.clone() };
        moved.write(&path).unwrap();
        assert_eq!(settle(&database, &path, None, "a:1").unwrap(), moved);
        assert_eq!(address_of(&database), "b:2");
        let told = settle(&database, &path, Some("c:4"), "b:2").unwrap();
        assert_eq!((told.coordinators.clone(), told.name.clone()), (vec!["c:4".to_owned()], made.name));
        assert_eq!((ClusterFile::read(&path).unwrap(), address_of(&database).as_str()), (told, "c:4"));
    }

    #[test]
    fn a_file_of_another_cluster_is_refused_by_name_and_left_alone() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let database = Database::open(folder.path()).unwrap();
        let path = folder.path().join("c");
        let made = settle(&database, &path, None, "a:1").unwrap();
        let foreign: ClusterFile = "lab:42@a:1".parse().unwrap();
        foreign.write(&path).unwrap();
        for moved in [None, Some("z:9")] {
            let error = settle(&database, &path, moved, "a:1").unwrap_err().to_string();
            assert!(error.contains("lab:42") && error.contains(made.name.as_str()), "{error}");
            assert!(error.contains("--cluster-file"), "{error}");
        }
        assert_eq!(ClusterFile::read(&path).unwrap(), foreign);
        // A server without state takes the name of a file only at the file's address.
        let fresh = Database::open(other.path()).unwrap();
        let error = settle(&fresh, &path, None, "b:1").unwrap_err().to_string();
        assert!(error.contains("lab:42") && error.contains("b:1"), "{error}");
        assert_eq!(fresh.write(|tx| setting(tx, CLUSTER)).unwrap(), None);
        assert_eq!(settle(&fresh, &path, None, "a:1").unwrap(), foreign);
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let path = folder.path().join("c");
        std::fs::write(&path, "what is this").unwrap();
        let error = settle(&database, &path, None, "a:1").unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "what is this");
    }
}
