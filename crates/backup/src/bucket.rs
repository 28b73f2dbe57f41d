//! Backups in a bucket.

use crate::error::Error;
use crate::place::Place;
use chronofs_blocks::store::Shelf;
use chronofs_core::store::{Credentials, StoreKind};
use std::collections::BTreeMap;
use tokio::runtime::{Builder, Runtime};

/// See the module. Its requests run on a runtime of its own, those of several threads at once: who calls is no asynchronous task.
pub(crate) struct Bucket {
    shelf: Shelf,
    /// It was seen to refuse a name that is taken.
    create_only: bool,
    /// There until this is dropped.
    runtime: Option<Runtime>,
}

impl Bucket {
    pub(crate) fn open(
        kind: &StoreKind,
        credentials: &Credentials,
        folder: &str,
        create_only: bool,
    ) -> Result<Bucket, Error> {
        let bad = |why: String| Error::Place { place: kind.to_string(), why };
        let shelf = Shelf::new(kind.clone(), credentials.clone(), folder, create_only).map_err(bad)?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| bad(error.to_string()))?;
        Ok(Bucket { shelf, create_only, runtime: Some(runtime) })
    }

    fn run<T>(&self, task: impl Future<Output = Result<T, String>>) -> Result<T, Error> {
        let done = self.runtime.as_ref().map(|runtime| runtime.block_on(task));
        let done = done.unwrap_or_else(|| Err("it is closed".to_owned()));
        done.map_err(|why| Error::Place { place: self.shelf.shown(), why })
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // A task may be what lets it go last, and must not wait for threads.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Place for Bucket {
    fn shown(&self) -> String {
        self.shelf.shown()
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.run(self.shelf.get(name))?.map(|bytes| bytes.to_vec()))
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.run(self.shelf.put(name, bytes.to_vec().into()))
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        self.run(self.shelf.put_new(name, bytes.to_vec().into()))
    }

    fn decides(&self) -> bool {
        self.create_only
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.run(self.shelf.remove(name))
    }

    fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, Error> {
        self.run(self.shelf.list(folder))
    }

    fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.run(self.shelf.list(""))?.is_empty())
    }
}
