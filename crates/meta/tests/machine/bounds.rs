//! What a server that is coming back holds of its clients has limits.

use super::late::{after_the_window, in_the_window};
use super::*;

/// A call that carries 16 MiB, of which a client keeps fewer than six.
fn large(bytes: &bytes::Bytes) -> Request {
    let slice = Slice { offset: 0, len: 1, skip: 0, place: Place::Hole };
    let slices = vec![NewSlice { block: 0, slice, staged: Some(bytes.clone()) }];
    Request::Publish { ino: Ino::ROOT, slices, size_min: None, mtime_ns: None, kill_priv: false, merge: None }
}

fn carried() -> bytes::Bytes {
    bytes::Bytes::from(vec![0; 16 << 20])
}

/// After how many calls that `send` sends the connection ends.
fn cut_off(conn: u64, mut send: impl FnMut(u64) -> Vec<Effect>) -> Option<u64> {
    let closes = |effect: &Effect| matches!(effect, Effect::Close(ConnId(of)) if *of == conn);
    (1..=8).find(|&n| send(n).iter().any(closes))
}

#[test]
fn who_replays_more_than_a_client_keeps_is_cut_off() {
    let bytes = carried();
    let replay = |base: Version, n| {
        let call = replayed(n, Version(base.0 + n), large(&bytes), None);
        ToServer::Replay { calls: vec![call], end: false }
    };
    let (mut server, one, _, base) = in_the_window(Arc::new(Memory::default()));
    assert_eq!(cut_off(12, |n| server.frame(12, replay(base, n))), Some(6));
    // Whoever comes back begins anew.
    let two = SessionId(one.0 + 1);
    assert!(server.open(13, resume(2, two, Version(base.0 + 40))).unwrap().replay);
    assert_eq!(cut_off(13, |n| server.frame(13, replay(base, n))), Some(6));

    let (mut server, one, _, base) = after_the_window(Arc::new(Memory::default()));
    server.open(11, resume(1, one, Version(base.0 + 40))).unwrap();
    assert_eq!(cut_off(11, |n| server.frame(11, replay(base, n))), Some(6), "late");
}

#[test]
fn who_calls_more_than_a_client_may_while_replays_are_collected_is_cut_off() {
    let bytes = carried();
    let (mut server, one, _, base) = in_the_window(Arc::new(Memory::default()));
    let call = |id| Call { id, acked: 0, caller: Caller::ROOT, request: large(&bytes) };
    assert_eq!(cut_off(12, |n| server.run(Event::Call(ConnId(12), call(n)))), Some(6));
    server.run(Event::Gone(ConnId(12)));
    let two = SessionId(one.0 + 1);
    server.open(13, resume(2, two, Version(base.0 + 40))).unwrap();
    assert_eq!(cut_off(13, |n| server.run(Event::Call(ConnId(13), call(n)))), Some(6));
}

#[test]
fn what_is_replayed_is_applied_in_groups_that_the_log_can_take_and_told_with_the_last() {
    let (mut server, _, [_, b], base) = in_the_window(Arc::new(Memory::default()));
    let value = bytes::Bytes::from(vec![0; 64 << 10]);
    let mode = chronofs_core::ops::XattrMode::Any;
    // Each puts a value and keeps the one before.
    let request = Request::SetXattr { ino: b, name: "user.a".into(), value, mode };
    let mut calls: Vec<_> =
        (1..=1400).map(|n| replayed(n, Version(base.0 + n), request.clone(), None)).collect();
    calls[0].request = create(Ino(77), "f", false);
    server.frame(12, ToServer::Replay { calls, end: true });
    server.now_ns += 11 * SECOND;
    let mut groups = Vec::new();
    server.core.run(server.now_ns, vec![Event::Tick], &mut |group| groups.push(group)).unwrap();
    groups.retain(|group| group.commits > 0);
    assert!(groups.iter().map(|group| group.commits).sum::<usize>() >= 1399);
    assert!(groups.len() >= 3, "{}", groups.len());
    assert!(groups.iter().all(|group| group.bytes < 65 << 20));
    let parked = |group: &chronofs_meta::core::Decided| super::late::parked_by(&group.effects);
    let parked: Vec<_> = groups.iter().map(parked).collect();
    let (last, before) = parked.split_last().unwrap();
    assert_eq!(*last, [1]);
    assert!(before.iter().all(Vec::is_empty), "the rest may be lost: {before:?}");
    assert!(!server.core.machine.figures().recovering);
}
