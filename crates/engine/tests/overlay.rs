//! The overlay against a plain map: every get and every scan of pending changes over a view.
//!
//! 5,000 cases; `CHRONOFS_CASES` changes that, and a failing case prints the `CHRONOFS_SEED` that replays it.

// All of this is a test; clippy's allowance ends at the functions marked so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::memory::State;
use chronofs_engine::{Batch, Change, Commit, Overlay, Reads};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;

/// Keys that nest and stand at both ends of the order.
fn key() -> impl Strategy<Value = Bytes> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0xff)];
    prop::collection::vec(byte, 0..4).prop_map(Bytes::from)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (key(), any::<u8>()).prop_map(|(key, value)| Change::Put(key, Bytes::from(vec![value]))),
        2 => key().prop_map(Change::Delete),
    ]
}

fn changes(max: usize) -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(change(), 0..max)
}

fn apply(model: &mut BTreeMap<Bytes, Bytes>, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(key, value) => model.insert(key.clone(), value.clone()),
            Change::Delete(key) => model.remove(key),
        };
    }
}

#[test]
fn an_overlay_reads_like_the_map_with_all_its_changes() {
    let ranges = prop::collection::vec((key(), key(), 0..12usize), 1..8);
    let input = (changes(40), prop::collection::vec(changes(12), 0..4), ranges);
    check(&input, |(base, batches, ranges)| {
        let mut state = State::default();
        state.apply(&Commit { version: Version(1), tag: Bytes::new(), batch: Batch(base.clone()) });
        let mut model = BTreeMap::new();
        apply(&mut model, base);
        // Two overlays on one another: the server's group over a view, and a step's changes over that.
        let mut lower = Overlay::new(&state);
        let split = batches.len() / 2;
        for batch in &batches[..split] {
            lower.push(&Batch(batch.clone()));
            apply(&mut model, batch);
        }
        let mut upper = Overlay::new(&lower);
        for batch in &batches[split..] {
            upper.push(&Batch(batch.clone()));
            apply(&mut model, batch);
        }
        for (from, to, limit) in ranges {
            for key in [from, to] {
                prop_assert_eq!(upper.get(key).unwrap(), model.get(key).cloned());
            }
            let inside = |key: &Bytes| from <= key && key < to;
            let expected: Vec<_> =
                model.iter().filter(|(key, _)| inside(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
            let shown = &expected[..expected.len().min(*limit)];
            prop_assert_eq!(&upper.scan(from, to, *limit).unwrap()[..], shown);
            prop_assert_eq!(&upper.scan(from, to, usize::MAX).unwrap(), &expected);
            prop_assert_eq!(upper.first(from, to).unwrap(), expected.first().cloned());
        }
        Ok(())
    });
}

fn check<S: Strategy>(strategy: &S, test: impl Fn(&S::Value) -> Result<(), TestCaseError>) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let cases = number("CHRONOFS_CASES").unwrap_or(5000);
    let seed = number("CHRONOFS_SEED").unwrap_or(0x6f76_6572);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: cases as u32, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    if let Err(error) = runner.run(strategy, |input| test(&input)) {
        panic!("replay with CHRONOFS_SEED={seed} CHRONOFS_CASES={cases}\n{error}");
    }
}
