//! The coordinator: counts the members against the configuration, leads them through the phases, and says what the set is.
//!
//! It knows one attempt at a time and the records of all. Whatever it hands out to be saved must be saved before its other
//! answers are given out; who cannot save it makes a new coordinator of what was saved, as after a crash.

use super::{
    Attempt, Cut, Failure, Fault, Held, Intent, Left, Node, Now, Order, Phase, Poll, Record, State, Step,
    Told, What,
};
use crate::code::SnapshotCode;
use crate::name::{Role, SnapshotUid};
use std::collections::{BTreeMap, BTreeSet};

/// A log that is held longer than this is let go, and the snapshot fails.
const HOLD_MS: u64 = 30_000;
/// When a program has failed, what those of others have to say is waited for so long.
const LISTEN_MS: u64 = 2_000;
/// The clock is looked at every second. Who did not look for so long stood still, and could not hear anybody.
const STOOD_STILL_MS: u64 = 10_000;

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
    /// A member that is needed and was not heard of for so long is taken to be gone. Members ask every second while
    /// they have something to say, else every 20 s, and a lost question ends after 30 s: it must be well above that.
    pub silent_ms: u64,
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
    silent_ms: u64,
    /// When each member was last heard of.
    heard_ms: BTreeMap<String, u64>,
    /// Since when this coordinator has listened without a pause.
    listening_ms: u64,
    /// When it last looked at the clock.
    looked_ms: u64,
    failing: Option<Failing>,
}

/// An attempt that has failed, while others may still say what went wrong with them.
#[derive(Clone, Debug)]
struct Failing {
    /// Of what was heard first.
    code: SnapshotCode,
    until_ms: u64,
    failures: Vec<Failure>,
    /// Which steps these are of.
    steps: BTreeSet<(String, Step)>,
}

impl Current {
    /// Whether a step was done, or has failed.
    fn has_ended(&self, step: &(String, Step)) -> bool {
        self.done.contains_key(step)
            || self.failing.as_ref().is_some_and(|failing| failing.steps.contains(step))
    }

    fn take_fault(&mut self, now: Now, step: (String, Step), fault: &Fault) {
        // Before programs run logs may be held, which must not last longer than it has to.
        let listen_ms = if self.phase == Phase::Run { LISTEN_MS } else { 0 };
        let (code, until_ms) = (fault.code, now.steady_ms + listen_ms);
        let begins = || Failing { code, until_ms, failures: Vec::new(), steps: BTreeSet::new() };
        let failing = self.failing.get_or_insert_with(begins);
        let failure = Failure { node: Some(step.0.clone()), role: step.1.role(), why: fault.why.clone() };
        // It is said again with every question.
        if failing.steps.insert(step) {
            failing.failures.push(failure);
        }
    }

