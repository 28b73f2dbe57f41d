//! Pins as they lie in a block store: what of a volume's past somebody outside of the metadata still needs. Format 1.
//!
//! A pin is a row of the metadata and this object; whatever deletes obeys both. So metadata that was put back from an
//! old copy cannot delete what a snapshot or a backup made since then rests on. Two lines of text, for people who look
//! into a bucket: the pin as JSON, and the CRC32C of that line. Whatever is not exactly that cannot be read, and what
//! cannot be read is obeyed by deleting nothing.

use crate::note::{self, NOTE_BYTES_MAX};
use bytes::Bytes;
use chronofs_core::Version;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// Where pins lie.
pub const PINS: &str = "pins";
const FORMAT: u32 = 1;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The form of what follows.
    format: u32,
    /// The volume.
    pub volume: Uuid,
    /// Its incarnation: what other incarnations stored is not meant.
    pub incarnation: u16,
    /// Chosen by whoever made it.
    pub id: Uuid,
    /// The first instant that is kept, in nanoseconds.
    pub from: Version,
    /// The last one.
    pub to: Version,
    /// Who needs it.
    pub owner: String,
    /// What for, in words.
    pub reason: String,
    /// From then on nobody needs it. Without, until it is removed.
    pub ends: Option<Version>,
}

/// Why an object among the pins cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PinError {
    /// It lies where no pin does.
    #[error("{0} is not the name of a pin")]
    Name(String),
    /// It is not two lines, or the second is not what the first asks for.
    #[error("{0} is cut short or changed: its checksum is wrong")]
    Checksum(String),
    /// A newer program made it.
    #[error("{name} has format {format}, and this program knows {FORMAT}; use the newer one")]
    Format {
        /// The object.
        name: String,
        /// Its format.
        format: u32,
    },
    /// It says something else than its name, or nothing that makes sense.
    #[error("{name} makes no sense: {reason}")]
    Content {
        /// The object.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

impl Pin {
    /// A pin of the instants `from..=to`.
    pub fn new(volume: Uuid, incarnation: u16, id: Uuid, from: Version, to: Version) -> Pin {
        let (owner, reason, ends) = (String::new(), String::new(), None);
        Pin { format: FORMAT, volume, incarnation, id, from, to, owner, reason, ends }
    }

    /// Where it lies.
    pub fn name(&self) -> String {
        pin_name(self.volume, self.id)
    }

    /// Its bytes. Errors: it is longer than pins may be.
    pub fn encode(&self) -> Result<Bytes, PinError> {
        let content = |reason: String| PinError::Content { name: self.name(), reason };
        let line = serde_json::to_string(self).map_err(|error| content(error.to_string()))?;
        let text = note::seal(&line);
        if text.len() > NOTE_BYTES_MAX {
            return Err(content(format!("it has {} bytes, and may have {NOTE_BYTES_MAX}", text.len())));
        }
        Ok(text)
    }

    /// The pin that lies under `name`.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Pin, PinError> {
        #[derive(Deserialize)]
        struct AnyFormat {
            format: u32,
        }
        let named = parse_pin_name(name).ok_or_else(|| PinError::Name(name.to_owned()))?;
        let line = note::open(bytes).ok_or_else(|| PinError::Checksum(name.to_owned()))?;
        let content = |reason: String| PinError::Content { name: name.to_owned(), reason };
        let AnyFormat { format } = serde_json::from_str(line).map_err(|error| content(error.to_string()))?;
        if format != FORMAT {
            return Err(PinError::Format { name: name.to_owned(), format });
        }
        let pin: Pin = serde_json::from_str(line).map_err(|error| content(error.to_string()))?;
        if (pin.volume, pin.id) != named {
            return Err(content(format!("it names the pin {} of the volume {}", pin.id, pin.volume)));
        }
        if pin.from > pin.to {
            return Err(content(format!("it ends at {}, before it begins at {}", pin.to, pin.from)));
        }
        Ok(pin)
    }
}

