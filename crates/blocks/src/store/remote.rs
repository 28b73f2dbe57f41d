//! A block store in a bucket of S3, Google Cloud Storage, Azure or OCI.
//!
//! Names are never used twice, so nothing rests on what a store does with two puts of one name. Where the store
//! honestly refuses a name that is taken (its probe saw it), puts ask for that; elsewhere the name is looked up
//! first. Both find a put that worked although its answer got lost: the same bytes again are no error.

use super::client::{self, Client, Patience};
use crate::hedge::{Hedged, Hedges};
use crate::port::{ListPage, ObjectPort, StoreError, StorePort, Trouble};
use crate::signed::Action;
use bytes::Bytes;
use chronofs_core::store::{Credentials, StoreKind};
use chronofs_core::{Errno, SignedRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as Location;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{MARKER, OBJECTS};

/// How many requests are under way at once: more only wait at the store or in its network.
const REQUESTS_MAX: usize = 64;
/// Where [`crate::probe`] works, below the prefix.
pub(crate) const PROBE_FOLDER: &str = "chronofs-probe-";
/// What a server says is shown up to this length.
const SAID_MAX: usize = 600;

/// A block store in a bucket. Its debug form shows no secret.
pub struct RemoteStore {
    pub(crate) client: Client,
    pub(crate) kind: StoreKind,
    id: Uuid,
    credentials: Credentials,
    pub(crate) create_only: bool,
    permits: Semaphore,
    hedged: Arc<Hedged>,
    /// The marker was seen: this is the right bucket.
    seen: AtomicBool,
}

impl std::fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteStore({}, {})", self.id, self.kind)
    }
}

impl RemoteStore {
    /// The store `id` in the bucket of `kind`. Asks nothing of it yet. `create_only` is what its probe found.
    pub fn new(
        kind: StoreKind,
        id: Uuid,
        credentials: Credentials,
        create_only: bool,
        patience: Patience,
    ) -> Result<RemoteStore, StoreError> {
        let permits = Semaphore::new(REQUESTS_MAX);
        let checked = kind.check().and_then(|()| credentials.check(&kind));
        checked.map_err(|e| StoreError::unavailable(MARKER, Errno::EIO, e.to_string()))?;
        let hedged = Arc::default();
        let client = client::client(&kind, &credentials, patience, &hedged).map_err(|error| {
            let reason = hide(&credentials, format!("{kind} cannot be used: {}", explain(&error)));
            StoreError::unavailable(MARKER, Errno::EIO, reason)
        })?;
        let seen = AtomicBool::new(false);
        Ok(RemoteStore { client, kind, id, credentials, create_only, permits, hedged, seen })
    }

    /// The same store, its requests carried by others: simulations put a bucket of their own below it.
    pub fn through(&self, objects: Arc<dyn ObjectStore>, pages: Arc<dyn PaginatedListStore>) -> RemoteStore {
        RemoteStore {
            client: Client { objects, pages, signer: self.client.signer.clone() },
            kind: self.kind.clone(),
            id: self.id,
            credentials: self.credentials.clone(),
            create_only: self.create_only,
            permits: Semaphore::new(REQUESTS_MAX),
            hedged: Arc::default(),
            seen: AtomicBool::new(false),
        }
    }

    /// The store that the bucket of `kind` is, by its marker.
    pub async fn found_at(kind: StoreKind, credentials: Credentials) -> Result<RemoteStore, StoreError> {
        let unknown = Self::new(kind.clone(), Uuid::nil(), credentials.clone(), false, Patience::Asking)?;
        let id = unknown.marker().await?;
        Self::new(kind, id, credentials, false, Patience::Asking)
    }

    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The id of the store that the bucket is.
    async fn marker(&self) -> Result<Uuid, StoreError> {
        let read = async { self.client.objects.get(&self.at(MARKER)).await?.bytes().await };
        let text = match read.await {
            Ok(text) => text,
            Err(Error::NotFound { .. }) => {
                return Err(StoreError::missing(MARKER, format!("there is no {MARKER} in {}", self.kind)));
            }
            Err(error) => return Err(self.unavailable(MARKER, "it cannot be read", &error)),
        };
        let found = super::parse_marker(&text);
        found.map_err(|reason| StoreError::damaged(MARKER, format!("{}: {reason}", self.kind)))
    }

