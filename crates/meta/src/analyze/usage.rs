//! What the present and the past of a volume take, as at one version, and what the past would take with another retention.

use super::rows::Counted;
use super::{Desk, Looked, Stop};
use chronofs_core::{FileKind, Ino, Version};
use chronofs_namespace::rows::{Body, Inode};
use chronofs_namespace::{Lies, inode_page, last_known, names_of, spent_blocks};
use chronofs_wire::analyze::{By, Inodes, Part, Taken, Usage};
use std::collections::HashMap;

/// Rows at once.
const PAGE: usize = 1024;
/// Folders whose place is kept in memory.
const FOLDERS_MAX: usize = 1 << 20;
/// Parts that are told; those that take least are told together.
const PARTS_MAX: usize = 1000;
/// Parts that are kept apart meanwhile.
const APART_MAX: usize = 1 << 20;
/// Folders above one another that are followed.
const DEPTH_MAX: usize = 256;
const DAY_NS: u64 = 86_400_000_000_000;
/// Ages, in days, and what they are called.
const AGES: [(u64, &str); 5] = [
    (1, "1: up to a day"),
    (7, "2: up to a week"),
    (30, "3: up to 30 days"),
    (90, "4: up to 90 days"),
    (365, "5: up to a year"),
];
const OLDER: &str = "6: older";
const OTHERS: &str = "(others)";

/// What is wanted.
pub(super) struct Asked {
    pub(super) by: By,
    pub(super) retention_s: Option<u64>,
}

/// Sums up.
pub(super) async fn look(desk: &Desk, volume: Looked, asked: Asked) -> Result<Usage, Stop> {
    let reads = Counted::new(volume.rows().await?, desk.clone());
    tokio::task::spawn_blocking(move || {
        let at = reads.version();
        let cut = asked.retention_s.map(|seconds| at.0.saturating_sub(seconds.saturating_mul(1_000_000_000)));
        let mut usage = Usage { at_ns: at.0, inodes: inodes(&reads, &volume)?, ..Usage::default() };
        let mut parts: HashMap<String, Part> = HashMap::new();
        let mut namer =
            Namer { reads: &reads, volume: &volume, by: asked.by, at, known: None, tops: HashMap::new() };
        let mut from = Some(Vec::new());
        while let Some(start) = from {
            let blocks;
            (blocks, from) = spent_blocks(&reads, volume.index, &start, PAGE)?;
            for block in blocks {
                for slice in block.slices {
                    let stored = u64::from(slice.stored);
                    let kept = slice.until.is_some_and(|until| cut.is_none_or(|cut| until.0 > cut));
                    let taken = if slice.until.is_none() { &mut usage.live } else { &mut usage.past };
                    add(taken, stored, u64::from(slice.full), slice.lies);
                    usage.kept_bytes += if kept { stored } else { 0 };
                    let Some(name) = namer.name(block.ino, slice.since)? else { continue };
                    let name = if parts.len() < APART_MAX || parts.contains_key(&name) {
                        name
                    } else {
                        OTHERS.to_owned()
                    };
                    let part = parts.entry(name).or_default();
                    part.live_bytes += if slice.until.is_none() { stored } else { 0 };
                    part.past_bytes += if slice.until.is_some() { stored } else { 0 };
                    part.kept_bytes += if kept { stored } else { 0 };
                }
            }
        }
        usage.parts = told(parts, asked.by);
        Ok(usage)
    })
    .await?
}

fn add(taken: &mut Taken, stored: u64, full: u64, lies: Lies) {
    taken.slices += 1;
    taken.bytes += stored;
    taken.opened_bytes += full;
    match lies {
        Lies::Inline => taken.inline_bytes += stored,
        Lies::Staged => taken.small_bytes += stored,
        Lies::Object => {}
    }
}

