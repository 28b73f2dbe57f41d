//! What the tests of the engines share.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(dead_code, reason = "each test file uses a part")]

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::{Batch, Change, Commit, Reads};

pub(crate) fn put(key: &str, value: &str) -> Change {
    Change::Put(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()))
}

pub(crate) fn delete(key: &str) -> Change {
    Change::Delete(Bytes::copy_from_slice(key.as_bytes()))
}

pub(crate) fn commit(version: u64, changes: impl IntoIterator<Item = Change>) -> Commit {
    let tag = Bytes::from(format!("tag {version}"));
    Commit { version: Version(version), tag, batch: Batch(changes.into_iter().collect()) }
}

/// Every pair of a view of text.
pub(crate) fn all<R: Reads + ?Sized>(view: &R) -> Vec<(String, String)> {
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let pairs = view.scan(b"", &[0xff; 8], usize::MAX).unwrap();
    pairs.into_iter().map(|(key, value)| (text(key), text(value))).collect()
}

/// How many cases a property test runs: `CHRONOFS_CASES`, or `default`.
pub(crate) fn cases(default: u64) -> u64 {
    std::env::var("CHRONOFS_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