    /// Whether the bucket carries this store's marker. *Missing*: it carries none; *damaged*: another's.
    pub async fn check_marker(&self) -> Result<(), StoreError> {
        let found = self.marker().await?;
        if found != self.id {
            let reason = format!("{} belongs to the store {found}, not to {}", self.kind, self.id);
            let next_step = "name the place of this store, or an empty one";
            return Err(StoreError { next_step, ..StoreError::damaged(MARKER, reason) });
        }
        self.seen.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes an empty place this store's own. Doing it again is no error; another's place and one with objects but
    /// without a marker are refused.
    pub async fn claim(&self) -> Result<(), StoreError> {
        match self.check_marker().await {
            Err(error) if error.trouble == Trouble::Missing => {}
            checked => return checked,
        }
        if let Some(stranger) = self.first_stranger().await? {
            let reason = format!("{} is not empty (there is {stranger}) and carries no {MARKER}", self.kind);
            let next_step = "name an empty place: another bucket or prefix";
            return Err(StoreError { next_step, ..StoreError::damaged(MARKER, reason) });
        }
        let text = Bytes::from(super::marker_text(self.id));
        match self.put_at(MARKER, text.clone()).await {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) | Ok(()) => {}
            Err(error) => return Err(self.unavailable(MARKER, "it cannot be written", &error)),
        }
        // Of two that claim the place at once, the marker says who has it.
        self.check_marker().await
    }

    async fn first_stranger(&self) -> Result<Option<String>, StoreError> {
        let bucket = self.kind.bucket().map(|bucket| bucket.prefix.as_str()).unwrap_or_default();
        let prefix = if bucket.is_empty() { None } else { Some(format!("{bucket}/")) };
        let page = PaginatedListOptions { max_keys: Some(100), ..PaginatedListOptions::default() };
        let listed = self.client.pages.list_paginated(prefix.as_deref(), page).await;
        let listed =
            listed.map_err(|e| self.unavailable(MARKER, "what else is there cannot be listed", &e))?;
        let probes = self.at(PROBE_FOLDER);
        let mut names = listed.result.objects.iter().map(|object| object.location.as_ref());
        // What a probe that was killed has left is ours.
        Ok(names.find(|name| !name.starts_with(probes.as_ref())).map(str::to_owned))
    }

    /// The place of a name in the bucket.
    pub(crate) fn at(&self, name: &str) -> Location {
        match self.kind.bucket() {
            Some(bucket) if !bucket.prefix.is_empty() => Location::from(format!("{}/{name}", bucket.prefix)),
            _ => Location::from(name),
        }
    }

