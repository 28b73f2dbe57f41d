//! The coordinator: counts the members against the configuration, leads them through the phases, and says what the set is.
//!
//! It knows one attempt at a time and the records of all. Whatever it hands out to be saved must be saved before its other
//! answers are given out; who cannot save it makes a new coordinator of what was saved, as after a crash.

use super::{
    Attempt, Cut, Failure, Fault, Held, Intent, Node, Now, Order, Phase, Poll, Record, State, Step, Told,
    What,
};
use crate::code::SnapshotCode;
use crate::name::{Role, SnapshotUid};
use std::collections::{BTreeMap, BTreeSet};

/// A log that is held longer than this is let go, and the snapshot fails.
const HOLD_MS: u64 = 30_000;

/// What a client wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Drawn by the client, so that it can ask again.
    pub uid: SnapshotUid,
    /// The program.
    pub program: String,
    /// What the program is told.
    pub arguments: Vec<String>,
    /// Until when what the set needs is kept.
    pub keep_until_ns: Option<u64>,
    /// How long a program may run.
    pub run_ms: u64,
    /// Id of the cluster.
    pub cluster: String,
}

/// Why a snapshot does not begin.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// The code that the command ends with.
    pub code: SnapshotCode,
    /// Why, and who is in the way.
    pub why: String,
}

/// The attempt that is under way.
#[derive(Clone, Debug)]
struct Current {
    uid: SnapshotUid,
    phase: Phase,
    begun_ms: u64,
    deadline_ms: u64,
    done: BTreeMap<(String, Step), Told>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Coordinator {
    records: BTreeMap<SnapshotUid, Record>,
    current: Option<Current>,
    last_number: u64,
    /// What each member last said of itself.
    heard: BTreeMap<String, Heard>,
    /// The newest epoch of each, as the configuration has it.
    newest: BTreeMap<String, u64>,
}

/// See [`Coordinator`].
#[derive(Clone, Debug, Default)]
struct Heard {
    epoch: u64,
    holding: Vec<Attempt>,
    readers: Option<BTreeMap<String, Vec<String>>>,
}

impl Coordinator {
    /// With the records that were saved. An attempt that was under way is over, because what its members had done was
    /// known here only; its record is to be saved again.
    #[must_use]
    pub fn new(records: Vec<Record>, now: Now) -> (Coordinator, Vec<Record>) {
        let last_number = records.iter().map(|record| record.intent.attempt.number).max().unwrap_or(0);
        let mut closed = Vec::new();
        let mut all = BTreeMap::new();
        for mut record in records {
            if record.state == State::Running {
                record.state = State::Failed;
                record.ended_ns = Some(now.wall_ns);
                record.code = Some(SnapshotCode::Unknown);
                let why = "the coordinator went down meanwhile; take another snapshot".to_owned();
                record.failures.push(Failure { node: None, role: None, why });
                closed.push(record.clone());
            }
            all.insert(record.intent.attempt.uid.clone(), record);
        }
        let (heard, newest) = Default::default();
        (Coordinator { records: all, current: None, last_number, heard, newest }, closed)
    }

