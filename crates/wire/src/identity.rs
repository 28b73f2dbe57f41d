//! How the parties know each other: a server by the hash of its certificate (its pin), a client by a secret.
//!
//! Servers keep only the SHA-256 of a secret. A secret is 32 random bytes, so that the plain hash cannot be
//! searched and needs no salt.

use aws_lc_rs::{constant_time, digest, rand};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A SHA-256 hash; shown in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Sha256(hash)
    }
}

/// The hash of bytes that come one after the other.
#[derive(Clone)]
pub struct Sha256Sum(digest::Context);

impl Default for Sha256Sum {
    fn default() -> Self {
        Sha256Sum(digest::Context::new(&digest::SHA256))
    }
}

impl Sha256Sum {
    /// These come next.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them.
    pub fn end(self) -> Sha256 {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.finish().as_ref());
        Sha256(hash)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// Why a text is no SHA-256.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not a SHA-256: write 64 lower-case hexadecimal digits")]
pub struct BadSha256(String);

impl FromStr for Sha256 {
    type Err = BadSha256;
    fn from_str(text: &str) -> Result<Self, BadSha256> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| BadSha256(text.to_owned()))?;
        bytes.try_into().map(Sha256).map_err(|_| BadSha256(text.to_owned()))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = BadSha256;
    fn try_from(text: String) -> Result<Self, BadSha256> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(hash: Sha256) -> String {
        hash.to_string()
    }
}

/// The system's source of random numbers failed.
#[derive(Debug, Error)]
#[error("the system gave no random numbers")]
pub struct NoRandom;

/// Fills an array with random bytes from the system.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(bytes)
}

/// What proves that a client is who it says. Never shown by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// A new one.
    pub fn draw() -> Result<Self, NoRandom> {
        random().map(Secret)
    }

    /// As text, for what seals it or sends it over TLS.
    pub fn to_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// What [`Secret::to_hex`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok().map(Secret)
    }

    /// What a server keeps of it.
    pub fn sha256(&self) -> Sha256 {
        Sha256::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Whether `secret` is the one whose hash a server kept. Takes the same time wherever they differ.
pub fn secret_matches(secret: &[u8], kept: &Sha256) -> bool {
    constant_time::verify_slices_are_equal(&Sha256::of(secret).0, &kept.0).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_reads_back_as_shown_and_is_the_known_one() {
        let hash = Sha256::of(b"abc");
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let mut sum = Sha256Sum::default();
        sum.add(b"a");
        sum.add(b"bc");
        assert_eq!(sum.end(), hash);
        for bad in ["", "ab", "zz", &"A".repeat(64), &"a".repeat(66)] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_matches_its_own_hash_only_and_stays_hidden() {
        let (one, other) = (Secret::draw().unwrap(), Secret::draw().unwrap());
        assert!(secret_matches(&one.0, &one.sha256()));
        assert!(!secret_matches(&other.0, &one.sha256()));
        assert!(!secret_matches(b"", &one.sha256()));
        assert_eq!(format!("{one:?}"), "Secret(hidden)");
    }
}
