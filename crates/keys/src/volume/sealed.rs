//! A volume's keys as others keep them: each sealed with AES-256-GCM under a key that follows from the volume's secret.
//!
//! They stand in the admin server's database, in the metadata and in the block store, as JSON of format 1, and tell nobody
//! anything but how a key follows from a passphrase. All of it is bound to the seal of the key of names, so that nobody can
//! leave a key out, name another one as the active one, or give them to another volume.

use super::{VolumeKeys, follow};
use crate::Error;
use crate::passphrase::{Kdf, Passphrase};
use crate::secret::SecretKey;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;
use zeroize::Zeroizing;

const FORMAT: u32 = 1;
/// The key of names. Data keys count from 1.
const NAMES: u32 = 0;
/// The most keys, so that they fit where they are kept.
const KEYS_MAX: usize = 256;
const KEK: &[u8] = b"chronofs key of volume keys 1";
const WRAP: &[u8] = b"chronofs volume key 1";

/// What opens a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VolumeSecret {
    /// A key.
    Key(SecretKey),
    /// What a key follows from.
    Passphrase(Passphrase),
}

/// What seals the keys of one volume. It follows from the volume's secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kek(SecretKey);

/// See the module. It is no secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedKeys {
    format: u32,
    volume: Uuid,
    /// Rises with every change.
    revision: u64,
    /// How the key of these keys follows from a passphrase; without, it follows from a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kdf: Option<Kdf>,
    /// The data key that seals new slices.
    active: u32,
    /// By number.
    keys: Vec<SealedKey>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedKey {
    number: u32,
    /// In hex.
    nonce: String,
    /// In hex, with its tag.
    sealed: String,
}

impl SealedKeys {
    /// Keys of a new volume, with its id.
    pub fn of_new_volume(secret: &VolumeSecret) -> Result<Self, Error> {
        SealedKeys::draw(Uuid::now_v7(), secret)
    }

    /// Keys of the new volume of this id.
    pub fn draw(volume: Uuid, secret: &VolumeSecret) -> Result<Self, Error> {
        let keys = VolumeKeys {
            volume,
            active: 1,
            data: BTreeMap::from([(1, SecretKey::draw()?)]),
            names: SecretKey::draw()?,
        };
        SealedKeys::of(&keys, 1, secret)
    }

    /// The same keys, sealed for another secret.
    pub fn with_secret(&self, keys: &VolumeKeys, secret: &VolumeSecret) -> Result<Self, Error> {
        SealedKeys::of(keys, self.next_revision()?, secret)
    }

    /// With one more data key, which seals new slices from now on.
    pub fn with_new_key(&self, keys: &VolumeKeys, kek: &Kek) -> Result<Self, Error> {
        if self.keys.len() >= KEYS_MAX {
            return Err(Error::Keys(format!("there are {KEYS_MAX} already, and no volume has more")));
        }
        let mut keys = keys.clone();
        keys.active = keys.data.last_key_value().map_or(1, |(number, _)| number + 1);
        keys.data.insert(keys.active, SecretKey::draw()?);
        SealedKeys::seal(&keys, self.next_revision()?, self.kdf.clone(), kek)
    }

