//! Versioned tables against a plain model: one map per version, cloned.
//!
//! 5,000 cases; `CHRONOFS_CASES` changes that, and a failing case prints the `CHRONOFS_SEED` that replays it.

// All of this is a test; clippy's allowance ends at the functions marked so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use chronofs_core::{Version, VolumeIndex};
use chronofs_engine::memory::Memory;
use chronofs_engine::{Batch, Change, Commit, Engine, Overlay, Reads};
use chronofs_history::{Protected, Row, Snapshot, Table, Txn, expire, page};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::collections::BTreeMap;

const NAMES: Table = Table { number: 3, key_len: 3, name: "names" };
const SIZES: Table = Table { number: 4, key_len: 1, name: "sizes" };
const TABLES: [Table; 2] = [SIZES, NAMES];
const VOLUMES: [VolumeIndex; 2] = [VolumeIndex(7), VolumeIndex(8)];
/// Versions between two commits, so that there are instants in between.
const STRIDE: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, u8),
    /// An insert where the key is free, else a put.
    Insert(Vec<u8>, u8),
    Delete(Vec<u8>),
}

#[derive(Clone, Debug)]
struct OneCommit {
    volume: usize,
    keep_history: bool,
    steps: Vec<Step>,
}

/// Few keys that collide in every way: bytes at both ends of the range, and long ones with common beginnings.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0xfe), Just(0xff)];
    prop_oneof![1 => byte.clone().prop_map(|b| vec![b]), 2 => proptest::collection::vec(byte, 3)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (key(), any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        2 => (key(), any::<u8>()).prop_map(|(k, v)| Step::Insert(k, v)),
        3 => key().prop_map(Step::Delete),
    ]
}

fn commits(forget: bool) -> impl Strategy<Value = Vec<OneCommit>> {
    let commit = (
        0..2usize,
        prop::bool::weighted(if forget { 0.7 } else { 1.0 }),
        prop::collection::vec(step(), 0..8),
    )
        .prop_map(|(volume, keep_history, steps)| OneCommit { volume, keep_history, steps });
    prop::collection::vec(commit, 1..14)
}

fn table_of(key: &[u8]) -> Table {
    if key.len() == SIZES.key_len { SIZES } else { NAMES }
}

type Rows = BTreeMap<Vec<u8>, Row>;

/// The rows of both volumes as they were after each commit.
#[derive(Clone, Default)]
struct Model {
    states: Vec<(Version, [Rows; 2])>,
}

impl Model {
    fn now(&self) -> [Rows; 2] {
        self.states.last().map(|(_, rows)| rows.clone()).unwrap_or_default()
    }

    fn at(&self, at: Version) -> [Rows; 2] {
        let next = self.states.partition_point(|(version, _)| *version <= at);
        if next == 0 { Default::default() } else { self.states[next - 1].1.clone() }
    }
}

fn version_of(commit: usize) -> Version {
    Version((commit as u64 + 1) * STRIDE)
}

fn value_of(byte: u8) -> Bytes {
    Bytes::from(vec![byte; usize::from(byte % 4)])
}

/// Applies `commit` to both, comparing what the step reads in between.
fn run(engine: &Memory, model: &mut Model, at: Version, commit: &OneCommit) -> Result<(), TestCaseError> {
    let mut rows = model.now();
    let view = engine.view();
    let mut txn = Txn::new(&*view, VOLUMES[commit.volume], at, commit.keep_history);
    for step in &commit.steps {
        let here = &mut rows[commit.volume];
        match step {
            Step::Put(key, value) => {
                txn.put(table_of(key), key, &value_of(*value)).unwrap();
                here.insert(key.clone(), Row { since: at, value: value_of(*value) });
            }
            Step::Insert(key, value) => {
                match here.contains_key(key) {
                    true => txn.put(table_of(key), key, &value_of(*value)).unwrap(),
                    false => txn.insert(table_of(key), key, &value_of(*value)),
                }
                here.insert(key.clone(), Row { since: at, value: value_of(*value) });
            }
            Step::Delete(key) => {
                txn.delete(table_of(key), key).unwrap();
                here.remove(key);
            }
        }
        for key in commit.steps.iter().map(|step| match step {
            Step::Put(key, _) | Step::Insert(key, _) | Step::Delete(key) => key,
        }) {
            prop_assert_eq!(txn.get(table_of(key), key).unwrap(), here.get(key).cloned());
        }
    }
    let batch = txn.into_batch();
    engine.apply(vec![Commit { version: at, tag: Bytes::new(), batch }]).unwrap();
    model.states.push((at, rows));
    Ok(())
}

