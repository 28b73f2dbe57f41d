//! Puts back what is lost and is still somewhere else. Only bytes that the seal in the rows finds right are put back, rows are
//! never changed, and what is intact in an object stays as it is, byte for byte.
//!
//! Lost slices are found as [`super::blocks`] finds them, up to [`OBJECTS_AT_ONCE`] objects with some; then all rows are read
//! once for what names these, live and past, and each object is put together: what it still has, and what was found. One that was
//! gone is put anew, one that is damaged is replaced at once. What could not be found is told as lost. Where more than
//! [`ROWS_AT_ONCE`] rows name them, all rows are read again for the rest.
//!
//! Objects that nothing explains (*quarantined*) stay in the block store under their own names, so there is nothing to take out of there.

use super::blocks::{self, LastNamed, Looking, Lost, place_of};
use super::sources::{Shown, Sources, Wanted};
use super::{Desk, Looked, Stop};
use bytes::{Bytes, BytesMut};
use chronofs_blocks::object::{Entry, FOOTER_LEN, OBJECT_LEN_MAX, ObjectWriter};
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{Trouble, object_name, seal};
use chronofs_core::slice::Seal;
use chronofs_core::{ObjectId, SliceId};
use chronofs_engine::ReadStop;
use chronofs_namespace::{HeldFrom, HeldSlice, held_again};
use chronofs_wire::analyze::{Fate, MendedObject, News, Progress};
use chronofs_wire::question::Blob;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use tokio::sync::Mutex;

/// So many objects are put together after one reading of all rows.
const OBJECTS_AT_ONCE: usize = 1024;
/// So many rows that name them are in memory, and those of one object at the least. Tests have few rows.
const ROWS_AT_ONCE: usize = if cfg!(test) { 2 } else { 1 << 18 };

/// Two that mend the same object at once, each from what it has found, would take it from each other.
static MENDING: Mutex<()> = Mutex::const_new(());

/// What is wanted.
pub(super) struct Asked {
    pub(super) dry_run: bool,
    pub(super) of: blocks::Asked,
    pub(super) wanted: Wanted,
}

/// A slice that lies in an object, with all rows that name it there.
struct Needed {
    seal: Seal,
    at: u64,
    rows: Vec<HeldSlice>,
}

/// What is left of an object.
#[derive(PartialEq)]
enum Left {
    Nothing,
    /// These bytes, as far as they are right: all that are not of a slice that rows name.
    Bytes(Bytes),
    /// It is there, and some of its bytes that no row here names cannot be read, for this reason.
    Unreadable(String),
}

struct Mender<'a> {
    desk: &'a Desk,
    looking: Looking,
    named: Mutex<LastNamed>,
    sources: Sources,
    dry_run: bool,
}

/// Looks at every slice, and puts back what can be.
pub(super) async fn look(desk: &Desk, volume: Looked, asked: Asked) -> Result<Progress, Stop> {
    let Asked { dry_run, of, wanted } = asked;
    let mut next = Some(of.place()?);
    let sources = Sources::open(&volume, wanted).await?;
    let (looking, mut progress, mut pace) = Looking::begin(desk, volume, &of).await?;
    let mender = Mender { desk, looking, named: Mutex::default(), sources, dry_run };
    let mut done = HashSet::new();
    while let Some(begin) = next {
        let (mut bad, mut place) = (BTreeMap::new(), Some(begin));
        while let Some(from) = place.take_if(|_| bad.len() < OBJECTS_AT_ONCE) {
            let (page, behind) = mender.looking.page(from).await?;
            let bytes = blocks::add(&mut progress, &page);
            for (held, lost) in mender.looking.lost_in(&page).await? {
                match place_of(&held.slice.place) {
                    Some((object, ..)) if done.contains(&object) => {}
                    Some((object, ..)) => drop(bad.entry(object).or_insert(lost.fate)),
                    // Nobody but the metadata has had its bytes.
                    None => {
                        progress.faults += 1;
                        mender.tell_lost(&held, lost).await?;
                    }
                }
            }
            place = behind;
            // How far it is; where to go on is still where this batch began.
            desk.tell(News::At(progress.clone())).await;
            if of.deep && place.is_some() {
                pace.keep(bytes).await;
            }
        }
        let mut wanted: BTreeSet<ObjectId> = bad.keys().copied().collect();
        while !wanted.is_empty() {
            for (object, rows) in mender.naming(&mut wanted).await? {
                let fate = bad.get(&object).copied().unwrap_or(Fate::Damaged);
                progress.faults += mender.mend(object, fate, rows).await?;
            }
        }
        done.extend(bad.into_keys());
        next = place;
        // Where to go on only now: what is behind was mended.
        progress.next = next.as_ref().map(|next| Blob(next.to_bytes().into()));
        desk.tell(News::At(progress.clone())).await;
    }
    Ok(progress)
}

