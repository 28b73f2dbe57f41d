//! Objects for clients that cannot reach a volume's block store: stored and read on their behalf. And signed requests
//! for those that can, and have no credentials.

use super::outbox::Outbox;
use crate::executor::{Input, ObjectHandler};
use crate::machine::objects::SIGNED_VALID_MS;
use crate::machine::{
    DeleteJob, DeletedObjects, Event, ObjectAction, ObjectJob, PackJob, Packed, SignFor, SignedAnswer, Source,
};
use crate::metrics::Metrics;
use crate::pack::{Repacker, build_pack};
use crate::watched::{Watches, answers};
use bytes::Bytes;
use chronofs_blocks::object::OBJECT_LEN_MAX;
use chronofs_blocks::outage::is_outage;
use chronofs_blocks::signed::Action;
use chronofs_blocks::work::off_thread;
use chronofs_blocks::{ObjectPort, StoreError, StorePort, Trouble, object_name};
use chronofs_core::{Errno, ObjectId, SignedRequest};
use chronofs_engine::View;
use chronofs_namespace::PoorObject;
use chronofs_wire::admin::{AssignedStore, Registered};
use chronofs_wire::message::{SIGNED_MAX, SignedGet, ToClient};
use futures::StreamExt;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How long what is signed is valid.
const VALID: Duration = Duration::from_millis(SIGNED_VALID_MS as u64);
/// One in so many of a job's objects are deleted at once. The few that are handed out beside clients go one after
/// another: a burst of deletions is noticed by whoever waits for the same disk and the same cores.
const DELETES_AT_ONCE_IN: usize = 16;

/// The block stores of volumes that this server reaches.
#[derive(Clone, Default)]
pub struct Stores {
    by_volume: Arc<RwLock<HashMap<Uuid, Arc<dyn StorePort>>>>,
    /// Which one that is, by volume.
    ids: Arc<RwLock<HashMap<Uuid, Uuid>>>,
    /// Where a clone may be registered, and has no volume any more.
    of_readers: Arc<RwLock<Vec<AssignedStore>>>,
    /// What the admin server said last of the metadata store whose server this is.
    owner: Arc<RwLock<Option<Registered>>>,
    watches: Watches,
}

impl Stores {
    /// The store of a volume.
    pub fn of(&self, volume: Uuid) -> Option<Arc<dyn StorePort>> {
        self.by_volume.read().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned()
    }

    /// Each store with the volumes that lie in it.
    pub fn each(&self) -> Vec<(Arc<dyn StorePort>, Vec<Uuid>)> {
        let mut each: Vec<(Arc<dyn StorePort>, Vec<Uuid>)> = Vec::new();
        for (&volume, store) in self.by_volume.read().unwrap_or_else(PoisonError::into_inner).iter() {
            match each.iter_mut().find(|(known, _)| Arc::ptr_eq(known, store)) {
                Some((_, volumes)) => volumes.push(volume),
                None => each.push((store.clone(), vec![volume])),
            }
        }
        each
    }

    /// Whether they can be used.
    pub(crate) fn watches(&self) -> &Watches {
        &self.watches
    }

    /// The id of the store of a volume.
    pub(crate) fn id_of(&self, volume: Uuid) -> Option<Uuid> {
        self.ids.read().unwrap_or_else(PoisonError::into_inner).get(&volume).copied()
    }

    /// Sets in which store each volume lies, in reach or not.
    pub(crate) fn set_ids(&self, ids: HashMap<Uuid, Uuid>) {
        *self.ids.write().unwrap_or_else(PoisonError::into_inner) = ids;
    }

