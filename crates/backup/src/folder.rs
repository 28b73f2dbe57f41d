//! Backups in a folder, which must be there: one that is missing is a disk that is not mounted. Nothing is made but below it.

use crate::error::Error;
use crate::key::{Key, hex};
use crate::place::Place;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What names of unfinished files begin with.
const UNFINISHED: &str = ".new-";
/// What `mkfs` leaves in a new file system.
const LOST_FOUND: &str = "lost+found";

/// See the module.
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(crate) fn open(root: &Path) -> Result<Folder, Error> {
        let bad = |why: String| Error::Place { place: root.display().to_string(), why };
        if !root.is_absolute() {
            return Err(bad("it is no absolute path, and servers have other folders than you".to_owned()));
        }
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => Ok(Folder { root: root.to_owned() }),
            Ok(_) => Err(bad("it is no folder".to_owned())),
            Err(error) => {
                Err(bad(format!("the folder cannot be used: {error}; mount or make it on every server")))
            }
        }
    }

    fn folder_of(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.root.join(name).parent().map(Path::to_owned).unwrap_or_else(|| self.root.clone());
        if !folder.is_dir() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(Error::io("make folder", &folder))?;
            // A folder whose name is lost in a power cut takes all that is in it along.
            for above in folder.ancestors().skip(1).take_while(|above| above.starts_with(&self.root)) {
                sync(above)?;
            }
        }
        Ok(folder)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(PathBuf, PathBuf), Error> {
        let folder = self.folder_of(name)?;
        // Drawn: servers on other machines and other threads write here, too.
        let temporary = folder.join(format!("{UNFINISHED}{}", hex(&Key::draw()?.derive("temporary", &[]))));
        let mut open = OpenOptions::new();
        let file = open.write(true).create_new(true).mode(0o600).open(&temporary);
        let written = file.and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // What stays counts for nothing.
            let _ = fs::remove_file(&temporary);
            return Err(Error::io("write", &temporary)(error));
        }
        Ok((temporary, folder))
    }
}

fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(Error::io("sync", folder))
}

impl Place for Folder {
    fn shown(&self) -> String {
        self.root.display().to_string()
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (temporary, folder) = self.write(name, bytes)?;
        let path = self.root.join(name);
        fs::rename(&temporary, &path).map_err(Error::io("rename to", &path))?;
        sync(&folder)
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        let (temporary, folder) = self.write(name, bytes)?;
        let path = self.root.join(name);
        // A link refuses a name that is taken; a rename would not.
        let linked = fs::hard_link(&temporary, &path);
        let _ = fs::remove_file(&temporary);
        match linked {
            Ok(()) => sync(&folder).map(|()| true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::io("link", &path)(error)),
        }
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.root.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            Err(_) => Ok(()),
            Ok(()) => path.parent().map_or(Ok(()), sync),
        }
    }

    fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, Error> {
        let mut found = BTreeMap::new();
        let mut open = vec![folder.to_owned()];
        while let Some(folder) = open.pop() {
            let path = self.root.join(&folder);
            let entries = match fs::read_dir(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                read => read.map_err(Error::io("list", &path))?,
            };
            for entry in entries {
                let entry = entry.map_err(Error::io("list", &path))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(UNFINISHED) {
                    continue;
                }
                let meta = match entry.metadata() {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    meta => meta.map_err(Error::io("look at", &entry.path()))?,
                };
                let name = format!("{folder}/{name}");
                match meta.is_dir() {
                    true => open.push(name),
                    false => drop(found.insert(name, meta.len())),
                }
            }
        }
        Ok(found)
    }

    fn is_empty(&self) -> Result<bool, Error> {
        for entry in fs::read_dir(&self.root).map_err(Error::io("list", &self.root))? {
            let entry = entry.map_err(Error::io("list", &self.root))?;
            let name = entry.file_name();
            if name != LOST_FOUND && !name.to_string_lossy().starts_with(UNFINISHED) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