/// Every get, and scans of every prefix in pages of every size, show exactly `rows`.
fn compare<R: Reads + Copy>(reads: R, at: Option<Version>, rows: &[Rows; 2]) -> Result<(), TestCaseError> {
    for (volume, rows) in VOLUMES.into_iter().zip(rows) {
        let snapshot = Snapshot::new(reads, volume, at);
        for b in [0u8, 1, 0x7f, 0xfe, 0xff] {
            prop_assert_eq!(snapshot.get(SIZES, &[b]).unwrap(), rows.get(&vec![b]).cloned());
            let key = vec![b, 0xff, b];
            prop_assert_eq!(snapshot.get(NAMES, &key).unwrap(), rows.get(&key).cloned());
        }
        for (key, row) in rows {
            prop_assert_eq!(snapshot.get(table_of(key), key).unwrap(), Some(row.clone()));
        }
        for (table, prefix) in
            [(SIZES, &[][..]), (NAMES, &[]), (NAMES, &[0]), (NAMES, &[0xff]), (NAMES, &[0xff, 0xff])]
        {
            let expected: Vec<(Bytes, Row)> = rows
                .iter()
                .filter(|(key, _)| key.len() == table.key_len && key.starts_with(prefix))
                .map(|(key, row)| (Bytes::from(key.clone()), row.clone()))
                .collect();
            for limit in [1, 2, 100] {
                let mut found = Vec::new();
                let mut start = Vec::new();
                loop {
                    let page = snapshot.scan(table, prefix, &start, limit).unwrap();
                    prop_assert!(page.len() <= limit);
                    let Some((last, _)) = page.last() else { break };
                    start = [&last[prefix.len()..], &[0]].concat();
                    found.extend(page);
                }
                prop_assert_eq!(&found, &expected, "{} {:?} at {:?}", table.name, prefix, at);
            }
        }
    }
    Ok(())
}

#[test]
fn every_instant_of_the_tables_equals_a_map_cloned_at_every_commit() {
    check("versioned", &(commits(false), any::<u64>()), |(commits, pick)| {
        let (engine, mut model) = (Memory::default(), Model::default());
        for (n, commit) in commits.iter().enumerate() {
            run(&engine, &mut model, version_of(n), commit)?;
        }
        let view = engine.view();
        compare(&*view, None, &model.now())?;
        let last = version_of(commits.len() - 1).0;
        for at in [0, 1 + pick % last, last - 1, last, last + 1].map(Version) {
            compare(&*view, Some(at), &model.at(at))?;
        }
        Ok(())
    });
}

#[test]
fn what_is_pending_over_a_view_reads_as_if_it_were_applied() {
    check("pending", &(commits(false), any::<u64>()), |(commits, pick)| {
        let (engine, mut model) = (Memory::default(), Model::default());
        let applied = (pick % commits.len() as u64) as usize;
        for (n, commit) in commits[..applied].iter().enumerate() {
            run(&engine, &mut model, version_of(n), commit)?;
        }
        let base = engine.view();
        let mut overlay = Overlay::new(&*base);
        for (n, commit) in commits.iter().enumerate().skip(applied) {
            let before: Vec<_> = model.states.clone();
            run(&engine, &mut model, version_of(n), commit)?;
            let mut txn = Txn::new(&overlay, VOLUMES[commit.volume], version_of(n), commit.keep_history);
            for step in &commit.steps {
                match step {
                    Step::Put(key, value) | Step::Insert(key, value) => {
                        txn.put(table_of(key), key, &value_of(*value)).unwrap();
                    }
                    Step::Delete(key) => txn.delete(table_of(key), key).unwrap(),
                }
            }
            let batch = txn.into_batch();
            prop_assert_eq!(before.len(), n);
            overlay.push(&batch);
        }
        compare(&overlay, None, &model.now())?;
        let at = Version(pick % (version_of(commits.len() - 1).0 + 2));
        compare(&overlay, Some(at), &model.at(at))
    });
}

