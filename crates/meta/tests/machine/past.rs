//! Instants that can be had, and directories that tokens are confined to.

use super::*;
use chronofs_core::ops::{NewNode, RenameMode};
use chronofs_core::{FileKind, Retention};
use chronofs_meta::executor::run_read;
use chronofs_wire::message::{Refusal, RefusalReason, Window};

fn make_dir(server: &mut Server, id: u64, parent: Ino, name: &str) -> Ino {
    let mut request = create(parent, name, false);
    if let Request::Create { node, .. } = &mut request {
        *node = NewNode::Dir;
    }
    attr(server.call(1, id, request).1.unwrap()).ino
}

/// A server with the directories /home and /home/ann, and the session that made them on connection 1.
fn with_home(engine: Arc<dyn Engine>) -> (Server, Ino, Ino) {
    let mut server = Server::start(engine, START_NS, false);
    server.open(1, hello(1)).unwrap();
    let home = make_dir(&mut server, 1, Ino::ROOT, "home");
    let ann = make_dir(&mut server, 2, home, "ann");
    (server, home, ann)
}

/// With the token that is confined to /home/ann.
fn confined(hello: Hello) -> Hello {
    Hello { token_id: uuid::Uuid::from_u128(2), ..hello }
}

fn refused(server: &mut Server, conn: u64, hello: Hello) -> Refusal {
    let effects = server.run(Event::Hello(ConnId(conn), Box::new(hello)));
    let refusal = effects.into_iter().find_map(|effect| match effect {
        Effect::Answer(ConnId(to), Err(refusal)) if to == conn => Some(refusal),
        _ => None,
    });
    refusal.expect("a refusal")
}

#[test]
fn a_confined_token_mounts_the_past_of_a_directory_that_is_gone() {
    let engine = Arc::new(Memory::default());
    let (mut server, home, ann) = with_home(engine.clone());
    let before = Version(engine.applied().0 - 1);
    server.call(1, 3, create(ann, "f", false)).1.unwrap();
    let at = engine.applied();
    server.call(1, 4, Request::Unlink { parent: ann, name: name("f") }).1.unwrap();
    server.call(1, 5, Request::Rmdir { parent: home, name: name("ann") }).1.unwrap();
    let past = |client, at| Hello { at: Some(at), ..confined(hello(client)) };
    let welcome = server.open(2, past(2, at)).unwrap();
    assert_eq!((welcome.root, welcome.at), (ann, Some(at)));
    let look = Request::Lookup { parent: ann, name: name("f") };
    let call = Call { id: 1, acked: 0, caller: Caller::ROOT, request: look };
    let effects = server.run(Event::Call(ConnId(2), call));
    let Some(Effect::Read(job)) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(attr(run_read(job, engine.view()).unwrap()).kind, FileKind::File);
    // It comes back, also to a server that has restarted.
    let back = Hello { resume: Some(welcome.session), ..past(2, at) };
    server.run(Event::Gone(ConnId(2)));
    assert_eq!(server.open(3, back.clone()).unwrap().root, ann);
    let mut server = Server::start(engine, START_NS + SECOND, false);
    assert_eq!(server.open(4, back).unwrap().root, ann);
    // Before it was made, and out of the window.
    let refusal = refused(&mut server, 5, past(5, before));
    assert_eq!(refusal.reason, RefusalReason::Token);
    assert!(refusal.message.contains("/home/ann"), "{}", refusal.message);
    let refusal = refused(&mut server, 6, past(6, Version(1)));
    assert!(matches!(refusal.reason, RefusalReason::Instant { .. }), "{refusal:?}");
}

#[test]
fn a_session_keeps_its_directory_when_that_is_renamed() {
    let engine = Arc::new(Memory::default());
    let (mut server, home, ann) = with_home(engine.clone());
    assert!(server.open(2, confined(hello(2))).is_none());
    server.frame(1, ToServer::SharedAck);
    let opened = welcome(server.durable()).unwrap();
    assert_eq!(opened.root, ann);
    let (new_name, mode) = (name("bob"), RenameMode::Replace);
    let rename = Request::Rename { from: home, name: name("ann"), to: home, new_name, mode };
    server.call(1, 3, rename).1.unwrap();
    server.run(Event::Gone(ConnId(2)));
    let back = confined(resume(2, opened.session, Version::ZERO));
    assert_eq!(server.open(3, back.clone()).unwrap().root, ann);
    let mut server = Server::start(engine, START_NS + SECOND, false);
    assert_eq!(server.open(4, back.clone()).unwrap().root, ann);
    // Another token means what it means now.
    let wider = Hello { token_id: uuid::Uuid::from_u128(1), ..back.clone() };
    assert_eq!(server.open(5, wider).unwrap().root, Ino::ROOT);
    let refusal = refused(&mut server, 6, back);
    assert_eq!(refusal.reason, RefusalReason::Token, "{}", refusal.message);
}

#[test]
fn what_a_name_of_a_confined_token_names_must_be_a_directory() {
    let (mut server, home, _) = with_home(Arc::new(Memory::default()));
    server.call(1, 3, Request::Rmdir { parent: home, name: name("ann") }).1.unwrap();
    server.call(1, 4, create(home, "ann", false)).1.unwrap();
    let at = server.core.engine.applied();
    server.durable();
    let refusal = refused(&mut server, 2, Hello { at: Some(at), ..confined(hello(2)) });
    assert_eq!(refusal.reason, RefusalReason::Token, "{}", refusal.message);
}