impl Mender<'_> {
    async fn tell_lost(&self, held: &HeldSlice, lost: Lost) -> Result<(), Stop> {
        let fault = self.looking.fault(self.desk, held, lost, &mut *self.named.lock().await).await?;
        self.desk.tell(News::Slice(Box::new(fault))).await;
        Ok(())
    }

    /// All rows, live and past, that name something in these objects, or in as many of them as are held in memory, which is
    /// at least one. Leaves the others in `wanted`.
    async fn naming(
        &self,
        wanted: &mut BTreeSet<ObjectId>,
    ) -> Result<BTreeMap<ObjectId, Vec<HeldSlice>>, Stop> {
        let mut objects = std::mem::take(wanted);
        let mut found = BTreeMap::<ObjectId, Vec<HeldSlice>>::new();
        let mut rows = 0;
        let mut next = (!objects.is_empty()).then(HeldFrom::default);
        while let Some(from) = next {
            let (page, behind) = self.looking.page(from).await?;
            for held in page {
                match place_of(&held.slice.place) {
                    Some((object, ..)) if objects.contains(&object) => {
                        found.entry(object).or_default().push(held);
                        rows += 1;
                    }
                    _ => {}
                }
            }
            while rows > ROWS_AT_ONCE && objects.len() > 1 {
                let Some(later) = objects.pop_last() else { break };
                rows -= found.remove(&later).map_or(0, |rows| rows.len());
                wanted.insert(later);
            }
            next = behind;
        }
        Ok(found)
    }

    /// Mends an object as far as that can be. How many rows name what stays lost.
    async fn mend(&self, object: ObjectId, fate: Fate, rows: Vec<HeldSlice>) -> Result<u64, Stop> {
        let name = object_name(self.looking.volume.id, object);
        let _alone = MENDING.lock().await;
        let all = needed(rows);
        let places: Vec<_> = all.iter().map(|needed| needed.at..end(needed)).collect();
        let left = self.left(&name, &places).await?;
        let (mut intact, mut lost) = (Vec::new(), Vec::new());
        for needed in all {
            match self.still_there(&name, &left, &needed).await? {
                Some(stored) => intact.push((needed, stored)),
                None => lost.push(needed),
            }
        }
        if lost.is_empty() {
            return Ok(0);
        }
        let replica = self.sources.replica_of(object).await?;
        let (mut found, mut from, mut stays) = (Vec::new(), BTreeSet::new(), Vec::new());
        for needed in lost {
            match self.find(&needed, replica.as_ref()).await? {
                Some((source, stored)) => {
                    from.insert(source);
                    found.push((needed, stored));
                }
                None => stays.push(needed),
            }
        }
        let mut why = "and none of the sources has its bytes".to_owned();
        // The collector may have let all of it go meanwhile: then it is not to come back.
        if !found.is_empty() && !self.are_named(object, &found).await? {
            found.clear();
        }
        if !found.is_empty() {
            let count = found.len();
            let bytes: u64 = found.iter().map(|(needed, _)| u64::from(needed.seal.stored_len)).sum();
            let replica = replica.map(|(_, bytes)| bytes);
            let is_all = stays.is_empty();
            let put = match self.built(object, &left, replica, is_all, &intact, &found) {
                Err(refused) => Err(refused),
                Ok(_) if self.dry_run => Ok(()),
                // Long may have gone by since both were read.
                Ok(_) if self.left(&name, &places).await? != left => {
                    Err("and it changed meanwhile, so nothing was put; repair again".to_owned())
                }
                Ok(built) => self.put(&name, matches!(left, Left::Nothing), built, &found).await?,
            };
            match put {
                Ok(()) => {
                    let (slices, left) = (count as u64, stays.len() as u64);
                    let from = from.into_iter().collect();
                    let mended = MendedObject { object: name, fate, slices, bytes, left, from };
                    self.desk.tell(News::Mended(Box::new(mended))).await;
                }
                Err(refused) => {
                    why = refused;
                    stays.extend(found.into_iter().map(|(needed, _)| needed));
                }
            }
        }
        let mut rows = 0;
        for held in stays.into_iter().flat_map(|needed| needed.rows) {
            rows += 1;
            let said = match fate {
                Fate::Missing => "the object was missing",
                Fate::Damaged => "the object was damaged",
            };
            self.tell_lost(&held, Lost { fate, reason: format!("{said}, {why}") }).await?;
        }
        Ok(rows)
    }

    /// What is left of an object in which these slices are named. One that cannot be read as a whole is read part by part: what
    /// cannot be read of a named slice is lost anyway.
    async fn left(&self, name: &str, named: &[Range<u64>]) -> Result<Left, Stop> {
        let store = &self.looking.store;
        let why = match store.whole(name).await? {
            Ok(bytes) => return Ok(Left::Bytes(bytes)),
            Err(error) if error.trouble == Trouble::Missing => return Ok(Left::Nothing),
            Err(error) => error.reason,
        };
        let Some(size) = store.size(name).await?.filter(|size| *size <= OBJECT_LEN_MAX) else {
            return Ok(Left::Unreadable(why));
        };
        let mut bytes = BytesMut::zeroed(size as usize);
        for (part, is_named) in parts(size, named) {
            match store.get(name, part.start, (part.end - part.start) as u32).await? {
                Ok(read) => bytes[part.start as usize..part.end as usize].copy_from_slice(&read),
                Err(_) if is_named => {}
                Err(error) => return Ok(Left::Unreadable(error.reason)),
            }
        }
        Ok(Left::Bytes(bytes.freeze()))
    }

    /// The stored bytes of a slice that is intact where it is.
    async fn still_there(&self, name: &str, left: &Left, needed: &Needed) -> Result<Option<Bytes>, Stop> {
        let found = match left {
            Left::Nothing => None,
            Left::Bytes(bytes) => cut(bytes, needed),
            Left::Unreadable(_) => {
                let Needed { seal, at, .. } = needed;
                self.looking.store.get(name, *at, seal.stored_len).await?.ok()
            }
        };
        Ok(found.filter(|stored| seal::verify(&needed.seal, stored).is_ok()))
    }

    /// The stored bytes of a slice from elsewhere, with where.
    async fn find(
        &self,
        needed: &Needed,
        replica: Option<&(String, Bytes)>,
    ) -> Result<Option<(String, Bytes)>, Stop> {
        // A row that says so is damaged itself.
        if end(needed) > OBJECT_LEN_MAX {
            return Ok(None);
        }
        if let Some((named, bytes)) = replica
            && let Some(stored) =
                cut(bytes, needed).filter(|stored| seal::verify(&needed.seal, stored).is_ok())
        {
            return Ok(Some((named.clone(), stored)));
        }
        let mut shown = Vec::new();
        for held in &needed.rows {
            let paths = match self.sources.wants_paths() {
                true => {
                    let names = self.looking.names(self.desk, held, &mut *self.named.lock().await).await?;
                    names.names.into_iter().map(|name| name.path).collect()
                }
                false => Vec::new(),
            };
            shown.push(Shown { block: held.key.block, slice: held.slice.clone(), paths });
        }
        self.sources.stored(needed.seal, shown).await
    }

    /// Whether rows as they are now still name any of these in the object.
    async fn are_named(&self, object: ObjectId, found: &[(Needed, Bytes)]) -> Result<bool, Stop> {
        let rows: Vec<_> = found.iter().flat_map(|(needed, _)| needed.rows.clone()).collect();
        let (reads, index) = (self.looking.volume.rows().await?, self.looking.volume.index);
        let look = move || {
            for held in &rows {
                let now = held_again(&reads, index, held)?;
                if now.and_then(|now| place_of(&now.slice.place)).is_some_and(|(now, ..)| now == object) {
                    return Ok(true);
                }
            }
            Ok::<_, ReadStop>(false)
        };
        Ok(off_thread(look).await??)
    }

    /// The object as it is to be. The inner error: it would cost bytes that may be intact, and that no row here names.
    fn built(
        &self,
        object: ObjectId,
        left: &Left,
        replica: Option<Bytes>,
        is_all: bool,
        intact: &[(Needed, Bytes)],
        found: &[(Needed, Bytes)],
    ) -> Result<Bytes, String> {
        let volume = self.looking.volume.id;
        let replica = replica.filter(|bytes| self.sources.is_object(object, bytes));
        let has =
            |bytes: &Bytes, (needed, stored): &(Needed, Bytes)| cut(bytes, needed).as_ref() == Some(stored);
        // In the place of what is left only a copy that is right to its last slice, named or not.
        let whole = |bytes: &Bytes| {
            is_all
                && self.sources.is_complete(bytes)
                && intact.iter().chain(found).all(|slice| has(bytes, slice))
        };
        match left {
            Left::Nothing => Ok(build(volume, object, &replica.unwrap_or_default(), intact, found)),
            Left::Bytes(left) => match replica.filter(|bytes| bytes.len() >= left.len() && whole(bytes)) {
                Some(replica) => Ok(replica),
                None => Ok(build(volume, object, left, intact, found)),
            },
            Left::Unreadable(why) => replica.filter(whole).ok_or_else(|| {
                format!(
                    "and it is not replaced, since bytes of it that clones and older backups may need cannot be read ({why}): name a \
                     copy of the block store that has the whole object with --from-store"
                )
            }),
        }
    }

    /// Puts an object back and reads what was lost of it. The inner error: it was not to be.
    async fn put(
        &self,
        name: &str,
        is_gone: bool,
        bytes: Bytes,
        found: &[(Needed, Bytes)],
    ) -> Result<Result<(), String>, Stop> {
        let store = &self.looking.store;
        // One that is gone is only put if it is gone still.
        let put = match is_gone {
            true => store.put(name, &bytes).await?,
            false => store.replace(name, &bytes).await?,
        };
        if let Err(error) = put {
            return Ok(Err(format!("and it could not be put back: {}", error.reason)));
        }
        for (needed, stored) in found {
            let read = store.get(name, needed.at, needed.seal.stored_len).await?;
            if read.ok().as_ref() != Some(stored) {
                return Ok(Err(
                    "and what was put back reads otherwise: the block store is not in order".to_owned()
                ));
            }
        }
        Ok(Ok(()))
    }
}

