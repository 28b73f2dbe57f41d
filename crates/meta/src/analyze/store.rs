//! What a block store holds of a volume, as far as its listing says. A listing may leave something out, so what is not in it
//! is asked for before anything is concluded.

use super::{Desk, Looked, Stop};
use chronofs_blocks::object::OBJECT_LEN_MAX;
use chronofs_blocks::{ListPage, StoreError, StorePort, Trouble, parse_object_name};
use chronofs_core::ObjectId;
use chronofs_wire::analyze::{News, Progress};
use chronofs_wire::status::memory_free_bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Sizes of so many objects are held in memory, about 200 MB, if a quarter of what is free is so much; each of the rest costs a
/// request.
const HELD_MAX: u64 = 4 << 20;
/// What one of them takes, about.
const HELD_BYTES: u64 = 50;
/// A page of a listing, or a part of an object, comes within this time.
const WITHIN: Duration = Duration::from_secs(120);
/// What a store cannot do now is tried again after these.
const TRY_AGAIN: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(3), Duration::from_secs(10)];

/// Of how many objects the size is held: the server needs its memory for who uses it.
fn held_max(free_bytes: u64) -> u64 {
    // 0: the machine does not say.
    if free_bytes == 0 { HELD_MAX } else { HELD_MAX.min(free_bytes / 4 / HELD_BYTES) }
}

/// The block store of a volume that is looked at, or a copy of it.
#[derive(Clone)]
pub(super) struct Store {
    port: Arc<dyn StorePort>,
}

impl Store {
    pub(super) fn new(port: Arc<dyn StorePort>) -> Store {
        Store { port }
    }

    pub(super) fn of(volume: &Looked) -> Result<Store, Stop> {
        let port = volume.collector.stores.of(volume.id).ok_or_else(|| {
            let name = &volume.row.spec.name;
            Stop::Failed(format!("the block store of volume {name} cannot be used: see chronofs meta status"))
        })?;
        Ok(Store { port })
    }

    /// The sizes of a volume's objects.
    pub(super) async fn listed(&self, desk: &Desk, volume: &Looked) -> Result<HashMap<ObjectId, u64>, Stop> {
        let held_max = held_max(memory_free_bytes());
        let (mut sizes, mut from, mut listed) = (HashMap::new(), None, 0);
        loop {
            let page = self.page(from).await?;
            for (name, bytes) in page.names {
                let Some((_, object)) = parse_object_name(&name).filter(|(of, _)| *of == volume.id) else {
                    continue;
                };
                listed += 1;
                if (sizes.len() as u64) < held_max {
                    sizes.insert(object, bytes);
                }
            }
            desk.tell(News::At(Progress { listed, ..Progress::default() })).await;
            from = match page.next {
                Some(next) => Some(next),
                None => return Ok(sizes),
            };
        }
    }

    /// The size of an object, as far as the listing says it.
    pub(super) async fn size(&self, name: &str) -> Result<Option<u64>, Stop> {
        let mut from = None;
        loop {
            let page = self.page(from).await?;
            if let Some((_, size)) = page.names.into_iter().find(|(found, _)| found == name) {
                return Ok(Some(size));
            }
            from = match page.next {
                Some(next) => Some(next),
                None => return Ok(None),
            };
        }
    }

    /// A page of the listing of the whole store.
    pub(super) async fn page(&self, from: Option<String>) -> Result<ListPage, Stop> {
        let page = self.patiently(|| self.port.list(from.clone())).await?;
        page.map_err(|error| Stop::Failed(error.to_string()))
    }

    /// When an object was stored, by the clock of the store, if it says and the object is there.
    pub(super) async fn stored_ns(&self, name: &str) -> Result<Option<u64>, Stop> {
        let stored = self.patiently(|| self.port.stored_ns(name)).await?;
        Ok(stored.unwrap_or(None))
    }

    /// A part of an object. The inner error says what is wrong with the object.
    pub(super) async fn get(
        &self,
        name: &str,
        at: u64,
        len: u32,
    ) -> Result<Result<bytes::Bytes, StoreError>, Stop> {
        self.patiently(|| self.port.get(name, at, len)).await
    }

    /// A whole object. The inner error says what is wrong with it.
    pub(super) async fn whole(&self, name: &str) -> Result<Result<bytes::Bytes, StoreError>, Stop> {
        self.patiently(|| self.port.whole(name, OBJECT_LEN_MAX)).await
    }

    /// Puts an object that is not there. The inner error says that it is, with other bytes.
    pub(super) async fn put(&self, name: &str, bytes: &bytes::Bytes) -> Result<Result<(), StoreError>, Stop> {
        self.patiently(|| self.port.put(name, bytes.clone())).await
    }

    /// Puts an object in the place of one that is damaged.
    pub(super) async fn replace(
        &self,
        name: &str,
        bytes: &bytes::Bytes,
    ) -> Result<Result<(), StoreError>, Stop> {
        self.patiently(|| self.port.replace(name, bytes.clone())).await
    }

    /// Has an object gone.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Stop> {
        let deleted = self.patiently(|| self.port.delete(name)).await?;
        deleted.map_err(|error| Stop::Failed(error.to_string()))
    }

    /// All that lies where pins lie.
    pub(super) async fn pins(&self) -> Result<Vec<(String, bytes::Bytes)>, Stop> {
        let found = self.patiently(|| self.port.pins()).await?;
        found.map_err(|error| Stop::Failed(error.to_string()))
    }

    /// All that lies in a folder of notes.
    pub(super) async fn notes(&self, folder: &str) -> Result<Vec<(String, bytes::Bytes)>, Stop> {
        let found = self.patiently(|| self.port.notes(folder)).await?;
        found.map_err(|error| Stop::Failed(error.to_string()))
    }

    /// Tries again what the store cannot do now; a store that is away ends the look, since it says nothing of an object.
    async fn patiently<T, F>(&self, attempt: impl Fn() -> F) -> Result<Result<T, StoreError>, Stop>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut waits = TRY_AGAIN.iter();
        loop {
            let why = match tokio::time::timeout(WITHIN, attempt()).await {
                Ok(Ok(done)) => return Ok(Ok(done)),
                Ok(Err(error)) if matches!(error.trouble, Trouble::Missing | Trouble::Damaged) => {
                    return Ok(Err(error));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("the block store has not answered for {} seconds", WITHIN.as_secs()),
            };
            match waits.next() {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => return Err(Stop::Failed(why)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_so_many_objects_sizes_are_held_as_the_memory_of_a_server_allows() {
        assert_eq!((held_max(0), held_max(64 << 30)), (HELD_MAX, HELD_MAX));
        assert_eq!(held_max(400), 2);
        assert!(held_max(100 << 20) * HELD_BYTES <= 25 << 20);
    }
}
