//! Names of directory entries and of extended attributes, checked once where they come in.

use crate::Errno;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;
use std::fmt;
use std::hash::Hasher;

/// The name of a directory entry: 1 to 255 bytes, no `/`, no NUL, not `.` and not `..`. Any other byte may stand
/// in it, UTF-8 or not. That of an entry of an encrypted volume is sealed by the client and longer; what comes over the wire
/// or out of a row may be such a one, and who knows the volume checks its length ([`Name::is_longer_than`]).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Name(Bytes);

impl Name {
    /// The longest name in bytes.
    pub const LEN_MAX: usize = 255;
    /// The longest sealed name in bytes.
    pub const SEALED_LEN_MAX: usize = 384;

    /// Checks `bytes`. Errors: ENAMETOOLONG, EINVAL.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, Errno> {
        Name::within(bytes.into(), Self::LEN_MAX)
    }

    /// Checks a name that may be sealed. Errors: ENAMETOOLONG, EINVAL.
    pub fn sealed(bytes: impl Into<Bytes>) -> Result<Self, Errno> {
        Name::within(bytes.into(), Self::SEALED_LEN_MAX)
    }

    fn within(bytes: Bytes, len_max: usize) -> Result<Self, Errno> {
        if bytes.len() > len_max {
            return Err(Errno::ENAMETOOLONG);
        }
        let special = bytes.is_empty() || bytes.as_ref() == b"." || bytes.as_ref() == b"..";
        if special || bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Errno::EINVAL);
        }
        Ok(Name(bytes))
    }

    /// Whether it has more bytes than this.
    pub fn is_longer_than(&self, len_max: usize) -> bool {
        self.0.len() > len_max
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Bytes> for Name {
    type Error = Errno;
    fn try_from(bytes: Bytes) -> Result<Self, Errno> {
        Name::sealed(bytes)
    }
}

impl From<Name> for Bytes {
    fn from(name: Name) -> Bytes {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Where a name stands in its directory: a keyed 55-bit hash of the name, then 8 bits of tie.
///
/// It is the second half of an entry's key and the entry's readdir cookie, so it is the same for as long as the
/// entry lives, positive as an `off_t`, and never below [`Position::FIRST`] (lower cookies are `.` and `..`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Position(pub u64);

impl Position {
    /// The lowest position an entry can have.
    pub const FIRST: Position = Position(1 << 8);
    /// How many names of one hash a directory can hold.
    pub const TIES: u64 = 1 << 8;

    /// The first position of `name` under the volume's secret `key`.
    pub fn of(name: &[u8], key: &[u8; 16]) -> Position {
        let mut hasher = SipHasher24::new_with_key(key);
        hasher.write(name);
        Position((hasher.finish() >> 9).max(1) << 8)
    }

    /// The position of the same hash with `tie` (below [`Position::TIES`]).
    pub fn with_tie(self, tie: u64) -> Position {
        assert!(tie < Self::TIES, "tie out of range");
        Position(self.0 & !(Self::TIES - 1) | tie)
    }
}
