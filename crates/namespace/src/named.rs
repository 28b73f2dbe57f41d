//! Every path that an inode has or had, with the time in which it did: from its back-references, live and past, up to the
//! root.

use crate::rows::{
    ENTRY, Entry, Format, INODE, Inode, LINK, Link, TOMBSTONE, ino_key, number_at, position_key,
};
use chronofs_core::name::Position;
use chronofs_core::{Ino, Version, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::{Row, Snapshot, Table};
use std::collections::{BTreeMap, BTreeSet};

/// Deeper folders than this are not followed.
const DEPTH_MAX: usize = 256;
/// More names of one inode, or of a folder above it, are not looked at.
const NAMES_MAX: usize = 64;
const PAGE: usize = 256;
/// The end of what holds now.
const NOW: Version = Version(u64::MAX);

/// A path, and when it named an inode.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NamedFor {
    /// From the root, with `/` before each name.
    pub path: Vec<u8>,
    /// The first commit with which it did.
    pub since: Version,
    /// The commit from which on it did not; `None`: it does.
    pub until: Option<Version>,
}

/// Paths of an inode.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Named {
    /// They, in the order of their bytes.
    pub names: Vec<NamedFor>,
    /// There may be more.
    pub more: bool,
}

impl Named {
    /// What of these names held at any time from `since` on, up to but without `until`, and when in that time.
    pub fn within(&self, since: Version, until: Option<Version>) -> Named {
        let wanted = (since, until.unwrap_or(NOW));
        let names = self.names.iter().filter_map(|name| {
            let (since, until) = meet((name.since, name.until.unwrap_or(NOW)), wanted)?;
            Some(NamedFor { path: name.path.clone(), since, until: (until != NOW).then_some(until) })
        });
        Named { names: names.collect(), more: self.more }
    }
}

/// From the first version up to, but without, the second.
type Span = (Version, Version);

fn meet(a: Span, b: Span) -> Option<Span> {
    let both = (a.0.max(b.0), a.1.min(b.1));
    (both.0 < both.1).then_some(both)
}

/// The paths that named `ino` at any time from `since` on, up to but without `until`.
pub fn names_of<R: Reads + ?Sized>(
    reads: &R,
    volume: VolumeIndex,
    ino: Ino,
    since: Version,
    until: Option<Version>,
) -> Result<Named, ReadStop> {
    let mut climb = Climb { tables: Snapshot::new(reads, volume, None), more: false };
    let found = climb.paths(ino, (since, until.unwrap_or(NOW)), 0)?;
    let mut by_path: BTreeMap<Vec<u8>, Vec<Span>> = BTreeMap::new();
    for (path, span) in found {
        by_path.entry(path).or_default().push(span);
    }
    let mut names = Vec::new();
    for (path, mut spans) in by_path {
        spans.sort_unstable();
        // A row that was written anew under the same name ends no name.
        let mut joined: Vec<Span> = Vec::new();
        for span in spans {
            match joined.last_mut() {
                Some(last) if span.0 <= last.1 => last.1 = last.1.max(span.1),
                _ => joined.push(span),
            }
        }
        names.extend(joined.into_iter().map(|(since, until)| NamedFor {
            path: path.clone(),
            since,
            until: (until != NOW).then_some(until),
        }));
    }
    Ok(Named { names, more: climb.more })
}

struct Climb<R> {
    tables: Snapshot<R>,
    more: bool,
}

impl<R: Reads> Climb<R> {
    fn paths(&mut self, ino: Ino, span: Span, depth: usize) -> Result<Vec<(Vec<u8>, Span)>, ReadStop> {
        if ino == Ino::ROOT {
            return Ok(vec![(Vec::new(), span)]);
        }
        if depth == DEPTH_MAX {
            self.more = true;
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (parent, name, span) in self.links(ino, span)? {
            for (mut path, span) in self.paths(parent, span, depth + 1)? {
                path.push(b'/');
                path.extend_from_slice(&name);
                found.push((path, span));
            }
            if found.len() >= NAMES_MAX {
                self.more = true;
                break;
            }
        }
        Ok(found)
    }

    /// The entries that named an inode: its back-references say where to look, and they themselves when.
    fn links(&mut self, ino: Ino, span: Span) -> Result<Vec<(Ino, Vec<u8>, Span)>, ReadStop> {
        let mut places: BTreeSet<(Ino, Position)> = BTreeSet::new();
        self.each(INODE, &ino_key(ino), span, |key, row, _| {
            if let Ok(inode) = Inode::decode(INODE, key, &row.value) {
                places.insert((inode.parent, inode.position));
            }
        })?;
        self.each(LINK, &ino_key(ino), span, |key, row, _| {
            if Link::decode(LINK, key, &row.value).is_ok() {
                places.insert((Ino(number_at(key, 8)), Position(number_at(key, 16))));
            }
        })?;
        let mut found = Vec::new();
        for (parent, position) in places {
            self.each(ENTRY, &position_key(parent, position), span, |key, row, span| {
                let entry = Entry::decode(ENTRY, key, &row.value);
                let names_it = |entry: &Entry| entry.ino == ino && entry.flags & TOMBSTONE == 0;
                if let Some(entry) = entry.ok().filter(names_it) {
                    found.push((parent, entry.name.to_vec(), span));
                }
            })?;
            if found.len() >= NAMES_MAX {
                self.more = true;
                break;
            }
        }
        Ok(found)
    }

    /// Calls `visit` with the rows, live and past, whose key starts with `prefix`, and the part of `span` in which each held.
    fn each(
        &self,
        table: Table,
        prefix: &[u8],
        span: Span,
        mut visit: impl FnMut(&[u8], &Row, Span),
    ) -> Result<(), ReadStop> {
        let mut start = Vec::new();
        loop {
            let page = self.tables.scan(table, prefix, &start, PAGE)?;
            for (key, row) in &page {
                if let Some(span) = meet(span, (row.since, NOW)) {
                    visit(key, row, span);
                }
            }
            match page.last() {
                Some((key, _)) if page.len() == PAGE => start = [&key[prefix.len()..], &[0]].concat(),
                _ => break,
            }
        }
        let mut start = prefix.to_vec();
        loop {
            let page = self.tables.history(table, &start, PAGE)?;
            for past in &page {
                if !past.key().starts_with(prefix) {
                    return Ok(());
                }
                if let Some(span) = meet(span, (past.row.since, past.until())) {
                    visit(past.key(), &past.row, span);
                }
            }
            match page.last() {
                Some(past) if page.len() == PAGE => start = [&past.place[..], &[0]].concat(),
                _ => return Ok(()),
            }
        }
    }
}
