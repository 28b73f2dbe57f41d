//! The folder of an engine: one process at a time, and formats that this code knows.
//!
//! `format` says which formats the folder holds, `lock` is held by the process that has it open, `log/` and
//! `store/` hold the rest.

use super::disk::{RealDisk, write_file};
use super::log::io_error;
use crate::EngineError;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What `format` says in a folder of this version: the formats of folder, log and store.
const FORMAT: &str = "chronofs metadata engine\nfolder 1\nlog 1\nstore 1\n";

/// A folder that this process holds.
#[derive(Debug)]
pub struct Folder {
    folder: PathBuf,
    _lock: OwnedFd,
}

impl Folder {
    /// Takes `folder`, which is created if it is not there.
    pub fn open(folder: &Path) -> Result<Self, EngineError> {
        let failed = |action, path: &Path, source| io_error(action, path.display().to_string(), source);
        let disk = RealDisk::new(folder).map_err(|source| failed("open the folder", folder, source))?;
        let lock = take_lock(&folder.join("lock"))?;
        let format = folder.join("format");
        match std::fs::read_to_string(&format) {
            Ok(text) => check_format(&format, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some(present) =
                    ["log", "store"].map(|name| folder.join(name)).iter().find(|path| path.exists())
                {
                    return Err(EngineError::Damaged {
                        what: format.display().to_string(),
                        detail: format!(
                            "it is missing, though {} is there; put it back from a backup of this folder",
                            present.display()
                        ),
                    });
                }
                write_file(&disk, "format", FORMAT.as_bytes())
                    .map_err(|source| failed("write", &format, source))?;
            }
            Err(source) => return Err(failed("read", &format, source)),
        }
        Ok(Folder { folder: folder.to_owned(), _lock: lock })
    }

    /// The folder of the log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The folder of the store.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }
}

fn take_lock(path: &Path) -> Result<OwnedFd, EngineError> {
    let failed =
        |action, source: rustix::io::Errno| io_error(action, path.display().to_string(), source.into());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|source| failed("open", source))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = std::fs::read_to_string(path).unwrap_or_default();
            let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
            return Err(EngineError::InUse { path: path.display().to_string(), holder: holder.to_owned() });
        }
        Err(source) => return Err(failed("lock", source)),
    }
    let text = format!("process {}\n", std::process::id());
    rustix::fs::ftruncate(&file, 0).map_err(|source| failed("write", source))?;
    rustix::io::pwrite(&file, text.as_bytes(), 0).map_err(|source| failed("write", source))?;
    Ok(file)
}

fn check_format(path: &Path, text: &str) -> Result<(), EngineError> {
    if text == FORMAT {
        return Ok(());
    }
    let known = text.starts_with("chronofs metadata engine\n");
    Err(EngineError::Damaged {
        what: path.display().to_string(),
        detail: if known {
            format!(
                "it names formats that this chronofs does not know ({}); start the chronofs that wrote the folder, or \
                 a newer one",
                text.lines().skip(1).collect::<Vec<_>>().join(", ")
            )
        } else {
            "it is not the format file of a metadata engine; look whether this is the right folder".to_owned()
        },
    })
}
