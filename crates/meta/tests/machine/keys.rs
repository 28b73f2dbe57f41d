//! The key space of operators.

use super::{Full, SECOND, START_NS, Server};
use chronofs_core::Version;
use chronofs_engine::Engine;
use chronofs_engine::memory::Memory;
use chronofs_meta::machine::{Effect, Event, KeySum, SharedView, key_sum, verify_keys};
use chronofs_wire::question::{Blob, KEY_MAX, KeyOp, KeyRefused, KeyReply, RANGE_BYTES_MAX, VALUE_MAX};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn blob(text: &str) -> Blob {
    Blob::from(text.as_bytes())
}

fn set(key: &str, value: &str) -> KeyOp {
    KeyOp::Set { key: blob(key), value: blob(value) }
}

fn keyed(effects: Vec<Effect>) -> Option<Result<KeyReply, KeyRefused>> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Keyed(7, answer) => Some(answer),
        _ => None,
    })
}

impl Server {
    fn ask_now(&mut self, op: KeyOp) -> Option<Result<KeyReply, KeyRefused>> {
        keyed(self.run(Event::Keys(7, op)))
    }

    fn ask(&mut self, op: KeyOp) -> Result<KeyReply, KeyRefused> {
        let answered = self.ask_now(op);
        answered.or_else(|| keyed(self.durable())).expect("an answer")
    }

    fn value(&mut self, key: &str) -> Option<String> {
        match self.ask(KeyOp::Get { key: blob(key) }).unwrap() {
            KeyReply::Value { value, .. } => value.map(|value| String::from_utf8(value.0.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn range(&mut self, begin: &str, end: Option<&str>, limit: u32) -> (String, bool) {
        let op = KeyOp::GetRange { begin: blob(begin), end: end.map(blob), limit };
        let KeyReply::Range { pairs, more, .. } = self.ask(op).unwrap() else { panic!("no range") };
        let text = |blob: &Blob| String::from_utf8(blob.0.to_vec()).unwrap();
        (pairs.iter().map(|pair| format!("{}={} ", text(&pair.key), text(&pair.value))).collect(), more)
    }
}

#[test]
fn a_change_is_answered_when_it_is_durable_with_a_version_of_the_store() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    server.durable();
    assert_eq!(server.ask_now(set("k", "1")), None, "not durable yet");
    assert_eq!(server.ask_now(KeyOp::Get { key: blob("k") }), None, "it would show what may be lost");
    let version = engine.applied();
    let effects = server.durable();
    let answers = effects.into_iter().filter_map(|effect| match effect {
        Effect::Keyed(7, answer) => Some(answer.unwrap()),
        _ => None,
    });
    let expected = [
        KeyReply::Committed { version: version.0 },
        KeyReply::Value { version: version.0, value: Some(blob("1")) },
    ];
    assert_eq!(answers.collect::<Vec<_>>(), expected);
    let KeyReply::Committed { version: later } = server.ask(set("k", "2")).unwrap() else { panic!() };
    assert!(Version(later) > version);
    let mut server = Server::start(engine, START_NS + SECOND, false);
    assert_eq!(server.value("k").as_deref(), Some("2"));
    assert_eq!(server.value("K"), None);
}

#[test]
fn keys_are_apart_from_each_other_and_read_in_their_order() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    for (key, value) in [("b", "2"), ("a", "1"), ("", "0"), ("ab", "3"), ("b", "4")] {
        server.ask(set(key, value)).unwrap();
    }
    assert_eq!(server.range("", None, 10), ("=0 a=1 ab=3 b=4 ".to_owned(), false));
    assert_eq!(server.range("a", Some("b"), 10), ("a=1 ab=3 ".to_owned(), false));
    assert_eq!(server.range("", None, 2), ("=0 a=1 ".to_owned(), true));
    assert_eq!(server.range("b", Some("b"), 2), (String::new(), false));
    server.ask(KeyOp::Clear { key: blob("a") }).unwrap();
    let KeyReply::Committed { version } = server.ask(KeyOp::Clear { key: blob("none") }).unwrap() else {
        panic!()
    };
    assert_eq!(Version(version), server.core.engine.applied(), "clearing nothing has a version, too");
    assert_eq!(server.range("", None, 10), ("=0 ab=3 b=4 ".to_owned(), false));
    let view = SharedView(server.core.engine.view());
    let sum: KeySum = key_sum(&view).unwrap();
    assert_eq!((sum.keys, sum.bytes), (3, 1 + 3 + 2));
    assert_eq!(verify_keys(&view).unwrap(), Vec::<String>::new());
    assert_eq!(chronofs_namespace::verify(&view).unwrap(), vec![], "no volume has anything of it");
}

#[test]
fn every_limit_refuses_by_name_and_changes_nothing() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let long = |len: usize| "x".repeat(len);
    server.ask(set(&long(KEY_MAX), &long(VALUE_MAX))).unwrap();
    let before = server.core.engine.applied();
    let range =
        |begin: &str, end: &str, limit| KeyOp::GetRange { begin: blob(begin), end: Some(blob(end)), limit };
    for (op, refused) in [
        (set(&long(KEY_MAX + 1), ""), KeyRefused::KeyTooLarge(10_001)),
        (KeyOp::Get { key: blob(&long(KEY_MAX + 1)) }, KeyRefused::KeyTooLarge(10_001)),
        (KeyOp::Clear { key: blob(&long(KEY_MAX + 1)) }, KeyRefused::KeyTooLarge(10_001)),
        (set("k", &long(VALUE_MAX + 1)), KeyRefused::ValueTooLarge(100_001)),
        (range("b", "a", 1), KeyRefused::InvertedRange),
        (range("a", "b", 0), KeyRefused::Limit(0)),
        (range("a", "b", 10_001), KeyRefused::Limit(10_001)),
    ] {
        assert_eq!(server.ask(op), Err(refused.clone()), "{refused}");
    }
    assert_eq!(server.core.engine.applied(), before);
    // A range of long values is cut before it is too much for an answer.
    for n in 0..9 {
        server.ask(set(&format!("y{n}"), &long(VALUE_MAX))).unwrap();
    }
    let KeyReply::Range { pairs, more, .. } = server.ask(range("y", "z", 100)).unwrap() else { panic!() };
    assert!(more && pairs.len() == RANGE_BYTES_MAX / VALUE_MAX + 1, "{}", pairs.len());
}

#[test]
fn a_key_space_that_is_full_takes_what_makes_it_smaller() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start_sized(engine, 10);
    server.ask(set("a", "123456789")).unwrap();
    assert_eq!(server.ask(set("b", "")), Err(KeyRefused::SpaceFull(10)));
    server.ask(set("a", "1234567")).unwrap();
    server.ask(set("b", "")).unwrap();
    assert_eq!(server.ask(set("b", "12")), Err(KeyRefused::SpaceFull(10)));
    server.ask(KeyOp::Clear { key: blob("a") }).unwrap();
    server.ask(set("b", "12")).unwrap();
    assert_eq!((server.value("a"), server.value("b").as_deref()), (None, Some("12")));
}

