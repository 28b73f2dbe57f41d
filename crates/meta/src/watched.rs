//! Whether block stores can be used, as the answers to this server's own reads and writes say: for its status, figures and
//! log. What a store does not let it delete or list is told by the collection.

use bytes::Bytes;
use chronofs_blocks::hedge::Hedges;
use chronofs_blocks::outage::{Heard, is_outage};
use chronofs_blocks::signed::Action;
use chronofs_blocks::{ListPage, ObjectPort, Outage, StoreError, StoreOutage, StorePort, object_name};
use chronofs_core::{ObjectId, SessionId, SignedRequest};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often a store that cannot be used is asked again, so that the end of an outage is noticed when nobody else asks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A block store in the server's status.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Its id.
    pub id: Uuid,
    /// Where it is.
    pub place: String,
    /// Since when and why it cannot be used, if it cannot.
    pub outage: Option<StoreOutage>,
}

/// What is known of one store, for as long as volumes are in it.
#[derive(Debug)]
pub(crate) struct Watch {
    id: Uuid,
    place: String,
    outage: Outage,
}

/// What is known of each store.
#[derive(Clone, Default, Debug)]
pub(crate) struct Watches(Arc<Mutex<BTreeMap<Uuid, Arc<Watch>>>>);

impl Watches {
    /// These stores are used, at these places, and no others.
    pub(crate) fn keep(&self, stores: impl Iterator<Item = (Uuid, String)>) {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *watches);
        watches.extend(stores.map(|(id, place)| {
            let known = before.remove(&id).filter(|watch| watch.place == place);
            (id, known.unwrap_or_else(|| Arc::new(Watch { id, place, outage: Outage::default() })))
        }));
    }

    /// What is known of the store `id`.
    pub(crate) fn of(&self, id: Uuid) -> Option<Arc<Watch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Every store.
    pub(crate) fn status(&self) -> Vec<StoreStatus> {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let status = |watch: &Arc<Watch>| StoreStatus {
            id: watch.id,
            place: watch.place.clone(),
            outage: watch.outage.now(now),
        };
        watches.values().map(status).collect()
    }
}

/// A store whose answers are watched.
pub(crate) struct Watched {
    store: Arc<dyn StorePort>,
    watch: Option<Arc<Watch>>,
    this: Weak<Watched>,
}

impl Watched {
    pub(crate) fn new(store: Arc<dyn StorePort>, watch: Option<Arc<Watch>>) -> Arc<Self> {
        Arc::new_cyclic(|this| Watched { store, watch, this: this.clone() })
    }

    fn hear<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let Some(watch) = &self.watch else { return answer };
        match (watch.outage.heard(&answer, Instant::now()), &answer) {
            (Heard::Began, Err(error)) => {
                tracing::error!(store = %watch.id, "the block store {} cannot be used: {error}", watch.place);
                tokio::spawn(look_again(self.this.clone()));
            }
            (Heard::Ended(after), _) => {
                let seconds = after.as_secs();
                tracing::info!(store = %watch.id, seconds, "the block store {} can be used again", watch.place);
            }
            _ => {}
        }
        answer
    }

    fn is_away(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.outage.now(Instant::now()).is_some())
    }
}

/// Whether a store can be used: asks for an object that nobody has, and that it is missing is an answer. Why not, if not.
pub(crate) async fn answers(store: &dyn StorePort) -> Result<(), StoreError> {
    let nothing = object_name(Uuid::nil(), ObjectId { incarnation: 0, session: SessionId(0), n: 0 });
    match store.get(&nothing, 0, 1).await {
        Err(error) if is_outage(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Asks until the outage is over.
async fn look_again(watched: Weak<Watched>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(watched) = watched.upgrade().filter(|watched| watched.is_away()) else { return };
        drop(answers(&*watched).await);
    }
}

impl ObjectPort for Watched {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.hear(self.store.put(name, bytes).await) })
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move { self.hear(self.store.get(name, offset, len).await) })
    }

    fn sign<'a>(
        &'a self,
        action: Action,
        name: &'a str,
        valid: Duration,
    ) -> BoxFuture<'a, Option<SignedRequest>> {
        self.store.sign(action, name, valid)
    }

    fn hedges(&self) -> Hedges {
        self.store.hedges()
    }
}

impl StorePort for Watched {
    /// That one is not given out whole says nothing of the store: it may be archived. Who asked asks whether the store
    /// [`answers`].
    fn whole<'a>(&'a self, name: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move {
            match self.store.whole(name, max).await {
                Err(error) if is_outage(&error) => Err(error),
                answer => self.hear(answer),
            }
        })
    }

    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.hear(self.store.replace(name, bytes).await) })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.delete(name)
    }

    fn list(&self, from: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>> {
        self.store.list(from)
    }

    fn stored_ns<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        self.store.stored_ns(name)
    }

    fn put_note<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.put_note(name, bytes)
    }

    fn remove_note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.remove_note(name)
    }

    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>> {
        self.store.notes(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_blocks::BlockStore;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_known_until_the_store_answers_whoever_asks_and_survives_a_new_assignment() {
        let folder = tempfile::tempdir().unwrap();
        let (there, away) = (folder.path().join("there"), folder.path().join("away"));
        let id = Uuid::from_u128(1);
        let watches = Watches::default();
        let outage = || watches.status().pop().unwrap().outage;
        let keep = || watches.keep([(id, "a folder".to_owned())].into_iter());
        keep();
        let store = Watched::new(Arc::new(BlockStore::create(&there, id).unwrap()), watches.of(id));
        let object = object_name(id, ObjectId { incarnation: 1, session: SessionId(1), n: 1 });
        store.put(&object, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(outage(), None);
        std::fs::rename(&there, &away).unwrap();
        store.get(&object, 0, 1).await.unwrap_err();
        assert!(outage().unwrap().reason.contains("not the store's folder any more"));
        keep();
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(outage().is_some());
        std::fs::rename(&away, &there).unwrap();
        for _ in 0..100 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        assert_eq!(outage(), None);
        watches.keep(std::iter::empty());
        assert_eq!(watches.status(), []);
    }
}
