//! What every engine must do, run over every engine.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::embedded::{self, Embedded, MemMedium, MemStore, Options, RocksOptions};
use chronofs_engine::memory::Memory;
use chronofs_engine::sim::SimDisk;
use chronofs_engine::{Batch, Commit, Engine};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{all, commit, delete, put};

/// Runs a test over all engines, each in a state as new.
macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $name() { super::$name(&super::Memory::default()); })*
        }
        mod on_rocks {
            $(#[test] fn $name() {
                let folder = tempfile::tempdir().unwrap();
                let options = super::Options { segment_bytes: 1 << 20, ..super::Options::default() };
                super::$name(&super::embedded::open(folder.path(), options, &super::RocksOptions::default()).unwrap());
            })*
        }
        mod on_simulation {
            $(#[test] fn $name() {
                let store = super::MemStore::open(super::MemMedium::default());
                let options = super::Options { segment_bytes: 1 << 20, keeper: false, ..super::Options::default() };
                super::$name(&super::Embedded::new(super::SimDisk::new(1), store, options).unwrap());
            })*
        }
    };
}

conformance!(
    what_is_put_can_be_read_and_what_is_deleted_cannot,
    a_later_change_of_a_key_in_a_batch_wins,
    a_later_commit_of_a_group_wins,
    scans_are_in_key_order_and_keep_to_their_bounds,
    a_view_does_not_see_later_commits,
    empty_commits_raise_the_version,
    sync_makes_everything_applied_durable,
    readers_see_whole_commits_while_a_writer_runs,
    marks_are_taken,
);

fn what_is_put_can_be_read_and_what_is_deleted_cannot(engine: &dyn Engine) {
    engine.apply(vec![commit(1, [put("a", "1"), put("b", "2")])]).unwrap();
    assert_eq!(engine.view().get(b"a").unwrap(), Some(Bytes::from("1")));
    assert_eq!(engine.view().get(b"c").unwrap(), None);
    engine.apply(vec![commit(2, [delete("a"), delete("c")]), commit(3, [put("c", "")])]).unwrap();
    assert_eq!(engine.view().get(b"a").unwrap(), None);
    assert_eq!(engine.view().get(b"c").unwrap(), Some(Bytes::new()));
    assert_eq!(all(&*engine.view()), [("b".into(), "2".into()), ("c".into(), "".into())]);
}

fn a_later_change_of_a_key_in_a_batch_wins(engine: &dyn Engine) {
    engine.apply(vec![commit(1, [put("a", "1"), delete("a"), put("b", "1"), put("b", "2")])]).unwrap();
    assert_eq!(all(&*engine.view()), [("b".into(), "2".into())]);
}

fn a_later_commit_of_a_group_wins(engine: &dyn Engine) {
    let first = commit(1, [put("a", "1"), put("b", "1"), delete("c"), put("d", "1")]);
    let second = commit(2, [delete("a"), put("b", "2"), put("c", "2")]);
    let third = commit(3, [put("a", "3"), delete("b")]);
    engine.apply(vec![first, second, third]).unwrap();
    assert_eq!(
        all(&*engine.view()),
        [("a".into(), "3".into()), ("c".into(), "2".into()), ("d".into(), "1".into())]
    );
}