fn inodes(reads: &Counted, volume: &Looked) -> Result<Inodes, Stop> {
    let (mut sum, mut from) = (Inodes::default(), Some(Ino(0)));
    while let Some(start) = from {
        let page: Vec<Inode>;
        (page, from) = inode_page(reads, volume.index, start, PAGE)?;
        for inode in page {
            match (inode.kind(), &inode.body) {
                (FileKind::Dir, _) => sum.folders += 1,
                (FileKind::Symlink, _) => sum.links += 1,
                (_, Body::File { size, allocated, .. }) => {
                    sum.files += 1;
                    sum.size_bytes += size;
                    sum.allocated_bytes += allocated;
                }
                _ => sum.others += 1,
            }
        }
    }
    Ok(sum)
}

/// Says to which part a slice belongs.
struct Namer<'a> {
    reads: &'a Counted,
    volume: &'a Looked,
    by: By,
    at: Version,
    /// Of the last inode: its blocks come one after the other.
    known: Option<(Ino, String)>,
    /// In which folder below the root a folder is.
    tops: HashMap<Ino, Option<Ino>>,
}

impl Namer<'_> {
    fn name(&mut self, ino: Ino, since: Version) -> Result<Option<String>, Stop> {
        let index = self.volume.index;
        if let By::Age = self.by {
            let days = self.at.0.saturating_sub(since.0) / DAY_NS;
            let age = AGES.iter().find(|(below, _)| days < *below).map_or(OLDER, |(_, name)| name);
            return Ok(Some(age.to_owned()));
        }
        if let By::Nothing = self.by {
            return Ok(None);
        }
        if let Some((_, name)) = self.known.as_ref().filter(|(known, _)| *known == ino) {
            return Ok(Some(name.clone()));
        }
        let last = last_known(self.reads, index, ino)?;
        let name = match (self.by, last) {
            (_, None) => "(not known)".to_owned(),
            (By::Owner, Some((uid, _))) => uid.to_string(),
            (_, Some((_, parent))) => match self.top(parent)? {
                None => "/".to_owned(),
                Some(top) => {
                    let names = names_of(self.reads, index, top, Version::ZERO, None)?.names;
                    let latest = names.into_iter().max_by_key(|name| name.until.unwrap_or(Version::MAX));
                    latest.map_or("(not known)".to_owned(), |name| super::shown_path(&name.path))
                }
            },
        };
        self.known = Some((ino, name.clone()));
        Ok(Some(name))
    }

    /// The folder below the root in which a folder is or was; `None`: it is the root.
    fn top(&mut self, dir: Ino) -> Result<Option<Ino>, Stop> {
        let (mut climbed, mut dir) = (Vec::new(), dir);
        let top = loop {
            if dir == Ino::ROOT {
                break climbed.last().copied();
            }
            if let Some(known) = self.tops.get(&dir) {
                break *known;
            }
            climbed.push(dir);
            match last_known(self.reads, self.volume.index, dir)? {
                Some((_, parent)) if climbed.len() < DEPTH_MAX => dir = parent,
                _ => break climbed.last().copied(),
            }
        };
        if self.tops.len() + climbed.len() > FOLDERS_MAX {
            self.tops.clear();
        }
        self.tops.extend(climbed.into_iter().map(|dir| (dir, top)));
        Ok(top)
    }
}

/// The parts that take most, and the rest together; ages in their order.
fn told(parts: HashMap<String, Part>, by: By) -> Vec<Part> {
    let mut parts: Vec<Part> = parts.into_iter().map(|(name, part)| Part { name, ..part }).collect();
    match by {
        By::Age => parts.sort_by(|a, b| a.name.cmp(&b.name)),
        _ => parts.sort_by(|a, b| {
            (b.live_bytes + b.past_bytes).cmp(&(a.live_bytes + a.past_bytes)).then(a.name.cmp(&b.name))
        }),
    }
    if parts.len() > PARTS_MAX {
        let rest = parts.split_off(PARTS_MAX);
        let others = rest.into_iter().fold(Part::default(), |sum, part| Part {
            name: OTHERS.to_owned(),
            live_bytes: sum.live_bytes + part.live_bytes,
            past_bytes: sum.past_bytes + part.past_bytes,
            kept_bytes: sum.kept_bytes + part.kept_bytes,
        });
        parts.push(others);
    }
    parts
}
