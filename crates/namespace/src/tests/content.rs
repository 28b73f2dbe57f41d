use super::*;
use chronofs_core::ops::{Merge, SLICES_PER_BLOCK_CAP, SLICES_PER_PUBLISH_MAX};

fn publish_with(fs: &mut Fs, ino: Ino, slices: Vec<NewSlice>, merge: Option<Merge>) -> Result<Attr, Errno> {
    let request = Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge };
    fs.ask(&ROOT, request).map(attr_in)
}

fn hole(block: u32, offset: u32, len: u32) -> NewSlice {
    NewSlice { block, slice: Slice { offset, len, skip: 0, place: Place::Hole }, staged: None }
}

#[test]
fn newer_bytes_lie_over_older_ones() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let attr = fs.write(f, 0, b"the quick brown fox");
    assert_eq!((attr.size, attr.allocated, attr.data_version), (19, 19, fs.now()));
    fs.write(f, 4, b"slow!");
    assert_eq!(fs.bytes(None, f, 99), b"the slow! brown fox");
    let attr = fs.write(f, 25, b"end");
    assert_eq!((attr.size, attr.allocated), (28, 22));
    assert_eq!(fs.bytes(None, f, 99), b"the slow! brown fox\0\0\0\0\0\0end");
    let attr = fs.write(f, BLOCK + 3, b"far");
    assert_eq!((attr.size, attr.allocated), (u64::from(BLOCK) + 6, 25));
}

#[test]
fn covered_slices_go_in_the_same_batch() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"aaaa");
    fs.write(f, 4, b"bbbb");
    let before = fs.now();
    fs.write(f, 0, b"cccccccccc");
    assert_eq!(fs.slices(None, f).len(), 1);
    assert_eq!(fs.bytes(None, f, 99), b"cccccccccc");
    assert_eq!(fs.bytes(Some(before), f, 99), b"aaaabbbb");
    let (low, high) = (fs.slice(0, 2, b"xx"), fs.slice(0, 0, b"yyyyyy"));
    fs.publish(f, vec![low, high]).unwrap();
    assert_eq!(fs.bytes(None, f, 99), b"yyyyyycccc");
    assert_eq!(fs.slices(None, f).len(), 2);
}

#[test]
fn times_follow_the_client_but_never_pass_the_commit() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let made = fs.attr(f);
    let mut publish = |mtime_ns| {
        let slices = vec![fs.slice(0, 0, b"x")];
        let request =
            Request::Publish { ino: f, slices, size_min: Some(10), mtime_ns, kill_priv: false, merge: None };
        (attr_in(fs.ask(&ROOT, request).unwrap()), fs.version as i64)
    };
    let (attr, now_ns) = publish(None);
    assert_eq!((attr.mtime_ns, attr.ctime_ns, attr.size), (made.mtime_ns, now_ns, 10));
    assert_eq!(publish(Some(5)).0.mtime_ns, 5);
    let (attr, now_ns) = publish(Some(i64::MAX));
    assert_eq!(attr.mtime_ns, now_ns);
}

#[test]
fn holes_free_what_they_punch() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"0123456789");
    let attr = fs.publish(f, vec![hole(0, 2, 3)]).unwrap();
    assert_eq!((attr.size, attr.allocated), (10, 7));
    assert_eq!(fs.bytes(None, f, 99), b"01\0\0\x0056789");
    let attr = fs.publish(f, vec![hole(0, 8, BLOCK - 8), hole(4, 0, 9)]).unwrap();
    assert_eq!((attr.size, attr.allocated), (10, 5), "a hole does not extend");
    let attr = fs.publish(f, vec![hole(0, 0, BLOCK)]).unwrap();
    assert_eq!((attr.size, attr.allocated, fs.slices(None, f).len()), (10, 0, 0));
}

#[test]
fn a_cut_file_reads_as_a_hole_when_it_grows_again() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"0123456789");
    fs.write(f, 6, b"xy");
    fs.write(f, 3 * BLOCK, b"far away");
    let before = fs.now();
    let attr = fs.truncate(f, 7).unwrap();
    assert_eq!((attr.size, attr.allocated, attr.data_version), (7, 7, fs.now()));
    assert_eq!((attr.mtime_ns, attr.ctime_ns), (fs.version as i64, fs.version as i64));
    assert_eq!(fs.truncate(f, 12).unwrap().allocated, 7);
    assert_eq!(fs.bytes(None, f, 99), b"012345x\0\0\0\0\0");
    assert_eq!(fs.bytes(Some(before), f, 10), b"012345xy89");
    assert_eq!(fs.truncate(f, 0).unwrap().allocated, 0);
    assert_eq!(fs.slices(None, f), []);
}

