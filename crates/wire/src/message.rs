//! What a client and a metadata server say to each other.
//!
//! A connection opens with one [`Hello`] and one [`Welcome`] (or [`Refusal`]); then [`ToServer`] and [`ToClient`]
//! frames flow both ways with any number of calls in flight.

#![allow(missing_docs, reason = "the fields of a frame are named after what they are")]

use bytes::Bytes;
use chronofs_core::ops::{Replayed, Reply, Request};
use chronofs_core::volume::VolumeSpec;
use chronofs_core::{Caller, Errno, Ino, ObjectId, Retention, SessionId, SignedRequest, Version};
use serde::{Deserialize, Serialize};

/// The oldest protocol this program speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol this program speaks.
pub const PROTOCOL_MAX: u16 = 2;
/// The first protocol of clients that seal names and content. A server takes no older one for an encrypted volume, so a client
/// without keys cannot write plain bytes into it; and a client that seals speaks no older one, and is refused by any other volume.
pub const PROTOCOL_SEALED: u16 = 2;
/// The newest protocol that both sides speak. Each side is the oldest and the newest protocol that it speaks.
pub fn common_protocol(client: (u16, u16), server: (u16, u16)) -> Option<u16> {
    let newest = client.1.min(server.1);
    (newest >= client.0.max(server.0)).then_some(newest)
}

/// The longest frame, length field excluded, in bytes.
pub const FRAME_MAX: usize = 32 << 20;
/// The most answers of a session that a server keeps because the client has not acknowledged them. It ends the
/// connection of one that asks for more.
pub const REPLIES_KEPT_MAX: usize = 8192;
/// Bytes of mutations that a client keeps because they have no answer, or one that is not durable: it sends them again. A
/// threshold: the one that reaches it is kept too. A server ends the connection of a client that sends more again.
pub const UNSAVED_BYTES_MAX: usize = 64 << 20;

/// The first message of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol the client speaks.
    pub protocol_min: u16,
    /// Newest protocol the client speaks.
    pub protocol_max: u16,
    /// Id and secret of the volume token.
    pub token_id: uuid::Uuid,
    /// See `token_id`.
    pub token_secret: Bytes,
    /// The volume.
    pub volume: uuid::Uuid,
    /// Chosen by the client once per mount: makes opening the session repeatable.
    pub client: u128,
    /// Host, process and folder, for people.
    pub client_name: String,
    /// The session to go on with; `None` opens one.
    pub resume: Option<SessionId>,
    /// The instant to show; `None` is the present.
    pub at: Option<Version>,
    /// The client will not write.
    pub read_only: bool,
    /// The highest version the client has seen from this store: tells the server whether it lost anything.
    pub seen: Version,
    /// The client reaches the volume's objects with credentials of its own: no requests are signed for it.
    pub direct: bool,
}

/// The server's answer to a [`Hello`] it accepts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol both speak from here on.
    pub protocol: u16,
    /// The session.
    pub session: SessionId,
    /// Drawn at every start of the server: another value than before means that it restarted.
    pub boot: u64,
    /// The ownership epoch of the metadata store; a client refuses a lower one than it has seen.
    pub epoch: u64,
    /// The volume.
    pub volume: VolumeSpec,
    /// The volume's incarnation, part of object ids.
    pub incarnation: u16,
    /// The root of what the session may see (a token's path scope may lie below the volume's root).
    pub root: Ino,
    /// Object counters of the session: `grant.0..grant.1`.
    pub grant: (u64, u64),
    /// Last applied version.
    pub applied: Version,
    /// Everything up to here survives a power cut.
    pub durable: Version,
    /// The server's clock, nanoseconds since the epoch.
    pub now_ns: u64,
    /// What the client caches holds for this long after it last heard of the server. A session that is silent for
    /// much longer ([`Welcome::life_ms`]) ends.
    pub ttl_ms: u32,
    /// Another session may change the volume: nothing may be cached in the kernel past a request.
    pub shared: bool,
    /// Writing is refused (by token, by request, or because it is the past).
    pub read_only: bool,
    /// The instant shown, if not the present.
    pub at: Option<Version>,
    /// Where the volume's objects are.
    pub store: StoreAccess,
    /// The server may have lost mutations and waits for [`ToServer::Replay`], be it empty. It comes before any call.
    pub replay: bool,
    /// The session ends when nothing is heard of it for this long.
    pub life_ms: u32,
    /// The commit with which the volume went on when its metadata was last put back from a copy; zero: never. Another value than
    /// before means that it was put back since, and that what it was told after the copy is lost.
    pub restored: Version,
}

