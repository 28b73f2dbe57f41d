//! The bytes of the log: segment header, group header, commit records, group end. Encoding and decoding only;
//! decoding takes any bytes and never panics. Laid out in `docs/arch/engine.md`; a change needs a new [`FORMAT`].
//!
//! All numbers are little-endian. Groups start at multiples of 8 in their segment.

use crate::{Batch, Change, Commit};
use bytes::{Buf, BufMut, Bytes};
use chronofs_core::Version;

/// The version of the format that this code writes.
pub const FORMAT: u32 = 1;
/// Length of a segment's header.
pub const SEGMENT_HEADER: usize = 64;
/// Length of a group's header.
pub const GROUP_HEADER: usize = 72;
/// Length of the end mark of a group.
pub const GROUP_END: usize = 8;
/// Length of a record without its tag and changes.
pub const RECORD_HEADER: usize = 24;

const SEGMENT_MAGIC: [u8; 8] = *b"chronlog";
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"GRUP");
const END_MAGIC: u32 = u32::from_le_bytes(*b"gend");
const CHANGE_PUT: u8 = 1;
const CHANGE_DELETE: u8 = 2;

/// A place in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Place {
    /// Number of the segment, from 1.
    pub segment: u64,
    /// Offset in it.
    pub offset: u64,
}

/// The header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Its number.
    pub segment: u64,
    /// Where the segment before it ends; all of that is durable. 0 in the first.
    pub previous_end: u64,
    /// The last version in the segments before.
    pub last: Version,
    /// No version above this was handed out yet.
    pub ceiling: Version,
    /// Tags before this need not be recovered.
    pub mark: Version,
}

/// The header of a group: what one write into the log carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupHeader {
    /// Where the group stands, so that bytes that strayed here from elsewhere are not taken for it.
    pub place: Place,
    /// Everything before this is known to be durable.
    pub synced: Place,
    /// No version above this is handed out before a later header with a higher ceiling is durable.
    pub ceiling: Version,
    /// Tags before this need not be recovered.
    pub mark: Version,
    /// Number of records.
    pub records: u32,
    /// Bytes of the records.
    pub body: u32,
}

impl GroupHeader {
    /// Length of the whole group with header, end mark and padding.
    pub fn length(&self) -> u64 {
        group_length(self.body as usize) as u64
    }
}

/// Length of a group whose records take `body` bytes.
pub fn group_length(body: usize) -> usize {
    (GROUP_HEADER + body + GROUP_END).next_multiple_of(8)
}

/// Length of the record of `commit`.
pub fn record_length(commit: &Commit) -> usize {
    let change = |change: &Change| match change {
        Change::Put(key, value) => 9 + key.len() + value.len(),
        Change::Delete(key) => 5 + key.len(),
    };
    RECORD_HEADER + commit.tag.len() + commit.batch.0.iter().map(change).sum::<usize>()
}

/// The bytes of a segment header.
pub fn encode_segment(header: &SegmentHeader) -> [u8; SEGMENT_HEADER] {
    let mut bytes = [0; SEGMENT_HEADER];
    let mut out = &mut bytes[..];
    out.put_slice(&SEGMENT_MAGIC);
    out.put_u32_le(FORMAT);
    out.put_u32_le(0);
    out.put_u64_le(header.segment);
    out.put_u64_le(header.previous_end);
    out.put_u64_le(header.last.0);
    out.put_u64_le(header.ceiling.0);
    out.put_u64_le(header.mark.0);
    seal(&mut bytes);
    bytes
}

/// Why bytes are not a segment header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadSegment {
    /// Written by a newer chronofs.
    Newer(u32),
    /// Anything else.
    Damaged(&'static str),
}

/// Reads a segment header.
pub fn decode_segment(bytes: &[u8]) -> Result<SegmentHeader, BadSegment> {
    let bytes = bytes.get(..SEGMENT_HEADER).ok_or(BadSegment::Damaged("it is shorter than its header"))?;
    if bytes[..8] != SEGMENT_MAGIC {
        return Err(BadSegment::Damaged("it does not begin as a segment of the log"));
    }
    if !is_sealed(bytes) {
        return Err(BadSegment::Damaged("the checksum of its header is wrong"));
    }
    let mut input = &bytes[8..];
    match input.get_u32_le() {
        FORMAT => {}
        newer => return Err(BadSegment::Newer(newer)),
    }
    input.advance(4);
    Ok(SegmentHeader {
        segment: input.get_u64_le(),
        previous_end: input.get_u64_le(),
        last: Version(input.get_u64_le()),
        ceiling: Version(input.get_u64_le()),
        mark: Version(input.get_u64_le()),
    })
}

