//! Which commits are durable, and which copies count: the owner's side of the protocol, without I/O, clocks or threads.
//!
//! A [`Quorum`] names the copies that count, and how many of them a commit may lack. The coordinator records it under an
//! epoch. A change is asked for and its outcome may stay unknown for a while; until it is known **both** quorums must have
//! what is called durable. So whichever of the two is the recorded one when this owner is lost, a recovery that reads any
//! `anti_quorum + 1` of its copies meets one that has everything durable.

use crate::embedded::Place;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The copies that count.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Quorum {
    /// Their names.
    pub members: BTreeSet<String>,
    /// So many of them may lack what is durable: fewer than half.
    pub anti_quorum: usize,
}

impl Quorum {
    /// How far enough copies are, each being where `at` says; `None` if none is needed.
    pub fn reached(&self, at: impl Fn(&str) -> Place) -> Option<Place> {
        let needed = self.members.len().saturating_sub(self.anti_quorum);
        let mut places: Vec<Place> = self.members.iter().map(|name| at(name)).collect();
        places.sort_unstable_by(|a, b| b.cmp(a));
        places.get(needed.checked_sub(1)?).copied()
    }

    /// How many copies a recovery must seal at least.
    pub fn sealed_min(&self) -> usize {
        self.anti_quorum.saturating_add(1)
    }
}

/// What the coordinator is asked: another quorum in place of the one of epoch `after`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The epoch that is to end.
    pub after: u64,
    /// What is to count from then on.
    pub quorum: Quorum,
}

/// How a copy is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// It is being reached, or catches up.
    Behind,
    /// It has all that was ever called durable.
    Following,
    /// It failed, and is tried again.
    Failed(String),
}

#[derive(Clone, Debug)]
struct Copy {
    /// All before this is on its disk.
    acked: Place,
    /// It acknowledged all up to here, which is where a group ends: what a crash leaves of it ends no earlier.
    whole: Place,
    /// When it acknowledged this, the log ended here: what `whole` becomes next.
    mark: Place,
    /// Nothing can be recovered from it yet, however far it is.
    fills: bool,
    health: Health,
    /// Since when it has owed something.
    owes_since_ms: Option<u64>,
    /// Operators want it.
    wanted: bool,
}

/// A copy, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyStatus {
    /// Its name.
    pub name: String,
    /// Whether it counts.
    pub member: bool,
    /// How far it is.
    pub acked: Place,
    /// How it is.
    pub health: Health,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Owner {
    epoch: u64,
    recorded: Quorum,
    asked: Option<Quorum>,
    copies: BTreeMap<String, Copy>,
    /// What operators want.
    anti_quorum: usize,
    /// Where the log ends on the owner's own disk, as far as it is to be durable.
    target: Place,
    /// Nothing was called durable beyond this.
    promised: Place,
    /// The first quorum's members.
    found: BTreeSet<String>,
    /// Those of them that were seen to have nothing durable that this log has not.
    agreeing: BTreeSet<String>,
    /// So many of these it takes. Before, the log could be an old one, and whoever knows better must not be left out.
    agreeing_min: usize,
    deadline_ms: u64,
}

impl Owner {
    /// The owner of `epoch`, whose log ends at `end`: an earlier owner may have called all of it durable. `wanted` are the
    /// copies that there are to be; `deadline_ms` is how long one may owe what was written before it is left out.
    pub fn new(epoch: u64, recorded: Quorum, wanted: &Quorum, end: Place, deadline_ms: u64) -> Self {
        let mut owner = Owner {
            epoch,
            asked: None,
            copies: BTreeMap::new(),
            anti_quorum: 0,
            target: end,
            promised: end,
            found: recorded.members.clone(),
            agreeing: BTreeSet::new(),
            agreeing_min: recorded.sealed_min().min(recorded.members.len()),
            recorded,
            deadline_ms,
        };
        owner.want(wanted);
        owner
    }

    /// Operators want these copies. Gives the names of new ones.
    pub fn want(&mut self, wanted: &Quorum) -> Vec<String> {
        self.anti_quorum = wanted.anti_quorum;
        let counted = self.counted();
        self.copies.retain(|name, _| wanted.members.contains(name) || counted.contains(name));
        let mut new = Vec::new();
        for name in wanted.members.union(&counted) {
            let copy = self.copies.entry(name.clone()).or_insert_with(|| {
                new.push(name.clone());
                let (acked, health) = (Place::default(), Health::Behind);
                let (whole, mark) = (acked, self.target);
                Copy { acked, whole, mark, fills: false, health, owes_since_ms: None, wanted: true }
            });
            copy.wanted = wanted.members.contains(name);
        }
        new
    }

    fn counted(&self) -> BTreeSet<String> {
        let asked = self.asked.iter().flat_map(|quorum| &quorum.members);
        self.recorded.members.iter().chain(asked).cloned().collect()
    }

