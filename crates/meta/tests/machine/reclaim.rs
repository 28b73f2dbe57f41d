//! What clients say that they have open, after a restart and under a new session.

use super::*;

#[test]
fn a_file_that_is_reclaimed_after_a_restart_outlives_its_unlink() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let file = attr(server.call(1, 1, create(Ino::ROOT, "a", true)).1.unwrap()).ino;
    assert!(server.open(2, hello(2)).is_none());
    server.frame(1, ToServer::SharedAck);
    let other = welcome(server.durable()).unwrap().session;
    let mut server = Server::start(engine, START_NS + SECOND, false);
    server.open(3, resume(2, other, Version::ZERO)).unwrap();
    server.call(3, 1, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    server.run(Event::Tick);
    server.open(2, resume(1, session, Version::ZERO)).unwrap();
    server.frame(2, ToServer::Reclaim { opens: vec![(file, 1)] });
    server.run(Event::Tick);
    server.run(Event::Tick);
    assert_eq!(attr(server.call(2, 3, Request::GetAttr { ino: file }).1.unwrap()).nlink, 0);
    server.call(2, 4, Request::Close { ino: file, count: 1 }).1.unwrap();
    server.run(Event::Tick);
    assert!(server.call(2, 5, Request::GetAttr { ino: file }).1.is_err());
}

#[test]
fn a_close_that_comes_again_after_a_restart_closes_the_file() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let file = attr(server.call(1, 1, create(Ino::ROOT, "a", true)).1.unwrap()).ino;
    // The answer is lost on its way, so the client still counts the file as open.
    let close = Request::Close { ino: file, count: 1 };
    server.call(1, 2, close.clone()).1.unwrap();
    assert_eq!(server.call(1, 2, close.clone()).1, Ok(Reply::Done));
    let now_ns = server.now_ns;
    server.core.stop(now_ns).unwrap();
    let mut server = Server::start(engine, START_NS + SECOND, false);
    server.open(2, resume(1, session, Version::ZERO)).unwrap();
    server.frame(2, ToServer::Reclaim { opens: vec![(file, 1)] });
    assert_eq!(server.call(2, 2, close).1, Ok(Reply::Done));
    server.call(2, 3, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    server.run(Event::Tick);
    server.run(Event::Tick);
    assert_eq!(server.call(2, 4, Request::GetAttr { ino: file }).1, Err(Errno::ENOENT));
    assert_eq!(server.core.machine.figures().opens, 0);
}

#[test]
fn a_file_that_is_open_under_a_new_session_outlives_its_unlink() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let one = server.open(1, hello(1)).unwrap().session;
    let file = attr(server.call(1, 1, create(Ino::ROOT, "a", true)).1.unwrap()).ino;
    server.run(Event::Gone(ConnId(1)));
    server.now_ns += 61 * SECOND;
    server.run(Event::Tick);
    let over = server.run(Event::Hello(ConnId(2), Box::new(resume(1, one, Version::ZERO))));
    assert!(over.iter().any(|effect| matches!(effect, Effect::Answer(_, Err(_)))), "{over:?}");
    server.open(3, hello(11)).unwrap();
    server.frame(3, ToServer::Reclaim { opens: vec![(file, 1)] });
    server.frame(3, ToServer::Reclaim { opens: vec![(file, 1)] });
    server.call(3, 2, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    server.run(Event::Tick);
    assert_eq!(attr(server.call(3, 3, Request::GetAttr { ino: file }).1.unwrap()).nlink, 0);
    server.call(3, 4, Request::Close { ino: file, count: 1 }).1.unwrap();
    server.run(Event::Tick);
    assert_eq!(server.call(3, 5, Request::GetAttr { ino: file }).1, Err(Errno::ENOENT));
    assert_eq!(server.core.machine.figures().opens, 0, "what comes twice is counted once");
}

#[test]
fn opens_that_a_session_has_made_already_are_not_counted_twice() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let one = server.open(1, hello(1)).unwrap().session;
    let file = attr(server.call(1, 1, create(Ino::ROOT, "a", true)).1.unwrap()).ino;
    // The first mount had nothing to tell; after a reconnect it tells what it has opened since.
    server.open(2, resume(1, one, Version::ZERO)).unwrap();
    server.frame(2, ToServer::Reclaim { opens: vec![(file, 1)] });
    server.call(2, 2, Request::Close { ino: file, count: 1 }).1.unwrap();
    assert_eq!(server.core.machine.figures().opens, 0);
}

/// A server that was restarted with an unlinked file that session 1 has open.
fn with_an_open_orphan() -> (Server, SessionId, Ino) {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let session = server.open(1, hello(1)).unwrap().session;
    let file = attr(server.call(1, 1, create(Ino::ROOT, "a", true)).1.unwrap()).ino;
    server.call(1, 2, Request::Unlink { parent: Ino::ROOT, name: name("a") }).1.unwrap();
    (Server::start(engine, START_NS + SECOND, false), session, file)
}

#[test]
fn a_session_that_is_back_at_the_last_moment_can_still_say_what_it_has_open() {
    let (mut server, session, file) = with_an_open_orphan();
    server.now_ns = START_NS + 60 * SECOND;
    server.open(2, resume(1, session, Version::ZERO)).unwrap();
    // What it sent waits behind ticks.
    server.now_ns += 2 * SECOND;
    server.run(Event::Tick);
    server.run(Event::Tick);
    server.frame(2, ToServer::Reclaim { opens: vec![(file, 1)] });
    server.run(Event::Tick);
    server.run(Event::Tick);
    assert_eq!(attr(server.call(2, 3, Request::GetAttr { ino: file }).1.unwrap()).nlink, 0);
}

#[test]
fn a_session_that_never_says_what_it_has_open_does_not_keep_files_for_ever() {
    let (mut server, session, file) = with_an_open_orphan();
    server.open(2, resume(1, session, Version::ZERO)).unwrap();
    let exists = |server: &Server| {
        let index = server.core.machine.volumes().next().unwrap().index;
        let key = chronofs_namespace::rows::INODE.live_key(index, &file.0.to_be_bytes());
        server.core.engine.view().get(&key).unwrap().is_some()
    };
    server.now_ns = START_NS + 120 * SECOND;
    server.run(Event::Tick);
    assert!(exists(&server));
    server.now_ns += 2 * SECOND;
    server.run(Event::Tick);
    server.run(Event::Tick);
    assert!(!exists(&server));
}

#[test]
fn files_of_a_session_that_does_not_come_back_go_after_it() {
    let (mut server, session, file) = with_an_open_orphan();
    server.now_ns = START_NS + 62 * SECOND;
    server.run(Event::Tick);
    let effects = server.run(Event::Hello(ConnId(2), Box::new(resume(1, session, Version::ZERO))));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Answer(_, Err(_)))), "{effects:?}");
    server.run(Event::Tick);
    server.run(Event::Tick);
    server.open(3, hello(3)).unwrap();
    assert_eq!(server.call(3, 1, Request::GetAttr { ino: file }).1, Err(Errno::ENOENT));
}
