//! The bytes of every row and key. A change here is a change of what lies on disk: it needs a new format.

use super::*;
use chronofs_core::slice::{Codec, Place, Seal};
use chronofs_core::volume::Compression;
use chronofs_core::{Errno, ObjectId, Retention, SessionId};
use std::fmt::Debug;
use uuid::Uuid;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The row has these bytes, and they read back as the row.
fn golden<T: Format + PartialEq + Debug>(row: &T, bytes: &str) {
    let encoded = row.encode().unwrap();
    assert_eq!(hex(&encoded), bytes, "{row:?}");
    assert_eq!(&T::decode(INODE, &[], &encoded).unwrap(), row);
    assert!(T::decode(INODE, &[], &[&encoded[..], &[0]].concat()).is_err(), "bytes behind a row");
    assert!(T::decode(INODE, &[], &encoded[..encoded.len() - 1]).is_err(), "a row cut short");
}

fn inode(body: Body) -> Inode {
    Inode {
        flags: Inode::HAS_XATTR,
        mode: 0o755,
        uid: 1000,
        gid: 1,
        parent: Ino(300),
        position: Position(0x1234_5600),
        crtime_ns: 1_700_000_000_123_456_789,
        atime_ns: -1,
        body,
    }
}

fn node() -> Node {
    Node { nlink: 1, mtime_ns: 2, ctime_ns: 3 }
}

fn slice_id() -> SliceId {
    SliceId { object: ObjectId { incarnation: 1, session: SessionId(2), n: 300 }, index: 4 }
}

fn seal() -> Seal {
    Seal { id: slice_id(), codec: Codec::Lz4, stored_len: 2, full_len: 1000, crc32c: 0xdead_beef }
}

#[test]
fn keys_are_big_endian_numbers() {
    let key = SliceKey { block: 7, version: Version(0x0102_0304_0506_0708), n: 9 };
    assert_eq!(hex(&ino_key(Ino(258))), "0000000000000102");
    assert_eq!(hex(&position_key(Ino(1), Position(256))), "00000000000000010000000000000100");
    assert_eq!(
        hex(&link_key(Ino(1), Ino(2), Position(256))),
        "000000000000000100000000000000020000000000000100"
    );
    assert_eq!(hex(&slice_key(Ino(1), key)), "00000000000000010000000701020304050607080009");
    assert_eq!(hex(&block_key(Ino(1), 7)), "000000000000000100000007");
    assert_eq!(hex(&staged_key(slice_id())), "00010000000000000002000000000000012c00000004");
    assert_eq!(parse_staged_key(&staged_key(slice_id())), slice_id());
    assert_eq!(parse_slice_key(&slice_key(Ino(1), key)), (Ino(1), key));
}

#[test]
fn inode_rows() {
    golden(&inode(Body::Dir), "01ed03e80701ac0280acd19101aab4aed8c7bfce972f0100");
    let file = Body::File { node: node(), size: 5000, allocated: 4096, data_version: Version(9) };
    golden(&inode(file), "01ed03e80701ac0280acd19101aab4aed8c7bfce972f01010104068827802009");
    golden(
        &inode(Body::Symlink { node: node(), target: Bytes::from_static(b"to") }),
        "01ed03e80701ac0280acd19101aab4aed8c7bfce972f010201040602746f",
    );
    golden(
        &inode(Body::Special { node: node(), kind: FileKind::Char, rdev: 0x501 }),
        "01ed03e80701ac0280acd19101aab4aed8c7bfce972f010301040605810a",
    );
}

#[test]
fn rows_of_the_tree() {
    golden(&Dir { flags: 0, mtime_ns: 1, ctime_ns: 2, nlink: 3, entries: 400 }, "000204039003");
    let name = Bytes::from_static(b"name");
    golden(
        &Entry { flags: MORE, kind: FileKind::Dir, ino: Ino(300), name: name.clone() },
        "0101ac02046e616d65",
    );
    golden(&Link { flags: 0 }, "00");
    golden(&Xattr { flags: MORE, name, value: Bytes::from_static(b"v") }, "01046e616d650176");
    golden(&Orphan { flags: 0, since: Version(300) }, "00ac02");
    golden(&Purge { flags: 0, since: Version(300) }, "00ac02");
}

#[test]
fn rows_of_content() {
    let slice = |place| SliceRow { flags: 0, slice: Slice { offset: 300, len: 2, skip: 1, place } };
    golden(&slice(Place::Hole), "00ac02020100");
    golden(
        &slice(Place::Inline(seal(), Bytes::from_static(b"ab"))),
        "00ac020201010102ac02040102e807effdb6f50d026162",
    );
    golden(&slice(Place::Staged(seal())), "00ac020201020102ac02040102e807effdb6f50d");
    golden(&slice(Place::Object(seal(), 4096)), "00ac020201030102ac02040102e807effdb6f50d8020");
    let staged = Staged {
        flags: 0,
        ino: Ino(300),
        block: 2,
        offset: 3,
        len: 400,
        codec: Codec::Zstd,
        full_len: 500,
        crc32c: 0xdead_beef,
        bytes: Bytes::from_static(b"ab"),
    };
    golden(&staged, "00ac020203900302f403effdb6f50d026162");
    golden(&Moved { flags: 0, object: slice_id().object, at: 4096, len: 300 }, "000102ac028020ac02");
    golden(&Packs { flags: 0, granted: 300, open: Some(299), first: 7 }, "00ac0201ab0207");
}

