//! From written ranges of a file to the slices that a publish names and the objects that must be put before it.
//!
//! Two steps, because ids are granted: [`Draft::new`] cuts at the borders of blocks and tells how many object ids
//! it takes; [`Draft::seal`] does the work (and may be run on a thread for such work).

use crate::object::{Entry, OBJECT_BYTES_MAX, ObjectWriter};
use crate::seal::seal_with;
use bytes::Bytes;
use chronofs_core::slice::{INLINE_MAX, NewSlice, Place, STAGED_MAX, Seal, Slice};
use chronofs_core::volume::Compression;
use chronofs_core::{Ino, ObjectId, SliceId};
use chronofs_keys::{Error as KeyError, VolumeKeys};
use std::sync::Arc;
use uuid::Uuid;

/// What a range of a file is to show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// This many zeros, stored nowhere.
    Hole(u64),
}

impl Content {
    /// Bytes of the file that it covers.
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Hole(len) => *len,
        }
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `from..to` of it.
    pub fn slice(&self, from: u64, to: u64) -> Content {
        match self {
            Content::Bytes(bytes) => Content::Bytes(bytes.slice(from as usize..to as usize)),
            Content::Hole(_) => Content::Hole(to - from),
        }
    }
}

/// A written range of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// First byte within the file.
    pub offset: u64,
    /// What it is to show.
    pub content: Content,
}

/// Where sealed slices belong.
#[derive(Clone, Debug)]
pub struct Target {
    /// The volume.
    pub volume: Uuid,
    /// The file.
    pub ino: Ino,
    /// How to compress.
    pub compression: Compression,
    /// What to encrypt with, if the volume is encrypted.
    pub keys: Option<Arc<VolumeKeys>>,
}

/// Written ranges, cut at the borders of blocks and grouped by the object they would go to.
#[derive(Clone, Debug)]
pub struct Draft {
    groups: Vec<Vec<Cut>>,
}

#[derive(Clone, Debug)]
struct Cut {
    block: u32,
    offset: u32,
    content: Content,
}

/// Slices to publish, and the objects that must be in the store before that.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sealed {
    /// In the order of the written ranges.
    pub slices: Vec<NewSlice>,
    /// Ids and bytes of objects.
    pub objects: Vec<(ObjectId, Bytes)>,
}

impl Draft {
    /// Cuts `pieces` of a file with blocks of `block_size` bytes. A piece past the last block that has a number is
    /// the caller's mistake.
    pub fn new(pieces: &[Piece], block_size: u32) -> Draft {
        let mut groups: Vec<Vec<Cut>> = Vec::new();
        let mut group_bytes = 0;
        for cut in pieces.iter().flat_map(|piece| cut_at_blocks(piece, block_size)) {
            let bytes = match &cut.content {
                Content::Bytes(bytes) => bytes.len(),
                Content::Hole(_) => 0,
            };
            match groups.last_mut() {
                Some(group) if group_bytes + bytes <= OBJECT_BYTES_MAX => {
                    group.push(cut);
                    group_bytes += bytes;
                }
                _ => {
                    groups.push(vec![cut]);
                    group_bytes = bytes;
                }
            }
        }
        Draft { groups }
    }

    /// How many ids [`Draft::seal`] takes.
    pub fn ids_needed(&self) -> usize {
        self.groups.len()
    }

