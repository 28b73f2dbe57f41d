//! An engine without copies of its log: nobody is woken for them. In a program of its own, which has no other threads.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::copies::{Change, Coordinator, CopyError, Link, NotRecorded, Quorum, Setup};
use chronofs_engine::embedded::{Folder, Options, RocksOptions, open_copied};
use chronofs_engine::{Batch, Commit, Engine};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Nobody;

impl Coordinator for Nobody {
    fn change(&self, _: &Change, _: u64) -> Result<u64, NotRecorded> {
        Err(NotRecorded::Unknown("nobody is there".to_owned()))
    }
}

/// How often the thread of this name went to sleep. It takes its name itself, once it runs.
fn sleeps_of(thread: &str) -> u64 {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
            if field("Name:") == Some(thread) {
                return field("voluntary_ctxt_switches:").unwrap().parse().unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no thread is called {thread}");
}

#[test]
fn without_copies_no_thread_is_woken_for_them() {
    let temp = tempfile::tempdir().unwrap();
    let setup = Setup {
        epoch: 1,
        recorded: Quorum::default(),
        wanted: Quorum::default(),
        coordinator: Arc::new(Nobody),
        connect: Arc::new(|_: &str| -> Result<Box<dyn Link>, CopyError> {
            Err(CopyError::Unusable("there are none".to_owned()))
        }),
        deadline: Duration::from_secs(2),
    };
    let folder = Folder::open(&temp.path().join("meta")).unwrap();
    let engine = open_copied(folder, Options::default(), &RocksOptions::default(), Some(setup)).unwrap();
    let write = |n: u64| {
        let commit = Commit { version: Version(n), tag: Bytes::new(), batch: Batch(Vec::new()) };
        engine.apply(vec![commit]).unwrap();
        engine.sync().unwrap();
    };
    write(1);
    let before = sleeps_of("log-epoch");
    (2..300).for_each(write);
    let woken = sleeps_of("log-epoch") - before;
    assert!(woken < 5, "{woken} times in 298 syncs");
}