#[test]
fn rows_of_what_is_counted_and_kept() {
    let object = ObjectId { incarnation: 1, session: SessionId(2), n: 300 };
    assert_eq!(hex(&object_key(object)), "00010000000000000002000000000000012c");
    assert_eq!(parse_object_key(&object_key(object)), object);
    let (named, changed) = (200, Version(6));
    let refs = Refs { flags: 0, rows: 2, bytes: 300, retired: None, condemned: None, named, changed };
    golden(&refs, "0002ac020000c80106");
    let gone = Refs { rows: 0, retired: Some(Version(4)), condemned: Some(Version(5)), ..refs };
    golden(&gone, "0000ac0201040105c80106");
    golden(&Retired { flags: 0, bytes: 300 }, "00ac02");
    golden(&Condemned { flags: 0, since: Version(5), bytes: 300 }, "0005ac02");
    let sum = |count| Sum { count, bytes: 300 };
    let tally = Tally {
        flags: 0,
        held: sum(1),
        retired: sum(2),
        condemned: sum(3),
        released: Version(4),
        staged: sum(5),
    };
    golden(&tally, "0001ac0202ac0203ac020405ac02");
    let kept = |ends| Kept {
        flags: 0,
        at: Version(300),
        to: Version(301),
        made: Version(4),
        ends,
        note: "n".to_owned(),
    };
    golden(&kept(None), "00ac02ad020400016e");
    golden(&kept(Some(Version(5))), "00ac02ad02040105016e");
    golden(&Kept { flags: Kept::WHOLE, ..kept(None) }, "02ac02ad020400016e");
    golden(&Kept { flags: Kept::UNSURE, ..kept(None) }, "01ac02ad020400016e");
    golden(&Unproven { flags: 0, survived: Version(300) }, "00ac02");
}

#[test]
fn rows_of_volume_and_store() {
    golden(&Counters { flags: 0, next_ino: 300, used_bytes: 5, used_inodes: 6 }, "00ac020506");
    golden(&Store { flags: 0, next_volume: 2, next_session: 300 }, "0002ac02");
    let spec = VolumeSpec {
        id: Uuid::from_u128(0x0102),
        name: "v".to_owned(),
        block_size: 4 << 20,
        compression: Compression::Zstd,
        retention: Retention::Seconds(3600),
        max_bytes: Some(300),
        max_inodes: None,
        hash_key: [7; 16],
    };
    let volume = Volume {
        flags: Volume::COUNTED,
        spec,
        incarnation: 3,
        born: Version(1),
        horizon: Version(2),
        history_since: Some(Version(1)),
        gaps: vec![(Version(4), Version(5))],
        leases: 1,
        deleted: None,
    };
    golden(
        &volume,
        "0110000000000000000000000000000001020176808080020202316801ac02000707070707070707070707070707070703010201010104050100",
    );
    let (flags, deleted) = (Volume::COUNTED | Volume::GIVEN_UP, Some(Version(300)));
    golden(
        &Volume { flags, deleted, ..volume.clone() },
        "0310000000000000000000000000000001020176808080020202316801ac02000707070707070707070707070707070703010201010104050101ac02",
    );
    golden(
        &Volume { flags: Volume::COUNTED | Volume::ENCRYPTED, ..volume.clone() },
        "0910000000000000000000000000000001020176808080020202316801ac02000707070707070707070707070707070703010201010104050100",
    );
    golden(&VolumeKeys { flags: 0, revision: 300, sealed: "{}".to_owned() }, "00ac02027b7d");
    let session = Session {
        flags: Session::READ_ONLY,
        volume: VolumeIndex(1),
        client: 300,
        at: Some(Version(2)),
        ttl_ms: 1000,
        opened: Version(3),
        renewed: Version(4),
        granted: 1 << 20,
        floor: 300,
        scope: Scope { token: Uuid::from_u128(9), root: Ino(300) },
        missed: None,
        parked: Vec::new(),
    };
    golden(&session, "0101ac020102e8070304808040ac021000000000000000000000000000000009ac020000");
    let missed = Some(Missed { recovered: Version(300), mark: Version(7) });
    golden(
        &Session { missed, parked: vec![(300, Errno::ESTALE)], ..session },
        "0101ac020102e8070304808040ac021000000000000000000000000000000009ac0201ac020701ac02e801",
    );
    golden(&Closed { flags: 0, volume: VolumeIndex(1), granted: 300, ended: Version(2) }, "0001ac0202");
}

#[test]
fn a_row_of_a_newer_program_is_refused_as_such() {
    let encoded = Link { flags: 1 }.encode().unwrap();
    let error = Link::decode(LINK, b"k", &encoded).unwrap_err().to_string();
    assert_eq!(error, "row k of table link is damaged: a newer chronofs wrote it; start the newer one");
}
