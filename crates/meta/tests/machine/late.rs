//! Calls that are replayed in the window for it, and when it is over.

use super::*;
use chronofs_core::ops::Replayed;

/// A server that lost power while sessions 1 and 2 were there, with files "a" and "b" in it. Session 2 is back on
/// connection 12, and the window in which replays have their place is open.
pub(super) fn in_the_window(engine: Arc<dyn Engine>) -> (Server, SessionId, [Ino; 2], Version) {
    let mut server = Server::start(engine.clone(), START_NS, false);
    let one = server.open(1, hello(1)).unwrap().session;
    assert!(server.open(2, hello(2)).is_none());
    server.frame(1, ToServer::SharedAck);
    let two = welcome(server.durable()).unwrap().session;
    let files = ["a", "b"].map(|name| create(Ino::ROOT, name, false));
    let mut id = 0;
    let files = files.map(|request| {
        id += 1;
        attr(server.call(1, id, request).1.unwrap()).ino
    });
    server.durable();
    let base = engine.applied();
    let mut server = Server::start(engine, START_NS + SECOND, true);
    assert!(server.open(12, resume(2, two, Version(base.0 + 40))).unwrap().replay);
    (server, one, files, base)
}

/// The same, and session 2 has sent what it had, and the window is over.
pub(super) fn after_the_window(engine: Arc<dyn Engine>) -> (Server, SessionId, [Ino; 2], Version) {
    let (mut server, one, files, base) = in_the_window(engine);
    server.frame(12, ToServer::Replay { calls: Vec::new(), end: true });
    end_window(&mut server);
    (server, one, files, base)
}

fn end_window(server: &mut Server) {
    server.now_ns += 11 * SECOND;
    server.run(Event::Tick);
    server.durable();
    assert!(!server.core.machine.figures().recovering);
}

#[test]
fn a_client_that_says_goodbye_in_the_window_has_its_calls_done() {
    let (mut server, one, _, base) = in_the_window(Arc::new(Full::default()));
    let applied = server.core.engine.applied();
    let lost = replayed(5, Version(base.0 + 20), create(Ino::ROOT, "lost", false), None);
    server.frame(12, ToServer::Replay { calls: vec![lost], end: true });
    server.frame(12, ToServer::Goodbye);
    assert_eq!(server.core.engine.applied(), applied, "a commit now would hide what session 1 may have lost");
    end_window(&mut server);
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    server.frame(11, ToServer::Replay { calls: Vec::new(), end: true });
    server.call(11, 9, Request::Lookup { parent: Ino::ROOT, name: name("lost") }).1.unwrap();
}

fn unlink(file: &str) -> Request {
    Request::Unlink { parent: Ino::ROOT, name: name(file) }
}

fn grow(ino: Ino) -> Request {
    let set = chronofs_core::SetAttr { size: Some(7), by_handle: true, ..chronofs_core::SetAttr::default() };
    Request::SetAttr { ino, set }
}

#[test]
fn calls_that_are_replayed_late_are_durable_before_their_client_hears_anything() {
    let (mut server, one, _, base) = after_the_window(Arc::new(Full::default()));
    assert!(server.open(11, resume(1, one, Version(base.0 + 40))).unwrap().replay);
    let told = |effects: &[Effect]| {
        let to_it = |effect: &Effect| matches!(effect, Effect::Send(ConnId(11), ToClient::Durable { .. }));
        effects.iter().any(to_it)
    };
    // The present is durable, and that is beyond the versions of old.
    server.call(12, 1, create(Ino::ROOT, "x", false)).1.unwrap();
    server.durable();
    let first = replayed(5, Version(base.0 + 20), create(Ino::ROOT, "late", false), None);
    let effects = server.frame(11, ToServer::Replay { calls: vec![first], end: false });
    assert!(!told(&effects) && !told(&server.run(Event::Tick)), "it has not sent everything");
    let second = replayed(6, Version(base.0 + 21), create(Ino::ROOT, "later", false), None);
    server.frame(11, ToServer::Replay { calls: vec![second], end: true });
    let engine = &server.core.engine;
    assert_eq!(engine.durable(), engine.applied());
    for file in ["late", "later"] {
        server.call(11, 9, Request::Lookup { parent: Ino::ROOT, name: name(file) }).1.unwrap();
    }
    server.durable();
    assert!(told(&server.run(Event::Tick)), "now it need not keep them");
}

