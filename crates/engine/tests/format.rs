//! The log's bytes: as the golden file has them, and never a panic over others.
//!
//! `CHRONOFS_GOLDEN=write` writes the golden file anew: only together with a new version of the format.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::embedded::log::format::{
    GroupHeader, Place, SegmentHeader, decode_group_header, decode_records, decode_segment, encode_group,
    encode_segment, record_length,
};
use chronofs_engine::{Batch, Change, Commit};
use proptest::prelude::*;
use support::{cases, commit, delete, put};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/log-1.bin");

fn segment() -> SegmentHeader {
    SegmentHeader {
        segment: 3,
        previous_end: 4096,
        last: Version(1_773_570_600_000_000_001),
        ceiling: Version(1_773_570_602_000_000_001),
        mark: Version(17),
    }
}

fn group() -> (GroupHeader, Vec<Commit>) {
    let header = GroupHeader {
        place: Place { segment: 3, offset: 64 },
        synced: Place { segment: 3, offset: 64 },
        ceiling: Version(1_773_570_602_000_000_001),
        mark: Version(18),
        records: 2,
        body: 0,
    };
    let last = 1_773_570_600_000_000_001;
    (header, vec![commit(last + 1, [put("a key", "a value"), delete("gone")]), commit(last + 2, [])])
}

#[test]
fn the_log_is_written_as_the_golden_file_has_it() {
    let (mut header, commits) = group();
    let mut bytes = encode_segment(&segment()).to_vec();
    let mut encoded = Vec::new();
    encode_group(&mut header, &commits, &mut encoded);
    bytes.extend_from_slice(&encoded);
    if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(GOLDEN, &bytes).unwrap();
    }
    assert_eq!(bytes, std::fs::read(GOLDEN).unwrap());
}

#[test]
fn the_golden_file_is_read_as_it_was_meant() {
    let bytes = Bytes::from(std::fs::read(GOLDEN).unwrap());
    assert_eq!(decode_segment(&bytes), Ok(segment()));
    let (expected, commits) = group();
    let rest = bytes.slice(64..);
    let header = decode_group_header(&rest, expected.place).unwrap();
    assert_eq!(
        (header.synced, header.ceiling, header.mark),
        (expected.synced, expected.ceiling, expected.mark)
    );
    assert_eq!(header.length(), rest.len() as u64);
    assert_eq!(decode_records(&header, &rest), Ok(commits));
    let elsewhere = Place { segment: 3, offset: 72 };
    assert_eq!(decode_group_header(&rest, elsewhere), None, "a group that strayed is none");
}

fn any_bytes(length: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..length).prop_map(Bytes::from)
}

fn any_commit() -> impl Strategy<Value = Commit> {
    let change = prop_oneof![
        (any_bytes(40), any_bytes(300)).prop_map(|(key, value)| Change::Put(key, value)),
        any_bytes(40).prop_map(Change::Delete),
    ];
    (any::<u64>(), any_bytes(50), prop::collection::vec(change, 0..6))
        .prop_map(|(version, tag, changes)| Commit { version: Version(version), tag, batch: Batch(changes) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(2000) as u32))]

    #[test]
    fn what_is_encoded_is_decoded(commits in prop::collection::vec(any_commit(), 0..5), offset in 0_u64..1 << 40) {
        let place = Place { segment: 9, offset: offset * 8 };
        let mut header = GroupHeader { place, ..group().0 };
        let mut bytes = Vec::new();
        encode_group(&mut header, &commits, &mut bytes);
        let bytes = Bytes::from(bytes);
        prop_assert_eq!(header.body as usize, commits.iter().map(record_length).sum::<usize>());
        prop_assert_eq!(header.length(), bytes.len() as u64);
        let read = decode_group_header(&bytes, place);
        prop_assert_eq!(read, Some(header));
        prop_assert_eq!(decode_records(&header, &bytes), Ok(commits));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in any_bytes(400), records in any::<u32>(), body in 0_u32..400) {
        let _ = decode_segment(&bytes);
        let place = Place::default();
        let _ = decode_group_header(&bytes, place);
        // As if the header's checksum were right.
        let header = GroupHeader { place, records, body, ..group().0 };
        let _ = decode_records(&header, &bytes);
    }

    #[test]
    fn a_changed_group_is_refused_or_decoded_as_it_was(
        commits in prop::collection::vec(any_commit(), 1..4),
        at in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let mut header = group().0;
        let mut bytes = Vec::new();
        encode_group(&mut header, &commits, &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let bytes = Bytes::from(bytes);
        if let Some(read) = decode_group_header(&bytes, header.place) {
            prop_assert_eq!(read, header);
            if let Ok(decoded) = decode_records(&read, &bytes) {
                prop_assert_eq!(decoded, commits);
            }
        }
    }
}
