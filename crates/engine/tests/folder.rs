//! The embedded engine in a real folder: restarts, kills, locks, formats, damage of the store.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::embedded::{self, EmbeddedFolder, Options, RocksOptions};
use chronofs_engine::{Engine, EngineError, ReadStop};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{all, cases, commit, put};

const CHILD_FOLDER: &str = "CHRONOFS_TEST_FOLDER";
const KEYS: u64 = 500;

fn open(folder: &Path) -> Result<EmbeddedFolder, EngineError> {
    let options = Options { segment_bytes: 1 << 20, flush_bytes: 1 << 20, ..Options::default() };
    embedded::open(folder, options, &RocksOptions::default())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn flush_and_wait(engine: &EmbeddedFolder) {
    engine.flush().unwrap();
    wait_until("the flush", || {
        engine.maintain().unwrap();
        engine.metrics().flushed == engine.applied()
    });
}

#[test]
fn a_restart_finds_everything_whether_flushed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    engine.apply(vec![commit(1, [put("a", "1"), put("b", "1")])]).unwrap();
    flush_and_wait(&engine);
    engine.apply(vec![commit(2, [put("b", "2"), put("c", "2")])]).unwrap();
    drop(engine);
    for _ in 0..2 {
        let engine = open(folder.path()).unwrap();
        assert_eq!(engine.opening().last_commit, Version(2));
        assert_eq!(
            all(&*engine.view()),
            [("a".into(), "1".into()), ("b".into(), "2".into()), ("c".into(), "2".into())]
        );
    }
}

#[test]
fn the_store_is_rebuilt_when_the_whole_log_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    engine.apply(vec![commit(1, [put("a", "1")])]).unwrap();
    drop(engine);
    std::fs::remove_dir_all(folder.path().join("store")).unwrap();
    assert_eq!(all(&*open(folder.path()).unwrap().view()), [("a".into(), "1".into())]);
}

#[test]
fn nothing_is_synced_that_nobody_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    // The first commit waits for the sync of the versions that are reserved with it.
    engine.apply(vec![commit(1_000_000, [put("a", "1")])]).unwrap();
    let syncs = engine.metrics().syncs;
    engine.apply(vec![commit(2_000_000, [put("a", "2")])]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((engine.durable(), engine.metrics().syncs), (Version(1_000_000), syncs));
    assert_eq!(engine.sync().unwrap(), Version(2_000_000));
    assert_eq!((engine.durable(), engine.metrics().syncs), (Version(2_000_000), syncs + 1));
}

#[test]
fn a_group_that_is_refused_changes_nothing_and_the_engine_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    engine.apply(vec![commit(5, [put("a", "1")])]).unwrap();
    let late = vec![commit(6, [put("a", "2")]), commit(6, [])];
    for group in [vec![commit(5, [])], late, vec![commit(6, [put("", "x")])]] {
        assert!(matches!(engine.apply(group), Err(EngineError::Refused(_))));
    }
    assert_eq!((engine.applied(), engine.stopped()), (Version(5), None));
    engine.apply(vec![commit(6, [put("b", "1")])]).unwrap();
    assert_eq!(all(&*engine.view()), [("a".into(), "1".into()), ("b".into(), "1".into())]);
}

#[test]
fn threads_that_sync_at_once_share_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    let last = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let applied = last.load(Ordering::SeqCst);
                    assert!(engine.sync().unwrap() >= Version(applied));
                    assert!(engine.durable() >= Version(applied));
                }
            });
        }
        for version in 1..=500 {
            engine.apply(vec![commit(version, [put("a", "1")])]).unwrap();
            last.store(version, Ordering::SeqCst);
        }
    });
    assert_eq!(engine.sync().unwrap(), Version(500));
}

#[test]
fn a_second_opening_is_refused_and_names_the_folder_and_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    let error = open(folder.path()).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, EngineError::InUse { .. }), "{text}");
    assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    drop(engine);
    open(folder.path()).unwrap();
}

#[test]
fn formats_that_are_not_known_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let format = folder.path().join("format");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, text.replace("log 1", "log 2")).unwrap();
    let error = open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("log 2") && error.contains("newer"), "{error}");
    std::fs::remove_file(&format).unwrap();
    let error = open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("it is missing"), "{error}");
    std::fs::write(&format, text).unwrap();
    open(folder.path()).unwrap();
}

#[test]
fn damage_of_the_store_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).unwrap();
    engine.apply(vec![commit(1, (0..1000).map(|n| put(&format!("key {n}"), &"v".repeat(100))))]).unwrap();
    flush_and_wait(&engine);
    drop(engine);
    let mut damaged = 0;
    for entry in std::fs::read_dir(folder.path().join("store")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            let mut content = std::fs::read(&path).unwrap();
            content[60] ^= 1;
            std::fs::write(&path, content).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let error = match open(folder.path()) {
        Err(error) => error,
        Ok(engine) => match engine.view().scan(b"", b"z", usize::MAX) {
            Err(ReadStop::Failed(error)) => error,
            other => panic!("{} rows", other.unwrap().len()),
        },
    };
    assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
}

/// The n-th commit of the child below: it counts, and puts its number under one of many keys.
fn step(engine: &EmbeddedFolder, n: u64) {
    let count = put("count", &n.to_string());
    let row = put(&format!("row {}", n % KEYS), &format!("{n} {}", "x".repeat(200)));
    engine.apply(vec![commit(engine.applied().next(n).0, [count, row])]).unwrap();
}

fn count(engine: &EmbeddedFolder) -> u64 {
    let found = engine.view().get(b"count").unwrap().unwrap_or(Bytes::from("0"));
    String::from_utf8(found.to_vec()).unwrap().parse().unwrap()
}

#[test]
#[ignore = "the process that the next test kills"]
fn a_process_that_writes_until_it_is_killed() {
    let folder = std::env::var(CHILD_FOLDER).unwrap();
    let engine = open(Path::new(&folder)).unwrap();
    for n in count(&engine) + 1.. {
        step(&engine, n);
        engine.mark(engine.applied()).unwrap();
        println!("\ndid {n}");
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_was_told_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let mut done = 0;
    for round in 0..cases(5).min(200) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "a_process_that_writes_until_it_is_killed"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = done;
        let mut follow = |limit: u64| {
            for line in lines.by_ref() {
                acknowledged =
                    line.unwrap().strip_prefix("did ").map_or(acknowledged, |n| n.parse().unwrap());
                if acknowledged >= limit {
                    break;
                }
            }
            acknowledged
        };
        follow(done + 1000 + 777 * round);
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = follow(u64::MAX);
        let engine = open(folder.path()).unwrap();
        done = count(&engine);
        assert!(done >= acknowledged, "{acknowledged} were acknowledged, {done} are there");
        for n in done.saturating_sub(KEYS - 1).max(1)..=done {
            let row = engine.view().get(format!("row {}", n % KEYS).as_bytes()).unwrap().unwrap();
            assert!(row.starts_with(format!("{n} ").as_bytes()), "row {n}");
        }
        assert!(engine.metrics().log_segments < 40, "segments are not dropped");
    }
}