#[test]
fn calls_that_are_replayed_late_do_not_undo_what_others_did_since() {
    let (mut server, one, [a, b], base) = after_the_window(Arc::new(Memory::default()));
    server.call(12, 1, unlink("a")).1.unwrap();
    let newer = attr(server.call(12, 2, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    assert_ne!(newer, a);
    server.call(12, 3, grow(b)).1.unwrap();
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    let late = |id, request| replayed(id, Version(base.0 + id), request, None);
    let set = chronofs_core::SetAttr { size: Some(0), by_handle: true, ..chronofs_core::SetAttr::default() };
    let calls = vec![
        late(10, unlink("a")),
        late(11, Request::SetAttr { ino: b, set }),
        late(12, create(Ino::ROOT, "mine", false)),
    ];
    let effects = server.frame(11, ToServer::Replay { calls, end: true });
    let parked = effects.iter().find_map(|effect| match effect {
        Effect::Send(ConnId(11), ToClient::Parked { calls }) => Some(calls.clone()),
        _ => None,
    });
    assert_eq!(parked, Some(vec![(10, Errno::ESTALE), (11, Errno::ESTALE)]));
    let look = |file| Request::Lookup { parent: Ino::ROOT, name: name(file) };
    assert_eq!(attr(server.call(11, 20, look("a")).1.unwrap()).ino, newer);
    assert_eq!(attr(server.call(11, 21, look("b")).1.unwrap()).size, 7);
    server.call(11, 22, look("mine")).1.unwrap();
}

#[test]
fn calls_that_are_replayed_late_are_done_when_nobody_else_changed_anything() {
    let (mut server, one, [_, b], base) = after_the_window(Arc::new(Memory::default()));
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    let late = |id, request| replayed(id, Version(base.0 + id), request, None);
    let calls = vec![late(10, unlink("a")), late(11, grow(b)), late(12, grow(b))];
    server.frame(11, ToServer::Replay { calls, end: true });
    assert_eq!(server.core.machine.figures().parked, 0);
    let look = |file| Request::Lookup { parent: Ino::ROOT, name: name(file) };
    assert_eq!(server.call(11, 20, look("a")).1, Err(Errno::ENOENT));
    assert_eq!(attr(server.call(11, 21, look("b")).1.unwrap()).size, 7);
}

#[test]
fn a_client_whose_late_calls_find_the_disk_full_is_asked_again() {
    let engine = Arc::new(Full::default());
    let (mut server, one, _, base) = after_the_window(engine.clone());
    let seen = Version(base.0 + 40);
    server.open(11, resume(1, one, seen)).unwrap();
    engine.1.store(true, Ordering::SeqCst);
    let late = replayed(10, Version(base.0 + 10), create(Ino::ROOT, "late", false), None);
    server.frame(11, ToServer::Replay { calls: vec![late.clone()], end: true });
    // What came behind it on the same connection is no sign that the client has nothing.
    let behind = Call { id: 20, acked: 0, caller: Caller::ROOT, request: Request::StatFs };
    server.run(Event::Call(ConnId(11), behind));
    engine.1.store(false, Ordering::SeqCst);
    assert!(server.open(13, resume(1, one, seen)).unwrap().replay);
    server.frame(13, ToServer::Replay { calls: vec![late], end: true });
    server.call(13, 21, Request::Lookup { parent: Ino::ROOT, name: name("late") }).1.unwrap();
}

#[test]
fn a_client_whose_calls_cannot_be_done_again_is_told_that_it_need_not_keep_them() {
    let (mut server, one, _, base) = after_the_window(Arc::new(Memory::default()));
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    let late = replayed(10, Version(base.0 + 10), create(Ino(77), "f", false), None);
    let effects = server.frame(11, ToServer::Replay { calls: vec![late], end: true });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Send(_, ToClient::Parked { .. }))));
    server.call(12, 1, create(Ino::ROOT, "x", false)).1.unwrap();
    server.durable();
    let told = |effect: &Effect| matches!(effect, Effect::Send(ConnId(11), ToClient::Durable { .. }));
    assert!(server.run(Event::Tick).iter().any(told));
}