    /// Begins a snapshot of `nodes`. The same request again is answered with how it stands; what is new is to be saved.
    pub fn start(&mut self, now: Now, request: Request, nodes: Vec<Node>) -> Result<(Record, bool), Refusal> {
        if let Some(known) = self.records.get(&request.uid) {
            let intent = &known.intent;
            if known.state == State::Deleted
                || intent.program != request.program
                || intent.arguments != request.arguments
            {
                let why = format!("snapshot {} was asked for before, with another command", request.uid);
                return Err(Refusal { code: SnapshotCode::Duplicate, why });
            }
            return Ok((known.clone(), false));
        }
        if let Some(current) = &self.current {
            let (age, left) =
                (now.steady_ms - current.begun_ms, current.deadline_ms.saturating_sub(now.steady_ms));
            let why = format!(
                "snapshot {} is under way: for {} s, in phase {:?}, for {} s more at the most; wait for it, or end it with \
                 chronofs snapshot abort {}",
                current.uid,
                age / 1000,
                current.phase,
                left / 1000,
                current.uid
            );
            return Err(Refusal { code: SnapshotCode::Busy, why });
        }
        self.last_number = now.wall_ns.max(self.last_number + 1);
        let Request { uid, program, arguments, keep_until_ns, run_ms, cluster } = request;
        let attempt = Attempt { uid: uid.clone(), number: self.last_number };
        let started_ns = now.wall_ns;
        let intent = Intent {
            attempt,
            cluster,
            program,
            arguments,
            nodes,
            started_ns,
            keep_until_ns,
            hold_ms: HOLD_MS,
            run_ms,
            ended: BTreeMap::new(),
        };
        let record = running(intent);
        self.records.insert(uid.clone(), record.clone());
        let (phase, begun_ms) = (Phase::Ready, now.steady_ms);
        let deadline_ms = begun_ms + phase.within_ms(run_ms);
        self.current = Some(Current { uid, phase, begun_ms, deadline_ms, done: BTreeMap::new() });
        Ok((record, true))
    }

    /// Takes what a member says, and gives what it is to do. The record, if there is one, is to be saved first.
    pub fn poll(&mut self, now: Now, poll: &Poll) -> (Vec<Order>, Option<Record>) {
        let save = self.hear(now, poll);
        let holding = poll.holding.iter().map(|held| held.attempt.clone()).collect();
        // One that was superseded does not speak for what its successor keeps; but what failed is to go there, too.
        let is_newest = self.newest.get(&poll.node).is_none_or(|newest| *newest <= poll.epoch);
        if is_newest && self.heard.get(&poll.node).is_none_or(|heard| heard.epoch <= poll.epoch) {
            let heard = Heard { epoch: poll.epoch, holding, readers: poll.readers.clone() };
            self.heard.insert(poll.node.clone(), heard);
        }
        let mut orders: Vec<Order> = poll
            .holding
            .iter()
            .filter(|held| !held.resting)
            .filter_map(|held| self.verdict(held, poll.epoch))
            .collect();
        orders.extend(self.wanted(poll));
        (orders, save)
    }

    /// Who is a member now, and under which epoch. A set of others than those that began is none. What was heard of others
    /// counts no longer.
    pub fn members(&mut self, now: Now, nodes: &[Node]) -> Option<Record> {
        let is_one = |id: &String, heard: &mut Heard| {
            nodes.iter().any(|node| node.id == *id && node.epoch <= heard.epoch)
        };
        self.heard.retain(is_one);
        self.newest = nodes.iter().map(|node| (node.id.clone(), node.epoch)).collect();
        let current = self.current.as_ref()?;
        let intent = &self.records.get(&current.uid)?.intent;
        let changed = |before: &&Node| {
            let same = |node: &&Node| node.id == before.id && node.epoch == before.epoch;
            !nodes.iter().any(|node| same(&node))
        };
        let joined = nodes.iter().find(|node| intent.node(&node.id).is_none());
        let (node, why) = match (intent.nodes.iter().find(changed), joined) {
            (Some(node), _) => (node.id.clone(), "it restarted, moved or left during the snapshot"),
            (None, Some(node)) => (node.id.clone(), "it joined during the snapshot"),
            (None, None) => return None,
        };
        self.fail(
            now,
            SnapshotCode::WithRecovery,
            Failure { node: Some(node), role: None, why: why.to_owned() },
        )
    }

    /// Looks at the clock.
    pub fn tick(&mut self, now: Now) -> Option<Record> {
        let current = self.current.as_ref().filter(|current| now.steady_ms >= current.deadline_ms)?;
        let phase = current.phase;
        let (node, step) = self.left().into_iter().next()?;
        let why = format!("it has not done this in time (phase {phase:?}); is the server up?");
        self.fail(now, phase.code(step), Failure { node: Some(node), role: step.role(), why })
    }

