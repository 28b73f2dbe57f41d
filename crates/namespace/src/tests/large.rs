//! Inodes with more rows than one commit may change.

use super::*;
use crate::{CUT_SLICES_MAX, first_purge};
use chronofs_core::ops::XattrMode;
use chronofs_engine::Change;

/// A publish of one byte into each of `blocks`.
fn sparse(fs: &mut Fs, ino: Ino, blocks: std::ops::Range<u32>) -> Request {
    let slices = blocks.map(|block| fs.slice(block, 0, b"x")).collect();
    Request::Publish { ino, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None }
}

fn decided(fs: &mut Fs, request: &Request) -> crate::Outcome {
    fs.version += 10;
    let is_open = |_| false;
    step(&fs.state, &fs.ctx(&ROOT, None, &is_open), request).unwrap()
}

fn bytes_of(batch: &chronofs_engine::Batch) -> usize {
    let len = |change: &Change| match change {
        Change::Put(key, value) => key.len() + value.len(),
        Change::Delete(key) => key.len(),
    };
    batch.0.iter().map(len).sum()
}

#[test]
fn a_file_of_many_slices_goes_at_once_and_its_rows_step_by_step() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    for from in [0, 2500] {
        let request = sparse(&mut fs, f, from..from + 2500);
        fs.ask(&ROOT, request).unwrap();
    }
    let then = fs.now();
    let request = Request::Unlink { parent: Ino::ROOT, name: name("f") };
    let outcome = decided(&mut fs, &request);
    assert!(bytes_of(&outcome.batch) < 300 << 10, "{} bytes", bytes_of(&outcome.batch));
    fs.commit(outcome.batch);
    let gone = fs.now();
    assert_eq!(fs.read(&ROOT, None, &Request::StatFs).map(used), Ok((0, 1)));
    let mut steps = 0;
    while let Some(ino) = first_purge(&fs.state, VOLUME).unwrap() {
        assert_eq!(fs.slices(Some(then), f).len(), 5000, "the past shows it whole, after {steps} steps");
        let slices = Request::Slices { ino: f, first: 0, count: 1, staged: false };
        assert_eq!(fs.read(&ROOT, Some(gone), &slices), Err(Errno::ENOENT));
        fs.system(SystemRequest::Purge { volume: spec().id, ino }).unwrap();
        steps += 1;
    }
    assert_eq!(steps, 4);
    assert_eq!(fs.slices(Some(then), f).len(), 5000);
    let live = chronofs_history::Snapshot::new(&fs.state, VOLUME, None);
    assert_eq!(live.scan(crate::rows::SLICE, &[], &[], 1).unwrap(), []);
    // To ask once more changes nothing.
    fs.system(SystemRequest::Purge { volume: spec().id, ino: f }).unwrap();
}

#[test]
fn large_attributes_go_step_by_step_too() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    for n in 0..40 {
        let (name, value) = (Bytes::from(format!("user.{n}")), Bytes::from(vec![n; 60 << 10]));
        fs.ask(&ROOT, Request::SetXattr { ino: f, name, value, mode: XattrMode::Any }).unwrap();
    }
    let outcome = decided(&mut fs, &Request::Unlink { parent: Ino::ROOT, name: name("f") });
    assert!(bytes_of(&outcome.batch) < 2 << 20, "{} bytes", bytes_of(&outcome.batch));
    fs.commit(outcome.batch);
    while let Some(ino) = first_purge(&fs.state, VOLUME).unwrap() {
        fs.system(SystemRequest::Purge { volume: spec().id, ino }).unwrap();
    }
    let live = chronofs_history::Snapshot::new(&fs.state, VOLUME, None);
    assert_eq!(live.scan(crate::rows::XATTR, &[], &[], 1).unwrap(), []);
}

#[test]
fn a_cut_of_more_slices_than_a_commit_takes_is_refused_and_removing_the_file_is_not() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let blocks = CUT_SLICES_MAX as u32 + 2;
    for first in (0..blocks).step_by(4_000) {
        let request = sparse(&mut fs, f, first..blocks.min(first + 4_000));
        let batch = decided(&mut fs, &request).batch;
        fs.state.apply(&Commit { version: fs.now(), tag: Bytes::new(), batch });
    }
    let cut = |blocks: u32| {
        let size = Some(u64::from(blocks) * u64::from(BLOCK));
        Request::SetAttr { ino: f, set: SetAttr { size, ..SetAttr::default() } }
    };
    assert_eq!(decided(&mut fs, &cut(1)).reply, Err(Errno::EFBIG));
    let outcome = decided(&mut fs, &cut(2));
    assert!(outcome.reply.is_ok());
    assert!(bytes_of(&outcome.batch) < 64 << 20, "{} bytes", bytes_of(&outcome.batch));
    let outcome = decided(&mut fs, &Request::Unlink { parent: Ino::ROOT, name: name("f") });
    assert!(outcome.reply.is_ok() && bytes_of(&outcome.batch) < 300 << 10);
}

fn used(reply: Reply) -> (u64, u64) {
    match reply {
        Reply::StatFs(figures) => (figures.used_bytes, figures.used_inodes),
        other => panic!("{other:?}"),
    }
}
