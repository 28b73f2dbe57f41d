//! A lock on a folder, so that two processes never use one database. The kernel drops it with the process, however
//! that ends.

use crate::AdminError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

const LOCK_FILE: &str = "lock";

/// Held as long as it lives.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Locks `folder`, or says which process has it.
    pub fn take(folder: &Path) -> Result<Self, AdminError> {
        let path = folder.join(LOCK_FILE);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(AdminError::io(format!("open {}", path.display())))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = Self::holder(folder).map_or("(unknown)".to_owned(), |(pid, _)| pid);
                return Err(AdminError::Locked { folder: folder.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => {
                return Err(AdminError::Io { what: format!("lock {}", path.display()), source });
            }
        }
        let mut lock = FolderLock { file };
        lock.note("")?;
        Ok(lock)
    }

    /// Writes the process id and `text` (where it listens) into the lock file, for [`FolderLock::holder`].
    pub fn note(&mut self, text: &str) -> Result<(), AdminError> {
        let text = format!("{} {text}\n", std::process::id());
        let mut write = || {
            self.file.rewind()?;
            self.file.set_len(0)?;
            self.file.write_all(text.as_bytes())
        };
        write().map_err(AdminError::io("write the lock file"))
    }

    /// Process id and text that the holder of the lock noted; `None` when nobody holds it.
    pub fn holder(folder: &Path) -> Option<(String, String)> {
        let mut file = File::open(folder.join(LOCK_FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {}
            _ => return None,
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let (pid, address) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        Some((pid.to_owned(), address.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_folder_and_the_process_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut lock = FolderLock::take(folder.path()).unwrap();
        lock.note("127.0.0.1:1").unwrap();
        let refused = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        assert!(refused.contains(&folder.path().display().to_string()), "{refused}");
        assert_eq!(FolderLock::holder(folder.path()).unwrap().1, "127.0.0.1:1");
        drop(lock);
        assert_eq!(FolderLock::holder(folder.path()), None);
        FolderLock::take(folder.path()).unwrap();
    }
}
