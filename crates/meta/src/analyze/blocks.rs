//! Whether the bytes of every slice, live and past, are there: by the sizes of objects, or by reading each.
//!
//! Slices are taken page by page, each from rows as they are then: what is written meanwhile behind the place reached is not
//! looked at, what is superseded meanwhile is met again among the past. Before anything is called lost its row is read
//! again: it may be gone by then, or its bytes may have been moved.

use super::rows::Counted;
use super::store::Store;
use super::{Desk, Looked, Stop, shown_path};
use bytes::Bytes;
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{Trouble, object_name, seal};
use chronofs_core::slice::{Place, Seal};
use chronofs_core::{Ino, ObjectId, Version};
use chronofs_namespace::{HeldFrom, HeldSlice, Named, held_again, held_slices, names_of};
use chronofs_wire::analyze::{Fate, NamedAt, News, Progress, SliceFault};
use chronofs_wire::question::Blob;
use futures::StreamExt;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Slices of a page. Their staged bytes are in memory.
const PAGE: usize = 256;
/// Requests to the block store at once: clients have theirs, too.
const AT_ONCE: usize = 8;

/// What is wanted.
pub(super) struct Asked {
    pub(super) deep: bool,
    pub(super) bytes_per_second: u64,
    pub(super) from: Option<Bytes>,
}

/// What was seen of a slice that is lost.
pub(super) struct Lost {
    pub(super) fate: Fate,
    pub(super) reason: String,
}

/// Looks at every slice.
pub(super) async fn look(desk: &Desk, volume: Looked, asked: Asked) -> Result<Progress, Stop> {
    let (mut next, mut named) = (Some(asked.place()?), None);
    let (looking, mut progress, mut pace) = Looking::begin(desk, volume, &asked).await?;
    while let Some(from) = next {
        let (page, behind) = looking.page(from).await?;
        let bytes = add(&mut progress, &page);
        for (held, lost) in looking.lost_in(&page).await? {
            progress.faults += 1;
            let fault = looking.fault(desk, &held, lost, &mut named).await?;
            desk.tell(News::Slice(Box::new(fault))).await;
        }
        progress.next = behind.as_ref().map(|behind| Blob(behind.to_bytes().into()));
        desk.tell(News::At(progress.clone())).await;
        next = behind;
        if asked.deep && next.is_some() {
            pace.keep(bytes).await;
        }
    }
    Ok(progress)
}

impl Asked {
    /// Where it begins.
    pub(super) fn place(&self) -> Result<HeldFrom, Stop> {
        let Some(from) = &self.from else { return Ok(HeldFrom::default()) };
        let place = HeldFrom::from_bytes(from);
        place.ok_or_else(|| Stop::Failed("what is to be gone on from is no place in the rows".to_owned()))
    }
}

/// A page is looked at; gives the bytes that it has in stored form.
pub(super) fn add(progress: &mut Progress, page: &[HeldSlice]) -> u64 {
    let bytes = page.iter().filter_map(|held| held.slice.place.seal()).map(stored).sum();
    progress.slices += page.len() as u64;
    progress.bytes += bytes;
    bytes
}

/// The object in which the bytes of a slice lie, and where; none of one whose bytes are in the metadata.
pub(super) fn place_of(place: &Place) -> Option<(ObjectId, Seal, u64)> {
    match place {
        Place::Object(seal, at) => Some((seal.id.object, *seal, *at)),
        Place::Moved(seal, object, at) => Some((*object, *seal, *at)),
        Place::Hole | Place::Inline(..) | Place::Staged(_) => None,
    }
}

fn stored(seal: &Seal) -> u64 {
    u64::from(seal.stored_len)
}

/// Keeps reading as slow as was asked for.
pub(super) struct Pace {
    per_second: u64,
    begun: Instant,
    read: u64,
}

impl Pace {
    pub(super) async fn keep(&mut self, bytes: u64) {
        self.read += bytes;
        if self.per_second > 0 {
            let due = self.read as u128 * 1_000_000_000 / u128::from(self.per_second);
            let due = Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX));
            tokio::time::sleep_until(self.begun + due.min(Duration::from_secs(30 * 86400))).await;
        }
    }
}

