//! The key of a place of backups: what names its pieces, so that names tell nothing, and what seals them.
//!
//! Every object has a name of 32 bytes, and a key of its own that follows from it (keyed BLAKE3). It is sealed with AES-256-GCM
//! under a random nonce, bound to its name, so no object can be taken for another.

use crate::error::Error;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use chronofs_keys::{Passphrase, SecretKey};
use std::path::Path;
use zeroize::Zeroizing;

/// What every sealed object begins with; the last two digits are the format.
const MAGIC: &[u8; 8] = b"CFSBAK01";
/// By so much a sealed object is longer than what is in it: with the tag at its end.
pub(crate) const OVERHEAD: usize = MAGIC.len() + NONCE_LEN + 16;

/// The name of an object.
pub(crate) type Name = [u8; 32];

/// See the module. Its debug form shows nothing of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key(SecretKey);

/// What opens a place of backups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unlock {
    /// Its key.
    Key(Key),
    /// What its key follows from, in the way that the place itself says.
    Passphrase(Passphrase),
}

impl From<Key> for Unlock {
    fn from(key: Key) -> Self {
        Unlock::Key(key)
    }
}

impl From<Passphrase> for Unlock {
    fn from(passphrase: Passphrase) -> Self {
        Unlock::Passphrase(passphrase)
    }
}

impl From<SecretKey> for Key {
    fn from(key: SecretKey) -> Self {
        Key(key)
    }
}

impl Key {
    /// A new one.
    pub fn draw() -> Result<Key, Error> {
        Ok(Key(SecretKey::draw()?))
    }

    /// From its text: 64 digits.
    pub fn parse(text: &str) -> Result<Key, Error> {
        Ok(Key(SecretKey::parse(text)?))
    }

    /// Its text. Nobody may see it.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        self.0.reveal()
    }

    /// From its file, which nobody but its owner may read.
    pub fn read(path: &Path) -> Result<Key, Error> {
        Ok(Key(SecretKey::read(path, "chronofs backup key FILE")?))
    }

    /// Writes it into a new file.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        Ok(self.0.write(path)?)
    }

    /// What follows from it for `what` and `parts`, and tells nothing of either.
    pub(crate) fn derive(&self, what: &str, parts: &[&[u8]]) -> Name {
        *self.0.derive(what, parts)
    }

    fn cipher(&self, name: &Name) -> Result<LessSafeKey, Error> {
        let key = self.0.derive("object key", &[name]);
        UnboundKey::new(&AES_256_GCM, &key[..]).map(LessSafeKey::new).map_err(|_| Error::Cipher)
    }

    /// Seals `plain` as the object `name`.
    pub(crate) fn seal(&self, name: &Name, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| Error::Key(chronofs_keys::Error::NoRandom))?;
        self.seal_with(name, plain, nonce)
    }

    pub(crate) fn seal_with(
        &self,
        name: &Name,
        plain: &[u8],
        nonce: [u8; NONCE_LEN],
    ) -> Result<Vec<u8>, Error> {
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&nonce);
        let body = sealed.len();
        sealed.extend_from_slice(plain);
        let aad = Aad::from([&MAGIC[..], name].concat());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.cipher(name)?.seal_in_place_separate_tag(nonce, aad, &mut sealed[body..]);
        sealed.extend_from_slice(tag.map_err(|_| Error::Cipher)?.as_ref());
        Ok(sealed)
    }

    /// Opens what [`Key::seal`] made for `name`; otherwise why it cannot be opened.
    pub(crate) fn open(&self, name: &Name, mut sealed: Vec<u8>) -> Result<Vec<u8>, String> {
        let broken = || "it does not open: other bytes, cut off, or put in another's place".to_owned();
        let head = MAGIC.len() + NONCE_LEN;
        let (magic, rest) = sealed.split_first_chunk::<8>().ok_or_else(broken)?;
        if magic != MAGIC {
            return Err("it is no object of this format: is it of a newer chronofs?".to_owned());
        }
        let nonce = *rest.first_chunk::<NONCE_LEN>().ok_or_else(broken)?;
        let aad = Aad::from([&MAGIC[..], name].concat());
        let cipher = self.cipher(name).map_err(|error| error.to_string())?;
        let opened = cipher.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut sealed[head..]);
        let length = opened.map_err(|_| broken())?.len();
        sealed.drain(..head);
        sealed.truncate(length);
        Ok(sealed)
    }
}

/// A name as it stands in names of objects.
pub(crate) fn hex(name: &Name) -> String {
    blake3::Hash::from_bytes(*name).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_sealed_opens_with_its_key_under_its_name_and_only_as_it_was() {
        let key = Key::draw().unwrap();
        for length in [0, 1, 17, 70_000] {
            let plain: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let sealed = key.seal(&[7; 32], &plain).unwrap();
            assert_eq!(sealed.len(), plain.len() + OVERHEAD);
            assert_eq!(key.open(&[7; 32], sealed.clone()).unwrap(), plain);
            assert!(key.open(&[8; 32], sealed.clone()).is_err());
            assert!(Key::draw().unwrap().open(&[7; 32], sealed.clone()).is_err());
            assert_ne!(key.seal(&[7; 32], &plain).unwrap(), sealed, "a nonce is used once");
            for at in [0, 7, 8, 19, sealed.len() / 2, sealed.len() - 1] {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                assert!(key.open(&[7; 32], damaged).is_err(), "byte {at} of {length}");
                assert!(key.open(&[7; 32], sealed[..at].to_vec()).is_err(), "cut at {at} of {length}");
            }
        }
    }

    #[test]
    fn the_form_of_a_sealed_object_stays() {
        let key = Key(SecretKey::new([3; 32]));
        let sealed = key.seal_with(&key.derive("chunk", &[b"a", b"b"]), b"content", [5; NONCE_LEN]).unwrap();
        let text: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sealed-1.hex");
        if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
            fs::write(golden, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(golden).unwrap());
    }
}
