//! The format of objects: one golden object, and what damage does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;
use chronofs_blocks::object::{
    ENTRY_LEN, Entry, FOOTER_LEN, FormatError, LABEL_LEN, Object, ObjectWriter, read_footer, read_index,
    read_label,
};
use chronofs_blocks::seal::{open, seal};
use chronofs_core::volume::Compression;
use chronofs_core::{Ino, ObjectId, SessionId, SliceId};
use proptest::prelude::*;
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
const ID: ObjectId = ObjectId { incarnation: 2, session: SessionId(0x55), n: 0x1234 };
/// An object of format 1 as it was first written. It must stay readable, byte for byte, for ever.
const GOLDEN: &str = include_str!("golden/object-1.hex");

fn contents() -> Vec<Bytes> {
    vec![
        Bytes::from_static(b"the first slice, stored raw"),
        Bytes::from(vec![b'z'; 300]),
        Bytes::from(vec![b'y'; 200]),
    ]
}

/// The last one was born elsewhere, and packed.
fn slice_id(n: u32) -> SliceId {
    let object = if n == 2 { ObjectId { incarnation: 1, session: SessionId(0x66), n: 0x77 } } else { ID };
    SliceId { object, index: n * 2 }
}

fn written() -> Bytes {
    let codecs = [Compression::None, Compression::Lz4, Compression::None];
    let mut writer = ObjectWriter::new(VOLUME, ID, 0);
    for ((bytes, compression), n) in contents().into_iter().zip(codecs).zip(0u32..) {
        let (seal, stored) = seal(slice_id(n), compression, &bytes);
        let (ino, len) = (Ino(77), bytes.len() as u32);
        writer.push(Entry { ino, at: 0, block: n, offset: 10, len, seal }, &stored);
    }
    writer.finish()
}

fn golden() -> Vec<u8> {
    let digits: Vec<u8> = GOLDEN.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn as_hex(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
}

#[test]
fn an_object_that_is_put_together_again_is_the_one_that_was_written() {
    let object = Object::read(written()).unwrap();
    let end = object.entries.iter().map(|entry| entry.at + u64::from(entry.seal.stored_len)).max().unwrap();
    let slices = written().slice(..end as usize);
    let again = ObjectWriter::around(VOLUME, ID, slices.clone(), object.entries.clone()).finish();
    assert_eq!(again, written());
    // What lies between slices that are still known is left alone.
    let some = ObjectWriter::around(VOLUME, ID, slices, object.entries[2..].to_vec()).finish();
    let some = Object::read(some).unwrap();
    assert_eq!(some.entries, object.entries[2..]);
    assert_eq!(open(&some.entries[0].seal, some.stored(&some.entries[0]).unwrap()).unwrap(), contents()[2]);
}

#[test]
fn an_object_is_written_as_format_1_lays_down() {
    assert_eq!(as_hex(&written()), GOLDEN, "the format has changed: that needs a new format number");
}

#[test]
fn the_first_slice_begins_where_the_object_does() {
    assert_eq!(Object::read(written()).unwrap().entries[0].at, 0);
}

#[test]
fn the_golden_object_reads_back() {
    let object = Object::read(golden().into()).unwrap();
    assert_eq!((object.label.volume, object.label.id), (VOLUME, ID));
    for ((entry, bytes), n) in object.entries.iter().zip(contents()).zip(0u32..) {
        assert_eq!(entry.ino, Ino(77));
        assert_eq!((entry.block, entry.offset, entry.len), (n, 10, bytes.len() as u32));
        assert_eq!(entry.seal.id, slice_id(n));
        assert_eq!(open(&entry.seal, object.stored(entry).unwrap()).unwrap(), bytes);
    }
    assert_eq!(object.entries.len(), 3);
}

#[test]
fn the_index_is_found_from_the_tail_alone() {
    let bytes = golden();
    let footer = read_footer(&bytes[bytes.len() - FOOTER_LEN..], bytes.len() as u64).unwrap();
    let start = footer.index_at as usize;
    let entries = read_index(&footer, &bytes[start..start + footer.index_len()]).unwrap();
    assert_eq!(entries, Object::read(bytes.into()).unwrap().entries);
}

#[test]
fn every_changed_byte_of_label_index_or_footer_is_noticed() {
    let good = golden();
    let tail = good.len() - FOOTER_LEN - 3 * ENTRY_LEN - LABEL_LEN;
    for at in tail..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(Object::read(bad.into()).is_err(), "byte {at}");
    }
    for len in 0..good.len() {
        assert!(Object::read(good[..len].to_vec().into()).is_err(), "cut to {len}");
    }
}

#[test]
fn a_later_format_is_refused_by_name() {
    let golden = golden();
    let at = golden.len() - FOOTER_LEN - 3 * ENTRY_LEN - LABEL_LEN;
    let mut later = golden[at..at + LABEL_LEN].to_vec();
    later[8] = 9;
    let error = read_label(&later).unwrap_err();
    assert_eq!(error, FormatError::Format(9));
    assert!(error.to_string().contains("newer chronofs"), "{error}");
}

fn cases() -> u32 {
    std::env::var("CHRONOFS_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(512)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0u64..500) {
        let _ = read_label(&bytes);
        let _ = read_footer(&bytes, at);
        let _ = Object::read(bytes.into());
    }

    /// Checksums are mended after the damage, so that what lies behind them is reached.
    #[test]
    fn damage_under_right_checksums_never_panics(
        changes in prop::collection::vec((0usize..700, any::<u8>()), 1..8), cut in 0usize..64,
    ) {
        let mut bytes = golden();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        bytes[len - 8..].copy_from_slice(b"CFSOBJND");
        let label = len - FOOTER_LEN - 3 * ENTRY_LEN - LABEL_LEN;
        bytes[label..label + 10].copy_from_slice(b"CFSOBJ01\x01\0");
        let sum = crc32c::crc32c(&bytes[label..label + 60]).to_le_bytes();
        bytes[label + 60..label + 64].copy_from_slice(&sum);
        let index = crc32c::crc32c(&bytes[len - FOOTER_LEN - 3 * ENTRY_LEN..len - FOOTER_LEN]).to_le_bytes();
        bytes[len - 20..len - 16].copy_from_slice(&index);
        let footer = crc32c::crc32c(&bytes[len - FOOTER_LEN..len - 12]).to_le_bytes();
        bytes[len - 12..len - 8].copy_from_slice(&footer);
        let bytes = Bytes::from(bytes);
        if let Ok(object) = Object::read(bytes.clone()) {
            for entry in &object.entries {
                let _ = object.stored(entry).map(|stored| open(&entry.seal, stored));
            }
        }
        let _ = Object::read(bytes.slice(..len - cut));
    }
}
