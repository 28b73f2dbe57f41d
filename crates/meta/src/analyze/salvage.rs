//! Files that the metadata lost, rebuilt from objects alone: after a restore from an older backup, or with new metadata,
//! nothing explains what was stored since. Each object's index says of its slices which bytes of which file they are, and
//! their ids in what order a session wrote them. Nothing says what was truncated or deleted, or in what order two sessions
//! wrote, so what is rebuilt may bring back what had been overwritten.
//!
//! Nothing is changed here: whoever follows gets the stored bytes, sealed as they are, and puts them into files.

use super::objects::each_judged;
use super::rows::Counted;
use super::store::Store;
use super::{Desk, Looked, Stop, shown_path};
use bytes::Bytes;
use chronofs_blocks::object::{
    ENTRY_LEN, Entry, FOOTER_LEN, Footer, LABEL_LEN, OBJECT_LEN_MAX, read_footer, read_index, read_label,
};
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{object_name, seal};
use chronofs_core::{Ino, ObjectId, SliceId, Version};
use chronofs_namespace::{Judged, names_of};
use chronofs_wire::analyze::{FoundFile, News, Piece, Progress, Salvaged};
use chronofs_wire::question::Blob;
use chronofs_wire::status::memory_free_bytes;
use futures::StreamExt;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Requests to the block store at once: clients have theirs, too.
const AT_ONCE: usize = 8;
/// The tail of an object that is read at first: the index of most is in it.
const TAIL: u64 = 16 << 10;
/// Stored bytes are told in parts of this size: news that nobody has fetched yet are in memory.
const PART: usize = 64 << 10;
/// Of more slices the index is not held in memory at once,
const SLICES_MAX: u64 = 8 << 20;
/// each of them takes about so much there,
const SLICE_BYTES: u64 = 300;
/// and not more than a quarter of what is free.
const FREE_PART: u64 = 4;
/// Reads of so many are prepared at once.
const BATCH: usize = 256;

/// A file as one incarnation of its volume wrote it: clones write to the same numbers.
type FileId = (Ino, u16);

/// Slices of each file by their ids, which is the order in which a session wrote them. One that was packed again lies in
/// several objects, of which one may be damaged.
type Files = BTreeMap<FileId, BTreeMap<SliceId, Vec<(ObjectId, Entry)>>>;

/// An object that nothing explains, with its length.
type Strange = (ObjectId, u64);

/// Looks at all that nothing explains.
pub(super) async fn look(desk: &Desk, volume: Looked, list_only: bool) -> Result<Salvaged, Stop> {
    let (mut strange, mut sum) = (Vec::<Strange>::new(), Salvaged::default());
    let max = match memory_free_bytes() {
        // The machine does not say.
        0 => SLICES_MAX,
        free => SLICES_MAX.min(free / FREE_PART / SLICE_BYTES),
    };
    each_judged(desk, &volume, |_, bytes, object, judged| {
        if matches!(judged, Judged::Quarantined(_)) && strange.len() as u64 <= max {
            strange.push((object, bytes));
        }
    })
    .await?;
    if strange.len() as u64 > max {
        return Err(too_many("objects", max));
    }
    let salvage = Salvaging { desk, store: Store::of(&volume)?, volume };
    sum.objects = strange.len() as u64;
    let files = salvage.indexes(&strange, max, &mut sum).await?;
    drop(strange);
    sum.files = files.len() as u64;
    for (file, slices) in &files {
        salvage.file(*file, slices, list_only, &mut sum).await?;
    }
    Ok(sum)
}

fn too_many(what: &str, max: u64) -> Stop {
    Stop::Failed(format!(
        "more than {max} {what} are explained by nothing, which is more than fits into the memory that is free here: start the \
         metadata server on a machine with more"
    ))
}

/// A slice with its stored bytes.
type Stored = (Entry, Bytes);
/// An object, and what is wrong with it.
type Unreadable = (ObjectId, String);

struct Salvaging<'a> {
    desk: &'a Desk,
    volume: Looked,
    store: Store,
}

