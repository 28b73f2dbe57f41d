//! Content: one slice, sealed with AES-256-GCM under a key that follows from a data key and the slice's id.
//!
//! Format 1: number of the data key (u32, little-endian), nonce (12 bytes, random), the bytes, tag (16 bytes). The volume, the
//! number of the key, the slice and what the caller says about it are authenticated: no slice opens in another's place. Where
//! it lies is not, so that who has no key can move it. A slice's id is never used twice, so its key seals one text; the nonce
//! is random all the same.

use super::{VolumeKeys, follow};
use crate::Error;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;

const PURPOSE: &[u8] = b"chronofs slice 1";
const KEY_NUMBER_LEN: usize = 4;
const HEAD_LEN: usize = KEY_NUMBER_LEN + NONCE_LEN;
/// By so much a sealed slice is longer than what is in it.
pub const SLICE_OVERHEAD: usize = HEAD_LEN + 16;

/// What a sealed slice is bound to.
#[derive(Clone, Copy, Debug)]
pub struct SliceSeal<'a> {
    /// Its id, as bytes that no other slice of the volume has.
    pub slice: &'a [u8],
    /// What else has to be as it was.
    pub about: &'a [u8],
}

/// Why a sealed slice does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenFault {
    /// It was sealed with a data key that is not known here: one that is newer than what was read of the volume's keys.
    UnknownKey(u32),
    /// It is not what was sealed: other bytes, another slice, another volume.
    Forged,
}

impl VolumeKeys {
    /// Seals the bytes of a slice.
    pub fn seal_slice(&self, seal: SliceSeal<'_>, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| Error::NoRandom)?;
        self.seal_slice_with(seal, plain, nonce)
    }

    pub(super) fn seal_slice_with(
        &self,
        seal: SliceSeal<'_>,
        plain: &[u8],
        nonce: [u8; NONCE_LEN],
    ) -> Result<Vec<u8>, Error> {
        let mut stored = Vec::with_capacity(plain.len() + SLICE_OVERHEAD);
        stored.extend_from_slice(&self.active.to_le_bytes());
        stored.extend_from_slice(&nonce);
        stored.extend_from_slice(plain);
        let cipher = self.slice_cipher(self.active, seal)?.ok_or(Error::Cipher)?;
        let aad = Aad::from(self.bound(self.active, seal));
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = cipher.seal_in_place_separate_tag(nonce, aad, &mut stored[HEAD_LEN..]);
        stored.extend_from_slice(tag.map_err(|_| Error::Cipher)?.as_ref());
        Ok(stored)
    }

    /// The bytes of a slice that was sealed.
    pub fn open_slice(&self, seal: SliceSeal<'_>, mut stored: Vec<u8>) -> Result<Vec<u8>, OpenFault> {
        let (number, rest) = stored.split_first_chunk::<KEY_NUMBER_LEN>().ok_or(OpenFault::Forged)?;
        let number = u32::from_le_bytes(*number);
        let nonce = *rest.first_chunk::<NONCE_LEN>().ok_or(OpenFault::Forged)?;
        let cipher = self.slice_cipher(number, seal).map_err(|_| OpenFault::Forged)?;
        let cipher = cipher.ok_or(OpenFault::UnknownKey(number))?;
        let aad = Aad::from(self.bound(number, seal));
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = cipher.open_in_place(nonce, aad, &mut stored[HEAD_LEN..]);
        let len = opened.map_err(|_| OpenFault::Forged)?.len();
        stored.drain(..HEAD_LEN);
        stored.truncate(len);
        Ok(stored)
    }

    fn slice_cipher(&self, number: u32, seal: SliceSeal<'_>) -> Result<Option<LessSafeKey>, Error> {
        let Some(data) = self.data.get(&number) else { return Ok(None) };
        let key = follow(data, &[PURPOSE, seal.slice])?;
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).map_err(|_| Error::Cipher)?;
        Ok(Some(LessSafeKey::new(key)))
    }

    fn bound(&self, number: u32, seal: SliceSeal<'_>) -> Vec<u8> {
        [PURPOSE, self.volume.as_bytes(), &number.to_le_bytes(), seal.slice, seal.about].concat()
    }
}
