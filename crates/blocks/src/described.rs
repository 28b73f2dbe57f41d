//! What a volume is, as it lies in its block store beside its objects: with the bucket alone an admin server can be made that
//! knows it again. Each description is a [`crate::note`] of one line of JSON; its name says of which volume it is, which
//! incarnation put it there, and since when it is so.

use crate::note;
use bytes::Bytes;
use chronofs_core::volume::VolumeSpec;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where descriptions lie.
pub const VOLUMES: &str = "volumes";
const FORMAT: u32 = 1;

/// What a volume is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Described {
    /// Of what is written here: 1.
    format: u32,
    /// The cluster that it is a volume of, `description:id`.
    pub cluster: String,
    /// Id of the metadata store that has its metadata.
    pub metadata_store: Uuid,
    /// The name of that.
    pub metadata_store_name: String,
    /// It was deleted, and can be taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The volume itself.
    pub volume: VolumeSpec,
}

impl Described {
    /// A volume of a cluster, whose metadata are in the store with this id and name.
    #[must_use]
    pub fn new(cluster: &str, (id, name): (Uuid, &str), volume: VolumeSpec) -> Described {
        let (cluster, metadata_store_name) = (cluster.to_owned(), name.to_owned());
        Described { format: FORMAT, cluster, metadata_store: id, metadata_store_name, deleted: false, volume }
    }

    /// The same of one that was deleted, or not.
    #[must_use]
    pub fn deleted(self, deleted: bool) -> Described {
        Described { deleted, ..self }
    }

    /// The note that lies in the store.
    ///
    /// # Errors
    /// It is none that JSON can say.
    pub fn note(&self) -> Result<Bytes, serde_json::Error> {
        Ok(note::seal(&serde_json::to_string(self)?))
    }

    /// Reads a note.
    ///
    /// # Errors
    /// It is damaged, or was written by a later chronofs.
    pub fn read(bytes: &[u8]) -> Result<Described, String> {
        let line = note::open(bytes).ok_or("its bytes do not have the checksum that it names")?;
        let found: Described = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if found.format != FORMAT {
            return Err(format!(
                "it has format {} where this program reads {FORMAT}: use a newer chronofs",
                found.format
            ));
        }
        Ok(found)
    }
}

/// What the name of a description says. The later ones of a volume sort behind the earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DescribedName {
    /// The volume.
    pub volume: Uuid,
    /// The incarnation of it that put it there: others leave it alone.
    pub incarnation: u16,
    /// Since when it is so, nanoseconds since the epoch.
    pub since_ns: u64,
}

impl DescribedName {
    /// Reads a name as it lies in a store.
    #[must_use]
    pub fn parse(name: &str) -> Option<DescribedName> {
        let (volume, rest) = name.strip_prefix(VOLUMES)?.strip_prefix('/')?.split_once('/')?;
        let (incarnation, since_ns) = rest.split_once('-')?;
        let found = DescribedName {
            volume: Uuid::try_parse(volume).ok()?,
            incarnation: incarnation.parse().ok()?,
            since_ns: since_ns.parse().ok()?,
        };
        (found.to_string() == name).then_some(found)
    }
}

impl std::fmt::Display for DescribedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let DescribedName { volume, incarnation, since_ns } = self;
        write!(f, "{VOLUMES}/{volume}/{incarnation}-{since_ns}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::Retention;
    use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression};

    fn described() -> Described {
        let volume = VolumeSpec {
            id: Uuid::from_u128(0x11),
            name: "home".to_owned(),
            block_size: BLOCK_SIZE_DEFAULT,
            compression: Compression::Lz4,
            retention: Retention::Forever,
            max_bytes: Some(1 << 40),
            max_inodes: None,
            hash_key: [7; 16],
        };
        Described::new("lab:42", (Uuid::from_u128(0x12), "main"), volume)
    }

    #[test]
    fn a_description_of_format_1_is_read_for_ever() {
        let line = "{\"format\":1,\"cluster\":\"lab:42\",\"metadata_store\":\"00000000-0000-0000-0000-000000000012\",\
                    \"metadata_store_name\":\"main\",\"volume\":{\"id\":\"00000000-0000-0000-0000-000000000011\",\
                    \"name\":\"home\",\"block_size\":4194304,\"compression\":\"lz4\",\"retention\":\"-1\",\
                    \"max_bytes\":1099511627776,\"max_inodes\":null,\"hash_key\":[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7]}}";
        assert_eq!(described().note().unwrap(), note::seal(line));
        assert_eq!(Described::read(&note::seal(line)), Ok(described()));
        let deleted = Described { deleted: true, ..described() };
        let line = line.replace(",\"volume\":", ",\"deleted\":true,\"volume\":");
        assert_eq!(
            (deleted.note().unwrap(), Described::read(&note::seal(&line))),
            (note::seal(&line), Ok(deleted))
        );
    }

    #[test]
    fn what_is_damaged_or_of_a_later_program_is_refused() {
        let whole = described().note().unwrap();
        assert!(Described::read(&whole[..whole.len() - 1]).unwrap_err().contains("checksum"));
        assert!(Described::read(&note::seal("{}")).is_err());
        let later = std::str::from_utf8(&whole).unwrap().split_once('\n').unwrap().0.replace(":1,", ":2,");
        assert!(Described::read(&note::seal(&later)).unwrap_err().contains("format 2"));
    }

    #[test]
    fn it_lies_under_a_name_that_says_whose_it_is_and_the_latest_comes_last() {
        let name = DescribedName { volume: Uuid::from_u128(0x11), incarnation: 3, since_ns: 70 };
        assert_eq!(name.to_string(), "volumes/00000000-0000-0000-0000-000000000011/3-70");
        assert_eq!(DescribedName::parse(&name.to_string()), Some(name));
        note::check_note(&name.to_string()).unwrap();
        for other in [
            name.to_string().to_uppercase(),
            format!("{name}-1"),
            format!("{name} "),
            "volumes/x/1-2".to_owned(),
        ] {
            assert_eq!(DescribedName::parse(&other), None, "{other}");
        }
        assert!(
            DescribedName { since_ns: 9, ..name } < name && name < DescribedName { incarnation: 4, ..name }
        );
    }
}
