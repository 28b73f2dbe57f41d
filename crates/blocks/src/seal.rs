//! One slice, sealed: compressed if that helps, with a checksum over the bytes as they are stored.
//!
//! Sealed bytes can be moved between rows and objects without being opened. [`open`] is the only way back, and it
//! gives no byte of a slice whose length or checksum is not what the seal says. The slice's id goes into both
//! directions because a seal that encrypts will authenticate it.

use bytes::Bytes;
use chronofs_core::SliceId;
use chronofs_core::slice::{Codec, Seal};
use chronofs_core::volume::{BLOCK_SIZE_MAX, Compression};
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
}

/// Seals `bytes` (at most [`FULL_LEN_MAX`]) as the slice `id`: its seal and the bytes to store.
pub fn seal(id: SliceId, compression: Compression, bytes: &Bytes) -> (Seal, Bytes) {
    assert!(bytes.len() <= FULL_LEN_MAX as usize, "a slice of {} bytes is longer than a block", bytes.len());
    let (codec, stored) = compress(compression, bytes);
    let seal = Seal {
        id,
        codec,
        stored_len: stored.len() as u32,
        full_len: bytes.len() as u32,
        crc32c: crc32c::crc32c(&stored),
    };
    (seal, stored)
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

/// The bytes that were sealed, verified.
pub fn open(seal: &Seal, stored: Bytes) -> Result<Bytes, OpenError> {
    verify(seal, &stored)?;
    let slice = seal.id;
    let content =
        |reason: String| OpenError::Content { slice, codec: seal.codec, expected: seal.full_len, reason };
    if seal.full_len > FULL_LEN_MAX {
        return Err(content("no slice is that long".to_owned()));
    }
    let full_len = seal.full_len as usize;
    let opened = match seal.codec {
        Codec::Raw => stored,
        Codec::Lz4 => {
            lz4_flex::block::decompress(&stored, full_len).map_err(|e| content(e.to_string()))?.into()
        }
        Codec::Zstd => zstd::bulk::decompress(&stored, full_len).map_err(|e| content(e.to_string()))?.into(),
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::testing::cases(256)))]

        #[test]
        fn sealed_bytes_open_as_they_were(bytes in prop::collection::vec(0u8..4, 0..4000), which in 0usize..3) {
            let bytes = Bytes::from(bytes);
            let (seal, stored) = seal(id(), ALL[which], &bytes);
            prop_assert!(stored.len() <= bytes.len());
            prop_assert_eq!(open(&seal, stored).unwrap(), bytes);
        }

        #[test]
        fn any_seal_over_any_bytes_opens_or_is_an_error(
            stored in prop::collection::vec(any::<u8>(), 0..300), full_len in 0u32..10_000, codec in 0usize..3,
        ) {
            let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][codec];
            let seal = Seal {
                id: id(), codec, full_len, stored_len: stored.len() as u32, crc32c: crc32c::crc32c(&stored),
            };
            if let Ok(opened) = open(&seal, stored.into()) {
                prop_assert_eq!(opened.len(), full_len as usize);
            }
        }
    }
}
