//! The log: append-only segments on a [`Disk`]. One thread appends, any thread syncs.
//!
//! Space is allocated a segment at a time before anything is written into it, so a full disk is met before a
//! commit is acknowledged. A segment is never written again once the next one exists. What is known to be durable
//! is noted in every group, which is how recovery tells a torn tail from damage.

pub mod format;
mod recover;

pub(crate) use recover::{Recovery, recover, synced_beyond};

use crate::embedded::disk::{Disk, DiskFile};
use crate::{Commit, EngineError};
use bytes::Bytes;
use chronofs_core::Version;
use format::{GroupHeader, Place, SEGMENT_HEADER, SegmentHeader, encode_group, encode_segment, group_length};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Records of one group may not take more than this.
const GROUP_BODY_MAX: usize = 1 << 30;

/// The name of the file of segment `number`.
pub fn segment_name(number: u64) -> String {
    format!("{number:020}.log")
}

/// The number of the segment in file `name`.
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// A segment that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentInfo {
    pub(crate) number: u64,
    /// The last version in it or before it.
    pub(crate) last: Version,
    pub(crate) bytes: u64,
    /// Where it ends, once another follows.
    pub(crate) end: Option<u64>,
}

/// A state of the log, as of the end of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mark {
    /// Where the group ends.
    pub(crate) place: Place,
    /// The last version up to there.
    pub(crate) version: Version,
    /// The ceiling that it carries.
    pub(crate) ceiling: Version,
    /// The mark that it carries.
    pub(crate) mark: Version,
}

/// The log. Its user sees to it that only one thread at a time appends.
pub(crate) struct Log<D: Disk> {
    disk: D,
    segment_bytes: u64,
    /// The newest segment, into which groups go.
    current: Mutex<Arc<D::File>>,
    allocated: Mutex<u64>,
    segments: Mutex<VecDeque<SegmentInfo>>,
    /// How many keep the oldest segments from going.
    holds: Mutex<u32>,
    buffer: Mutex<Vec<u8>>,
}

