//! Copies of a log in one thread, everything by one seed: owners that come and go and believe to be the only one, copies that
//! are killed, cut off, fill up and lose their disks, a coordinator that is away or whose answers get lost.
//!
//! What an owner called durable must be in the log of every owner that recovered, or went on, after it.
//!
//! `CHRONOFS_SEEDS` sets the number of seeds (2,000), `CHRONOFS_SEED` runs one.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use chronofs_engine::copies::fence::{Fence, Refusal};
use chronofs_engine::copies::owner::choose;
use chronofs_engine::copies::{Change, Owner, Quorum};
use chronofs_engine::embedded::Place;
use chronofs_engine::sim::Random;
use std::collections::{BTreeMap, BTreeSet};

const COPIES: u64 = 3;
const STEPS: u64 = 400;
const DEADLINE_MS: u64 = 50;

/// A fault in the protocol that the test must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    EpochNotChecked,
    SealedAppends,
    DurableTooEarly,
    TooFewSealed,
    /// What is asked for counts at once, although the recorded quorum may still be the old one.
    ChangeTakenForDone,
    /// What an owner sent through an earlier connection is taken although it has opened the copy again since.
    LateAppends,
}

/// A copy: its fence and its log are on disk; each entry is a number that is never used twice.
#[derive(Clone, Default)]
struct Copy {
    fence: Fence,
    log: Vec<u64>,
    up: bool,
    full: bool,
    /// How often it was opened or sealed.
    opens: u64,
}

/// An append that is still on its way when its owner has given the connection up. It goes where it went, and cuts off what
/// has come there since.
struct Late {
    to: String,
    epoch: u64,
    opens: u64,
    at: usize,
    entries: Vec<u64>,
}

/// What the coordinator keeps.
#[derive(Clone, Default)]
struct Record {
    epoch: u64,
    after: u64,
    boot: u64,
    quorum: Quorum,
}

/// A server that believes to own the log.
struct Server {
    boot: u64,
    owner: Owner,
    log: Vec<u64>,
    /// So much of it was on its disk, synced, when it started.
    synced: usize,
    /// Under which epoch it has opened each copy, and how often that was opened then.
    opened: BTreeMap<String, (u64, u64)>,
    /// The answers of copies and coordinator on their way.
    acks: Vec<(String, usize)>,
    ended: bool,
    cut_off: BTreeSet<String>,
    alone: bool,
}

struct World {
    random: Random,
    mutant: Option<Mutant>,
    now_ms: u64,
    copies: BTreeMap<String, Copy>,
    record: Record,
    coordinator_up: bool,
    wanted: Quorum,
    servers: Vec<Server>,
    late: Vec<Late>,
    boots: u64,
    entries: u64,
    /// What was called durable, in its order.
    durable: Vec<u64>,
    seen: BTreeMap<&'static str, u64>,
}

