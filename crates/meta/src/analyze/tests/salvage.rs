//! Files come back from objects that nothing explains, by what these say of themselves.

use super::*;
use chronofs_blocks::object::{Entry, ObjectWriter};
use chronofs_namespace::rows::{OBJECT, Refs, object_key};
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_SIZE_DEFAULT as u64;

/// What a slice is of: file, block, offset in the block, and its bytes.
struct Written(u64, u32, u32, Vec<u8>);

/// An object with these slices, which have the ids of those that `born` stored at first.
fn packed(id: ObjectId, born: ObjectId, slices: &[Written]) -> Bytes {
    let mut writer = ObjectWriter::new(VOLUME, id, 0);
    for (index, Written(ino, block, offset, bytes)) in (0..).zip(slices) {
        let (seal, stored) =
            seal::seal(SliceId { object: born, index }, Compression::Lz4, &Bytes::copy_from_slice(bytes));
        let len = bytes.len() as u32;
        writer.push(Entry { ino: Ino(*ino), at: 0, block: *block, offset: *offset, len, seal }, &stored);
    }
    writer.finish()
}

fn put(bench: &Bench, shy: &Shy, id: ObjectId, bytes: Bytes) {
    bench.runtime.block_on(shy.put(&object_name(VOLUME, id), bytes)).unwrap();
}

