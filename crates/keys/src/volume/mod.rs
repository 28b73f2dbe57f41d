//! The keys of an encrypted volume. [`SealedKeys`] is what others keep: every key of the volume, sealed for who knows its
//! secret. [`VolumeKeys`] is what opens it: it seals content and names, and lives in the memory of clients alone.
//!
//! Two kinds of keys: **data keys**, of which the newest seals new slices and the older ones open old slices, and one **key of
//! names**, which stays for ever, since a name must be sealed the same way each time it is looked up. Nothing is ever sealed
//! with these themselves, but with what follows from them (HKDF with SHA-256) for one slice, one directory, one purpose.

mod names;
mod sealed;
mod slices;

pub use names::{NAME_SEALED_MAX, VALUE_OVERHEAD};
pub use sealed::{Kek, SealedKeys, VolumeSecret};
pub use slices::{OpenFault, SLICE_OVERHEAD, SliceSeal};

use crate::Error;
use crate::secret::SecretKey;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use std::collections::BTreeMap;
use uuid::Uuid;
use zeroize::Zeroizing;

/// See the module. Its debug form shows no key.
#[derive(Clone)]
pub struct VolumeKeys {
    volume: Uuid,
    /// Seals new slices.
    active: u32,
    data: BTreeMap<u32, SecretKey>,
    names: SecretKey,
}

impl std::fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VolumeKeys({}, active {} of {})", self.volume, self.active, self.data.len())
    }
}

impl VolumeKeys {
    /// The volume that they are of.
    #[must_use]
    pub fn volume(&self) -> Uuid {
        self.volume
    }

    /// Whether this data key is among them.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.data.contains_key(&number)
    }

    /// The number of the data key that seals new slices.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active
    }
}

/// What follows from `key` for the purpose that `info` says (RFC 5869, without a salt).
fn follow(key: &SecretKey, info: &[&[u8]]) -> Result<Zeroizing<[u8; 32]>, Error> {
    let mut out = Zeroizing::new([0; 32]);
    let prk = Salt::new(HKDF_SHA256, &[]).extract(key.bytes());
    let okm = prk.expand(info, HKDF_SHA256).map_err(|_| Error::Cipher)?;
    okm.fill(&mut out[..]).map_err(|_| Error::Cipher)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
