//! Reads the log back when an engine is opened: checks every byte that must be there, cuts a torn tail, refuses
//! damage. It changes nothing on the disk.

use super::format::{
    BadSegment, FORMAT, GROUP_HEADER, GroupHeader, Place, SEGMENT_HEADER, SegmentHeader, decode_group_header,
    decode_records, decode_segment,
};
use super::{SegmentInfo, io_error, segment_name, segment_number};
use crate::embedded::disk::{Disk, DiskFile};
use crate::{Commit, EngineError, Recovered};
use bytes::Bytes;
use chronofs_core::Version;

/// What the log holds.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// Every segment, oldest first.
    pub(crate) segments: Vec<SegmentInfo>,
    /// Commits after the store's position, each group with the place after it.
    pub(crate) replay: Vec<(Place, Vec<Commit>)>,
    /// Tags at or after the mark.
    pub(crate) tags: Vec<Recovered>,
    /// The last commit.
    pub(crate) last: Version,
    /// No version above this was handed out.
    pub(crate) ceiling: Version,
    /// The last mark.
    pub(crate) mark: Version,
    /// The end of what is good.
    pub(crate) end: Place,
    /// Everything before this was known to be durable in an earlier life; the rest has to be made durable anew.
    pub(crate) synced: Place,
    /// Content of the last segment up to its end.
    pub(crate) tail: Bytes,
    /// Whether something other than zeros follows the end.
    pub(crate) torn: bool,
}

/// The next step for a person who meets damage.
const NEXT_STEP: &str = "nothing was changed; copy the folder aside, look for disk errors in the kernel's log, and \
                         restore this metadata store from its newest backup";

/// Reads all segments of `disk`. `position` is the place and version that the store holds durably, if any.
pub(crate) fn recover<D: Disk>(
    disk: &D,
    position: Option<(Place, Version)>,
) -> Result<Recovery, EngineError> {
    let names = disk.list().map_err(|source| io_error("list", disk.path(""), source))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    check_numbers(disk, &numbers, position)?;
    let mut scan = Scan { disk, position, found: Recovery::default(), at_position: position.is_none() };
    // Each segment says where the one before it ends, so one is scanned when the next has been opened.
    let mut waiting: Option<(SegmentHeader, Bytes)> = None;
    for &number in &numbers {
        let (header, bytes) = scan.open(number)?;
        if let Some((before, content)) = waiting.take() {
            scan.segment(&before, &content, Some(header.previous_end))?;
            if scan.found.last > header.last {
                return Err(scan.damaged(number, 0, "the segment before it holds later versions"));
            }
        }
        scan.enter(&header);
        waiting = Some((header, bytes));
    }
    if let Some((header, content)) = waiting {
        scan.segment(&header, &content, None)?;
    }
    scan.finish()
}

fn check_numbers<D: Disk>(
    disk: &D,
    numbers: &[u64],
    position: Option<(Place, Version)>,
) -> Result<(), EngineError> {
    let missing = |number: u64, why: &str| EngineError::Damaged {
        what: disk.path(&segment_name(number)),
        detail: format!("this segment of the log is missing ({why}); {NEXT_STEP}"),
    };
    let needed = position.map_or(1, |(place, _)| place.segment);
    match numbers {
        [] if position.is_none() => return Ok(()),
        [] => return Err(missing(needed, "the store needs it, and the log is empty")),
        [first, ..] if *first > needed => return Err(missing(needed, "the store needs it")),
        [.., last] if *last < needed => return Err(missing(needed, "the store needs it")),
        _ => {}
    }
    match numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        Some(pair) => Err(missing(pair[0] + 1, "the ones before and after it are there")),
        None => Ok(()),
    }
}

struct Scan<'a, D> {
    disk: &'a D,
    position: Option<(Place, Version)>,
    found: Recovery,
    at_position: bool,
}

