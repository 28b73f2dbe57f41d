//! What a commit's tag says, and replies short enough to stand in one.
//!
//! After a crash the tags since the last mark tell which calls were applied already, so that a call that is sent
//! again is answered and not applied twice.

use bytes::Bytes;
use chronofs_core::ops::{Missed, Reply};
use chronofs_core::{Ino, SessionId, Version};
use chronofs_engine::EngineError;
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
    /// What a power cut took is applied again, in part: this had survived the cut. Or all of it is.
    Replays(Option<Missed>),
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

/// The first byte of a tag.
const FORMAT: u8 = 1;

/// Encodes a tag: the format byte, then its fields as `postcard` writes them.
pub fn encode(tag: &Tag) -> Bytes {
    postcard::to_extend(tag, vec![FORMAT]).map(Bytes::from).unwrap_or_default()
}

/// Reads the tag of the commit at `version`. One that is not understood is an error: without it a call that was
/// applied would be applied again.
pub fn decode(version: Version, bytes: &[u8]) -> Result<Tag, EngineError> {
    let problem = match bytes.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((tag, [])) => return Ok(tag),
            _ => NO_REPLIES.to_owned(),
        },
        Some((&format, _)) if format > FORMAT => {
            format!("tag format {format} is newer than this program's {FORMAT}; start the newer chronofs")
        }
        _ => NO_REPLIES.to_owned(),
    };
    Err(EngineError::Damaged { what: format!("the tag of commit {version}"), detail: problem })
}

const NO_REPLIES: &str = "which calls were answered cannot be read from it, and they could be done twice; run `chronofs meta verify`";

/// Replies of a session: call, commit, short form.
pub type SessionReplies = Vec<(u64, Version, Brief)>;

/// The replies of all sessions, as the row that is written before tags are let go.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeptReplies {
    /// None known.
    pub flags: u16,
    /// The commit of the row: every call before it is in the state.
    pub marked: Version,
    /// The replies, by session.
    pub replies: Vec<(SessionId, SessionReplies)>,
}

impl KeptReplies {
    /// The row.
    pub fn encode(&self) -> Result<Vec<u8>, EngineError> {
        postcard::to_stdvec(self)
            .map_err(|error| EngineError::Store(format!("the replies cannot be written: {error}")))
    }

    /// Reads the row.
    pub fn decode(row: &[u8]) -> Result<KeptReplies, EngineError> {
        let problem = match postcard::take_from_bytes::<KeptReplies>(row) {
            Ok((kept, [])) if kept.flags == 0 => return Ok(kept),
            Ok((_, [])) => "a newer chronofs wrote it; start the newer one",
            _ => NO_REPLIES,
        };
        Err(EngineError::Damaged { what: "the row of table replies".to_owned(), detail: problem.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A change here is a change of what lies in logs: it needs a new format.
    #[test]
    fn tags_have_these_bytes() {
        let call = |reply| Tag::Call { session: SessionId(7), id: 300, reply };
        for (tag, bytes) in [
            (Tag::System, "0100"),
            (call(Brief::Done), "010107ac0200"),
            (call(Brief::Attr(Ino(300))), "010107ac0201ac02"),
            (call(Brief::Opened(Ino(1))), "010107ac020201"),
            (call(Brief::Grant { first: 1, end: 300 }), "010107ac020301ac02"),
            (Tag::Replays(None), "010200"),
            (Tag::Replays(Some(Missed { recovered: Version(300), mark: Version(1) })), "010201ac0201"),
        ] {
            let encoded = encode(&tag);
            assert_eq!(hex(&encoded), bytes, "{tag:?}");
            assert_eq!(decode(Version(1), &encoded).unwrap(), tag);
            assert!(decode(Version(1), &[&encoded[..], &[0]].concat()).is_err(), "bytes behind a tag");
            assert!(decode(Version(1), &encoded[..encoded.len() - 1]).is_err(), "a tag cut short");
        }
        let newer = decode(Version(1), &[2, 0]).unwrap_err().to_string();
        assert!(newer.contains("start the newer chronofs"), "{newer}");
    }

    /// A change here is a change of what lies on disk: it needs a new format.
    #[test]
    fn the_row_of_replies_has_these_bytes() {
        let replies = vec![(SessionId(7), vec![(300, Version(2), Brief::Attr(Ino(1)))])];
        let kept = KeptReplies { flags: 0, marked: Version(300), replies };
        let row = kept.encode().unwrap();
        assert_eq!(hex(&row), "00ac02010701ac02020101");
        assert_eq!(KeptReplies::decode(&row).unwrap(), kept);
        assert!(KeptReplies::decode(&[&row[..], &[0]].concat()).is_err(), "bytes behind the row");
        assert!(KeptReplies::decode(&row[..row.len() - 1]).is_err(), "a row cut short");
        let newer = KeptReplies { flags: 1, ..kept }.encode().unwrap();
        let error = KeptReplies::decode(&newer).unwrap_err().to_string();
        assert!(error.contains("a newer chronofs wrote it"), "{error}");
    }
}
