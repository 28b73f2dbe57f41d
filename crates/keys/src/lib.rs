//! Keys of people: held in a file, or derived from a passphrase. What they seal is known to others; servers see neither.
//!
//! [`SecretKey`] is 32 bytes that show nothing of themselves and leave no copy in freed memory; it can also sign. A [`Passphrase`] becomes one
//! by a [`Kdf`], whose salt and parameters stand in the open beside what is sealed. [`volume`] has the keys of an encrypted volume. This crate asks nobody for either: where
//! they come from is the command's business.

mod error;
mod passphrase;
mod secret;
mod sign;
pub mod volume;

pub use error::Error;
pub use passphrase::{Kdf, Passphrase};
pub use secret::SecretKey;
pub use volume::{SealedKeys, VolumeKeys, VolumeSecret};
