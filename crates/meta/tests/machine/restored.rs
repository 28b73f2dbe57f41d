//! A store that was put back from images of it, beside its source: it deletes nothing of that, gives other numbers, and has
//! no instants of the time between.

use super::collect::{INDEX, with_an_object_over};
use super::*;
use chronofs_core::ObjectId;
use chronofs_engine::Commit;
use chronofs_meta::machine::tag::{self, Tag};
use chronofs_namespace::{Judged, SystemError, check_instant, judge, restored};
use uuid::Uuid;

/// The clone of a server, as of its last commit, with what was drawn for it.
pub fn clone_of(source: &Server, accepted: bool, draw: [u64; 2]) -> (Server, Version, Version) {
    let engine = source.core.engine.clone();
    let cut = engine.applied();
    let now_ns = source.now_ns + 600 * SECOND;
    let version = cut.next(now_ns);
    let batch = restored(&SharedView(engine.view()), cut, version, draw).unwrap();
    engine.apply(vec![Commit { version, tag: tag::encode(&Tag::System), batch }]).unwrap();
    let restored = (!accepted).then(|| "c5".to_owned());
    let config = Config { boot: now_ns, restored, ..Config::default() };
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
