//! What the API takes and gives, with the checks of every value that comes from outside.

mod held;

pub use held::{Audited, Hold, Holds, NewHold};

use crate::AdminError;
use chronofs_blocks::probe::Report;
use chronofs_core::Retention;
use chronofs_core::store::{Credentials, StoreKind};
use chronofs_core::volume::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, Compression};
use chronofs_keys::SealedKeys;
use chronofs_wire::log::LogEpoch;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::str::FromStr;
use utoipa::ToSchema;

/// What an account may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See everything but secrets.
    Viewer,
    /// And create, change and delete stores, volumes and volume tokens.
    Operator,
    /// And accounts.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = AdminError;
    fn from_str(text: &str) -> Result<Self, AdminError> {
        match text {
            "viewer" => Ok(Role::Viewer),
            "operator" => Ok(Role::Operator),
            "admin" => Ok(Role::Admin),
            _ => Err(AdminError::Invalid(format!("'{text}' is not a role: write viewer, operator or admin"))),
        }
    }
}

/// A person or program that configures.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Its token: only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Body of `POST /v1/accounts`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// Body of `PATCH /v1/accounts/{name}`: what is absent stays.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeAccount {
    /// What it may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Revoke its token and make a new one.
    #[serde(default)]
    pub new_token: bool,
}

/// A place for the bytes of files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct BlockStore {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `local` (a folder), `s3`, `gcs`, `azure` or `oci`.
    pub kind: String,
    /// Where it is, for people: the folder, or the bucket and what is needed to find it.
    pub place: String,
    /// Where it is, for programs. A folder is absolute, on the machines of the metadata servers that use it.
    pub definition: StoreKind,
    /// What may be shown of the credentials of a bucket. Their secrets are in no answer.
    pub credentials: Option<String>,
    /// When the bucket was probed last, RFC 3339.
    pub probed: Option<String>,
    /// What the probe found.
    #[schema(value_type = Option<Object>)]
    pub probe: Option<Report>,
    /// What it cannot do or lies about.
    pub weaknesses: Vec<String>,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Volumes in it.
    pub volumes: Vec<String>,
}

/// Body of `POST /v1/block-stores`. What a kind needs is said by the refusal of what lacks it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBlockStore {
    /// Its name.
    pub name: String,
    /// `{"kind":"local","path":...}`, or `{"kind":...,"bucket":...}` with `prefix`, `endpoint`, `region`, `account`,
    /// `virtual_hosted`, `ca_pem`.
    #[serde(deserialize_with = "known_fields")]
    pub definition: StoreKind,
    /// What opens a bucket: `{"type":"access-key","id":...,"secret":...}`, `service-account` (`json`),
    /// `account-key` (`key`), `shared-access` (`token`), `anonymous`, or `ambient` (of the servers' machines).
    #[serde(default, deserialize_with = "known_fields")]
    pub credentials: Credentials,
    /// Take it as it is: do not try out first what a bucket can do, nor refuse one that is of no use.
    #[serde(default)]
    pub unchecked: bool,
}

/// Body of `PATCH /v1/block-stores/{name}`: what is absent stays.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeBlockStore {
    /// Where the store is now, of the same kind. Its content must have been moved there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_fields")]
    pub definition: Option<StoreKind>,
    /// What opens it from now on.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_fields")]
    pub credentials: Option<Credentials>,
    /// Take it as it is: neither try out a bucket nor have metadata servers look at a folder.
    #[serde(default)]
    pub unchecked: bool,
}

/// One log with its store, served by one metadata server at a time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MetadataStore {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Where its server was last reached: `host:port`.
    pub address: Option<String>,
    /// Epoch of the last registration; 0 before the first.
    pub epoch: u64,
    /// Its server is in touch with the admin server.
    pub connected: bool,
    /// Volumes in it.
    pub volumes: Vec<String>,
    /// Copies of its log.
    #[serde(default)]
    pub log: LogEpoch,
    /// The token of its server: only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Body of `POST /v1/metadata-stores`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMetadataStore {
    /// Its name.
    pub name: String,
}

/// Body of `PATCH /v1/metadata-stores/{name}`.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeMetadataStore {
    /// Revoke its token and make a new one.
    #[serde(default)]
    pub new_token: bool,
    /// The copies of its log, in place of those before: absolute paths of folders on the machine of its server, and `tlog:`
    /// with the name of a log server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_copies: Option<Vec<String>>,
    /// How many of them may lack what is durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_anti_quorum: Option<u32>,
}

/// What keeps copies of logs for metadata servers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogServer {
    /// Its id.
    pub id: String,
    /// Its name; the copies on it are called `tlog:NAME`.
    pub name: String,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Where metadata servers reach it: `host:port`.
    pub address: Option<String>,
    /// Epoch of the last registration; 0 before the first.
    pub epoch: u64,
    /// It is in touch with the admin server.
    pub connected: bool,
    /// The metadata stores that keep copies of their logs on it.
    pub stores: Vec<String>,
    /// Its token: only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Body of `POST /v1/log-servers`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLogServer {
    /// Its name.
    pub name: String,
}

