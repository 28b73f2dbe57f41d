//! A store that was put back from images of it, beside its source or in its place: it deletes nothing of that, gives other
//! numbers, and has no instants of the time between.

use super::collect::{INDEX, with_an_object_over};
use super::*;
use chronofs_core::ObjectId;
use chronofs_engine::memory::Memory;
use chronofs_engine::{Batch, Change, Commit, Reads};
use chronofs_meta::machine::tag::{self, Tag};
use chronofs_namespace::{Judged, SystemError, check_instant, judge, restored};
use std::collections::BTreeSet;
use uuid::Uuid;

/// The clone of a server, as of its last commit, with what was drawn for it.
pub fn clone_of(source: &Server, accepted: bool, draw: [u64; 2]) -> (Server, Version, Version) {
    let engine = source.core.engine.clone();
    let cut = engine.applied();
    let now_ns = source.now_ns + 600 * SECOND;
    let version = cut.next(now_ns);
    let batch = restored(&SharedView(engine.view()), cut, version, draw).unwrap();
    engine.apply(vec![Commit { version, tag: tag::encode(&Tag::System), batch }]).unwrap();
    let restored = (!accepted).then(|| "disk snapshot c5".to_owned());
    let config = Config { boot: now_ns, restored, began_apart: Some(version), ..Config::default() };
    (Server::start_as(engine, now_ns, false, config), cut, version)
}

fn row(server: &Server) -> chronofs_namespace::rows::Volume {
    server.core.machine.volume(INDEX).unwrap().row.clone()
}

fn judged(server: &Server, object: ObjectId) -> Judged {
    judge(&SharedView(server.core.engine.view()), INDEX, &row(server), object, Version::MAX).unwrap()
}

#[test]
fn nothing_is_forgotten_or_deleted_until_the_restore_is_accepted() {
    let (source, object) = with_an_object_over();
    let (mut server, ..) = clone_of(&source, false, [4, 5]);
    assert_eq!(server.pass(20_000, true), []);
    assert_eq!((server.core.machine.figures().forgotten, server.tally().retired.count), (0, 0));
    let waits = server.collection().waits.unwrap_or_default();
    assert!(waits.contains("disk snapshot c5") && waits.contains("restore accept"), "{waits}");
    server.core.machine.accept_restore();
    // What is forgotten then loses its name, and is let go without being deleted: its source may need it.
    assert_eq!(server.pass(20_000, true), []);
    assert_eq!(server.collection().waits, None);
    assert!(server.core.machine.figures().forgotten > 0);
    let tally = server.tally();
    assert_eq!((tally.held.count, tally.retired.count, tally.condemned.count), (1, 0, 0), "{tally:?}");
    assert!(matches!(judged(&server, object), Judged::Quarantined(_)));
    assert_eq!(judged(&server, ObjectId { n: 6, ..object }), Judged::Known, "a row names it");
    server.verify();
}

#[test]
fn what_the_clone_stores_itself_it_deletes_itself() {
    let (source, object) = with_an_object_over();
    let (mut server, ..) = clone_of(&source, true, [4, 5]);
    let welcome = server.open(1, hello(9)).unwrap();
    let own = |n| ObjectId { incarnation: welcome.incarnation, session: welcome.session, n };
    assert_eq!(own(0).incarnation, 5);
    let ino = attr(server.call(1, 11, create(Ino::ROOT, "b", false)).1.unwrap()).ino;
    assert_eq!(ino.0 >> 48, 5, "an inode of its own");
    for (id, n) in [(12, 1), (13, 2)] {
        server.publish(id, ino, own(n));
    }
    server.frame(1, ToServer::Goodbye);
    assert_eq!(server.pass(20_000, true), [own(1)]);
    // A source as that one lists what the clone has stored, and leaves it alone; the other way round as well.
    assert!(matches!(judged(&with_an_object_over().0, own(2)), Judged::Quarantined(_)));
    let later = ObjectId { n: 900_000, ..object };
    assert!(matches!(judged(&server, later), Judged::Quarantined(_)), "stored by the source after the cut");
    server.verify();
}

