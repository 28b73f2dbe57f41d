//! What metadata servers and log servers (`chronofs tlog start`) say to each other, and to the admin server about each other.
//!
//! A connection is of one metadata store: [`LogHello`] and [`LogWelcome`], then [`LogRequest`]s, each answered with one
//! [`LogReply`] in their order, any number of them on their way. What each asks for is the trait `Link` of the engine.

#![allow(missing_docs, reason = "the fields of a frame are named after what they are")]

use crate::identity::{Secret, Sha256};
use crate::status::ProcessStatus;
use aws_lc_rs::hmac;
use bytes::Bytes;
use chronofs_core::store::Secret as Hidden;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The oldest protocol of log servers that this program speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol of log servers that this program speaks.
pub const PROTOCOL_MAX: u16 = 1;
/// What the name of a copy on a log server begins with; the server's name follows.
pub const REMOTE: &str = "tlog:";

/// The log server that a copy of this name is on, if it is no folder.
pub fn server_of(copy: &str) -> Option<&str> {
    copy.strip_prefix(REMOTE)
}

/// What opens one log server for one metadata store: made of the store's key, which only the admin server has. So a log
/// server learns nothing that would open another one.
pub fn access_secret(store_key: &Secret, server: Uuid) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &store_key.0);
    let mut secret = [0; 32];
    secret.copy_from_slice(hmac::sign(&key, server.as_bytes()).as_ref());
    Secret(secret)
}

/// The first message of a metadata server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogHello {
    pub protocol_min: u16,
    pub protocol_max: u16,
    /// The metadata store whose log is copied.
    pub store: Uuid,
    /// What opens this log server for it.
    pub secret: Bytes,
    /// The copy has counted: an empty folder is not it.
    pub known: bool,
}

/// The answer to [`LogHello`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogWelcome {
    /// The protocol that both speak from here on.
    Welcome { protocol: u16 },
    /// Why not. `soon`: the log server may only not have heard of it yet.
    Refused { reason: String, soon: bool },
}

/// What is asked of a copy. Places are offsets in segments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogRequest {
    Seal { epoch: u64 },
    Open { epoch: u64 },
    Append { epoch: u64, segment: u64, offset: u64, bytes: Bytes },
    Whole { epoch: u64 },
    Cut { epoch: u64, segment: u64, offset: u64 },
    Pop { epoch: u64, before: u64 },
    Sum { segment: u64, length: u64 },
    Read { segment: u64, offset: u64, length: u64 },
}

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LogReply {
    /// To `Seal` and `Open`: number and length of each segment, what is known to be durable, whether it is still filling.
    Holding {
        segments: Vec<(u64, u64)>,
        known_segment: u64,
        known_offset: u64,
        filling: bool,
    },
    Done,
    Sum([u8; 32]),
    Bytes(Bytes),
    /// It obeys an owner of this later epoch.
    Fenced(u64),
    /// It goes on elsewhere.
    Elsewhere {
        segment: u64,
        offset: u64,
    },
    /// It cannot be used now.
    Unusable(String),
}

/// How a metadata server reaches a log server: in its assignment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogServerAccess {
    /// Its name.
    pub name: String,
    /// `host:port`, if it was ever started.
    pub address: Option<String>,
    /// SHA-256 of its certificate, lower-case hex.
    pub certificate_sha256: Option<String>,
    /// What opens it for this store, lower-case hex.
    pub secret: Hidden,
}

impl LogServerAccess {
    /// The access of one store to a server that was never started.
    pub fn new(name: String, secret: &Secret) -> Self {
        LogServerAccess {
            name,
            address: None,
            certificate_sha256: None,
            secret: Hidden::new(secret.to_hex()),
        }
    }

    /// What is presented there.
    pub fn presented(&self) -> Option<Secret> {
        Secret::from_hex(self.secret.reveal())
    }
}

/// `GET /v1/tlog/assignment?boot=BOOT&after=REVISION` with the token of a log server: waits up to 20 s for another revision than
/// `after`. The server keeps the last one, for when the admin server is down.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogAssignment {
    /// Another one whenever anything of it changes.
    pub revision: u64,
    /// The metadata stores that may keep copies of their logs here.
    pub stores: Vec<AllowedStore>,
}

/// See [`LogAssignment`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AllowedStore {
    /// The metadata store.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// SHA-256 of what its server must present, lower-case hex.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub secret_sha256: Sha256,
}

/// `POST /v1/tlog/report` with the token of a log server, and what its page `/status` says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct LogServerSaid {
    /// The process.
    pub process: ProcessStatus,
    /// Drawn at its start.
    pub boot: u64,
    /// The epoch under which it is registered.
    pub epoch: u64,
    /// Connections of metadata servers.
    pub connections: u64,
    /// The copies that it holds.
    pub copies: Vec<HeldCopy>,
}

/// A copy on a log server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct HeldCopy {
    /// The metadata store.
    pub id: Uuid,
    /// Its name, if it may still come.
    pub name: Option<String>,
    /// Nobody of an epoch below is obeyed.
    pub epoch: u64,
    /// Nobody appends.
    pub sealed: bool,
    /// Nothing can be recovered from it yet.
    pub filling: bool,
    /// Segments.
    pub segments: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Why it cannot be read, if it cannot.
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_one_server_for_one_store_and_is_made_the_same_way_always() {
        let (one, two) = (Secret([1; 32]), Secret([2; 32]));
        let server = Uuid::from_bytes([3; 16]);
        let secret = access_secret(&one, server);
        assert_eq!(secret, access_secret(&one, server));
        assert_ne!(secret, access_secret(&two, server));
        assert_ne!(secret, access_secret(&one, Uuid::from_bytes([4; 16])));
        let access = LogServerAccess::new("a".to_owned(), &secret);
        assert_eq!(access.presented(), Some(secret));
        assert!(!format!("{access:?}").contains(access.secret.reveal()));
        // HMAC-SHA256, so that another program can do the same.
        let known = "cb06682c4ec11cadac0ec7afa563a7a3e370b3170cd6f1e12fb605a045546201";
        assert_eq!(access.secret.reveal(), known);
    }

    #[test]
    fn the_name_of_a_copy_says_where_it_is() {
        assert_eq!(server_of("tlog:one"), Some("one"));
        assert_eq!(server_of("/disk2/log"), None);
    }
}
