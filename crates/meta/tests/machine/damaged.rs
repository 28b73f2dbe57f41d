//! What tells which calls were applied, and cannot be read.

use super::*;
use chronofs_namespace::rows::STORE_WIDE;

fn start(engine: &Memory, recovered: Vec<Recovered>) -> Result<(), String> {
    let found = Found { recovered, maybe_lost: false, last_commit: engine.applied() };
    let reads = SharedView(engine.view());
    Machine::new(Config::default(), &reads, engine.applied(), found, START_NS.into())
        .map(drop)
        .map_err(|stop| format!("{stop:?}"))
}

#[test]
fn a_server_does_not_start_when_it_could_do_calls_twice() {
    let engine = Arc::new(Memory::default());
    let mut server = Server::start(engine.clone(), START_NS, false);
    server.open(1, hello(1)).unwrap();
    server.call(1, 1, create(Ino::ROOT, "a", false)).1.unwrap();
    let now_ns = server.now_ns;
    server.core.stop(now_ns).unwrap();
    start(&engine, Vec::new()).unwrap();
    let tag = Recovered { version: Version(7), tag: b"\xff".as_slice().into() };
    let error = start(&engine, vec![tag]).unwrap_err();
    assert!(error.contains("Damaged") && error.contains("tag"), "{error}");
    let replies = chronofs_history::Table { number: 0x40, key_len: 0, name: "replies" };
    let batch = Batch(vec![Change::Put(replies.live_key(STORE_WIDE, &[]), vec![1, 0, 0xff].into())]);
    let version = Version(engine.applied().0 + 1);
    engine.apply(vec![Commit { version, tag: Vec::new().into(), batch }]).unwrap();
    let error = start(&engine, Vec::new()).unwrap_err();
    assert!(error.contains("Damaged") && error.contains("replies"), "{error}");
}
