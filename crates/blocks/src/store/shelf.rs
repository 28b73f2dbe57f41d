//! Plain objects in a bucket, under names that somebody else gives: backups keep theirs this way. Unlike those of volumes they
//! may be replaced. Nothing here looks for the marker of a block store.

use super::client::{self, Client, Patience};
use super::remote::{explain, hide};
use bytes::Bytes;
use chronofs_core::store::{Credentials, StoreKind};
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Location;
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module. Its debug form shows no secret.
pub struct Shelf {
    client: Client,
    kind: StoreKind,
    credentials: Credentials,
    /// All names lie below this.
    folder: String,
    /// The store was seen to refuse a name that is taken.
    create_only: bool,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shelf({})", self.shown())
    }
}

impl Shelf {
    /// The objects below `folder` of the bucket of `kind`. Asks nothing of it yet. Errors are sentences without secrets.
    pub fn new(
        kind: StoreKind,
        credentials: Credentials,
        folder: &str,
        create_only: bool,
    ) -> Result<Shelf, String> {
        kind.check().and_then(|()| credentials.check(&kind)).map_err(|error| error.to_string())?;
        let made = client::client(&kind, &credentials, Patience::Serving, &Arc::default());
        let client = made.map_err(|error| hide(&credentials, explain(&error)))?;
        let prefix = kind.bucket().map(|bucket| bucket.prefix.as_str()).unwrap_or_default();
        let parts = [prefix, folder].into_iter().filter(|part| !part.is_empty());
        let folder = parts.collect::<Vec<_>>().join("/");
        Ok(Shelf { client, kind, credentials, folder, create_only })
    }

    /// Where it is, for people.
    pub fn shown(&self) -> String {
        format!("{}, below {}", self.kind, self.folder)
    }

    fn at(&self, name: &str) -> Location {
        Location::from(format!("{}/{name}", self.folder))
    }

    fn said(&self, what: &str, name: &str, error: &Error) -> String {
        format!("cannot {what} {name}: {}", hide(&self.credentials, explain(error)))
    }

    /// An object's bytes; none if there is no such object.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, String> {
        let read = async { self.client.objects.get(&self.at(name)).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.said("read", name, &error)),
        }
    }

    /// Stores an object, in the place of one of that name.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), String> {
        let put = self.client.objects.put(&self.at(name), PutPayload::from(bytes)).await;
        put.map(drop).map_err(|error| self.said("write", name, &error))
    }

    /// Stores an object if there is none of that name; says whether it did. Where the store does not refuse names that are
    /// taken, it is looked up first, which is right unless two do it at once.
    pub async fn put_new(&self, name: &str, bytes: Bytes) -> Result<bool, String> {
        if !self.create_only {
            match self.client.objects.head(&self.at(name)).await {
                Ok(_) => return Ok(false),
                Err(Error::NotFound { .. }) => return self.put(name, bytes).await.map(|()| true),
                Err(error) => return Err(self.said("look up", name, &error)),
            }
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put =
            self.client.objects.put_opts(&self.at(name), PutPayload::from(bytes.clone()), options).await;
        match put {
            Ok(_) => Ok(true),
            // Perhaps an earlier try of the same put got that far.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Ok(self.get(name).await?.is_some_and(|found| found == bytes))
            }
            Err(error) => Err(self.said("write", name, &error)),
        }
    }

    /// Removes an object. One that is not there is no error.
    pub async fn remove(&self, name: &str) -> Result<(), String> {
        match self.client.objects.delete(&self.at(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.said("delete", name, &error)),
        }
    }

    /// The objects below `below/`, or all if it is empty, with their sizes.
    pub async fn list(&self, below: &str) -> Result<BTreeMap<String, u64>, String> {
        let root = format!("{}/", self.folder);
        let prefix = if below.is_empty() { root.clone() } else { format!("{root}{below}/") };
        let mut found = BTreeMap::new();
        let mut page_token = None;
        loop {
            let page = PaginatedListOptions { page_token, ..PaginatedListOptions::default() };
            let listed = self.client.pages.list_paginated(Some(&prefix), page).await;
            let listed = listed.map_err(|error| self.said("list", below, &error))?;
            found.extend(listed.result.objects.into_iter().filter_map(|object| {
                Some((object.location.as_ref().strip_prefix(&root)?.to_owned(), object.size))
            }));
            page_token = listed.page_token;
            if page_token.is_none() {
                return Ok(found);
            }
        }
    }
}