#[test]
fn an_instant_in_a_gap_is_refused_with_both_ends_of_it() {
    let engine = Arc::new(Memory::default());
    let (server, ..) = with_home(engine.clone());
    let index = server.core.machine.volumes().next().unwrap().index;
    let mut row = chronofs_namespace::volume(&SharedView(engine.view()), index).unwrap().unwrap();
    let (before, after) = (Version(engine.applied().0 + 1), Version(engine.applied().0 + 9));
    row.gaps.push((before, after));
    let key = chronofs_namespace::rows::VOLUME
        .live_key(chronofs_namespace::rows::STORE_WIDE, &index.0.to_be_bytes());
    let row = postcard::to_extend(&row, vec![1]).unwrap();
    let batch = Batch(vec![Change::Put(key, row.into())]);
    engine.apply(vec![Commit { version: after, tag: Vec::new().into(), batch }]).unwrap();
    let mut server = Server::start(engine, START_NS + SECOND, false);
    let at = Version(before.0 + 1);
    let refusal = refused(&mut server, 2, Hello { at: Some(at), ..hello(2) });
    assert_eq!(refusal.reason, RefusalReason::Gap { before, after });
    for end in [before, after] {
        assert!(refusal.message.contains(&end.to_string()), "{}", refusal.message);
    }
    assert_eq!(server.open(3, Hello { at: Some(before), ..hello(2) }).unwrap().at, Some(before));
}

#[test]
fn the_horizon_follows_the_window_and_what_lies_before_it_does_not_come_back() {
    let engine = Arc::new(Memory::default());
    let (mut server, ..) = with_home(engine.clone());
    let at = engine.applied();
    let horizon = |server: &Server| {
        let volume = server.core.machine.volumes().next().unwrap();
        let row = chronofs_namespace::volume(&SharedView(engine.view()), volume.index).unwrap().unwrap();
        assert_eq!(row.horizon, volume.row.horizon);
        row.horizon
    };
    server.run(Event::Tick);
    assert!(horizon(&server) < at, "all of it is in the window");
    server.now_ns += 7200 * SECOND;
    server.run(Event::Tick);
    let first = horizon(&server);
    assert!(first > at && first.0 < server.now_ns - 3599 * SECOND);
    // It moves in steps, so that a server that has nothing to do writes little.
    for _ in 0..50 {
        server.now_ns += SECOND;
        server.run(Event::Tick);
    }
    assert_eq!(horizon(&server), first);
    server.now_ns += 11 * SECOND;
    server.run(Event::Tick);
    assert!(horizon(&server).0 > first.0 + 59 * SECOND);

    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    assignment.revision = 2;
    assignment.volumes[0].spec.retention = Retention::Seconds(7 * 86_400);
    server.run(Event::Assignment(Box::new(assignment)));
    server.run(Event::Tick);
    let refusal = refused(&mut server, 2, Hello { at: Some(at), ..hello(2) });
    let RefusalReason::Instant { earliest, .. } = refusal.reason else { panic!("{refusal:?}") };
    assert_eq!(earliest, horizon(&server));
}

#[test]
fn a_session_is_told_the_window_as_it_is_when_it_comes_and_whenever_it_renews() {
    let window = |effects: &[Effect]| {
        let told = |effect: &Effect| match effect {
            Effect::Send(ConnId(1), ToClient::Window { window }) => Some(*window),
            _ => None,
        };
        let told: Vec<Window> = effects.iter().filter_map(told).collect();
        assert!(told.len() < 2, "{effects:?}");
        told.first().copied()
    };
    let hour = Retention::Seconds(3600);
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let mut effects = server.run(Event::Hello(ConnId(1), Box::new(hello(1))));
    effects.extend(server.durable());
    let born = server.core.machine.volumes().next().unwrap().row.born;
    assert_eq!(window(&effects), Some(Window { retention: hour, earliest: born }));
    // Nothing changes and no horizon moves, and what can be mounted is another all the same.
    server.now_ns += 7200 * SECOND;
    let told = window(&server.frame(1, ToServer::Renew { floor: 0 })).unwrap();
    assert_eq!(told, Window { retention: hour, earliest: Version(server.now_ns - 3600 * SECOND) });
    let at = Version(told.earliest.0 - SECOND);
    let refusal = refused(&mut server, 2, Hello { at: Some(at), ..hello(2) });
    assert!(matches!(refusal.reason, RefusalReason::Instant { .. }), "{refusal:?}");

    let retained = |server: &mut Server, revision, retention| {
        let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
        assignment.revision = revision;
        assignment.volumes[0].spec.retention = retention;
        server.run(Event::Assignment(Box::new(assignment)));
        window(&server.frame(1, ToServer::Renew { floor: 0 })).unwrap()
    };
    let shorter = retained(&mut server, 2, Retention::Seconds(60));
    assert_eq!(shorter.retention, Retention::Seconds(60));
    assert_eq!(shorter.earliest, Version(server.now_ns - 60 * SECOND));
    let longer = retained(&mut server, 3, Retention::Forever);
    assert_eq!(longer.retention, Retention::Forever);
    assert!(longer.earliest > shorter.earliest, "what has left the window stays out of reach");
    server.now_ns += 600 * SECOND;
    assert_eq!(window(&server.frame(1, ToServer::Renew { floor: 0 })), Some(longer));
}
