//! One copy and the thread that ships to it: finds where the copy goes on, then follows the log.

use super::fence::common_length;
use super::folder::sum_of;
use super::link::{CopyError, Holding, Link};
use super::{Copies, Owner, Source};
use crate::embedded::Place;
use crate::embedded::log::format::{SEGMENT_HEADER, decode_segment};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// So much is shipped at a time.
const CHUNK_BYTES: u64 = 4 << 20;
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// So many parts are on their way to a copy at a time.
const OPEN_MAX: usize = 4;

/// What a thread that ships does next.
enum Next {
    /// So many of the appends that were begun are done.
    Answered(usize),
    /// Opens the copy under this epoch.
    Open(u64),
    /// Forgets the segments before this one.
    Pop(u64),
    /// Ships what the log has up to there.
    Ship(Place),
    End,
}

/// A copy that is shipped to.
struct Shipping<'a> {
    name: &'a str,
    number: u64,
    link: Box<dyn Link>,
    epoch: u64,
    /// What was begun goes up to here.
    place: Place,
    /// Where appends end that were begun and not answered.
    sent: VecDeque<Place>,
    /// Nothing can be recovered from it before it has been caught up to here.
    fills: Option<Place>,
    trimmed: u64,
}

impl Copies {
    /// Ships to a copy until the copies are closed or it is no longer wanted.
    pub(super) fn keep_shipping(self: &Arc<Self>, name: &str, number: u64, source: &dyn Source) {
        let (mut told, mut lost) = (false, false);
        loop {
            let Err(error) = self.ship(name, number, source, &mut told, &mut lost) else { return };
            let mut state = self.lock();
            if state.closing || !state.is_shipper(name, number) {
                return;
            }
            if let CopyError::Fenced(epoch) = error {
                state.fenced = state.fenced.max(epoch);
            }
            if !told {
                tracing::error!(copy = name, "the log copy failed: {error}");
                told = true;
            }
            state.owner.failed(name, &error.to_string());
            self.changed.notify_all();
            drop(self.wait_a_while(state, RETRY));
            std::thread::sleep(RETRY / 4);
        }
    }

    /// Tells the owner of a copy, unless another thread ships to that by now.
    fn tell(&self, name: &str, number: u64, tell: impl FnOnce(&mut Owner)) {
        let mut state = self.lock();
        if state.is_shipper(name, number) {
            tell(&mut state.owner);
        }
    }

    /// Until the copies are closed.
    fn ship(
        self: &Arc<Self>,
        name: &str,
        number: u64,
        source: &dyn Source,
        told: &mut bool,
        lost: &mut bool,
    ) -> Result<(), CopyError> {
        let mut link = (self.setup.connect)(name)?;
        let epoch = self.lock().owner.epoch();
        let holding = link.open(epoch)?;
        let went_back = self.lock().owner.went_back(name, holding.end());
        if let Some(counts) = went_back {
            let end = holding.end();
            let why = format!(
                "it has less than it had acknowledged, and ends at offset {} of segment {}: its folder is an old copy, or its \
                 disk lost what was saved; it does not count until it has been caught up",
                end.offset, end.segment
            );
            if !std::mem::replace(lost, true) {
                tracing::error!(copy = name, "the log copy went back: {why}");
            }
            // A recovery could be from this one alone as long as it counts.
            if counts {
                // In one step, so that nothing is ever acknowledged for what it lost. As it was whole, it stays one that went back.
                self.tell(name, number, |owner| {
                    owner.reached(name, end, false);
                    owner.failed(name, &why);
                });
                return Err(CopyError::Unusable(why));
            }
        }
        self.tell(name, number, |owner| owner.reached(name, holding.end(), holding.filling));
        let target = self.lock().owner.target();
        let place = self.agree((name, number), &mut *link, source, &holding, target, epoch)?;
        let copies = self.clone();
        link.wake_with(Arc::new(move || {
            // Who looks for answers holds the lock until it waits.
            drop(copies.lock());
            copies.changed.notify_all();
        }));
        let (sent, fills) = (VecDeque::new(), holding.filling.then_some(target));
        let mut to = Shipping { name, number, link, epoch, place, sent, fills, trimmed: 0 };
        let now_ms = self.now_ms();
        self.tell(name, number, |owner| owner.retried(name, place, holding.filling, now_ms));
        self.answered(&mut to, 0)?;
        *lost = false;
        if std::mem::take(told) {
            tracing::info!(copy = name, "the log copy is back and catches up");
        }
        loop {
            match self.next(&mut to)? {
                Next::End => return Ok(()),
                Next::Answered(count) => self.answered(&mut to, count)?,
                Next::Open(epoch) => self.open_again(&mut to, source, epoch)?,
                Next::Pop(before) => {
                    to.link.pop(to.epoch, before)?;
                    to.trimmed = before;
                }
                Next::Ship(target) => ship_part(&mut to, source, target)?,
            }
        }
    }