/// How a client reaches the volume's objects.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum StoreAccess {
    /// A folder. A client that finds `marker` (the store's id) in the folder's `chronofs-store.json` uses it
    /// directly, any other through the server.
    Folder {
        /// Absolute path.
        path: String,
        /// Id of the block store.
        marker: uuid::Uuid,
    },
    /// Bytes go through the metadata server.
    ThroughServer,
    /// A bucket, by signed requests: for reads they come with the slices ([`ToClient::Signed`]), for puts they are asked
    /// for ([`ToServer::SignPuts`]). What has none, or does not go well, goes through the metadata server.
    Signed {
        /// A request is used for this long after it came. It is valid for longer.
        use_ms: u32,
        /// Certificates that the store's may be signed by, besides those that everybody trusts.
        ca_pem: Option<String>,
        /// Puts are signed.
        puts: bool,
    },
}

/// A request that reads stored bytes of an object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedGet {
    /// The object.
    pub object: ObjectId,
    /// The only range that it reads: first byte and length. `None`: any.
    pub range: Option<(u64, u32)>,
    /// The request.
    pub request: SignedRequest,
}

/// The most requests that one frame brings.
pub const SIGNED_MAX: u32 = 64;

/// Why a [`Hello`] is refused for good. Sent in place of [`Welcome`]; the connection then closes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of refusal.
    pub reason: RefusalReason,
    /// What was refused, why, and what to do next; for people.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RefusalReason {
    /// No protocol in common.
    Protocol,
    /// The token is unknown, revoked, over, or not for this volume.
    Token,
    /// This server does not own the volume.
    UnknownVolume,
    /// The instant cannot be had; those from `earliest` to `latest` can, but for gaps.
    Instant {
        /// First instant of the window.
        earliest: Version,
        /// Last instant that can be had now.
        latest: Version,
    },
    /// The session to resume is over.
    SessionOver,
    /// Not now: starting, stopping, or waiting for the present sessions to learn that the volume is shared. Try
    /// again after this many milliseconds.
    NotNow {
        /// Milliseconds.
        retry_ms: u32,
    },
    /// The instant lies in a gap that a restore left; those up to `before` and from `after` can be had.
    Gap {
        /// The last instant before the gap.
        before: Version,
        /// The first instant after it.
        after: Version,
    },
}

/// The answer to a [`Hello`].
pub type HelloAnswer = Result<Box<Welcome>, Refusal>;