/// An [`EngineError`] for an operation that failed on `path`.
pub(crate) fn io_error(action: &'static str, path: String, source: io::Error) -> EngineError {
    if is_no_space(&source) {
        EngineError::NoSpace { action, path, source }
    } else {
        EngineError::Io { action, path, source }
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// None of the mutexes here guards anything that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Disk> Log<D> {
    /// Makes the recovered log durable and ready for more. Returns it with the place where it goes on.
    pub(crate) fn open(
        disk: D,
        segment_bytes: u64,
        recovery: &Recovery,
    ) -> Result<(Self, Place), EngineError> {
        let number = recovery.end.segment.max(1);
        let failed = |action, source| io_error(action, disk.path(&segment_name(number)), source);
        for leftover in disk.list().map_err(|source| failed("list the folder of", source))? {
            if leftover.ends_with(".log.new") {
                disk.remove(&leftover).map_err(|source| failed("remove what was begun of", source))?;
            }
        }
        if recovery.segments.is_empty() {
            let header = SegmentHeader {
                segment: number,
                previous_end: 0,
                last: recovery.last,
                ceiling: recovery.ceiling,
                mark: recovery.mark,
            };
            let (file, bytes) = create_segment(&disk, &header, segment_bytes)?;
            let info = SegmentInfo { number, last: recovery.last, bytes, end: None };
            return Ok(Self::with(disk, segment_bytes, file, bytes, VecDeque::from([info])));
        }
        let file = disk.open(&segment_name(number)).map_err(|source| failed("open", source))?;
        // Whether these bytes ever reached the disk nobody knows: an fdatasync that failed in an earlier life
        // leaves them readable but unsaved. Written again, they are saved by the next fdatasync, or it says so.
        let unsure = recovery.synced.offset.min(recovery.tail.len() as u64);
        let rewritten = file.write_at(unsure, &recovery.tail[unsure as usize..]);
        rewritten.map_err(|source| failed("write again the tail of", source))?;
        file.sync_data().map_err(|source| failed("fdatasync", source))?;
        disk.sync_dir().map_err(|source| failed("fsync the folder of", source))?;
        let segments: VecDeque<_> = recovery.segments.iter().copied().collect();
        let bytes = segments.back().map_or(0, |segment| segment.bytes);
        let (log, mut place) = Self::with(disk, segment_bytes, file, bytes, segments);
        place.offset = recovery.end.offset;
        if recovery.torn {
            // What lies behind the cut could fit to what is written next: leave it behind.
            let cut = Mark { place, version: recovery.last, ceiling: recovery.ceiling, mark: recovery.mark };
            place = log.roll(&cut, 0)?;
        }
        Ok((log, place))
    }

    fn with(
        disk: D,
        segment_bytes: u64,
        file: D::File,
        allocated: u64,
        segments: VecDeque<SegmentInfo>,
    ) -> (Self, Place) {
        let number = segments.back().map_or(1, |segment| segment.number);
        let log = Log {
            disk,
            segment_bytes,
            current: Mutex::new(Arc::new(file)),
            allocated: Mutex::new(allocated),
            segments: Mutex::new(segments),
            holds: Mutex::new(0),
            buffer: Mutex::new(Vec::new()),
        };
        (log, Place { segment: number, offset: SEGMENT_HEADER as u64 })
    }

    /// The file into which groups go.
    pub(crate) fn current(&self) -> Arc<D::File> {
        lock(&self.current).clone()
    }

    /// What to call a segment in a message.
    pub(crate) fn path(&self, segment: u64) -> String {
        self.disk.path(&segment_name(segment))
    }

    /// Whether a group whose records take `body` bytes goes into the segment of `place`, after it.
    pub(crate) fn fits(&self, place: Place, body: usize) -> bool {
        place.offset + group_length(body) as u64 <= *lock(&self.allocated)
    }

    /// Begins a new segment after `end`, which must be durable already. After [`EngineError::NoSpace`] nothing has
    /// changed. Returns where the next group goes.
    pub(crate) fn roll(&self, end: &Mark, body: usize) -> Result<Place, EngineError> {
        if body > GROUP_BODY_MAX {
            return Err(EngineError::Refused(format!(
                "its {body} bytes are too many for the log: the limit is {GROUP_BODY_MAX}"
            )));
        }
        let header = header_after(end);
        let needed = SEGMENT_HEADER as u64 + group_length(body) as u64;
        let (file, bytes) = create_segment(&self.disk, &header, self.segment_bytes.max(needed))?;
        let ended = std::mem::replace(&mut *lock(&self.current), Arc::new(file));
        *lock(&self.allocated) = bytes;
        // The header of the next one says durably where this one ends: what was reserved behind that, whoever copies
        // or checks the log need not read. It is only space, so nothing fails with it.
        let cut = ended.truncate(end.place.offset);
        if let Err(error) = &cut {
            tracing::warn!("cannot give back the rest of {}: {error}", self.path(end.place.segment));
        }
        let mut segments = lock(&self.segments);
        if let Some(before) = segments.back_mut() {
            before.end = Some(end.place.offset);
            if cut.is_ok() {
                before.bytes = end.place.offset;
            }
        }
        segments.push_back(SegmentInfo { number: header.segment, last: end.version, bytes, end: None });
        Ok(Place { segment: header.segment, offset: SEGMENT_HEADER as u64 })
    }

    /// Writes one group at `header.place`, where it must fit. After [`EngineError::NoSpace`] the log is as before, and
    /// stays so whatever a power cut takes. Returns the place after the group.
    pub(crate) fn append(&self, header: &mut GroupHeader, commits: &[Commit]) -> Result<Place, EngineError> {
        let mut buffer = lock(&self.buffer);
        encode_group(header, commits, &mut buffer);
        let place = header.place;
        let file = self.current();
        if let Err(source) = file.write_at(place.offset, &buffer) {
            let error = io_error("write to", self.path(place.segment), source);
            if let EngineError::NoSpace { .. } = error {
                // A file system that copies on write can run out in spite of the allocation.
                buffer.fill(0);
                self.clear(&file, place, &buffer)?;
            }
            return Err(error);
        }
        if let (Some(segment), Some(commit)) = (lock(&self.segments).back_mut(), commits.last()) {
            segment.last = commit.version;
        }
        Ok(Place { offset: place.offset + buffer.len() as u64, ..place })
    }

    /// Takes back a write that was cut. All of it goes, because its records could fit to the header of the group that
    /// is written there next; and it goes durably, because a power cut may keep that write and lose this one.
    fn clear(&self, file: &D::File, place: Place, zeros: &[u8]) -> Result<(), EngineError> {
        let cleared = file.write_at(place.offset, zeros).and_then(|()| file.sync_data());
        cleared.map_err(|source| EngineError::Io {
            action: "clear a cut write to",
            path: self.path(place.segment),
            source,
        })
    }

    /// No segment goes until as many calls of [`Log::let_go`] have come.
    pub(crate) fn hold(&self) {
        *lock(&self.holds) += 1;
    }

    /// Every segment, oldest first, and where it ends if another follows.
    pub(crate) fn ends(&self) -> Vec<(u64, Option<u64>)> {
        lock(&self.segments).iter().map(|segment| (segment.number, segment.end)).collect()
    }

    /// Up to `length` bytes of a segment.
    pub(crate) fn read(&self, place: Place, length: usize) -> Result<Bytes, EngineError> {
        let read =
            self.disk.open(&segment_name(place.segment)).and_then(|file| file.read_at(place.offset, length));
        read.map_err(|source| io_error("read", self.path(place.segment), source))
    }

    /// Takes back one [`Log::hold`].
    pub(crate) fn let_go(&self) {
        *lock(&self.holds) -= 1;
    }

    /// Removes the oldest segments as long as `may_go` allows and nobody holds them; never the newest.
    pub(crate) fn pop(&self, may_go: impl Fn(&SegmentInfo) -> bool) -> Result<(), EngineError> {
        loop {
            // Kept while one goes, so that none goes once a hold was taken.
            let holds = lock(&self.holds);
            if *holds > 0 {
                return Ok(());
            }
            let oldest = {
                let segments = lock(&self.segments);
                segments.front().copied().filter(|oldest| segments.len() > 1 && may_go(oldest))
            };
            let Some(oldest) = oldest else { return Ok(()) };
            let failed = |action, source| io_error(action, self.path(oldest.number), source);
            self.disk.remove(&segment_name(oldest.number)).map_err(|source| failed("remove", source))?;
            // One by one, so that after a power cut no older segment can stand beyond a missing one.
            self.disk.sync_dir().map_err(|source| failed("fsync the folder of", source))?;
            lock(&self.segments).pop_front();
        }
    }

    /// Makes the image `place` of the log up to `end`, where a segment was ended: every segment until there, under
    /// another name. Of the next one only the header, which says where the last one ends: so an image that was cut
    /// off cannot be taken for a log that ended earlier. The log must be held.
    pub(crate) fn image(&self, end: &Mark, place: &Path) -> Result<(), EngineError> {
        let failed = |action, source| io_error(action, place.display().to_string(), source);
        let image = self.disk.image(place).map_err(|source| failed("make the folder", source))?;
        let numbers: Vec<u64> = lock(&self.segments).iter().map(|segment| segment.number).collect();
        for number in numbers.into_iter().filter(|number| *number <= end.place.segment) {
            let linked = self.disk.link(&segment_name(number), &image);
            linked.map_err(|source| failed("link a segment of the log into", source))?;
        }
        let header = header_after(end);
        let seal = image.create(&segment_name(header.segment));
        let sealed = seal.and_then(|file| {
            file.write_at(0, &encode_segment(&header))?;
            file.sync_data()
        });
        sealed.map_err(|source| failed("seal the log in", source))?;
        image.sync_dir().map_err(|source| failed("fsync the folder", source))
    }

    /// How much was written from one place to another that is not before it. Segments differ in length: an image ends one.
    pub(crate) fn bytes_between(&self, from: Place, to: Place) -> u64 {
        let segments = lock(&self.segments);
        let between = segments.iter().filter(|one| (from.segment..to.segment).contains(&one.number));
        let whole: u64 = between.map(|segment| segment.bytes).sum();
        let left_out = if from.segment <= to.segment { from.offset } else { 0 };
        (whole + to.offset).saturating_sub(left_out)
    }

    /// Number of segments, and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        let segments = lock(&self.segments);
        (segments.len() as u64, segments.iter().map(|segment| segment.bytes).sum())
    }
}