#[test]
fn a_call_that_is_replayed_late_is_done_though_a_mark_was_written_meanwhile() {
    let (mut server, one, _, base) = after_the_window(Arc::new(Memory::default()));
    for id in 1..=3 {
        server.call(12, id, create(Ino::ROOT, &format!("x{id}"), false)).1.unwrap();
    }
    server.now_ns += 40 * SECOND;
    let marked = |effect: &Effect| matches!(effect, Effect::Mark(_));
    assert!(server.run(Event::Tick).iter().any(marked));
    assert!(server.open(11, resume(1, one, Version(base.0 + 40))).unwrap().replay);
    let late = replayed(10, Version(base.0 + 10), create(Ino::ROOT, "late", false), None);
    server.frame(11, ToServer::Replay { calls: vec![late], end: true });
    server.call(11, 20, Request::Lookup { parent: Ino::ROOT, name: name("late") }).1.unwrap();
}

/// The server that `after_the_window` leaves is restarted without a loss, after a mark and with more in its log than
/// session 1 has ever seen.
fn one_more_restart(server: &mut Server, engine: Arc<dyn Engine>) -> Server {
    server.call(12, 50, create(Ino::ROOT, "x", false)).1.unwrap();
    server.core.stop(server.now_ns).unwrap();
    Server::start(engine, server.now_ns + SECOND, false)
}

#[test]
fn a_client_that_missed_the_window_is_asked_after_any_number_of_restarts() {
    let engine = Arc::new(Memory::default());
    let (mut server, one, [_, b], base) = after_the_window(engine.clone());
    let mut server = one_more_restart(&mut server, engine.clone());
    server.core.stop(server.now_ns).unwrap();
    let mut server = Server::start(engine.clone(), server.now_ns + SECOND, false);
    let seen = Version(base.0 + 40);
    let welcome = server.open(11, resume(1, one, seen)).unwrap();
    assert!(welcome.replay && welcome.durable <= base, "it must still hold what it is to replay");
    assert!(server.open(13, resume(1, one, seen)).unwrap().replay, "it has not answered");
    let late = |id, request| replayed(id, Version(base.0 + id), request, None);
    let calls = vec![late(10, create(Ino::ROOT, "late", false)), late(11, grow(b)), late(12, unlink("a"))];
    server.frame(13, ToServer::Replay { calls, end: true });
    for file in ["late", "a"] {
        server.call(13, 20, Request::Lookup { parent: Ino::ROOT, name: name(file) }).1.unwrap();
    }
    let look = Request::Lookup { parent: Ino::ROOT, name: name("b") };
    assert_eq!(attr(server.call(13, 21, look).1.unwrap()).size, 7);
    assert_eq!(server.core.machine.figures().parked, 1, "who changed the volume since is not known");
    assert!(!server.open(14, resume(1, one, seen)).unwrap().replay, "it has replayed");
    let mut server = Server::start(engine, server.now_ns + SECOND, false);
    assert!(
        !server.open(15, resume(1, one, seen)).unwrap().replay,
        "it has replayed, and that is in the state"
    );
}