#[test]
fn who_was_connected_to_the_source_is_not_connected_and_two_clones_name_nothing_alike() {
    let (_, object) = with_an_object_over();
    let clones = [[4, 5 << 20], [4, 6 << 20]].map(|draw| {
        // Each of a source of its own, which are the same.
        let (source, _) = with_an_object_over();
        clone_of(&source, true, draw).0
    });
    let welcomes = clones.map(|mut server| {
        let refused = server.run(Event::Hello(ConnId(7), Box::new(resume(1, object.session, Version::ZERO))));
        let over = |effect: &Effect| matches!(effect, Effect::Answer(_, Err(_)));
        assert!(refused.iter().any(over), "{refused:?}");
        server.open(1, hello(1)).unwrap()
    });
    assert_eq!(welcomes[0].incarnation, welcomes[1].incarnation, "drawn alike");
    assert_ne!(welcomes[0].session, welcomes[1].session);
    assert!(welcomes.iter().all(|welcome| welcome.session > object.session));
}

#[test]
fn instants_between_the_cut_and_the_restore_are_refused_with_both_ends() {
    let (source, _) = with_an_object_over();
    let (mut server, cut, began) = clone_of(&source, true, [4, 5]);
    server.open(1, hello(1)).unwrap();
    server.call(1, 1, create(Ino::ROOT, "z", false)).1.unwrap();
    let now = server.core.engine.applied();
    for at in [cut, began] {
        assert_eq!(check_instant(&row(&server), at, now), Ok(()), "{at}");
    }
    let lost = Version(cut.0 + 1_000_000_000);
    let refused = check_instant(&row(&server), lost, now);
    assert_eq!(refused, Err(SystemError::Gap { at: lost, before: cut, after: began }));
}

#[test]
fn a_volume_that_is_made_in_a_clone_is_named_apart_from_the_one_that_its_source_may_have_made_meanwhile() {
    let (source, _) = with_an_object_over();
    let (mut server, ..) = clone_of(&source, true, [4, 5 << 20]);
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    let mut other = assignment.volumes[0].clone();
    (other.spec.id, other.spec.name) = (Uuid::from_u128(77), "other".to_owned());
    assignment.volumes.push(other);
    server.run(Event::Assignment(Box::new(assignment)));
    let made = server.core.machine.volumes().find(|volume| volume.id() == Uuid::from_u128(77)).unwrap();
    let (index, row) = (made.index, made.row.clone());
    assert!(row.incarnation > 0);
    let object = ObjectId { incarnation: 0, session: SessionId::SERVER, n: 0 };
    let view = SharedView(server.core.engine.view());
    for object in [object, ObjectId { incarnation: row.incarnation, ..object }] {
        let judged = judge(&view, index, &row, object, Version::MAX).unwrap();
        assert!(matches!(judged, Judged::Quarantined(_)), "{object}: {judged:?}");
    }
}

#[test]
fn no_volume_is_given_up_for_good_until_the_restore_is_accepted() {
    let (source, _) = with_an_object_over();
    let (mut server, ..) = clone_of(&source, false, [4, 5]);
    let given_up = |server: &Server| row(server).is_given_up();
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    (assignment.volumes[0].deleted, assignment.volumes[0].give_up_after_s) = (true, Some(0));
    let tell = |server: &mut Server| {
        server.run(Event::Assignment(Box::new(assignment.clone())));
        server.run(Event::Owner(true));
        server.run(Event::Tick);
    };
    tell(&mut server);
    assert!(!given_up(&server));
    server.core.machine.accept_restore();
    tell(&mut server);
    assert!(given_up(&server));
}

/// What a backup holds of a server.
struct Backup {
    rows: Batch,
    cut: Version,
}

fn backup_of(server: &Server) -> Backup {
    let view = server.core.engine.view();
    let rows = SharedView(view.clone()).scan(&[], &[0xff; 64], usize::MAX).unwrap();
    let rows = Batch(rows.into_iter().map(|(key, row)| Change::Put(key, row)).collect());
    Backup { rows, cut: view.version() }
}

/// A server on what the backup holds, in the place of one that was at `now_ns`.
fn in_place(backup: &Backup, now_ns: u64, draw: [u64; 2]) -> Server {
    let (engine, tag) = (Arc::new(Memory::default()), tag::encode(&Tag::System));
    let batch = backup.rows.clone();
    engine.apply(vec![Commit { version: backup.cut, tag: tag.clone(), batch }]).unwrap();
    let now_ns = now_ns + SECOND;
    let version = backup.cut.next(now_ns);
    let batch = restored(&SharedView(engine.view()), backup.cut, version, draw).unwrap();
    engine.apply(vec![Commit { version, tag, batch }]).unwrap();
    let config = Config { boot: now_ns, restored: Some("c5".to_owned()), ..Config::default() };
    Server::start_as(engine, now_ns, false, config)
}

