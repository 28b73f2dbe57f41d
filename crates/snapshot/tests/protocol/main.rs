//! Coordinator, members, clients and a network in one thread, everything by one seed: each step of each member takes from
//! nothing to minutes, messages are late, lost or doubled, servers are killed, lose power or are taken over, the coordinator
//! goes down, clients leave or abort. Logs drop what they may drop all the time.
//!
//! Every set that is said to be complete is restored and compared: it must be exactly the state of each store at its cut,
//! with all that was applied before the command and nothing that began after it. In the end, without faults, the next
//! snapshot succeeds within seconds and nothing is left of those that failed.
//!
//! `CHRONOFS_SEEDS` sets the number of seeds (2,000), `CHRONOFS_FROM` the first, `CHRONOFS_SEED` runs one. A million:
//! `CHRONOFS_SEEDS=1000000 cargo test -p chronofs-snapshot --test protocol a_complete_set`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod model;
mod world;

use std::collections::BTreeMap;
use world::{Mutant, World, Wrong};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn a_complete_set_is_the_state_at_its_cut_whatever_fails() {
    let seeds = match number("CHRONOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("CHRONOFS_FROM").unwrap_or(0);
            from..from + number("CHRONOFS_SEEDS").unwrap_or(2_000)
        }
    };
    let many = seeds.end - seeds.start >= 2_000;
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in seeds {
        let mut world = World::new(seed, None);
        if let Err(found) = world.run() {
            panic!("seed {seed}: {found}; run it again with CHRONOFS_SEED={seed}");
        }
        for (what, n) in world.seen() {
            *seen.entry(what).or_default() += n;
        }
    }
    eprintln!("{seen:?}");
    let codes = [
        "1000",
        "2500",
        "2501",
        "2502",
        "2504",
        "2506",
        "2508",
        "4000",
        "complete",
        "a log server made its image",
    ];
    let missing: Vec<_> = codes.into_iter().filter(|code| !seen.contains_key(*code)).collect();
    assert!(!many || missing.is_empty(), "never happened: {missing:?}");
}

/// How many seeds it takes until a fault in the protocol makes a set that is said to be complete and is not.
fn seeds_until_found(mutant: Mutant) -> u64 {
    let most = number("CHRONOFS_SEEDS").unwrap_or(4_000);
    for seed in 0..most {
        if let Err(Wrong::Set(found)) = World::new(seed, Some(mutant)).run() {
            eprintln!("{mutant:?}: seed {seed}: {found}");
            return seed;
        }
    }
    panic!("{mutant:?} was not found in {most} seeds");
}

#[test]
fn images_in_the_wrong_order_are_found() {
    seeds_until_found(Mutant::OrderSwapped);
}

#[test]
fn a_log_that_is_not_held_is_found() {
    seeds_until_found(Mutant::HoldNotTaken);
}

#[test]
fn a_member_of_another_epoch_is_found() {
    seeds_until_found(Mutant::EpochNotChecked);
}

#[test]
fn a_straggler_that_counts_is_found() {
    seeds_until_found(Mutant::StragglerNotFenced);
}

#[test]
fn a_lease_that_ends_unnoticed_is_found() {
    seeds_until_found(Mutant::LeaseEndNotNoticed);
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for seed in 0..20 {
        let [one, other] = [(); 2].map(|()| {
            let mut world = World::new(seed, None);
            world.run().unwrap();
            world.digest()
        });
        assert_eq!(one, other, "seed {seed}");
    }
}