    /// Ends an attempt on demand. `None`: it is not under way, see its record.
    pub fn abort(&mut self, now: Now, uid: &SnapshotUid) -> Option<Record> {
        let current = self.current.take_if(|current| current.uid == *uid)?;
        let record = self.records.get_mut(&current.uid)?;
        record.state = State::Aborted;
        record.ended_ns = Some(now.wall_ns);
        record.code = Some(SnapshotCode::Unknown);
        let why = "it was aborted on demand".to_owned();
        record.failures.push(Failure { node: None, role: None, why });
        Some(record.clone())
    }

    /// Forgets a snapshot that is over: nothing is kept for it any more. Its UID stays used.
    pub fn delete(&mut self, uid: &SnapshotUid) -> Option<Record> {
        let record = self.records.get_mut(uid).filter(|record| record.state != State::Running)?;
        record.state = State::Deleted;
        Some(record.clone())
    }

    /// Forgets a set whose time is over, if nobody reads it, as far as all its members have said since this coordinator began.
    /// Of those that `is_there` does not know any more nobody waits for a word.
    pub fn expire(&mut self, now: Now, is_there: impl Fn(&str) -> bool) -> Option<Record> {
        let uid = self.overdue(now).find(|uid| {
            let Some(record) = self.records.get(*uid) else { return false };
            let members = record.intent.nodes.iter().filter(|node| is_there(&node.id));
            let is_free = |node: &Node| {
                let said = self.heard.get(&node.id).and_then(|heard| heard.readers.as_ref());
                said.is_some_and(|readers| !readers.contains_key(uid.as_str()))
            };
            members.into_iter().all(is_free)
        })?;
        let uid = uid.clone();
        self.delete(&uid)
    }

    /// Sets whose time is over.
    pub fn overdue(&self, now: Now) -> impl Iterator<Item = &SnapshotUid> {
        let is_over = move |record: &&Record| {
            record.state == State::Complete
                && record.intent.keep_until_ns.is_some_and(|until| until <= now.wall_ns)
        };
        self.records.values().filter(is_over).map(|record| &record.intent.attempt.uid)
    }

    /// Who reads a set, as far as members have said.
    #[must_use]
    pub fn readers(&self, uid: &SnapshotUid) -> Vec<String> {
        let said = self.heard.values().filter_map(|heard| heard.readers.as_ref()?.get(uid.as_str()));
        let all: BTreeSet<&String> = said.flatten().collect();
        all.into_iter().cloned().collect()
    }

    /// What members keep for attempts that are not known here, or are forgotten: each with the members' ids.
    #[must_use]
    pub fn strangers(&self) -> BTreeMap<Attempt, Vec<String>> {
        let mut found: BTreeMap<Attempt, Vec<String>> = BTreeMap::new();
        for (node, heard) in &self.heard {
            let is_known = |attempt: &&Attempt| {
                self.records.get(&attempt.uid).is_some_and(|record| record.state != State::Deleted)
            };
            for attempt in heard.holding.iter().filter(|attempt| !is_known(attempt)) {
                found.entry(attempt.clone()).or_default().push(node.clone());
            }
        }
        found
    }

    /// Forgets what members keep for a snapshot that is not known here.
    pub fn delete_unknown(&mut self, now: Now, uid: &SnapshotUid) -> Option<Record> {
        if let Some(record) = self.records.get(uid) {
            return Some(record.clone()).filter(|record| record.state == State::Deleted);
        }
        let (attempt, _) = self.strangers().into_iter().find(|(attempt, _)| attempt.uid == *uid)?;
        let intent = Intent {
            attempt,
            cluster: String::new(),
            program: String::new(),
            arguments: Vec::new(),
            nodes: Vec::new(),
            started_ns: now.wall_ns,
            keep_until_ns: None,
            hold_ms: HOLD_MS,
            run_ms: 0,
            ended: BTreeMap::new(),
        };
        let record = running(intent);
        let record = Record { state: State::Deleted, ended_ns: Some(now.wall_ns), ..record };
        self.records.insert(uid.clone(), record.clone());
        Some(record)
    }

    /// What is known of a snapshot.
    #[must_use]
    pub fn record(&self, uid: &SnapshotUid) -> Option<&Record> {
        self.records.get(uid)
    }

