//! How long the embedded engine takes to apply groups, and to read back: `cargo run --release --example apply`.
//! Arguments: folder, commits in a group, groups.
#![allow(clippy::unwrap_used, reason = "a measurement")]

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::embedded::{self, Options, RocksOptions};
use chronofs_engine::{Batch, Change, Commit, Engine};
use std::time::Instant;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "engine-apply".to_owned());
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().unwrap());
    let (group, groups) = (number(32), number(5000));
    let engine = embedded::open(folder.as_ref(), Options::default(), &RocksOptions::default()).unwrap();
    let mut version = engine.applied().0;
    let begun = Instant::now();
    for _ in 0..groups {
        let commits = (0..group).map(|_| {
            version += 1000;
            create(version)
        });
        engine.apply(commits.collect()).unwrap();
        engine.mark(Version(version)).unwrap();
    }
    let commits = groups * group;
    let nanos = begun.elapsed().as_nanos() as u64;
    println!("apply: {} ns a commit, {} us a group of {group}", nanos / commits, nanos / groups / 1000);
    engine.sync().unwrap();
    println!("with the last sync: {} commits/s", commits * 1_000_000_000 / begun.elapsed().as_nanos() as u64);
    for (what, step) in [("get, first time", 7919), ("get, second time", 7919)] {
        let view = engine.view();
        let begun = Instant::now();
        let reads = 100_000.min(commits);
        for n in 0..reads {
            let at = version - (n * step % commits) * 1000;
            assert!(view.get(&key(1, at)).unwrap().is_some());
        }
        println!("{what}: {} ns", begun.elapsed().as_nanos() as u64 / reads);
    }
    println!("{:?}", engine.metrics());
}

fn key(table: u8, n: u64) -> Vec<u8> {
    let mut key = vec![table];
    key.extend_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key.extend_from_slice(&n.to_be_bytes());
    key
}

/// About what creating a file changes: an entry, an inode, the directory's row and its history.
fn create(n: u64) -> Commit {
    let put =
        |table: u8, n: u64, length: usize| Change::Put(key(table, n).into(), Bytes::from(vec![b'v'; length]));
    let batch = Batch(vec![put(0, n, 40), put(1, n, 80), put(2, 1, 40), put(3, n, 40)]);
    Commit { version: Version(n), tag: Bytes::from_static(&[7; 24]), batch }
}
