//! What lies among the pins of a block store is obeyed, and whatever is not known of it is in the way of forgetting and
//! deleting.

use super::collect::{INDEX, jobs, with_an_object_over};
use super::*;
use chronofs_namespace::SystemError;
use uuid::Uuid;

fn pin(server: &Server, id: u128, at: Version) -> Pin {
    let row = &server.core.machine.volume(INDEX).unwrap().row;
    Pin::new(common::VOLUME, row.incarnation, Uuid::from_u128(id), at, at)
}

fn kept(server: &Server) -> Vec<u128> {
    let kept = chronofs_namespace::list_kept(&SharedView(server.core.engine.view())).unwrap();
    kept.into_iter().map(|(_, id, _)| id.as_u128()).collect()
}

/// The metadata is put back from a copy of just now: rows that were made since are not there.
fn put_back(server: &mut Server) {
    server.durable();
    server.start_again(Config::default());
    server.run(Event::Tick);
}

fn past_rows(server: &Server) -> usize {
    server.core.engine.view().scan(&[0x80], &[0x81], usize::MAX).unwrap().len()
}

/// Nothing goes, for a reason that says so; then pins can be read, and it goes.
fn nothing_goes_because(server: &mut Server, object: chronofs_core::ObjectId, why: &str) {
    assert_eq!(server.pass(20_000, true), [], "{why}");
    let (waits, rows) = (server.collection().waits.unwrap_or_default(), past_rows(server));
    assert!(waits.contains(why), "{waits}");
    assert!(rows > 0 && server.core.machine.figures().forgotten == 0, "nothing is forgotten either");
    server.pins = Some(Ok(Vec::new()));
    assert_eq!(server.pass(2_000, true), [object]);
    assert_eq!(server.collection().waits, None);
}

#[test]
fn before_the_pins_are_read_nothing_goes() {
    let (mut server, object) = with_an_object_over();
    server.forget_pins();
    nothing_goes_because(&mut server, object, "not read yet");
}

#[test]
fn when_the_pins_cannot_be_read_nothing_goes() {
    let (mut server, object) = with_an_object_over();
    server.pins = Some(Err("the bucket answers 403".to_owned()));
    nothing_goes_because(&mut server, object, "the bucket answers 403");
}

#[test]
fn when_the_pins_were_read_long_ago_nothing_goes() {
    let (mut server, object) = with_an_object_over();
    server.run(Event::Tick);
    server.pins = None;
    nothing_goes_because(&mut server, object, "minutes ago");
}

#[test]
fn what_is_condemned_stays_while_pins_cannot_be_read() {
    let (mut server, object) = with_an_object_over();
    while server.tally().retired.count == 0 {
        server.pass(20, true);
    }
    // It is condemned, and not durable yet.
    for _ in 0..60 {
        server.now_ns += 20 * SECOND;
        assert_eq!(jobs(server.run(Event::Tick)), []);
    }
    assert_eq!(server.tally().condemned.count, 1);
    server.pins = Some(Err("the bucket answers 403".to_owned()));
    assert_eq!(server.pass(200, true), []);
    server.pins = Some(Ok(Vec::new()));
    assert_eq!(server.pass(200, true), [object]);
}

#[test]
fn a_pin_that_only_the_store_has_is_obeyed_and_taken_into_the_state() {
    let (mut server, object) = with_an_object_over();
    // The second object shows.
    let at = server.core.machine.last();
    let ino =
        chronofs_namespace::resolve(&SharedView(server.core.engine.view()), INDEX, None, Ino::ROOT, b"a");
    let held = chronofs_core::ObjectId { n: 6, ..object };
    server.publish(4, ino.unwrap().unwrap().0, chronofs_core::ObjectId { n: 7, ..object });
    put_back(&mut server);
    server.pins = Some(Ok(vec![pin(&server, 1, at)]));
    assert_eq!(server.pass(20_000, true), [object], "only what the instant does not show");
    assert_eq!(kept(&server), [1]);
    // A listing that leaves it out says nothing, and neither does a restart.
    server.pins = Some(Ok(Vec::new()));
    assert_eq!(server.pass(5_000, true), []);
    server.durable();
    let mut server = Server::start(server.core.engine.clone(), server.now_ns + SECOND, false);
    assert_eq!(server.pass(5_000, true), []);
    let released = server.core.decide(server.now_ns, |machine, group| {
        machine.release_instants(group, common::VOLUME, Uuid::from_u128(1))?.unwrap();
        Ok(())
    });
    released.unwrap();
    assert_eq!(server.pass(2_000, true), [held]);
    server.verify();
}

