//! One slice, sealed: compressed if that helps, encrypted if its volume is, with a checksum over the bytes as they are stored.
//!
//! Sealed bytes can be moved between rows and objects without being opened, and checked ([`verify`]) without a key. [`open`]
//! is the only way back, and it gives no byte of a slice whose length or checksum is not what the seal says. What is encrypted
//! is bound to its volume, the slice's id, its codec and its length, and to nothing that says where it lies.

use bytes::Bytes;
use chronofs_core::SliceId;
use chronofs_core::slice::{Codec, Seal};
use chronofs_core::volume::{BLOCK_SIZE_MAX, Compression};
use chronofs_keys::volume::{OpenFault, SliceSeal};
use chronofs_keys::{Error as KeyError, VolumeKeys};
use thiserror::Error;

/// The most bytes of an opened slice: no slice spans two blocks, so a seal that says more is damaged.
pub const FULL_LEN_MAX: u32 = BLOCK_SIZE_MAX;

/// Below this many bytes compression is not tried: it cannot gain what the header of a codec costs.
const COMPRESS_MIN: usize = 32;

/// A slice is stored compressed only if that saves one byte in this many: less is not worth opening it.
const GAIN_MIN: usize = 16;

/// The compression level of Zstandard: the lowest, since the client waits for it.
const ZSTD_LEVEL: i32 = 1;

/// Why a slice could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum OpenError {
    /// Not as many bytes as were stored.
    #[error("slice {slice}: {found} bytes are stored where its seal says {expected}")]
    Length {
        /// The slice.
        slice: SliceId,
        /// Bytes by the seal.
        expected: u32,
        /// Bytes found.
        found: usize,
    },
    /// Other bytes than were stored.
    #[error("slice {slice}: the stored bytes have checksum {found:08x} where its seal says {expected:08x}")]
    Checksum {
        /// The slice.
        slice: SliceId,
        /// CRC32C by the seal.
        expected: u32,
        /// CRC32C of what was found.
        found: u32,
    },
    /// The checksum fits and yet the bytes do not decompress to what the seal says: the seal itself is wrong.
    #[error("slice {slice}: {codec:?} does not give the {expected} bytes that its seal says: {reason}")]
    Content {
        /// The slice.
        slice: SliceId,
        /// Its codec by the seal.
        codec: Codec,
        /// Bytes of the opened slice by the seal.
        expected: u32,
        /// What the codec says.
        reason: String,
    },
    /// It is encrypted, and there is no key.
    #[error("slice {slice} is encrypted, and there is no key")]
    NoKey {
        /// The slice.
        slice: SliceId,
    },
    /// It is encrypted with a key of the volume that is not known here.
    #[error("slice {slice} is encrypted with data key {number} of its volume, which is not known here")]
    UnknownKey {
        /// The slice.
        slice: SliceId,
        /// Number of the key.
        number: u32,
    },
    /// Its checksum fits, and its key does not open it.
    #[error(
        "slice {slice} does not open with the volume's key: other bytes, or those of another slice or volume"
    )]
    Forged {
        /// The slice.
        slice: SliceId,
    },
    /// It is not encrypted, and everything of its volume is.
    #[error("slice {slice} is not encrypted, and everything of this volume is: somebody else put it there")]
    NotSealed {
        /// The slice.
        slice: SliceId,
    },
}

/// Seals `bytes` (at most [`FULL_LEN_MAX`]) as the slice `id` of a volume that is not encrypted: its seal and the bytes to
/// store.
pub fn seal(id: SliceId, compression: Compression, bytes: &Bytes) -> (Seal, Bytes) {
    let (codec, stored) = compress(compression, bytes);
    (seal_of(id, codec, bytes, &stored), stored)
}

/// As [`seal`], encrypted if there are `keys`.
pub fn seal_with(
    id: SliceId,
    compression: Compression,
    bytes: &Bytes,
    keys: Option<&VolumeKeys>,
) -> Result<(Seal, Bytes), KeyError> {
    let Some(keys) = keys else { return Ok(seal(id, compression, bytes)) };
    let (codec, packed) = compress(compression, bytes);
    let codec = codec.sealed();
    let (slice, about) = bound(id, codec, bytes.len() as u32);
    let stored = Bytes::from(keys.seal_slice(SliceSeal { slice: &slice, about: &about }, &packed)?);
    Ok((seal_of(id, codec, bytes, &stored), stored))
}

