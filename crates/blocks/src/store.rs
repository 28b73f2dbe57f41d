//! Block stores: in a folder ([`BlockStore`]) or in a bucket ([`RemoteStore`]).
//!
//! Both carry a marker, [`MARKER`], with the store's id, so that an empty mount point, another store's folder or
//! the wrong bucket is never taken for this one.
//!
//! In a folder objects are files that are written once, synced, and never replaced. The crate `object_store` does the
//! writing: a temporary name, sync of the file, a hard link that fails if the name is taken, sync of the folder.

use crate::port::{ListPage, ObjectPort, StoreError, StorePort};
use bytes::Bytes;
use chronofs_core::Errno;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::Deserialize;
use std::error::Error as StdError;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::sync::Semaphore;
use uuid::Uuid;

mod client;
mod notes;
mod remote;
mod shelf;

pub use client::Patience;
pub(crate) use remote::PROBE_FOLDER;
pub use remote::RemoteStore;
pub use shelf::Shelf;

/// The file in a store's folder, or the object in its bucket, that says whose it is.
pub const MARKER: &str = "chronofs-store.json";
const MARKER_FORMAT: u32 = 1;

/// How many puts and gets are under way at once: more only makes a disk seek.
const OPERATIONS_MAX: usize = 32;

#[derive(Deserialize)]
struct Marker {
    format: u32,
    id: Uuid,
}

/// Why a folder cannot be used as a block store.
#[derive(Debug, Error)]
#[error("block store folder {}: {reason}; {next_step}", path.display())]
pub struct FolderError {
    /// The folder.
    pub path: PathBuf,
    /// What was tried and why it failed.
    pub reason: String,
    /// What to do about it.
    pub next_step: &'static str,
}

/// A block store in a folder that this process reaches itself.
#[derive(Debug)]
pub struct BlockStore {
    folder: PathBuf,
    id: Uuid,
    files: LocalFileSystem,
    permits: Semaphore,
}

impl BlockStore {
    /// Makes the folder `path` the store `id`, creating it if it is missing, and opens it. Doing it again is no
    /// error; a folder that belongs to another store is refused. Blocks the calling thread.
    pub fn create(path: &Path, id: Uuid) -> Result<BlockStore, FolderError> {
        let refuse = |reason: String, next_step| FolderError { path: path.to_owned(), reason, next_step };
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => {
                return Err(refuse("it is not a directory".to_owned(), "name another path"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).and_then(|()| path.parent().map_or(Ok(()), sync_folder)).map_err(
                    |e| refuse(format!("it cannot be created: {e}"), "create it or name another path"),
                )?
            }
            Err(error) => {
                return Err(refuse(
                    format!("it cannot be looked at: {error}"),
                    "check the path and its rights",
                ));
            }
        }
        if !path.join(MARKER).exists() {
            write_marker(path, id).map_err(|e| {
                refuse(
                    format!("it cannot be written to: {e}"),
                    "make it writable for this user or name another path",
                )
            })?;
        }
        Self::open(path, id)
    }

    /// The id of the store that the folder `path` is, by its marker. Blocks the calling thread.
    pub fn id_of(path: &Path) -> Result<Uuid, FolderError> {
        read_marker(path).map_err(|reason| FolderError {
            path: path.to_owned(),
            reason,
            next_step: "check that the right disk is mounted there and that this user may read it",
        })
    }

    /// Opens the folder `path`, which must carry the marker of the store `id`. Blocks the calling thread.
    pub fn open(path: &Path, id: Uuid) -> Result<BlockStore, FolderError> {
        let refuse = |reason: String, next_step| FolderError { path: path.to_owned(), reason, next_step };
        let found = Self::id_of(path)?;
        if found != id {
            return Err(refuse(
                format!("its {MARKER} names the store {found}, not {id}"),
                "name the folder of this store, or an empty one",
            ));
        }
        let files = LocalFileSystem::new_with_prefix(path)
            .map_err(|e| refuse(format!("it cannot be opened: {e}"), "check the path and its rights"))?
            .with_fsync(true);
        Ok(BlockStore { folder: path.to_owned(), id, files, permits: Semaphore::new(OPERATIONS_MAX) })
    }