fn place(entries: usize) -> Place {
    Place { segment: 1, offset: entries as u64 }
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut random = Random::new(seed);
        let names: BTreeSet<String> = (0..COPIES).map(|n| format!("copy{n}")).collect();
        let up = Copy { up: true, ..Copy::default() };
        let copies = names.iter().map(|name| (name.clone(), up.clone())).collect();
        let wanted = Quorum { members: names, anti_quorum: random.below(2) as usize };
        let record = Record::default();
        let mut world = World {
            random,
            mutant,
            now_ms: 0,
            copies,
            record,
            coordinator_up: true,
            wanted,
            servers: Vec::new(),
            late: Vec::new(),
            boots: 1,
            entries: 0,
            durable: Vec::new(),
            seen: BTreeMap::new(),
        };
        world.record.boot = 1;
        world.record.epoch = 1;
        world.start(1, Vec::new());
        world
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn start(&mut self, boot: u64, log: Vec<u64>) {
        let (epoch, quorum) = (self.record.epoch, self.record.quorum.clone());
        let owner = Owner::new(epoch, quorum, &self.wanted, place(log.len()), DEADLINE_MS);
        self.servers.push(Server {
            boot,
            owner,
            synced: log.len(),
            log,
            opened: BTreeMap::new(),
            acks: Vec::new(),
            ended: false,
            cut_off: BTreeSet::new(),
            alone: false,
        });
    }

    /// A new server takes over: on the disk of the old one, or from the copies.
    fn take_over(&mut self) -> Result<(), String> {
        if !self.coordinator_up {
            return Ok(());
        }
        self.boots += 1;
        self.record.boot = self.boots;
        self.record.after = self.record.epoch;
        self.record.epoch += 1;
        let from = self.random.below(self.servers.len() as u64) as usize;
        // Only the disk of the last owner holds everything.
        if self.random.one_in(3) && from + 1 == self.servers.len() {
            let mut log = self.servers[from].log.clone();
            self.servers[from].ended = true;
            // A power cut may take what was not durable. An older owner may still hear of what copies had before it was fenced;
            // that is in what this one began with.
            let least = self.durable.len().max(self.servers[from].synced).min(log.len());
            log.truncate(least + self.random.below((log.len() - least) as u64 + 1) as usize);
            self.start(self.boots, log);
            self.note("started again");
            return self.check_newest();
        }
        let mut sealed = BTreeMap::new();
        for name in self.record.quorum.members.clone() {
            let reachable = !self.random.one_in(4);
            let epoch = self.record.epoch;
            let copy = self.copies.get_mut(&name).unwrap();
            if copy.up && reachable {
                let Ok(fence) = copy.fence.seal(epoch) else { continue };
                copy.fence = fence;
                copy.opens += 1;
                sealed.insert(name, place(copy.log.len()));
            }
        }
        let mut quorum = self.record.quorum.clone();
        if self.mutant == Some(Mutant::TooFewSealed) {
            quorum.anti_quorum = quorum.anti_quorum.saturating_sub(1);
        }
        let Ok(chosen) = choose(&quorum, &sealed, |_| 0) else {
            self.note("too few copies");
            return Ok(());
        };
        let log = self.copies[chosen].log.clone();
        // The disk is lost; its server may go on without knowing.
        if self.random.one_in(2) {
            self.servers.iter_mut().for_each(|server| server.ended = true);
        }
        self.start(self.boots, log);
        self.note("recovered");
        self.check_newest()
    }

    /// What was called durable must be the beginning of the newest owner's log.
    fn check_newest(&self) -> Result<(), String> {
        let log = &self.servers.last().unwrap().log;
        if log.len() < self.durable.len() || log[..self.durable.len()] != self.durable[..] {
            return Err(format!("durable {:?}, the new owner has {log:?}", self.durable));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.now_ms += self.random.below(20);
        match self.random.below(62) {
            0 => {
                let up = self.random.one_in(2);
                let (name, lost) = (self.any_copy(), self.random.one_in(40));
                let copy = self.copies.get_mut(&name).unwrap();
                copy.up = up;
                let member = self.record.quorum.members.contains(&name);
                // A disk that is replaced is known to be: an operator does not put an empty one in place of a member.
                if lost && !up && !member && !self.asked_for(&name) {
                    *self.copies.get_mut(&name).unwrap() = Copy::default();
                    self.late.retain(|late| late.to != name);
                    self.note("a copy's disk was lost");
                }
            }
            1 => {
                let name = self.any_copy();
                let full = self.random.one_in(2);
                self.copies.get_mut(&name).unwrap().full = full;
            }
            2 => self.coordinator_up = !self.random.one_in(3),
            3 | 4 => {
                let (name, heal) = (self.any_copy(), self.random.one_in(2));
                let server = self.any_server();
                let cut_off = &mut self.servers[server].cut_off;
                if heal {
                    cut_off.clear();
                } else {
                    cut_off.insert(name);
                }
            }
            5 => {
                let (server, alone) = (self.any_server(), self.random.one_in(2));
                self.servers[server].alone = alone;
            }
            6 if self.random.one_in(3) => self.take_over()?,
            7 => {
                self.wanted.anti_quorum = self.random.below(2) as usize;
                let some = 1 + self.random.below((1 << COPIES) - 1);
                self.want(|n| some & (1 << n) != 0);
            }
            60 | 61 => self.deliver_late(),
            8..16 => {
                let server = self.any_server();
                self.write(server);
            }
            16..46 => {
                let (server, name) = (self.any_server(), self.any_copy());
                self.ship(server, &name);
            }
            46..50 => {
                let server = self.any_server();
                self.ask_coordinator(server);
            }
            _ => {
                let server = self.any_server();
                self.settle(server)?;
            }
        }
        Ok(())
    }

    /// Operators want other copies. A copy that an owner has forgotten and is to keep again is reached anew.
    fn want(&mut self, is_wanted: impl Fn(u64) -> bool) {
        self.wanted.members = (0..COPIES).filter(|n| is_wanted(*n)).map(|n| format!("copy{n}")).collect();
        for server in &mut self.servers {
            for name in server.owner.want(&self.wanted) {
                server.opened.remove(&name);
                server.acks.retain(|(to, _)| *to != name);
            }
        }
    }

    /// What was given up long ago arrives.
    fn deliver_late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let at = self.random.below(self.late.len() as u64) as usize;
        let late = self.late.swap_remove(at);
        let copy = self.copies.get_mut(&late.to).unwrap();
        let same = copy.opens == late.opens || self.mutant == Some(Mutant::LateAppends);
        let allowed = copy.fence.append(late.epoch, place(late.at), place(late.at)).is_ok();
        if copy.up && !copy.full && same && allowed && late.at <= copy.log.len() {
            copy.log.truncate(late.at);
            copy.log.extend(late.entries);
            self.note("an append came late");
        } else {
            self.note("an append came too late");
        }
    }

    fn asked_for(&self, name: &str) -> bool {
        self.servers.iter().any(|server| {
            let mut owner = server.owner.clone();
            owner.wants_change().is_some_and(|change| change.quorum.members.contains(name))
        })
    }

    fn any_copy(&mut self) -> String {
        format!("copy{}", self.random.below(COPIES))
    }

    /// The newest one most of the time.
    fn any_server(&mut self) -> usize {
        let newest = self.servers.len() - 1;
        if self.random.one_in(4) { self.random.below(newest as u64 + 1) as usize } else { newest }
    }

    fn write(&mut self, server: usize) {
        let now_ms = self.now_ms;
        let server = &mut self.servers[server];
        if !server.ended {
            self.entries += 1;
            server.log.push(self.entries);
            server.owner.written(place(server.log.len()), now_ms);
        }
    }

    /// One exchange of a server with a copy. The copy does its part whole or not at all; its answer may come late, or never.
    fn ship(&mut self, server: usize, name: &str) {
        let mutant = self.mutant;
        let World { servers, copies, random, now_ms, seen, late, .. } = self;
        let (server, copy) = (&mut servers[server], copies.get_mut(name).unwrap());
        if server.ended {
            return;
        }
        if !copy.up || server.cut_off.contains(name) || copy.full {
            server.owner.failed(name, "away");
            let at = copy.log.len();
            let agree = at <= server.log.len() && copy.log[..] == server.log[..at];
            if let Some((epoch, opens)) = server.opened.remove(name).filter(|_| agree && random.one_in(2)) {
                let until = at + random.below((server.log.len() - at) as u64 + 1) as usize;
                let entries = server.log[at..until].to_vec();
                late.push(Late { to: name.to_owned(), epoch, opens, at, entries });
            }
            server.acks.retain(|(to, _)| to != name);
            return;
        }
        let epoch = server.owner.epoch();
        if server.opened.get(name).map(|(epoch, _)| *epoch) != Some(epoch) {
            match copy.fence.open(epoch) {
                Ok(fence) => copy.fence = fence,
                Err(Refusal::Fenced(_)) if mutant == Some(Mutant::EpochNotChecked) => {}
                Err(_) => {
                    *seen.entry("fenced").or_default() += 1;
                    return server.owner.failed(name, "fenced");
                }
            }
            copy.opens += 1;
            server.opened.insert(name.to_owned(), (epoch, copy.opens));
            let same = copy.log.iter().zip(&server.log).take_while(|(a, b)| a == b).count();
            server.owner.reached(name, place(copy.log.len()), false);
            copy.log.truncate(same);
            server.owner.retried(name, place(same), false, *now_ms);
            server.owner.agrees(name);
            server.owner.acked(name, place(same), *now_ms);
            return;
        }
        let at = copy.log.len();
        let mut allowed = copy.fence.append(epoch, place(at), place(at)).is_ok()
            && server.opened.get(name).is_some_and(|(_, opens)| *opens == copy.opens);
        allowed |= mutant == Some(Mutant::EpochNotChecked);
        allowed |= mutant == Some(Mutant::SealedAppends) && copy.fence.sealed;
        if !allowed {
            *seen.entry("fenced").or_default() += 1;
            server.opened.remove(name);
            return server.owner.failed(name, "fenced");
        }
        let same = at <= server.log.len() && copy.log[..] == server.log[..at];
        if !same {
            server.opened.remove(name);
            return;
        }
        let until = at + random.below((server.log.len() - at) as u64 + 1) as usize;
        copy.log.extend_from_slice(&server.log[at..until]);
        server.acks.push((name.to_owned(), until));
    }

    fn ask_coordinator(&mut self, server: usize) {
        let Some(change) = self.servers[server].owner.wants_change() else { return };
        if self.servers[server].ended || !self.coordinator_up || self.servers[server].alone {
            return;
        }
        if self.mutant == Some(Mutant::ChangeTakenForDone) && self.random.one_in(2) {
            let epoch = self.servers[server].owner.epoch();
            return self.servers[server].owner.changed(epoch);
        }
        match self.recorded(server, &change) {
            Ok(epoch) if !self.random.one_in(4) => {
                self.servers[server].owner.changed(epoch);
                self.note("changed");
            }
            Ok(_) => self.note("an answer was lost"),
            Err(()) => {
                self.servers[server].ended = true;
                self.note("superseded");
            }
        }
    }

    /// As the admin server does it.
    fn recorded(&mut self, server: usize, change: &Change) -> Result<u64, ()> {
        let record = &mut self.record;
        if record.boot != self.servers[server].boot {
            return Err(());
        }
        if record.after == change.after && record.quorum == change.quorum && record.epoch > change.after {
            return Ok(record.epoch);
        }
        if record.epoch != change.after {
            return Err(());
        }
        (record.after, record.epoch) = (record.epoch, record.epoch + 1);
        record.quorum = change.quorum.clone();
        Ok(record.epoch)
    }

    /// Answers arrive, time passes, and what is durable is said to somebody.
    fn settle(&mut self, number: usize) -> Result<(), String> {
        let now_ms = self.now_ms;
        let server = &mut self.servers[number];
        if server.ended {
            return Ok(());
        }
        for (name, entries) in server.acks.drain(..) {
            server.owner.acked(&name, place(entries), now_ms);
        }
        server.owner.tick(now_ms);
        let mut durable = server.owner.durable().offset as usize;
        if self.mutant == Some(Mutant::DurableTooEarly) {
            durable = server.log.len();
        }
        // Without any copy that counts, the disk of the owner is all that there is.
        let copied = !server.owner.recorded().members.is_empty();
        if !copied && self.mutant != Some(Mutant::DurableTooEarly) {
            return Ok(());
        }
        let said = server.log[..durable].to_vec();
        let both = said.len().min(self.durable.len());
        if said[..both] != self.durable[..both] {
            return Err(format!("boot {} calls {said:?} durable, and {:?} was", server.boot, self.durable));
        }
        if said.len() > self.durable.len() {
            if self.servers[number].boot != self.record.boot {
                self.note("an old owner finished what was its own");
            }
            self.durable = said;
            self.note("durable");
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step()?;
        }
        // In the end all works again, and the newest owner brings everything to every copy.
        let newest = self.servers.len() - 1;
        self.coordinator_up = true;
        self.copies.values_mut().for_each(|copy| (copy.up, copy.full) = (true, false));
        self.servers[newest].cut_off.clear();
        self.servers[newest].alone = false;
        if self.servers[newest].boot != self.record.boot {
            return Ok(());
        }
        self.want(|_| true);
        self.write(newest);
        for _ in 0..200 {
            for name in self.wanted.members.clone() {
                self.ship(newest, &name);
            }
            self.ask_coordinator(newest);
            self.settle(newest)?;
        }
        let (all, log) = (self.wanted.members.clone(), self.servers[newest].log.clone());
        if self.record.quorum.members != all || self.durable != log {
            return Err(format!(
                "stuck: {:?} count, {} of {} durable",
                self.record.quorum,
                self.durable.len(),
                log.len()
            ));
        }
        Ok(())
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn what_was_durable_is_in_the_log_of_every_later_owner() {
    let seeds = match number("CHRONOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CHRONOFS_SEEDS").unwrap_or(2_000),
    };
    let many = seeds.end - seeds.start >= 2_000;
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds {
        let mut world = World::new(seed, None);
        if let Err(found) = world.run() {
            panic!("seed {seed}: {found}; run it again with CHRONOFS_SEED={seed}");
        }
        for (what, n) in world.seen {
            *seen.entry(what).or_default() += n;
        }
    }
    eprintln!("{seen:?}");
    let all = [
        "recovered",
        "started again",
        "too few copies",
        "fenced",
        "superseded",
        "changed",
        "an answer was lost",
        "durable",
        "an append came late",
        "an append came too late",
    ];
    let missing: Vec<_> = all.into_iter().filter(|what| !seen.contains_key(what)).collect();
    assert!(!many || missing.is_empty(), "never happened: {missing:?}");
}

/// The first seed in which a fault of the protocol loses what was durable.
fn is_found(mutant: Mutant) {
    let most = number("CHRONOFS_SEEDS").unwrap_or(4_000);
    for seed in 0..most {
        if let Err(found) = World::new(seed, Some(mutant)).run()
            && !found.starts_with("stuck")
        {
            eprintln!("{mutant:?}: seed {seed}: {found}");
            return;
        }
    }
    panic!("{mutant:?} was not found in {most} seeds");
}

#[test]
fn a_copy_that_does_not_check_the_epoch_is_found() {
    is_found(Mutant::EpochNotChecked);
}

#[test]
fn a_sealed_copy_that_appends_is_found() {
    is_found(Mutant::SealedAppends);
}

#[test]
fn an_owner_that_does_not_wait_for_its_copies_is_found() {
    is_found(Mutant::DurableTooEarly);
}

#[test]
fn a_recovery_from_too_few_copies_is_found() {
    is_found(Mutant::TooFewSealed);
}

#[test]
fn a_change_that_is_taken_for_done_is_found() {
    is_found(Mutant::ChangeTakenForDone);
}

#[test]
fn an_append_that_comes_after_the_copy_was_opened_again_is_found() {
    is_found(Mutant::LateAppends);
}

#[test]
fn a_copy_that_is_swapped_protects_until_the_one_in_its_place_does() {
    let quorum = |names: &[&str]| Quorum {
        members: names.iter().map(|name| (*name).to_owned()).collect(),
        anti_quorum: 0,
    };
    let mut owner = Owner::new(1, quorum(&["a"]), &quorum(&["b"]), place(10), DEADLINE_MS);
    owner.agrees("a");
    owner.acked("a", place(10), 0);
    owner.fills("b", place(10), 0);
    assert_eq!(owner.wants_change(), None, "nothing can be recovered from b yet");
    owner.acked("b", place(9), 0);
    assert_eq!(owner.wants_change(), None, "b lacks something");
    owner.acked("b", place(10), 0);
    assert_eq!(owner.wants_change().unwrap().quorum, quorum(&["b"]));
    owner.changed(2);
    assert!(!owner.knows("a"));
    // One that is taken away without another in its place goes at once, and one that fails does.
    owner.want(&quorum(&[]));
    assert_eq!(owner.wants_change().unwrap().quorum, quorum(&[]));
    let mut owner = Owner::new(1, quorum(&["a"]), &quorum(&["b"]), place(10), DEADLINE_MS);
    owner.agrees("a");
    owner.acked("a", place(10), 0);
    owner.failed("a", "its disk was taken out");
    assert_eq!(owner.wants_change().unwrap().quorum, quorum(&[]));
}

#[test]
fn a_copy_that_comes_again_with_less_than_it_had_is_not_left_as_the_only_one() {
    let names: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
    let wanted = Quorum { members: names.clone(), anti_quorum: 0 };
    let only = |name: &str| Quorum { members: [name.to_owned()].into(), anti_quorum: 0 };
    let mut whole = Owner::new(1, wanted.clone(), &wanted, place(10), DEADLINE_MS);
    for name in &names {
        whole.agrees(name);
        whole.acked(name, place(10), 0);
    }
    whole.failed("b", "away");
    // With less than it had, or from its beginning.
    for (end, fills, counts_for) in [(place(4), false, place(4)), (place(10), true, Place::default())] {
        let mut owner = whole.clone();
        owner.reached("b", end, fills);
        assert_eq!(owner.durable(), counts_for, "as soon as it was reached");
        let mut owner = whole.clone();
        owner.retried("b", end, fills, 0);
        owner.failed("a", "lost");
        assert_eq!(owner.wants_change(), None, "nobody else has what was durable");
        assert_eq!(owner.durable(), counts_for);
        owner.acked("b", place(10), 0);
        assert_eq!(owner.wants_change().unwrap().quorum, only("b"), "it was caught up");
    }
}

#[test]
fn the_last_copy_that_is_left_holds_durability_back_and_can_be_recovered_from() {
    let names: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    let wanted = Quorum { members: names.clone(), anti_quorum: 1 };
    let mut owner = Owner::new(1, wanted.clone(), &wanted, place(10), DEADLINE_MS);
    for name in &names {
        owner.agrees(name);
        owner.acked(name, place(10), 0);
    }
    for (epoch, lost) in [(2, "b"), (3, "c")] {
        owner.failed(lost, "lost");
        assert!(owner.wants_change().is_some(), "{lost} is left out");
        owner.changed(epoch);
        let recorded = owner.recorded();
        assert!(recorded.members.len() > 2 * recorded.anti_quorum, "{recorded:?}");
    }
    owner.written(place(11), 0);
    assert_eq!(owner.durable(), place(10), "the last copy has not got it yet");
    let sealed = BTreeMap::from([("a".to_owned(), place(10))]);
    assert_eq!(choose(owner.recorded(), &sealed, |_| 0).unwrap(), "a");
}

#[test]
fn a_copy_that_is_being_filled_does_not_say_that_the_log_is_the_newest() {
    let wanted = Quorum { members: BTreeSet::from(["a".to_owned()]), anti_quorum: 0 };
    let mut owner = Owner::new(1, wanted.clone(), &wanted, place(10), DEADLINE_MS);
    owner.acked("a", place(10), 0);
    assert!(!owner.confirmed());
    owner.agrees("another");
    assert!(!owner.confirmed());
    owner.agrees("a");
    assert!(owner.confirmed());
}

#[test]
fn of_copies_that_go_equally_far_the_one_with_fewest_gaps_is_recovered_from() {
    let members: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    let mut sealed: BTreeMap<String, Place> = members.iter().map(|name| (name.clone(), place(7))).collect();
    let quorum = Quorum { members, anti_quorum: 1 };
    assert_eq!(choose(&quorum, &sealed, |name| usize::from(name != "b")), Ok("b"));
    sealed.insert("a".to_owned(), place(8));
    assert_eq!(choose(&quorum, &sealed, |name| usize::from(name != "b")), Ok("a"));
}
