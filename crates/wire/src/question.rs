//! What an operator asks of a metadata server through the admin server: how it is, and its key space.
//!
//! The server takes questions from the admin server (`GET /v1/meta/questions`) and answers them (`POST /v1/meta/answers`), as
//! JSON over HTTPS. So it needs no way in for operators, and an account of the admin server is all that they need.

use crate::admin::AssignedStore;
use crate::analyze::{Look, Told};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;
use thiserror::Error;
use uuid::Uuid;

/// The longest key, in bytes.
pub const KEY_MAX: usize = 10_000;
/// The longest value, in bytes.
pub const VALUE_MAX: usize = 100_000;
/// The most pairs in the answer to a range.
pub const RANGE_MAX: u32 = 10_000;
/// A range is cut behind the pair that makes it so long, in bytes.
pub const RANGE_BYTES_MAX: usize = 512 << 10;
/// How long the server may hold back the answer to a poll for questions.
pub const QUESTIONS_WAIT: Duration = Duration::from_secs(20);

/// Bytes; in JSON a text in base64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Blob(pub Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text.as_bytes());
        bytes.map(|bytes| Blob(bytes.into())).map_err(|error| D::Error::custom(format!("base64: {error}")))
    }
}

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Blob(Bytes::copy_from_slice(bytes))
    }
}

/// The answer to a poll for questions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Questions {
    /// Each is handed out once.
    pub questions: Vec<Question>,
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Question {
    /// Stands in the answer.
    pub id: u64,
    /// What is asked.
    pub asked: Asked,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// How the server is. -> [`Said::Status`]
    Status,
    /// Something of the key space. -> [`Said::Keys`] or [`Said::Refused`]
    Keys(KeyOp),
    /// Keep instants, or let them go. -> [`Said::Kept`]
    Keep(KeepInstant),
    /// Which clones of a disk snapshot are registered in the block stores. -> [`Said::Readers`] or [`Said::Trouble`]
    Readers {
        /// UID of the snapshot.
        snapshot: String,
        /// Have them gone: they read no more, or at their own risk.
        forget: bool,
    },
    /// Of a clone: register as a reader no longer. -> [`Said::Detached`] or [`Said::Trouble`]
    Detach {
        /// Also while objects of the source are needed.
        force: bool,
    },
    /// What is held beyond the window. -> [`Said::Holds`] or [`Said::Trouble`]
    Holds,
    /// Begin a look. -> [`Said::Looking`] or [`Said::Trouble`]
    Look {
        /// The volume; none where all of the metadata store are meant.
        volume: Option<Uuid>,
        /// What at.
        look: Look,
        /// Of [`Look::Repair`]: the block store that is named there, and what opens it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replica: Option<Box<AssignedStore>>,
    },
    /// News of a look. -> [`Said::Looked`]
    Follow {
        /// Of [`Said::Looking`].
        look: u64,
        /// News up to this number have arrived.
        seen: u64,
    },
    /// Let go what the brake of the collection holds back. -> [`Said::Released`] or [`Said::Trouble`]
    ReleaseBrake,
    /// What [`Asked::Detach`] would be answered with; nothing is done. -> [`Said::Detached`] or [`Said::Trouble`]
    WouldDetach {
        /// Also while objects of the source are needed.
        force: bool,
    },
}

/// Instants of volumes that are to be kept: of one for a hold, of all for a copy that others made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KeepInstant {
    /// By this it is known.
    pub id: Uuid,
    /// From this one until now, nanoseconds since the epoch; `None`: they need not be kept any more.
    pub at_ns: Option<u64>,
    /// Until when; `None`: until it is let go.
    pub ends_ns: Option<u64>,
    /// For whom.
    pub note: String,
    /// Of this volume only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Uuid>,
    /// The last instant; `None`: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_ns: Option<u64>,
    /// It is a hold of an operator, and no copy that others made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
}

/// A hold that is in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HeldSaid {
    /// By this it is known.
    pub id: Uuid,
    /// Its volume.
    pub volume: Uuid,
    /// The volume's name.
    pub name: String,
    /// What it is: `hold`, `brake` or `registered copy`.
    pub owner: String,
    /// For whom and what for.
    pub note: String,
    /// The first instant, nanoseconds since the epoch.
    pub from_ns: u64,
    /// The last one.
    pub to_ns: u64,
    /// Since when.
    pub made_ns: u64,
    /// Until when; `None`: until it is let go.
    pub ends_ns: Option<u64>,
}

/// What can be done with the key space. Keys are in the order of their bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyOp {
    /// The value of a key. -> [`KeyReply::Value`]
    Get {
        /// The key.
        key: Blob,
    },
    /// Keys and values from `begin` on, up to but without `end`. -> [`KeyReply::Range`]
    GetRange {
        /// The first key.
        begin: Blob,
        /// The key behind the last; `None`: all from `begin` on.
        end: Option<Blob>,
        /// The most pairs; at most [`RANGE_MAX`].
        limit: u32,
    },
    /// The key has this value from now on. -> [`KeyReply::Committed`]
    Set {
        /// The key.
        key: Blob,
        /// The value.
        value: Blob,
    },
    /// The key has no value from now on. -> [`KeyReply::Committed`]
    Clear {
        /// The key.
        key: Blob,
    },
}