#[test]
fn a_publish_without_slices_makes_a_file_longer_and_never_shorter() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"0123456789");
    let mut extend = |size_min| {
        let slices = Vec::new();
        let request = Request::Publish {
            ino: f,
            slices,
            size_min: Some(size_min),
            mtime_ns: None,
            kill_priv: false,
            merge: None,
        };
        fs.ask(&ROOT, request).map(attr_in)
    };
    let longer = extend(20).unwrap();
    assert_eq!((longer.size, longer.allocated), (20, 10));
    let same = extend(5).unwrap();
    assert_eq!((same.size, same.allocated, same.data_version), (20, 10, longer.data_version));
    assert_eq!(extend(crate::size_max(BLOCK) + 1), Err(Errno::EFBIG));
    assert_eq!(fs.bytes(None, f, 99), b"0123456789\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn sizes_have_a_limit_and_only_files_have_sizes() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let d = fs.dir(Ino::ROOT, "d");
    let p = fs.make_as(&ROOT, Ino::ROOT, "p", NewNode::Fifo, 0o600).unwrap().ino;
    let max = crate::size_max(BLOCK);
    assert_eq!(fs.truncate(f, max).unwrap().size, max);
    assert_eq!(fs.truncate(f, max + 1), Err(Errno::EFBIG));
    assert_eq!(fs.truncate(f, max - 1).unwrap().size, max - 1);
    assert_eq!(fs.truncate(d, 0), Err(Errno::EISDIR));
    assert_eq!(fs.truncate(p, 0), Err(Errno::EINVAL));
    let last = fs.slice(u32::MAX, BLOCK - 1, b"x");
    assert_eq!(fs.publish(f, vec![last]).unwrap().size, max);
    assert_eq!(fs.publish(d, Vec::new()), Err(Errno::EISDIR));
    assert_eq!(fs.publish(p, Vec::new()), Err(Errno::EINVAL));
}

#[test]
fn a_merge_replaces_what_it_read_and_touches_nothing_else() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"aaaaaa");
    fs.write(f, 2, b"bb");
    let before = fs.attr(f);
    let newest = fs.slices(None, f).last().unwrap().key;
    let merged = fs.slice(0, 0, b"aabbaa");
    let merge = Merge { block: 0, newest };
    assert_eq!(publish_with(&mut fs, f, vec![merged], Some(merge.clone())), Ok(before.clone()));
    assert_eq!((fs.slices(None, f).len(), fs.bytes(None, f, 9)), (1, b"aabbaa".to_vec()));
    let merged = fs.slice(0, 0, b"aabbaa");
    assert_eq!(publish_with(&mut fs, f, vec![merged], Some(merge)), Err(Errno::EAGAIN));
}

#[test]
fn a_block_takes_only_so_many_slices_until_they_are_merged() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let many = |fs: &mut Fs, count: u32| (0..count).map(|n| fs.slice(0, n * 2, b"x")).collect::<Vec<_>>();
    let slices = many(&mut fs, SLICES_PER_BLOCK_CAP as u32);
    fs.publish(f, slices).unwrap();
    let (one, other) = (fs.slice(0, 3000, b"y"), fs.slice(1, 0, b"y"));
    assert_eq!(fs.publish(f, vec![one.clone(), other.clone()]), Err(Errno::EBUSY));
    fs.publish(f, vec![other]).unwrap();
    let over = fs.slice(0, 0, b"z");
    fs.publish(f, vec![over]).expect("what covers a slice does not add to them");
    assert_eq!(fs.publish(f, vec![one.clone()]), Err(Errno::EBUSY));
    let newest =
        fs.slices(None, f).iter().map(|placed| placed.key).filter(|key| key.block == 0).max().unwrap();
    let merged = fs.slice(0, 0, &fs.bytes(None, f, SLICES_PER_BLOCK_CAP * 2));
    publish_with(&mut fs, f, vec![merged], Some(Merge { block: 0, newest })).unwrap();
    fs.publish(f, vec![one]).unwrap();
    assert_eq!(&fs.bytes(None, f, 4000)[..4], b"z\0x\0");
    let slices = many(&mut fs, SLICES_PER_PUBLISH_MAX as u32 + 1);
    assert_eq!(fs.publish(f, slices), Err(Errno::EINVAL));
}

#[test]
fn a_merge_never_brings_back_what_was_cut() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 4, b"old tail");
    fs.write(f, 0, b"head");
    let merge = Merge { block: 0, newest: fs.slices(None, f).last().unwrap().key };
    fs.truncate(f, 4).unwrap();
    fs.truncate(f, 12).unwrap();
    let merged = fs.slice(0, 0, b"headold tail");
    assert_eq!(publish_with(&mut fs, f, vec![merged], Some(merge)), Err(Errno::EAGAIN));
    assert_eq!(fs.bytes(None, f, 99), b"head\0\0\0\0\0\0\0\0");
}