    /// The log goes so far, and is to be durable.
    pub fn written(&mut self, place: Place, now_ms: u64) {
        self.target = self.target.max(place);
        for copy in self.copies.values_mut().filter(|copy| copy.acked < place) {
            copy.owes_since_ms.get_or_insert(now_ms);
        }
    }

    /// Everything before `place` is on the disk of a copy.
    pub fn acked(&mut self, name: &str, place: Place, now_ms: u64) {
        let (target, promised) = (self.target, self.promised);
        if let Some(copy) = self.copies.get_mut(name) {
            (copy.acked, copy.fills) = (place, false);
            // Parts may end within groups, so it is where the log ended that is known to be whole.
            for end in [copy.mark, target] {
                if place >= end {
                    (copy.whole, copy.mark) = (copy.whole.max(end), target);
                }
            }
            copy.owes_since_ms = (place < target).then_some(now_ms);
            copy.health = if place >= promised { Health::Following } else { Health::Behind };
        }
        self.settle();
    }

    /// The same of a copy from which nothing can be recovered yet: however far it is, it cannot count.
    pub fn fills(&mut self, name: &str, place: Place, now_ms: u64) {
        self.retried(name, place, true, now_ms);
    }

    /// A copy that was whole before this start has nothing durable that this log has not. One that is still being filled could not
    /// know.
    pub fn agrees(&mut self, name: &str) {
        if self.found.contains(name) {
            self.agreeing.insert(name.to_owned());
        }
    }

    /// A copy failed. What it has acknowledged it has.
    pub fn failed(&mut self, name: &str, why: &str) {
        if let Some(copy) = self.copies.get_mut(name) {
            copy.health = Health::Failed(why.to_owned());
        }
    }

    /// A copy was reached, and ends there; `fills`: nothing can be recovered from it yet. What it acknowledged before, and has not
    /// any more, it no longer counts for.
    pub fn reached(&mut self, name: &str, end: Place, fills: bool) {
        if let Some(copy) = self.copies.get_mut(name) {
            (copy.acked, copy.fills) = (copy.acked.min(end), fills);
        }
    }

    /// A copy that was reached ends at `end`: whether that is less than it had acknowledged, and if so whether it counts.
    pub fn went_back(&self, name: &str, end: Place) -> Option<bool> {
        let copy = self.copies.get(name).filter(|copy| end < copy.whole)?;
        Some(!copy.fills && self.counted().contains(name))
    }

    /// A copy that had failed is tried again, and goes on at `place`. That is known together: as long as it is thought to have
    /// what it had before it failed, it could be left as the only one that counts.
    pub fn retried(&mut self, name: &str, place: Place, fills: bool, now_ms: u64) {
        if let Some(copy) = self.copies.get_mut(name) {
            (copy.acked, copy.fills) = (place, fills);
            (copy.whole, copy.mark) = (copy.whole.min(place), self.target);
            copy.health = Health::Behind;
            copy.owes_since_ms = Some(now_ms);
        }
    }

    /// Time passes: who owes for too long has failed.
    pub fn tick(&mut self, now_ms: u64) {
        let deadline_ms = self.deadline_ms;
        for copy in self.copies.values_mut() {
            let late = copy.owes_since_ms.is_some_and(|since| now_ms.saturating_sub(since) > deadline_ms);
            if late && !matches!(copy.health, Health::Failed(_)) {
                copy.health = Health::Failed(format!("it did not answer within {deadline_ms} ms"));
            }
        }
    }

    /// All before this is on the disks of enough copies, whichever quorum is the recorded one.
    pub fn durable(&self) -> Place {
        let quorums = [Some(&self.recorded), self.asked.as_ref()];
        let reached = quorums.into_iter().flatten().filter_map(|quorum| quorum.reached(|name| self.at(name)));
        reached.fold(self.target, Place::min)
    }

    fn at(&self, name: &str) -> Place {
        // A recovery refuses one that still fills.
        self.copies.get(name).filter(|copy| !copy.fills).map_or(Place::default(), |copy| copy.acked)
    }

    fn settle(&mut self) {
        self.promised = self.promised.max(self.durable());
    }

    /// Whether enough copies of the quorum that was found at the start agree that this is the log. Until then none is left out,
    /// unless it is no longer wanted.
    pub fn confirmed(&self) -> bool {
        self.agreeing.len() >= self.agreeing_min
    }