    /// Waits until there is something to do.
    fn next(&self, to: &mut Shipping<'_>) -> Result<Next, CopyError> {
        let mut state = self.lock();
        loop {
            if state.closing || !state.is_shipper(to.name, to.number) {
                return Ok(Next::End);
            }
            let done = to.sent.len().saturating_sub(to.link.unanswered()?);
            let (target, epoch, trim) = (state.owner.target(), state.owner.epoch(), state.trim);
            if done > 0 {
                return Ok(Next::Answered(done));
            }
            // Where it ends is known when all that is on its way has come.
            if epoch != to.epoch && to.sent.is_empty() {
                return Ok(Next::Open(epoch));
            }
            if trim > to.trimmed {
                return Ok(Next::Pop(trim));
            }
            if epoch == to.epoch && target > to.place && to.sent.len() < OPEN_MAX {
                return Ok(Next::Ship(target));
            }
            state = self.wait_a_while(state, Duration::from_secs(1));
        }
    }

    /// So many of the appends that were begun are on the copy's disk.
    fn answered(&self, to: &mut Shipping<'_>, count: usize) -> Result<(), CopyError> {
        let done = match count {
            0 => Some(to.place),
            count => to.sent.drain(..count).next_back(),
        };
        let Some(done) = done else { return Ok(()) };
        if to.fills.is_some_and(|until| done >= until) {
            to.link.whole(to.epoch)?;
            to.fills = None;
        }
        let now_ms = self.now_ms();
        self.tell(to.name, to.number, |owner| match to.fills {
            Some(_) => owner.fills(to.name, done, now_ms),
            None => owner.acked(to.name, done, now_ms),
        });
        self.changed.notify_all();
        Ok(())
    }

    /// Opens the copy under another epoch. Parts end within groups, and of a group of which the rest has not come nothing is left
    /// then: that is shipped anew, and is no failure of the copy.
    fn open_again(&self, to: &mut Shipping<'_>, source: &dyn Source, epoch: u64) -> Result<(), CopyError> {
        let holding = to.link.open(epoch)?;
        let end = holding.end();
        to.epoch = epoch;
        if end == to.place || to.place.offset == 0 {
            return Ok(());
        }
        self.tell(to.name, to.number, |owner| owner.reached(to.name, end, holding.filling));
        let goes_back = end < to.place && end.segment > 0 && holding.filling == to.fills.is_some();
        if !goes_back || !is_same(&mut *to.link, source, end.segment, end.offset)? {
            return Err(CopyError::Elsewhere(end));
        }
        to.place = end;
        self.answered(to, 0)
    }

    /// Cuts off what the copy holds and the log does not. Says where the copy ends.
    fn agree(
        &self,
        (name, number): (&str, u64),
        link: &mut dyn Link,
        source: &dyn Source,
        holding: &Holding,
        target: Place,
        epoch: u64,
    ) -> Result<Place, CopyError> {
        let (mut agreed, parted) = agreed(link, source, holding, target)?;
        if parted != holding.end() && holding.known_durable > parted {
            let why = format!(
                "log copy {name} has durable commits that this log has not: it goes on as this log up to offset {} of \
                 segment {}; after the loss of a disk start with --recover-log, and if this log is right, move that copy \
                 away",
                parted.offset, parted.segment
            );
            let mut state = self.lock();
            if state.is_shipper(name, number) && state.owner.recorded().members.contains(name) {
                state.ended = Some(why.clone());
                self.changed.notify_all();
            }
            return Err(CopyError::Unusable(why));
        }
        if !holding.filling {
            self.tell(name, number, |owner| owner.agrees(name));
        }
        if let Some((from, to)) = hole(link, source, holding, agreed)? {
            // It may hold what nobody else has any more, unless nothing was ever recovered from it.
            if !holding.filling {
                return Err(lacking(from, to));
            }
            agreed = Place::default();
        }
        if agreed == holding.end() {
            return Ok(agreed);
        }
        let cut = if agreed.offset == 0 { Place { segment: agreed.segment + 1, offset: 0 } } else { agreed };
        link.cut(epoch, cut)?;
        Ok(agreed)
    }
}

/// Begins to append what comes next, if there is anything before `target`.
fn ship_part(to: &mut Shipping<'_>, source: &dyn Source, target: Place) -> Result<(), CopyError> {
    let place = to.place;
    let Some((at, bytes)) = next_bytes(source, place, target)? else { return Ok(()) };
    if at.segment > place.segment && place.segment > 0 && !follows(place, at.segment, &bytes) {
        return Err(lacking(place, at.segment));
    }
    to.link.begin_append(to.epoch, at, &bytes)?;
    to.place = Place { segment: at.segment, offset: at.offset + bytes.len() as u64 };
    to.sent.push_back(to.place);
    Ok(())
}