    async fn put_object(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.put_named(name, location(name)?, bytes).await
    }

    /// Written beside it, synced, and renamed over it.
    async fn replace_object(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let location = location(name)?;
        let _permit = self.permits.acquire().await;
        self.check_marker(name).await?;
        let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
        let put = self.files.put_opts(&location, PutPayload::from(bytes), options).await;
        put.map_err(|error| self.unavailable(name, "it cannot be replaced", &error))?;
        self.check_put(name).await
    }

    async fn put_named(&self, name: &str, location: Location, bytes: Bytes) -> Result<(), StoreError> {
        let _permit = self.permits.acquire().await;
        self.check_marker(name).await?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.files.put_opts(&location, PutPayload::from(bytes.clone()), options).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => self.compare(name, &location, bytes).await?,
            Err(error) => return Err(self.unavailable(name, "it cannot be written", &error)),
        }
        self.check_put(name).await
    }

    /// An object that was written lies in the store: its folder may have gone meanwhile, and folders are made on the
    /// way to an object.
    async fn check_put(&self, name: &str) -> Result<(), StoreError> {
        self.check_marker(name).await?;
        let path = self.folder.join(name);
        blocking(move || fs::metadata(path))
            .await
            .map_err(|error| self.unavailable(name, "it was written and is not there", &error))?;
        self.check_marker(name).await
    }

    /// A put that found the name taken: right if an earlier try of the same put got that far.
    async fn compare(&self, name: &str, location: &Location, bytes: Bytes) -> Result<(), StoreError> {
        let read = async { self.files.get(location).await?.bytes().await };
        let found = read.await.map_err(|e| self.unavailable(name, "it exists and cannot be compared", &e))?;
        if found != bytes {
            let reason = format!("it exists with other bytes ({} long, not {})", found.len(), bytes.len());
            return Err(StoreError::damaged(name, reason));
        }
        // The earlier try may have been cut before its last sync.
        let path = self.folder.join(name);
        let synced = blocking(move || {
            File::open(&path)?.sync_all()?;
            path.parent().map_or(Ok(()), sync_folder)
        });
        synced.await.map_err(|error| self.unavailable(name, "it exists and cannot be synced", &error))
    }

    async fn get_range(&self, name: &str, offset: u64, len: u32) -> Result<Bytes, StoreError> {
        let location = location(name)?;
        let _permit = self.permits.acquire().await;
        let end = offset.saturating_add(u64::from(len));
        match self.files.get_range(&location, offset..end).await {
            Ok(bytes) if bytes.len() == len as usize => Ok(bytes),
            Ok(_) => Err(self.too_short(name, &location, end).await),
            Err(object_store::Error::NotFound { .. }) => {
                self.check_marker(name).await?;
                Err(StoreError::missing(name, format!("there is no such file in {}", self.folder.display())))
            }
            Err(error) => match errno_of(&error) {
                Some(Errno::EIO) => {
                    Err(StoreError::damaged(name, format!("the disk cannot read it: {error}")))
                }
                Some(_) => Err(self.unavailable(name, "it cannot be read", &error)),
                // Not the operating system's: the range does not lie within the file.
                None => Err(self.too_short(name, &location, end).await),
            },
        }
    }

    async fn get_whole(&self, name: &str, max: u64) -> Result<Bytes, StoreError> {
        let location = location(name)?;
        let _permit = self.permits.acquire().await;
        let read = async {
            let found = self.files.get(&location).await?;
            match found.meta.size {
                size if size > max => Ok(Err(too_long(name, size, max))),
                _ => found.bytes().await.map(Ok),
            }
        };
        match read.await {
            Ok(read) => read,
            Err(object_store::Error::NotFound { .. }) => {
                self.check_marker(name).await?;
                Err(StoreError::missing(name, format!("there is no such file in {}", self.folder.display())))
            }
            Err(error) if errno_of(&error) == Some(Errno::EIO) => {
                Err(StoreError::damaged(name, format!("the disk cannot read it: {error}")))
            }
            Err(error) => Err(self.unavailable(name, "it cannot be read", &error)),
        }
    }

    async fn delete_object(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        self.delete_named(name).await
    }

    /// Not synced: one that a power cut brings back is found in the listing, and goes then.
    async fn delete_named(&self, name: &str) -> Result<(), StoreError> {
        let _permit = self.permits.acquire().await;
        self.check_marker(name).await?;
        let path = self.folder.join(name);
        let deleted = blocking(move || {
            delete_file(&path)?;
            delete_pieces(&path)
        });
        deleted.await.map_err(|error| self.unavailable(name, "it cannot be deleted", &error))
    }

    /// A page is one of the 256 folders that objects are spread over.
    async fn list_folder(&self, from: Option<String>) -> Result<ListPage, StoreError> {
        let _permit = self.permits.acquire().await;
        let part = from.as_deref().map_or(Ok(0), |from| u8::from_str_radix(from, 16));
        let part = part.map_err(|_| StoreError::missing(OBJECTS, "no page of a listing begins there"))?;
        self.check_marker(OBJECTS).await?;
        let root = self.folder.clone();
        let listed = blocking(move || {
            let mut names = Vec::new();
            list_below(&root, &format!("{OBJECTS}/{part:02x}"), &mut names)?;
            Ok(names)
        });
        let names = listed.await.map_err(|error| self.unavailable(OBJECTS, "it cannot be listed", &error))?;
        Ok(ListPage { names, next: part.checked_add(1).map(|next| format!("{next:02x}")) })
    }

    async fn stored_at(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let location = location(name)?;
        let _permit = self.permits.acquire().await;
        match self.files.head(&location).await {
            Ok(meta) => Ok(ns_of(&meta)),
            Err(object_store::Error::NotFound { .. }) => self.check_marker(name).await.map(|()| None),
            Err(error) => Err(self.unavailable(name, "it cannot be looked at", &error)),
        }
    }

    async fn too_short(&self, name: &str, location: &Location, end: u64) -> StoreError {
        match self.files.head(location).await {
            Ok(meta) if meta.size < end => StoreError::damaged(
                name,
                format!("it ends at byte {} and byte {end} was asked for", meta.size),
            ),
            Ok(_) => StoreError::unavailable(name, Errno::EIO, "fewer bytes were read than it has"),
            Err(error) => self.unavailable(name, "it cannot be read", &error),
        }
    }

    /// A folder without its marker is an empty mount point, and one with another's is where another disk was mounted:
    /// nothing is missing there, and nothing may be put there.
    async fn check_marker(&self, name: &str) -> Result<(), StoreError> {
        let folder = self.folder.clone();
        let reason = match blocking(move || Ok(read_marker(&folder))).await {
            Ok(Ok(id)) if id == self.id => return Ok(()),
            Ok(Ok(other)) => format!("its {MARKER} names the store {other} now, not {}", self.id),
            Ok(Err(reason)) => reason,
            Err(error) => error.to_string(),
        };
        let reason = format!("{} is not the store's folder any more: {reason}", self.folder.display());
        Err(StoreError::unavailable(name, Errno::EIO, reason))
    }

    fn unavailable(&self, name: &str, what: &str, error: &(dyn StdError + 'static)) -> StoreError {
        let reason = format!("{what} in {}: {error}", self.folder.display());
        StoreError::unavailable(name, errno_of(error).unwrap_or(Errno::EIO), reason)
    }
}