/// The next client does something: the numbers that it was given, each of which must be a new one.
fn numbers(server: &mut Server, n: u128) -> (SessionId, Vec<Ino>) {
    let conn = 10 + n as u64;
    for before in [1, conn - 1] {
        server.frame(before, ToServer::Goodbye);
    }
    let welcome = server.open(conn, hello(n)).unwrap();
    let made = |name: u64| create(Ino::ROOT, &format!("{n}-{name}"), false);
    let inos: Vec<Ino> = (1..6).map(|id| attr(server.call(conn, id, made(id)).1.unwrap()).ino).collect();
    (welcome.session, inos)
}

/// The same backup is put back in place again and again, with whatever was drawn: what was given since the cut means the same for
/// ever, and all that the backup held is there until somebody accepts the restore.
#[test]
fn restored_in_place_from_an_older_copy_no_number_is_ever_given_to_something_else() {
    for same_incarnation in [false, true] {
        let (mut source, object) = with_an_object_over();
        let before = numbers(&mut source, 20);
        let backup = backup_of(&source);
        let mut given = vec![before, numbers(&mut source, 21)];
        let lost = given[1].1[0];
        let mut server = source;
        for n in 0..4u64 {
            let now_ns = server.now_ns;
            let draw = if same_incarnation { 4 } else { n };
            server = in_place(&backup, now_ns, [draw, 0x9e37_79b9_7f4a_7c15 >> (4 * n)]);
            // Who was connected to the lost one is not connected, and means no file of this one.
            let old = resume(21, given[1].0, Version::ZERO);
            let refused = server.run(Event::Hello(ConnId(7), Box::new(old)));
            assert!(refused.iter().any(|effect| matches!(effect, Effect::Answer(_, Err(_)))), "{refused:?}");
            given.push(numbers(&mut server, 30 + u128::from(n)));
            let gone = server.call(40 + n, 9, Request::GetAttr { ino: lost }).1;
            assert_eq!(gone, Err(Errno::ENOENT));
            // All that the backup held is there, and nothing goes before the word.
            assert_eq!(judged(&server, ObjectId { n: 6, ..object }), Judged::Known);
            for ino in &given[0].1 {
                server.call(40 + n, 10 + ino.counter(), Request::GetAttr { ino: *ino }).1.unwrap();
            }
            assert_eq!(server.pass(2_000, true), []);
            assert_eq!(server.core.machine.figures().forgotten, 0);
            // What the lost one stored since is nobody's garbage.
            let since = ObjectId { session: given[1].0, n: 0, ..object };
            assert!(matches!(judged(&server, since), Judged::Quarantined(_)));
            server.verify();
        }
        let sessions: BTreeSet<SessionId> = given.iter().map(|(session, _)| *session).collect();
        let inos: BTreeSet<Ino> = given.iter().flat_map(|(_, inos)| inos.iter().copied()).collect();
        assert_eq!(sessions.len(), given.len(), "a session was given twice: {given:?}");
        assert_eq!(inos.len(), 5 * given.len(), "an inode number was given twice: {given:?}");
    }
}

/// Restores draw their incarnations: the second of one backup may get a lower one than the first, or the same.
#[test]
fn pins_of_a_time_that_a_restore_lost_stop_no_deletion_and_those_of_before_the_copy_are_obeyed() {
    for (first, second) in [(9, 4), (4, 4), (4, 9)] {
        let (source, object) = with_an_object_over();
        let kept_at = source.core.machine.last();
        let backup = backup_of(&source);
        let pin = |server: &Server, id: u128, at: Version| {
            Pin::new(common::VOLUME, row(server).incarnation, Uuid::from_u128(id), at, at)
        };
        let of_source = pin(&source, 1, kept_at);
        let mut lost = in_place(&backup, source.now_ns, [first, 5]);
        numbers(&mut lost, 30);
        let of_lost = pin(&lost, 2, lost.core.machine.last());
        let mut server = in_place(&backup, lost.now_ns + 3600 * SECOND, [second, 7 << 20]);
        server.core.machine.accept_restore();
        server.pins = Some(Ok(vec![of_source.clone(), of_lost.clone()]));
        assert_eq!(server.pass(20_000, true), [], "what was stored before is never deleted");
        assert_eq!(server.collection().waits, None, "and nothing waits ({first}, {second})");
        assert_eq!(judged(&server, ObjectId { n: 6, ..object }), Judged::Known);
        // What it has stored itself goes as ever.
        let welcome = server.open(1, hello(70)).unwrap();
        let own = |n| ObjectId { incarnation: welcome.incarnation, session: welcome.session, n };
        let ino = attr(server.call(1, 11, create(Ino::ROOT, "own", false)).1.unwrap()).ino;
        for (id, n) in [(12, 1), (13, 2)] {
            server.publish(id, ino, own(n));
        }
        server.frame(1, ToServer::Goodbye);
        assert_eq!(server.pass(20_000, true), [own(1)]);
        // One of what is still to come here shows that this is an old copy.
        let later = pin(&server, 3, Version(server.core.machine.last().0 + 1_000_000 * SECOND));
        server.pins = Some(Ok(vec![later]));
        server.pass(100, true);
        assert!(server.collection().waits.unwrap_or_default().contains("old copy"));
        server.verify();
    }
}

