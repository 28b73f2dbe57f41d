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
        restored: Version::ZERO,
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
    assert!(!frames.iter().any(|frame| matches!(frame, ToServer::Replay { .. })), "nobody asked for it");
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
    let mut put = state.transfer(Transfer::Put { name: "o".to_owned(), bytes: Bytes::new() });
    state.replaced(&welcome(2, false));
    assert_eq!(put.try_recv().unwrap(), Err(Errno::EIO), "its name is the old session's");
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

fn publish(bytes: usize) -> Request {
    use chronofs_core::slice::{NewSlice, Place, Slice};
    let slice = Slice { offset: 0, len: 1, skip: 0, place: Place::Hole };
    let slices = vec![NewSlice { block: 0, slice, staged: Some(vec![0; bytes].into()) }];
    Request::Publish { ino: Ino(7), slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None }
}

/// A publish of what lies in the object of session 4 with this counter.
fn publish_of(n: u64) -> Request {
    use chronofs_core::slice::{NewSlice, Place, Slice};
    let id =
        chronofs_core::SliceId { object: ObjectId { incarnation: 1, session: SessionId(4), n }, index: 0 };
    let (seal, _) = chronofs_blocks::seal::seal(id, Compression::None, &Bytes::from_static(b"bytes"));
    let slice = Slice { offset: 0, len: 5, skip: 0, place: Place::Object(seal, 64) };
    let slices = vec![NewSlice { block: 0, slice, staged: None }];
    Request::Publish { ino: Ino(7), slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None }
}

fn floor_told(state: &mut State) -> u64 {
    state.renew();
    let told = all_sent(state).into_iter().find_map(|frame| match frame {
        ToServer::Renew { floor } => Some(floor),
        _ => None,
    });
    told.unwrap()
}

#[test]
fn no_object_is_said_to_be_done_with_that_a_call_or_a_replay_may_name() {
    let mut state = State::new(&welcome(1, false));
    assert_eq!(floor_told(&mut state), 0);
    state.set_floor(SessionId(4), 9);
    assert_eq!(floor_told(&mut state), 9);
    let _first = state.call(Caller::ROOT, publish_of(5));
    let _second = state.call(Caller::ROOT, publish_of(7));
    assert_eq!(floor_told(&mut state), 5, "nothing is answered");
    state.returned(1, Version(11), Version(10), Ok(Reply::Done));
    assert_eq!(floor_told(&mut state), 5, "answered, and not durable");
    state.durable(Version(11));
    assert_eq!(floor_told(&mut state), 7);
    state.returned(2, Version(12), Version(12), Ok(Reply::Done));
    assert_eq!(floor_told(&mut state), 9);
    state.set_floor(SessionId(3), 50);
    assert_eq!(floor_told(&mut state), 0, "what is said of another session counts for nothing");
}

fn all_sent(state: &mut State) -> Vec<ToServer> {
    let mut frames = Vec::new();
    while state.has_frames() {
        frames.extend(sent(state));
    }
    frames
}

#[test]
fn a_slow_read_holds_up_only_as_many_calls_as_the_server_keeps_answers_for() {
    let mut state = State::new(&welcome(1, false));
    let mut slow = state.call(Caller::ROOT, Request::StatFs);
    let mut others: Vec<_> = (0..10_000).map(|_| state.call(Caller::ROOT, unlink("a"))).collect();
    let highest = ids(&all_sent(&mut state)).last().unwrap().0;
    assert_eq!(highest, IDS_MAX, "one more could be more than the server keeps");
    for id in 2..=10_001 {
        state.returned(id, Version(10), Version(10), Ok(Reply::Done));
    }
    assert!(all_sent(&mut state).is_empty(), "the first one has no answer still");
    const { assert!(IDS_MAX < chronofs_wire::message::REPLIES_KEPT_MAX as u64) };
    assert!(slow.try_recv().is_err());
    state.returned(1, Version(10), Version(10), Ok(Reply::Done));
    for id in 2..=10_001 {
        state.returned(id, Version(10), Version(10), Ok(Reply::Done));
    }
    assert!(others.iter_mut().all(|other| other.try_recv().unwrap().unwrap().result == Ok(Reply::Done)));
    assert_eq!(state.load, Load::default());
}

