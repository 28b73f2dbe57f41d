use super::*;
use crate::testing::attr;
use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
use chronofs_core::{Name, Retention};
use chronofs_wire::frame::FrameReader;
use chronofs_wire::message::StoreAccess;

fn welcome(boot: u64, replay: bool) -> Welcome {
    Welcome {
        protocol: 1,
        session: SessionId(4),
        boot,
        epoch: 1,
        volume: VolumeSpec {
            id: uuid::Uuid::from_u128(1),
            name: "v".into(),
            block_size: BLOCK_SIZE_DEFAULT,
            compression: Compression::Lz4,
            retention: Retention::Forever,
            max_bytes: None,
            max_inodes: None,
            hash_key: [0; 16],
        },
        incarnation: 1,
        root: Ino::ROOT,
        grant: (0, 10),
        applied: Version(10),
        durable: Version(10),
        now_ns: 0,
        ttl_ms: 1000,
        shared: false,
        read_only: false,
        at: None,
        store: StoreAccess::ThroughServer,
        replay,
        life_ms: 10_000,
    }
}

fn unlink(name: &str) -> Request {
    Request::Unlink { parent: Ino::ROOT, name: Name::new(name.to_owned()).unwrap() }
}

/// The frames that `state` would write now.
fn sent(state: &mut State) -> Vec<ToServer> {
    let out = state.take_out().freeze();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut reader = FrameReader::new(&out[..]);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next::<ToServer>().await.unwrap() {
            frames.push(frame);
        }
        frames
    })
}

fn ids(frames: &[ToServer]) -> Vec<(u64, u64)> {
    frames
        .iter()
        .filter_map(|frame| match frame {
            ToServer::Call { id, acked, .. } => Some((*id, *acked)),
            _ => None,
        })
        .collect()
}

#[test]
fn calls_carry_rising_ids_and_what_has_been_answered() {
    let mut state = State::new(&welcome(1, false));
    let mut first = state.call(Caller::ROOT, Request::StatFs);
    let _second = state.call(Caller::ROOT, Request::Sync);
    assert_eq!(ids(&sent(&mut state)), [(1, 0), (2, 0)]);
    state.returned(1, Version(11), Version(10), Ok(Reply::Done));
    assert_eq!(first.try_recv().unwrap().unwrap().version, Version(11));
    let _third = state.call(Caller::ROOT, Request::Sync);
    assert_eq!(ids(&sent(&mut state)), [(3, 1)], "2 has no answer yet");
}

#[test]
fn a_call_without_answer_is_sent_again_with_its_id_after_a_reconnect() {
    let mut state = State::new(&welcome(1, false));
    let _a = state.call(Caller::ROOT, unlink("a"));
    let _b = state.call(Caller::ROOT, unlink("b"));
    sent(&mut state);
    state.returned(1, Version(11), Version(10), Ok(Reply::Done));
    state.down();
    let _c = state.call(Caller::ROOT, unlink("c"));
    assert!(sent(&mut state).is_empty(), "nothing is written while the server is away");
    state.resumed(&welcome(1, false));
    let frames = sent(&mut state);
    assert_eq!(ids(&frames), [(2, 1), (3, 1)]);
    assert_eq!(frames.len(), 2, "the server did not restart: nothing to reclaim or replay");
}

#[test]
fn after_a_restart_opens_are_reclaimed_and_undurable_answers_replayed_before_anything_else() {
    let mut state = State::new(&welcome(1, false));
    let _open = state.call(Caller::ROOT, Request::Open { ino: Ino(7), read: true, write: false });
    let _again = state.call(Caller::ROOT, Request::Open { ino: Ino(7), read: true, write: false });
    let _close = state.call(Caller::ROOT, Request::Close { ino: Ino(7), count: 1 });
    let _durable = state.call(Caller::ROOT, unlink("durable"));
    let _lost = state.call(Caller::ROOT, unlink("lost"));
    let _failed = state.call(Caller::ROOT, unlink("failed"));
    let _unanswered = state.call(Caller::ROOT, unlink("unanswered"));
    sent(&mut state);
    let opened = Reply::Opened { attr: attr(7), slices: None };
    state.returned(1, Version(11), Version(10), Ok(opened.clone()));
    state.returned(2, Version(11), Version(10), Ok(opened));
    state.returned(3, Version(11), Version(10), Ok(Reply::Done));
    state.returned(4, Version(12), Version(10), Ok(Reply::Done));
    state.returned(5, Version(13), Version(12), Ok(Reply::Done));
    state.returned(6, Version(13), Version(12), Err(Errno::ENOENT));
    state.down();
    state.resumed(&welcome(2, true));
    let frames = sent(&mut state);
    assert_eq!(frames[0], ToServer::Reclaim { opens: vec![(Ino(7), 1)] });
    let ToServer::Replay { calls, end: true } = &frames[1] else { panic!("{frames:?}") };
    assert_eq!(calls.iter().map(|call| (call.id, call.version.0)).collect::<Vec<_>>(), [(5, 13)]);
    assert_eq!(ids(&frames), [(7, 6)]);
}

#[test]
fn when_the_session_is_over_only_what_may_have_been_done_fails() {
    let mut state = State::new(&welcome(1, false));
    let mut unlinked = state.call(Caller::ROOT, unlink("a"));
    let mut looked = state.call(Caller::ROOT, Request::StatFs);
    sent(&mut state);
    state.down();
    let mut later = state.call(Caller::ROOT, unlink("b"));
    state.replaced(&welcome(2, false));
    assert_eq!(unlinked.try_recv().unwrap().unwrap_err(), Errno::EIO);
    assert!(looked.try_recv().is_err() && later.try_recv().is_err(), "those go on");
    assert_eq!(ids(&sent(&mut state)), [(2, 1), (3, 1)]);
}

#[test]
fn a_refused_mount_fails_its_calls_until_it_is_welcome_again() {
    let mut state = State::new(&welcome(1, false));
    let mut before = state.call(Caller::ROOT, Request::StatFs);
    state.refused(Errno::EACCES);
    let mut after = state.call(Caller::ROOT, Request::StatFs);
    assert_eq!(before.try_recv().unwrap().unwrap_err(), Errno::EACCES);
    assert_eq!(after.try_recv().unwrap().unwrap_err(), Errno::EACCES);
    state.resumed(&welcome(1, false));
    let _third = state.call(Caller::ROOT, Request::StatFs);
    assert_eq!(ids(&sent(&mut state)).len(), 1);
}

#[test]
fn an_answer_that_comes_twice_is_taken_once() {
    let mut state = State::new(&welcome(1, false));
    let mut unlinked = state.call(Caller::ROOT, unlink("a"));
    state.returned(1, Version(11), Version(10), Ok(Reply::Done));
    state.returned(1, Version(11), Version(10), Err(Errno::ENOENT));
    assert_eq!(unlinked.try_recv().unwrap().unwrap().result, Ok(Reply::Done));
    assert_eq!(state.waiting(), (0, 1));
}