/// The slices that rows name in an object, each once.
fn needed(rows: Vec<HeldSlice>) -> Vec<Needed> {
    let mut all = BTreeMap::<(u64, SliceId), Needed>::new();
    for held in rows {
        let Some((_, seal, at)) = place_of(&held.slice.place) else { continue };
        let needed = all.entry((at, seal.id)).or_insert_with(|| Needed { seal, at, rows: Vec::new() });
        needed.rows.push(held);
    }
    all.into_values().collect()
}

fn end(needed: &Needed) -> u64 {
    needed.at.saturating_add(u64::from(needed.seal.stored_len))
}

/// An object of `size` bytes in parts: the slices that are named, and what lies between them.
fn parts(size: u64, named: &[Range<u64>]) -> Vec<(Range<u64>, bool)> {
    let mut named: Vec<_> = named.iter().map(|slice| slice.start.min(size)..slice.end.min(size)).collect();
    named.sort_by_key(|slice| slice.start);
    let (mut parts, mut at) = (Vec::new(), 0);
    for slice in named {
        parts.push((at..slice.start, false));
        // What two rows say of the same bytes cannot both be.
        parts.push((at.max(slice.start)..slice.end, true));
        at = at.max(slice.end);
    }
    parts.push((at..size, false));
    parts.retain(|(part, _)| !part.is_empty());
    parts
}