/// Body of `PATCH /v1/log-servers/{name}`.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLogServer {
    /// Revoke its token and make a new one.
    #[serde(default)]
    pub new_token: bool,
}

/// A file system.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where its bytes are.
    pub block_store: String,
    /// Where its names and attributes are.
    pub metadata_store: String,
    /// Bytes per block.
    pub block_size: u32,
    /// Of new data: `lz4`, `zstd` or `none`.
    pub compression: Compression,
    /// How long the past is kept: `7d`, `0` (not), `-1` (for ever).
    #[schema(value_type = String)]
    pub retention: Retention,
    /// A shorter one that waits.
    #[schema(value_type = Option<String>)]
    pub next_retention: Option<Retention>,
    /// When that comes into force, RFC 3339.
    pub next_retention_at: Option<String>,
    /// The earliest instant that can be mounted then, RFC 3339: what is before it goes.
    pub next_earliest: Option<String>,
    /// Quota in bytes.
    pub max_bytes: Option<u64>,
    /// Quota in inodes.
    pub max_inodes: Option<u64>,
    /// When it was created, RFC 3339.
    pub created: String,
    /// `ready`, `waiting` (for its metadata server) or `problem`.
    pub state: String,
    /// What it waits for or what the problem is.
    pub detail: Option<String>,
    /// The earliest instant that can be mounted, RFC 3339.
    pub earliest: Option<String>,
    /// Of an encrypted volume what opens it, and which data key is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// Allocated bytes, as last reported.
    pub used_bytes: Option<u64>,
    /// Inodes, as last reported.
    pub used_inodes: Option<u64>,
    /// Mounts, as last reported.
    pub sessions: Option<u32>,
}

/// Body of `PUT /v1/volumes/{name}/keys`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVolumeKeys {
    /// The sealed keys that are kept from now on. They hold every key that was there, and one more or another secret.
    #[schema(value_type = Object)]
    pub keys: SealedKeys,
    /// They come from a copy, and may be more than one change ahead.
    #[serde(default)]
    pub from_copy: bool,
}

/// A volume that was deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeletedVolume {
    /// Its id.
    pub id: String,
    /// The name that it had. Another volume may have it by now.
    pub name: String,
    /// Where its bytes are.
    pub block_store: String,
    /// Where its names and attributes are.
    pub metadata_store: String,
    /// How long its past was kept.
    #[schema(value_type = String)]
    pub retention: Retention,
    /// When it was deleted, RFC 3339.
    pub deleted: String,
    /// `kept`, `due` (its time is over; it can still be taken back), or `given up` (what it held is going).
    pub state: String,
    /// What the problem is, if there is one.
    pub detail: Option<String>,
    /// When its time is over, RFC 3339; never by itself without.
    pub kept_until: Option<String>,
    /// Allocated bytes, as last reported before it was deleted.
    pub used_bytes: Option<u64>,
    /// Inodes, as last reported before it was deleted.
    pub used_inodes: Option<u64>,
}

/// Body of `POST /v1/deleted-volumes/{name}/undelete`.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Undelete {
    /// The name it has from now on, if not the one it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_name: Option<String>,
}

/// Body of `POST /v1/volumes`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Name or id of its block store.
    pub block_store: String,
    /// Name or id of its metadata store.
    pub metadata_store: String,
    /// Bytes per block, a power of two from 256 KiB to 8 MiB; 4 MiB unless given. Fixed for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// Of new data; `lz4` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// `7d` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub retention: Option<Retention>,
    /// Quota in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Quota in inodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_inodes: Option<u64>,
    /// Its sealed keys, if it is to be encrypted. The volume has the id that they name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub keys: Option<SealedKeys>,
}

/// Body of `PATCH /v1/volumes/{name}`: what is absent stays.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVolume {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of new data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// How long the past is kept. A shorter one comes into force when a time of grace is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub retention: Option<Retention>,
    /// That time, in seconds; a week unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u64>,
    /// Take a shorter retention back that waits.
    #[serde(default)]
    pub undo_retention: bool,
    /// Change nothing; the answer says how the volume would be.
    #[serde(default)]
    pub dry_run: bool,
    /// Quota in bytes; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Quota in inodes; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_inodes: Option<u64>,
}