impl KeyOp {
    /// Whether it changes anything.
    pub fn writes(&self) -> bool {
        self.written().is_some()
    }

    /// The key that it changes, if it changes anything.
    pub fn written(&self) -> Option<&Blob> {
        match self {
            KeyOp::Set { key, .. } | KeyOp::Clear { key } => Some(key),
            KeyOp::Get { .. } | KeyOp::GetRange { .. } => None,
        }
    }
}

/// What was done. All of it is durable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyReply {
    /// A value.
    Value {
        /// The version that was read.
        version: u64,
        /// The value, if the key has one.
        value: Option<Blob>,
    },
    /// Keys with their values.
    Range {
        /// The version that was read.
        version: u64,
        /// They.
        pairs: Vec<KeyValue>,
        /// There are more.
        more: bool,
    },
    /// A change.
    Committed {
        /// The version of the metadata store from which on it holds.
        version: u64,
    },
}

/// A pair of the key space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KeyValue {
    /// The key.
    pub key: Blob,
    /// Its value.
    pub value: Blob,
}

impl KeyReply {
    /// The version that was read or committed.
    pub fn version(&self) -> u64 {
        match self {
            KeyReply::Value { version, .. }
            | KeyReply::Range { version, .. }
            | KeyReply::Committed { version } => *version,
        }
    }
}

/// Why something of the key space was refused; nothing was changed. Those that FoundationDB has, too, have its numbers.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyRefused {
    /// The key is too long.
    #[error("the key has {0} bytes, and the most is {KEY_MAX}: choose a shorter one (2102)")]
    KeyTooLarge(u64),
    /// The value is too long.
    #[error("the value has {0} bytes, and the most is {VALUE_MAX}: divide it over several keys (2103)")]
    ValueTooLarge(u64),
    /// A range ends before it begins.
    #[error("the range ends before it begins: exchange its ends (2005)")]
    InvertedRange,
    /// Too much at once.
    #[error("a range shows 1 to {RANGE_MAX} pairs, not {0}")]
    Limit(u32),
    /// The key space holds as much as it may.
    #[error("the key space holds as much as it may ({0} bytes): clear some keys")]
    SpaceFull(u64),
    /// No room on the disk.
    #[error("the disk of the metadata server is full: give it room")]
    DiskFull,
    /// What a power cut took is being collected.
    #[error("the metadata server is replaying what a power cut took: try again in some seconds")]
    Replaying,
    /// A row cannot be read.
    #[error("a row of the key space is damaged: stop the metadata server and run chronofs meta verify")]
    Damaged,
    /// The server cannot answer.
    #[error("the metadata server cannot answer: {0}")]
    Stopped(String),
}

/// What a server says to questions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Answers {
    /// One for each.
    pub answers: Vec<Answer>,
}

/// The answer to a question.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Answer {
    /// That of the question.
    pub id: u64,
    /// The answer.
    pub said: Said,
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// What the page `/status` of the metadata server says.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    Status(serde_json::Value),
    /// What was done with the key space.
    Keys(KeyReply),
    /// Why nothing was done with the key space.
    Refused(KeyRefused),
    /// The instants are kept, or let go, durably.
    Kept {
        /// Why not, if it could not be done.
        problem: Option<String>,
    },
    /// Clones that are registered as readers of a disk snapshot.
    Readers(Vec<String>),
    /// A clone is registered no longer, if it needs none of the objects that its source stored, or that was forced.
    Detached {
        /// So many it needs.
        needed: u64,
        /// So many it needs no longer, and readers may still know of them for some minutes.
        #[serde(default)]
        unnamed: u64,
    },
    /// Why a question could not be answered.
    Trouble(String),
    /// What is held.
    Holds(Vec<HeldSaid>),
    /// A look has begun, by this number.
    Looking(u64),
    /// What is new.
    Looked(Told),
    /// The brake of the collection holds back nothing of what lost its last name by then, durably.
    Released,
}

/// `POST /v1/meta/starting` with the metadata store's token, every 2 s until the server registers: it is starting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Starting {
    /// For so many seconds.
    pub seconds: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_json(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let blob = Blob::from(&bytes[..]);
            let text = serde_json::to_string(&blob).unwrap();
            prop_assert_eq!(serde_json::from_str::<Blob>(&text).unwrap(), blob);
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for bad in ["\"a\"", "\"a===\"", "7", "null"] {
            assert!(serde_json::from_str::<Blob>(bad).is_err(), "{bad}");
        }
    }
}
