//! A quiet copy of the database beside it, so that a folder that was copied with plain tools while its server ran restores: the
//! database's own files change while they are copied, one after the other, and what comes of that may open and be wrong.
//!
//! ```text
//! admin.sqlite.copy  the database as it was a moment ago; replaced as a whole
//! admin.running      while the server runs: the inode of the database's file, and since when the key of the folder is as it is
//! ```
//!
//! A copy of the folder has another inode, and another time of change of the key, which no tool can keep; file systems that number
//! their files anew with every mount have the same time. If it was copied while the server ran, the quiet copy counts in it, and what
//! lies there of the database itself is put aside. A stopped server, a crash and an image of the disk leave what counts as it is.

use crate::AdminError;
use crate::db::{DATABASE_FILE, Database};
use chronofs_wire::secrets::KEY_FILE;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// The copy.
pub(crate) const COPY: &str = "admin.sqlite.copy";
const RUNNING: &str = "admin.running";
/// What was copied of the database itself.
const TORN: &str = "admin.sqlite.torn";
/// How old the copy may be, when something has changed since.
const EVERY: Duration = Duration::from_secs(10);

fn failed(action: &str, path: &Path) -> impl FnOnce(io::Error) -> AdminError {
    AdminError::io(format!("{action} {}", path.display()))
}

fn sync_folder(folder: &Path) -> Result<(), AdminError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

fn look_at(path: &Path) -> Result<Option<fs::Metadata>, AdminError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some).map_err(failed("look at", path)),
    }
}

fn inode(path: &Path) -> Result<Option<String>, AdminError> {
    Ok(look_at(path)?.map(|found| found.ino().to_string()))
}

fn changed(path: &Path) -> Result<Option<String>, AdminError> {
    Ok(look_at(path)?.map(|found| format!("{}.{:09}", found.ctime(), found.ctime_nsec())))
}

fn remove(path: &Path) -> Result<(), AdminError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Puts the quiet copy in the place of a database that was copied while its server ran. Nothing has opened it yet.
pub(crate) fn settle(folder: &Path) -> Result<(), AdminError> {
    let (mark, main, copy) = (folder.join(RUNNING), folder.join(DATABASE_FILE), folder.join(COPY));
    let of = match fs::read_to_string(&mark) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        read => read.map_err(failed("read", &mark))?,
    };
    let (of_inode, of_key) = of.trim().split_once(' ').unwrap_or((of.trim(), ""));
    let is_same = |found: Option<String>, of: &str| found.is_some_and(|found| found == of);
    if is_same(inode(&main)?, of_inode) || is_same(changed(&folder.join(KEY_FILE))?, of_key) {
        // It went down, and the database recovers by itself.
        return Ok(());
    }
    if inode(&copy)?.is_none() {
        return Err(AdminError::Invalid(format!(
            "folder {} is a copy that was made while its server ran, and {COPY} is not in it, which would be whole: copy the folder \
             again, or restore a backup; to use the database as it is all the same, remove {}",
            folder.display(),
            mark.display()
        )));
    }
    let whole = folder.join("admin.sqlite.whole");
    fs::copy(&copy, &whole).map_err(failed("copy the database to", &whole))?;
    File::open(&whole).and_then(|file| file.sync_all()).map_err(failed("sync", &whole))?;
    // A try before this one may have put aside what counts.
    let mut aside = TORN.to_owned();
    for n in 2.. {
        if !folder.join(&aside).exists() {
            break;
        }
        aside = format!("{TORN}.{n}");
    }
    for tail in ["", "-wal"] {
        let (from, to) =
            (folder.join(format!("{DATABASE_FILE}{tail}")), folder.join(format!("{aside}{tail}")));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("rename", &from)(error)),
            _ => {}
        }
    }
    remove(&folder.join(format!("{DATABASE_FILE}-shm")))?;
    // Until it is renamed the folder has no database, and the mark: the next start does this again.
    sync_folder(folder)?;
    fs::rename(&whole, &main).map_err(failed("rename", &whole))?;
    sync_folder(folder)?;
    remove(&mark)?;
    sync_folder(folder)?;
    tracing::warn!(
        "folder {} is a copy that was made while its server ran: its database is as {COPY} has it, some seconds older at the most; \
         what was copied of the database itself is kept as {aside}",
        folder.display()
    );
    Ok(())
}

/// Whether the folder has a database, or a copy of one that [`settle`] puts in its place.
pub(crate) fn has_copy(folder: &Path) -> bool {
    folder.join(RUNNING).exists() && folder.join(COPY).exists()
}

