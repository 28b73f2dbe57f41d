//! Notes in a block store: what lies beside the objects and is none of them. Two lines of text, for people who look into a
//! bucket: what is said as JSON, and the CRC32C of that line.

use crate::described::VOLUMES;
use crate::keys::KEYS;
use crate::pin::PINS;
use crate::port::StoreError;
use crate::reader::READERS;
use bytes::Bytes;

/// Where records of snapshots lie, each under its UID.
pub const SNAPSHOTS: &str = "snapshots";
/// The longest note.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
/// The most notes in a folder of a store. One that has more cannot be read.
pub const NOTES_MAX: usize = 10_000;

/// A line with its checksum.
pub fn seal(line: &str) -> Bytes {
    format!("{line}\n{:08x}\n", crc32c::crc32c(line.as_bytes())).into()
}

/// The line of a note, if it is just what was sealed.
pub fn open(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (line, sum) = text.strip_suffix('\n')?.split_once('\n')?;
    (sum == format!("{:08x}", crc32c::crc32c(line.as_bytes()))).then_some(line)
}

/// Nothing but notes is put or removed as one.
pub(crate) fn check_note(name: &str) -> Result<(), StoreError> {
    let is_plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match name.split_once('/') {
        Some((KEYS | PINS | READERS | SNAPSHOTS | VOLUMES, rest)) if rest.split('/').all(is_plain) => Ok(()),
        _ => Err(StoreError::missing(name, "that is not the name of a note")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_note_has_the_name_of_one() {
        for name in ["pins/a-1/b", "readers/c50263df/9", "snapshots/c50263df"] {
            check_note(name).unwrap();
        }
        for name in
            ["pins", "pins/", "objects/00/a", "pins/../objects/x", "snapshots//a", "readers/a#1", "/pins/a"]
        {
            assert!(check_note(name).is_err(), "{name}");
        }
    }
}
