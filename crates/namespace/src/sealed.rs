//! What an encrypted volume is to the server: names, targets and attributes that its clients have sealed, and so are longer,
//! and sealed keys that it keeps and cannot open.

use crate::rows::{DIR, Format, INODE, KEYS, STORE_WIDE, Volume, VolumeKeys, ino_key};
use crate::system::{Decided, Steward, SystemError, SystemReply};
use crate::{TARGET_LEN_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX};
use chronofs_core::ops::Request;
use chronofs_core::{Errno, Ino, Name, VolumeIndex};
use chronofs_engine::{ReadStop, Reads};
use chronofs_history::{Row, Snapshot};
use uuid::Uuid;

/// By so much a sealed value may be longer than what is in it.
const VALUE_OVERHEAD_MAX: usize = 64;
/// The longest sealed keys.
const KEYS_LEN_MAX: usize = 64 << 10;

impl Volume {
    /// The longest name of an entry.
    pub(crate) fn name_max(&self) -> usize {
        if self.is_encrypted() { Name::SEALED_LEN_MAX } else { Name::LEN_MAX }
    }

    /// The longest target of a symbolic link.
    pub(crate) fn target_max(&self) -> usize {
        TARGET_LEN_MAX + if self.is_encrypted() { VALUE_OVERHEAD_MAX } else { 0 }
    }

    /// The longest name of an extended attribute.
    pub(crate) fn xattr_name_max(&self) -> usize {
        if self.is_encrypted() { Name::SEALED_LEN_MAX } else { XATTR_NAME_MAX }
    }

    /// The longest value of an extended attribute.
    pub(crate) fn xattr_value_max(&self) -> usize {
        XATTR_VALUE_MAX + if self.is_encrypted() { VALUE_OVERHEAD_MAX } else { 0 }
    }
}

/// Whether the names of entries in a request may be names of this volume. Errors: ENAMETOOLONG.
pub(crate) fn check_names(volume: &Volume, request: &Request) -> Result<(), Errno> {
    let fits = |name: &Name| !name.is_longer_than(volume.name_max());
    let fit = match request {
        Request::Lookup { name, .. }
        | Request::Create { name, .. }
        | Request::Link { name, .. }
        | Request::Unlink { name, .. }
        | Request::Rmdir { name, .. } => fits(name),
        Request::Rename { name, new_name, .. } => fits(name) && fits(new_name),
        _ => true,
    };
    if fit { Ok(()) } else { Err(Errno::ENAMETOOLONG) }
}

/// The sealed keys of a volume, if it is encrypted.
pub fn sealed_keys<R: Reads + ?Sized>(reads: &R, index: VolumeIndex) -> Result<Option<VolumeKeys>, ReadStop> {
    let key = index.0.to_be_bytes();
    let row = Snapshot::new(reads, STORE_WIDE, None).get_plain(KEYS, &key)?;
    row.map(|row| VolumeKeys::decode(KEYS, &key, &row)).transpose()
}

impl<R: Reads + ?Sized> Steward<'_, R> {
    /// Keeps sealed keys.
    pub(crate) fn set_keys(&mut self, id: Uuid, revision: u64, sealed: &str) -> Decided<SystemReply> {
        let bad = |problem: &str| Err(SystemError::BadSpec(problem.to_owned()).into());
        let (index, mut volume) = self.any_volume(id)?;
        if sealed.len() > KEYS_LEN_MAX {
            return bad("its sealed keys are too long");
        }
        match sealed_keys(self.reads, index)? {
            Some(kept) if kept.revision >= revision => {
                return Ok(SystemReply::Volume { index, volume: Box::new(volume) });
            }
            Some(_) => {}
            None => {
                if !self.is_unused(index, &volume)? {
                    return bad(
                        "there are files in it that are not encrypted; make a new volume and copy them",
                    );
                }
                volume.flags |= Volume::ENCRYPTED;
                self.put_volume(index, &volume)?;
            }
        }
        let row = VolumeKeys { flags: 0, revision, sealed: sealed.to_owned() };
        self.store.put_plain(KEYS, &index.0.to_be_bytes(), &row.encode()?);
        Ok(SystemReply::Volume { index, volume: Box::new(volume) })
    }

    /// Whether nothing was ever made in a volume: its root is as the commit left it that made it.
    fn is_unused(&self, index: VolumeIndex, volume: &Volume) -> Decided<bool> {
        let key = ino_key(Ino::ROOT);
        let tables = Snapshot::new(self.reads, index, None);
        let as_born = |row: Option<Row>| row.is_some_and(|row| row.since == volume.born);
        Ok(as_born(tables.get(DIR, &key)?) && as_born(tables.get(INODE, &key)?))
    }
}