/// Makes the copy, and from then on a copy of the folder is told by its inode.
pub(crate) fn begin(folder: &Path, database: &Database) -> Result<(), AdminError> {
    renew(folder, database)?;
    let (mark, main) = (folder.join(RUNNING), folder.join(DATABASE_FILE));
    let (inode, changed) = (inode(&main)?.unwrap_or_default(), changed(&folder.join(KEY_FILE))?);
    File::create(&mark)
        .and_then(|mut file| {
            writeln!(file, "{inode} {}", changed.unwrap_or_default())?;
            file.sync_all()
        })
        .map_err(failed("write", &mark))?;
    sync_folder(folder)
}

fn renew(folder: &Path, database: &Database) -> Result<(), AdminError> {
    let (copy, next) = (folder.join(COPY), folder.join("admin.sqlite.next"));
    let renewed = remove(&next).and_then(|()| {
        database.copy(&next)?;
        File::open(&next).and_then(|file| file.sync_all()).map_err(failed("sync", &next))?;
        fs::rename(&next, &copy).map_err(failed("rename", &next))?;
        sync_folder(folder)
    });
    if renewed.is_err() {
        // It takes no room from the database, and one that grows old must not count for it.
        let _ = remove(&next).and(remove(&copy));
    }
    renewed
}

/// Renews the copy while the server runs, when there is something new.
pub(crate) async fn keep(folder: std::path::PathBuf, database: Database) {
    let mut copied = database.changes();
    loop {
        tokio::time::sleep(EVERY).await;
        let changes = database.changes();
        if changes == copied {
            continue;
        }
        let (folder, database) = (folder.clone(), database.clone());
        match tokio::task::spawn_blocking(move || renew(&folder, &database)).await {
            Ok(Ok(())) => copied = changes,
            Ok(Err(error)) => tracing::error!(%error, "the quiet copy of the database is not renewed"),
            Err(error) => tracing::error!(%error, "the quiet copy of the database is not renewed"),
        }
    }
}

/// The server has stopped: its files are quiet now.
pub(crate) fn end(folder: &Path) -> Result<(), AdminError> {
    remove(&folder.join(RUNNING))?;
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{set_setting, setting};

    fn said(database: &Database) -> Option<String> {
        database.write(|tx| setting(tx, "said")).unwrap()
    }

    fn say(database: &Database, what: &str) {
        database.write(|tx| set_setting(tx, "said", what)).unwrap();
    }

    #[test]
    fn in_a_folder_that_was_copied_while_the_server_ran_the_quiet_copy_counts() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        say(&database, "first");
        begin(folder.path(), &database).unwrap();
        // The database is copied first, and the rest after a change of it that went into the file.
        let other = tempfile::tempdir().unwrap();
        let copy = |name: &str| drop(fs::copy(folder.path().join(name), other.path().join(name)));
        copy(DATABASE_FILE);
        say(&database, "second");
        renew(folder.path(), &database).unwrap();
        database.checkpoint().unwrap();
        say(&database, "third");
        for name in ["admin.sqlite-wal", COPY, RUNNING] {
            copy(name);
        }
        assert!(has_copy(other.path()));
        settle(other.path()).unwrap();
        let restored = Database::open(other.path()).unwrap();
        assert_eq!(said(&restored).as_deref(), Some("second"));
        assert!(other.path().join(TORN).exists(), "nothing is thrown away");
        say(&restored, "fourth");
        drop(restored);
        settle(other.path()).unwrap();
        assert_eq!(said(&Database::open(other.path()).unwrap()).as_deref(), Some("fourth"), "once is enough");

        // On a file system that numbers its files anew it is the same folder all the same.
        let renumbered = |key: &str| {
            fs::write(other.path().join(KEY_FILE), "key").unwrap();
            let since = changed(&other.path().join(KEY_FILE)).unwrap().unwrap();
            fs::write(
                other.path().join(RUNNING),
                format!("1 {}\n", if key == "same" { &since } else { key }),
            )
            .unwrap();
            settle(other.path()).unwrap();
            said(&Database::open(other.path()).unwrap())
        };
        assert_eq!(renumbered("same").as_deref(), Some("fourth"));
        assert_eq!(renumbered("1.000000000").as_deref(), Some("second"));

        // The folder itself goes on with its own database, whether its server went down or was stopped.
        drop(database);
        settle(folder.path()).unwrap();
        assert_eq!(said(&Database::open(folder.path()).unwrap()).as_deref(), Some("third"));
        end(folder.path()).unwrap();
        settle(folder.path()).unwrap();
        assert_eq!(said(&Database::open(folder.path()).unwrap()).as_deref(), Some("third"));
    }

    #[test]
    fn a_copied_folder_without_its_quiet_copy_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        begin(folder.path(), &database).unwrap();
        drop(database);
        remove(&folder.path().join(COPY)).unwrap();
        fs::write(folder.path().join(RUNNING), "1\n").unwrap();
        let refused = settle(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("while its server ran") && refused.contains(RUNNING), "{refused}");
        assert!(folder.path().join(DATABASE_FILE).exists());
    }
}
