//! What a commit's tag says, and replies short enough to stand in one.
//!
//! After a crash the tags since the last mark tell which calls were applied already, so that a call that is sent
//! again is answered and not applied twice.

use bytes::Bytes;
use chronofs_core::ops::Reply;
use chronofs_core::{Ino, SessionId, Version};
use serde::{Deserialize, Serialize};

/// The tag of a commit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Tag {
    /// The server's own.
    System,
    /// A call of a client.
    Call {
        /// Whose.
        session: SessionId,
        /// Which.
        id: u64,
        /// How it was answered.
        reply: Brief,
    },
}

/// A reply to a mutation without what can be read again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Brief {
    /// [`Reply::Done`].
    Done,
    /// [`Reply::Attr`] of this inode.
    Attr(Ino),
    /// [`Reply::Opened`] of this inode.
    Opened(Ino),
    /// [`Reply::Grant`].
    Grant {
        /// First counter.
        first: u64,
        /// The counter behind the last.
        end: u64,
    },
}

impl Brief {
    /// The short form of `reply`.
    pub fn of(reply: &Reply) -> Brief {
        match reply {
            Reply::Attr(attr) => Brief::Attr(attr.ino),
            Reply::Opened { attr, .. } => Brief::Opened(attr.ino),
            Reply::Grant { first, end } => Brief::Grant { first: *first, end: *end },
            // No mutation answers with any of the others.
            _ => Brief::Done,
        }
    }
}

/// Encodes a tag.
pub fn encode(tag: &Tag) -> Bytes {
    postcard::to_stdvec(tag).map(Bytes::from).unwrap_or_default()
}

/// Reads a tag. `None`: it is not one of this version.
pub fn decode(bytes: &[u8]) -> Option<Tag> {
    postcard::from_bytes(bytes).ok()
}

/// Replies of a session: call, commit, short form.
pub type SessionReplies = Vec<(u64, Version, Brief)>;

/// The replies of all sessions, as the row that is written before tags are let go.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeptReplies {
    /// The commit of the row: every call before it is in the state.
    pub marked: Version,
    /// The replies, by session.
    pub replies: Vec<(SessionId, SessionReplies)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_reads_back_as_it_was_written() {
        let tag = Tag::Call { session: SessionId(7), id: 300, reply: Brief::Grant { first: 1, end: 9 } };
        assert_eq!(decode(&encode(&tag)), Some(tag));
        assert_eq!(decode(&encode(&Tag::System)), Some(Tag::System));
        assert_eq!(decode(&[]), None);
    }
}