    /// The stores in which this clone may be registered as a reader, beside those of its volumes. They are not open.
    pub(crate) fn of_readers(&self) -> Vec<AssignedStore> {
        self.of_readers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets these.
    pub(crate) fn set_of_readers(&self, stores: Vec<AssignedStore>) {
        *self.of_readers.write().unwrap_or_else(PoisonError::into_inner) = stores;
    }

    /// Whose volumes these are; none before the admin server has said it.
    pub(crate) fn owner(&self) -> Option<Registered> {
        self.owner.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets that.
    pub(crate) fn set_owner(&self, registered: &Registered) {
        *self.owner.write().unwrap_or_else(PoisonError::into_inner) = Some(registered.clone());
    }

    /// Whether none is in reach.
    pub fn is_empty(&self) -> bool {
        self.by_volume.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Sets all stores.
    pub fn set(&self, stores: HashMap<Uuid, Arc<dyn StorePort>>) {
        *self.by_volume.write().unwrap_or_else(PoisonError::into_inner) = stores;
    }
}

/// Handles objects on the runtime.
pub struct Objects {
    /// The stores.
    pub stores: Stores,
    /// Where the work is done.
    pub runtime: Handle,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl ObjectHandler for Objects {
    fn handle(&self, job: ObjectJob, outbox: Arc<Outbox>) {
        let store = self.stores.of(job.volume);
        let metrics = self.metrics.clone();
        self.runtime.spawn(async move {
            let id = job.id;
            let answer = match (store, job.action) {
                (store, ObjectAction::SignPuts(names)) => {
                    let requests = match store {
                        Some(store) => sign_puts(&*store, &names).await,
                        None => Vec::new(),
                    };
                    metrics.signed(true, requests.len());
                    ToClient::SignedPuts { id, result: Ok(requests) }
                }
                (None, _) => ToClient::Object { id, result: Err(Errno::EAGAIN) },
                (Some(store), ObjectAction::Put(bytes)) => {
                    let len = bytes.len();
                    let result = store.put(&job.name, bytes).await.map(|()| Bytes::new());
                    metrics.object(true, len, result.is_ok());
                    ToClient::Object { id, result: result.map_err(|error| told(&error)) }
                }
                (Some(store), ObjectAction::Get { offset, len, .. }) => {
                    let result = store.get(&job.name, offset, len).await;
                    metrics.object(false, len as usize, result.is_ok());
                    ToClient::Object { id, result: result.map_err(|error| told(&error)) }
                }
            };
            push(&outbox, &answer);
        });
    }

    fn send_signed(&self, answer: SignedAnswer, outbox: Arc<Outbox>) {
        let store = self.stores.of(answer.sign.volume);
        let metrics = self.metrics.clone();
        self.runtime.spawn(async move {
            if let Some(store) = store {
                let gets = sign_gets(&*store, answer.sign, answer.stored).await;
                metrics.signed(false, gets.len());
                if !gets.is_empty() {
                    push(&outbox, &ToClient::Signed { gets });
                }
            }
            push(&outbox, &answer.answer);
        });
    }

    fn delete(&self, job: DeleteJob, tell: mpsc::WeakSender<Input>) {
        let store = self.stores.of(job.volume);
        self.runtime.spawn(async move {
            let done = delete_all(store, job).await;
            if let Some(queue) = tell.upgrade() {
                drop(queue.send(Input::Events(vec![Event::Deleted(Box::new(done))])).await);
            }
        });
    }

    fn pack(&self, job: PackJob, view: Arc<dyn View>, tell: mpsc::WeakSender<Input>) {
        let store = self.stores.of(job.volume);
        self.runtime.spawn(async move {
            let result = pack(store, &job, view).await;
            if let Some(queue) = tell.upgrade() {
                drop(queue.send(Input::Events(vec![Event::Packed(Box::new(job), result)])).await);
            }
        });
    }
}

async fn pack(
    store: Option<Arc<dyn StorePort>>,
    job: &PackJob,
    view: Arc<dyn View>,
) -> Result<Packed, String> {
    let store = store.ok_or("its block store is not in reach")?;
    let (bytes, packed) = match &job.source {
        Source::Staged(from) => {
            let (building, from) = (job.clone(), from.clone());
            let built = off_thread(move || build_pack(&building, &from, view)).await;
            built.map_err(|error| error.to_string())??
        }
        Source::Objects(sources) => repack(&*store, job, sources, view).await?,
    };
    if packed.slices > 0 {
        let name = object_name(job.volume, job.object);
        store.put(&name, bytes).await.map_err(|error| error.to_string())?;
    }
    Ok(packed)
}

/// Puts what is needed of objects together. One that cannot be read, or not be taken, stays as it is; so does one of a source that
/// the store refuses, as one that is archived, while it answers otherwise.
async fn repack(
    store: &dyn StorePort,
    job: &PackJob,
    sources: &[PoorObject],
    view: Arc<dyn View>,
) -> Result<(Bytes, Packed), String> {
    let mut repacker = Repacker::new(job, view);
    for source in sources {
        let name = object_name(job.volume, source.id);
        // What a clone copies is no trouble of its own objects; the machine says what it could not copy.
        let is_own = source.id.incarnation == job.object.incarnation;
        let bytes = match store.whole(&name, OBJECT_LEN_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.trouble == Trouble::Unavailable => {
                answers(store).await.map_err(|error| error.to_string())?;
                if is_own {
                    return Err(error.to_string());
                }
                repacker.leave(source.id, &error.to_string());
                continue;
            }
            Err(error) => {
                repacker.leave(source.id, &error.to_string());
                if is_own {
                    tracing::error!(%error, "an object cannot be repacked");
                }
                continue;
            }
        };
        let source = source.clone();
        let adding = off_thread(move || {
            let added = repacker.add(&source, bytes);
            (repacker, added)
        });
        let added;
        (repacker, added) = adding.await.map_err(|error| error.to_string())?;
        if let (Err(reason), true) = (added, is_own) {
            tracing::info!(object = name, "not repacked: {reason}");
        }
    }
    Ok(repacker.finish())
}

fn push(outbox: &Outbox, answer: &ToClient) {
    if let Err(error) = outbox.push(answer) {
        tracing::error!(%error, "an answer could not be sent; the connection ends");
        outbox.cut();
    }
}

fn told(error: &StoreError) -> Errno {
    // That a store cannot be used is said once, not of each object.
    match is_outage(error) {
        true => tracing::debug!(%error, "an object could not be served"),
        false => tracing::error!(%error, "an object could not be served"),
    }
    error.wire_errno()
}

async fn sign_puts(store: &dyn ObjectPort, names: &[String]) -> Vec<SignedRequest> {
    let mut requests = Vec::with_capacity(names.len());
    for name in names {
        match store.sign(Action::Put, name, VALID).await {
            Some(request) => requests.push(request),
            None => break,
        }
    }
    requests
}

/// Requests for the first of what is `stored`: a reader begins there, and asks again for the rest.
async fn sign_gets(
    store: &dyn ObjectPort,
    sign: SignFor,
    mut stored: Vec<(ObjectId, u64, u32)>,
) -> Vec<SignedGet> {
    let mut told = HashSet::new();
    stored.retain(|(object, offset, _)| told.insert((*object, if sign.whole { 0 } else { *offset })));
    let mut gets = Vec::new();
    for (object, offset, len) in stored.into_iter().take(SIGNED_MAX as usize) {
        let (action, range) = match sign.whole {
            true => (Action::Get, None),
            false => (Action::GetRange(offset, len), Some((offset, len))),
        };
        match store.sign(action, &object_name(sign.volume, object), VALID).await {
            Some(request) => gets.push(SignedGet { object, range, request }),
            None => break,
        }
    }
    gets
}

/// Deletes objects, a few at once. A store that is not there, or fails, leaves the rest for later.
async fn delete_all(store: Option<Arc<dyn StorePort>>, job: DeleteJob) -> DeletedObjects {
    let DeleteJob { volume, objects: asked } = job;
    let Some(store) = store else {
        let failure = Some("its block store is not in reach".to_owned());
        return DeletedObjects { volume, asked, deleted: Vec::new(), failure };
    };
    let (mut deleted, mut failure) = (Vec::new(), None);
    let at_once = asked.len().div_ceil(DELETES_AT_ONCE_IN).max(1);
    let deletes = asked.clone().into_iter().map(move |id| {
        let store = store.clone();
        async move { (id, store.delete(&object_name(volume, id)).await) }
    });
    let mut deletes = futures::stream::iter(deletes).buffer_unordered(at_once);
    while let Some((id, result)) = deletes.next().await {
        match result {
            Ok(()) => deleted.push(id),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    DeletedObjects { volume, asked, deleted, failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_blocks::ListPage;
    use chronofs_core::{SessionId, VolumeIndex};
    use chronofs_engine::Engine;
    use chronofs_engine::memory::Memory;
    use futures::future::BoxFuture;

    /// A store that gives no object out, as if all were archived; or that is away.
    struct Refuses {
        away: bool,
    }

    fn refused<T>(name: &str) -> Result<T, StoreError> {
        Err(StoreError::unavailable(name, Errno::EIO, "it answers 403"))
    }

    impl ObjectPort for Refuses {
        fn put<'a>(&'a self, name: &'a str, _: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(async move { refused(name) })
        }
        fn get<'a>(&'a self, name: &'a str, _: u64, _: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
            Box::pin(async move {
                if self.away { refused(name) } else { Err(StoreError::missing(name, "there is none")) }
            })
        }
    }

    impl StorePort for Refuses {
        fn whole<'a>(&'a self, name: &'a str, _: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
            Box::pin(async move { refused(name) })
        }
        fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(async move { refused(name) })
        }
        fn list(&self, _: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>> {
            Box::pin(async move { refused("objects") })
        }
        fn put_note<'a>(&'a self, name: &'a str, _: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(async move { refused(name) })
        }
        fn remove_note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(async move { refused(name) })
        }
        fn notes<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>> {
            Box::pin(async move { refused(name) })
        }
    }

    /// Has objects of this incarnation put together for a clone of incarnation 1.
    async fn repacked(away: bool, incarnation: u16) -> Result<(Vec<u64>, bool), String> {
        let (id, volume) = (Uuid::from_u128(9), Uuid::from_u128(1));
        let store: Arc<dyn StorePort> = Arc::new(Refuses { away });
        let watches = Watches::default();
        watches.keep([(id, "a bucket".to_owned())].into_iter());
        let watched: Arc<dyn StorePort> = crate::watched::Watched::new(store, watches.of(id));
        let session = SessionId(1);
        let object =
            |n| PoorObject { id: ObjectId { incarnation, session, n }, size: 100, named: 100, rows: 1 };
        let sources: Vec<PoorObject> = (0..3).map(object).collect();
        let object = ObjectId { incarnation: 1, session: SessionId::SERVER, n: 0 };
        let source = Source::Objects(sources.clone());
        let job = PackJob { volume, index: VolumeIndex(1), object, source, bytes_max: 1 << 20 };
        let done = repack(&*watched, &job, &sources, Memory::default().view()).await;
        let is_away = watches.status()[0].outage.is_some();
        done.map(|(_, packed)| (packed.left.iter().map(|(id, _)| id.n).collect(), is_away))
    }

    #[tokio::test]
    async fn objects_of_the_source_that_are_refused_one_by_one_are_left_and_the_store_is_not_away() {
        assert_eq!(repacked(false, 0).await, Ok((vec![0, 1, 2], false)));
        // What is its own is tried again as a whole.
        repacked(false, 1).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_store_that_is_away_leaves_nothing_to_be_named() {
        assert!(repacked(true, 0).await.unwrap_err().contains("it answers 403"));
    }
}