    /// Seals every slice and gives each its place: tiny ones inline, all others staged if together they are
    /// within [`STAGED_MAX`], else in objects. Errors: the system gives no random numbers to encrypt with.
    pub fn seal(&self, target: &Target, ids: &[ObjectId]) -> Result<Sealed, KeyError> {
        assert_eq!(ids.len(), self.groups.len(), "as many ids as groups");
        let seal_cut = |cut: &Cut, object: ObjectId, index: usize| match &cut.content {
            Content::Hole(_) => Ok(None),
            Content::Bytes(bytes) => {
                let slice = SliceId { object, index: index as u32 };
                seal_with(slice, target.compression, bytes, target.keys.as_deref()).map(Some)
            }
        };
        let sealed: Vec<Vec<Option<(Seal, Bytes)>>> = (self.groups.iter().zip(ids))
            .map(|(group, id)| {
                group.iter().enumerate().map(|(index, cut)| seal_cut(cut, *id, index)).collect()
            })
            .collect::<Result<_, KeyError>>()?;
        let beyond_rows: usize = sealed
            .iter()
            .flatten()
            .flatten()
            .map(|(_, stored)| stored.len())
            .filter(|len| *len > INLINE_MAX)
            .sum();
        let mut out = Sealed::default();
        for ((group, sealed), id) in self.groups.iter().zip(sealed).zip(ids) {
            place_group(group, sealed, *id, target, beyond_rows <= STAGED_MAX, &mut out);
        }
        Ok(out)
    }
}

fn place_group(
    group: &[Cut],
    sealed: Vec<Option<(Seal, Bytes)>>,
    id: ObjectId,
    target: &Target,
    staged: bool,
    out: &mut Sealed,
) {
    let capacity = sealed.iter().flatten().map(|(_, stored)| stored.len() + 64).sum();
    let mut object: Option<ObjectWriter> = None;
    for (cut, sealed) in group.iter().zip(sealed) {
        let len = cut.content.len() as u32;
        let (place, staged) = match sealed {
            None => (Place::Hole, None),
            Some((seal, stored)) if stored.len() <= INLINE_MAX => (Place::Inline(seal, stored), None),
            Some((seal, stored)) if staged => (Place::Staged(seal), Some(stored)),
            Some((seal, stored)) => {
                let ino = target.ino;
                let entry = Entry { ino, at: 0, block: cut.block, offset: cut.offset, len, seal };
                let writer = object.get_or_insert_with(|| ObjectWriter::new(target.volume, id, capacity));
                (Place::Object(seal, writer.push(entry, &stored)), None)
            }
        };
        let slice = Slice { offset: cut.offset, len, skip: 0, place };
        out.slices.push(NewSlice { block: cut.block, slice, staged });
    }
    out.objects.extend(object.map(|writer| (id, writer.finish())));
}