/// The header of the segment that follows one that ends at `end`.
fn header_after(end: &Mark) -> SegmentHeader {
    SegmentHeader {
        segment: end.place.segment + 1,
        previous_end: end.place.offset,
        last: end.version,
        ceiling: end.ceiling,
        mark: end.mark,
    }
}

/// Creates a segment so that it is there with header and space, or not at all.
fn create_segment<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    length: u64,
) -> Result<(D::File, u64), EngineError> {
    let name = segment_name(header.segment);
    let temporary = format!("{name}.new");
    let failed = |action, source| io_error(action, disk.path(&name), source);
    let prepare = || -> io::Result<D::File> {
        let file = disk.create(&temporary)?;
        file.allocate(length)?;
        file.write_at(0, &encode_segment(header))?;
        file.sync_data()?;
        Ok(file)
    };
    let file = prepare().map_err(|source| {
        // What was begun takes space. If it cannot be removed now, the next start does it.
        if let Err(error) = disk.remove(&temporary) {
            tracing::warn!("cannot remove {}: {error}", disk.path(&temporary));
        }
        failed("allocate", source)
    })?;
    disk.rename(&temporary, &name).map_err(|source| failed("rename", source))?;
    disk.sync_dir().map_err(|source| EngineError::Io {
        action: "fsync the folder of",
        path: disk.path(&name),
        source,
    })?;
    Ok((file, length))
}