impl Salvaging<'_> {
    fn name(&self, object: ObjectId) -> String {
        object_name(self.volume.id, object)
    }

    /// Tells that something is no slice or object any more.
    async fn unreadable(&self, object: ObjectId, reason: String, sum: &mut Salvaged) {
        sum.unreadable += 1;
        self.desk.tell(News::Unreadable { object: self.name(object), reason }).await;
    }

    /// What the objects say of themselves.
    async fn indexes(&self, strange: &[Strange], max: u64, sum: &mut Salvaged) -> Result<Files, Stop> {
        let (mut files, mut held) = (Files::new(), 0u64);
        for batch in strange.chunks(BATCH) {
            let reading = batch.iter().map(|found| async move { (found.0, self.index(*found).await) });
            let mut reading = futures::stream::iter(reading.collect::<Vec<_>>()).buffered(AT_ONCE);
            while let Some((object, entries)) = reading.next().await {
                let entries = match entries? {
                    Ok(entries) => entries,
                    Err(reason) => {
                        self.unreadable(object, reason, sum).await;
                        continue;
                    }
                };
                held += entries.len() as u64;
                for entry in entries {
                    let id = entry.seal.id;
                    let file = files.entry((entry.ino, id.object.incarnation)).or_default();
                    file.entry(id).or_default().push((object, entry));
                }
                if held > max {
                    return Err(too_many("slices", max));
                }
            }
        }
        Ok(files)
    }

    /// The index of an object of `len` bytes. The inner error says why it has none.
    async fn index(&self, (object, len): Strange) -> Result<Result<Vec<Entry>, String>, Stop> {
        let name = self.name(object);
        if len > OBJECT_LEN_MAX {
            return Ok(Err(format!("it is {len} bytes long, and no object is longer than {OBJECT_LEN_MAX}")));
        }
        if len < FOOTER_LEN as u64 {
            return Ok(Err(format!("its footer needs {FOOTER_LEN} bytes and has {len}: the object was cut")));
        }
        let tail = match self.store.get(&name, len.saturating_sub(TAIL), len.min(TAIL) as u32).await? {
            Ok(tail) => tail,
            Err(error) => return Ok(Err(error.reason)),
        };
        let footer = match read_footer(&tail, len) {
            Ok(footer) => footer,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let needed = (LABEL_LEN + footer.count as usize * ENTRY_LEN + FOOTER_LEN) as u64;
        let end = match needed <= tail.len() as u64 {
            true => tail.slice(tail.len() - needed as usize..),
            false => match self.store.get(&name, len - needed, needed as u32).await? {
                Ok(end) => end,
                Err(error) => return Ok(Err(error.reason)),
            },
        };
        Ok(read_end(self.volume.id, object, &footer, &end))
    }

    /// Tells of a file, and its bytes.
    async fn file(
        &self,
        (ino, incarnation): FileId,
        slices: &BTreeMap<SliceId, Vec<(ObjectId, Entry)>>,
        list_only: bool,
        sum: &mut Salvaged,
    ) -> Result<(), Stop> {
        let entries = || slices.values().filter_map(|places| places.first()).map(|(_, entry)| entry);
        let bytes = entries().map(|entry| u64::from(entry.seal.stored_len)).sum();
        let len = entries().map(|entry| self.at(entry) + u64::from(entry.len)).max().unwrap_or(0);
        let path = self.path(ino).await?;
        let file = FoundFile { ino: ino.0, incarnation, path, slices: slices.len() as u64, bytes, len };
        sum.slices += file.slices;
        sum.bytes += bytes;
        self.desk.tell(News::File(Box::new(file))).await;
        if !list_only {
            let all: Vec<_> = slices.values().collect();
            for batch in all.chunks(BATCH) {
                let reading = batch.iter().map(|places| self.stored(places));
                let mut reading = futures::stream::iter(reading.collect::<Vec<_>>()).buffered(AT_ONCE);
                while let Some(stored) = reading.next().await {
                    match stored? {
                        Ok((entry, stored)) => self.tell(&entry, stored).await,
                        Err(all) => {
                            for (object, reason) in all {
                                self.unreadable(object, reason, sum).await;
                            }
                        }
                    }
                }
            }
        }
        let Salvaged { slices, bytes, unreadable, .. } = *sum;
        let at = Progress { listed: sum.objects, slices, bytes, faults: unreadable, next: None };
        self.desk.tell(News::At(at)).await;
        Ok(())
    }

    fn at(&self, entry: &Entry) -> u64 {
        u64::from(entry.block) * u64::from(self.volume.row.spec.block_size) + u64::from(entry.offset)
    }

    /// Where a file is now, if it is anywhere. It is only told: rows that cannot be read take nothing from what is found.
    async fn path(&self, ino: Ino) -> Result<Option<String>, Stop> {
        let (reads, desk, index) = (self.volume.rows().await?, self.desk.clone(), self.volume.index);
        let reading = move || names_of(&Counted::quiet(reads, desk), index, ino, Version::ZERO, None);
        let Ok(named) = off_thread(reading).await? else { return Ok(None) };
        let now = named.names.into_iter().find(|name| name.until.is_none());
        Ok(now.map(|name| shown_path(&name.path)))
    }

    /// The stored bytes of a slice, which are what its seal says, from the first of its objects that has them. The inner error
    /// names all of them.
    async fn stored(&self, places: &[(ObjectId, Entry)]) -> Result<Result<Stored, Vec<Unreadable>>, Stop> {
        let mut unreadable = Vec::new();
        for (object, entry) in places {
            let stored = self.store.get(&self.name(*object), entry.at, entry.seal.stored_len).await?;
            let reason = match stored {
                Ok(stored) => {
                    let (seal, checked) = (entry.seal, stored.clone());
                    match off_thread(move || seal::verify(&seal, &checked)).await? {
                        Ok(()) => return Ok(Ok((*entry, stored))),
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.reason,
            };
            unreadable.push((*object, reason));
        }
        Ok(Err(unreadable))
    }

    async fn tell(&self, entry: &Entry, stored: Bytes) {
        let SliceId { object, index } = entry.seal.id;
        let piece = Piece {
            ino: entry.ino.0,
            at: self.at(entry),
            len: entry.len,
            incarnation: object.incarnation,
            session: object.session.0,
            n: object.n,
            index,
            codec: entry.seal.codec.number(),
            stored_len: entry.seal.stored_len,
            full_len: entry.seal.full_len,
            crc32c: entry.seal.crc32c,
        };
        self.desk.tell(News::Piece(Box::new(piece))).await;
        for part in stored.chunks(PART) {
            self.desk.tell(News::Bytes(Blob(stored.slice_ref(part)))).await;
        }
    }
}

/// The entries of an object, if label and index are those of this one.
fn read_end(volume: Uuid, object: ObjectId, footer: &Footer, end: &[u8]) -> Result<Vec<Entry>, String> {
    let (label, rest) = end.split_at(LABEL_LEN);
    let label = read_label(label).map_err(|error| error.to_string())?;
    if (label.volume, label.id) != (volume, object) {
        return Err(format!("its label says that it is object {} of volume {}", label.id, label.volume));
    }
    read_index(footer, &rest[..footer.index_len()]).map_err(|error| error.to_string())
}
