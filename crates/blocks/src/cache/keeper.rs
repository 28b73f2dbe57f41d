//! Writes slices to the disk cache and lets segments go. One thread of each process does this.

use super::Shared;
use super::folder::Folder;
use super::index::{Queue, SegmentId};
use super::record::{FOOTER_LEN, HEADER_LEN, Key, ROW_LEN, Row, parse_header, table};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How much a disk cache may take, and in what pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The quota: bytes of the disk that all segments together take at most.
    pub(super) bytes_max: u64,
    /// Bytes of a segment.
    pub(super) segment_bytes: u64,
    /// Slices that are kept at most, since each takes some 50 bytes of memory.
    pub(super) entries_max: usize,
}

/// A segment that is being written.
#[derive(Debug)]
struct Writer {
    id: SegmentId,
    file: File,
    at: u64,
    rows: Vec<Row>,
}

/// A slice that is to be written.
#[derive(Debug)]
struct Record {
    hash: u64,
    header: [u8; HEADER_LEN],
    stored: Bytes,
    hits: u8,
    queue: Queue,
}

/// The folder, while nobody else begins segments or lets them go.
#[derive(Debug)]
struct Room {
    _lock: File,
    listed: BTreeMap<SegmentId, u64>,
    /// Segments that cannot go now.
    kept: HashSet<SegmentId>,
}

impl Room {
    fn bytes(&self) -> u64 {
        self.listed.values().sum()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    limits: Limits,
    small: Option<Writer>,
    main: Option<Writer>,
    /// What was used of segments that went.
    survivors: VecDeque<Record>,
    /// Another process was writing a segment when this one looked last.
    others_write: bool,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, limits: Limits) -> Self {
        Keeper { shared, limits, small: None, main: None, survivors: VecDeque::new(), others_write: false }
    }

    /// Learns what is in the folder.
    pub(super) fn load(&mut self) -> io::Result<()> {
        self.folder().prepare()?;
        // What cannot be written to can be read all the same.
        let lock = self.folder().lock();
        let mut listed = self.folder().list()?;
        self.meet(&mut listed);
        lock.map(drop)
    }

    /// Learns what other processes have ended since, if any were writing.
    pub(super) fn look_again(&mut self) -> io::Result<()> {
        if self.others_write { self.load() } else { Ok(()) }
    }

    /// Keeps a slice, unless it is kept already or there is no room for it. Whether it is kept.
    pub(super) fn put(&mut self, key: Key, stored: Bytes) -> io::Result<bool> {
        let hash = key.hash();
        let queue = {
            let mut index = self.shared.index();
            if index.has(hash) {
                return Ok(true);
            }
            index.queue_for(hash)
        };
        let header = key.header(stored.len() as u32);
        let mut kept = self.append(Record { hash, header, stored, hits: 0, queue });
        while let Some(record) = self.survivors.pop_front() {
            if kept.is_err() {
                break;
            }
            kept = self.append(record).and(kept);
        }
        self.survivors.clear();
        kept
    }

    /// Stops writing to the segments that are open; what is in them stays.
    pub(super) fn give_up(&mut self) {
        for writer in [self.small.take(), self.main.take()].into_iter().flatten() {
            self.shared.index().close(writer.id, self.limits.segment_bytes);
        }
    }