    fn last_heard_ms(&self, node: &str) -> u64 {
        self.heard_ms.get(node).map_or(self.listening_ms, |at| self.listening_ms.max(*at))
    }
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
            if known.state == State::Expired {
                let why =
                    format!("snapshot {} was taken before, and its time to be kept is over", request.uid);
                return Err(Refusal { code: SnapshotCode::Duplicate, why });
            }
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
            return Err(self.busy(now, current));
        }
        self.last_number = now.wall_ns.max(self.last_number + 1);
        let Request { uid, program, arguments, keep_until_ns, run_ms, silent_ms, cluster } = request;
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
        self.current = Some(Current {
            uid,
            phase,
            begun_ms,
            deadline_ms: begun_ms + phase.within_ms(run_ms),
            done: BTreeMap::new(),
            silent_ms,
            heard_ms: BTreeMap::new(),
            listening_ms: begun_ms,
            looked_ms: begun_ms,
            failing: None,
        });
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
        let failure = Failure { node: Some(node), role: None, why: why.to_owned() };
        self.fail(now, SnapshotCode::WithRecovery, vec![failure])
    }

    /// Looks at the clock.
    pub fn tick(&mut self, now: Now) -> Option<Record> {
        let current = self.current.as_mut()?;
        if now.steady_ms.saturating_sub(current.looked_ms) > STOOD_STILL_MS {
            current.listening_ms = now.steady_ms;
        }
        current.looked_ms = now.steady_ms;
        if let Some(until_ms) = current.failing.as_ref().map(|failing| failing.until_ms) {
            return if now.steady_ms >= until_ms { self.give_up(now) } else { None };
        }
        let silent = self.silent(now);
        if !silent.is_empty() {
            return self.fail(now, SnapshotCode::WithRecovery, silent);
        }
        let current = self.current.as_ref().filter(|current| now.steady_ms >= current.deadline_ms)?;
        let (phase, left) = (current.phase, self.left());
        let (node, step) = left.first()?;
        let code = phase.code(self.records.get(&current.uid)?.intent.node(node)?, *step);
        let late = |(node, step): (String, Step)| {
            let why = format!("it has not done this in time (phase {phase:?}); is the server up?");
            Failure { node: Some(node), role: step.role(), why }
        };
        let failures = left.into_iter().map(late).collect();
        self.fail(now, code, failures)
    }

    /// Ends an attempt on demand. `None`: it is not under way, see its record.
    pub fn abort(&mut self, now: Now, uid: &SnapshotUid) -> Option<Record> {
        let current = self.current.as_ref().filter(|current| current.uid == *uid)?;
        // Then it has failed by itself, and this ends just the waiting for others.
        if current.failing.is_some() {
            return self.give_up(now);
        }
        let current = self.current.take()?;
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

    /// Keeps nothing more for a set whose time is over, if nobody reads it, as far as all its members have said since this
    /// coordinator began. Of those that `is_there` does not know any more nobody waits for a word. Its record stays until
    /// somebody deletes the set.
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
        let record = self.records.get_mut(&uid)?;
        record.state = State::Expired;
        Some(record.clone())
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

    /// What of the phase is not done.
    #[must_use]
    pub fn left_to_do(&self) -> Vec<Left> {
        let intent = self.current.as_ref().and_then(|current| self.records.get(&current.uid));
        let intent = intent.map(|record| &record.intent);
        let name = |id: &str| intent.and_then(|intent| intent.node(id)).map(|node| node.name.clone());
        let left = self.left().into_iter();
        left.map(|(id, step)| Left { server: name(&id).unwrap_or(id), role: step.role() }).collect()
    }

    /// Why another snapshot cannot begin.
    fn busy(&self, now: Now, current: &Current) -> Refusal {
        let run_ms = self.records.get(&current.uid).map_or(0, |record| record.intent.run_ms);
        let age_ms = now.steady_ms.saturating_sub(current.begun_ms);
        let left_ms = current.deadline_ms.saturating_sub(now.steady_ms);
        let following = Phase::ALL.into_iter().filter(|phase| *phase > current.phase);
        let all_ms = left_ms + following.map(|phase| phase.within_ms(run_ms)).sum::<u64>();
        let why = format!(
            "snapshot {} is under way: for {} s, in phase {:?}, for {} s more at the most, {} s of them in this phase; \
             wait for it, or end it with chronofs snapshot abort {}",
            current.uid,
            age_ms / 1000,
            current.phase,
            all_ms / 1000,
            left_ms / 1000,
            current.uid
        );
        Refusal { code: SnapshotCode::Busy, why }
    }

    /// Members that have something to do, now or later, and were not heard of for too long.
    fn silent(&self, now: Now) -> Vec<Failure> {
        let Some(current) = &self.current else { return Vec::new() };
        let Some(record) = self.records.get(&current.uid) else { return Vec::new() };
        let is_needed = |node: &&Node| {
            let phases = Phase::ALL.into_iter().filter(|phase| *phase >= current.phase);
            let mut steps = phases.flat_map(|phase| phase.steps(node));
            steps.any(|step| !current.has_ended(&(node.id.clone(), step)))
        };
        let silence = |node: &Node| {
            let silent_ms = now.steady_ms.saturating_sub(current.last_heard_ms(&node.id));
            let why = format!(
                "it has not been heard of for {} s; is the server up, and does it reach the admin server?",
                silent_ms / 1000
            );
            let failure = Failure { node: Some(node.id.clone()), role: None, why };
            (silent_ms >= current.silent_ms).then_some(failure)
        };
        record.intent.nodes.iter().filter(is_needed).filter_map(silence).collect()
    }

    /// The steps of the phase that are not done, each with the id of its node.
    fn left(&self) -> Vec<(String, Step)> {
        let Some(current) = &self.current else { return Vec::new() };
        let Some(record) = self.records.get(&current.uid) else { return Vec::new() };
        let mut left = Vec::new();
        for node in &record.intent.nodes {
            left.extend(current.phase.steps(node).into_iter().map(|step| (node.id.clone(), step)));
        }
        left.retain(|step| !current.has_ended(step));
        left
    }

    /// Takes in what was said by a member of the attempt that is under way, of the epoch that it began with.
    fn hear(&mut self, now: Now, poll: &Poll) -> Option<Record> {
        let current = self.current.as_mut()?;
        let intent = &self.records.get(&current.uid)?.intent;
        let node = intent.node(&poll.node)?;
        if poll.epoch > node.epoch {
            let why = "it restarted or moved during the snapshot".to_owned();
            let failure = Failure { node: Some(poll.node.clone()), role: None, why };
            return self.fail(now, SnapshotCode::WithRecovery, vec![failure]);
        }
        // One that was superseded knows nothing that counts.
        if poll.epoch < node.epoch {
            return None;
        }
        current.heard_ms.insert(poll.node.clone(), now.steady_ms);
        let number = intent.attempt.number;
        for said in poll.said.iter().filter(|said| said.number == number) {
            let key = (poll.node.clone(), said.step);
            match &said.end {
                Ok(told) => {
                    current.done.entry(key).or_insert_with(|| told.clone());
                }
                Err(fault) => current.take_fault(now, key, fault),
            }
        }
        let Some(until_ms) = current.failing.as_ref().map(|failing| failing.until_ms) else {
            return self.advance(now);
        };
        let everybody_told = self.left().is_empty();
        if everybody_told || now.steady_ms >= until_ms { self.give_up(now) } else { None }
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
            if let Some(label) = told(Step::Label) {
                record.bytes.extend(label.bytes.map(|bytes| (node.id.clone(), bytes)));
                if !label.labels.is_empty() {
                    record.labels.insert(node.id.clone(), label.labels.clone());
                }
            }
            if let Some(held_ms) = told(Step::Release).and_then(|told| told.held_ms) {
                record.held_ms.insert(node.id.clone(), held_ms);
            }
        }
        record.state = State::Complete;
        record.ended_ns = Some(now.wall_ns);
        Some(record.clone())
    }

    /// Ends an attempt that has failed.
    fn give_up(&mut self, now: Now) -> Option<Record> {
        let code = self.current.as_ref()?.failing.as_ref()?.code;
        self.fail(now, code, Vec::new())
    }

    /// Ends the attempt. What was wrong before says under which code.
    fn fail(&mut self, now: Now, code: SnapshotCode, failures: Vec<Failure>) -> Option<Record> {
        let current = self.current.take()?;
        let record = self.records.get_mut(&current.uid)?;
        let before = current.failing.map(|failing| (failing.code, failing.failures));
        let (code, before) = before.unwrap_or((code, Vec::new()));
        record.state = State::Failed;
        record.ended_ns = Some(now.wall_ns);
        record.code = Some(code);
        record.failures.extend(before.into_iter().chain(failures));
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
            State::Failed | State::Aborted | State::Deleted | State::Expired => Some(finish(false)),
        }
    }

    /// The steps of the phase that this member has not said to be done.
    fn wanted(&self, poll: &Poll) -> Option<Order> {
        let current = self.current.as_ref()?;
        let intent = &self.records.get(&current.uid)?.intent;
        let node = intent.node(&poll.node).filter(|node| node.epoch == poll.epoch)?;
        let mut steps = current.phase.steps(node);
        steps.retain(|step| !current.has_ended(&(node.id.clone(), *step)));
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
        labels: BTreeMap::new(),
        code: None,
        failures: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
