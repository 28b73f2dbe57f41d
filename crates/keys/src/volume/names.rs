//! Names and short values.
//!
//! A **name** is sealed the same way each time, since it is looked up by what it is sealed to: with AES-256-GCM-SIV (RFC 8452),
//! which tells of two texts under one nonce only whether they are the same, under a key of its directory. So two directories
//! show nothing of having a name in common. It is filled up with zeros to a multiple of 16 bytes, so that its length shows as
//! little, and written in base64url, so that nothing in it means anything to a file system.
//!
//! A **value** (the target of a symbolic link, the value of an attribute) has a random nonce in front of it.

use super::{VolumeKeys, follow};
use crate::Error;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use data_encoding::BASE64URL_NOPAD;

const NAME: &[u8] = b"chronofs name 1";
const VALUE: &[u8] = b"chronofs value 1";
const FILL: usize = 16;
const TAG_LEN: usize = 16;
/// The longest sealed form of a name of 255 bytes.
pub const NAME_SEALED_MAX: usize = ((255usize.next_multiple_of(FILL) + TAG_LEN) * 4).div_ceil(3);
/// By so much a sealed value is longer than what is in it.
pub const VALUE_OVERHEAD: usize = NONCE_LEN + TAG_LEN;

impl VolumeKeys {
    /// Seals the name of something in `of`. `what` tells names of different kinds apart. A name holds no NUL.
    pub fn seal_name(&self, what: &str, of: u64, name: &[u8]) -> Result<Vec<u8>, Error> {
        let mut sealed = name.to_vec();
        sealed.resize(name.len().next_multiple_of(FILL), 0);
        let (cipher, bound) = self.name_cipher(what, of)?;
        cipher
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key([0; NONCE_LEN]),
                Aad::from(bound),
                &mut sealed,
            )
            .map_err(|_| Error::Cipher)?;
        Ok(BASE64URL_NOPAD.encode(&sealed).into_bytes())
    }

    /// The name that [`VolumeKeys::seal_name`] was given; none if this is not what it gave.
    #[must_use]
    pub fn open_name(&self, what: &str, of: u64, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut name = BASE64URL_NOPAD.decode(sealed).ok()?;
        let (cipher, bound) = self.name_cipher(what, of).ok()?;
        let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
        let filled = cipher.open_in_place(nonce, Aad::from(bound), &mut name).ok()?.len();
        let len = name[..filled].iter().rposition(|byte| *byte != 0)? + 1;
        name.truncate(len);
        (len.next_multiple_of(FILL) == filled).then_some(name)
    }

    fn name_cipher(&self, what: &str, of: u64) -> Result<(LessSafeKey, Vec<u8>), Error> {
        let of = of.to_le_bytes();
        let key = follow(&self.names, &[NAME, b" ", what.as_bytes(), b" ", &of])?;
        let key = UnboundKey::new(&AES_256_GCM_SIV, &key[..]).map_err(|_| Error::Cipher)?;
        Ok((LessSafeKey::new(key), [NAME, self.volume.as_bytes(), &of, what.as_bytes()].concat()))
    }

    /// Seals a value. What it is bound to, `what` and `of`, has to be the same when it is opened.
    pub fn seal_value(&self, what: &str, of: &[u8], value: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| Error::NoRandom)?;
        self.seal_value_with(what, of, value, nonce)
    }

    pub(super) fn seal_value_with(
        &self,
        what: &str,
        of: &[u8],
        value: &[u8],
        nonce: [u8; NONCE_LEN],
    ) -> Result<Vec<u8>, Error> {
        let (cipher, bound) = self.value_cipher(what, of)?;
        let mut sealed = value.to_vec();
        cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut sealed)
            .map_err(|_| Error::Cipher)?;
        sealed.splice(..0, nonce);
        Ok(sealed)
    }

    /// The value that [`VolumeKeys::seal_value`] was given; none if this is not what it gave.
    #[must_use]
    pub fn open_value(&self, what: &str, of: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let (cipher, bound) = self.value_cipher(what, of).ok()?;
        let mut value = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = cipher.open_in_place(nonce, Aad::from(bound), &mut value).ok()?.len();
        value.truncate(len);
        Some(value)
    }

    fn value_cipher(&self, what: &str, of: &[u8]) -> Result<(LessSafeKey, Vec<u8>), Error> {
        let key = follow(&self.names, &[VALUE, b" ", what.as_bytes()])?;
        let key = UnboundKey::new(&AES_256_GCM_SIV, &key[..]).map_err(|_| Error::Cipher)?;
        let len = (of.len() as u64).to_le_bytes();
        let bound = [VALUE, self.volume.as_bytes(), &len, of, what.as_bytes()].concat();
        Ok((LessSafeKey::new(key), bound))
    }
}