/// Where a slice lies in the bytes of its object.
fn cut(bytes: &Bytes, needed: &Needed) -> Option<Bytes> {
    let (begin, end) = (usize::try_from(needed.at).ok()?, usize::try_from(end(needed)).ok()?);
    (begin <= end && end <= bytes.len()).then(|| bytes.slice(begin..end))
}

/// The object of what is left of it and what was found. What no row names any more stays as it is, if it is there: a clone may
/// need it.
fn build(
    volume: uuid::Uuid,
    object: ObjectId,
    left: &Bytes,
    intact: &[(Needed, Bytes)],
    found: &[(Needed, Bytes)],
) -> Bytes {
    let known = || intact.iter().chain(found);
    let length = known().map(|(needed, _)| end(needed)).max().unwrap_or(0) as usize;
    let mut bytes = BytesMut::from(&left[..]);
    // Behind the slices of an object that is as long as it was come its label and its index.
    let is_whole = bytes.len() >= length + FOOTER_LEN;
    if bytes.len() < length {
        bytes.resize(length, 0);
    }
    for (needed, stored) in known() {
        let begin = needed.at as usize;
        bytes[begin..begin + stored.len()].copy_from_slice(stored);
    }
    if is_whole {
        return bytes.freeze();
    }
    let entry = |(needed, _): &(Needed, Bytes)| {
        let held = needed.rows.first()?;
        let (ino, block) = (held.ino, held.key.block);
        let (offset, len) = (held.slice.offset, held.slice.len);
        Some(Entry { ino, at: needed.at, block, offset, len, seal: needed.seal })
    };
    let mut entries: Vec<Entry> = known().filter_map(entry).collect();
    entries.sort_by_key(|entry| entry.at);
    ObjectWriter::around(volume, object, bytes.freeze(), entries).finish()
}
