//! What the coordinator decides, step by step.

use super::*;
use crate::protocol::Said;

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
    assert_eq!((expired.state, expired.intent.attempt.uid), (State::Expired, uid('a')));
    assert_eq!(unheard.expire(at(105), is_there), None);
    let (orders, _) = unheard.poll(at(106), &poll(&['a'], Some(&[])));
    assert!(matches!(orders[..], [Order { what: What::Finish { complete: false }, .. }]), "{orders:?}");
}

#[test]
fn a_set_that_expired_stays_known_until_somebody_deletes_it_and_its_uid_stays_used() {
    let mut coordinator = with_a_set();
    coordinator.expire(at(101), |_| false).unwrap();
    // Also after the next start.
    let saved = coordinator.records().cloned().collect();
    let (mut coordinator, closed) = Coordinator::new(saved, at(102));
    assert_eq!(closed, Vec::new());
    let known = coordinator.record(&uid('a')).unwrap().clone();
    assert!(known.state == State::Expired && known.state.has_images(), "{known:?}");
    let command = (known.intent.program.clone(), known.intent.arguments.clone());
    let again = Request { program: command.0, arguments: command.1, ..request('a') };
    let refused = coordinator.start(at(103), again, two().to_vec()).unwrap_err();
    assert_eq!(refused.code, SnapshotCode::Duplicate);
    assert!(refused.why.contains("its time to be kept is over"), "{refused}");
    coordinator.poll(at(104), &poll(&['a'], Some(&[])));
    assert_eq!(coordinator.strangers(), BTreeMap::new(), "it is known");
    assert_eq!(coordinator.delete(&uid('a')).unwrap().state, State::Deleted);
    assert!(!State::Deleted.has_images());
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
    assert_eq!(coordinator.expire(at(101), |_| true), None, "its owner has not said that no clone reads it");
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

/// A metadata server, and the admin server.
fn two() -> [Node; 2] {
    let store = super::super::tests::record().intent.nodes.remove(0);
    let (id, name) = ("admin".to_owned(), "admin".to_owned());
    let admin = Node { id, name, epoch: 1, roles: vec![Role::Coord], ..store.clone() };
    [store, admin]
}

fn request(digit: char) -> Request {
    Request {
        uid: uid(digit),
        program: "/bin/snap".to_owned(),
        arguments: Vec::new(),
        keep_until_ns: None,
        run_ms: 300_000,
        silent_ms: 60_000,
        cluster: "c1".to_owned(),
    }
}

/// Of which a snapshot has begun at 0.
fn begun() -> Coordinator {
    let mut coordinator = Coordinator::new(Vec::new(), at(0)).0;
    coordinator.start(at(0), request('e'), two().to_vec()).unwrap();
    coordinator
}

type Ends<'a> = &'a [(Step, Result<Told, Fault>)];

/// A member of the snapshot asks.
fn says(
    coordinator: &mut Coordinator,
    now: Now,
    node: &Node,
    ends: Ends<'_>,
) -> (Vec<Order>, Option<Record>) {
    let number = coordinator.record(&uid('e')).unwrap().intent.attempt.number;
    let said = ends.iter().cloned().map(|(step, end)| Said { number, step, end }).collect();
    let poll = Poll { node: node.id.clone(), epoch: node.epoch, said, ..poll(&[], None) };
    coordinator.poll(now, &poll)
}

fn done(step: Step) -> (Step, Result<Told, Fault>) {
    (step, Ok(Told::default()))
}

fn failed(step: Step, code: SnapshotCode, why: &str) -> (Step, Result<Told, Fault>) {
    (step, Err(Fault { code, why: why.to_owned() }))
}

/// Whose members did all before this phase, at 1 s.
fn before(phase: Phase) -> Coordinator {
    let mut coordinator = begun();
    for earlier in Phase::ALL.into_iter().filter(|earlier| *earlier < phase) {
        for node in &two() {
            let ends: Vec<_> = earlier.steps(node).into_iter().map(done).collect();
            says(&mut coordinator, at(1), node, &ends);
        }
    }
    assert_eq!(coordinator.under_way().unwrap().1, phase);
    coordinator
}

fn whys(record: &Record) -> Vec<(Option<Role>, &str)> {
    record.failures.iter().map(|failure| (failure.role, failure.why.as_str())).collect()
}

#[test]
fn what_programs_of_other_servers_failed_with_is_said_too_under_the_code_of_the_first() {
    let [store, admin] = two();
    let storage = failed(Step::Run(Role::Storage), SnapshotCode::StorageFailed, "exited with 1");
    let tlog = failed(Step::Run(Role::Tlog), SnapshotCode::TlogFailed, "exited with 3");
    let coord = failed(Step::Run(Role::Coord), SnapshotCode::CoordFailed, "was killed by signal 9");

    let mut all = before(Phase::Run);
    let (orders, save) = says(&mut all, at(2), &store, std::slice::from_ref(&tlog));
    assert_eq!(save, None);
    // What has failed is not to be done again.
    let [Order { what: What::Do(_, steps), .. }] = &orders[..] else { panic!("{orders:?}") };
    assert_eq!(*steps, [Step::Run(Role::Storage)]);
    let left = Left { server: "store".to_owned(), role: Some(Role::Storage) };
    assert_eq!(all.left_to_do()[0], left);
    assert_eq!(says(&mut all, at(2), &admin, std::slice::from_ref(&coord)).1, None);
    // Everybody has answered, so nobody is waited for any longer.
    let record = says(&mut all, at(3), &store, &[storage.clone(), tlog.clone()]).1.unwrap();
    assert_eq!((record.state, record.code), (State::Failed, Some(SnapshotCode::TlogFailed)));
    let expected = [
        (Some(Role::Tlog), "exited with 3"),
        (Some(Role::Coord), "was killed by signal 9"),
        (Some(Role::Storage), "exited with 1"),
    ];
    assert_eq!(whys(&record), expected);

    // One that runs on is not waited for, and what is done elsewhere makes no set of it.
    let mut some = before(Phase::Run);
    says(&mut some, at(2), &store, &[storage.clone(), tlog]);
    assert_eq!(says(&mut some, at(3), &store, std::slice::from_ref(&storage)).1, None);
    assert_eq!(some.tick(at(3)), None);
    let record = some.tick(at(4)).unwrap();
    assert_eq!(whys(&record), [expected[2], expected[0]]);
    assert_eq!(record.code, Some(SnapshotCode::StorageFailed));
    let mut done_elsewhere = before(Phase::Run);
    says(&mut done_elsewhere, at(2), &admin, &[coord]);
    let ends = [Step::Run(Role::Storage), Step::Run(Role::Tlog)].map(done);
    let record = says(&mut done_elsewhere, at(2), &store, &ends).1.unwrap();
    assert_eq!((record.state, whys(&record)), (State::Failed, vec![expected[1]]));

    // Whoever ends it meanwhile ends what has failed.
    let mut aborted = before(Phase::Run);
    says(&mut aborted, at(2), &store, &[storage]);
    let record = aborted.abort(at(2), &uid('e')).unwrap();
    assert_eq!((record.state, whys(&record)), (State::Failed, vec![expected[2]]));
}

#[test]
fn before_programs_run_a_failure_ends_the_attempt_at_once_with_all_that_its_member_said() {
    let [store, _] = two();
    let mut coordinator = before(Phase::Storage);
    let ends = [
        failed(Step::Image(Role::Storage), SnapshotCode::StorageFailed, "no room"),
        failed(Step::Label, SnapshotCode::StorageFailed, "no room either"),
    ];
    let record = says(&mut coordinator, at(2), &store, &ends).1.unwrap();
    assert_eq!(whys(&record), [(Some(Role::Storage), "no room"), (None, "no room either")]);
    assert!(coordinator.under_way().is_none());
}

#[test]
fn a_member_that_is_needed_and_silent_for_too_long_fails_the_attempt() {
    let [store, admin] = two();
    let mut coordinator = before(Phase::Run);
    for second in 2..=60 {
        says(&mut coordinator, at(second), &admin, &[]);
        assert_eq!(coordinator.tick(at(second)), None, "at {second}");
    }
    let record = coordinator.tick(at(61)).unwrap();
    assert_eq!((record.state, record.code), (State::Failed, Some(SnapshotCode::WithRecovery)));
    assert_eq!(record.failures.len(), 1);
    assert_eq!(record.failures[0].node.as_ref(), Some(&store.id));
    assert!(record.failures[0].why.contains("heard of for 60 s"), "{:?}", record.failures);

    // A member whose program takes long asks on, and one that has done all may go.
    let mut healthy = before(Phase::Run);
    let ends = [Step::Run(Role::Storage), Step::Run(Role::Tlog)].map(done);
    says(&mut healthy, at(2), &store, &ends);
    for second in 2..=300 {
        if second % 50 == 0 {
            says(&mut healthy, at(second), &admin, &[]);
        }
        assert_eq!(healthy.tick(at(second)), None, "at {second}");
    }
}

#[test]
fn a_coordinator_that_stood_still_does_not_blame_the_members() {
    let mut coordinator = before(Phase::Run);
    assert_eq!(coordinator.tick(at(2)), None);
    // It was stopped, or its disk was slow.
    for second in 200..=259 {
        assert_eq!(coordinator.tick(at(second)), None, "at {second}");
    }
    let record = coordinator.tick(at(260)).unwrap();
    assert_eq!(record.failures.len(), 2, "{:?}", record.failures);
}

#[test]
fn what_is_not_done_in_time_is_said_of_all_with_the_code_of_its_role() {
    let [store, admin] = two();
    assert_eq!(Phase::Label.code(&store, Step::Label), SnapshotCode::StorageFailed);
    let far = Node { roles: vec![Role::Tlog], ..store.clone() };
    assert_eq!(Phase::Label.code(&far, Step::Label), SnapshotCode::TlogFailed);
    let late = |mut coordinator: Coordinator, members: &[Node]| {
        for second in 2.. {
            for node in members {
                says(&mut coordinator, at(second), node, &[]);
            }
            if let Some(record) = coordinator.tick(at(second)) {
                return record;
            }
        }
        unreachable!()
    };
    let mut label = before(Phase::Label);
    says(&mut label, at(1), &store, &[done(Step::Label)]);
    let record = late(label, &[store.clone(), admin.clone()]);
    assert_eq!((record.code, record.failures.len()), (Some(SnapshotCode::CoordFailed), 1));
    let record = late(before(Phase::Run), &[store, admin]);
    let roles: Vec<_> = record.failures.iter().map(|failure| failure.role).collect();
    assert_eq!(roles, [Some(Role::Storage), Some(Role::Tlog), Some(Role::Coord)]);
    assert_eq!(record.code, Some(SnapshotCode::StorageFailed));
}

#[test]
fn the_record_of_a_set_has_the_checksum_of_every_label() {
    let [store, admin] = two();
    let mut coordinator = before(Phase::Label);
    let labelled = |sums: &[(Role, &str)]| {
        let labels = sums.iter().map(|(role, sum)| (*role, (*sum).to_owned())).collect();
        (Step::Label, Ok(Told { bytes: Some(5), labels, ..Told::default() }))
    };
    says(&mut coordinator, at(1), &store, &[labelled(&[(Role::Storage, "ab"), (Role::Tlog, "cd")])]);
    says(&mut coordinator, at(1), &admin, &[labelled(&[(Role::Coord, "ef")])]);
    says(&mut coordinator, at(2), &store, &[Role::Storage, Role::Tlog].map(|role| done(Step::Run(role))));
    let (_, record) = says(&mut coordinator, at(2), &admin, &[done(Step::Run(Role::Coord))]);
    let record = record.unwrap();
    assert_eq!(record.state, State::Complete);
    let [of_store, of_admin] = [&store, &admin].map(|node| &record.labels[&node.id]);
    assert_eq!((of_store[&Role::Storage].as_str(), of_store[&Role::Tlog].as_str()), ("ab", "cd"));
    assert_eq!((of_admin[&Role::Coord].as_str(), record.bytes[&admin.id]), ("ef", 5));
}

#[test]
fn who_comes_second_hears_how_long_the_first_may_take_with_all_phases_that_follow() {
    let refusal = begun().start(at(5), request('f'), two().to_vec()).unwrap_err();
    assert_eq!(refusal.code, SnapshotCode::Busy);
    let words = "for 5 s, in phase Ready, for 4155 s more at the most, 55 s of them in this phase";
    assert!(refusal.why.contains(words), "{}", refusal.why);
}

#[test]
fn advice_about_the_program_is_given_only_where_a_server_failed() {
    let mut coordinator = begun();
    let running = coordinator.record(&uid('e')).unwrap().clone();
    let (_, closed) = Coordinator::new(vec![running], at(9));
    assert_eq!((closed[0].code, closed[0].advice()), (Some(SnapshotCode::Unknown), None));
    let aborted = coordinator.abort(at(9), &uid('e')).unwrap();
    assert_eq!((aborted.code, aborted.advice()), (Some(SnapshotCode::Unknown), None));
    let failed = super::super::tests::record();
    assert_eq!(failed.advice(), Some(SnapshotCode::TlogFailed.advice()));
}
