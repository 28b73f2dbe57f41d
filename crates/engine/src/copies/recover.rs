//! A log from its copies, after the loss of the disk that it was on.

use super::Connect;
use super::folder::{sum_of, whole_groups};
use super::link::{CopyError, Holding, Link};
use super::owner::{Quorum, choose};
use crate::EngineError;
use crate::embedded::log::format::{SEGMENT_HEADER, decode_segment};
use crate::embedded::log::{segment_name, segment_number};
use crate::embedded::{Disk, DiskFile, Place, RealDisk};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// Read at a time.
const CHUNK_BYTES: u64 = 4 << 20;

/// A copy that takes longer to be sealed is done without.
const SEAL_WITHIN: Duration = Duration::from_secs(60);

/// What was recovered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FromCopies {
    /// The copy that goes furthest.
    pub copy: String,
    /// Where it ends.
    pub end: Place,
    /// Copies that were sealed.
    pub sealed: Vec<String>,
    /// Segments that were written.
    pub segments: u64,
}

struct Sealed {
    link: Box<dyn Link>,
    holding: Holding,
    /// Where segments end, as the headers of those after them say here.
    ends: BTreeMap<u64, u64>,
}

impl Sealed {
    fn new(mut link: Box<dyn Link>, holding: Holding) -> Result<Self, CopyError> {
        let mut ends = BTreeMap::new();
        for held in &holding.segments {
            let header = link.read(Place { segment: held.number, offset: 0 }, SEGMENT_HEADER as u64)?;
            let header = decode_segment(&header).ok().filter(|header| header.segment == held.number);
            ends.extend(header.map(|header| (held.number.saturating_sub(1), header.previous_end)));
        }
        Ok(Sealed { link, holding, ends })
    }

    /// How much of a segment is here.
    fn length(&self, number: u64) -> u64 {
        self.holding.segments.iter().find(|held| held.number == number).map_or(0, |held| held.length)
    }

    /// Segments between the first and the last one that are not whole here.
    fn gaps(&self) -> usize {
        let first = self.holding.segments.first().map_or(0, |held| held.number);
        let whole = |number: &u64| {
            let length = self.length(*number);
            length > 0 && self.ends.get(number).is_none_or(|end| length >= *end)
        };
        (first..self.holding.end().segment).filter(|number| !whole(number)).count()
    }
}

/// Writes into the folder `log` what copies have and it does not: an empty folder, or one that holds the beginning of the same
/// log, from a snapshot. No owner of an epoch below `epoch` can make anything durable from then on. Done again it does the
/// same.
pub fn recover(
    log: &Path,
    epoch: u64,
    quorum: &Quorum,
    connect: &Connect,
) -> Result<FromCopies, EngineError> {
    recover_within(log, epoch, quorum, connect, SEAL_WITHIN)
}

/// The same, where a copy that takes longer than `within` to be sealed is done without.
pub fn recover_within(
    log: &Path,
    epoch: u64,
    quorum: &Quorum,
    connect: &Connect,
    within: Duration,
) -> Result<FromCopies, EngineError> {
    let refused = |why: String| EngineError::Refused(format!("recovery from log copies: {why}"));
    let mut sealed = seal_all(epoch, quorum, connect, within).map_err(refused)?;
    let ends = sealed.iter().map(|(name, copy)| (name.clone(), copy.holding.end())).collect();
    let gaps = |name: &str| sealed.get(name).map_or(0, Sealed::gaps);
    let chosen = choose(quorum, &ends, gaps).map_err(refused)?.to_owned();
    let disk = RealDisk::new(log).map_err(|e| refused(format!("open {}: {e}", log.display())))?;
    let end = ends.get(&chosen).copied().unwrap_or_default();
    let known = sealed.values().map(|copy| copy.holding.known_durable).max().unwrap_or_default();
    if known > end {
        return Err(refused(format!(
            "the copies know of durable commits up to offset {} of segment {}, and none of them has these: they are damaged",
            known.offset, known.segment
        )));
    }
    let segments = take_over(&disk, &mut sealed, &chosen).map_err(refused)?;
    Ok(FromCopies { copy: chosen, end, sealed: sealed.into_keys().collect(), segments })
}

/// Seals the copies, all at the same time: one that hangs holds up none of the others. Gives those that can be read.
fn seal_all(
    epoch: u64,
    quorum: &Quorum,
    connect: &Connect,
    within: Duration,
) -> Result<BTreeMap<String, Sealed>, String> {
    let (told, answers) = std::sync::mpsc::channel();
    for name in &quorum.members {
        let (name, connect, told) = (name.clone(), connect.clone(), told.clone());
        let seal = move || {
            let opened = connect(&name).and_then(|mut link| {
                let holding = link.seal(epoch)?;
                if holding.filling {
                    return Err(CopyError::Unusable("it was never whole: is its disk mounted?".to_owned()));
                }
                Sealed::new(link, holding)
            });
            // Nobody listens to one that is too late.
            drop(told.send((name, opened)));
        };
        let thread = std::thread::Builder::new().name("log-seal".to_owned()).spawn(seal);
        thread.map_err(|error| format!("start a thread: {error}"))?;
    }
    drop(told);
    let until = Instant::now() + within;
    let (mut sealed, mut silent) = (BTreeMap::new(), quorum.members.clone());
    while let Ok((name, opened)) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
        silent.remove(&name);
        match opened {
            Ok(copy) => {
                sealed.insert(name, copy);
            }
            Err(CopyError::Fenced(later)) => {
                return Err(format!("copy {name} obeys a later owner, of epoch {later}"));
            }
            Err(error) => tracing::error!(copy = name, "the log copy cannot be read: {error}"),
        }
    }
    for name in silent {
        let seconds = within.as_secs();
        tracing::error!(copy = name, "the log copy cannot be read: it did not answer within {seconds} s");
    }
    Ok(sealed)
}