#[test]
fn without_history_the_present_is_right_and_nothing_is_kept() {
    check("forgetful", &commits(true), |commits| {
        let (engine, mut model) = (Memory::default(), Model::default());
        for (n, commit) in commits.iter().enumerate() {
            let before = history_rows(&engine).len();
            run(&engine, &mut model, version_of(n), commit)?;
            if !commit.keep_history {
                prop_assert_eq!(history_rows(&engine).len(), before);
            }
            compare(&*engine.view(), None, &model.now())?;
        }
        Ok(())
    });
}

#[test]
fn pages_have_every_row_of_a_volume_live_and_past_once_and_none_of_another() {
    check("pages", &(commits(false), 1..5usize), |(commits, limit)| {
        let (engine, mut model) = (Memory::default(), Model::default());
        for (n, commit) in commits.iter().enumerate() {
            run(&engine, &mut model, version_of(n), commit)?;
        }
        let view = engine.view();
        for volume in VOLUMES {
            let all = view.scan(&[], &[0xff], usize::MAX).unwrap();
            let of = |key: &[u8]| TABLES.iter().any(|table| table.parse(volume, key).is_some());
            let expected: Vec<_> = all.into_iter().filter(|(key, _)| of(key)).collect();
            let (mut found, mut from) = (Vec::new(), Some(Bytes::new()));
            while let Some(start) = from {
                let next = page(&*view, volume, &TABLES, &start, *limit).unwrap();
                prop_assert!(next.rows.len() <= *limit);
                found.extend(next.rows);
                from = next.next;
            }
            prop_assert_eq!(found, expected);
        }
        Ok(())
    });
}

#[test]
fn rows_of_a_plain_table_have_the_present_and_no_past() {
    const PLAIN: Table = Table { number: 0x20, key_len: 3, name: "plain" };
    let changes = prop::collection::vec((0..2usize, key(), prop::option::of(any::<u8>())), 0..40);
    check("plain", &changes, |changes| {
        let engine = Memory::default();
        let mut rows = [BTreeMap::new(), BTreeMap::new()];
        for ((volume, key, value), n) in changes.iter().filter(|(_, key, _)| key.len() == 3).zip(0..) {
            let view = engine.view();
            let mut txn = Txn::new(&*view, VOLUMES[*volume], version_of(n), true);
            match value {
                Some(value) => {
                    txn.put_plain(PLAIN, key, &value_of(*value));
                    rows[*volume].insert(key.clone(), value_of(*value));
                }
                None => {
                    txn.delete_plain(PLAIN, key);
                    rows[*volume].remove(key);
                }
            }
            prop_assert_eq!(txn.get_plain(PLAIN, key).unwrap(), rows[*volume].get(key).cloned());
            let batch = txn.into_batch();
            drop(view);
            engine.apply(vec![Commit { version: version_of(n), tag: Bytes::new(), batch }]).unwrap();
        }
        let view = engine.view();
        prop_assert_eq!(history_rows(&engine), vec![]);
        for (volume, rows) in VOLUMES.into_iter().zip(&rows) {
            let snapshot = Snapshot::new(&*view, volume, None);
            for prefix in [&[][..], &[0], &[0xff], &[0xff, 0xff]] {
                let (mut found, mut start) = (Vec::new(), Vec::new());
                loop {
                    let page = snapshot.scan_plain(PLAIN, prefix, &start, 2).unwrap();
                    let Some((last, _)) = page.last() else { break };
                    start = [&last[prefix.len()..], &[0]].concat();
                    found.extend(page);
                }
                let expected: Vec<(Bytes, Bytes)> = rows
                    .iter()
                    .filter(|(key, _)| key.starts_with(prefix))
                    .map(|(key, value)| (Bytes::from(key.clone()), value.clone()))
                    .collect();
                prop_assert_eq!(found, expected);
            }
        }
        Ok(())
    });
}