    /// All snapshots.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The attempt that is under way: its UID, its phase, and how many steps of that are not done.
    #[must_use]
    pub fn under_way(&self) -> Option<(&SnapshotUid, Phase, usize)> {
        let current = self.current.as_ref()?;
        Some((&current.uid, current.phase, self.left().len()))
    }

    /// The steps of the phase that are not done, each with the id of its node.
    fn left(&self) -> Vec<(String, Step)> {
        let Some(current) = &self.current else { return Vec::new() };
        let Some(record) = self.records.get(&current.uid) else { return Vec::new() };
        let mut left = Vec::new();
        for node in &record.intent.nodes {
            left.extend(current.phase.steps(node).into_iter().map(|step| (node.id.clone(), step)));
        }
        left.retain(|step| !current.done.contains_key(step));
        left
    }

    /// Takes in what was said by a member of the attempt that is under way, of the epoch that it began with.
    fn hear(&mut self, now: Now, poll: &Poll) -> Option<Record> {
        let current = self.current.as_ref()?;
        let intent = &self.records.get(&current.uid)?.intent;
        let node = intent.node(&poll.node)?;
        if poll.epoch > node.epoch {
            let why = "it restarted or moved during the snapshot".to_owned();
            let failure = Failure { node: Some(poll.node.clone()), role: None, why };
            return self.fail(now, SnapshotCode::WithRecovery, failure);
        }
        // One that was superseded knows nothing that counts.
        if poll.epoch < node.epoch {
            return None;
        }
        let number = intent.attempt.number;
        for said in poll.said.iter().filter(|said| said.number == number) {
            match &said.end {
                Ok(told) => {
                    let key = (poll.node.clone(), said.step);
                    self.current.as_mut()?.done.entry(key).or_insert_with(|| told.clone());
                }
                Err(Fault { code, why }) => {
                    let failure =
                        Failure { node: Some(poll.node.clone()), role: said.step.role(), why: why.clone() };
                    return self.fail(now, *code, failure);
                }
            }
        }
        self.advance(now)
    }

    /// Goes on while everybody has done what there is to do.
    fn advance(&mut self, now: Now) -> Option<Record> {
        loop {
            if self.under_way()?.2 > 0 {
                return None;
            }
            let current = self.current.as_mut()?;
            let Some(next) = Phase::ALL.into_iter().find(|phase| *phase > current.phase) else {
                return self.commit(now);
            };
            let run_ms = self.records.get(&current.uid)?.intent.run_ms;
            current.phase = next;
            current.deadline_ms = now.steady_ms + next.within_ms(run_ms);
        }
    }

    fn commit(&mut self, now: Now) -> Option<Record> {
        let current = self.current.take()?;
        let record = self.records.get_mut(&current.uid)?;
        for node in &record.intent.nodes {
            let told = |step: Step| current.done.get(&(node.id.clone(), step));
            let version = |role: Role| told(Step::Image(role)).and_then(|told| told.version);
            if let Some(cut) = version(Role::Tlog) {
                let store = version(Role::Storage).unwrap_or(cut);
                record.cuts.insert(node.id.clone(), Cut { store, cut });
            }
            if let Some(bytes) = told(Step::Label).and_then(|told| told.bytes) {
                record.bytes.insert(node.id.clone(), bytes);
            }
            if let Some(held_ms) = told(Step::Release).and_then(|told| told.held_ms) {
                record.held_ms.insert(node.id.clone(), held_ms);
            }
        }
        record.state = State::Complete;
        record.ended_ns = Some(now.wall_ns);
        Some(record.clone())
    }

    fn fail(&mut self, now: Now, code: SnapshotCode, failure: Failure) -> Option<Record> {
        let current = self.current.take()?;
        let record = self.records.get_mut(&current.uid)?;
        record.state = State::Failed;
        record.ended_ns = Some(now.wall_ns);
        record.code = Some(code);
        record.failures.push(failure);
        Some(record.clone())
    }

