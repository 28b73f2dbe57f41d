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
    ENTRY_LEN, Entry as Indexed, FOOTER_LEN, Footer, LABEL_LEN, OBJECT_LEN_MAX, read_footer, read_index,
    read_label,
};
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{object_name, seal};
use chronofs_core::{Ino, ObjectId, SliceId, Version};
use chronofs_namespace::{Judged, names_of};
use chronofs_wire::analyze::{FoundFile, News, Piece, Progress, Salvaged};
use chronofs_wire::question::Blob;
use futures::StreamExt;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use uuid::Uuid;

/// Requests to the block store at once: clients have theirs, too.
const AT_ONCE: usize = 8;
/// The tail of an object that is read at first: the index of most is in it.
const TAIL: u64 = 16 << 10;
/// Stored bytes are told in parts of this size: news that nobody has fetched yet are in memory.
const PART: usize = 64 << 10;
/// More slices are not held in memory at once, about a GiB.
const SLICES_MAX: u64 = 8 << 20;

/// Slices of each file by their ids, which is the order in which a session wrote them. One that was packed again lies in
/// several objects.
type Files = BTreeMap<Ino, BTreeMap<SliceId, (ObjectId, Indexed)>>;

/// An object that nothing explains, with its length.
type Strange = (ObjectId, u64);

/// Looks at all that nothing explains.
pub(super) async fn look(desk: &Desk, volume: Looked, list_only: bool) -> Result<Salvaged, Stop> {
    let (mut strange, mut sum) = (Vec::<Strange>::new(), Salvaged::default());
    each_judged(desk, &volume, |_, bytes, object, judged| {
        if matches!(judged, Judged::Quarantined(_)) {
            strange.push((object, bytes));
        }
    })
    .await?;
    let salvage = Salvaging { desk, store: Store::of(&volume)?, volume };
    sum.objects = strange.len() as u64;
    let files = salvage.indexes(&strange, &mut sum).await?;
    drop(strange);
    sum.files = files.len() as u64;
    for (ino, slices) in &files {
        salvage.file(*ino, slices, list_only, &mut sum).await?;
    }
    Ok(sum)
}

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
    async fn indexes(&self, strange: &[Strange], sum: &mut Salvaged) -> Result<Files, Stop> {
        let (mut files, mut held) = (Files::new(), 0u64);
        let reading = strange.iter().map(|found| async move { (found.0, self.index(*found).await) });
        let mut reading = futures::stream::iter(reading.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        while let Some((object, entries)) = reading.next().await {
            let entries = match entries? {
                Ok(entries) => entries,
                Err(reason) => {
                    self.unreadable(object, reason, sum).await;
                    continue;
                }
            };
            for entry in entries {
                if let Entry::Vacant(new) = files.entry(entry.ino).or_default().entry(entry.seal.id) {
                    new.insert((object, entry));
                    held += 1;
                }
            }
            if held > SLICES_MAX {
                return Err(Stop::Failed(format!(
                    "more than {SLICES_MAX} slices are explained by nothing, and are not held in memory at once: salvage what \
                     a newer backup has not, or ask for help before anything is deleted"
                )));
            }
        }
        Ok(files)
    }

    /// The index of an object of `len` bytes. The inner error says why it has none.
    async fn index(&self, (object, len): Strange) -> Result<Result<Vec<Indexed>, String>, Stop> {
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
        ino: Ino,
        slices: &BTreeMap<SliceId, (ObjectId, Indexed)>,
        list_only: bool,
        sum: &mut Salvaged,
    ) -> Result<(), Stop> {
        let entries = || slices.values().map(|(_, entry)| entry);
        let bytes = entries().map(|entry| u64::from(entry.seal.stored_len)).sum();
        let len = entries().map(|entry| self.at(entry) + u64::from(entry.len)).max().unwrap_or(0);
        let path = self.path(ino).await?;
        let file = FoundFile { ino: ino.0, path, slices: slices.len() as u64, bytes, len };
        sum.slices += file.slices;
        sum.bytes += bytes;
        self.desk.tell(News::File(Box::new(file))).await;
        if !list_only {
            let reading = slices
                .values()
                .map(|(object, entry)| async move { (*object, entry, self.stored(*object, entry).await) });
            let mut reading = futures::stream::iter(reading.collect::<Vec<_>>()).buffered(AT_ONCE);
            while let Some((object, entry, stored)) = reading.next().await {
                match stored? {
                    Ok(stored) => self.tell(entry, stored).await,
                    Err(reason) => self.unreadable(object, reason, sum).await,
                }
            }
        }
        let Salvaged { slices, bytes, unreadable, .. } = *sum;
        let at = Progress { listed: sum.objects, slices, bytes, faults: unreadable, next: None };
        self.desk.tell(News::At(at)).await;
        Ok(())
    }

    fn at(&self, entry: &Indexed) -> u64 {
        u64::from(entry.block) * u64::from(self.volume.row.spec.block_size) + u64::from(entry.offset)
    }

    /// Where a file is now, if it is anywhere.
    async fn path(&self, ino: Ino) -> Result<Option<String>, Stop> {
        let (reads, desk, index) = (self.volume.rows().await?, self.desk.clone(), self.volume.index);
        let reading = move || names_of(&Counted::quiet(reads, desk), index, ino, Version::ZERO, None);
        let named = off_thread(reading).await??;
        let now = named.names.into_iter().find(|name| name.until.is_none());
        Ok(now.map(|name| shown_path(&name.path)))
    }

    /// The stored bytes of a slice, which are what its seal says.
    async fn stored(&self, object: ObjectId, entry: &Indexed) -> Result<Result<Bytes, String>, Stop> {
        let stored = self.store.get(&self.name(object), entry.at, entry.seal.stored_len).await?;
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => return Ok(Err(error.reason)),
        };
        let (seal, checked) = (entry.seal, stored.clone());
        let whole = off_thread(move || seal::verify(&seal, &checked)).await?;
        Ok(whole.map(|()| stored).map_err(|error| error.to_string()))
    }

    async fn tell(&self, entry: &Indexed, stored: Bytes) {
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
fn read_end(volume: Uuid, object: ObjectId, footer: &Footer, end: &[u8]) -> Result<Vec<Indexed>, String> {
    let (label, rest) = end.split_at(LABEL_LEN);
    let label = read_label(label).map_err(|error| error.to_string())?;
    if (label.volume, label.id) != (volume, object) {
        return Err(format!("its label says that it is object {} of volume {}", label.id, label.volume));
    }
    read_index(footer, &rest[..footer.index_len()]).map_err(|error| error.to_string())
}
