//! A sudden fall of a volume's files: the instant before is held.

use super::collect::INDEX;
use super::*;
use bytes::Bytes;
use chronofs_core::Retention;

fn held(server: &Server) -> Vec<(Version, String)> {
    let kept = chronofs_namespace::list_kept(&SharedView(server.core.engine.view())).unwrap();
    kept.into_iter().map(|(_, _, row)| (row.at, row.note)).collect()
}

/// So many seconds pass; gives what was warned of.
fn pass(server: &mut Server, seconds: u64) -> Vec<String> {
    let mut told = Vec::new();
    for _ in 0..seconds {
        server.now_ns += SECOND;
        server.durable();
        for effect in server.run(Event::Tick) {
            if let Effect::Warn(text) = effect {
                told.push(text);
            }
        }
    }
    told
}

#[test]
fn when_more_than_half_of_the_files_are_removed_the_instant_before_can_be_mounted_for_ever() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.start_again(Config { brake_from: 4, ..Config::default() });
    server.open(1, hello(1)).unwrap();
    for n in 0..10 {
        server.call(1, 1 + n, create(Ino::ROOT, &format!("f{n}"), false)).1.unwrap();
    }
    assert!(pass(&mut server, 3).is_empty());
    let before = server.core.machine.last();
    let remove = |server: &mut Server, n: u64| {
        let unlink = Request::Unlink { parent: Ino::ROOT, name: name(&format!("f{n}")) };
        server.call(1, 20 + n, unlink).1.unwrap();
    };
    (0..4).for_each(|n| remove(&mut server, n));
    assert!(pass(&mut server, 3).is_empty() && held(&server).is_empty(), "less than half");
    (4..7).for_each(|n| remove(&mut server, n));
    let told = pass(&mut server, 3);
    assert_eq!(told.len(), 1, "{told:?}");
    let (at, note) = held(&server).remove(0);
    assert!(at <= before && before.0 - at.0 <= 3 * SECOND, "{at} is the last count before {before}");
    assert!(note.starts_with("brake: "), "{note}");
    assert!(told[0].contains("of 11 files 7") && told[0].contains("configure delete hold"), "{told:?}");
    assert_eq!(server.collection().held_at, Some(at.to_string()));
    // The window passes, and a restart.
    server.durable();
    server.now_ns += 100 * 86_400 * SECOND;
    let mut server = Server::start(server.core.engine.clone(), server.now_ns, false);
    assert!(pass(&mut server, 3).is_empty());
    assert_eq!(server.collection().held_at, Some(at.to_string()), "it is shown until somebody lets it go");
    let row = server.core.machine.volume(INDEX).unwrap().row.clone();
    assert!(row.spec.retention != Retention::Forever && row.horizon > at, "{row:?}");
    let past = server.open(2, Hello { at: Some(at), ..hello(2) });
    assert_eq!(past.expect("it can be mounted").at, Some(at));
    server.verify();
}

#[test]
fn of_many_falls_a_few_are_held_and_all_are_told() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.start_again(Config { brake_from: 4, ..Config::default() });
    server.open(1, hello(1)).unwrap();
    let mut id = 0;
    for round in 1..=6 {
        for n in 0..12 {
            id += 1;
            server.call(1, id, create(Ino::ROOT, &format!("f{n}"), false)).1.unwrap();
        }
        pass(&mut server, 3);
        for n in 0..12 {
            id += 1;
            server
                .call(1, id, Request::Unlink { parent: Ino::ROOT, name: name(&format!("f{n}")) })
                .1
                .unwrap();
        }
        let told = pass(&mut server, 3);
        assert_eq!(told.len(), 1, "{round}: {told:?}");
        let is_held = told[0].contains("configure delete hold");
        assert_eq!((is_held, held(&server).len()), (round <= 4, round.min(4)), "{round}: {told:?}");
        assert!(is_held || told[0].contains("configure create hold --volume"), "{told:?}");
    }
    server.verify();
}