fn cut_at_blocks(piece: &Piece, block_size: u32) -> impl Iterator<Item = Cut> + '_ {
    let block_size = u64::from(block_size);
    let (start, end) = (piece.offset, piece.offset + piece.content.len());
    assert!(end.div_ceil(block_size) <= u64::from(u32::MAX), "a file has at most 2^32 - 1 blocks");
    let mut at = start;
    std::iter::from_fn(move || {
        let from = at;
        let to = end.min((from / block_size + 1) * block_size);
        at = to;
        (from < to).then(|| Cut {
            block: (from / block_size) as u32,
            offset: (from % block_size) as u32,
            content: piece.content.slice(from - start, to - start),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Object;
    use crate::seal::open;
    use crate::testing::{cases, object_id};
    use proptest::prelude::*;

    fn target() -> Target {
        Target { volume: Uuid::from_u128(1), ino: Ino(5), compression: Compression::Lz4, keys: None }
    }

    fn planned(pieces: &[Piece], block_size: u32) -> Sealed {
        let draft = Draft::new(pieces, block_size);
        let ids: Vec<_> = (0..draft.ids_needed() as u64).map(object_id).collect();
        draft.seal(&target(), &ids).unwrap()
    }

    fn noise(seed: u64, len: usize) -> Bytes {
        let mut x = seed;
        let step = |_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        };
        (0..len).map(step).collect::<Vec<u8>>().into()
    }

    fn piece(offset: u64, bytes: Bytes) -> Piece {
        Piece { offset, content: Content::Bytes(bytes) }
    }

    #[test]
    fn tiny_slices_go_inline_small_commits_are_staged_and_the_rest_goes_to_an_object() {
        let tiny = planned(&[piece(0, noise(1, 512))], 1 << 20);
        assert!(matches!(tiny.slices[0].slice.place, Place::Inline(..)) && tiny.objects.is_empty());
        let small = planned(&[piece(0, noise(1, 513)), piece(4096, noise(2, STAGED_MAX - 513))], 1 << 20);
        assert!(small.slices.iter().all(|s| matches!(s.slice.place, Place::Staged(_)) && s.staged.is_some()));
        assert!(small.objects.is_empty());
        let large = planned(&[piece(0, noise(1, 514)), piece(4096, noise(2, STAGED_MAX - 513))], 1 << 20);
        assert!(
            large.slices.iter().all(|s| matches!(s.slice.place, Place::Object(..)) && s.staged.is_none())
        );
        assert_eq!(large.objects.len(), 1);
    }

    #[test]
    fn no_object_is_larger_than_the_limit_and_small_slices_share_one() {
        let pieces: Vec<_> = (0..9).map(|n| piece(n * (4 << 20), noise(n, 4 << 20))).collect();
        let sealed = planned(&pieces, 4 << 20);
        assert_eq!(sealed.objects.len(), 3);
        for (_, bytes) in &sealed.objects {
            assert!(bytes.len() <= OBJECT_BYTES_MAX + 1024, "{}", bytes.len());
        }
    }

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            (any::<u64>(), 1usize..3000).prop_map(|(seed, len)| Content::Bytes(noise(seed, len))),
            (any::<u8>(), 1usize..3000).prop_map(|(byte, len)| Content::Bytes(vec![byte; len].into())),
            (1u64..3000).prop_map(Content::Hole),
        ]
    }

    fn opened(sealed: &Sealed, new: &NewSlice) -> Vec<u8> {
        let (seal, stored) = match &new.slice.place {
            Place::Hole => return vec![0; new.slice.len as usize],
            Place::Inline(seal, stored) => (seal, stored.clone()),
            Place::Staged(seal) => (seal, new.staged.clone().unwrap()),
            Place::Object(seal, at) => {
                let (id, bytes) = sealed.objects.iter().find(|(id, _)| *id == seal.id.object).unwrap();
                let object = Object::read(bytes.clone()).unwrap();
                assert_eq!((object.label.id, object.label.volume), (*id, Uuid::from_u128(1)));
                let entry = object.entries.iter().find(|e| e.seal.id == seal.id).unwrap();
                assert_eq!((entry.at, entry.block, entry.offset), (*at, new.block, new.slice.offset));
                assert_eq!((entry.ino, entry.len), (Ino(5), new.slice.len));
                (seal, object.stored(entry).unwrap())
            }
            Place::Moved(..) => panic!("only the server moves slices"),
        };
        open(seal, stored).unwrap().to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases(128)))]

        #[test]
        fn slices_stay_within_blocks_and_hold_what_was_written(
            written in prop::collection::vec((0u64..5000, content()), 1..40), block_size in 1u32..2000,
        ) {
            let mut pieces = Vec::new();
            let mut at = 0;
            for (gap, content) in written {
                let offset = at + gap;
                at = offset + content.len();
                pieces.push(Piece { offset, content });
            }
            let sealed = planned(&pieces, block_size);
            let mut shown = vec![0u8; at as usize];
            let mut expected = vec![0u8; at as usize];
            let (mut covered, mut staged) = (0, 0);
            for new in &sealed.slices {
                prop_assert!(new.slice.offset + new.slice.len <= block_size && new.slice.len > 0);
                let from = new.block as usize * block_size as usize + new.slice.offset as usize;
                shown[from..from + new.slice.len as usize].copy_from_slice(&opened(&sealed, new));
                covered += u64::from(new.slice.len);
                staged += new.staged.as_ref().map_or(0, |bytes| bytes.len());
            }
            for piece in &pieces {
                if let Content::Bytes(bytes) = &piece.content {
                    expected[piece.offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
            }
            prop_assert!(shown == expected);
            prop_assert_eq!(covered, pieces.iter().map(|p| p.content.len()).sum::<u64>());
            prop_assert!(staged <= STAGED_MAX);
        }
    }
}