#[test]
fn what_is_no_slice_of_the_session_is_refused() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let good = fs.slice(0, 0, b"some staged bytes");
    let seal = *good.slice.place.seal().unwrap();
    let with = |change: &dyn Fn(&mut NewSlice)| {
        let mut slice = good.clone();
        change(&mut slice);
        slice
    };
    let sealed = |change: &dyn Fn(&mut Seal)| {
        let mut seal = seal;
        change(&mut seal);
        with(&|slice| slice.slice.place = Place::Staged(seal))
    };
    let bad = [
        with(&|s| s.slice.len = 0),
        with(&|s| s.slice.offset = BLOCK - 1),
        with(&|s| s.slice.offset = u32::MAX),
        with(&|s| s.slice.skip = 1),
        with(&|s| s.staged = None),
        with(&|s| s.staged = Some(Bytes::from_static(b"short"))),
        with(&|s| s.slice.place = Place::Object(seal, 0)),
        with(&|s| s.slice.place = Place::Hole),
        sealed(&|seal| seal.id.object.session = SessionId(99)),
        sealed(&|seal| seal.id.object.incarnation = 1),
        sealed(&|seal| seal.id.object.n = 1 << 20),
        sealed(&|seal| seal.full_len += 1),
        sealed(&|seal| seal.full_len = BLOCK + 1),
    ];
    for slice in bad {
        assert_eq!(fs.publish(f, vec![slice.clone()]), Err(Errno::EINVAL), "{slice:?}");
    }
    fs.publish(f, vec![good.clone()]).unwrap();
    assert_eq!(fs.publish(f, vec![good]), Err(Errno::EINVAL), "an id is used once");
    fs.session = SessionId(77);
    let foreign = fs.slice(0, 0, b"x");
    assert_eq!(fs.publish(f, vec![foreign]), Err(Errno::ESTALE), "no such session");
}

#[test]
fn byte_quota_is_exact() {
    let mut fs = Fs::with(VolumeSpec { max_bytes: Some(10), ..spec() });
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"01234567");
    let over = fs.slice(0, 6, b"abcde");
    assert_eq!(fs.publish(f, vec![over]), Err(Errno::EDQUOT));
    fs.write(f, 6, b"abcd");
    assert_eq!(crate::usage(&fs.state, VOLUME).unwrap().unwrap().used_bytes, 10);
    fs.truncate(f, 4).unwrap();
    assert_eq!(crate::usage(&fs.state, VOLUME).unwrap().unwrap().used_bytes, 4);
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert_eq!(crate::usage(&fs.state, VOLUME).unwrap().unwrap().used_bytes, 0);
}

#[test]
fn opening_a_small_file_brings_its_bytes() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"more than eight bytes");
    let open = Request::Open { ino: f, read: true, write: false };
    let Ok(Reply::Opened { slices: Some(slices), .. }) = fs.ask(&ROOT, open.clone()) else { panic!() };
    assert_eq!(slices[0].staged.as_deref(), Some(&b"more than eight bytes"[..]));
    let id = slices[0].slice.place.seal().unwrap().id;
    let staged = fs.ask(&ROOT, Request::Staged { ino: f, ids: vec![id] }).unwrap();
    assert_eq!(staged, Reply::Staged(vec![Bytes::from_static(b"more than eight bytes")]));
    let other = fs.file(Ino::ROOT, "g");
    assert_eq!(fs.ask(&ROOT, Request::Staged { ino: other, ids: vec![id] }), Err(Errno::EINVAL));
    fs.truncate(f, u64::from(BLOCK) + 1).unwrap();
    assert!(matches!(fs.ask(&ROOT, open), Ok(Reply::Opened { slices: None, .. })));
}

#[test]
fn a_run_of_blocks_is_read_without_its_neighbours() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    for block in 0..6 {
        fs.write(f, block * BLOCK, b"x");
    }
    let request = Request::Slices { ino: f, first: 2, count: 3, staged: false };
    let Ok(Reply::Slices(slices)) = fs.ask(&ROOT, request) else { panic!() };
    assert_eq!(slices.iter().map(|placed| placed.key.block).collect::<Vec<_>>(), [2, 3, 4]);
    let none = Request::Slices { ino: f, first: 2, count: 0, staged: false };
    assert_eq!(fs.ask(&ROOT, none), Ok(Reply::Slices(Vec::new())));
}

#[test]
fn privileges_go_when_content_changes() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.chmod(&ROOT, f, 0o6755).unwrap();
    let slices = vec![fs.slice(0, 0, b"x")];
    let request =
        Request::Publish { ino: f, slices, size_min: None, mtime_ns: None, kill_priv: true, merge: None };
    assert_eq!(attr_in(fs.ask(&user(5), request).unwrap()).mode, 0o755);
    fs.chmod(&ROOT, f, 0o6744).unwrap();
    let set = SetAttr { size: Some(0), kill_priv: true, by_handle: true, ..SetAttr::default() };
    let member = Caller { uid: 5, gid: 0, groups: Vec::new() };
    assert_eq!(fs.set(&member, f, set).unwrap().mode, 0o2744, "setgid without x is no privilege to a member");
}
