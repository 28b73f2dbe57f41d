//! What no protected instant can see goes, and nothing else.

use super::*;
use chronofs_core::VolumeIndex;
use chronofs_namespace::resolve;

const INDEX: VolumeIndex = VolumeIndex(1);
/// Longer than the retention of the test's volume.
const LATER: u64 = 7200 * SECOND;

fn reads(server: &Server) -> SharedView {
    SharedView(server.core.engine.view())
}

fn past_rows(server: &Server) -> usize {
    server.core.engine.view().scan(&[0x80], &[0x81], usize::MAX).unwrap().len()
}

fn seen_at(server: &Server, at: Version, path: &str) -> bool {
    resolve(&reads(server), INDEX, Some(at), Ino::ROOT, path.as_bytes()).unwrap().is_some()
}

/// A server with a file that was there at the instant which comes along, and is not any more.
fn with_a_past(engine: Arc<dyn Engine>) -> (Server, Version) {
    let mut server = Server::start(engine, START_NS, false);
    server.open(1, hello(1)).unwrap();
    server.call(1, 1, create(Ino::ROOT, "before", false)).1.unwrap();
    server.call(1, 2, create(Ino::ROOT, "a", false)).1.unwrap();
    server.durable();
    let at = server.core.engine.applied();
    server.call(1, 3, create(Ino::ROOT, "b", false)).1.unwrap();
    server.call(1, 4, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    server.call(1, 5, Request::Unlink { parent: Ino::ROOT, name: name("b") }).1.unwrap();
    server.durable();
    (server, at)
}

/// A server on which so many files of 4,000 slices were written and unlinked, and how many rows of the past it has.
fn with_a_long_past(files: u64) -> (Server, usize) {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    for n in 0..files {
        let (id, file) = (10 * n + 1, format!("f{n}"));
        let ino = attr(server.call(1, id, create(Ino::ROOT, &file, false)).1.unwrap()).ino;
        server.call(1, id + 1, sparse(session, ino, 0..4_000)).1.unwrap();
        server.call(1, id + 2, Request::Unlink { parent: Ino::ROOT, name: name(&file) }).1.unwrap();
    }
    for _ in 0..5 {
        server.run(Event::Tick);
        server.durable();
    }
    let rows = past_rows(&server);
    (server, rows)
}

#[test]
fn the_past_beyond_the_window_goes_but_what_a_mount_sees() {
    let (mut server, at) = with_a_past(Arc::new(Memory::default()));
    assert!(server.open(2, Hello { at: Some(at), ..hello(2) }).is_some());
    let (before, later) = (past_rows(&server), server.now_ns + LATER);
    for _ in 0..3 {
        server.run(Event::Tick);
        server.durable();
    }
    assert_eq!(past_rows(&server), before, "all of it is in the window");
    server.now_ns = later;
    for _ in 0..3 {
        server.run(Event::Tick);
    }
    assert_eq!(past_rows(&server), before, "the horizon has moved and is not durable");
    server.durable();
    server.run(Event::Tick);
    // Of the past, the mount sees the entry and inode of "a", and the root's row as it was.
    assert_eq!(past_rows(&server), 3);
    assert!(seen_at(&server, at, "a") && seen_at(&server, at, "before") && !seen_at(&server, at, "b"));
    assert_eq!(server.core.machine.figures().forgotten, (before - 3) as u64);

    server.frame(2, ToServer::Goodbye);
    server.run(Event::Tick);
    assert_eq!(past_rows(&server), 3, "the end of the lease is not durable");
    for _ in 0..2 {
        server.durable();
        server.run(Event::Tick);
    }
    assert_eq!(past_rows(&server), 0);
    let faults = chronofs_namespace::verify(&reads(&server)).unwrap();
    assert!(faults.is_empty(), "{faults:?}");
    let refused = server.run(Event::Hello(ConnId(3), Box::new(Hello { at: Some(at), ..hello(3) })));
    assert!(refused.iter().any(|effect| matches!(effect, Effect::Answer(_, Err(_)))), "{refused:?}");
}

#[test]
fn a_long_past_goes_in_steps_and_after_a_restart_too() {
    let (mut server, before) = with_a_long_past(3);
    assert!(before > 12_000, "{before}");
    server.now_ns += LATER;
    // The horizon moves, and that becomes durable.
    server.run(Event::Tick);
    server.durable();
    for n in 1..3 {
        server.run(Event::Tick);
        server.durable();
        assert_eq!(past_rows(&server), before - n * 2048);
    }
    let now_ns = server.now_ns + SECOND;
    let mut server = Server::start(server.core.engine.clone(), now_ns, false);
    for _ in 0..8 {
        server.durable();
        server.run(Event::Tick);
    }
    assert_eq!(past_rows(&server), 0);
}

#[test]
fn beside_clients_the_past_goes_slowly_until_more_has_left_the_window() {
    let (mut server, before) = with_a_long_past(2);
    server.now_ns += LATER;
    server.busy_tick(1);
    for n in 1..4 {
        server.busy_tick(1);
        assert_eq!(past_rows(&server), before - n * 256);
    }
    // The horizon moves again, and that becomes durable.
    server.now_ns += 120 * SECOND;
    server.busy_tick(1);
    let left = past_rows(&server);
    server.busy_tick(1);
    assert_eq!(past_rows(&server), left - 2048);
}

/// The inode's row of then is there still, and the directory's is not: half a past is none.
#[test]
fn an_answer_that_rests_on_what_is_forgotten_says_that_the_inode_is_gone() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let mut make_dir = create(Ino::ROOT, "d", false);
    if let Request::Create { node, .. } = &mut make_dir {
        *node = chronofs_core::ops::NewNode::Dir;
    }
    let dir = attr(server.call(1, 1, make_dir.clone()).1.unwrap()).ino;
    server.call(1, 2, create(dir, "f", false)).1.unwrap();
    server.call(1, 3, Request::Unlink { parent: dir, name: name("f") }).1.unwrap();
    server.now_ns += LATER;
    server.call(1, 4, Request::Rmdir { parent: Ino::ROOT, name: name("d") }).1.unwrap();
    server.call(1, 5, create(Ino::ROOT, "gone", false)).1.unwrap();
    server.call(1, 6, Request::Unlink { parent: Ino::ROOT, name: name("gone") }).1.unwrap();
    let again = |server: &mut Server, id, request| {
        server.core.stop(server.now_ns).unwrap();
        *server = Server::start(server.core.engine.clone(), server.now_ns + SECOND, false);
        server.open(1, resume(1, session, server.core.engine.applied())).unwrap();
        server.call(1, id, request).1
    };
    again(&mut server, 5, create(Ino::ROOT, "gone", false)).expect("as it was");
    for _ in 0..4 {
        server.run(Event::Tick);
        server.durable();
    }
    assert!(server.core.machine.figures().forgotten > 0);
    assert_eq!(again(&mut server, 1, make_dir), Err(Errno::ENOENT));
}

#[test]
fn a_damaged_past_is_left_alone_and_the_server_goes_on() {
    let (server, _) = with_a_past(Arc::new(Memory::default()));
    let engine = server.core.engine.clone();
    let key = chronofs_namespace::rows::SLICE;
    let key = [&[0x80, key.number, 0, 0, 0, 1][..], &[1; 30]].concat();
    let batch = Batch(vec![Change::Put(key.into(), bytes::Bytes::from_static(b"rubbish"))]);
    let version = Version(engine.applied().0 + 1);
    engine.apply(vec![Commit { version, tag: bytes::Bytes::new(), batch }]).unwrap();
    let before = past_rows(&server);
    let mut server = Server::start(engine, server.now_ns + LATER, false);
    let mut warned = 0;
    for _ in 0..5 {
        server.durable();
        let effects = server.run(Event::Tick);
        warned += effects.iter().filter(|effect| matches!(effect, Effect::Warn(_))).count();
    }
    assert_eq!((warned, past_rows(&server)), (1, before), "a step is taken whole or not at all");
    server.open(9, hello(1)).expect("the server serves");
}