#[test]
fn mutations_wait_while_too_much_is_not_durable_and_reads_do_not() {
    let mut state = State::new(&welcome(1, false));
    let _many: Vec<_> = (0..40).map(|_| state.call(Caller::ROOT, publish(4 << 20))).collect();
    assert_eq!(ids(&all_sent(&mut state)).len(), 16, "64 MiB without an answer");
    for id in 1..=16 {
        state.returned(id, Version(10 + id), Version(10), Ok(Reply::Done));
    }
    assert!(all_sent(&mut state).is_empty(), "64 MiB that are not durable");
    let _read = state.call(Caller::ROOT, Request::StatFs);
    assert_eq!(ids(&all_sent(&mut state)).len(), 1);
    assert!(state.replay.bytes() < UNSAVED_BYTES_MAX + (5 << 20));
    state.durable(Version(14));
    assert_eq!(ids(&all_sent(&mut state)).len(), 4);
    // Refused ones leave nothing behind.
    for id in 18..=21 {
        state.returned(id, Version(14), Version(14), Err(Errno::ENOSPC));
    }
    assert_eq!(ids(&all_sent(&mut state)).len(), 4);
}

#[test]
fn reads_wait_while_too_many_bytes_of_answers_may_come() {
    let mut state = State::new(&welcome(1, false));
    let slices = || Request::Slices { ino: Ino(7), first: 0, count: 1, staged: true };
    let _many: Vec<_> = (0..100).map(|_| state.call(Caller::ROOT, slices())).collect();
    assert_eq!(ids(&all_sent(&mut state)).len(), EXPECTED_BYTES_MAX >> 20);
    state.returned(1, Version(10), Version(10), Ok(Reply::Slices(Vec::new())));
    assert_eq!(ids(&all_sent(&mut state)).len(), 1);
}

#[test]
fn objects_through_the_server_wait_for_room() {
    let mut state = State::new(&welcome(1, false));
    let put = |n: usize| Transfer::Put { name: format!("o{n}"), bytes: vec![0; 8 << 20].into() };
    let mut puts: Vec<_> = (0..12).map(|n| state.transfer(put(n))).collect();
    assert_eq!(all_sent(&mut state).len(), 8);
    state.transferred(1, Ok(Delivery::Bytes(Bytes::new())));
    assert_eq!(puts[0].try_recv().unwrap(), Ok(Delivery::Bytes(Bytes::new())));
    assert_eq!(all_sent(&mut state).len(), 1);
    // Those in the line are as little lost as those under way.
    state.down();
    state.resumed(&welcome(1, false));
    let puts_sent =
        all_sent(&mut state).iter().filter(|frame| matches!(frame, ToServer::PutObject { .. })).count();
    assert_eq!(puts_sent, 8);
    for id in 2..=12 {
        state.transferred(id, Ok(Delivery::Bytes(Bytes::new())));
    }
    assert!(puts[1..].iter_mut().all(|put| put.try_recv().unwrap().is_ok()));
    assert_eq!(state.transfer_bytes, 0);
}

#[test]
fn frames_are_encoded_only_as_fast_as_the_network_takes_them() {
    let mut state = State::new(&welcome(1, false));
    let _many: Vec<_> = (0..16).map(|_| state.call(Caller::ROOT, publish(2 << 20))).collect();
    state.renew();
    state.renew();
    let out = state.take_out();
    assert!(out.len() < OUT_BYTES_MAX + (3 << 20), "{} bytes at once", out.len());
    let rest = all_sent(&mut state);
    assert_eq!(ids(&rest).len(), 15);
    assert!(
        !rest.iter().any(|frame| matches!(frame, ToServer::Renew { .. })),
        "the session's time does not wait behind bytes"
    );
}