fn seal_of(id: SliceId, codec: Codec, bytes: &Bytes, stored: &Bytes) -> Seal {
    assert!(bytes.len() <= FULL_LEN_MAX as usize, "a slice of {} bytes is longer than a block", bytes.len());
    Seal {
        id,
        codec,
        stored_len: stored.len() as u32,
        full_len: bytes.len() as u32,
        crc32c: crc32c::crc32c(stored),
    }
}

/// What an encrypted slice is bound to: its id, and what the seal says of how to open it.
fn bound(id: SliceId, codec: Codec, full_len: u32) -> ([u8; 22], [u8; 5]) {
    let mut slice = [0; 22];
    slice[..2].copy_from_slice(&id.object.incarnation.to_le_bytes());
    slice[2..10].copy_from_slice(&id.object.session.0.to_le_bytes());
    slice[10..18].copy_from_slice(&id.object.n.to_le_bytes());
    slice[18..].copy_from_slice(&id.index.to_le_bytes());
    let mut about = [codec.number(); 5];
    about[1..].copy_from_slice(&full_len.to_le_bytes());
    (slice, about)
}

fn compress(compression: Compression, bytes: &Bytes) -> (Codec, Bytes) {
    if bytes.len() < COMPRESS_MIN {
        return (Codec::Raw, bytes.clone());
    }
    let (codec, packed) = match compression {
        Compression::None => return (Codec::Raw, bytes.clone()),
        Compression::Lz4 => (Codec::Lz4, Some(lz4_flex::block::compress(bytes))),
        // It fails only without memory for its tables; raw is always right.
        Compression::Zstd => (Codec::Zstd, zstd::bulk::compress(bytes, ZSTD_LEVEL).ok()),
    };
    match packed {
        Some(packed) if packed.len() + bytes.len() / GAIN_MIN <= bytes.len() => (codec, Bytes::from(packed)),
        _ => (Codec::Raw, bytes.clone()),
    }
}

/// Whether these are the bytes that were stored.
pub fn verify(seal: &Seal, stored: &[u8]) -> Result<(), OpenError> {
    let slice = seal.id;
    if stored.len() != seal.stored_len as usize {
        return Err(OpenError::Length { slice, expected: seal.stored_len, found: stored.len() });
    }
    let found = crc32c::crc32c(stored);
    if found != seal.crc32c {
        return Err(OpenError::Checksum { slice, expected: seal.crc32c, found });
    }
    Ok(())
}

/// Whether the slice is whole, as far as that can be known without a key: of one that is not encrypted, whether it opens.
pub fn check(seal: &Seal, stored: Bytes) -> Result<(), OpenError> {
    match seal.codec.is_sealed() {
        true => verify(seal, &stored),
        false => open(seal, stored).map(drop),
    }
}

/// The bytes that were sealed, verified, of a volume that is not encrypted.
pub fn open(seal: &Seal, stored: Bytes) -> Result<Bytes, OpenError> {
    open_with(seal, stored, None)
}

