//! The file operations that the log needs, as a trait: the one place where files are created, made durable and
//! renamed. [`RealDisk`] does them on a folder, [`crate::sim::SimDisk`] in a simulation that can cut the power.
//!
//! A disk is one flat folder of files. Nothing here retries, and nothing hides an error.

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A flat folder of files.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Creates an empty file; what had the name before is gone.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// The names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name; what had that name before is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// The new folder `place`, on the same volume, for an image: it must not be there yet.
    fn image(&self, place: &Path) -> io::Result<Self>
    where
        Self: Sized;

    /// Gives a file the same name in another folder as well. It stays one file.
    fn link(&self, name: &str, to: &Self) -> io::Result<()>
    where
        Self: Sized;

    /// What to call a file in a message.
    fn path(&self, name: &str) -> String;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file at least `length` bytes long and reserves the space for them, so that writing there cannot
    /// run out of space later.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Cuts the file off after `length` bytes and gives back the space behind them. A power cut may undo it.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Makes what was written durable, with the length.
    fn sync_data(&self) -> io::Result<()>;

    /// The whole content.
    fn read(&self) -> io::Result<Bytes>;

    /// Up to `length` bytes from `offset` on; fewer at the end of the file.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes>;
}

/// Writes a small file so that after a crash either all of it is there under `name` or what was there before.
pub fn write_file<D: Disk>(disk: &D, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.new");
    let file = disk.create(&temporary)?;
    file.write_at(0, bytes)?;
    file.sync_data()?;
    disk.rename(&temporary, name)?;
    disk.sync_dir()
}

/// A folder of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    handle: OwnedFd,
}

impl RealDisk {
    /// The folder `folder`, created if it is not there.
    pub fn new(folder: &Path) -> io::Result<Self> {
        if !folder.is_dir() {
            std::fs::create_dir_all(folder)?;
            if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                std::fs::File::open(parent)?.sync_all()?;
            }
        }
        let handle =
            rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(RealDisk { folder: folder.to_owned(), handle })
    }

    fn open_with(&self, name: &str, flags: OFlags) -> io::Result<RealFile> {
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(RealFile(rustix::fs::openat(&self.handle, name, flags, Mode::RUSR | Mode::WUSR)?))
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    fn open(&self, name: &str) -> io::Result<RealFile> {
        self.open_with(name, OFlags::empty())
    }

    fn create(&self, name: &str) -> io::Result<RealFile> {
        self.open_with(name, OFlags::CREATE | OFlags::TRUNC)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, name, rustix::fs::AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.handle, from, &self.handle, to)?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.handle)?)
    }

    fn image(&self, place: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().mode(0o700).create(place)?;
        if let Some(parent) = place.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::File::open(parent)?.sync_all()?;
        }
        RealDisk::new(place)
    }

    fn link(&self, name: &str, to: &Self) -> io::Result<()> {
        Ok(rustix::fs::linkat(&self.handle, name, &to.handle, name, rustix::fs::AtFlags::empty())?)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// A file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile(OwnedFd);

impl DiskFile for RealFile {
    fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::pwrite(&self.0, bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    bytes = &bytes[written..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, length) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                // Some file systems cannot reserve: zeros take the space as well.
                Err(rustix::io::Errno::OPNOTSUPP) => return self.fill_with_zeros(length),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.0, length)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn read(&self) -> io::Result<Bytes> {
        let length = rustix::fs::fstat(&self.0)?.st_size;
        self.read_at(0, usize::try_from(length).map_err(io::Error::other)?)
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let mut content = vec![0; length];
        let mut filled = 0;
        while filled < content.len() {
            match rustix::io::pread(&self.0, &mut content[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        content.truncate(filled);
        Ok(content.into())
    }
}

impl RealFile {
    fn fill_with_zeros(&self, length: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut offset = u64::try_from(rustix::fs::fstat(&self.0)?.st_size).unwrap_or(0);
        while offset < length {
            let part = (length - offset).min(zeros.len() as u64);
            self.write_at(offset, &zeros[..part as usize])?;
            offset += part;
        }
        Ok(())
    }
}