/// Brings the segments of the copies into the folder.
fn take_over(disk: &RealDisk, sealed: &mut BTreeMap<String, Sealed>, chosen: &str) -> Result<u64, String> {
    let failed = |error: std::io::Error| error.to_string();
    let names = disk.list().map_err(failed)?;
    let local: BTreeSet<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    let held = sealed.values().flat_map(|copy| &copy.holding.segments);
    let numbers: BTreeSet<u64> = held.map(|held| held.number).collect();
    let first = local.first().copied().unwrap_or(0);
    let ends = ends(sealed, chosen);
    let (reach, begin) = (local.last().copied().unwrap_or(0), numbers.first().copied().unwrap_or(1));
    if begin > reach + 1 {
        let there = match reach {
            0 => "this folder has nothing of the log".to_owned(),
            last => format!("this folder has the log up to segment {last} only"),
        };
        return Err(format!(
            "the copies hold the log from segment {begin} on, because a disk snapshot has what is older, and {there}: begin \
             with the folder of the newest complete disk snapshot"
        ));
    }
    // All is looked at before anything is written.
    for &number in numbers.range(first..) {
        let longest = sealed.values().map(|copy| copy.length(number)).max().unwrap_or(0);
        if let Some(end) = ends.get(&number).filter(|end| longest < **end) {
            return Err(format!(
                "segment {number} ends at offset {end}, and no copy that can be read has more than {longest} bytes of it: bring \
                 back another copy, or begin with a folder from a newer snapshot"
            ));
        }
    }
    for &number in local.intersection(&numbers) {
        let Some((link, length)) = best(sealed, chosen, number, &ends) else { continue };
        let bytes = disk.open(&segment_name(number)).and_then(|file| file.read()).map_err(failed)?;
        let (good, _) = whole_groups(number, &bytes);
        let same = good <= length && {
            let ours = sum_of(good, |offset, into| {
                let from = offset as usize;
                into.copy_from_slice(&bytes[from..from + into.len()]);
                Ok::<_, CopyError>(())
            });
            let ours = ours.map_err(|error| error.to_string())?;
            link.sum(number, good).map_err(|error| error.to_string())? == ours
        };
        if !same {
            return Err(format!(
                "{} is not the beginning of what the copies hold: use an empty folder, or one restored from a snapshot \
                 and not started since",
                disk.path(&segment_name(number))
            ));
        }
    }
    let mut written = 0;
    for &number in numbers.range(first..) {
        let Some((link, length)) = best(sealed, chosen, number, &ends) else { continue };
        let bytes = fetch(link, number, length).map_err(|error| error.to_string())?;
        put(disk, number, &bytes).map_err(failed)?;
        written += 1;
    }
    Ok(written)
}

/// Where segments end. What the chosen copy says comes before what others do, who may have followed an owner that was
/// superseded.
fn ends(sealed: &BTreeMap<String, Sealed>, chosen: &str) -> BTreeMap<u64, u64> {
    let others = sealed.iter().filter(|(name, _)| *name != chosen).map(|(_, copy)| copy);
    let mut ends = BTreeMap::new();
    for copy in others.chain(sealed.get(chosen)) {
        ends.extend(&copy.ends);
    }
    ends
}

/// The copy to take a segment from, and how much of it: the chosen one, unless another has more of what belongs to it.
fn best<'a>(
    sealed: &'a mut BTreeMap<String, Sealed>,
    chosen: &str,
    number: u64,
    ends: &BTreeMap<u64, u64>,
) -> Option<(&'a mut dyn Link, u64)> {
    let end = ends.get(&number).copied();
    let good = |name: &str, copy: &Sealed| {
        let length = copy.length(number).min(end.unwrap_or(u64::MAX));
        let whole = length > 0 && length >= end.unwrap_or(0);
        (whole, name == chosen, length)
    };
    let (name, _) = sealed.iter().max_by_key(|(name, copy)| good(name, copy))?;
    let name = name.clone();
    let copy = sealed.get_mut(&name)?;
    let (_, _, length) = good(&name, copy);
    (length > 0).then_some((&mut *copy.link, length))
}

fn fetch(link: &mut dyn Link, segment: u64, length: u64) -> Result<Bytes, CopyError> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let place = Place { segment, offset: bytes.len() as u64 };
        let part = link.read(place, CHUNK_BYTES.min(length - place.offset))?;
        if part.is_empty() {
            return Err(CopyError::Unusable(format!("segment {segment} is shorter than it said")));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes.into())
}

/// A segment is there whole or not at all.
fn put(disk: &RealDisk, number: u64, bytes: &Bytes) -> std::io::Result<()> {
    let name = segment_name(number);
    let temporary = format!("{name}.new");
    let file = disk.create(&temporary)?;
    file.write_at(0, bytes)?;
    file.sync_data()?;
    disk.rename(&temporary, &name)?;
    disk.sync_dir()
}