/// What the last inode that lost something was ever named: a file loses many slices at once.
pub(super) type LastNamed = Option<(Ino, Named)>;

pub(super) struct Looking {
    pub(super) volume: Looked,
    pub(super) store: Store,
    sizes: HashMap<ObjectId, u64>,
    deep: bool,
}

impl Looking {
    /// With nothing looked at yet.
    pub(super) async fn begin(
        desk: &Desk,
        volume: Looked,
        asked: &Asked,
    ) -> Result<(Looking, Progress, Pace), Stop> {
        let (store, deep) = (Store::of(&volume)?, asked.deep);
        let sizes = if deep { HashMap::new() } else { store.listed(desk, &volume).await? };
        let progress = Progress { listed: sizes.len() as u64, ..Progress::default() };
        let pace = Pace { per_second: asked.bytes_per_second, begun: Instant::now(), read: 0 };
        Ok((Looking { volume, store, sizes, deep }, progress, pace))
    }

    /// What of a page is lost, in the order of the rows, so that ranges of a file come one after the other.
    pub(super) async fn lost_in(&self, page: &[HeldSlice]) -> Result<Vec<(HeldSlice, Lost)>, Stop> {
        let checks: Vec<_> = page.iter().map(|held| self.check(held)).collect();
        let mut checked = futures::stream::iter(checks).buffered(AT_ONCE);
        let mut found = Vec::new();
        for held in page {
            if checked.next().await.transpose()?.flatten().is_some() {
                found.extend(self.again(held).await?);
            }
        }
        Ok(found)
    }

    pub(super) async fn page(&self, from: HeldFrom) -> Result<(Vec<HeldSlice>, Option<HeldFrom>), Stop> {
        let (reads, index) = (self.volume.rows().await?, self.volume.index);
        Ok(off_thread(move || held_slices(&reads, index, &from, PAGE)).await??)
    }

    /// `None`: its bytes are there.
    async fn check(&self, held: &HeldSlice) -> Result<Option<Lost>, Stop> {
        let (object, seal, at) = match &held.slice.place {
            Place::Hole => return Ok(None),
            Place::Inline(seal, stored) => return self.opened(*seal, stored.clone(), "its row").await,
            Place::Staged(seal) => {
                return match held.staged.clone() {
                    Some(stored) => self.opened(*seal, stored, "its staged bytes").await,
                    None => {
                        let reason = "its staged bytes are not there, and no row says where they were moved";
                        Ok(Some(Lost { fate: Fate::Missing, reason: reason.to_owned() }))
                    }
                };
            }
            Place::Object(seal, at) => (seal.id.object, *seal, *at),
            Place::Moved(seal, object, at) => (*object, *seal, *at),
        };
        let name = object_name(self.volume.id, object);
        let end = at.saturating_add(stored(&seal));
        if !self.deep {
            if self.sizes.get(&object).is_some_and(|size| *size >= end) {
                return Ok(None);
            }
            // Its last byte is there if all before it are.
            let last = self.store.get(&name, end.saturating_sub(1), 1).await?;
            return Ok(last.err().map(lost));
        }
        match self.store.get(&name, at, seal.stored_len).await? {
            Ok(stored) => self.opened(seal, stored, "what is stored").await,
            Err(error) => Ok(Some(lost(error))),
        }
    }

    /// Opens a slice, if that is asked for. Of one that is encrypted its checksum is all that can be known here.
    async fn opened(&self, seal: Seal, stored: Bytes, whose: &str) -> Result<Option<Lost>, Stop> {
        if !self.deep {
            return Ok(None);
        }
        let opened = off_thread(move || seal::check(&seal, stored)).await?;
        Ok(opened.err().map(|error| Lost { fate: Fate::Damaged, reason: format!("{whose}: {error}") }))
    }

    /// Looks again at a slice that seems to be lost, by rows as they are now.
    async fn again(&self, held: &HeldSlice) -> Result<Option<(HeldSlice, Lost)>, Stop> {
        let (reads, index, held) = (self.volume.rows().await?, self.volume.index, held.clone());
        let Some(now) = off_thread(move || held_again(&reads, index, &held)).await?? else { return Ok(None) };
        Ok(self.check(&now).await?.map(|lost| (now, lost)))
    }

