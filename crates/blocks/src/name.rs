//! The names of objects: `objects/HH/VOLUME/INCARNATION/SESSION/N`.
//!
//! Numbers are in hex without leading zeros. `HH` is the lowest byte of the CRC32C of what follows it, so that
//! neighbours in time are spread over a store's partitions and folders.

use chronofs_core::{ObjectId, SessionId};
use uuid::Uuid;

/// The name under which the object `id` of `volume` is stored.
pub fn object_name(volume: Uuid, id: ObjectId) -> String {
    let rest = format!("{volume}/{id}");
    format!("objects/{:02x}/{rest}", crc32c::crc32c(rest.as_bytes()) & 0xff)
}

/// The volume and id that a name stands for, or `None` if it is not exactly the name of an object.
pub fn parse_object_name(name: &str) -> Option<(Uuid, ObjectId)> {
    let mut parts = name.strip_prefix("objects/")?.split('/').skip(1);
    let volume = Uuid::try_parse(parts.next()?).ok()?;
    let incarnation = u16::from_str_radix(parts.next()?, 16).ok()?;
    let session = SessionId(u64::from_str_radix(parts.next()?, 16).ok()?);
    let n = u64::from_str_radix(parts.next()?, 16).ok()?;
    let id = ObjectId { incarnation, session, n };
    // Whatever is spelled otherwise than this crate spells it is a stranger's.
    (object_name(volume, id) == name).then_some((volume, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ObjectId {
        ObjectId { incarnation: 3, session: SessionId(0x2a), n: 0x100 }
    }

    #[test]
    fn a_name_holds_volume_incarnation_session_and_counter() {
        let name = object_name(Uuid::from_u128(1), id());
        assert_eq!(name, "objects/24/00000000-0000-0000-0000-000000000001/3/2a/100");
    }

    #[test]
    fn a_name_reads_back_and_any_other_spelling_is_refused() {
        let name = object_name(Uuid::from_u128(7), id());
        assert_eq!(parse_object_name(&name), Some((Uuid::from_u128(7), id())));
        let upper = name.to_uppercase();
        let longer = format!("{name}/1");
        let zeros = name.replace("/2a/", "/02a/");
        for other in ["", "objects", "objects/00/../../x", &upper, &longer, &zeros, &name[1..]] {
            assert_eq!(parse_object_name(other), None, "{other}");
        }
    }
}