#[test]
fn a_listing_of_history_gives_each_superseded_row_once_with_its_life() {
    check("history", &(commits(false), 1..5usize), |(commits, limit)| {
        let (engine, mut model) = (Memory::default(), Model::default());
        for (n, commit) in commits.iter().enumerate() {
            run(&engine, &mut model, version_of(n), commit)?;
        }
        let view = engine.view();
        for (n, volume) in VOLUMES.into_iter().enumerate() {
            // A row ended at the first commit after which its key holds another one, or none.
            let mut ended = BTreeMap::new();
            for pair in model.states.windows(2) {
                for (key, row) in &pair[0].1[n] {
                    if pair[1].1[n].get(key).is_none_or(|next| next.since != row.since) {
                        ended.insert((key.len(), key.clone(), pair[1].0), row.clone());
                    }
                }
            }
            let snapshot = Snapshot::new(&*view, volume, None);
            let mut found = Vec::new();
            for table in [SIZES, NAMES] {
                let mut start = Vec::new();
                loop {
                    let page = snapshot.history(table, &start, *limit).unwrap();
                    prop_assert!(page.len() <= *limit);
                    let Some(last) = page.last() else { break };
                    start = [&last.place[..], &[0]].concat();
                    found.extend(page);
                }
            }
            let found: Vec<_> = found
                .into_iter()
                .map(|past| ((past.key().len(), past.key().to_vec(), past.until()), past.row))
                .collect();
            prop_assert_eq!(found, ended.into_iter().collect::<Vec<_>>());
        }
        Ok(())
    });
}

fn history_rows(engine: &Memory) -> Vec<(Bytes, Bytes)> {
    engine.view().scan(&[0x80], &[0x81], usize::MAX).unwrap()
}

#[derive(Clone, Debug)]
struct Expiry {
    intervals: Vec<(u64, u64)>,
    limit: usize,
    volume: usize,
}

fn expiry() -> impl Strategy<Value = Expiry> {
    let interval = (0..40u64, 0..12u64).prop_map(|(first, len)| (first, first + len));
    (prop::collection::vec(interval, 0..4), 1..9usize, 0..2usize)
        .prop_map(|(intervals, limit, volume)| Expiry { intervals, limit, volume })
}

