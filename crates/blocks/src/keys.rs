//! Sealed keys of encrypted volumes as they lie in a block store, beside the pins: with the bucket and the volume's secret all
//! that was written can be opened, whatever becomes of the servers. Each is a [`crate::note`] with the JSON that the crate `keys`
//! writes; its name says of which volume it is, which incarnation put it there, and which revision it has.

use crate::note;
use bytes::Bytes;
use chronofs_keys::SealedKeys;
use uuid::Uuid;

/// Where sealed keys lie.
pub const KEYS: &str = "keys";

/// What the name of sealed keys says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KeysName {
    /// The volume.
    pub volume: Uuid,
    /// The incarnation of it that put them there: others leave them alone.
    pub incarnation: u16,
    /// Their revision.
    pub revision: u64,
    /// CRC32C of their JSON: of one revision there may be two, if servers were restored from old copies.
    pub crc32c: u32,
}

impl KeysName {
    /// The name of sealed keys of this incarnation.
    #[must_use]
    pub fn of(volume: Uuid, incarnation: u16, revision: u64, sealed: &str) -> KeysName {
        KeysName { volume, incarnation, revision, crc32c: crc32c::crc32c(sealed.as_bytes()) }
    }

    /// Reads a name as it lies in a store.
    #[must_use]
    pub fn parse(name: &str) -> Option<KeysName> {
        let (volume, rest) = name.strip_prefix(KEYS)?.strip_prefix('/')?.split_once('/')?;
        let mut parts = rest.split('-');
        let (incarnation, revision, sum) = (parts.next()?, parts.next()?, parts.next()?);
        let found = KeysName {
            volume: Uuid::try_parse(volume).ok()?,
            incarnation: incarnation.parse().ok()?,
            revision: revision.parse().ok()?,
            crc32c: u32::from_str_radix(sum, 16).ok()?,
        };
        (found.to_string() == name).then_some(found)
    }
}

impl std::fmt::Display for KeysName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let KeysName { volume, incarnation, revision, crc32c } = self;
        write!(f, "{KEYS}/{volume}/{incarnation}-{revision}-{crc32c:08x}")
    }
}

/// The note with sealed keys.
#[must_use]
pub fn note_of(sealed: &str) -> Bytes {
    note::seal(sealed)
}

/// The sealed keys of a note, if they can be understood.
#[must_use]
pub fn keys_of(bytes: &[u8]) -> Option<SealedKeys> {
    SealedKeys::parse(note::open(bytes)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = include_str!("../../keys/tests/golden/volume-keys-1.json");

    #[test]
    fn keys_lie_under_a_name_that_says_whose_they_are() {
        let sealed = JSON.trim_end();
        let name = KeysName::of(Uuid::from_u128(0x11), 3, 7, sealed);
        let sum = format!("{:08x}", crc32c::crc32c(sealed.as_bytes()));
        assert_eq!(name.to_string(), format!("keys/00000000-0000-0000-0000-000000000011/3-7-{sum}"));
        assert_eq!(KeysName::parse(&name.to_string()), Some(name));
        note::check_note(&name.to_string()).unwrap();
        for other in [
            name.to_string().to_uppercase(),
            format!("{name}-1"),
            "keys/x/1-2-3".to_owned(),
            "keys".to_owned(),
        ] {
            assert_eq!(KeysName::parse(&other), None, "{other}");
        }
        assert_eq!(keys_of(&note_of(sealed)).unwrap().volume(), Uuid::from_u128(0x11));
        assert_eq!(keys_of(sealed.as_bytes()), None, "without its checksum");
    }
}
