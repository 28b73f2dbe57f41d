//! That the metadata server was put back from a copy, as a mount hears it, and what the mount had then of files that are lost.
//!
//! Every restore has a commit of its own with which the volume goes on, and a welcome names it. Another one than before is another
//! restore, whatever numbers that drew.

use super::{Connection, Source};
use chronofs_core::{Ino, Version};
use chronofs_wire::admin::ParkedBytes;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// What is put into lost+found in this time after the first file goes into one record.
const TELL_AFTER: Duration = Duration::from_secs(10);
/// How often the record is sent, and how long between, until an admin server takes it.
const TELL_TRIES: u32 = 20;
const TELL_RETRY: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct PutBack(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// The commit with which the volume went on last.
    last: Version,
    /// How often that changed.
    times: u64,
    /// What is in lost+found since then.
    parked: Option<Parked>,
}

#[derive(Debug)]
struct Parked {
    path: String,
    files: BTreeSet<Ino>,
    bytes: u64,
}

impl PutBack {
    /// Of a volume that was mounted when it was last put back so.
    pub(super) fn new(last: Version) -> Self {
        PutBack(Mutex::new(Inner { last, times: 0, parked: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn times(&self) -> u64 {
        self.lock().times
    }

    /// Whether this welcome is the first since a restore.
    pub(super) fn heard(&self, restored: Version) -> bool {
        let mut inner = self.lock();
        let is_new = inner.last != restored;
        if is_new {
            (inner.last, inner.parked) = (restored, None);
            inner.times += 1;
        }
        is_new
    }

    /// Bytes of a lost file are kept. Whether they are the first since the restore.
    pub(super) fn parked(&self, ino: Ino, path: &str, bytes: u64) -> bool {
        let mut inner = self.lock();
        let is_first = inner.parked.is_none();
        let parked = inner.parked.get_or_insert_with(|| Parked {
            path: path.to_owned(),
            files: BTreeSet::new(),
            bytes: 0,
        });
        parked.files.insert(ino);
        parked.bytes += bytes;
        is_first
    }

    /// The record, unless there was another restore since.
    fn record(&self, times: u64, mount: &str) -> Option<ParkedBytes> {
        let inner = self.lock();
        let parked = inner.parked.as_ref().filter(|_| inner.times == times)?;
        let (mount, path) = (mount.to_owned(), parked.path.clone());
        Some(ParkedBytes { mount, path, files: parked.files.len() as u64, bytes: parked.bytes })
    }
}

/// Tells the admin server what is in lost+found after the restore of this number. That is no condition of anything.
pub(super) async fn tell(connection: Weak<Connection>, times: u64) {
    tokio::time::sleep(TELL_AFTER).await;
    for _ in 0..TELL_TRIES {
        let Some((record, admin)) = connection.upgrade().and_then(|connection| {
            let Source::Admin { admin, .. } = &connection.wanted.source else { return None };
            Some((connection.put_back.record(times, connection.client_name())?, admin.clone()))
        }) else {
            return;
        };
        match admin.parked(&record).await {
            Ok(()) => return,
            Err(error) => tracing::warn!("the audit log does not say yet what lies in lost+found: {error}"),
        }
        tokio::time::sleep(TELL_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_restore_is_known_by_its_commit_and_not_by_a_higher_number() {
        let put_back = PutBack::new(Version::ZERO);
        assert!(!put_back.heard(Version::ZERO));
        assert_eq!(put_back.times(), 0);
        for (restored, is_new, times) in [(50, true, 1), (50, false, 1), (40, true, 2), (50, true, 3)] {
            assert_eq!((put_back.heard(Version(restored)), put_back.times()), (is_new, times));
        }
    }

    #[test]
    fn all_that_is_parked_after_a_restore_is_one_record() {
        let put_back = PutBack::new(Version::ZERO);
        put_back.heard(Version(1));
        assert_eq!(put_back.record(1, "m"), None);
        assert!(put_back.parked(Ino(7), "lost+found/inode-7", 10));
        assert!(!put_back.parked(Ino(7), "lost+found/inode-7", 5));
        assert!(!put_back.parked(Ino(8), "lost+found/inode-8", 1));
        let record = put_back.record(1, "m").unwrap();
        assert_eq!((record.path.as_str(), record.files, record.bytes), ("lost+found/inode-7", 2, 16));
        put_back.heard(Version(2));
        assert_eq!((put_back.record(1, "m"), put_back.record(2, "m")), (None, None), "it is of another");
        assert!(put_back.parked(Ino(9), "lost+found/inode-9", 1));
    }
}