#[test]
fn what_was_read_before_a_release_does_not_bring_the_pin_back() {
    let (mut server, _) = with_an_object_over();
    let pin = pin(&server, 1, server.core.machine.last());
    put_back(&mut server);
    server.pins = Some(Ok(vec![pin.clone()]));
    server.run(Event::Tick);
    assert_eq!(kept(&server), [1]);
    let read = PinsRead { volume: common::VOLUME, began_ns: server.now_ns, found: Ok(vec![pin]) };
    server.now_ns += SECOND;
    let released = server.core.decide(server.now_ns, |machine, group| {
        machine.release_instants(group, common::VOLUME, Uuid::from_u128(1))?.unwrap();
        Ok(())
    });
    released.unwrap();
    server.run(Event::Pins(Box::new(read)));
    assert_eq!(kept(&server), [0; 0]);
}

#[test]
fn a_span_keeps_what_shows_anywhere_in_it() {
    let (mut server, object) = with_an_object_over();
    let from = Version(server.core.machine.last().0);
    let ino =
        chronofs_namespace::resolve(&SharedView(server.core.engine.view()), INDEX, None, Ino::ROOT, b"a");
    let ino = ino.unwrap().unwrap().0;
    for n in 7..10 {
        server.publish(n, ino, chronofs_core::ObjectId { n, ..object });
    }
    let mut pin = pin(&server, 1, from);
    pin.to = Version(server.core.machine.last().0 - 1);
    put_back(&mut server);
    server.pins = Some(Ok(vec![pin]));
    assert_eq!(server.pass(20_000, true), [object], "6, 7 and 8 show in the span, and 9 shows now");
    assert_eq!(server.tally().held.count, 4);
}

#[test]
fn a_pin_that_this_metadata_never_had_is_of_a_newer_copy_and_stops_everything() {
    for change in [
        |pin: &mut Pin| pin.incarnation += 1,
        |pin: &mut Pin| pin.to = Version(pin.to.0 + 1_000_000 * SECOND),
    ] {
        let (mut server, object) = with_an_object_over();
        let last = server.core.machine.last();
        let mut pin = pin(&server, 1, last);
        change(&mut pin);
        server.pins = Some(Ok(vec![pin]));
        nothing_goes_because(&mut server, object, "old copy");
        assert_eq!(kept(&server), [0; 0]);
    }
}

/// Yesterday's copy of the metadata is started. Meanwhile the timeline that is lost had gone on, and pinned an instant.
#[test]
fn a_pin_of_a_lost_timeline_is_never_taken_for_one_of_this_however_often_the_old_copy_is_started() {
    let (mut server, object) = with_an_object_over();
    server.durable();
    let copied_ns = server.now_ns;
    server.now_ns += 24 * 3600 * SECOND;
    let lost = Version(copied_ns + 23 * 3600 * SECOND);
    for found in [None, Some(Err("the bucket answers 403".to_owned())), None] {
        server.forget_pins();
        server.pins = found;
        server.pass(100, true);
        assert!(server.core.machine.last() > lost, "the commits of this start lie behind that instant");
    }
    for _ in 0..3 {
        server.pins = Some(Ok(vec![pin(&server, 1, lost)]));
        assert_eq!(server.pass(20_000, true), []);
        let waits = server.collection().waits.unwrap_or_default();
        assert!(waits.contains("old copy"), "{waits}");
        assert_eq!(kept(&server), [0; 0]);
        server.forget_pins();
    }
    // Somebody has seen to it: this copy is what counts from now on.
    server.pins = Some(Ok(Vec::new()));
    assert_eq!(server.pass(20_000, true), [object]);
    server.verify();
}

#[test]
fn a_volume_that_is_made_anew_beside_the_pins_of_its_lost_metadata_is_an_old_copy_too() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.durable();
    let lost = Version(START_NS - SECOND);
    for _ in 0..3 {
        server.forget_pins();
        server.pins = Some(Ok(vec![pin(&server, 1, lost)]));
        server.pass(1000, true);
        let waits = server.collection().waits.unwrap_or_default();
        assert!(waits.contains("old copy"), "{waits}");
    }
}

#[test]
fn a_pin_that_says_something_else_than_the_state_stops_everything() {
    let (mut server, _) = with_an_object_over();
    let last = server.core.machine.last();
    put_back(&mut server);
    server.pins = Some(Ok(vec![pin(&server, 1, last)]));
    server.run(Event::Tick);
    assert_eq!(kept(&server), [1]);
    server.pins = Some(Ok(vec![pin(&server, 1, Version(last.0 - 1))]));
    assert_eq!(server.pass(20_000, true), []);
    assert!(server.collection().waits.unwrap().contains("other instants"));
}