#[test]
fn a_client_that_missed_one_window_and_comes_into_the_next_keeps_its_calls_until_they_are_done() {
    let engine = Arc::new(Memory::default());
    let (mut server, one, [_, b], base) = after_the_window(engine.clone());
    let two = SessionId(one.0 + 1);
    server.call(12, 50, grow(b)).1.unwrap();
    server.core.stop(server.now_ns).unwrap();
    let mut server = Server::start(engine.clone(), server.now_ns + SECOND, true);
    let seen = Version(base.0 + 40);
    let welcome = server.open(11, resume(1, one, seen)).unwrap();
    assert!(welcome.replay && welcome.durable <= base);
    let set = chronofs_core::SetAttr { size: Some(0), by_handle: true, ..chronofs_core::SetAttr::default() };
    let late = |id, request| replayed(id, Version(base.0 + id), request, None);
    let calls = vec![late(10, create(Ino::ROOT, "late", false)), late(11, Request::SetAttr { ino: b, set })];
    server.frame(11, ToServer::Replay { calls, end: true });
    // It has sent them, but a kill in the window would forget them.
    let welcome = server.open(13, resume(1, one, seen)).unwrap();
    assert!(!welcome.replay && welcome.durable <= base);
    server.open(12, resume(2, two, seen)).unwrap();
    server.frame(12, ToServer::Replay { calls: Vec::new(), end: true });
    assert!(!server.core.machine.figures().recovering);
    server.call(13, 20, Request::Lookup { parent: Ino::ROOT, name: name("late") }).1.unwrap();
    let look = Request::Lookup { parent: Ino::ROOT, name: name("b") };
    assert_eq!(attr(server.call(13, 21, look).1.unwrap()).size, 7, "what another did since is not undone");
    let mut server = Server::start(engine, server.now_ns + SECOND, false);
    assert!(!server.open(14, resume(1, one, seen)).unwrap().replay, "it has replayed");
}

#[test]
fn a_client_that_misses_two_windows_is_judged_by_the_older() {
    let engine = Arc::new(Memory::default());
    let (mut server, one, _, base) = after_the_window(engine.clone());
    server.call(12, 50, create(Ino::ROOT, "x", false)).1.unwrap();
    server.core.stop(server.now_ns).unwrap();
    let mut server = Server::start(engine.clone(), server.now_ns + SECOND, true);
    server.now_ns += 11 * SECOND;
    server.run(Event::Tick);
    assert!(!server.core.machine.figures().recovering);
    server.durable();
    let mut server = Server::start(engine, server.now_ns + SECOND, false);
    let welcome = server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    assert!(welcome.replay && welcome.durable <= base);
    let late = replayed(10, Version(base.0 + 10), create(Ino::ROOT, "late", false), None);
    server.frame(11, ToServer::Replay { calls: vec![late], end: true });
    server.call(11, 20, Request::Lookup { parent: Ino::ROOT, name: name("late") }).1.unwrap();
}

fn shared_create(file: &str) -> Request {
    match create(Ino::ROOT, file, false) {
        Request::Create { parent, name, node, mode, umask, open, .. } => {
            Request::Create { parent, name, node, mode, umask, open, exclusive: false }
        }
        _ => unreachable!(),
    }
}

pub(super) fn parked_by(effects: &[Effect]) -> Vec<u64> {
    let named = |effect: &Effect| match effect {
        Effect::Send(_, ToClient::Parked { calls }) => calls.iter().map(|(id, _)| *id).collect(),
        _ => Vec::new(),
    };
    effects.iter().flat_map(named).collect()
}

#[test]
fn a_new_file_never_has_the_number_of_one_that_a_late_client_means() {
    let (mut server, one, [_, b], base) = after_the_window(Arc::new(Memory::default()));
    let lost = Ino(b.0 + 1);
    let other = attr(server.call(12, 1, shared_create("d")).1.unwrap()).ino;
    assert_ne!(other, lost, "client 1 has a file of this number open");
    server.call(12, 2, grow(other)).1.unwrap();
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    let late = |id, request, made| replayed(id, Version(base.0 + id), request, made);
    let set = chronofs_core::SetAttr { size: Some(0), by_handle: true, ..chronofs_core::SetAttr::default() };
    let calls =
        vec![late(10, shared_create("d"), Some(lost)), late(11, Request::SetAttr { ino: lost, set }, None)];
    let effects = server.frame(11, ToServer::Replay { calls, end: true });
    assert_eq!(parked_by(&effects), [10, 11], "the name is another file's now");
    assert_eq!(attr(server.call(12, 3, Request::GetAttr { ino: other }).1.unwrap()).size, 7);
    assert_eq!(server.call(11, 20, Request::GetAttr { ino: lost }).1, Err(Errno::ENOENT));
}

