//! Objects for clients that cannot reach a volume's block store: stored and read on their behalf.

use super::outbox::Outbox;
use crate::executor::ObjectHandler;
use crate::machine::{ObjectAction, ObjectJob};
use bytes::Bytes;
use chronofs_blocks::ObjectPort;
use chronofs_core::Errno;
use chronofs_wire::message::ToClient;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::runtime::Handle;
use uuid::Uuid;

/// The block stores of volumes that this server reaches.
#[derive(Clone, Default)]
pub struct Stores(Arc<RwLock<HashMap<Uuid, Arc<dyn ObjectPort>>>>);

impl Stores {
    /// The store of a volume.
    pub fn of(&self, volume: Uuid) -> Option<Arc<dyn ObjectPort>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned()
    }

    /// Whether none is in reach.
    pub fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Sets all stores.
    pub fn set(&self, stores: HashMap<Uuid, Arc<dyn ObjectPort>>) {
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
}

async fn run(store: &dyn ObjectPort, job: ObjectJob) -> Result<Bytes, Errno> {
    let result = match job.action {
        ObjectAction::Put(bytes) => store.put(&job.name, bytes).await.map(|()| Bytes::new()),
        ObjectAction::Get { offset, len, .. } => store.get(&job.name, offset, len).await,
    };
    result.map_err(|error| {
        tracing::error!(%error, "an object could not be served");
        error.wire_errno()
    })
}