#[test]
fn a_store_that_begins_anew_makes_its_volumes_empty_and_the_objects_of_the_lost_ones_stay() {
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    assignment.volumes[0].born_ns = START_NS;
    let engine = Arc::new(Memory::default());
    let (version, now_ns) = (Version(START_NS + SECOND), START_NS + 2 * SECOND);
    let batch = restored(&SharedView(engine.view()), Version::ZERO, version, [4, 5]).unwrap();
    engine.apply(vec![Commit { version, tag: tag::encode(&Tag::System), batch }]).unwrap();
    let config = Config {
        boot: now_ns,
        restored: Some("nothing".to_owned()),
        began_apart: Some(version),
        ..Config::default()
    };
    let mut server = Server::start_assigned(engine, now_ns, false, config, assignment);
    let made = row(&server);
    assert_eq!((made.incarnation, &made.gaps[..]), (1 + 6, &[(Version::ZERO, made.born)][..]));
    let lost = ObjectId { incarnation: 0, session: SessionId(1), n: 0 };
    for object in [lost, ObjectId { incarnation: 7, ..lost }, ObjectId { session: SessionId::SERVER, ..lost }]
    {
        assert!(matches!(judged(&server, object), Judged::Quarantined(_)), "{object:?}");
    }
    assert_eq!(server.pass(20_000, true), []);
    assert!(server.collection().waits.unwrap_or_default().contains("restored from nothing"));
    server.verify();
}

#[test]
fn nothing_is_made_in_the_place_of_a_volume_that_was_served_before_but_where_all_numbers_are_others() {
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    let mut other = assignment.volumes[0].clone();
    (other.spec.id, other.spec.name, other.born_ns) = (Uuid::from_u128(0x77), "other".to_owned(), START_NS);
    assignment.revision += 1;
    assignment.volumes.push(other.clone());
    let assigned = |server: &mut Server, assignment: &chronofs_wire::admin::Assignment| -> Vec<String> {
        let mut effects = server.run(Event::Assignment(Box::new(assignment.clone())));
        effects.extend(server.run(Event::Tick));
        effects.extend(server.run(Event::Tick));
        let said = effects.into_iter().filter_map(|effect| match effect {
            Effect::Warn(said) => Some(said),
            _ => None,
        });
        said.collect()
    };
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let said = assigned(&mut server, &assignment);
    assert!(said.len() == 1 && said[0].contains("this folder has nothing of it"), "{said:?}");
    assert!(!said[0].contains("  "), "{said:?}");
    assert_eq!(server.core.machine.missing()[&other.spec.id], said[0]);
    assert_eq!(server.core.machine.volumes().count(), 1);
    assert_eq!(assigned(&mut server, &assignment), [""; 0], "it is said once");
    let (mut restored, ..) = clone_of(&server, true, [4, 5]);
    // One that was born since has numbers that were drawn with that restore.
    for volume in &mut assignment.volumes {
        volume.born_ns = restored.now_ns + SECOND;
    }
    assert_eq!(assigned(&mut restored, &assignment).len(), 1);
    assignment.volumes[1] = other.clone();
    assert_eq!(assigned(&mut restored, &assignment), [""; 0]);
    assert!(restored.core.machine.missing().is_empty());
    let made = restored.core.machine.volumes().find(|volume| volume.id() == other.spec.id).unwrap();
    assert!(made.row.incarnation > 0);
    // Mounts that had files of the lost one hear that it was put back.
    assert_eq!(made.row.gaps, [(Version::ZERO, made.row.born)]);
    // It is not missing any more where the admin server does not want it.
    let before = common::assignment(std::path::Path::new("/nowhere"));
    server.run(Event::Assignment(Box::new(before)));
    server.run(Event::Tick);
    assert!(server.core.machine.missing().is_empty());
}