#[test]
fn a_late_create_has_the_number_it_had_though_others_made_files_since() {
    let (mut server, one, [_, b], base) = after_the_window(Arc::new(Memory::default()));
    for (id, file) in [(1, "x"), (2, "y")] {
        server.call(12, id, create(Ino::ROOT, file, false)).1.unwrap();
    }
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    let made = Ino(b.0 + 2);
    let calls = vec![
        replayed(10, Version(base.0 + 10), create(Ino::ROOT, "late", false), Some(made)),
        replayed(11, Version(base.0 + 11), grow(made), None),
    ];
    assert!(parked_by(&server.frame(11, ToServer::Replay { calls, end: true })).is_empty());
    let look = Request::Lookup { parent: Ino::ROOT, name: name("late") };
    let found = attr(server.call(11, 20, look).1.unwrap());
    assert_eq!((found.ino, found.size), (made, 7));
    let next = attr(server.call(12, 3, create(Ino::ROOT, "z", false)).1.unwrap()).ino;
    assert!(next > made, "numbers go on above");
}

#[test]
fn a_late_create_that_finds_its_file_made_by_another_does_not_make_it_its_own() {
    let (mut server, one, [_, b], base) = in_the_window(Arc::new(Memory::default()));
    let made = Ino(b.0 + 1);
    // Client 2 found the file that client 1 had made, and is back in time.
    let found = replayed(5, Version(base.0 + 11), shared_create("d"), Some(made));
    let grown = replayed(6, Version(base.0 + 12), grow(made), None);
    server.frame(12, ToServer::Replay { calls: vec![found, grown], end: true });
    end_window(&mut server);
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    let set = chronofs_core::SetAttr { size: Some(0), by_handle: true, ..chronofs_core::SetAttr::default() };
    let calls = vec![
        replayed(10, Version(base.0 + 10), shared_create("d"), Some(made)),
        replayed(11, Version(base.0 + 11), Request::SetAttr { ino: made, set }, None),
    ];
    assert_eq!(parked_by(&server.frame(11, ToServer::Replay { calls, end: true })), [11]);
    assert_eq!(attr(server.call(12, 7, Request::GetAttr { ino: made }).1.unwrap()).size, 7);
}

/// What client 1 and then client 2 replay in time, each all that it has; the calls that are parked.
fn replay_both(server: &mut Server, one: SessionId, calls: [Vec<Replayed>; 2]) -> Vec<u64> {
    server.open(11, resume(1, one, Version(START_NS))).unwrap();
    let [first, second] = calls;
    let mut parked = parked_by(&server.frame(11, ToServer::Replay { calls: first, end: true }));
    parked.extend(parked_by(&server.frame(12, ToServer::Replay { calls: second, end: true })));
    assert!(!server.core.machine.figures().recovering);
    parked
}

#[test]
fn a_file_comes_back_as_it_was_made_and_not_as_another_found_it() {
    for exclusive in [false, true] {
        let (mut server, one, [_, b], base) = in_the_window(Arc::new(Memory::default()));
        let file = Ino(b.0 + 1);
        let with_mode = |mode, exclusive| Request::Create {
            parent: Ino::ROOT,
            name: name("d"),
            node: chronofs_core::ops::NewNode::File,
            mode,
            umask: 0,
            open: true,
            exclusive,
        };
        // Client 2 made it; client 1 found it, and was answered with the version of that.
        let version = Version(base.0 + 10);
        let found = Replayed { found: true, ..replayed(10, version, with_mode(0o600, false), Some(file)) };
        let made = replayed(10, version, with_mode(0o640, exclusive), Some(file));
        assert_eq!(replay_both(&mut server, one, [vec![found], vec![made]]), [0; 0]);
        let mode = attr(server.call(12, 20, Request::GetAttr { ino: file }).1.unwrap()).mode;
        assert_eq!(mode & 0o7777, 0o640);
    }
}