    /// Writes the tables of the segments that are open.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let closed = self.close_writer(Queue::Small);
        self.close_writer(Queue::Main).and(closed)
    }

    fn append(&mut self, record: Record) -> io::Result<bool> {
        let len = (HEADER_LEN + record.stored.len()) as u64;
        let segment_bytes = self.limits.segment_bytes;
        // With the table as it would be then.
        let fits =
            |at: u64, rows: usize| at + len + ((rows + 1) * ROW_LEN + FOOTER_LEN) as u64 <= segment_bytes;
        if !fits(0, 0) {
            return Ok(false);
        }
        if self.writer(record.queue).as_ref().is_none_or(|w| !fits(w.at, w.rows.len())) {
            self.turn(record.queue)?;
        }
        if self.shared.index().is_full() {
            drop(self.make_room(0)?);
        }
        let Some(writer) = self.writer(record.queue) else { return Ok(false) };
        writer.file.write_all_at(&record.stored, writer.at + HEADER_LEN as u64)?;
        // The header comes last: what it announces is there.
        writer.file.write_all_at(&record.header, writer.at)?;
        let row = Row { hash: record.hash, at: writer.at as u32, stored_len: record.stored.len() as u32 };
        writer.at += len;
        writer.rows.push(row);
        let id = writer.id;
        self.shared.index().add(id, row, record.hits);
        Ok(true)
    }

    /// Ends the open segment of a queue and begins the next.
    fn turn(&mut self, queue: Queue) -> io::Result<()> {
        self.close_writer(queue)?;
        self.folder().prepare()?;
        let mut room = self.make_room(self.limits.segment_bytes)?;
        let last = room.listed.keys().next_back().map_or(0, |id| id.number);
        let number = last.checked_add(1).ok_or_else(|| io::Error::other("no more numbers for segments"))?;
        let id = SegmentId { number, queue };
        let file = loop {
            match self.folder().create(id, self.limits.segment_bytes) {
                // The disk is fuller than the quota knows.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    if !self.let_one_go(&mut room) {
                        return Err(error);
                    }
                }
                other => break other?,
            }
        };
        self.shared.index().begin(id, self.limits.segment_bytes);
        self.shared.figures.set_bytes(room.bytes() + self.limits.segment_bytes);
        *self.writer(queue) = Some(Writer { id, file, at: 0, rows: Vec::new() });
        Ok(())
    }

    /// Lets segments go until `bytes` more are within the quota and one more slice can be known.
    fn make_room(&mut self, bytes: u64) -> io::Result<Room> {
        let lock = self.folder().lock()?;
        let mut listed = self.folder().list()?;
        self.meet(&mut listed);
        let mut room = Room { _lock: lock, listed, kept: HashSet::new() };
        while room.bytes() + bytes > self.limits.bytes_max || self.shared.index().is_full() {
            if !self.let_one_go(&mut room) {
                let reason =
                    "what other mounts are writing takes the whole quota; it is too small for so many";
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
            }
        }
        Ok(room)
    }

    /// Compares what is known with what is there: other processes begin segments and let some go. What is ended takes less
    /// from then on.
    fn meet(&mut self, listed: &mut BTreeMap<SegmentId, u64>) {
        let known = self.shared.index().segments();
        for id in known {
            if !listed.contains_key(&id) {
                self.shared.index().evict(id, 0);
            }
        }
        self.others_write = false;
        for (id, bytes) in listed.iter_mut() {
            if self.shared.index().knows(*id) {
                continue;
            }
            match self.folder().rows(*id) {
                Ok(Some((rows, ended))) => {
                    *bytes = ended.unwrap_or(*bytes);
                    self.shared.index().found(*id, *bytes, &rows);
                }
                // Another process writes it: it is met once it is whole.
                Ok(None) => self.others_write = true,
                // As if it were empty: it goes when its time comes.
                Err(error) => {
                    tracing::debug!(?id, "a segment of the disk cache cannot be read: {error}");
                    self.shared.index().found(*id, *bytes, &[]);
                }
            }
        }
        self.shared.figures.set_bytes(listed.values().sum());
    }

    /// Lets the next segment go that can. Whether one did.
    fn let_one_go(&mut self, room: &mut Room) -> bool {
        loop {
            let victim = self.shared.index().victim(&room.kept);
            let Some(id) = victim else { return false };
            match self.let_go(id) {
                Ok(true) => {
                    room.listed.remove(&id);
                    return true;
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(?id, "a segment of the disk cache cannot go: {error}"),
            }
            room.kept.insert(id);
        }
    }

    /// Whether the segment is gone. Its place on the disk is free then.
    fn let_go(&mut self, id: SegmentId) -> io::Result<bool> {
        let file = match self.folder().claim(id) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.shared.index().evict(id, 0);
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        self.folder().remove(id)?;
        // They wait in memory, and each segment that goes must make room.
        let waiting: u64 = self.survivors.iter().map(|record| record.stored.len() as u64).sum();
        let most = (self.limits.segment_bytes / 2).saturating_sub(waiting);
        let (survivors, dropped) = self.shared.index().evict(id, most);
        self.shared.figures.evicted(dropped);
        for survivor in survivors {
            let row = survivor.row;
            let mut raw = vec![0; HEADER_LEN + row.stored_len as usize];
            if file.read_exact_at(&mut raw, u64::from(row.at)).is_err() {
                continue;
            }
            let fits =
                |(key, stored_len): &(Key, u32)| (key.hash(), *stored_len) == (row.hash, row.stored_len);
            let Some((key, stored_len)) = parse_header(&raw).filter(fits) else { continue };
            self.survivors.push_back(Record {
                hash: row.hash,
                header: key.header(stored_len),
                stored: Bytes::from(raw).slice(HEADER_LEN..),
                hits: survivor.hits,
                queue: Queue::Main,
            });
        }
        Ok(true)
    }

    fn close_writer(&mut self, queue: Queue) -> io::Result<()> {
        let Some(writer) = self.writer(queue).take() else { return Ok(()) };
        let table = table(&writer.rows, writer.at as u32);
        let end = writer.at + table.len() as u64;
        let closed = writer.file.write_all_at(&table, writer.at).and_then(|()| writer.file.set_len(end));
        let bytes = if closed.is_ok() { end } else { self.limits.segment_bytes };
        self.shared.index().close(writer.id, bytes);
        closed
    }

    fn writer(&mut self, queue: Queue) -> &mut Option<Writer> {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    fn folder(&self) -> &Folder {
        &self.shared.folder
    }
}
