//! Rows in front of the store's point reads, absent ones too.
//!
//! An entry says what the newest state holds for a key, and from which group on. Three rules keep views right:
//! - a view of group `n` uses an entry only if it holds since `n` or earlier: had the row changed later, the entry
//!   would have been replaced and would say so;
//! - a writer announces its group before it touches entries, and touches those of all its keys before a view of it
//!   can be had;
//! - a reader puts in what it read only through a placeholder that it took before it saw that no group after its
//!   view had been announced; a writer that comes in between destroys the placeholder.

use crate::{Change, Commit};
use bytes::Bytes;
use quick_cache::sync::{Cache, GuardResult};
use quick_cache::{DefaultHashBuilder, Weighter};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Larger values are not kept.
const VALUE_BYTES_MAX: usize = 4096;
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: u64 = 96;

#[derive(Clone)]
struct Entry {
    value: Option<Bytes>,
    /// The group since which it is known to hold.
    since: u64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Vec<u8>, Entry> for ByBytes {
    fn weight(&self, key: &Vec<u8>, entry: &Entry) -> u64 {
        (key.len() + entry.value.as_ref().map_or(0, Bytes::len)) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// The cache. Groups are numbered from 1 in the order of their application.
pub(crate) struct RowCache {
    rows: Option<Cache<Vec<u8>, Entry, ByBytes>>,
    announced: AtomicU64,
}

impl RowCache {
    /// A cache of at most `capacity_bytes`; none at all if that is 0.
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        let rows = (capacity_bytes > 0).then(|| {
            let items = usize::try_from(capacity_bytes / 200).unwrap_or(usize::MAX).max(16);
            Cache::with(items, capacity_bytes, ByBytes, DefaultHashBuilder::default(), Default::default())
        });
        RowCache { rows, announced: AtomicU64::new(0) }
    }

    /// What group `group` changes. To be called before a view of it can be had.
    pub(crate) fn apply(&self, group: u64, commits: &[Commit]) {
        self.announced.store(group, Ordering::SeqCst);
        let Some(rows) = &self.rows else { return };
        for change in commits.iter().flat_map(|commit| &commit.batch.0) {
            let key = change.key();
            let value = match change {
                Change::Put(_, value) if value.len() > VALUE_BYTES_MAX => None,
                Change::Put(_, value) => Some(Some(value)),
                Change::Delete(_) => Some(None),
            };
            if let (Some(value), true) = (value, rows.contains_key(&key[..])) {
                // Copied, because a small slice would keep the whole message alive that it came in.
                let value = value.map(|value| Bytes::copy_from_slice(value));
                let entry = Entry { value, since: group };
                if rows.replace(key.to_vec(), entry, true).is_ok() {
                    continue;
                }
            }
            // Also takes away the placeholder of a reader that still looks at the state before.
            rows.remove(&key[..]);
        }
    }

    /// The value of `key` in the view of group `group`, read by `load` where the cache cannot tell.
    pub(crate) fn get<E>(
        &self,
        group: u64,
        key: &[u8],
        load: impl Fn() -> Result<Option<Bytes>, E>,
    ) -> Result<Option<Bytes>, E> {
        let Some(rows) = &self.rows else { return load() };
        match rows.get_value_or_guard(key, Some(Duration::ZERO)) {
            GuardResult::Value(entry) if entry.since <= group => Ok(entry.value),
            GuardResult::Guard(guard) if self.announced.load(Ordering::SeqCst) == group => {
                let value = load()?;
                if value.as_ref().is_none_or(|value| value.len() <= VALUE_BYTES_MAX) {
                    // Refused if a writer came in between, which is as it should be.
                    let _ = guard.insert(Entry { value: value.clone(), since: group });
                }
                Ok(value)
            }
            _ => load(),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.rows.as_ref().map_or(0, Cache::weight)
    }
}