fn scans_are_in_key_order_and_keep_to_their_bounds(engine: &dyn Engine) {
    let changes = [put("b", "2"), put("a\0", "1"), put("a", "0"), put("\u{7f}", "4"), put("c", "3")];
    engine.apply(vec![commit(1, changes)]).unwrap();
    let view = engine.view();
    let keys = |from: &str, to: &str, limit| {
        let pairs = view.scan(from.as_bytes(), to.as_bytes(), limit).unwrap();
        pairs.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(keys("", "\u{7f}\0", 100), ["a", "a\0", "b", "c", "\u{7f}"]);
    assert_eq!(keys("", "c", 100), ["a", "a\0", "b"]);
    assert_eq!(keys("a\0", "c", 1), ["a\0"]);
    assert_eq!(keys("a\0\0", "c", 9), ["b"]);
    assert_eq!(keys("c", "a", 9), [""; 0]);
    assert_eq!(keys("a", "a", 9), [""; 0]);
    assert_eq!(keys("a", "c", 0), [""; 0]);
    assert_eq!(view.first(b"a\0\0", b"z").unwrap(), Some((Bytes::from("b"), Bytes::from("2"))));
}

fn a_view_does_not_see_later_commits(engine: &dyn Engine) {
    engine.apply(vec![commit(5, [put("a", "1"), put("b", "1")])]).unwrap();
    let before = engine.view();
    assert_eq!(before.get(b"a").unwrap(), Some(Bytes::from("1")));
    assert_eq!(before.get(b"c").unwrap(), None);
    engine.apply(vec![commit(6, [put("a", "2"), delete("b"), put("c", "2")])]).unwrap();
    assert_eq!(engine.view().get(b"a").unwrap(), Some(Bytes::from("2")));
    assert_eq!(engine.view().get(b"b").unwrap(), None);
    assert_eq!(engine.view().get(b"c").unwrap(), Some(Bytes::from("2")));
    for _ in 0..2 {
        assert_eq!(before.get(b"a").unwrap(), Some(Bytes::from("1")));
        assert_eq!(before.get(b"b").unwrap(), Some(Bytes::from("1")));
        assert_eq!(before.get(b"c").unwrap(), None);
        assert_eq!(all(&*before), [("a".into(), "1".into()), ("b".into(), "1".into())]);
    }
    assert_eq!((before.version(), engine.view().version()), (Version(5), Version(6)));
}

fn empty_commits_raise_the_version(engine: &dyn Engine) {
    engine.apply(vec![commit(7, [])]).unwrap();
    assert_eq!(engine.applied(), Version(7));
    assert_eq!(engine.view().version(), Version(7));
    engine.apply(Vec::new()).unwrap();
    assert_eq!(engine.applied(), Version(7));
}

fn sync_makes_everything_applied_durable(engine: &dyn Engine) {
    engine.apply(vec![commit(1, [put("a", "1")]), commit(9, [put("a", "2")])]).unwrap();
    assert!(engine.durable() <= Version(9));
    assert_eq!(engine.sync().unwrap(), Version(9));
    assert_eq!(engine.durable(), Version(9));
}

fn readers_see_whole_commits_while_a_writer_runs(engine: &dyn Engine) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::SeqCst) {
                    let view = engine.view();
                    let version = view.version().0;
                    let shown = (version > 0).then(|| Bytes::from(version.to_string()));
                    assert!(version >= last);
                    for key in [&b"left"[..], b"right", b"left"] {
                        assert_eq!(view.get(key).unwrap(), shown, "at {version}");
                    }
                    assert_eq!(view.get(b"odd").unwrap().is_some(), version % 2 == 1);
                    last = version;
                }
            });
        }
        for version in 1..=2000_u64 {
            let text = version.to_string();
            let odd = if version % 2 == 1 { put("odd", "") } else { delete("odd") };
            engine.apply(vec![commit(version, [put("left", &text), put("right", &text), odd])]).unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
}

fn marks_are_taken(engine: &dyn Engine) {
    let tagged = Commit { version: Version(1), tag: Bytes::from("tag"), batch: Batch::default() };
    engine.apply(vec![tagged]).unwrap();
    engine.mark(Version(2)).unwrap();
    assert!(engine.recovered().is_empty());
}

#[test]
fn a_view_outlives_its_engine() {
    let folder = tempfile::tempdir().unwrap();
    let engine = embedded::open(folder.path(), Options::default(), &RocksOptions::default()).unwrap();
    engine.apply(vec![commit(1, [put("a", "1")])]).unwrap();
    let view = engine.view();
    drop(engine);
    assert_eq!(view.get(b"a").unwrap(), Some(Bytes::from("1")));
    let view: Arc<dyn chronofs_engine::View> = view;
    assert_eq!(view.version(), Version(1));
}