    /// From their JSON, if it says anything that this program knows.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let keys: SealedKeys = serde_json::from_str(text).map_err(|e| Error::Keys(e.to_string()))?;
        keys.check()?;
        Ok(keys)
    }

    /// Their JSON, in one line.
    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|e| Error::Keys(e.to_string()))
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// Rises with every change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether these can follow `before`: the next revision of the same volume's keys, with no key left out.
    #[must_use]
    pub fn follows(&self, before: &SealedKeys) -> bool {
        Some(self.revision) == before.revision.checked_add(1)
            && self.active >= before.active
            && self.is_ahead_of(before)
    }

    /// Whether these are a later revision of the same volume's keys, with no key left out.
    #[must_use]
    pub fn is_ahead_of(&self, before: &SealedKeys) -> bool {
        let has = |number| self.keys.iter().any(|key| key.number == number);
        self.volume == before.volume
            && self.revision > before.revision
            && before.keys.iter().all(|key| has(key.number))
    }

    /// For people: what opens them, and which data key is in use.
    #[must_use]
    pub fn shown(&self) -> String {
        let by = if self.kdf.is_some() { "a passphrase" } else { "a key file" };
        format!("opened by {by}; data key {}", self.active)
    }

    /// What opens these keys, if `secret` is of the right kind. Of a passphrase it takes a part of a second.
    pub fn kek(&self, secret: &VolumeSecret) -> Result<Kek, Error> {
        match (secret, &self.kdf) {
            (VolumeSecret::Key(key), None) => Kek::of(self.volume, key),
            (VolumeSecret::Passphrase(passphrase), Some(kdf)) => {
                Kek::of(self.volume, &kdf.derive(passphrase)?)
            }
            (VolumeSecret::Key(_), Some(_)) => Err(Error::ByPassphrase),
            (VolumeSecret::Passphrase(_), None) => Err(Error::ByKey),
        }
    }

    /// The keys. Errors: [`Error::WrongSecret`], which also is what keys that somebody has changed give.
    pub fn open(&self, kek: &Kek) -> Result<VolumeKeys, Error> {
        self.check()?;
        let mut opened = BTreeMap::new();
        for key in &self.keys {
            let nonce = HEXLOWER.decode(key.nonce.as_bytes()).ok().and_then(|nonce| nonce.try_into().ok());
            let nonce: [u8; NONCE_LEN] = nonce.ok_or(Error::WrongSecret)?;
            let sealed = HEXLOWER.decode(key.sealed.as_bytes()).map_err(|_| Error::WrongSecret)?;
            let mut sealed = Zeroizing::new(sealed);
            let bound = Aad::from(self.bound(key.number));
            let plain = kek.cipher()?.open_in_place(Nonce::assume_unique_for_key(nonce), bound, &mut sealed);
            let plain = plain.map_err(|_| Error::WrongSecret)?;
            let bytes: [u8; 32] = (&*plain).try_into().map_err(|_| Error::WrongSecret)?;
            opened.insert(key.number, SecretKey::new(bytes));
        }
        let names = opened.remove(&NAMES).ok_or(Error::WrongSecret)?;
        Ok(VolumeKeys { volume: self.volume, active: self.active, data: opened, names })
    }

    fn of(keys: &VolumeKeys, revision: u64, secret: &VolumeSecret) -> Result<Self, Error> {
        let (kdf, kek) = match secret {
            VolumeSecret::Key(key) => (None, Kek::of(keys.volume, key)?),
            VolumeSecret::Passphrase(passphrase) => {
                passphrase.check_new()?;
                let kdf = Kdf::draw()?;
                let kek = Kek::of(keys.volume, &kdf.derive(passphrase)?)?;
                (Some(kdf), kek)
            }
        };
        SealedKeys::seal(keys, revision, kdf, &kek)
    }

    fn seal(keys: &VolumeKeys, revision: u64, kdf: Option<Kdf>, kek: &Kek) -> Result<Self, Error> {
        let drawn = || {
            let mut nonce = [0; NONCE_LEN];
            rand::fill(&mut nonce).map_err(|_| Error::NoRandom)?;
            Ok(nonce)
        };
        SealedKeys::seal_with(keys, revision, kdf, kek, drawn)
    }

    pub(super) fn seal_with(
        keys: &VolumeKeys,
        revision: u64,
        kdf: Option<Kdf>,
        kek: &Kek,
        mut nonce: impl FnMut() -> Result<[u8; NONCE_LEN], Error>,
    ) -> Result<Self, Error> {
        let all: Vec<(u32, &SecretKey)> =
            std::iter::once((NAMES, &keys.names)).chain(keys.data.iter().map(|(n, key)| (*n, key))).collect();
        let blank = |(number, _): &(u32, &SecretKey)| SealedKey {
            number: *number,
            nonce: String::new(),
            sealed: String::new(),
        };
        // What is bound names all keys.
        let mut sealed = SealedKeys {
            format: FORMAT,
            volume: keys.volume,
            revision,
            kdf,
            active: keys.active,
            keys: all.iter().map(blank).collect(),
        };
        let mut done = Vec::with_capacity(all.len());
        for (number, key) in all {
            let nonce = nonce()?;
            let mut bytes = Zeroizing::new(key.bytes().to_vec());
            let bound = Aad::from(sealed.bound(number));
            let tag = kek
                .cipher()?
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), bound, &mut bytes)
                .map_err(|_| Error::Cipher)?;
            let text = HEXLOWER.encode(&[&bytes[..], tag.as_ref()].concat());
            done.push(SealedKey { number, nonce: HEXLOWER.encode(&nonce), sealed: text });
        }
        sealed.keys = done;
        Ok(sealed)
    }

    fn next_revision(&self) -> Result<u64, Error> {
        self.revision.checked_add(1).ok_or_else(|| Error::Keys("their revision is the last one".to_owned()))
    }

    /// What the seal of a key is bound to.
    fn bound(&self, number: u32) -> Vec<u8> {
        let mut bound = [WRAP, self.volume.as_bytes(), &number.to_le_bytes()].concat();
        if number == NAMES {
            bound.extend_from_slice(&self.revision.to_le_bytes());
            bound.extend_from_slice(&self.active.to_le_bytes());
            self.keys.iter().for_each(|key| bound.extend_from_slice(&key.number.to_le_bytes()));
        }
        bound
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |why: &str| Err(Error::Keys(why.to_owned()));
        if self.format != FORMAT {
            let format = self.format;
            return Err(Error::Keys(format!(
                "format {format}, and this program knows {FORMAT}: use a newer one"
            )));
        }
        let rising = self.keys.windows(2).all(|pair| pair[0].number < pair[1].number);
        let names = self.keys.first().is_some_and(|key| key.number == NAMES);
        let active = self.active != NAMES && self.keys.iter().any(|key| key.number == self.active);
        if !rising || !names || !active || self.keys.len() > KEYS_MAX {
            return bad("their numbers make no sense");
        }
        let has_form =
            |key: &SealedKey| key.nonce.len() == 2 * NONCE_LEN && key.sealed.len() == 2 * (32 + 16);
        if !self.keys.iter().all(has_form) {
            return bad("a key has not the length of one");
        }
        Ok(())
    }
}

impl Kek {
    /// A key that serves several volumes, or something else besides, tells nothing of one to another.
    fn of(volume: Uuid, key: &SecretKey) -> Result<Self, Error> {
        Ok(Kek(SecretKey::new(*follow(key, &[KEK, volume.as_bytes()])?)))
    }

    fn cipher(&self) -> Result<LessSafeKey, Error> {
        let key = UnboundKey::new(&AES_256_GCM, self.0.bytes()).map_err(|_| Error::Cipher)?;
        Ok(LessSafeKey::new(key))
    }
}