#[test]
fn what_is_held_is_shown_until_it_is_let_go_also_without_retention_and_when_the_volume_is_deleted() {
    for deleted in [false, true] {
        let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
        server.open(1, hello(1)).unwrap();
        server.call(1, 1, create(Ino::ROOT, "f", false)).1.unwrap();
        server.frame(1, ToServer::Goodbye);
        let (at, id) = (server.core.machine.last(), uuid::Uuid::from_u128(1));
        let note = format!("brake: {} of 9 files 8 were removed within an hour", uuid::Uuid::from_u128(9));
        let kept = server.core.decide(server.now_ns, |machine, group| {
            machine.keep_instants(group, (common::VOLUME, id), (at, at), None, &note)?.unwrap();
            Ok(())
        });
        kept.unwrap();
        let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
        match deleted {
            true => assignment.volumes[0].deleted = true,
            false => assignment.volumes[0].spec.retention = Retention::None,
        }
        server.run(Event::Assignment(Box::new(assignment)));
        pass(&mut server, 3);
        assert_eq!(server.core.machine.volume(INDEX).unwrap().row.is_live(), !deleted);
        assert_eq!(server.collection().held_at, Some(at.to_string()));
        let released = server.core.decide(server.now_ns, |machine, group| {
            machine.release_instants(group, common::VOLUME, id)?.unwrap();
            Ok(())
        });
        released.unwrap();
        pass(&mut server, 3);
        assert_eq!(server.collection().held_at, None);
        server.verify();
    }
}

#[test]
fn counters_that_cannot_be_read_are_no_fall() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    server.start_again(Config { brake_from: 4, ..Config::default() });
    server.open(1, hello(1)).unwrap();
    for n in 0..10 {
        server.call(1, 1 + n, create(Ino::ROOT, &format!("f{n}"), false)).1.unwrap();
    }
    assert!(pass(&mut server, 3).is_empty());
    let key = chronofs_namespace::rows::COUNTERS.live_key(INDEX, &[]);
    let sound = engine.view().get(&key).unwrap().unwrap();
    let put = |value: Bytes| {
        let version = Version(engine.applied().0 + 1);
        let batch = Batch(vec![Change::Put(key.clone(), value)]);
        engine.apply(vec![Commit { version, tag: Vec::new().into(), batch }]).unwrap();
    };
    put(Bytes::from_static(&[1, 0xff]));
    assert_eq!((pass(&mut server, 10), held(&server)), (Vec::new(), Vec::new()));
    put(sound);
    assert_eq!((pass(&mut server, 10), held(&server)), (Vec::new(), Vec::new()));
    server.verify();
}

#[test]
fn a_fall_on_a_full_disk_is_held_when_there_is_room() {
    let engine = Arc::new(Full(Memory::default(), false.into(), 0.into()));
    let mut server = Server::start(engine.clone(), START_NS, false);
    server.start_again(Config { brake_from: 4, ..Config::default() });
    server.open(1, hello(1)).unwrap();
    for n in 0..10 {
        server.call(1, 1 + n, create(Ino::ROOT, &format!("f{n}"), false)).1.unwrap();
    }
    pass(&mut server, 3);
    for n in 0..9 {
        let unlink = Request::Unlink { parent: Ino::ROOT, name: name(&format!("f{n}")) };
        server.call(1, 20 + n, unlink).1.unwrap();
    }
    let falls = |told: Vec<String>| told.iter().filter(|text| text.contains("of 11 files 9")).count();
    engine.1.store(true, Ordering::SeqCst);
    assert_eq!((falls(pass(&mut server, 3)), held(&server).len()), (0, 0));
    engine.1.store(false, Ordering::SeqCst);
    assert_eq!((falls(pass(&mut server, 3)), held(&server).len()), (1, 1));
    server.verify();
}