impl ObjectPort for BlockStore {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        self.put_object(name, bytes).boxed()
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        self.get_range(name, offset, len).boxed()
    }
}

impl StorePort for BlockStore {
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
        self.list_folder(from).boxed()
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

/// When it was stored, as far as the store says something that can be.
fn ns_of(meta: &ObjectMeta) -> Option<u64> {
    meta.last_modified.timestamp_nanos_opt().and_then(|ns| u64::try_from(ns).ok())
}

fn location(name: &str) -> Result<Location, StoreError> {
    check_name(name)?;
    Ok(Location::from(name))
}

/// An object that is read whole is no longer than those that are stored; this one is not what was stored.
fn too_long(name: &str, size: u64, max: u64) -> StoreError {
    StoreError::damaged(name, format!("it has {size} bytes, and no object has more than {max}"))
}

/// Nothing but objects is put or got.
pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    match crate::name::parse_object_name(name) {
        Some(_) => Ok(()),
        None => Err(StoreError::missing(name, "that is not the name of an object")),
    }
}

/// Does what waits for the disk on a thread of its own: one that hangs must not hold up those that serve everybody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Where objects lie.
const OBJECTS: &str = "objects";

/// Between the name of an object and a number in the name under which `object_store` writes it first.
const PIECE: char = '#';
/// One more for each put of an object that is under way or was cut off; a client puts an object once at a time.
const PIECES: u32 = 4;