/// What opens a volume, or a part of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeToken {
    /// Its id, which is its name.
    pub id: String,
    /// The volume.
    pub volume: String,
    /// The directory it is confined to.
    pub path: Option<String>,
    /// It cannot write.
    pub read_only: bool,
    /// It may see the past.
    pub past: bool,
    /// When it ends, RFC 3339.
    pub ends: Option<String>,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The token itself: only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Body of `POST /v1/volume-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolumeToken {
    /// Name or id of the volume.
    pub volume: String,
    /// A directory of the volume, absolute in it, to be confined to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// It cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// It may see the past; yes unless given.
    #[serde(default = "yes")]
    pub past: bool,
    /// When it ends, nanoseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_ns: Option<u64>,
}

fn yes() -> bool {
    true
}

/// Body of `PATCH /v1/volume-tokens/{id}`: what is absent stays.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVolumeToken {
    /// It cannot write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// It may see the past.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past: Option<bool>,
    /// When it ends, nanoseconds since the epoch; 0 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_ns: Option<u64>,
}

/// Answer of `GET /v1/whoami`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct WhoAmI {
    /// The account whose token was used.
    pub account: String,
    /// What it may do.
    pub role: Role,
    /// Version of the admin server.
    pub server_version: String,
}

/// Checks a name: `[a-z0-9][a-z0-9._-]{0,62}`.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), AdminError> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
    if first && rest && name.len() <= 63 {
        return Ok(());
    }
    let article = if what.starts_with('a') { "an" } else { "a" };
    Err(AdminError::Invalid(format!(
        "'{name}' cannot be the name of {article} {what}: use 1 to 63 characters of a-z 0-9 . _ - and begin with a letter or \
         digit"
    )))
}

/// Checks a block size.
pub(crate) fn check_block_size(bytes: u64) -> Result<u32, AdminError> {
    match u32::try_from(bytes) {
        Ok(size) if size.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&size) => Ok(size),
        _ => Err(AdminError::Invalid(format!(
            "a block size of {bytes} bytes is not possible: choose 256KiB, 512KiB, 1MiB, 2MiB, 4MiB or 8MiB"
        ))),
    }
}

/// Reads a tagged object and refuses fields that mean nothing in it. Its type passes them over, because servers read it
/// too, and a newer one may have written more.
fn known_fields<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<T, D::Error> {
    let given = Value::deserialize(from)?;
    for field in given.as_object().into_iter().flat_map(|fields| fields.keys()) {
        // No field of these types can have such a value, so what is read in spite of it is not looked at.
        let mut odd = given.clone();
        odd[field] = json!([[]]);
        if T::deserialize(odd).is_ok() {
            return Err(D::Error::custom(format!("unknown field `{field}`")));
        }
    }
    T::deserialize(given).map_err(D::Error::custom)
}

/// Checks a quota that is given: at least 1 and such that a signed 64-bit number holds it.
pub(crate) fn check_quota(what: &str, quota: Option<u64>) -> Result<(), AdminError> {
    match quota {
        Some(n) if n == 0 || i64::try_from(n).is_err() => Err(AdminError::Invalid(format!(
            "a quota of {n} {what} is not possible: choose from 1 to {}, or give none",
            i64::MAX
        ))),
        _ => Ok(()),
    }
}

/// Checks where a block store is; a folder is given back without a slash at its end.
pub(crate) fn check_definition(
    definition: &StoreKind,
    credentials: &Credentials,
) -> Result<StoreKind, AdminError> {
    let checked = definition.check().and_then(|()| credentials.check(definition));
    checked.map_err(|e| AdminError::Invalid(e.to_string()))?;
    match definition {
        StoreKind::Local { path } => Ok(StoreKind::Local { path: check_folder(path)? }),
        bucket => Ok(bucket.clone()),
    }
}

fn check_folder(path: &str) -> Result<String, AdminError> {
    check_path("folder", path)
}

/// Checks the path scope of a token; `None` for the whole volume.
pub(crate) fn check_scope(path: Option<&str>) -> Result<Option<String>, AdminError> {
    match path {
        None | Some("/") => Ok(None),
        Some(path) => check_path("path", path).map(Some),
    }
}

fn check_path(what: &str, path: &str) -> Result<String, AdminError> {
    let bad = |why: &str| AdminError::Invalid(format!("{what} '{path}' {why}"));
    let Some(inner) = path.strip_prefix('/') else { return Err(bad("is not absolute: begin it with /")) };
    let inner = inner.trim_end_matches('/');
    if inner.is_empty() {
        return Err(bad("is the root: name a directory in it"));
    }
    if inner.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
        return Err(bad("is not plain: write it without //, . and .."));
    }
    if path.len() > 4095 {
        return Err(bad("is longer than 4095 bytes"));
    }
    Ok(format!("/{inner}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "0", "a.b_c-d", &"x".repeat(63)] {
            check_name("volume", good).unwrap();
        }
        for bad in ["", ".a", "-a", "A", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(check_name("volume", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn block_sizes_are_powers_of_two_within_the_limits() {
        for good in [256 << 10, 1 << 20, 8 << 20] {
            assert_eq!(u64::from(check_block_size(good).unwrap()), good);
        }
        for bad in [0, 1, 128 << 10, 3 << 20, 16 << 20, (1 << 32) + (4 << 20), u64::MAX] {
            assert!(check_block_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quotas_and_paths_make_sense() {
        assert!(check_quota("bytes", Some(0)).is_err() && check_quota("bytes", Some(u64::MAX)).is_err());
        assert!(check_quota("bytes", None).is_ok() && check_quota("bytes", Some(1)).is_ok());
        assert_eq!(check_folder("/a/b/").unwrap(), "/a/b");
        for bad in ["", "a", "./a", "/", "/a/../b", "/a//b", "/a/.", "/a\0"] {
            assert!(check_folder(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_scope(Some("/")).unwrap(), None);
        assert_eq!(check_scope(Some("/sub/dir")).unwrap().as_deref(), Some("/sub/dir"));
    }
}
