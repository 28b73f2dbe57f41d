//! Objects for clients that cannot reach a volume's block store: stored and read on their behalf.

use super::outbox::Outbox;
use crate::executor::{Input, ObjectHandler};
use crate::machine::{DeleteJob, DeletedObjects, Event, ObjectAction, ObjectJob};
use bytes::Bytes;
use chronofs_blocks::{StorePort, object_name};
use chronofs_core::Errno;
use chronofs_wire::message::ToClient;
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How many objects of one job are deleted at once: what clients wait for goes first.
const DELETES_AT_ONCE: usize = 8;

/// The block stores of volumes that this server reaches.
#[derive(Clone, Default)]
pub struct Stores(Arc<RwLock<HashMap<Uuid, Arc<dyn StorePort>>>>);

impl Stores {
    /// The store of a volume.
    pub fn of(&self, volume: Uuid) -> Option<Arc<dyn StorePort>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned()
    }

    /// Each store with the volumes that lie in it.
    pub fn each(&self) -> Vec<(Arc<dyn StorePort>, Vec<Uuid>)> {
        let mut each: Vec<(Arc<dyn StorePort>, Vec<Uuid>)> = Vec::new();
        for (&volume, store) in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            match each.iter_mut().find(|(known, _)| Arc::ptr_eq(known, store)) {
                Some((_, volumes)) => volumes.push(volume),
                None => each.push((store.clone(), vec![volume])),
            }
        }
        each
    }

    /// Whether none is in reach.
    pub fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Sets all stores.
    pub fn set(&self, stores: HashMap<Uuid, Arc<dyn StorePort>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = stores;
    }
}

/// Handles objects on the runtime.
pub struct Objects {
    /// The stores.
    pub stores: Stores,
    /// Where the work is done.
    pub runtime: Handle,
}

impl ObjectHandler for Objects {
    fn handle(&self, job: ObjectJob, outbox: Arc<Outbox>) {
        let store = self.stores.of(job.volume);
        self.runtime.spawn(async move {
            let id = job.id;
            let result = match store {
                Some(store) => run(&*store, job).await,
                None => Err(Errno::EAGAIN),
            };
            if let Err(error) = outbox.push(&ToClient::Object { id, result }) {
                tracing::error!(%error, "an object could not be sent; the connection ends");
                outbox.cut();
            }
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
}

/// Deletes objects, a few at once. A store that is not there, or fails, leaves the rest for later.
async fn delete_all(store: Option<Arc<dyn StorePort>>, job: DeleteJob) -> DeletedObjects {
    let DeleteJob { volume, objects: asked } = job;
    let Some(store) = store else {
        let failure = Some("its block store is not in reach".to_owned());
        return DeletedObjects { volume, asked, deleted: Vec::new(), failure };
    };
    let (mut deleted, mut failure) = (Vec::new(), None);
    let deletes = asked.clone().into_iter().map(move |id| {
        let store = store.clone();
        async move { (id, store.delete(&object_name(volume, id)).await) }
    });
    let mut deletes = futures::stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE);
    while let Some((id, result)) = deletes.next().await {
        match result {
            Ok(()) => deleted.push(id),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    DeletedObjects { volume, asked, deleted, failure }
}

async fn run(store: &dyn StorePort, job: ObjectJob) -> Result<Bytes, Errno> {
    let result = match job.action {
        ObjectAction::Put(bytes) => store.put(&job.name, bytes).await.map(|()| Bytes::new()),
        ObjectAction::Get { offset, len } => store.get(&job.name, offset, len).await,
    };
    result.map_err(|error| {
        tracing::error!(%error, "an object could not be served");
        error.wire_errno()
    })
}
