//! A copy in a folder: segments, byte for byte as in the log, and the fence.
//!
//! ```text
//! fence   text: format, metadata store, epoch, sealed or open, whole or filling, how often it was opened
//! lock    flocked during each operation, so that two processes can use one folder and the fence holds between them
//! log/    segments; each ends where its file ends
//! ```

use super::fence::Fence;
use super::link::{CopyError, Held, Holding, Link};
use crate::embedded::disk::write_file;
use crate::embedded::log::format::{
    GROUP_HEADER, SEGMENT_HEADER, decode_group_header, decode_records, decode_segment,
};
use crate::embedded::log::{segment_name, segment_number, synced_beyond};
use crate::embedded::{Place, RealDisk};
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Checksums are computed over so many bytes at a time.
const SUM_CHUNK: usize = 1 << 20;

/// See the module.
pub struct FolderCopy {
    folder: PathBuf,
    log: PathBuf,
    store: String,
    lock: File,
    disk: RealDisk,
    log_disk: RealDisk,
    /// The newest segment and where it ends, while nobody else can have changed it: under this fence.
    tail: Option<(Saved, Tail)>,
}

/// What the file `fence` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Saved {
    fence: Fence,
    /// It began empty and was not caught up since.
    filling: bool,
    /// How often it was opened or sealed: who opened it before the last time is not obeyed any more, although the epoch is the
    /// same. What such a one still sends could be older than what is there.
    opened: u64,
}

struct Tail {
    place: Place,
    file: Option<File>,
}

fn failed_before() -> CopyError {
    CopyError::Unusable("it failed before and is to be opened anew".to_owned())
}

fn unusable(action: &str, path: &Path, error: impl std::fmt::Display) -> CopyError {
    CopyError::Unusable(format!("cannot {action} {}: {error}", path.display()))
}

impl FolderCopy {
    /// The copy of metadata store `store` in `folder`, which is made unless it is there. The folder that `folder` lies in must
    /// be there: a disk that is not mounted is no empty copy.
    pub fn new(folder: &Path, store: &str) -> Result<Self, CopyError> {
        let failed = |error: io::Error| unusable("open the log copy", folder, error);
        let parent = folder.parent().unwrap_or(Path::new("/"));
        if !parent.is_dir() {
            return Err(unusable("open the log copy", folder, format!("{} is not there", parent.display())));
        }
        let disk = RealDisk::new(folder).map_err(failed)?;
        let log = folder.join("log");
        let log_disk = RealDisk::new(&log).map_err(failed)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(0o600).open(folder.join("lock"));
        let lock = lock.map_err(failed)?;
        let copy = FolderCopy {
            folder: folder.to_owned(),
            log,
            store: store.to_owned(),
            lock,
            disk,
            log_disk,
            tail: None,
        };
        copy.locked(|| copy.saved().map(drop))?;
        Ok(copy)
    }

    /// Whether there is a copy in `folder`.
    pub fn is_in(folder: &Path) -> bool {
        folder.join("fence").exists()
    }

    /// How the copy is, for people: its fence, whether it is still filling, and its segments as their files are long.
    pub fn shown(&self) -> Result<(Fence, bool, Vec<Held>), CopyError> {
        let saved = self.locked(|| self.saved())?;
        Ok((saved.fence, saved.filling, self.held()?))
    }

    /// Links the segments up to the one that ends at `end` into the folder `target`, each under its name behind `prefix`. Refused
    /// if the copy does not go so far.
    pub fn link_into(&self, end: Place, target: &Path, prefix: &str) -> Result<(), CopyError> {
        self.locked(|| {
            let held = self.held()?;
            let has = held.iter().any(|held| held.number == end.segment && held.length == end.offset);
            if !has || self.saved()?.filling {
                let why = format!("it does not end segment {} at offset {}", end.segment, end.offset);
                return Err(unusable("make an image of", &self.folder, why));
            }
            for number in held.iter().map(|held| held.number).filter(|number| *number <= end.segment) {
                let to = target.join(format!("{prefix}{}", segment_name(number)));
                std::fs::hard_link(self.path(number), &to).map_err(|e| unusable("link into", &to, e))?;
            }
            Ok(())
        })
    }

