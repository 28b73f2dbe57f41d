//! Notes in a folder and in a bucket: pins, readers, records of snapshots. Whoever looks for them is to find all of them or
//! an error: the marker is looked at before and after, and nothing is left out.

use super::{BlockStore, MARKER, RemoteStore, blocking, list_below, sync_folder};
use crate::note::{NOTE_BYTES_MAX, NOTES_MAX, check_note};
use crate::port::{StoreError, Trouble};
use bytes::Bytes;
use chronofs_core::Errno;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::list::PaginatedListOptions;
use object_store::path::Path as Location;
use std::io;

/// How many notes of a bucket are read at once: there may be thousands, each a request.
const READS_AT_ONCE: usize = 16;

/// Names of notes, with what lies there.
pub(crate) type Found = Vec<(String, Bytes)>;

fn too_many(folder: &str) -> StoreError {
    let reason = format!("there are more than {NOTES_MAX} of them");
    let next_step = "remove those that nobody needs; nothing is deleted until then";
    StoreError { next_step, ..StoreError::unavailable(folder, Errno::EIO, reason) }
}

/// A note that was listed and is not read: it may have been removed meanwhile, and may as well be hidden.
fn unread(error: StoreError) -> StoreError {
    StoreError { trouble: Trouble::Unavailable, ..error }
}

impl BlockStore {
    pub(super) async fn store_note(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        check_note(name)?;
        self.put_named(name, Location::from(name), bytes).await
    }

    pub(super) async fn delete_note(&self, name: &str) -> Result<(), StoreError> {
        check_note(name)?;
        self.delete_named(name).await?;
        // Synced also where it was gone already: an earlier try may have been cut off before that. One that a power cut
        // brings back would be obeyed for ever, for nobody removes it again.
        let path = self.folder.join(name);
        let synced = blocking(move || match path.parent().map_or(Ok(()), sync_folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        });
        synced.await.map_err(|error| self.unavailable(name, "that it is gone cannot be synced", &error))?;
        // What is not there where another disk is mounted may be there yet.
        self.check_marker(name).await
    }

    pub(super) async fn read_notes(&self, folder: &str) -> Result<Found, StoreError> {
        self.check_marker(folder).await?;
        let (root, below) = (self.folder.clone(), folder.to_owned());
        let reading = blocking(move || {
            let (mut names, mut found) = (Vec::new(), Vec::new());
            list_below(&root, &below, &mut names)?;
            names.sort_unstable();
            names.dedup_by(|(name, _), (before, _)| name == before);
            for (name, _) in names {
                let bytes = match std::fs::read(root.join(&name)) {
                    // Removed meanwhile, or what a put leaves that was killed: it was never acknowledged.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    bytes => bytes?,
                };
                if bytes.len() > NOTE_BYTES_MAX {
                    return Err(io::Error::other(format!("{name} has {} bytes", bytes.len())));
                }
                found.push((name, bytes.into()));
            }
            Ok(found)
        });
        let found: Found =
            reading.await.map_err(|error| self.unavailable(folder, "they cannot be read", &error))?;
        self.check_marker(folder).await?;
        if found.len() > NOTES_MAX { Err(too_many(folder)) } else { Ok(found) }
    }
}

impl RemoteStore {
    pub(super) async fn store_note(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        check_note(name)?;
        self.put_named(name, bytes).await
    }

    pub(super) async fn delete_note(&self, name: &str) -> Result<(), StoreError> {
        check_note(name)?;
        self.delete_named(name).await
    }

    pub(super) async fn read_notes(&self, folder: &str) -> Result<Found, StoreError> {
        self.marked(folder, &format!("{folder} are not looked for")).await?;
        let prefix = format!("{}/", self.at(folder));
        let below = prefix.len() - folder.len() - 1;
        let (mut names, mut from) = (Vec::new(), None);
        loop {
            let page = PaginatedListOptions { page_token: from, ..PaginatedListOptions::default() };
            let listed = self.client.pages.list_paginated(Some(&prefix), page).await;
            let listed = listed.map_err(|e| self.unavailable(folder, "they cannot be listed", &e))?;
            for object in listed.result.objects {
                let name = object.location.as_ref();
                names.push((name.get(below..).unwrap_or(name).to_owned(), object.size));
            }
            if names.len() > NOTES_MAX {
                return Err(too_many(folder));
            }
            match listed.page_token {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        let reading = names.into_iter().map(|(name, size)| self.read_note(name, size));
        let found: Found = stream::iter(reading).buffered(READS_AT_ONCE).try_collect().await?;
        self.marked(MARKER, &format!("what was found among the {folder} does not count")).await?;
        Ok(found)
    }

    async fn read_note(&self, name: String, size: u64) -> Result<(String, Bytes), StoreError> {
        if size > NOTE_BYTES_MAX as u64 {
            return Err(StoreError::damaged(&name, format!("it has {size} bytes, more than any note")));
        }
        let read = async { self.client.objects.get(&self.at(&name)).await?.bytes().await };
        let bytes =
            read.await.map_err(|error| unread(self.unavailable(&name, "it cannot be read", &error)))?;
        Ok((name, bytes))
    }
}