/// Puts a whole group into `out`, which is cleared first. `header` has its counts filled in.
pub fn encode_group(header: &mut GroupHeader, commits: &[Commit], out: &mut Vec<u8>) {
    out.clear();
    out.resize(GROUP_HEADER, 0);
    commits.iter().for_each(|commit| encode_record(commit, out));
    header.records = u32::try_from(commits.len()).unwrap_or(u32::MAX);
    header.body = u32::try_from(out.len() - GROUP_HEADER).unwrap_or(u32::MAX);
    encode_group_header(header, &mut out[..GROUP_HEADER]);
    out.put_u32_le(END_MAGIC);
    out.put_u32_le(header.body);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn encode_group_header(header: &GroupHeader, bytes: &mut [u8]) {
    let mut out = &mut *bytes;
    out.put_u32_le(GROUP_MAGIC);
    out.put_u32_le(header.records);
    out.put_u32_le(header.body);
    out.put_u32_le(0);
    out.put_u64_le(header.place.segment);
    out.put_u64_le(header.place.offset);
    out.put_u64_le(header.synced.segment);
    out.put_u64_le(header.synced.offset);
    out.put_u64_le(header.ceiling.0);
    out.put_u64_le(header.mark.0);
    seal(bytes);
}

/// Reads a group header that stands at `place`.
pub fn decode_group_header(bytes: &[u8], place: Place) -> Option<GroupHeader> {
    let bytes = bytes.get(..GROUP_HEADER)?;
    if bytes[..4] != GROUP_MAGIC.to_le_bytes() || !is_sealed(bytes) {
        return None;
    }
    let mut input = &bytes[4..];
    let records = input.get_u32_le();
    let body = input.get_u32_le();
    input.advance(4);
    let mut pair = || Place { segment: input.get_u64_le(), offset: input.get_u64_le() };
    let (found, synced) = (pair(), pair());
    let (ceiling, mark) = (Version(input.get_u64_le()), Version(input.get_u64_le()));
    (found == place).then_some(GroupHeader { place, synced, ceiling, mark, records, body })
}

fn encode_record(commit: &Commit, out: &mut Vec<u8>) {
    let start = out.len();
    out.put_bytes(0, 8);
    out.put_u64_le(commit.version.0);
    out.put_u32_le(commit.tag.len() as u32);
    out.put_u32_le(commit.batch.0.len() as u32);
    out.put_slice(&commit.tag);
    for change in &commit.batch.0 {
        match change {
            Change::Put(key, value) => {
                out.put_u8(CHANGE_PUT);
                out.put_u32_le(key.len() as u32);
                out.put_u32_le(value.len() as u32);
                out.put_slice(key);
                out.put_slice(value);
            }
            Change::Delete(key) => {
                out.put_u8(CHANGE_DELETE);
                out.put_u32_le(key.len() as u32);
                out.put_slice(key);
            }
        }
    }
    let rest = (out.len() - start - 8) as u32;
    out[start + 4..start + 8].copy_from_slice(&rest.to_le_bytes());
    let sum = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Reads the records of a group from `bytes`, which begin with its header. The commits share the bytes.
pub fn decode_records(header: &GroupHeader, bytes: &Bytes) -> Result<Vec<Commit>, &'static str> {
    let body_end = GROUP_HEADER + header.body as usize;
    if bytes.len() < body_end + GROUP_END {
        return Err("the group is longer than the file");
    }
    let mut end = &bytes[body_end..body_end + GROUP_END];
    if end.get_u32_le() != END_MAGIC || end.get_u32_le() != header.body {
        return Err("the end mark of the group is missing");
    }
    let mut body = bytes.slice(GROUP_HEADER..body_end);
    let mut commits = Vec::with_capacity((header.records as usize).min(body.len() / RECORD_HEADER));
    for _ in 0..header.records {
        commits.push(decode_record(&mut body)?);
    }
    if body.is_empty() { Ok(commits) } else { Err("the group holds more than its records") }
}

fn decode_record(body: &mut Bytes) -> Result<Commit, &'static str> {
    const SHORT: &str = "a record is cut short";
    if body.len() < RECORD_HEADER {
        return Err(SHORT);
    }
    let mut head = &body[..8];
    let (sum, rest) = (head.get_u32_le(), head.get_u32_le() as usize);
    if body.len() - 8 < rest || rest < RECORD_HEADER - 8 {
        return Err(SHORT);
    }
    if crc32c::crc32c(&body[4..8 + rest]) != sum {
        return Err("the checksum of a record is wrong");
    }
    let mut record = body.split_to(8 + rest);
    record.advance(8);
    let version = Version(record.get_u64_le());
    let (tag_length, changes) = (record.get_u32_le() as usize, record.get_u32_le() as usize);
    let tag = take(&mut record, tag_length).ok_or(SHORT)?;
    let mut batch = Vec::with_capacity(changes.min(record.len() / 5));
    for _ in 0..changes {
        batch.push(decode_change(&mut record).ok_or("a change is cut short or of an unknown kind")?);
    }
    if record.is_empty() {
        Ok(Commit { version, tag, batch: Batch(batch) })
    } else {
        Err("a record is too long")
    }
}

fn decode_change(record: &mut Bytes) -> Option<Change> {
    let kind = take(record, 1)?[0];
    let key_length = take(record, 4)?.get_u32_le() as usize;
    match kind {
        CHANGE_PUT => {
            let value_length = take(record, 4)?.get_u32_le() as usize;
            Some(Change::Put(take(record, key_length)?, take(record, value_length)?))
        }
        CHANGE_DELETE => Some(Change::Delete(take(record, key_length)?)),
        _ => None,
    }
}

fn take(from: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= from.len()).then(|| from.split_to(length))
}

/// Puts the checksum of all before them into the last four bytes.
fn seal(bytes: &mut [u8]) {
    let end = bytes.len() - 4;
    let sum = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&sum.to_le_bytes());
}

fn is_sealed(bytes: &[u8]) -> bool {
    let (content, sum) = bytes.split_at(bytes.len() - 4);
    crc32c::crc32c(content).to_le_bytes() == sum
}