#[test]
fn expiry_drops_exactly_what_no_protected_instant_sees() {
    check("expiry", &(commits(false), expiry()), |(commits, expiry)| {
        let (engine, mut model) = (Memory::default(), Model::default());
        for (n, commit) in commits.iter().enumerate() {
            run(&engine, &mut model, version_of(n), commit)?;
        }
        let mut version = version_of(commits.len() - 1);
        let last = version;
        let protected: Protected = expiry.intervals.iter().map(|&(a, b)| (Version(a), Version(b))).collect();
        let before = history_rows(&engine);
        let mut from = Bytes::new();
        for _ in 0..=before.len() {
            let view = engine.view();
            let step =
                expire(&*view, VOLUMES[expiry.volume], &TABLES, &protected, &from, expiry.limit).unwrap();
            prop_assert!(step.batch.0.len() <= expiry.limit);
            prop_assert!(step.batch.0.iter().all(|change| matches!(change, Change::Delete(_))));
            version = Version(version.0 + 1);
            engine.apply(vec![Commit { version, tag: Bytes::new(), batch: step.batch }]).unwrap();
            match step.next {
                Some(next) => from = next,
                None => from = Bytes::from_static(&[0xff]),
            }
        }
        prop_assert_eq!(&from[..], &[0xff], "the scan ends after as many steps as there are rows");
        let view = engine.view();
        let mut kept = before.clone();
        kept.retain(|(key, stored)| {
            let volume = u32::from_be_bytes(key[2..6].try_into().unwrap());
            let since = u64::from_be_bytes(stored[1..9].try_into().unwrap());
            let until = u64::from_be_bytes(key[key.len() - 8..].try_into().unwrap());
            let seen = (since..until).any(|at| expiry.intervals.iter().any(|(a, b)| (*a..=*b).contains(&at)));
            volume != VOLUMES[expiry.volume].0 || seen
        });
        prop_assert_eq!(history_rows(&engine), kept);
        compare(&*view, None, &model.now())?;
        for at in 0..last.0 + 2 {
            if expiry.intervals.iter().any(|(a, b)| (*a..=*b).contains(&at)) {
                compare(&*view, Some(Version(at)), &model.at(Version(at)))?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_set_of_protected_instants_is_the_union_of_its_intervals() {
    let intervals = prop::collection::vec((0..40u64, 0..12u64), 0..12);
    check("protected", &intervals, |intervals| {
        // A length of 11 stands for an interval that ends before it begins.
        let ends = |&(a, len): &(u64, u64)| if len == 11 { (a + 1, a) } else { (a, a + len) };
        let set: Protected = intervals.iter().map(ends).map(|(a, b)| (Version(a), Version(b))).collect();
        let holds = |at: u64| intervals.iter().any(|&(a, len)| len != 11 && (a..=a + len).contains(&at));
        for at in 0..60 {
            prop_assert_eq!(set.contains(Version(at)), holds(at), "{}", at);
            for until in at..60 {
                let expected = (at..until).any(holds);
                prop_assert_eq!(set.intersects(Version(at), Version(until)), expected, "[{}, {})", at, until);
                let all = (at..=until).all(holds);
                prop_assert_eq!(set.covers(Version(at), Version(until)), all, "[{}, {}]", at, until);
            }
        }
        let list: Vec<_> = set.intervals().collect();
        prop_assert!(list.iter().all(|(first, last)| first <= last));
        prop_assert!(list.windows(2).all(|pair| pair[0].1.0 + 1 < pair[1].0.0), "{:?}", list);
        Ok(())
    });
}

#[test]
fn intervals_may_reach_to_the_end_of_time() {
    let mut all: Protected = [(Version::ZERO, Version(4)), (Version(6), Version::MAX)].into_iter().collect();
    assert!(all.contains(Version::MAX) && !all.contains(Version(5)));
    all.add(Version(5), Version(5));
    assert_eq!(all.intervals().collect::<Vec<_>>(), [(Version::ZERO, Version::MAX)]);
}

#[test]
fn a_row_of_an_unknown_format_is_reported_and_not_read() {
    let engine = Memory::default();
    let key = SIZES.live_key(VOLUMES[0], &[1]);
    let batch = Batch(vec![Change::Put(key, Bytes::from_static(&[9, 0, 0, 0, 0, 0, 0, 0, 1, 5]))]);
    engine.apply(vec![Commit { version: Version(1), tag: Bytes::new(), batch }]).unwrap();
    let error = Snapshot::new(&*engine.view(), VOLUMES[0], None).get(SIZES, &[1]).unwrap_err();
    assert!(error.to_string().contains("row format 9 is newer"), "{error}");
}

/// Runs `test` on random inputs; on failure shrinks, prints the smallest input and how to replay.
fn check<S: Strategy>(name: &str, strategy: &S, test: impl Fn(&S::Value) -> Result<(), TestCaseError>) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let cases = number("CHRONOFS_CASES").unwrap_or(5000);
    let seed = number("CHRONOFS_SEED").unwrap_or(0x6368_726f_6e6f);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: cases as u32, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    if let Err(error) = runner.run(strategy, |input| test(&input)) {
        panic!("{name}: replay with CHRONOFS_SEED={seed} CHRONOFS_CASES={cases}\n{error}");
    }
}