    async fn put_at(&self, name: &str, bytes: Bytes) -> object_store::Result<()> {
        let mode = if self.create_only { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        self.client.objects.put_opts(&self.at(name), PutPayload::from(bytes), options).await.map(drop)
    }

    /// A put in a bucket is whole or nothing, also over another.
    async fn replace_object(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        super::check_name(name)?;
        let _permit = self.permits.acquire().await;
        if !self.seen.load(Ordering::Relaxed) {
            self.marked(name, "nothing is replaced").await?;
        }
        let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
        let put = self.client.objects.put_opts(&self.at(name), PutPayload::from(bytes), options).await;
        put.map(drop).map_err(|error| self.unavailable(name, "it cannot be replaced", &error))
    }

    async fn put_object(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        super::check_name(name)?;
        self.put_named(name, bytes).await
    }

    pub(super) async fn put_named(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let _permit = self.permits.acquire().await;
        // Nothing is put into a bucket that may be another one.
        if !self.seen.load(Ordering::Relaxed) {
            self.marked(name, "nothing is put").await?;
        }
        if !self.create_only {
            match self.client.objects.head(&self.at(name)).await {
                Ok(_) => return self.compare(name, bytes).await,
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(self.unavailable(name, "it cannot be looked up", &error)),
            }
        }
        match self.put_at(name, bytes.clone()).await {
            Ok(()) => Ok(()),
            // S3 also says so (409) when another put of the name is under way: then there is nothing to compare, and
            // the put is tried again.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => self.compare(name, bytes).await,
            Err(error) => Err(self.unavailable(name, "it cannot be written", &error)),
        }
    }

    /// A put that found the name taken: right if an earlier try of the same put got that far.
    async fn compare(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let read = async { self.client.objects.get(&self.at(name)).await?.bytes().await };
        let found = read.await.map_err(|e| self.unavailable(name, "it exists and cannot be compared", &e))?;
        if found == bytes {
            return Ok(());
        }
        let reason = format!(
            "it exists in {} with other bytes ({} long, not {})",
            self.kind,
            found.len(),
            bytes.len()
        );
        Err(StoreError::damaged(name, reason))
    }

    async fn get_range(&self, name: &str, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        super::check_name(name)?;
        let _permit = self.permits.acquire().await;
        let (at, end) = (self.at(name), offset.saturating_add(u64::from(len)));
        // That there is no such object, or no such range of it, is an answer too.
        let settles = |answer: &object_store::Result<Bytes>| match answer {
            Ok(_) | Err(Error::NotFound { .. }) => true,
            Err(error) => begins_behind_end(error),
        };
        match self.hedged.read(|| self.client.objects.get_range(&at, offset..end), settles).await {
            Ok(bytes) if bytes.len() == len as usize => Ok(bytes),
            Ok(_) => Err(self.too_short(name, end).await),
            Err(Error::NotFound { .. }) => Err(self.not_there(name).await),
            Err(error) if begins_behind_end(&error) => Err(self.too_short(name, end).await),
            Err(error) => Err(self.unavailable(name, "it cannot be read", &error)),
        }
    }

    async fn get_whole(&self, name: &str, max: u64) -> Result<Bytes, StoreError> {
        super::check_name(name)?;
        let _permit = self.permits.acquire().await;
        let read = async {
            let found = self.client.objects.get(&self.at(name)).await?;
            match found.meta.size {
                size if size > max => Ok(Err(super::too_long(name, size, max))),
                _ => found.bytes().await.map(Ok),
            }
        };
        match read.await {
            Ok(read) => read,
            Err(Error::NotFound { .. }) => Err(self.not_there(name).await),
            Err(error) => Err(self.unavailable(name, "it cannot be read", &error)),
        }
    }

    /// A bucket without the marker is another one: nothing is missing there.
    async fn not_there(&self, name: &str) -> StoreError {
        match self.check_marker().await {
            Ok(()) => StoreError::missing(name, format!("there is no such object in {}", self.kind)),
            Err(error) => {
                let reason = format!("it is not there, and {}", error.reason);
                StoreError::unavailable(name, Errno::EIO, reason)
            }
        }
    }

    async fn delete_object(&self, name: &str) -> Result<(), StoreError> {
        super::check_name(name)?;
        self.delete_named(name).await
    }

    pub(super) async fn delete_named(&self, name: &str) -> Result<(), StoreError> {
        let _permit = self.permits.acquire().await;
        if !self.seen.load(Ordering::Relaxed) {
            self.marked(name, "nothing is deleted").await?;
        }
        match self.client.objects.delete(&self.at(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.unavailable(name, "it cannot be deleted", &error)),
        }
    }

    async fn list_page(&self, from: Option<String>) -> Result<ListPage, StoreError> {
        let _permit = self.permits.acquire().await;
        self.marked(OBJECTS, "nothing is listed").await?;
        let prefix = format!("{}/", self.at(OBJECTS));
        let page = PaginatedListOptions { page_token: from, ..PaginatedListOptions::default() };
        let listed = self.client.pages.list_paginated(Some(&prefix), page).await;
        let listed = listed.map_err(|e| self.unavailable(OBJECTS, "they cannot be listed", &e))?;
        let below = prefix.len() - OBJECTS.len() - 1;
        let names = listed.result.objects.into_iter().map(|object| {
            let name = object.location.as_ref();
            (name.get(below..).unwrap_or(name).to_owned(), object.size)
        });
        Ok(ListPage { names: names.collect(), next: listed.page_token })
    }

    pub(super) async fn marked(&self, name: &str, what: &str) -> Result<(), StoreError> {
        let marked = self.check_marker().await;
        marked.map_err(|e| StoreError::unavailable(name, Errno::EIO, format!("{what}, and {}", e.reason)))
    }

    async fn stored_at(&self, name: &str) -> Result<Option<u64>, StoreError> {
        super::check_name(name)?;
        let _permit = self.permits.acquire().await;
        match self.client.objects.head(&self.at(name)).await {
            Ok(meta) => Ok(super::ns_of(&meta)),
            Err(Error::NotFound { .. }) => self.marked(name, "nothing is looked at").await.map(|()| None),
            Err(error) => Err(self.unavailable(name, "it cannot be looked at", &error)),
        }
    }

    async fn too_short(&self, name: &str, end: u64) -> StoreError {
        match self.client.objects.head(&self.at(name)).await {
            Ok(meta) if meta.size < end => StoreError::damaged(
                name,
                format!("it ends at byte {} and byte {end} was asked for", meta.size),
            ),
            Ok(_) => StoreError::unavailable(name, Errno::EIO, "fewer bytes were read than it has"),
            Err(error) => self.unavailable(name, "it cannot be read", &error),
        }
    }

    /// What a failed request says of an object. No secret is in it.
    pub(crate) fn unavailable(&self, name: &str, what: &str, error: &Error) -> StoreError {
        let reason = format!("{what} in {}: {}", self.kind, self.said(error));
        let next_step = match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                "check the credentials of the block store and what they may do (chronofs configure update block-store)"
            }
            _ => "check that the block store can be reached and works; it is tried again",
        };
        StoreError { next_step, ..StoreError::unavailable(name, Errno::EIO, reason) }
    }

    /// An error in one line, without secrets.
    pub(crate) fn said(&self, error: &Error) -> String {
        hide(&self.credentials, explain(error))
    }
}