    /// What becomes of something that a member holds. What is not known here is left alone: the records may be an old copy.
    fn verdict(&self, held: &Held, epoch: u64) -> Option<Order> {
        let Held { attempt, complete: told, .. } = held;
        let record = self.records.get(&attempt.uid)?;
        let finish = |complete| Order { attempt: attempt.clone(), epoch, what: What::Finish { complete } };
        let ours = record.intent.attempt == *attempt;
        match record.state {
            State::Running => (!ours).then(|| finish(false)),
            State::Complete => (!ours || !told).then(|| finish(ours)),
            State::Failed | State::Aborted | State::Deleted => Some(finish(false)),
        }
    }

    /// The steps of the phase that this member has not said to be done.
    fn wanted(&self, poll: &Poll) -> Option<Order> {
        let current = self.current.as_ref()?;
        let intent = &self.records.get(&current.uid)?.intent;
        let node = intent.node(&poll.node).filter(|node| node.epoch == poll.epoch)?;
        let mut steps = current.phase.steps(node);
        steps.retain(|step| !current.done.contains_key(&(node.id.clone(), *step)));
        if let Some((_, doing)) = poll.doing.as_ref().filter(|(number, _)| *number == intent.attempt.number) {
            steps.retain(|step| !doing.contains(step));
        }
        let attempt = intent.attempt.clone();
        let ended = |node: &Node| {
            let told = current.done.get(&(node.id.clone(), Step::Image(Role::Tlog)))?;
            Some((node.id.clone(), told.ended?))
        };
        let ended = intent.nodes.iter().filter_map(ended).collect();
        let what = What::Do(Box::new(Intent { ended, ..intent.clone() }), steps.clone());
        (!steps.is_empty()).then_some(Order { attempt, epoch: node.epoch, what })
    }
}

/// The record of an attempt that begins.
const fn running(intent: Intent) -> Record {
    Record {
        intent,
        state: State::Running,
        ended_ns: None,
        cuts: BTreeMap::new(),
        bytes: BTreeMap::new(),
        held_ms: BTreeMap::new(),
        code: None,
        failures: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Now {
        Now { steady_ms: seconds * 1000, wall_ns: seconds * 1_000_000_000 }
    }

    fn uid(digit: char) -> SnapshotUid {
        digit.to_string().repeat(32).parse().unwrap()
    }

    /// A coordinator that knows one complete set, which is to be kept for 100 s.
    fn with_a_set() -> Coordinator {
        let mut record = super::super::tests::record();
        record.intent.attempt = Attempt { uid: uid('a'), number: 7 };
        record.intent.keep_until_ns = Some(at(100).wall_ns);
        record.state = State::Complete;
        Coordinator::new(vec![record], at(1)).0
    }

    fn poll(holding: &[char], readers: Option<&[char]>) -> Poll {
        let held = |c: &char| {
            let attempt = Attempt { uid: uid(*c), number: 7 };
            Held { attempt, complete: true, resting: false }
        };
        let named = |c: &char| (uid(*c).to_string(), vec!["a clone".to_owned()]);
        Poll {
            node: "0190".to_owned(),
            epoch: 3,
            holding: holding.iter().map(held).collect(),
            doing: None,
            said: Vec::new(),
            readers: readers.map(|readers| readers.iter().map(named).collect()),
        }
    }

    #[test]
    fn a_set_whose_time_is_over_goes_when_all_members_have_said_that_nobody_reads_it() {
        let mut coordinator = with_a_set();
        let is_there = |_: &str| true;
        coordinator.poll(at(50), &poll(&['a'], Some(&[])));
        assert_eq!(coordinator.expire(at(99), is_there), None, "its time is not over");
        let mut unheard = with_a_set();
        assert_eq!(unheard.expire(at(101), is_there), None, "a member has not said anything");
        assert!(unheard.clone().expire(at(101), |_| false).is_some(), "it is there no more");
        for readers in [None, Some(&['a'][..])] {
            unheard.poll(at(101), &poll(&['a'], readers));
            assert_eq!(unheard.expire(at(102), is_there), None, "{readers:?}");
        }
        assert_eq!(unheard.readers(&uid('a')), ["a clone"]);
        unheard.poll(at(103), &poll(&['a'], Some(&['b'])));
        let expired = unheard.expire(at(104), is_there).unwrap();
        assert_eq!((expired.state, expired.intent.attempt.uid), (State::Deleted, uid('a')));
        assert_eq!(unheard.expire(at(105), is_there), None);
        let (orders, _) = unheard.poll(at(106), &poll(&['a'], Some(&[])));
        assert!(matches!(orders[..], [Order { what: What::Finish { complete: false }, .. }]), "{orders:?}");
    }

    #[test]
    fn what_is_kept_for_an_unknown_snapshot_is_left_alone_and_shown_until_somebody_deletes_it() {
        let mut coordinator = with_a_set();
        let (orders, save) = coordinator.poll(at(50), &poll(&['a', 'c'], Some(&[])));
        assert_eq!((orders, save), (Vec::new(), None));
        let stranger = Attempt { uid: uid('c'), number: 7 };
        let expected = BTreeMap::from([(stranger, vec!["0190".to_owned()])]);
        assert_eq!(coordinator.strangers(), expected);
        assert_eq!(coordinator.delete_unknown(at(51), &uid('a')), None, "that is a set");
        assert_eq!(coordinator.delete_unknown(at(51), &uid('d')), None, "nobody keeps anything for it");
        let record = coordinator.delete_unknown(at(51), &uid('c')).unwrap();
        assert_eq!(record.state, State::Deleted);
        let (orders, _) = coordinator.poll(at(52), &poll(&['a', 'c'], Some(&[])));
        assert!(matches!(&orders[..], [order] if order.attempt.uid == uid('c')), "{orders:?}");
        assert_eq!(coordinator.strangers().len(), 1, "it is kept still");
        coordinator.poll(at(53), &poll(&['a'], Some(&[])));
        assert_eq!(coordinator.strangers(), BTreeMap::new());
    }
    /// The coordinator starts anew, and the old server, whose look into the block stores is of long ago, asks first.
    #[test]
    fn a_coordinator_that_starts_does_not_hear_a_superseded_server_either() {
        let node = super::super::tests::record().intent.nodes.remove(0);
        let newer = Node { epoch: 4, ..node };
        let mut coordinator = with_a_set();
        coordinator.members(at(2), std::slice::from_ref(&newer));
        coordinator.poll(at(50), &poll(&['a', 'c'], Some(&[])));
        assert_eq!(coordinator.strangers(), BTreeMap::new());
        assert_eq!(
            coordinator.expire(at(101), |_| true),
            None,
            "its owner has not said that no clone reads it"
        );
        coordinator.poll(at(102), &Poll { epoch: 4, ..poll(&['a'], Some(&[])) });
        assert!(coordinator.expire(at(103), |_| true).is_some());
    }

    #[test]
    fn neither_a_superseded_server_nor_a_deleted_one_is_heard() {
        let mut coordinator = with_a_set();
        let node = super::super::tests::record().intent.nodes.remove(0);
        let newer = Node { epoch: 4, ..node.clone() };
        coordinator.poll(at(50), &poll(&['a', 'c'], Some(&['a'])));
        coordinator.members(at(51), std::slice::from_ref(&node));
        assert_eq!((coordinator.strangers().len(), coordinator.readers(&uid('a')).len()), (1, 1));
        coordinator.members(at(51), std::slice::from_ref(&newer));
        assert_eq!((coordinator.strangers().len(), coordinator.readers(&uid('a')).len()), (0, 0));
        coordinator.poll(at(52), &Poll { epoch: 4, ..poll(&['a'], Some(&['a'])) });
        // The old one's block stores were read long ago.
        coordinator.poll(at(53), &poll(&['a', 'c'], Some(&[])));
        assert_eq!(coordinator.strangers(), BTreeMap::new());
        assert_eq!(coordinator.expire(at(101), |_| true), None, "a clone reads it");
        coordinator.poll(at(102), &Poll { epoch: 4, ..poll(&['d'], None) });
        assert_eq!(coordinator.strangers().len(), 1);
        coordinator.members(at(103), &[]);
        assert_eq!(coordinator.strangers(), BTreeMap::new(), "nobody can ask it any more");
    }
}
