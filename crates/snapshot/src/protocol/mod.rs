//! The protocol of a disk snapshot of chronofs' own servers: who does what, in which order, and what that may rest on.
//!
//! It is plain code: messages and time are handed in, what is to be saved or done is handed out. [`Coordinator`] runs in the
//! admin server, a [`Member`] in each server with disks. Members ask ([`Poll`]) and are answered with [`Order`]s, again and
//! again until they have said how each ended, so a message that is lost, late or doubled does no harm.
//!
//! Why the images fit: every log is held before the first store is imaged, and until the last log is. So a log's image has
//! all that the store's does not, up to the place where it was sealed: that is the cut.

mod coordinator;
mod member;

pub use coordinator::{Coordinator, Refusal, Request};
pub use member::{Do, Member};

use crate::code::SnapshotCode;
use crate::manifest::text;
use crate::name::{Role, SnapshotUid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A try to make a snapshot. Numbers rise: a member that has seen one does nothing for those below it any more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// The snapshot.
    #[serde(with = "text")]
    pub uid: SnapshotUid,
    /// Which try it is, over all snapshots.
    pub number: u64,
}

/// A server with disks, as the configuration has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Id of the metadata store, or the admin server's.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Under which epoch it owns what it serves.
    pub epoch: u64,
    /// What it keeps on disk.
    pub roles: Vec<Role>,
    /// Ids of the metadata stores of whose logs a log server keeps copies that count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<String>,
}

impl Node {
    /// Whether it keeps nothing but copies of the logs of others.
    #[must_use]
    pub fn keeps_copies(&self) -> bool {
        self.roles == [Role::Tlog]
    }
}

/// Where a log was ended for a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// The last segment.
    pub segment: u64,
    /// Its length.
    pub length: u64,
}

/// What was decided before anything was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// The try.
    pub attempt: Attempt,
    /// Id of the cluster.
    pub cluster: String,
    /// The program that makes images of images.
    pub program: String,
    /// What its caller tells it.
    pub arguments: Vec<String>,
    /// Everybody who takes part.
    pub nodes: Vec<Node>,
    /// When it began, nanoseconds since the epoch.
    pub started_ns: u64,
    /// Until when the file system keeps what the set needs; `None`: until the set is deleted.
    pub keep_until_ns: Option<u64>,
    /// How long a log may be held.
    pub hold_ms: u64,
    /// How long a program may run.
    pub run_ms: u64,
    /// Where the log of each metadata store was ended, once all were: for those who keep copies of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ended: BTreeMap<String, Ended>,
}

impl Intent {
    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }
}

/// What a member does for an attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Looks whether it can take part, keeps what the set needs, flushes ahead.
    Ready,
    /// Holds its log.
    Hold,
    /// Makes the image of a role.
    Image(Role),
    /// Lets its log go.
    Release,
    /// Writes into each image what it is, with a checksum of each file.
    Label,
    /// Runs the program on the image of a role.
    Run(Role),
}

/// What a member is to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// For which attempt.
    pub attempt: Attempt,
    /// To the member of this epoch and no other.
    pub epoch: u64,
    /// What.
    pub what: What,
}

/// See [`Order`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Steps, for this intent.
    Do(Box<Intent>, Vec<Step>),
    /// The attempt is over. Complete: what the set needs goes on being kept. Else all of it goes.
    Finish {
        /// Whether the set is complete.
        complete: bool,
    },
}

/// How a step ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Said {
    /// The attempt's number.
    pub number: u64,
    /// The step.
    pub step: Step,
    /// How it ended.
    pub end: Result<Told, Fault>,
}

/// What there is to tell of a step that was done.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Told {
    /// The last commit in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Where the image is, or how the program ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// The length of all files of the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long the log was held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// Where the log was ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// The checksum of the label of each image: it stands for every file that the label lists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Role, String>,
}

/// Why a step could not be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// The code that the command ends with.
    pub code: SnapshotCode,
    /// What went wrong: exit status or signal, and the last lines of output.
    pub why: String,
}

/// What a member asks with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Poll {
    /// The member.
    pub node: String,
    /// Its epoch.
    pub epoch: u64,
    /// Attempts of which it still has anything: images, programs, what is kept for the set.
    pub holding: Vec<Held>,
    /// Steps that it is at; it need not be told again.
    pub doing: Option<(u64, Vec<Step>)>,
    /// How its steps ended.
    pub said: Vec<Said>,
    /// Of snapshots whose clones read what this member keeps: who they are, by UID. None while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readers: Option<BTreeMap<String, Vec<String>>>,
}