    fn held(&self) -> Result<Vec<Held>, CopyError> {
        let length = |number: u64| {
            let path = self.path(number);
            let found = std::fs::metadata(&path).map_err(|e| unusable("look at", &path, e))?;
            Ok(Held { number, length: found.len() })
        };
        self.numbers()?.into_iter().map(length).collect()
    }

    /// Runs with the folder locked against other processes.
    fn locked<T>(&self, run: impl FnOnce() -> Result<T, CopyError>) -> Result<T, CopyError> {
        flock(&self.lock, FlockOperation::LockExclusive).map_err(|e| unusable("lock", &self.folder, e))?;
        let result = run();
        flock(&self.lock, FlockOperation::Unlock).map_err(|e| unusable("unlock", &self.folder, e))?;
        result
    }

    fn saved(&self) -> Result<Saved, CopyError> {
        let path = self.folder.join("fence");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let there = self.numbers()?;
                if !there.is_empty() {
                    let why = "it is missing beside segments of a log: is this a log copy?";
                    return Err(unusable("read", &path, why));
                }
                return Ok(Saved { fence: Fence::default(), filling: true, opened: 0 });
            }
            Err(error) => return Err(unusable("read", &path, error)),
        };
        let (saved, store) =
            parse(&text).ok_or_else(|| unusable("understand", &path, "it is of another format"))?;
        if store != self.store {
            let why = format!("it is of metadata store {store}, and not of {}", self.store);
            return Err(unusable("use", &self.folder, why));
        }
        Ok(saved)
    }

    fn save(&self, saved: Saved) -> Result<(), CopyError> {
        let Saved { fence, filling, opened } = saved;
        let state = if fence.sealed { "sealed" } else { "open" };
        let state = format!("{state} {}", if filling { "filling" } else { "whole" });
        let epoch = fence.epoch;
        let text =
            format!("chronofs log copy 1\nstore {}\nepoch {epoch} {state}\nopened {opened}\n", self.store);
        write_file(&self.disk, "fence", text.as_bytes())
            .map_err(|e| unusable("write", &self.folder.join("fence"), e))
    }

    fn numbers(&self) -> Result<Vec<u64>, CopyError> {
        let failed = |error| unusable("list", &self.log, error);
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.log).map_err(failed)? {
            numbers.extend(segment_number(&entry.map_err(failed)?.file_name().to_string_lossy()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.log.join(segment_name(segment))
    }

    fn segment(&self, number: u64) -> Result<File, CopyError> {
        let path = self.path(number);
        OpenOptions::new().read(true).write(true).open(&path).map_err(|e| unusable("open", &path, e))
    }

    /// What is there. What a crash left behind the last whole group is taken away, so that nothing strays into what follows.
    /// `strict`: more is missing there than a crash can have taken, so the copy is damaged and is left as it is. An owner need not
    /// ask: it ships anew what is cut off.
    fn look(&self, strict: bool) -> Result<Holding, CopyError> {
        let mut holding = Holding { segments: self.held()?, ..Holding::default() };
        while let Some(last) = holding.segments.last_mut() {
            let path = self.path(last.number);
            let bytes: Bytes = std::fs::read(&path).map_err(|e| unusable("read", &path, e))?.into();
            let (end, known) = whole_groups(last.number, &bytes);
            holding.known_durable = holding.known_durable.max(known);
            let bad = Place { segment: last.number, offset: end };
            if strict && synced_beyond(&bytes.slice(end as usize..), bad).is_some() {
                let why = format!("it is damaged at offset {end}, and what follows was durable");
                return Err(unusable("use", &path, why));
            }
            if end > 0 {
                if end < last.length {
                    self.cut_file(last.number, end)?;
                    last.length = end;
                }
                break;
            }
            self.remove(last.number)?;
            holding.segments.pop();
        }
        Ok(holding)
    }

    fn cut_file(&self, number: u64, length: u64) -> Result<(), CopyError> {
        let file = self.segment(number)?;
        file.set_len(length)
            .and_then(|()| file.sync_all())
            .map_err(|e| unusable("cut", &self.path(number), e))
    }

    fn remove(&self, number: u64) -> Result<(), CopyError> {
        let path = self.path(number);
        std::fs::remove_file(&path).map_err(|e| unusable("remove", &path, e))?;
        self.sync_log()
    }

    fn sync_log(&self) -> Result<(), CopyError> {
        use crate::embedded::Disk;
        self.log_disk.sync_dir().map_err(|e| unusable("fsync", &self.log, e))
    }

    fn begin(
        &mut self,
        strict: bool,
        next: impl FnOnce(Fence) -> Result<Fence, super::fence::Refusal>,
    ) -> Result<Holding, CopyError> {
        self.tail = None;
        let (saved, holding) = self.locked(|| {
            let before = self.saved()?;
            let saved = Saved { fence: next(before.fence)?, opened: before.opened + 1, ..before };
            self.save(saved)?;
            // What was written before a crash is readable, and perhaps was never saved.
            let holding = Holding { filling: saved.filling, ..self.look(strict)? };
            if let Some(last) = holding.segments.last() {
                self.segment(last.number)?
                    .sync_all()
                    .map_err(|e| unusable("fsync", &self.path(last.number), e))?;
                self.sync_log()?;
            }
            Ok((saved, holding))
        })?;
        self.tail = Some((saved, Tail { place: holding.end(), file: None }));
        Ok(holding)
    }

    fn write(&self, tail: &mut Tail, place: Place, bytes: &Bytes) -> Result<(), CopyError> {
        let path = self.path(place.segment);
        let failed = |error| unusable("write to", &path, error);
        let created = place.offset == 0;
        if created {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(true).read(true).write(true).mode(0o600).open(&path);
            tail.file = Some(file.map_err(failed)?);
        } else if tail.file.is_none() {
            tail.file = Some(self.segment(place.segment)?);
        }
        let Some(file) = &tail.file else { return Ok(()) };
        file.write_all_at(bytes, place.offset).and_then(|()| file.sync_data()).map_err(failed)?;
        if created {
            self.sync_log()?;
        }
        tail.place = Place { segment: place.segment, offset: place.offset + bytes.len() as u64 };
        Ok(())
    }

    /// Runs with what the folder ends with, if the owner of `epoch` may append. After an error nothing is known of the end.
    fn owned<T>(
        &mut self,
        epoch: u64,
        run: impl FnOnce(&Self, &mut Tail, Fence) -> Result<T, CopyError>,
    ) -> Result<T, CopyError> {
        let (known, mut tail) = self.tail.take().ok_or_else(failed_before)?;
        let result = self.locked(|| {
            let saved = self.saved()?;
            let fence = saved.fence;
            if fence.epoch != epoch || fence.sealed {
                return Err(CopyError::Fenced(fence.epoch));
            }
            if saved != known {
                let why = "it was opened anew by another thread or connection of the same owner";
                return Err(CopyError::Unusable(why.to_owned()));
            }
            run(self, &mut tail, fence)
        })?;
        self.tail = Some((known, tail));
        Ok(result)
    }
}

impl Link for FolderCopy {
    fn seal(&mut self, epoch: u64) -> Result<Holding, CopyError> {
        self.begin(true, |fence| fence.seal(epoch))
    }

    fn open(&mut self, epoch: u64) -> Result<Holding, CopyError> {
        self.begin(false, |fence| fence.open(epoch))
    }

    fn append(&mut self, epoch: u64, place: Place, bytes: &Bytes) -> Result<(), CopyError> {
        self.owned(epoch, |copy, tail, fence| {
            fence.append(epoch, place, tail.place)?;
            copy.write(tail, place, bytes)
        })
    }

    fn whole(&mut self, epoch: u64) -> Result<(), CopyError> {
        let Some((known, _)) = &self.tail else { return Err(failed_before()) };
        let saved = Saved { filling: false, ..*known };
        self.owned(epoch, |copy, _, _| copy.save(saved))?;
        if let Some((known, _)) = &mut self.tail {
            *known = saved;
        }
        Ok(())
    }

    fn cut(&mut self, epoch: u64, place: Place) -> Result<(), CopyError> {
        self.owned(epoch, |copy, tail, _| {
            // Newest first, so that a crash leaves no gap.
            for number in copy.numbers()?.into_iter().rev().take_while(|number| *number >= place.segment) {
                if number > place.segment || place.offset == 0 {
                    copy.remove(number)?;
                } else {
                    copy.cut_file(number, place.offset)?;
                }
            }
            tail.file = None;
            let last = copy.numbers()?.last().copied();
            tail.place = match last {
                Some(number) => {
                    let path = copy.path(number);
                    let length = std::fs::metadata(&path).map_err(|e| unusable("look at", &path, e))?.len();
                    Place { segment: number, offset: length }
                }
                None => Place::default(),
            };
            Ok(())
        })
    }

    fn pop(&mut self, epoch: u64, before: u64) -> Result<(), CopyError> {
        self.owned(epoch, |copy, _, _| {
            let numbers = copy.numbers()?;
            let newest = numbers.last().copied().unwrap_or(0);
            let mut old = numbers.into_iter().take_while(|number| *number < before.min(newest));
            old.try_for_each(|number| copy.remove(number))
        })
    }

    fn sum(&mut self, segment: u64, length: u64) -> Result<[u8; 32], CopyError> {
        let path = self.path(segment);
        let file = File::open(&path).map_err(|e| unusable("open", &path, e))?;
        sum_of(length, |offset, into| file.read_exact_at(into, offset))
            .map_err(|e| unusable("read", &path, e))
    }

    fn read(&mut self, place: Place, length: u64) -> Result<Bytes, CopyError> {
        let path = self.path(place.segment);
        let failed = |error| unusable("read", &path, error);
        let file = File::open(&path).map_err(failed)?;
        let there = file.metadata().map_err(failed)?.len().saturating_sub(place.offset);
        let mut bytes = vec![0; usize::try_from(there.min(length)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, place.offset).map_err(failed)?;
        Ok(bytes.into())
    }
}

/// The checksum of the first `length` bytes of what `read` reads.
pub(crate) fn sum_of<E>(
    length: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<[u8; 32], E> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; SUM_CHUNK];
    let mut offset = 0;
    while offset < length {
        let part = (length - offset).min(SUM_CHUNK as u64) as usize;
        read(offset, &mut buffer[..part])?;
        hasher.update(&buffer[..part]);
        offset += part as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

fn parse(text: &str) -> Option<(Saved, &str)> {
    let mut lines = text.lines();
    (lines.next()? == "chronofs log copy 1").then_some(())?;
    let store = lines.next()?.strip_prefix("store ")?;
    let words: Vec<&str> = lines.next()?.split(' ').collect();
    let ["epoch", epoch, state, content] = words[..] else { return None };
    let either = |word: &str, yes: &str, no: &str| match word {
        word if word == yes => Some(true),
        word if word == no => Some(false),
        _ => None,
    };
    let fence = Fence { epoch: epoch.parse().ok()?, sealed: either(state, "sealed", "open")? };
    let opened = lines.next().map_or(Some(0), |line| line.strip_prefix("opened ")?.parse().ok())?;
    Some((Saved { fence, filling: either(content, "filling", "whole")?, opened }, store))
}

/// Where the whole groups of a segment end, 0 if it has no whole header; and what they know to be durable.
pub(crate) fn whole_groups(number: u64, bytes: &Bytes) -> (u64, Place) {
    let mut known = Place::default();
    let Ok(header) = decode_segment(bytes) else { return (0, known) };
    if header.segment != number {
        return (0, known);
    }
    if number > 1 {
        known = Place { segment: number - 1, offset: header.previous_end };
    }
    let mut offset = SEGMENT_HEADER;
    while bytes.len() >= offset + GROUP_HEADER {
        let rest = bytes.slice(offset..);
        let Some(group) = decode_group_header(&rest, Place { segment: number, offset: offset as u64 }) else {
            break;
        };
        if rest.len() < group.length() as usize || decode_records(&group, &rest).is_err() {
            break;
        }
        known = known.max(group.synced);
        offset += group.length() as usize;
    }
    (offset as u64, known)
}
