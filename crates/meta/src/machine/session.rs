//! What the server knows of one session, and its cache of replies.

use super::tag::Brief;
use chronofs_core::ops::{Missed, Replayed, Reply};
use chronofs_core::{Errno, Ino, SessionId, Version, VolumeIndex};
use chronofs_wire::message::{FRAME_MAX, UNSAVED_BYTES_MAX};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The most bytes of calls that a client has without an answer or not durable: its limit, and one call more.
pub(super) const CLIENT_BYTES_MAX: usize = UNSAVED_BYTES_MAX + FRAME_MAX;

/// What a session has sent to be replayed.
#[derive(Clone, Debug, Default)]
pub(super) struct Collected {
    /// In the order sent.
    pub(super) calls: Vec<Replayed>,
    bytes: usize,
}

impl Collected {
    /// Takes more of it. Whether that is no more than a client keeps.
    pub(super) fn take(&mut self, calls: Vec<Replayed>) -> bool {
        self.bytes += calls.iter().map(|call| call.request.weight()).sum::<usize>();
        self.calls.extend(calls);
        self.bytes <= CLIENT_BYTES_MAX
    }
}

/// A connection. Never used twice in one run of the server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u64);

/// An answer that is kept for the case that its call comes again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    /// As it was given.
    Full(Version, Result<Reply, Errno>),
    /// Its short form, with what can be read again left out. `counted`: an open in it is in the session's opens.
    Brief {
        /// The commit.
        version: Version,
        /// The reply.
        brief: Brief,
        /// The open in it is registered.
        counted: bool,
    },
    /// A close was done. It changed nothing but the count of opens, which a restart forgets: after one the client says
    /// what it has open, this file included, and the close that comes again has to be done again.
    Closed(Version),
}

impl Kept {
    /// The commit of a mutation.
    pub(super) fn committed(&self) -> Option<Version> {
        match self {
            Kept::Full(version, Ok(_)) | Kept::Brief { version, .. } => Some(*version),
            Kept::Full(_, Err(_)) | Kept::Closed(_) => None,
        }
    }
}

/// The answers of a session above what the client has acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Replies {
    acked: u64,
    kept: BTreeMap<u64, Kept>,
}

impl Replies {
    /// The client has every answer up to `acked`.
    pub(super) fn acknowledge(&mut self, acked: u64) {
        self.acked = self.acked.max(acked);
        while let Some(first) = self.kept.first_entry() {
            if *first.key() > self.acked {
                break;
            }
            first.remove();
        }
    }

    /// Whether the client has said that it has the answer to `id`.
    pub(super) fn is_acknowledged(&self, id: u64) -> bool {
        id <= self.acked
    }

    /// The kept answer to `id`.
    pub(super) fn get(&self, id: u64) -> Option<&Kept> {
        self.kept.get(&id)
    }

    /// The kept answer to `id`.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Kept> {
        self.kept.get_mut(&id)
    }

    /// Keeps the answer to `id`.
    pub(super) fn keep(&mut self, id: u64, kept: Kept) {
        self.kept.insert(id, kept);
    }

    /// Forgets the answer to `id`, which was never given.
    pub(super) fn forget(&mut self, id: u64) {
        self.kept.remove(&id);
    }

    /// How many answers are kept.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// The short forms of all answers of commits, by id.
    pub(super) fn briefs(&self) -> impl Iterator<Item = (u64, Version, Brief)> + '_ {
        self.kept.iter().filter_map(|(&id, kept)| match kept {
            Kept::Full(version, Ok(reply)) => Some((id, *version, Brief::of(reply))),
            // A refusal changed nothing: asked again it is decided again.
            Kept::Full(_, Err(_)) | Kept::Closed(_) => None,
            Kept::Brief { version, brief, .. } => Some((id, *version, brief.clone())),
        })
    }
}

/// How a session stands with the others on its volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// It is alone and may cache.
    Exclusive,
    /// It was told at this time (nanoseconds) that it is not alone, and has not said yet that it let go of its
    /// caches.
    Asked(u64),
    /// It caches nothing past a request.
    Shared,
}

/// A session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Its name.
    pub(super) id: SessionId,
    /// Its volume.
    pub(super) volume: Uuid,
    /// The volume's place in keys.
    pub(super) index: VolumeIndex,
    /// The client's own name for its mount.
    pub(super) client: u128,
    /// For people.
    pub(super) client_name: String,
    /// The token it came with.
    pub(super) token: Uuid,
    /// The protocol that it and this server speak.
    pub(super) protocol: u16,
    /// What it may see lies below.
    pub(super) root: Ino,
    /// The instant it sees, if not the present.
    pub(super) at: Option<Version>,
    /// It cannot write.
    pub(super) read_only: bool,
    /// It reaches objects by itself.
    pub(super) direct: bool,
    /// Its connection.
    pub(super) conn: Option<ConnId>,
    /// When it was last heard of.
    pub(super) heard_ns: u64,
    /// The commit that opened it: it is welcomed once that is durable.
    pub(super) opened: Version,
    /// When its lease on an instant was last written.
    pub(super) leased_ns: u64,
    /// Answers it may ask for again.
    pub(super) replies: Replies,
    /// Its opens, with counts.
    pub(super) opens: BTreeMap<Ino, u32>,
    /// Object counters `0..granted` are its own, as its row says.
    pub(super) granted: u64,
    /// How far it has published what it will of them, as it says, as its row says, and since when the row says so.
    pub(super) floor: u64,
    pub(super) floor_noted: u64,
    pub(super) floor_noted_ns: u64,
    /// How it stands with others.
    pub(super) sharing: Sharing,
    /// Answers to `Shared { true }` that are on their way.
    pub(super) acks_due: u32,
    /// It has told its opens since the server started, or since it was opened if that was later; or it has called, which
    /// it does only behind them.
    pub(super) reclaimed: bool,
    /// It was opened, or has called, since the server started: it has nothing to replay.
    pub(super) called: bool,
    /// It was asked for what the server lost and has not sent all of it: until then it is told nothing of durability,
    /// and so keeps it.
    pub(super) replaying: bool,
    /// It was not back in the window of a start, perhaps one long ago, and has replayed nothing since: it is asked
    /// until it has, and what it sends is judged by what survived then.
    pub(super) missed: Option<Missed>,
    /// What it has sent of that after the window.
    pub(super) late: Collected,
    /// Its calls that are lost, until it says that it knows.
    pub(super) parked: BTreeMap<u64, Errno>,
    /// The durable version it was last told.
    pub(super) told_durable: Version,
    /// Its last commit.
    pub(super) last_commit: Version,
}

impl Session {
    /// Whether it takes part in sharing: sessions of the past cache for ever and disturb nobody.
    pub(super) fn is_live(&self) -> bool {
        self.at.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_until_the_client_has_them() {
        let mut replies = Replies::default();
        for id in 1..=5 {
            replies.keep(id, Kept::Full(Version(id), Ok(Reply::Done)));
        }
        replies.acknowledge(3);
        replies.acknowledge(1);
        assert!(replies.is_acknowledged(3) && !replies.is_acknowledged(4));
        assert_eq!((replies.get(3), replies.len()), (None, 2));
        assert_eq!(replies.briefs().map(|(id, _, _)| id).collect::<Vec<_>>(), [4, 5]);
    }
}