impl ObjectPort for RemoteStore {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.put_object(name, bytes).boxed()
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.get_range(name, offset, len).boxed()
    }

    fn hedges(&self) -> Hedges {
        self.hedged.figures()
    }

    fn sign<'a>(
        &'a self,
        action: Action,
        name: &'a str,
        valid: Duration,
    ) -> BoxFuture<'a, Option<SignedRequest>> {
        let sign = async move {
            // Nothing is put into a bucket that may be another one.
            if action == Action::Put && !self.seen.load(Ordering::Relaxed) {
                self.check_marker().await?;
            }
            RemoteStore::sign(self, action, name, valid).await
        };
        sign.map(|signed| signed.map_err(|error| tracing::warn!("{error}")).ok()).boxed()
    }
}

impl StorePort for RemoteStore {
    fn whole<'a>(&'a self, name: &'a str, max: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.get_whole(name, max).boxed()
    }

    fn replace<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.replace_object(name, bytes).boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.delete_object(name).boxed()
    }

    fn list(&self, from: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>> {
        self.list_page(from).boxed()
    }

    fn stored_ns<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        self.stored_at(name).boxed()
    }

    fn put_note<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store_note(name, bytes).boxed()
    }

    fn remove_note<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.delete_note(name).boxed()
    }

    fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>> {
        self.read_notes(folder).boxed()
    }
}

/// Said by the store (416), or seen by the crate in an answer that says how long the object is. The crate has no
/// variants for it; if its words change, such a read ends as *unavailable* instead of *damaged*.
fn begins_behind_end(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("status code: 416") || text.contains("but object was only")
}

/// An error with its innermost cause.
pub(super) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause: &dyn StdError = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let innermost = cause.to_string();
    if !text.contains(&innermost) {
        text = format!("{text}: {innermost}");
    }
    text
}

/// What was said, in one line and without secrets. The crate keeps those out of its messages; whatever a server repeats
/// is taken out here, before anything is cut off: half of a secret would not be known as one.
pub(super) fn hide(credentials: &Credentials, text: String) -> String {
    let text = credentials.secrets().iter().fold(text, |text, secret| text.replace(secret.reveal(), "…"));
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(SAID_MAX) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::store::Secret;

    #[test]
    fn what_a_server_repeats_shows_no_part_of_a_secret() {
        let key = Credentials::AccountKey { key: Secret::new("hunter2 is  the\nkey") };
        for before in SAID_MAX - 25..SAID_MAX + 5 {
            let said = hide(&key, format!("{} hunter2 is  the\nkey, it says", "x".repeat(before)));
            assert!(!said.contains("hunt") && said.lines().count() == 1, "{said}");
            assert!(said.chars().count() <= SAID_MAX + 1);
        }
    }
}