impl<D: Disk> Scan<'_, D> {
    fn damaged(&self, segment: u64, offset: u64, found: &str) -> EngineError {
        EngineError::Damaged {
            what: format!("{} at offset {offset}", self.disk.path(&segment_name(segment))),
            detail: format!("{found}; {NEXT_STEP}"),
        }
    }

    fn open(&self, number: u64) -> Result<(SegmentHeader, Bytes), EngineError> {
        let name = segment_name(number);
        let failed = |action, source| io_error(action, self.disk.path(&name), source);
        let file = self.disk.open(&name).map_err(|source| failed("open", source))?;
        let bytes = file.read().map_err(|source| failed("read", source))?;
        let header = match decode_segment(&bytes) {
            Ok(header) => header,
            Err(BadSegment::Damaged(found)) => return Err(self.damaged(number, 0, found)),
            Err(BadSegment::Newer(format)) => {
                return Err(EngineError::Damaged {
                    what: self.disk.path(&name),
                    detail: format!(
                        "it has log format {format}, this chronofs knows up to {FORMAT}: start the chronofs that \
                         wrote it, or a newer one"
                    ),
                });
            }
        };
        if header.segment != number {
            return Err(self.damaged(number, 0, &format!("the file holds segment {}", header.segment)));
        }
        Ok((header, bytes))
    }

    /// Takes over what the header of the next segment says.
    fn enter(&mut self, header: &SegmentHeader) {
        let found = &mut self.found;
        found.last = found.last.max(header.last);
        found.ceiling = header.ceiling;
        found.mark = found.mark.max(header.mark);
        found.end = Place { segment: header.segment, offset: SEGMENT_HEADER as u64 };
        found.synced = found.end;
        let begin = found.end;
        self.reach(begin);
    }

    /// Notes that a group begins or ends at `place`, after the last version found so far.
    fn reach(&mut self, place: Place) {
        if self.position == Some((place, self.found.last)) {
            self.at_position = true;
        }
    }

    /// Reads the groups of a segment: up to `must_end`, or as far as they are good if it is the newest.
    fn segment(
        &mut self,
        header: &SegmentHeader,
        bytes: &Bytes,
        must_end: Option<u64>,
    ) -> Result<(), EngineError> {
        let segment = header.segment;
        let mut place = Place { segment, offset: SEGMENT_HEADER as u64 };
        let mut synced = place;
        loop {
            if must_end == Some(place.offset) {
                break;
            }
            let rest = bytes.slice((place.offset as usize).min(bytes.len())..);
            match self.group(place, &rest) {
                Ok(header) => {
                    synced = synced.max(header.synced);
                    place.offset += header.length();
                }
                Err(found) => {
                    let known = if must_end.is_some() {
                        Some("the end of the segment".to_owned())
                    } else {
                        synced_beyond(&rest, place).map(|synced| format!("offset {}", synced.offset))
                    };
                    if let Some(known) = known {
                        let found = format!("{found}, though the log was durable up to {known}");
                        return Err(self.damaged(segment, place.offset, &found));
                    }
                    break;
                }
            }
        }
        self.found.segments.push(SegmentInfo {
            number: segment,
            last: self.found.last,
            bytes: bytes.len() as u64,
            end: must_end,
        });
        if must_end.is_none() {
            let end = (place.offset as usize).min(bytes.len());
            self.found.end = place;
            self.found.synced = synced.min(place);
            self.found.torn = !is_zero(&bytes[end..]);
            self.found.tail = bytes.slice(..end);
        }
        Ok(())
    }

    /// Reads the group at `place`, where `rest` begins.
    fn group(&mut self, place: Place, rest: &Bytes) -> Result<GroupHeader, &'static str> {
        let header = decode_group_header(rest, place).ok_or_else(|| {
            if rest.iter().take(GROUP_HEADER).all(|byte| *byte == 0) {
                "there are zeros where a group should be"
            } else {
                "there is no group with a right checksum"
            }
        })?;
        let commits = decode_records(&header, rest)?;
        let found = &mut self.found;
        let mut last = found.last;
        for commit in &commits {
            if commit.version <= last {
                return Err("versions do not rise");
            }
            last = commit.version;
        }
        found.last = last;
        found.ceiling = header.ceiling;
        found.mark = found.mark.max(header.mark);
        let tags =
            commits.iter().map(|commit| Recovered { version: commit.version, tag: commit.tag.clone() });
        found.tags.extend(tags);
        let after = Place { offset: place.offset + header.length(), ..place };
        if !commits.is_empty() && self.position.is_none_or(|(position, _)| after > position) {
            found.replay.push((after, commits));
        }
        self.reach(after);
        Ok(header)
    }

    fn finish(mut self) -> Result<Recovery, EngineError> {
        if let (false, Some((place, version))) = (self.at_position, self.position) {
            let end = self.found.end;
            let found = format!(
                "the store holds everything up to here (version {version}), but the log, which ends at offset {} of \
                 segment {}, has no group that ends here with it",
                end.offset, end.segment
            );
            return Err(self.damaged(place.segment, place.offset, &found));
        }
        let mark = self.found.mark;
        self.found.tags.retain(|tag| tag.version >= mark);
        self.found.ceiling = self.found.ceiling.max(self.found.last);
        Ok(self.found)
    }
}

/// Looks for a group header after `place` that knows more than `place` to be durable.
pub(crate) fn synced_beyond(rest: &Bytes, place: Place) -> Option<Place> {
    (8..rest.len().saturating_sub(GROUP_HEADER - 1)).step_by(8).find_map(|skip| {
        let there = Place { offset: place.offset + skip as u64, ..place };
        decode_group_header(&rest[skip..], there).map(|header| header.synced).filter(|synced| *synced > place)
    })
}

/// By words, so that the compiler looks at many bytes at once: what is not written of a segment is most of it.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}
