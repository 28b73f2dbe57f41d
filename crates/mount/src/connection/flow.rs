//! How much may be under way between a mount and its server. What has no room waits in line, and with it the program
//! that asked; nothing fails for want of room.
//!
//! Each limit is a threshold: the request that reaches it still goes, so that one of any size does. What is held is
//! therefore the limit and one frame at the most.

use chronofs_core::ops::{REPLY_BYTES_MAX, Request};
use chronofs_wire::message::REPLIES_KEPT_MAX;

/// Ids from the oldest call without an answer to the newest. A server keeps an answer until it hears that every call
/// before it was answered too, so one slow read may hold up that many and no more.
pub(super) const IDS_MAX: u64 = REPLIES_KEPT_MAX as u64 / 2;
/// Bytes of replies that may come at once.
pub(super) const EXPECTED_BYTES_MAX: usize = 64 << 20;
/// Bytes of objects on their way through the server, in both directions.
pub(super) const TRANSFER_BYTES_MAX: usize = 64 << 20;
/// Bytes of encoded frames that wait for the network.
pub(super) const OUT_BYTES_MAX: usize = 1 << 20;

/// What the calls without an answer take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Load {
    /// Bytes of mutations.
    pub(super) unanswered: usize,
    /// Bytes of replies.
    pub(super) expected: usize,
}

impl Load {
    pub(super) fn add(&mut self, request: &Request) {
        self.expected += expected(request);
        if request.mutates() {
            self.unanswered += request.weight();
        }
    }

    pub(super) fn remove(&mut self, request: &Request) {
        self.expected -= expected(request);
        if request.mutates() {
            self.unanswered -= request.weight();
        }
    }
}

/// About the most bytes that the reply to `request` takes.
fn expected(request: &Request) -> usize {
    const SMALL: usize = 1 << 10;
    const OPENED: usize = 256 << 10;
    const ENTRY: usize = 512;
    match request {
        Request::Slices { .. } | Request::Staged { .. } => REPLY_BYTES_MAX,
        Request::Open { read: true, .. } => OPENED,
        Request::Create { open: true, exclusive: false, .. } => OPENED,
        Request::ReadDir { limit, .. } => (*limit as usize).saturating_mul(ENTRY).min(REPLY_BYTES_MAX),
        Request::GetXattr { .. } | Request::ListXattr { .. } => 64 << 10,
        _ => SMALL,
    }
}
