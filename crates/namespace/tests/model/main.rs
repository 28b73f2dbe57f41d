//! Invariant 1 of the design: the namespace equals a plain in-memory model after any sequence of requests, at every
//! instant of it, live and in the past.
//!
//! A sequence comes from a seed. 5,000 sequences by default; `CHRONOFS_CASES` changes that:
//!
//! ```text
//! CHRONOFS_CASES=1000000 CHRONOFS_SEED=$RANDOM cargo test -p chronofs-namespace --test model     # a long run
//! CHRONOFS_SEED=<printed> CHRONOFS_CASES=1 cargo test -p chronofs-namespace --test model         # replay
//! ```
//!
//! Sequence n of a run has seed `CHRONOFS_SEED` + n. One that fails is made as short as it gets and printed.

// The modules of a test are seen by nobody else, and clippy's allowance for tests ends at the functions marked so.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

mod acl;
mod action;
mod client;
mod collect;
mod compare;
mod forget;
mod generate;
mod mutate;
mod pack;
mod query;
mod repack;
mod state;
mod world;

use action::Action;
use chronofs_core::Retention;
use chronofs_core::name::Position;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Where a sequence fails and why.
struct Failure {
    action: usize,
    message: String,
}

fn run(retention: Retention, actions: &[Action]) -> Result<(), Failure> {
    let mut at = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(retention);
        for (n, action) in actions.iter().enumerate() {
            at = n;
            world.act(action)?;
        }
        Ok(())
    }));
    let message = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(message)) => message,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
        }
    };
    Err(Failure { action: at, message })
}

/// Leaves out what the failure does not need: halves first, single actions last.
fn shortest(retention: Retention, mut actions: Vec<Action>, mut failure: Failure) -> (Vec<Action>, Failure) {
    actions.truncate(failure.action + 1);
    let mut chunk = actions.len() / 2;
    while chunk > 0 {
        let mut start = 0;
        while start < actions.len() {
            let mut fewer = actions.clone();
            fewer.drain(start..(start + chunk).min(actions.len()));
            match run(retention, &fewer) {
                Err(found) => {
                    fewer.truncate(found.action + 1);
                    (actions, failure) = (fewer, found);
                }
                Ok(()) => start += chunk,
            }
        }
        chunk /= 2;
    }
    (actions, failure)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn the_namespace_equals_the_model_at_every_instant() {
    let cases = number("CHRONOFS_CASES").unwrap_or(5000);
    let first = number("CHRONOFS_SEED").unwrap_or(0);
    for seed in (0..cases).map(|n| first.wrapping_add(n)) {
        let case = generate::case(seed);
        if let Err(failure) = run(case.retention, &case.actions) {
            let (actions, failure) = shortest(case.retention, case.actions, failure);
            let list: String = actions.iter().map(|action| format!("  {action:?}\n")).collect();
            panic!(
                "replay with CHRONOFS_SEED={seed} CHRONOFS_CASES=1\nretention {}, then\n{list}{}",
                case.retention, failure.message
            );
        }
    }
}

#[test]
fn a_seed_gives_the_same_sequence_every_time() {
    let text = |seed| format!("{:?}", generate::case(seed).actions);
    assert_eq!(text(11), text(11));
    assert_ne!(text(11), text(12));
}

#[test]
fn the_tied_names_have_one_hash() {
    let position = |name: &str| Position::of(name.as_bytes(), &world::HASH_KEY);
    for [a, b] in generate::TIED_NAMES.into_iter().chain(generate::TIED_XATTRS) {
        assert_ne!(a, b);
        assert_eq!(position(a), position(b));
    }
}