#[test]
fn what_is_replayed_in_many_frames_is_complete_and_comes_before_the_calls() {
    let mut state = State::new(&welcome(1, false));
    let _many: Vec<_> = (0..8).map(|_| state.call(Caller::ROOT, publish(3 << 20))).collect();
    for id in 1..=7 {
        state.returned(id, Version(10 + id), Version(10), Ok(Reply::Done));
    }
    state.down();
    state.resumed(&welcome(2, true));
    let frames = all_sent(&mut state);
    let replayed: Vec<u64> = frames
        .iter()
        .flat_map(|frame| match frame {
            ToServer::Replay { calls, .. } => calls.iter().map(|call| call.id).collect(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(replayed, [1, 2, 3, 4, 5, 6, 7]);
    let ends = frames.iter().filter(|frame| matches!(frame, ToServer::Replay { end: true, .. })).count();
    assert_eq!(ends, 1);
    assert_eq!(ids(&frames), [(8, 7)]);
    assert!(matches!(frames.last(), Some(ToServer::Call { .. })));
}

#[test]
fn opens_are_reclaimed_again_when_the_connection_on_which_they_were_is_lost() {
    let mut state = State::new(&welcome(1, false));
    let _open = state.call(Caller::ROOT, Request::Open { ino: Ino(7), read: true, write: false });
    state.returned(1, Version(11), Version(11), Ok(Reply::Opened { attr: attr(7), slices: None }));
    state.down();
    state.resumed(&welcome(2, false));
    // Nothing of it arrives.
    state.down();
    state.resumed(&welcome(2, false));
    assert_eq!(sent(&mut state), [ToServer::Reclaim { opens: vec![(Ino(7), 1)] }]);
}

/// A mount that has written to file 7 and made file 8, and heard so, and nothing of it is durable.
fn with_undurable() -> State {
    let mut state = State::new(&welcome(1, false));
    let create = Request::Create {
        parent: Ino::ROOT,
        name: Name::new("f").unwrap(),
        node: chronofs_core::ops::NewNode::File,
        mode: 0,
        umask: 0,
        open: true,
        exclusive: false,
    };
    let opened = |ino, slices| Ok(Reply::Opened { attr: attr(ino), slices });
    for request in [publish(10), create.clone(), create, unlink("a")] {
        drop(state.call(Caller::ROOT, request));
    }
    sent(&mut state);
    state.returned(1, Version(11), Version(10), Ok(Reply::Attr(attr(7))));
    state.returned(2, Version(12), Version(10), opened(8, Some(Vec::new())));
    state.returned(3, Version(12), Version(10), opened(9, None));
    state.returned(4, Version(13), Version(10), Ok(Reply::Done));
    state.down();
    state
}

#[test]
fn what_the_server_lost_is_known_of_its_files_and_not_sent_again() {
    let mut state = with_undurable();
    assert!(state.resumed(&welcome(2, false)), "it was started anew");
    for _ in 0..2 {
        // It is said until the server has heard that it was.
        state.parked([1, 2, 3]);
        assert_eq!([7, 8, 9].map(|ino| state.lost(Ino(ino))), [1, 1, 0], "file 9 was only opened");
    }
    state.down();
    assert!(!state.resumed(&welcome(2, true)));
    let replayed = sent(&mut state).into_iter().find_map(|frame| match frame {
        ToServer::Replay { calls, .. } => Some(calls.iter().map(|call| call.id).collect::<Vec<_>>()),
        _ => None,
    });
    assert_eq!(replayed, Some(vec![4]));
}

#[test]
fn when_the_session_is_over_answered_changes_may_be_lost_if_the_server_was_started_anew() {
    for (boot, lost) in [(1, 0), (2, 1)] {
        let mut state = with_undurable();
        assert_eq!(state.replaced(&welcome(boot, false)).0, boot == 2);
        assert_eq!([7, 8].map(|ino| state.lost(Ino(ino))), [lost; 2]);
    }
}

#[test]
fn of_a_call_that_opened_a_file_that_was_there_the_server_is_told_so_when_it_is_replayed() {
    let mut state = with_undurable();
    state.resumed(&welcome(2, true));
    let frames = sent(&mut state);
    let ToServer::Replay { calls, .. } = &frames[1] else { panic!("{frames:?}") };
    let of = |n: usize| (calls[n].made, calls[n].found);
    assert_eq!((of(1), of(2)), ((Some(Ino(8)), false), (Some(Ino(9)), true)));
}

#[test]
fn a_server_that_was_put_back_is_heard_though_its_clock_is_behind() {
    let mut state =
        State::new(&Welcome { durable: Version(1000), applied: Version(1000), ..welcome(1, false) });
    let _lost = state.call(Caller::ROOT, unlink("a"));
    all_sent(&mut state);
    state.returned(1, Version(1001), Version(1000), Ok(Reply::Done));
    state.down();
    let back = Welcome { session: SessionId(9), restored: Version(10), ..welcome(2, false) };
    assert_eq!(state.replaced(&back), (true, 1));
    assert_eq!(state.seen(), Version(10));
    let _kept = state.call(Caller::ROOT, unlink("b"));
    all_sent(&mut state);
    state.returned(2, Version(11), Version(10), Ok(Reply::Done));
    assert_eq!(state.waiting(), (0, 1), "it is kept until it is durable");
    state.durable(Version(11));
    assert_eq!(state.waiting(), (0, 0));
}