/// The files that are told, as whoever follows puts them together.
fn rebuilt(news: &[News]) -> BTreeMap<u64, Vec<u8>> {
    let mut files = BTreeMap::<u64, Vec<u8>>::new();
    let mut told = news.iter();
    while let Some(news) = told.next() {
        match news {
            News::File(file) => drop(files.insert(file.ino, vec![0; file.len as usize])),
            News::Piece(piece) => {
                let mut stored = Vec::new();
                while stored.len() < piece.stored_len as usize {
                    let Some(News::Bytes(part)) = told.next() else { panic!("bytes follow a slice") };
                    stored.extend_from_slice(&part.0);
                }
                let id = ObjectId {
                    incarnation: piece.incarnation,
                    session: SessionId(piece.session),
                    n: piece.n,
                };
                let seal = chronofs_core::slice::Seal {
                    id: SliceId { object: id, index: piece.index },
                    codec: chronofs_core::slice::Codec::ALL[usize::from(piece.codec)],
                    stored_len: piece.stored_len,
                    full_len: piece.full_len,
                    crc32c: piece.crc32c,
                };
                let bytes = seal::open(&seal, stored.into()).unwrap();
                let file = files.get_mut(&piece.ino).unwrap();
                file[piece.at as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            _ => {}
        }
    }
    files
}

fn unreadable(news: &[News]) -> Vec<(&str, &str)> {
    let mut told = Vec::new();
    for news in news {
        if let News::Unreadable { object, reason } = news {
            told.push((object.as_str(), reason.as_str()));
        }
    }
    told
}

fn salvage(bench: &Bench, list_only: bool) -> (Vec<News>, chronofs_wire::analyze::Salvaged) {
    let (news, ended) = followed(bench, Some(VOLUME), Look::Salvage { list_only });
    let Ended::Whole(Sum::Salvage(sum)) = ended else { panic!("{ended:?}") };
    (news, sum)
}

#[test]
fn a_file_is_what_its_slices_were_in_the_order_in_which_they_were_written() {
    let bench = Bench::new(Retention::Forever);
    let shy = store(&bench, true);
    let large: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // The second object changes what the first has, and goes on behind a hole.
    let first = [Written(9, 0, 0, large.clone()), Written(10, 0, 0, b"small".to_vec())];
    let second = [Written(9, 0, 1000, vec![1; 500]), Written(9, 2, 7, vec![2; 100])];
    put(&bench, &shy, object(1), packed(object(1), object(1), &first));
    put(&bench, &shy, object(2), packed(object(2), object(2), &second));
    // One slice lies in another object, too, into which it was packed.
    let packs = ObjectId { incarnation: 0, session: SessionId::SERVER, n: 77 };
    put(&bench, &shy, packs, packed(packs, object(1), &first[..1]));
    let mut expected = large;
    expected[1000..1500].fill(1);
    expected.resize((2 * BLOCK + 7) as usize, 0);
    expected.extend([2; 100]);
    let (news, sum) = salvage(&bench, false);
    let files = rebuilt(&news);
    assert_eq!((sum.objects, sum.files, sum.slices, sum.unreadable), (3, 2, 4, 0));
    assert!(files[&9] == expected, "another file");
    assert_eq!(files[&10], b"small");
    let (listed, sum_of_list) = salvage(&bench, true);
    assert_eq!(sum_of_list, sum);
    let told =
        |news: &[News]| news.iter().filter(|news| matches!(news, News::File(_))).cloned().collect::<Vec<_>>();
    assert_eq!(told(&listed), told(&news));
    assert!(!listed.iter().any(|news| matches!(news, News::Piece(_) | News::Bytes(_))));
    // The slice is whole in one of the two, whichever that is.
    for damaged in [object(1), packs] {
        let bytes = packed(damaged, object(1), &first[..if damaged == packs { 1 } else { 2 }]);
        let mut torn = bytes.to_vec();
        torn[100] ^= 1;
        bench.runtime.block_on(shy.replace(&object_name(VOLUME, damaged), torn.into())).unwrap();
        let (news, sum) = salvage(&bench, false);
        assert!(rebuilt(&news)[&9] == expected && sum.unreadable == 0, "{damaged}");
        bench.runtime.block_on(shy.replace(&object_name(VOLUME, damaged), bytes)).unwrap();
    }
}

#[test]
fn what_a_clone_wrote_to_a_file_of_the_same_number_is_a_file_of_its_own() {
    let bench = Bench::new(Retention::Forever);
    let shy = store(&bench, true);
    for incarnation in [0, 3] {
        let id = ObjectId { incarnation, ..object(1) };
        put(&bench, &shy, id, packed(id, id, &[Written(9, 0, 0, vec![incarnation as u8 + 1; 4000])]));
    }
    let (news, sum) = salvage(&bench, false);
    let told = news.iter().filter_map(|news| match news {
        News::File(file) => Some((file.ino, file.incarnation, file.slices)),
        _ => None,
    });
    assert_eq!((told.collect::<Vec<_>>(), sum.files), (vec![(9, 0, 1), (9, 3, 1)], 2));
}

#[test]
fn what_rows_explain_is_none_of_it_and_what_is_damaged_is_told_and_leaves_the_rest() {
    let bench = Bench::new(Retention::Forever);
    let shy = store(&bench, true);
    // An object that is counted, as all are that rows name.
    let changed = Version(7);
    let refs = Refs { flags: 0, rows: 1, bytes: 5000, retired: None, condemned: None, named: 5000, changed };
    let counted = encode_plain(&postcard::to_stdvec(&refs).unwrap());
    apply(&bench, vec![Change::Put(OBJECT.live_key(INDEX, &object_key(object(3))), counted)]);
    put(&bench, &shy, object(3), slice(3).2);
    let whole = |n: u64| {
        let bytes = vec![n as u8; 3000];
        packed(object(n), object(n), &[Written(20 + n, 0, 0, bytes.clone()), Written(40 + n, 1, 5, bytes)])
    };
    put(&bench, &shy, object(4), whole(4));
    let (cut, mut slice) = (whole(5), whole(7).to_vec());
    put(&bench, &shy, object(5), cut.slice(..cut.len() - 1));
    // One that lies under the name of another one.
    put(&bench, &shy, object(8), whole(6));
    slice[10] ^= 1;
    put(&bench, &shy, object(7), slice.into());
    put(&bench, &shy, object(9), Bytes::new());
    let (news, sum) = salvage(&bench, false);
    let named = |n: u64| object_name(VOLUME, object(n));
    let told = unreadable(&news);
    assert_eq!(told.len(), 4, "{told:?}");
    for (n, part) in [5, 7, 8, 9].into_iter().zip(["footer", "checksum", "its label says", "its footer"]) {
        let found = told.iter().find(|(object, _)| *object == named(n));
        assert!(found.is_some_and(|(_, reason)| reason.contains(part)), "{n} {part}: {told:?}");
    }
    let files = rebuilt(&news);
    assert_eq!((files[&24].clone(), files[&44].len()), (vec![4; 3000], (BLOCK + 5 + 3000) as usize));
    assert!(files[&27].iter().all(|byte| *byte == 0), "its slice is damaged");
    assert!(files[&47].ends_with(&[7; 3000]), "the other slice of the object is not");
    assert_eq!((sum.objects, sum.unreadable), (5, 4));
}
