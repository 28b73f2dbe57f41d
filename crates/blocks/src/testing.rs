//! Helpers of this crate's tests.

use chronofs_core::{ObjectId, SessionId, SliceId};

/// How many cases a property test runs: `CHRONOFS_CASES`, else `default`.
pub(crate) fn cases(default: u32) -> u32 {
    std::env::var("CHRONOFS_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

pub(crate) fn object_id(n: u64) -> ObjectId {
    ObjectId { incarnation: 1, session: SessionId(7), n }
}

pub(crate) fn slice_id(n: u64, index: u32) -> SliceId {
    SliceId { object: object_id(n), index }
}