/// Frames of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToServer {
    /// A request. Ids rise within a session, also over reconnects; a call whose answer did not come is sent again
    /// with its id. Answers to ids up to `acked` have all arrived.
    Call { id: u64, acked: u64, caller: Caller, request: Request },
    /// The session lives. Sent at least every third of its time to live. Nothing that lies in an object of the session with a
    /// counter below `floor` is published any more, nor replayed.
    Renew { floor: u64 },
    /// First after every reconnect: what the session has open, with counts. Counts once for each session and start of the
    /// server, and not behind a call: what that opens is counted by itself.
    Reclaim { opens: Vec<(Ino, u32)> },
    /// After a restart that lost mutations: those answered but not durable, by version; `end` with the last.
    Replay { calls: Vec<Replayed>, end: bool },
    /// The client has let go of all that it cached in the kernel, in answer to [`ToClient::Shared`].
    SharedAck,
    /// The session is over; everything was published.
    Goodbye,
    /// Stores an object through the server. -> [`ToClient::Object`]
    PutObject { id: u64, name: String, bytes: Bytes },
    /// Reads the stored bytes of a slice through the server: the one that `block` of `ino` shows now (in a past: then)
    /// and that lies in `object` at `offset`. ESTALE if it shows none there. -> [`ToClient::Object`]
    GetObject { id: u64, ino: Ino, block: u32, object: ObjectId, offset: u64, len: u32 },
    /// The client knows that these calls are lost, in answer to [`ToClient::Parked`].
    ParkedAck { calls: Vec<u64> },
    /// Asks for requests that put the objects of the counters `first..first + count`, which are the session's; at most
    /// [`SIGNED_MAX`]. -> [`ToClient::SignedPuts`]
    SignPuts { id: u64, first: u64, count: u32 },
}

/// Frames of a server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToClient {
    /// The answer to a call. `version` is the commit of a mutation, else the version read. `durable` is the store's
    /// durable version: mutations up to it need not be kept for replay.
    Return { id: u64, version: Version, durable: Version, result: Result<Reply, Errno> },
    /// The durable version moved and no answer was on the way to say so.
    Durable { version: Version },
    /// Whether other sessions may change the volume from now on.
    Shared { shared: bool },
    /// The answer to [`ToServer::PutObject`] (no bytes) and [`ToServer::GetObject`].
    Object { id: u64, result: Result<Bytes, Errno> },
    /// The server stops in order; reconnect.
    Closing,
    /// The answer to [`ToServer::Renew`].
    Renewed { now_ns: u64 },
    /// The last frame was no message of this protocol, or not one that fits here; the connection closes.
    Refused { message: String },
    /// Replayed calls that could not be applied again after a power cut, by id: their effects are lost. Said again on
    /// every connection until [`ToServer::ParkedAck`].
    Parked { calls: Vec<(u64, Errno)> },
    /// Requests that read what the answer after this frame names. Not always all of it, and not always there.
    Signed { gets: Vec<SignedGet> },
    /// The answer to [`ToServer::SignPuts`], in the order of the counters; none if the store cannot sign now.
    SignedPuts { id: u64, result: Result<Vec<SignedRequest>, Errno> },
    /// How far back the volume goes. After each welcome and each [`ToClient::Renewed`].
    Window { window: Window },
}

/// Which instants of a volume can be mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Window {
    /// How long the past is kept.
    pub retention: Retention,
    /// The earliest instant that can be mounted now. Mounts that are there may show an earlier one.
    pub earliest: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_speak_the_newest_protocol_that_both_know() {
        for (client, server, common) in [
            ((1, 1), (1, 1), Some(1)),
            ((1, 2), (1, 3), Some(2)),
            ((1, 9), (2, 3), Some(3)),
            ((3, 9), (1, 3), Some(3)),
            ((4, 9), (1, 3), None),
            ((1, 1), (2, 3), None),
            ((2, 1), (1, 3), None),
        ] {
            assert_eq!(common_protocol(client, server), common, "{client:?} {server:?}");
        }
    }

    #[test]
    fn refusals_have_these_numbers() {
        let (before, after) = (Version(1), Version(2));
        for (reason, bytes) in [
            (RefusalReason::Protocol, vec![0]),
            (RefusalReason::Token, vec![1]),
            (RefusalReason::UnknownVolume, vec![2]),
            (RefusalReason::Instant { earliest: before, latest: after }, vec![3, 1, 2]),
            (RefusalReason::SessionOver, vec![4]),
            (RefusalReason::NotNow { retry_ms: 5 }, vec![5, 5]),
            (RefusalReason::Gap { before, after }, vec![6, 1, 2]),
        ] {
            assert_eq!(postcard::to_stdvec(&reason).unwrap(), bytes, "{reason:?}");
        }
    }
}