    /// What the coordinator is to be asked now, if anything. The same again until [`Owner::changed`].
    pub fn wants_change(&mut self) -> Option<Change> {
        if self.asked.is_none() {
            self.settle();
            let member = |name: &String| self.recorded.members.contains(name);
            let failed = |copy: &Copy| matches!(copy.health, Health::Failed(_));
            let joins = |copy: &Copy| copy.health == Health::Following && copy.acked >= self.promised;
            let counts = |(name, copy): &(&String, &Copy)| {
                let stays = member(name) && (!self.confirmed() || !failed(copy));
                copy.wanted && (joins(copy) || stays)
            };
            let mut members: BTreeSet<_> =
                self.copies.iter().filter(counts).map(|(name, _)| name.clone()).collect();
            // One that is no longer wanted protects until the one in its place does.
            let wanted = self.copies.values().filter(|copy| copy.wanted).count();
            let mut lacking = wanted - members.len();
            for (name, copy) in &self.copies {
                if lacking > 0 && !copy.wanted && member(name) && !failed(copy) {
                    members.insert(name.clone());
                    lacking -= 1;
                }
            }
            // More than half have what is durable, however few are left.
            let anti_quorum = self.anti_quorum.min(members.len().saturating_sub(1) / 2);
            let quorum = Quorum { members, anti_quorum };
            // Otherwise what was called durable could be missed by a recovery from these.
            let whole = quorum.reached(|name| self.at(name)).is_none_or(|reached| reached >= self.promised);
            if quorum != self.recorded && whole {
                self.asked = Some(quorum);
            }
        }
        let quorum = self.asked.clone()?;
        Some(Change { after: self.epoch, quorum })
    }

    /// Another epoch is wanted, whatever counts in it.
    pub fn renew(&mut self) {
        self.asked.get_or_insert_with(|| self.recorded.clone());
    }

    /// What was asked for is recorded, under this epoch.
    pub fn changed(&mut self, epoch: u64) {
        if let Some(quorum) = self.asked.take() {
            self.recorded = quorum;
        }
        self.epoch = epoch;
        let counted = self.counted();
        self.copies.retain(|name, copy| copy.wanted || counted.contains(name));
        self.settle();
    }

    /// The epoch under which this owner works.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The quorum that is recorded.
    pub fn recorded(&self) -> &Quorum {
        &self.recorded
    }

    /// Where the log goes on, as far as it is to be durable.
    pub fn target(&self) -> Place {
        self.target
    }

    /// No copy that counts, is about to, or may come back needs anything before this; `None`: there is no such copy. One that
    /// failed is thought of as long as it is not more than `lag` segments behind.
    pub fn needed(&self, lag: u64) -> Option<Place> {
        let counted = self.counted();
        let oldest = Place { segment: self.target.segment.saturating_sub(lag), offset: 0 };
        let needs = |(name, copy): (&String, &Copy)| match copy.acked {
            at if counted.contains(name) || !matches!(copy.health, Health::Failed(_)) => Some(at),
            _ if !copy.wanted => None,
            // It did not say yet where it ends.
            at if at == Place::default() => Some(oldest),
            at => (at.segment >= oldest.segment).then_some(at),
        };
        self.copies.iter().filter_map(needs).min()
    }

    /// Leaves out who is so far behind that the log would have to be kept for it: `lag` says by how much.
    pub fn limit_lag(&mut self, too_far: impl Fn(Place) -> bool) {
        for copy in self.copies.values_mut() {
            if too_far(copy.acked) && copy.health == Health::Behind && copy.acked > Place::default() {
                copy.health = Health::Failed("it fell too far behind".to_owned());
            }
        }
    }

    /// Whether there is any copy.
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Whether there is such a copy.
    pub fn knows(&self, name: &str) -> bool {
        self.copies.contains_key(name)
    }

    /// All copies.
    pub fn status(&self) -> Vec<CopyStatus> {
        let status = |(name, copy): (&String, &Copy)| CopyStatus {
            name: name.clone(),
            member: self.recorded.members.contains(name),
            acked: copy.acked,
            health: copy.health.clone(),
        };
        self.copies.iter().map(status).collect()
    }
}

/// The copy to recover from: of those that were sealed the one that goes furthest, and of several the one with the fewest `gaps`.
/// Refused if too few were.
pub fn choose<'a>(
    quorum: &Quorum,
    sealed: &'a BTreeMap<String, Place>,
    gaps: impl Fn(&str) -> usize,
) -> Result<&'a str, String> {
    let counted: Vec<_> = sealed.iter().filter(|(name, _)| quorum.members.contains(*name)).collect();
    let needed = quorum.sealed_min();
    match counted.iter().max_by_key(|(name, end)| (**end, Reverse(gaps(name)))) {
        Some((name, _)) if counted.len() >= needed => Ok(name),
        _ => Err(format!(
            "{} of the {} log copies of the last epoch can be read, and {needed} are needed to be sure that nothing that \
             was durable is missing; bring back more of them: {}",
            counted.len(),
            quorum.members.len(),
            quorum.members.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        )),
    }
}