/// An attempt that a member has something of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Which.
    pub attempt: Attempt,
    /// It was told that the set is complete: only what is kept for the set is left.
    pub complete: bool,
    /// What it was told could not be done a moment ago; it need not be told again yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resting: bool,
}

/// How a snapshot stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Under way.
    Running,
    /// Complete: it can be restored.
    Complete,
    /// Failed by itself.
    Failed,
    /// Ended on demand.
    Aborted,
    /// Was complete or not, and is deleted: nothing is kept for it any more.
    Deleted,
    /// Was complete, and its time to be kept is over: nothing is kept for it any more, so it may not be whole. Its images
    /// are what they were.
    Expired,
}

impl State {
    /// Whether every member had done its part, so that the images are a set, whatever is kept for it by now.
    #[must_use]
    pub const fn has_images(self) -> bool {
        matches!(self, State::Complete | State::Expired)
    }
}

/// What of a member's store is in a set: images of its store up to one commit, of its log up to the cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// The last commit in the store's image.
    pub store: u64,
    /// The last commit in the log's image: the set is the state after it.
    pub cut: u64,
}

/// What went wrong at a member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The member's id; none if it is the coordinator's own finding.
    pub node: Option<String>,
    /// Its role, if it is one role's trouble.
    pub role: Option<Role>,
    /// What went wrong.
    pub why: String,
}

/// A snapshot, from its intent to its end. It is saved before anything that rests on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What was decided.
    pub intent: Intent,
    /// How it stands.
    pub state: State,
    /// When it ended.
    pub ended_ns: Option<u64>,
    /// The cut of each member that has a log.
    pub cuts: BTreeMap<String, Cut>,
    /// Bytes in the images of each member.
    pub bytes: BTreeMap<String, u64>,
    /// How long each member that has a log held it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_ms: BTreeMap<String, u64>,
    /// The checksums of the labels of each member's images. One of an earlier version says none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, BTreeMap<Role, String>>,
    /// Why it failed.
    pub code: Option<SnapshotCode>,
    /// What went wrong where.
    pub failures: Vec<Failure>,
}

impl Record {
    /// Nanoseconds since the epoch, of which the set is, or a little later: the earliest cut. A store without a commit has
    /// none that counts; where all are such it is when the snapshot began.
    #[must_use]
    pub fn point_ns(&self) -> u64 {
        let cuts = self.cuts.values().map(|cut| cut.cut).filter(|cut| *cut > 0);
        cuts.min().unwrap_or(self.intent.started_ns)
    }

    /// Why it is no set that is kept, where no failure says that: it was whole, for shorter than somebody took to look.
    #[must_use]
    pub fn expired(&self) -> Option<&'static str> {
        const WHY: &str = "it was complete, and its time to be kept, which counts from its beginning, is over: what it needs in \
                           the block stores may be gone";
        (self.state == State::Expired).then_some(WHY)
    }

    /// What the operator does about its failure. None where no server failed: it was ended on demand, or with the
    /// coordinator, and that is said already.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        let code = self.code?;
        let at_a_server = self.failures.iter().any(|failure| failure.node.is_some());
        (at_a_server || code != SnapshotCode::Unknown).then(|| code.advice())
    }
}

/// What of a phase a server has still to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Left {
    /// What people call the server.
    pub server: String,
    /// For which of its roles; none if it is for all of them.
    pub role: Option<Role>,
}

/// What the clocks show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Milliseconds of a clock that is never set.
    pub steady_ms: u64,
    /// Nanoseconds since the epoch.
    pub wall_ns: u64,
}

/// The phases of an attempt, each of which begins when all members have done the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is the step of the same name; copies are images of log servers")]
pub enum Phase {
    Ready,
    Hold,
    Storage,
    Tlog,
    Copies,
    Release,
    Coord,
    Label,
    Run,
}

impl Phase {
    /// In order.
    pub const ALL: [Phase; 9] = [
        Phase::Ready,
        Phase::Hold,
        Phase::Storage,
        Phase::Tlog,
        Phase::Copies,
        Phase::Release,
        Phase::Coord,
        Phase::Label,
        Phase::Run,
    ];