/// What puts of the object left that were cut off by a kill. Nobody puts what is to be deleted.
fn delete_pieces(object: &Path) -> io::Result<()> {
    (1..=PIECES).try_for_each(|n| {
        let mut piece = object.as_os_str().to_owned();
        piece.push(format!("{PIECE}{n}"));
        delete_file(Path::new(&piece))
    })
}

/// A file that is not there is deleted.
fn delete_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The object that a file is, or was to be when its put was cut off.
fn whole(file: &str) -> &str {
    match file.rsplit_once(PIECE) {
        Some((object, n)) if !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()) => object,
        _ => file,
    }
}

/// Every file below `folder` of `root`, with its length. A folder that is not there has none. What a put that was cut
/// off has left is listed under the name of its object, with which it goes.
fn list_below(root: &Path, folder: &str, names: &mut Vec<(String, u64)>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if entry.file_type()?.is_dir() {
            list_below(root, &format!("{folder}/{file}"), names)?;
            continue;
        }
        let name = format!("{folder}/{}", whole(&file));
        match entry.metadata() {
            Ok(metadata) => names.push((name, metadata.len())),
            // Deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The error number of the operating system at the bottom of an error, if there is one.
fn errno_of(error: &(dyn StdError + 'static)) -> Option<Errno> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(Errno(number));
        }
        next = error.source();
    }
    None
}

fn read_marker(folder: &Path) -> Result<Uuid, String> {
    parse_marker(&fs::read(folder.join(MARKER)).map_err(|e| format!("its {MARKER} cannot be read: {e}"))?)
}

fn parse_marker(text: &[u8]) -> Result<Uuid, String> {
    let marker: Marker =
        serde_json::from_slice(text).map_err(|e| format!("its {MARKER} is not a marker of chronofs: {e}"))?;
    if marker.format != MARKER_FORMAT {
        return Err(format!("its {MARKER} has format {}, this program knows {MARKER_FORMAT}", marker.format));
    }
    Ok(marker.id)
}

fn marker_text(id: Uuid) -> String {
    format!("{{\"format\":{MARKER_FORMAT},\"id\":\"{id}\"}}\n")
}

fn write_marker(folder: &Path, id: Uuid) -> io::Result<()> {
    let temporary = folder.join(format!("{MARKER}.{id}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(marker_text(id).as_bytes())?;
    file.sync_all()?;
    // A link, not a rename: of two that claim the folder at once, the second must see the first.
    let linked = fs::hard_link(&temporary, folder.join(MARKER));
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(folder),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    // The parent of a relative path of one part is the empty path.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}
