//! The mounts of this machine, as `/proc/self/mountinfo` lists them.

use chronofs_core::Version;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The file system type of our mounts.
const FS_TYPE: &str = "fuse.chronofs";
/// A chronofs mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountLine {
    /// Where it is.
    pub(crate) dir: PathBuf,
    /// Volume, and `@INSTANT` of a mounted past.
    pub(crate) source: String,
    /// `major:minor` of its device.
    pub(crate) device: String,
}

impl MountLine {
    /// Volume and instant.
    pub(crate) fn volume_and_instant(&self) -> (&str, Option<&str>) {
        match self.source.rsplit_once('@') {
            Some((volume, instant)) => (volume, Some(instant)),
            None => (&self.source, None),
        }
    }
}

/// The source of a mount: what stands first in its line of fstab, so that `mount -a` knows what is mounted already.
pub(crate) fn source(volume: &str, at: Option<Version>) -> String {
    match at {
        Some(at) => format!("{volume}@{at}"),
        None => volume.to_owned(),
    }
}

/// All chronofs mounts.
pub(crate) fn chronofs_mounts() -> io::Result<Vec<MountLine>> {
    let bytes = fs::read("/proc/self/mountinfo")?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(parse_line).collect())
}

/// The chronofs mount on exactly `dir`, the topmost if there are several.
pub(crate) fn chronofs_mount_at(dir: &Path) -> io::Result<Option<MountLine>> {
    Ok(chronofs_mounts()?.into_iter().rfind(|mount| mount.dir == dir))
}

/// `36 35 98:0 /root /dir options [optional...] - type source superoptions`
fn parse_line(line: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    if *fields.get(dash + 1)? != FS_TYPE.as_bytes() {
        return None;
    }
    Some(MountLine {
        dir: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        source: String::from_utf8_lossy(&unescape(fields.get(dash + 2)?)).into_owned(),
        device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = match tail.first_chunk::<3>() {
            Some(digits) if byte == b'\\' => octal(digits),
            _ => None,
        };
        match octal {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_mounts_are_taken_and_odd_names_are_read() {
        let line =
            b"98 29 0:45 / /mnt/a\\040b\\134c rw,relatime shared:1 - fuse.chronofs v@2026-03-15T10:00:00Z rw";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.dir, Path::new("/mnt/a b\\c"));
        assert_eq!(mount.volume_and_instant(), ("v", Some("2026-03-15T10:00:00Z")));
        assert_eq!(mount.device, "0:45");
        assert_eq!(parse_line(b"98 29 0:45 / /mnt rw - ext4 /dev/vda rw"), None);
        assert_eq!(parse_line(b"98 29 0:45 / /mnt rw - fuse.sshfs host: rw"), None);
        assert_eq!(parse_line(b""), None);
        assert_eq!(unescape(b"a\\"), b"a\\");
    }

    #[test]
    fn the_mounts_of_this_machine_can_be_read() {
        chronofs_mounts().unwrap();
    }
}