/// Whether the first `length` bytes of a segment are the same in both.
fn is_same(link: &mut dyn Link, source: &dyn Source, segment: u64, length: u64) -> Result<bool, CopyError> {
    let ours = sum_of(length, |offset, into| {
        let place = Place { segment, offset };
        let bytes = source.read(place, into.len()).map_err(|e| CopyError::Unusable(e.to_string()))?;
        into.copy_from_slice(bytes.get(..into.len()).ok_or_else(|| short(place))?);
        Ok::<(), CopyError>(())
    })?;
    Ok(link.sum(segment, length)? == ours)
}

/// How far the copy holds what the log does without a gap, and where the two part: nothing before that differs.
fn agreed(
    link: &mut dyn Link,
    source: &dyn Source,
    holding: &Holding,
    target: Place,
) -> Result<(Place, Place), CopyError> {
    let ends = source.ends();
    let first = ends.first().map_or(0, |(number, _)| *number);
    let (mut agreed, mut parted, mut gap) = (Place::default(), Place::default(), false);
    for (index, held) in holding.segments.iter().enumerate() {
        gap |= parted.segment > 0 && held.number > parted.segment + 1 && held.number > first;
        let whole = Place { segment: held.number, offset: held.length };
        if held.number < first {
            (agreed, parted) = (whole, whole);
            continue;
        }
        let Some((_, end)) = ends.iter().find(|(number, _)| *number == held.number) else { break };
        let length = end.unwrap_or(target.offset);
        let both = held.length.min(length);
        let same = common_length(both, |n| is_same(link, source, held.number, n))?;
        if same > 0 {
            parted = Place { segment: held.number, offset: same };
            agreed = if gap { agreed } else { parted };
        }
        let more = index + 1 < holding.segments.len();
        if same < held.length {
            break;
        }
        gap |= more && same < length;
    }
    Ok((agreed, parted))
}

/// What a copy that goes on as the log does at `place` misses before that: from where to which segment.
fn hole(
    link: &mut dyn Link,
    source: &dyn Source,
    holding: &Holding,
    place: Place,
) -> Result<Option<(Place, u64)>, CopyError> {
    let first = source.ends().first().map_or(0, |(number, _)| *number);
    for pair in holding.segments.windows(2) {
        let [before, next] = pair else { continue };
        // What comes then was compared with the log.
        if before.number >= first || next.number > place.segment {
            break;
        }
        let end = Place { segment: before.number, offset: before.length };
        let header = link.read(Place { segment: next.number, offset: 0 }, SEGMENT_HEADER as u64)?;
        if !follows(end, next.number, &header) {
            return Ok(Some((end, next.number)));
        }
    }
    if place.segment == 0 || place.segment >= first {
        return Ok(None);
    }
    let header = source.read(Place { segment: first, offset: 0 }, SEGMENT_HEADER);
    let header = header.map_err(|error| CopyError::Unusable(error.to_string()))?;
    Ok((!follows(place, first, &header)).then_some((place, first)))
}

/// Whether segment `number`, which begins with these bytes, follows one that ends at `place`.
fn follows(place: Place, number: u64, bytes: &[u8]) -> bool {
    let header = decode_segment(bytes);
    number == place.segment + 1 && header.is_ok_and(|header| header.previous_end == place.offset)
}

fn lacking(from: Place, to: u64) -> CopyError {
    CopyError::Unusable(format!(
        "it lacks the log from offset {} of segment {} up to segment {to}, and the log does not reach back so far any more, so the \
         copy is of no use beside it: name another folder with --log-copies, in which a new copy begins, make a disk snapshot \
         then, and move this one away",
        from.offset, from.segment
    ))
}

fn short(place: Place) -> CopyError {
    CopyError::Unusable(format!("the log's own segment {} is shorter than it says", place.segment))
}

/// What comes after `place`, and where it goes; `None` when `target` is reached.
fn next_bytes(
    source: &dyn Source,
    place: Place,
    target: Place,
) -> Result<Option<(Place, bytes::Bytes)>, CopyError> {
    let ends = source.ends();
    let mut at = place;
    for (number, end) in ends.into_iter().filter(|(number, _)| *number >= place.segment) {
        if number > at.segment {
            at = Place { segment: number, offset: 0 };
        }
        let end =
            end.unwrap_or(u64::MAX).min(if number == target.segment { target.offset } else { u64::MAX });
        if number > target.segment || (end == u64::MAX) {
            return Ok(None);
        }
        if at.offset < end {
            let length = (end - at.offset).min(CHUNK_BYTES) as usize;
            let bytes = source.read(at, length).map_err(|error| CopyError::Unusable(error.to_string()))?;
            if bytes.len() < length {
                return Err(short(at));
            }
            return Ok(Some((at, bytes)));
        }
    }
    Ok(None)
}