#[test]
fn nothing_is_answered_while_what_a_power_cut_took_is_collected() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    let session = server.open(1, super::hello(1)).unwrap().session;
    server.ask(set("k", "1")).unwrap();
    let mut server = Server::start(engine, START_NS + SECOND, true);
    for op in [set("k", "2"), KeyOp::Get { key: blob("k") }] {
        assert_eq!(server.ask_now(op), Some(Err(KeyRefused::Replaying)));
    }
    server.open(2, super::resume(1, session, Version::ZERO));
    server.frame(2, chronofs_wire::message::ToServer::Replay { calls: vec![], end: true });
    server.durable();
    assert_eq!(server.value("k").as_deref(), Some("1"));
}

#[test]
fn a_full_disk_refuses_changes_and_reads_go_on() {
    let engine = Arc::new(Full(Memory::default(), false.into(), 0.into()));
    let mut server = Server::start(engine.clone(), START_NS, false);
    server.ask(set("k", "1")).unwrap();
    engine.1.store(true, Ordering::SeqCst);
    assert_eq!(server.ask_now(set("k", "2")), Some(Err(KeyRefused::DiskFull)));
    assert_eq!(server.ask_now(KeyOp::Clear { key: blob("k") }), Some(Err(KeyRefused::DiskFull)));
    assert_eq!(server.value("k").as_deref(), Some("1"));
    engine.1.store(false, Ordering::SeqCst);
    assert_eq!(keyed(server.durable()), None, "nothing is left of what was refused");
    server.ask(set("k", "3")).unwrap();
    assert_eq!(server.value("k").as_deref(), Some("3"));
}