#[test]
fn a_call_that_changes_nothing_has_its_own_place_in_the_order() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    let file = attr(server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap()).ino;
    let (linked, _) = server.call(1, 2, Request::Link { ino: file, parent: Ino::ROOT, name: name("b") });
    // Two names of one file: replayed ahead of the link this would take the first name away.
    let mode = chronofs_core::ops::RenameMode::Replace;
    let rename =
        Request::Rename { from: Ino::ROOT, name: name("a"), to: Ino::ROOT, new_name: name("b"), mode };
    let (renamed, result) = server.call(1, 3, rename);
    assert_eq!(result, Ok(Reply::Done));
    assert!(renamed > linked, "{renamed:?} {linked:?}");
    for name in ["a", "b"] {
        server.call(1, 4, Request::Lookup { parent: Ino::ROOT, name: common::name(name) }).1.unwrap();
    }
}

#[test]
fn a_create_that_cannot_be_done_again_costs_no_other_call_of_the_file_that_it_had_found() {
    let (mut server, _, [a, b], base) = in_the_window(Arc::new(Memory::default()));
    // Client 1 had renamed "a" to "d" and does not come back.
    let again = |id, request, made| replayed(id, Version(base.0 + id), request, made);
    let in_it = Request::Link { ino: b, parent: a, name: name("x") };
    let calls = vec![
        again(11, shared_create("d"), Some(a)),
        again(12, grow(a), None),
        again(13, create(Ino(77), "e", false), Some(Ino(b.0 + 1))),
        again(14, grow(Ino(b.0 + 1)), None),
        again(15, in_it, None),
    ];
    server.frame(12, ToServer::Replay { calls, end: true });
    server.now_ns += 11 * SECOND;
    let effects = server.run(Event::Tick);
    let parked = effects.iter().find_map(|effect| match effect {
        Effect::Send(ConnId(12), ToClient::Parked { calls }) => Some(calls.clone()),
        _ => None,
    });
    let expected = vec![(11, Errno::ESTALE), (13, Errno::ENOENT), (14, Errno::ENOENT), (15, Errno::ENOTDIR)];
    assert_eq!(parked, Some(expected));
    assert_eq!(attr(server.call(12, 20, Request::GetAttr { ino: a }).1.unwrap()).size, 7);
    let look = Request::Lookup { parent: Ino::ROOT, name: name("d") };
    assert_eq!(server.call(12, 21, look).1, Err(Errno::ENOENT), "what was refused left nothing");
}

#[test]
fn a_late_create_or_link_does_not_make_what_others_changed_its_own() {
    let (mut server, one, [a, _], base) = after_the_window(Arc::new(Memory::default()));
    let chmod = |ino, mode| {
        let set = chronofs_core::SetAttr { mode: Some(mode), ..chronofs_core::SetAttr::default() };
        Request::SetAttr { ino, set }
    };
    server.call(12, 1, chmod(Ino::ROOT, 0o711)).1.unwrap();
    server.call(12, 2, chmod(a, 0o600)).1.unwrap();
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    let late = |id, request| replayed(id, Version(base.0 + id), request, None);
    let link = Request::Link { ino: a, parent: Ino::ROOT, name: name("again") };
    let calls = vec![
        late(10, create(Ino::ROOT, "late", false)),
        late(11, chmod(Ino::ROOT, 0o777)),
        late(12, link),
        late(13, chmod(a, 0o666)),
    ];
    assert_eq!(parked_by(&server.frame(11, ToServer::Replay { calls, end: true })), [11, 13]);
}