/// Where the pin `id` of a volume lies.
pub fn pin_name(volume: Uuid, id: Uuid) -> String {
    format!("{PINS}/{volume}/{id}")
}

/// Volume and id of the pin of this name, spelled as [`pin_name`] does.
pub fn parse_pin_name(name: &str) -> Option<(Uuid, Uuid)> {
    let (volume, id) = name.strip_prefix(PINS)?.strip_prefix('/')?.split_once('/')?;
    let (volume, id) = (Uuid::try_parse(volume).ok()?, Uuid::try_parse(id).ok()?);
    (pin_name(volume, id) == name).then_some((volume, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin() -> Pin {
        let (volume, id) = (Uuid::from_u128(0x11), Uuid::from_u128(0x99));
        let mut pin =
            Pin::new(volume, 3, id, Version(1_700_000_000_000_000_000), Version(1_700_000_000_000_000_007));
        (pin.owner, pin.reason) = ("backup".to_owned(), "nightly, \"db\"\nsecond line".to_owned());
        pin.ends = Some(Version(1_800_000_000_000_000_000));
        pin
    }

    const GOLDEN: &str = include_str!("../tests/golden/pin-1.txt");

    #[test]
    fn a_pin_of_format_1_has_these_bytes() {
        let pin = pin();
        assert_eq!(
            pin.name(),
            "pins/00000000-0000-0000-0000-000000000011/00000000-0000-0000-0000-000000000099"
        );
        assert_eq!(pin.encode().unwrap(), GOLDEN.as_bytes());
        assert_eq!(Pin::decode(&pin.name(), GOLDEN.as_bytes()), Ok(pin));
    }

    #[test]
    fn whatever_byte_is_changed_or_missing_the_pin_cannot_be_read() {
        let (name, bytes) = (pin().name(), GOLDEN.as_bytes());
        for at in 0..bytes.len() {
            assert!(Pin::decode(&name, &bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            assert!(Pin::decode(&name, &changed).is_err(), "changed at {at}");
        }
        assert!(Pin::decode(&name, b"").is_err());
        assert!(Pin::decode(&name, b"<html>We will be back soon</html>\n").is_err());
    }

    #[test]
    fn a_pin_of_a_newer_format_or_under_another_name_is_refused_and_says_so() {
        let sealed = |line: String| format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes()));
        let newer = sealed(r#"{"format":2,"all":"else"}"#.to_owned());
        let refused = Pin::decode(&pin().name(), newer.as_bytes());
        assert_eq!(refused, Err(PinError::Format { name: pin().name(), format: 2 }));
        let unknown = sealed(GOLDEN.lines().next().unwrap().replace("\"owner\"", "\"more\":1,\"owner\""));
        assert!(matches!(Pin::decode(&pin().name(), unknown.as_bytes()), Err(PinError::Content { .. })));
        let other = pin_name(Uuid::from_u128(0x11), Uuid::from_u128(0x98));
        assert!(matches!(Pin::decode(&other, GOLDEN.as_bytes()), Err(PinError::Content { .. })));
        assert!(matches!(Pin::decode("pins/x", GOLDEN.as_bytes()), Err(PinError::Name(_))));
        let mut backwards = pin();
        backwards.to = Version(1);
        let refused = Pin::decode(&pin().name(), &backwards.encode().unwrap());
        assert!(matches!(refused, Err(PinError::Content { .. })));
    }

    #[test]
    fn names_are_taken_in_one_spelling_only() {
        let name = pin_name(Uuid::from_u128(0xab), Uuid::from_u128(0xcd));
        assert_eq!(parse_pin_name(&name), Some((Uuid::from_u128(0xab), Uuid::from_u128(0xcd))));
        for other in [name.to_uppercase(), name.replace('-', ""), format!("{name}/x"), format!("{name}.tmp")]
        {
            assert_eq!(parse_pin_name(&other), None, "{other}");
        }
    }
}