/// As [`open`], of a volume that is encrypted if there are `keys`. There everything has to be.
pub fn open_with(seal: &Seal, stored: Bytes, keys: Option<&VolumeKeys>) -> Result<Bytes, OpenError> {
    verify(seal, &stored)?;
    let slice = seal.id;
    let content =
        |reason: String| OpenError::Content { slice, codec: seal.codec, expected: seal.full_len, reason };
    if seal.full_len > FULL_LEN_MAX {
        return Err(content("no slice is that long".to_owned()));
    }
    let packed = match (seal.codec.is_sealed(), keys) {
        (false, None) => stored,
        (true, None) => return Err(OpenError::NoKey { slice }),
        (false, Some(_)) => return Err(OpenError::NotSealed { slice }),
        (true, Some(keys)) => {
            let (id, about) = bound(slice, seal.codec, seal.full_len);
            let opened = keys.open_slice(SliceSeal { slice: &id, about: &about }, stored.into());
            Bytes::from(opened.map_err(|fault| match fault {
                OpenFault::UnknownKey(number) => OpenError::UnknownKey { slice, number },
                OpenFault::Forged => OpenError::Forged { slice },
            })?)
        }
    };
    let full_len = seal.full_len as usize;
    let opened = match seal.codec {
        Codec::Raw | Codec::SealedRaw => packed,
        Codec::Lz4 | Codec::SealedLz4 => {
            lz4_flex::block::decompress(&packed, full_len).map_err(|e| content(e.to_string()))?.into()
        }
        Codec::Zstd | Codec::SealedZstd => {
            zstd::bulk::decompress(&packed, full_len).map_err(|e| content(e.to_string()))?.into()
        }
    };
    if opened.len() != full_len {
        return Err(content(format!("it gives {}", opened.len())));
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::{ObjectId, SessionId};
    use chronofs_keys::volume::SLICE_OVERHEAD;
    use chronofs_keys::{SealedKeys, SecretKey, VolumeSecret};
    use proptest::prelude::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    fn id() -> SliceId {
        SliceId { object: ObjectId { incarnation: 1, session: SessionId(2), n: 3 }, index: 4 }
    }

    fn noise(len: usize) -> Bytes {
        let mut x = 1u64;
        let step = |_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        };
        (0..len).map(step).collect::<Vec<u8>>().into()
    }

    #[test]
    fn what_shrinks_is_stored_compressed_and_what_does_not_is_stored_raw() {
        let text = Bytes::from(b"all work and no play ".repeat(500));
        assert_eq!(seal(id(), Compression::Lz4, &text).0.codec, Codec::Lz4);
        assert_eq!(seal(id(), Compression::Zstd, &text).0.codec, Codec::Zstd);
        for compression in ALL {
            let (seal, stored) = seal(id(), compression, &noise(10_000));
            assert_eq!((seal.codec, stored.len()), (Codec::Raw, 10_000), "{compression:?}");
        }
    }

    #[test]
    fn a_damaged_slice_gives_no_bytes_and_names_what_was_expected() {
        let (seal, stored) = seal(id(), Compression::Lz4, &Bytes::from(vec![7; 5000]));
        let short = open(&seal, stored.slice(1..)).unwrap_err();
        assert!(matches!(short, OpenError::Length { .. }));
        assert!(short.to_string().contains(&format!("says {}", stored.len())), "{short}");
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(open(&seal, flipped.into()), Err(OpenError::Checksum { .. })), "bit {bit}");
        }
    }

    #[test]
    fn a_seal_that_lies_about_the_content_is_an_error() {
        let (good, stored) = seal(id(), Compression::Lz4, &Bytes::from(vec![7; 5000]));
        for full_len in [0, 4999, 5001, FULL_LEN_MAX, u32::MAX] {
            let error = open(&Seal { full_len, ..good }, stored.clone()).unwrap_err();
            assert!(matches!(error, OpenError::Content { .. }), "{full_len}: {error}");
        }
        for codec in [Codec::Raw, Codec::Zstd] {
            assert!(matches!(open(&Seal { codec, ..good }, stored.clone()), Err(OpenError::Content { .. })));
        }
    }

    fn keys() -> VolumeKeys {
        let text = include_str!("../../keys/tests/golden/volume-keys-1.json");
        let sealed = SealedKeys::parse(text.trim_end()).unwrap();
        let secret = VolumeSecret::Key(SecretKey::new([3; 32]));
        sealed.open(&sealed.kek(&secret).unwrap()).unwrap()
    }

    /// Made by another implementation of this form, on Python's `cryptography` (OpenSSL).
    #[test]
    fn an_encrypted_slice_of_format_1_opens_for_ever() {
        let hex = "020000000505050505050505050505058b3f9ee1cdde8319d6588f9a056b5c8941813f4dae";
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let stored: Bytes = (0..hex.len()).step_by(2).map(byte).collect::<Vec<u8>>().into();
        let seal = Seal {
            id: id(),
            codec: Codec::SealedRaw,
            stored_len: stored.len() as u32,
            full_len: 5,
            crc32c: crc32c::crc32c(&stored),
        };
        assert_eq!(open_with(&seal, stored.clone(), Some(&keys())).unwrap(), &b"hello"[..]);
        check(&seal, stored).unwrap();
    }

    #[test]
    fn what_is_encrypted_opens_with_the_key_alone_in_its_own_place_and_shows_no_content() {
        let text = Bytes::from(b"all work and no play ".repeat(500));
        for (compression, codec) in
            ALL.into_iter().zip([Codec::SealedRaw, Codec::SealedLz4, Codec::SealedZstd])
        {
            let (seal, stored) = seal_with(id(), compression, &text, Some(&keys())).unwrap();
            assert_eq!(seal.codec, codec);
            assert!(!stored.windows(8).any(|part| part == b"all work"));
            assert_eq!(open_with(&seal, stored.clone(), Some(&keys())).unwrap(), text);
            check(&seal, stored.clone()).unwrap();
            assert!(matches!(open(&seal, stored.clone()), Err(OpenError::NoKey { .. })));
            let swapped = Seal { id: SliceId { index: 5, ..id() }, ..seal };
            let refused = open_with(&swapped, stored.clone(), Some(&keys()));
            assert!(matches!(refused, Err(OpenError::Forged { .. })));
            let longer = Seal { full_len: seal.full_len + 1, ..seal };
            assert!(matches!(
                open_with(&longer, stored.clone(), Some(&keys())),
                Err(OpenError::Forged { .. })
            ));
            let mut other = stored.to_vec();
            other[40] ^= 1;
            let forged = Seal { crc32c: crc32c::crc32c(&other), ..seal };
            let refused = open_with(&forged, other.into(), Some(&keys()));
            assert!(matches!(refused, Err(OpenError::Forged { .. })), "its checksum fits");
            let mut newer = stored.to_vec();
            newer[0] = 7;
            let forged = Seal { crc32c: crc32c::crc32c(&newer), ..seal };
            let refused = open_with(&forged, newer.into(), Some(&keys()));
            assert!(matches!(refused, Err(OpenError::UnknownKey { number: 7, .. })));
        }
        let (plain, stored) = seal(id(), Compression::Lz4, &text);
        assert!(matches!(open_with(&plain, stored, Some(&keys())), Err(OpenError::NotSealed { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(256)))]

        #[test]
        fn encrypted_bytes_open_as_they_were(bytes in prop::collection::vec(0u8..4, 0..4000), which in 0usize..3) {
            let bytes = Bytes::from(bytes);
            let (seal, stored) = seal_with(id(), ALL[which], &bytes, Some(&keys())).unwrap();
            prop_assert!(stored.len() <= bytes.len() + SLICE_OVERHEAD);
            prop_assert_eq!(open_with(&seal, stored, Some(&keys())).unwrap(), bytes);
        }

        #[test]
        fn sealed_bytes_open_as_they_were(bytes in prop::collection::vec(0u8..4, 0..4000), which in 0usize..3) {
            let bytes = Bytes::from(bytes);
            let (seal, stored) = seal(id(), ALL[which], &bytes);
            prop_assert!(stored.len() <= bytes.len());
            prop_assert_eq!(open(&seal, stored).unwrap(), bytes);
        }

        #[test]
        fn any_seal_over_any_bytes_opens_or_is_an_error(
            stored in prop::collection::vec(any::<u8>(), 0..300), full_len in 0u32..10_000, codec in 0usize..6,
        ) {
            let codec = Codec::ALL[codec];
            let seal = Seal {
                id: id(), codec, full_len, stored_len: stored.len() as u32, crc32c: crc32c::crc32c(&stored),
            };
            if let Ok(opened) = open(&seal, stored.into()) {
                prop_assert_eq!(opened.len(), full_len as usize);
            }
        }
    }
}
