//! Where backups lie: named objects in a folder or in a bucket. What an object is, nobody here knows.

use crate::bucket::Bucket;
use crate::error::Error;
use crate::folder::Folder;
use chronofs_core::store::{Credentials, StoreKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Named objects. Each call blocks; none may be made from a thread of an asynchronous runtime.
pub trait Place: Send + Sync {
    /// What it is called in messages.
    fn shown(&self) -> String;

    /// An object's bytes; none if there is no such object.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Stores an object, whole or not at all, in the place of one of that name. It is there to stay when this returns.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Stores an object if there is none of that name; says whether it did.
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool, Error>;

    /// Whether of two that store an object of one name at the same moment, if there is none, only one is told that it did.
    fn decides(&self) -> bool {
        true
    }

    /// Removes an object. One that is not there is no error.
    fn remove(&self, name: &str) -> Result<(), Error>;

    /// The objects below `folder/` with their sizes, all of them.
    fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, Error>;

    /// Whether nothing at all lies here.
    fn is_empty(&self) -> Result<bool, Error>;
}

/// Where a place is, and what opens it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Where {
    /// The folder, or the bucket.
    pub kind: StoreKind,
    /// What opens a bucket.
    pub credentials: Credentials,
    /// Below what in the bucket.
    pub below: String,
    /// The bucket was seen to refuse a name that is taken.
    pub create_only: bool,
}

impl Where {
    /// Below what backups lie in a bucket, if nothing else is said.
    pub const BELOW: &str = "chronofs-backups";

    /// A folder, by its absolute path.
    #[must_use]
    pub fn folder(path: &str) -> Where {
        let kind = StoreKind::Local { path: path.to_owned() };
        Where { kind, credentials: Credentials::Ambient, below: String::new(), create_only: false }
    }

    /// Reads `store:NAME` or `store:NAME/BELOW`.
    #[must_use]
    pub fn in_store(dest: &str) -> Option<(&str, &str)> {
        let rest = dest.strip_prefix("store:")?;
        let (name, below) = rest.split_once('/').unwrap_or((rest, Where::BELOW));
        Some((name, if below.is_empty() { Where::BELOW } else { below.trim_matches('/') }))
    }

    /// Opens it. Of a folder it is looked whether it is there; a bucket is asked nothing yet.
    pub fn open(&self) -> Result<Box<dyn Place>, Error> {
        match &self.kind {
            StoreKind::Local { path } => Ok(Box::new(Folder::open(Path::new(path))?)),
            kind => Ok(Box::new(Bucket::open(kind, &self.credentials, &self.below, self.create_only)?)),
        }
    }
}