#[test]
fn what_is_over_and_what_earlier_incarnations_stored_is_in_nobodys_way() {
    let (mut server, object) = with_an_object_over();
    let last = server.core.machine.last();
    let mut over = pin(&server, 1, last);
    over.ends = Some(Version(START_NS + SECOND));
    server.now_ns += 2 * SECOND;
    server.pins = Some(Ok(vec![over]));
    assert_eq!(server.pass(20_000, true), [object]);
    assert_eq!(kept(&server), [0; 0]);
}

#[test]
fn while_pins_cannot_be_read_nothing_is_moved_out_of_its_object() {
    let (mut server, object) = with_an_object_over();
    let packs = |server: &mut Server| {
        (0..5).any(|_| {
            server.durable();
            server.now_ns += SECOND;
            server.run(Event::Tick).iter().any(|effect| matches!(effect, Effect::Pack(_)))
        })
    };
    server.pins = Some(Err("the bucket answers 403".to_owned()));
    let poor = chronofs_namespace::PoorObject { id: object, size: 100_000, named: 10, rows: 1 };
    server.run(Event::Poor(common::VOLUME, vec![poor]));
    assert!(!packs(&mut server));
    server.pins = Some(Ok(Vec::new()));
    assert!(packs(&mut server));
}

/// A commit in the window has a version above all that was lost: the next start would take that for what had survived,
/// and clients would let go of what they are still to replay.
#[test]
fn nothing_is_pinned_or_released_while_what_a_power_cut_took_is_collected() {
    let (server, _) = with_an_object_over();
    let at = server.core.machine.last();
    let engine = server.core.engine.clone();
    let mut server = Server::start(engine.clone(), server.now_ns + SECOND, true);
    assert!(server.core.machine.figures().recovering);
    let (before, id) = (engine.view().version(), Uuid::from_u128(1));
    let mut said = Vec::new();
    let decided = server.core.decide(server.now_ns, |machine, group| {
        said.push(machine.keep_instants(group, (common::VOLUME, id), (at, at), None, "a snapshot")?);
        said.push(machine.release_instants(group, common::VOLUME, id)?);
        Ok(())
    });
    decided.unwrap();
    assert_eq!(engine.view().version(), before);
    assert!(said.iter().all(|said| matches!(said, Err(SystemError::NotNow))), "{said:?}");
}

/// What a full disk refuses leaves no trace: nothing waits for a version that no commit has.
#[test]
fn on_a_full_disk_nothing_is_pinned_or_released_and_nothing_waits_for_that() {
    let engine = Arc::new(Full::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let (last, id) = (server.core.machine.last(), Uuid::from_u128(1));
    engine.1.store(true, Ordering::SeqCst);
    let mut said = Vec::new();
    for pins in [true, false] {
        let decided = server.core.decide(server.now_ns, |machine, group| {
            said.push(match pins {
                true => {
                    machine.keep_instants(group, (common::VOLUME, id), (last, last), None, "a snapshot")?
                }
                false => machine.release_instants(group, common::VOLUME, id)?,
            });
            Ok(())
        });
        drop(decided);
        assert_eq!(server.core.machine.last(), engine.applied(), "no commit has a later version");
    }
    assert!(said.iter().any(Result::is_err), "{said:?}");
}

#[test]
fn a_pin_of_the_store_that_lasts_longer_than_the_state_says_is_obeyed_for_so_long() {
    let (mut server, _) = with_an_object_over();
    let (at, ends) = (server.core.machine.last(), Version(server.now_ns + 3600 * SECOND));
    let ask = |server: &mut Server, ends| {
        let (of, span) = ((common::VOLUME, Uuid::from_u128(1)), (at, at));
        let kept = server.core.decide(server.now_ns, |machine, group| {
            machine.keep_instants(group, of, span, ends, "a snapshot")?.unwrap();
            Ok(())
        });
        kept.unwrap();
    };
    ask(&mut server, Some(ends));
    server.pins = Some(Ok(vec![pin(&server, 1, at)]));
    server.run(Event::Tick);
    server.pass(7200, true);
    assert_eq!(
        (kept(&server), server.collection().waits),
        (vec![1], None),
        "the store says that it is a pin"
    );
    server.verify();
}