    /// What the file of a slice was named while it had the slice.
    pub(super) async fn names(
        &self,
        desk: &Desk,
        held: &HeldSlice,
        last: &mut LastNamed,
    ) -> Result<Named, Stop> {
        let (ino, since, until) = (held.ino, held.since, held.until);
        let ever = match last.take().filter(|(known, _)| *known == ino) {
            Some((_, ever)) => ever,
            None => self.names_of(desk, ino, Version::ZERO, None).await?,
        };
        let names = match ever.more {
            true => self.names_of(desk, ino, since, until).await?,
            false => ever.within(since, until),
        };
        *last = Some((ino, ever));
        Ok(names)
    }

    /// Reads on a thread of its own, for long if folders above it changed often; no longer than somebody follows.
    async fn names_of(
        &self,
        desk: &Desk,
        ino: Ino,
        since: Version,
        until: Option<Version>,
    ) -> Result<Named, Stop> {
        let (view, desk, index) = (self.volume.rows().await?, desk.clone(), self.volume.index);
        let reading = move || names_of(&Counted::quiet(view, desk), index, ino, since, until);
        Ok(off_thread(reading).await??)
    }

    /// What is told of it.
    pub(super) async fn fault(
        &self,
        desk: &Desk,
        held: &HeldSlice,
        lost: Lost,
        named: &mut LastNamed,
    ) -> Result<SliceFault, Stop> {
        let names = self.names(desk, held, named).await?;
        let spec = &self.volume.row.spec;
        let (object, at) =
            place_of(&held.slice.place).map_or((None, 0), |(object, _, at)| (Some(object), at));
        let from = u64::from(held.key.block) * u64::from(spec.block_size) + u64::from(held.slice.offset);
        let named = |name: chronofs_namespace::NamedFor| NamedAt {
            path: shown_path(&name.path),
            since_ns: name.since.0,
            until_ns: name.until.map(|until| until.0),
        };
        Ok(SliceFault {
            volume: spec.name.clone(),
            fate: lost.fate,
            reason: lost.reason,
            object: object.map(|object| object_name(self.volume.id, object)),
            at,
            stored_len: held.slice.place.seal().map_or(0, |seal| seal.stored_len),
            slice: held.slice.place.seal().map_or(String::new(), |seal| seal.id.to_string()),
            ino: held.ino.0,
            from,
            to: from + u64::from(held.slice.len),
            since_ns: held.since.0,
            until_ns: held.until.map(|until| until.0),
            paths: names.names.into_iter().map(named).collect(),
            more_paths: names.more,
        })
    }
}

fn lost(error: chronofs_blocks::StoreError) -> Lost {
    let fate = match error.trouble {
        Trouble::Missing => Fate::Missing,
        _ => Fate::Damaged,
    };
    Lost { fate, reason: error.reason }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A fault with a path.
    pub(in crate::analyze) fn fault(path: &str) -> SliceFault {
        SliceFault {
            volume: "v".to_owned(),
            fate: Fate::Missing,
            reason: "why".to_owned(),
            object: None,
            at: 0,
            stored_len: 1,
            slice: "0/1/1#0".to_owned(),
            ino: 2,
            from: 0,
            to: 1,
            since_ns: 3,
            until_ns: None,
            paths: vec![NamedAt { path: path.to_owned(), since_ns: 3, until_ns: None }],
            more_paths: false,
        }
    }

    #[test]
    fn a_path_is_shown_so_that_its_bytes_can_be_told() {
        assert_eq!(shown_path("/ä b".as_bytes()), "/ä b");
        assert_eq!(shown_path(b"/a\\b\n\xff\xc3"), "/a\\\\b\\x0a\\xff\\xc3");
    }

    #[tokio::test(start_paused = true)]
    async fn reading_is_as_slow_as_was_asked_for() {
        let begun = Instant::now();
        let mut pace = Pace { per_second: 1000, begun, read: 0 };
        pace.keep(500).await;
        pace.keep(2500).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        Pace { per_second: 0, begun, read: 0 }.keep(u64::MAX).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
    }
}