    /// What a node has to do in it.
    #[must_use]
    pub fn steps(self, node: &Node) -> Vec<Step> {
        let has = |role: Role| node.roles.contains(&role);
        let only = |step: Step, wanted: bool| if wanted { vec![step] } else { Vec::new() };
        match self {
            Phase::Ready => vec![Step::Ready],
            Phase::Hold => only(Step::Hold, has(Role::Storage) || has(Role::Tlog)),
            Phase::Storage => only(Step::Image(Role::Storage), has(Role::Storage)),
            Phase::Tlog => only(Step::Image(Role::Tlog), has(Role::Tlog) && !node.keeps_copies()),
            // Copies have what is durable, so what the logs end with is in them from then on.
            Phase::Copies => only(Step::Image(Role::Tlog), node.keeps_copies()),
            Phase::Release => only(Step::Release, has(Role::Storage) || has(Role::Tlog)),
            Phase::Coord => only(Step::Image(Role::Coord), has(Role::Coord)),
            Phase::Label => vec![Step::Label],
            Phase::Run => Role::ALL.into_iter().filter(|role| has(*role)).map(Step::Run).collect(),
        }
    }

    /// How the command ends if a step of this phase does not end at this node, or its member does not answer.
    #[must_use]
    pub fn code(self, node: &Node, step: Step) -> SnapshotCode {
        match (self, step) {
            (Phase::Ready, _) => SnapshotCode::NotFullyRecovered,
            (Phase::Hold, _) => SnapshotCode::DisableTlogPopFailed,
            (Phase::Release, _) => SnapshotCode::EnableTlogPopFailed,
            (_, Step::Image(role) | Step::Run(role)) => role_code(role),
            _ => node.roles.first().map_or(SnapshotCode::Unknown, |role| role_code(*role)),
        }
    }

    /// How long it may take.
    #[must_use]
    pub const fn within_ms(self, run_ms: u64) -> u64 {
        match self {
            Phase::Ready | Phase::Coord => 60_000,
            Phase::Hold | Phase::Release => 10_000,
            Phase::Storage | Phase::Tlog | Phase::Copies => 30_000,
            // Files that nobody has summed before are read once.
            Phase::Label => 3_600_000,
            // The member has its own limit; this one is for a member that is gone.
            Phase::Run => run_ms + 30_000,
        }
    }
}

/// The code of a role whose image or program failed.
#[must_use]
pub const fn role_code(role: Role) -> SnapshotCode {
    match role {
        Role::Storage => SnapshotCode::StorageFailed,
        Role::Tlog => SnapshotCode::TlogFailed,
        Role::Coord => SnapshotCode::CoordFailed,
    }
}

impl Step {
    /// The role that it concerns, if it is one.
    #[must_use]
    pub const fn role(self) -> Option<Role> {
        match self {
            Step::Image(role) | Step::Run(role) => Some(role),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record() -> Record {
        let node = Node {
            id: "0190".to_owned(),
            name: "store".to_owned(),
            address: "10.0.0.1:8444".to_owned(),
            epoch: 3,
            roles: vec![Role::Storage, Role::Tlog],
            copies: Vec::new(),
        };
        let uid = "c50263df28be44ebb596f5c2a849adbb".parse().unwrap();
        let intent = Intent {
            attempt: Attempt { uid, number: 7 },
            cluster: "c1".to_owned(),
            program: "/bin/snap".to_owned(),
            arguments: vec!["two words".to_owned(), String::new()],
            nodes: vec![node],
            started_ns: 8,
            keep_until_ns: Some(9),
            hold_ms: 30_000,
            run_ms: 300_000,
            ended: BTreeMap::new(),
        };
        let failure = Failure {
            node: Some("0190".to_owned()),
            role: Some(Role::Tlog),
            why: "exited with 3".to_owned(),
        };
        Record {
            intent,
            state: State::Failed,
            ended_ns: Some(10),
            cuts: BTreeMap::from([("0190".to_owned(), Cut { store: 5, cut: 6 })]),
            bytes: BTreeMap::from([("0190".to_owned(), 11)]),
            held_ms: BTreeMap::from([("0190".to_owned(), 12)]),
            labels: BTreeMap::new(),
            code: Some(SnapshotCode::TlogFailed),
            failures: vec![failure],
        }
    }

    /// What is saved and what travels, a line each.
    fn lines() -> String {
        let record = record();
        let (intent, attempt) = (record.intent.clone(), record.intent.attempt.clone());
        let steps = vec![Step::Ready, Step::Hold, Step::Image(Role::Coord), Step::Release, Step::Label];
        let what = What::Do(Box::new(intent), [&steps[..], &[Step::Run(Role::Storage)]].concat());
        let finish = What::Finish { complete: true };
        let orders = [what, finish].map(|what| Order { attempt: attempt.clone(), epoch: 3, what });
        let fault = Fault { code: SnapshotCode::StorageFailed, why: "no room".to_owned() };
        let note = "exited with 0".to_owned();
        let told = Told { version: Some(6), note, bytes: Some(11), held_ms: Some(12), ..Told::default() };
        let said = [
            (Step::Image(Role::Tlog), Ok(told)),
            (Step::Label, Ok(Told::default())),
            (Step::Hold, Err(fault)),
        ];
        let poll = Poll {
            node: "0190".to_owned(),
            epoch: 3,
            holding: vec![Held { attempt, complete: false, resting: true }],
            doing: Some((7, steps)),
            said: said.map(|(step, end)| Said { number: 7, step, end }).to_vec(),
            readers: Some(BTreeMap::from([("c502".to_owned(), vec!["a clone".to_owned()])])),
        };
        let text =
            [serde_json::to_string(&record), serde_json::to_string(&poll), serde_json::to_string(&orders)];
        let again: Record = serde_json::from_str(text[0].as_ref().unwrap()).unwrap();
        assert_eq!(again, record);
        assert_eq!(serde_json::from_str::<Poll>(text[1].as_ref().unwrap()).unwrap(), poll);
        assert_eq!(serde_json::from_str::<[Order; 2]>(text[2].as_ref().unwrap()).unwrap(), orders);
        text.map(|line| line.unwrap() + "\n").concat()
    }

    #[test]
    fn what_is_saved_and_what_travels_keeps_its_form() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/protocol-1.json");
        if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
            std::fs::write(golden, lines()).unwrap();
        }
        assert_eq!(lines(), std::fs::read_to_string(golden).unwrap());
    }