#[test]
fn a_client_hears_what_is_lost_on_every_connection_until_it_says_that_it_knows() {
    let engine = Arc::new(Full::default());
    let (mut server, one, _, base) = after_the_window(engine.clone());
    let seen = Version(base.0 + 40);
    server.open(11, resume(1, one, seen)).unwrap();
    let late = |id| replayed(id, Version(base.0 + id), create(Ino(77), "f", false), None);
    let calls = vec![late(10), late(11)];
    assert_eq!(parked_by(&server.frame(11, ToServer::Replay { calls, end: true })), [10, 11]);
    server.durable();
    // The frame was lost with its connection, and then the server was killed.
    let mut server = Server::start(engine.clone(), server.now_ns + SECOND, false);
    let hear = |server: &mut Server, conn| {
        let mut effects = server.run(Event::Hello(ConnId(conn), Box::new(resume(1, one, seen))));
        effects.extend(server.durable());
        let parked = parked_by(&effects);
        (welcome(effects).unwrap(), parked)
    };
    let (told, parked) = hear(&mut server, 13);
    assert_eq!(parked, [10, 11]);
    assert!(
        told.durable < Version(base.0 + 10),
        "not before it hears that they are lost: {:?}",
        told.durable
    );
    server.frame(13, ToServer::ParkedAck { calls: vec![10] });
    assert_eq!(hear(&mut server, 14).1, [11]);
    engine.1.store(true, Ordering::SeqCst);
    server.frame(14, ToServer::ParkedAck { calls: vec![11] });
    engine.1.store(false, Ordering::SeqCst);
    assert_eq!(hear(&mut server, 15).1, [11], "there was no room to note that it knows");
    server.frame(15, ToServer::ParkedAck { calls: vec![11] });
    server.durable();
    let told = |effect: &Effect| matches!(effect, Effect::Send(ConnId(15), ToClient::Durable { version }) if *version > seen);
    assert!(server.run(Event::Tick).iter().any(told), "now it need not keep them");
    let mut server = Server::start(engine, server.now_ns + SECOND, false);
    let (told, parked) = hear(&mut server, 16);
    assert!(parked.is_empty() && told.durable > seen, "it knows: {:?}", told.durable);
}

#[test]
fn what_was_lost_once_and_is_done_after_all_is_not_told_to_be_lost() {
    let engine = Arc::new(Memory::default());
    let (mut server, one, _, base) = in_the_window(engine.clone());
    let (dir, seen) = (Ino(77), Version(base.0 + 40));
    server.open(11, resume(1, one, seen)).unwrap();
    let call = replayed(10, Version(base.0 + 10), create(dir, "f", false), None);
    server.frame(11, ToServer::Replay { calls: vec![call], end: true });
    assert_eq!(server.core.machine.figures().parked, 0, "the window is open");
    end_window(&mut server);
    assert_eq!(server.core.machine.figures().parked, 1);
    // One more power cut before it heard of that: this time what it rests on is there.
    let mut server = Server::start(engine, server.now_ns + SECOND, true);
    server.open(13, resume(1, one, seen)).unwrap();
    let call = replayed(10, Version(base.0 + 10), create(Ino::ROOT, "f", false), None);
    server.frame(13, ToServer::Replay { calls: vec![call], end: true });
    end_window(&mut server);
    let effects = server.run(Event::Hello(ConnId(14), Box::new(resume(1, one, seen))));
    assert!(parked_by(&effects).is_empty());
}

#[test]
fn objects_of_a_grant_that_was_lost_and_replayed_may_be_stored() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let welcome = server.open(1, hello(1)).unwrap();
    let base = engine.applied().0;
    let mut server = Server::start(engine, START_NS + SECOND, true);
    server.open(2, resume(1, welcome.session, Version(base + 40))).unwrap();
    let lost = replayed(5, Version(base + 20), Request::Grant { count: 10 }, None);
    server.frame(2, ToServer::Replay { calls: vec![lost], end: true });
    let (session, incarnation) = (welcome.session, welcome.incarnation);
    let object = |n| chronofs_core::ObjectId { incarnation, session, n };
    for (n, allowed) in [(welcome.grant.1 + 9, true), (welcome.grant.1 + 10, false)] {
        let name = chronofs_blocks::object_name(common::VOLUME, object(n));
        let effects = server.frame(2, ToServer::PutObject { id: 1, name, bytes: Vec::new().into() });
        let stored = effects.iter().any(|effect| matches!(effect, Effect::Object(_)));
        assert_eq!(stored, allowed, "{n}: {effects:?}");
    }
}
