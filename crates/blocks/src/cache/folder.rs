//! The files of the disk cache: `cache1-NUMBER.small` and `cache1-NUMBER.main` for segments, and `lock`.
//!
//! Processes share the folder. Whoever begins a segment or lets one go holds `lock`; whoever writes a segment holds a
//! lock on it, so that nobody else lets it go or takes it for what a killed process left. Readers hold nothing: they
//! open a file for each read, and a file that is gone is a miss. Locks are flock(2)'s, which end with their process.
//!
//! Nothing is synced: what a power cut takes away or mixes up is found out when it is read.

use super::index::{Queue, SegmentId};
use super::record::{self, FOOTER_LEN, Footer, HEADER_LEN, ROW_LEN, Row, parse_header};
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PREFIX: &str = "cache1-";
const LOCK: &str = "lock";
/// It is held for milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Permission bits with which others than the owner could put bytes into the folder.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The folder of a disk cache.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
}

impl Folder {
    pub(super) fn new(dir: &Path) -> Self {
        Folder { dir: dir.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder if there is none. Checksums tell damage, not malice: a folder that others may write to is
    /// refused.
    pub(super) fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let found = fs::metadata(&self.dir)?;
        let own = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
        if !own || found.mode() & WRITABLE_BY_OTHERS != 0 {
            let reason = "others may write to it; give it to the user who mounts, with mode 0700";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Ok(())
    }

    /// Waits until no other process begins segments or lets them go, and holds them off. Not for ever: one that is
    /// stopped while it holds the lock would hold up the unmount of all that share the folder.
    pub(super) fn lock(&self) -> io::Result<File> {
        let path = self.dir.join(LOCK);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let until = Instant::now() + LOCK_WAIT;
        while !try_lock(&file)? {
            if Instant::now() >= until {
                let reason =
                    "another mount holds its lock and does not go on; is it stopped, or its disk stuck?";
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            std::thread::sleep(LOCK_WAIT / 200);
        }
        Ok(file)
    }

    /// All segments and the bytes that each takes of the disk.
    pub(super) fn list(&self) -> io::Result<BTreeMap<SegmentId, u64>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(parse_name) else { continue };
            match entry.metadata() {
                Ok(metadata) => drop(found.insert(id, taken(&metadata))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Begins a segment with all its room, and so finds a full disk before anything is written. Under the lock.
    pub(super) fn create(&self, id: SegmentId, bytes: u64) -> io::Result<File> {
        let path = self.path(id);
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        let room = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
            other => other.map_err(io::Error::from),
        };
        let made = room.and_then(|()| file.lock());
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    /// The records of a segment and the bytes that it takes if these are others by now, or `None` while somebody writes it.
    /// With the folder's `lock` what a killed process left ends behind its last record from then on: all the room that was
    /// set aside for it would be taken by what may be very little. Without it nothing is changed, and a segment without
    /// records counts as somebody's: it may have been made just now, and not be locked yet.
    pub(super) fn rows(
        &self,
        id: SegmentId,
        lock: Option<&File>,
    ) -> io::Result<Option<(Vec<Row>, Option<u64>)>> {
        let file = File::open(self.path(id))?;
        let len = file.metadata()?.len();
        if let Some(rows) = table(&file, len) {
            return Ok(Some((rows, None)));
        }
        if !try_lock(&file)? {
            return Ok(None);
        }
        let rows = headers(&file, len);
        if lock.is_none() {
            return Ok((!rows.is_empty()).then_some((rows, None)));
        }
        // What cannot be written to can be read all the same.
        let ended =
            OpenOptions::new().write(true).open(self.path(id)).and_then(|file| end(&file, &rows, len));
        Ok(Some((rows, ended.unwrap_or_default())))
    }

    /// The records of a segment as far as it is written, whoever writes it, for who only reads. Nothing is locked or changed.
    pub(super) fn written(&self, id: SegmentId) -> io::Result<Vec<Row>> {
        let file = File::open(self.path(id))?;
        let len = file.metadata()?.len();
        Ok(table(&file, len).unwrap_or_else(|| headers(&file, len)))
    }

    /// `len` bytes of a segment from `at`.
    pub(super) fn read(&self, id: SegmentId, at: u32, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        File::open(self.path(id))?.read_exact_at(&mut bytes, u64::from(at))?;
        Ok(bytes)
    }

    /// A segment that is going to be let go, or `None` while somebody writes it. Under the lock.
    pub(super) fn claim(&self, id: SegmentId) -> io::Result<Option<File>> {
        let file = File::open(self.path(id))?;
        Ok(try_lock(&file)?.then_some(file))
    }

    pub(super) fn remove(&self, id: SegmentId) -> io::Result<()> {
        fs::remove_file(self.path(id))
    }

    fn path(&self, id: SegmentId) -> PathBuf {
        let queue = match id.queue {
            Queue::Small => "small",
            Queue::Main => "main",
        };
        self.dir.join(format!("{PREFIX}{:08x}.{queue}", id.number))
    }
}

fn parse_name(name: &str) -> Option<SegmentId> {
    let (number, queue) = name.strip_prefix(PREFIX)?.split_once('.')?;
    let queue = match queue {
        "small" => Queue::Small,
        "main" => Queue::Main,
        _ => return None,
    };
    let number = (number.len() == 8).then(|| u32::from_str_radix(number, 16).ok())??;
    Some(SegmentId { number, queue })
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The rows of a segment that was written to its end.
fn table(file: &File, len: u64) -> Option<Vec<Row>> {
    let mut footer = [0; FOOTER_LEN];
    file.read_exact_at(&mut footer, len.checked_sub(FOOTER_LEN as u64)?).ok()?;
    let footer = Footer::parse(&footer, len)?;
    let mut table = vec![0; footer.rows as usize * ROW_LEN];
    file.read_exact_at(&mut table, u64::from(footer.table_at)).ok()?;
    footer.rows(&table)
}

/// Ends a segment that nobody writes behind its last record. The bytes that it takes, unless it has no room for its table.
fn end(file: &File, rows: &[Row], len: u64) -> io::Result<Option<u64>> {
    let at = rows.last().map_or(0, |row| u64::from(row.at) + HEADER_LEN as u64 + u64::from(row.stored_len));
    let table = record::table(rows, at as u32);
    let end = at + table.len() as u64;
    if end > len {
        return Ok(None);
    }
    file.write_all_at(&table, at)?;
    file.set_len(end)?;
    Ok(Some(taken(&file.metadata()?)))
}

/// The bytes that a segment takes. Without room set aside (see `create`) it may come to take as much as it is long.
fn taken(metadata: &Metadata) -> u64 {
    metadata.len().max(metadata.blocks() * 512)
}

/// The records that a killed process left, one after the other.
fn headers(file: &File, len: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut at = 0;
    let mut header = [0; HEADER_LEN];
    while file.read_exact_at(&mut header, at).is_ok() {
        let Some((key, stored_len)) = parse_header(&header) else { break };
        let next = at + HEADER_LEN as u64 + u64::from(stored_len);
        let Ok(start) = u32::try_from(at) else { break };
        if next > len {
            break;
        }
        rows.push(Row { hash: key.hash(), at: start, stored_len });
        at = next;
    }
    rows
}