    #[test]
    fn what_log_servers_are_told_keeps_its_form_and_is_not_told_to_others() {
        let mut intent = record().intent;
        let far = Node {
            id: "0191".to_owned(),
            name: "far".to_owned(),
            address: "10.0.0.2:8446".to_owned(),
            epoch: 2,
            roles: vec![Role::Tlog],
            copies: vec!["0190".to_owned()],
        };
        assert!(far.keeps_copies() && !intent.nodes[0].keeps_copies());
        assert_eq!(Phase::Copies.steps(&far), [Step::Image(Role::Tlog)]);
        assert!(Phase::Tlog.steps(&far).is_empty() && Phase::Copies.steps(&intent.nodes[0]).is_empty());
        intent.nodes.push(far);
        let ended = Ended { segment: 4, length: 500 };
        intent.ended.insert("0190".to_owned(), ended);
        let told = Told { ended: Some(ended), ..Told::default() };
        let text = serde_json::to_string(&(&intent.nodes[1], &intent.ended, &told)).unwrap();
        let golden = r#"[{"id":"0191","name":"far","address":"10.0.0.2:8446","epoch":2,"roles":["tlog"],"copies":["0190"]},{"0190":{"segment":4,"length":500}},{"ended":{"segment":4,"length":500}}]"#;
        assert_eq!(text, golden);
        let again: Intent = serde_json::from_str(&serde_json::to_string(&intent).unwrap()).unwrap();
        assert_eq!(again, intent);
    }

    #[test]
    fn a_store_without_a_commit_does_not_make_a_set_one_of_1970() {
        let cut = |id: &str, cut| (id.to_owned(), Cut { store: cut, cut });
        let point =
            |cuts: &[(String, Cut)]| Record { cuts: cuts.iter().cloned().collect(), ..record() }.point_ns();
        assert_eq!(point(&[cut("0190", 6), cut("0191", 0), cut("0192", 5)]), 5);
        assert_eq!(point(&[cut("0190", 0)]), 8, "it began then");
        assert_eq!(point(&[]), 8);
    }

    #[test]
    fn only_of_a_set_that_was_whole_it_is_said_that_its_time_is_over() {
        let expired = Record { state: State::Expired, failures: Vec::new(), ..record() };
        assert!(expired.expired().unwrap().contains("its time to be kept"));
        assert_eq!(record().expired(), None);
    }

    #[test]
    fn checksums_of_labels_keep_their_form() {
        let labels = BTreeMap::from([(Role::Tlog, "cd".to_owned()), (Role::Storage, "ab".to_owned())]);
        let told = Told { labels: labels.clone(), ..Told::default() };
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(text, r#"{"labels":{"storage":"ab","tlog":"cd"}}"#);
        assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told);
        let record = Record { labels: BTreeMap::from([("0190".to_owned(), labels)]), ..record() };
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(value["labels"]["0190"]["tlog"], "cd");
        assert_eq!(serde_json::from_value::<Record>(value).unwrap(), record);
    }
}
