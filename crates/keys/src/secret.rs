//! 32 bytes that nobody may see.

use crate::error::Error;
use aws_lc_rs::{constant_time, rand};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// See the module. Its debug form shows nothing of it, and it is wiped when it goes.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0[..], &other.0[..]).is_ok()
    }
}

impl Eq for SecretKey {}

impl SecretKey {
    /// A new one.
    pub fn draw() -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(&mut bytes[..]).map_err(|_| Error::NoRandom)?;
        Ok(SecretKey(bytes))
    }

    /// These bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        SecretKey(Zeroizing::new(bytes))
    }

    /// From its text: 64 digits.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let hash = blake3::Hash::from_hex(text.trim()).map_err(|_| Error::NoKey)?;
        Ok(SecretKey::new(*hash.as_bytes()))
    }

    /// Its text. Nobody may see it.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(data_encoding::HEXLOWER.encode(&self.0[..]))
    }

    /// Its bytes. Nobody may see them.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From its file, which nobody but its owner may read. `made_by` is the command that makes one.
    pub fn read(path: &Path, made_by: &str) -> Result<Self, Error> {
        let text = read_private(path, &format!("; {made_by} makes one"))?;
        SecretKey::parse(&text).map_err(|error| Error::File { path: path.to_owned(), why: error.to_string() })
    }

    /// Writes it into a new file.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut open = OpenOptions::new();
        let file = open.write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut file| {
            file.write_all(self.reveal().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()
        });
        let failed = |error| Error::File { path: path.to_owned(), why: format!("cannot write it: {error}") };
        written.map_err(failed)
    }

    /// What follows from it for `what` and `parts`, and tells nothing of it or of them.
    #[must_use]
    pub fn derive(&self, what: &str, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in std::iter::once(what.as_bytes()).chain(parts.iter().copied()) {
            // With its length before it, so that no two lists of parts are one text.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Zeroizing::new(*hasher.finalize().as_bytes())
    }
}

/// The text of a file that nobody but its owner may read. `hint` is said if it cannot be read.
pub(crate) fn read_private(path: &Path, hint: &str) -> Result<Zeroizing<String>, Error> {
    let bad = |why: String| Error::File { path: path.to_owned(), why };
    let text = fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|e| bad(format!("it cannot be read: {e}{hint}")))?;
    let mode = fs::metadata(path).map_err(|e| bad(e.to_string()))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(bad(format!("others may read it (mode {mode:o}): chmod 600, and consider it as known")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_for_its_owner_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = SecretKey::draw().unwrap();
        key.write(&path).unwrap();
        assert_eq!(SecretKey::read(&path, "x").unwrap(), key);
        assert!(key.write(&path).is_err());
        let said = |path: &Path| SecretKey::read(path, "chronofs make").unwrap_err().to_string();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(said(&path).contains("mode 640"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "no key").unwrap();
        assert!(said(&path).contains("64 digits"));
        assert!(said(&folder.path().join("none")).contains("chronofs make"));
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let key = SecretKey::draw().unwrap();
        assert_eq!(format!("{key:?}"), "SecretKey(…)");
        assert_eq!(SecretKey::parse(&key.reveal()).unwrap(), key);
        assert_ne!(SecretKey::draw().unwrap(), key);
    }

    #[test]
    fn parts_are_told_from_their_sum() {
        let key = SecretKey::new([3; 32]);
        assert_ne!(key.derive("a", &[b"bc"]), key.derive("ab", &[b"c"]));
        assert_ne!(key.derive("a", &[b"b", b"c"]), key.derive("a", &[b"bc"]));
        assert_ne!(key.derive("a", &[]), SecretKey::new([4; 32]).derive("a", &[]));
    }
}
