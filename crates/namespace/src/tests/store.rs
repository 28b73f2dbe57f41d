use super::*;
use crate::rows::Session;
use crate::{instants, list_kept, list_sessions, list_volumes, protected_instants, session, volume};
use chronofs_core::ops::Missed;

const SECOND: u64 = 1_000_000_000;

fn open(client: u128, at: Option<Version>) -> SystemRequest {
    SystemRequest::OpenSession { volume: spec().id, client, at, read_only: false, ttl_ms: 1000, scope: WHOLE }
}

fn session_id(reply: Result<SystemReply, SystemError>) -> SessionId {
    match reply {
        Ok(SystemReply::Session { id, .. }) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn volumes_are_made_once_and_can_be_told_apart() {
    let mut fs = Fs::new();
    fs.file(Ino::ROOT, "f");
    let again = fs.system(SystemRequest::CreateVolume(spec())).unwrap();
    assert!(matches!(again, SystemReply::Volume { index: VOLUME, .. }));
    let other = VolumeSpec { id: Uuid::from_u128(8), name: "w".to_owned(), ..spec() };
    let Ok(SystemReply::Volume { index, .. }) = fs.system(SystemRequest::CreateVolume(other)) else {
        panic!()
    };
    assert_eq!(index, VolumeIndex(2));
    assert_eq!(list_volumes(&fs.state).unwrap().len(), 2);
    assert_eq!(crate::usage(&fs.state, index).unwrap().unwrap().used_inodes, 1);
}

#[test]
fn what_cannot_be_a_volume_is_refused() {
    let mut fs = Fs::new();
    for bad in [VolumeSpec { block_size: 4096, ..spec() }, VolumeSpec { block_size: BLOCK * 3, ..spec() }] {
        let refused = fs.system(SystemRequest::CreateVolume(bad));
        assert!(matches!(refused, Err(SystemError::BadSpec(_))), "{refused:?}");
    }
    let larger = VolumeSpec { block_size: BLOCK * 2, ..spec() };
    assert!(matches!(fs.system(SystemRequest::UpdateVolume(larger)), Err(SystemError::BadSpec(_))));
    let unknown = VolumeSpec { id: Uuid::from_u128(9), ..spec() };
    let refused = fs.system(SystemRequest::UpdateVolume(unknown.clone()));
    assert_eq!(refused, Err(SystemError::UnknownVolume(unknown.id)));
}

#[test]
fn a_deleted_volume_serves_nothing() {
    let mut fs = Fs::new();
    let id = spec().id;
    fs.system(SystemRequest::DeleteVolume { id }).unwrap();
    fs.system(SystemRequest::DeleteVolume { id }).unwrap();
    assert_eq!(fs.system(open(5, None)), Err(SystemError::DeletedVolume(id)));
    assert_eq!(fs.read(&ROOT, None, &Request::StatFs), Err(Errno::ESTALE));
    assert_eq!(fs.make_as(&ROOT, Ino::ROOT, "f", NewNode::File, 0), Err(Errno::ESTALE));
}

#[test]
fn sessions_are_repeatable_renewable_and_end_once() {
    let mut fs = Fs::new();
    let id = session_id(fs.system(open(5, None)));
    assert_eq!(session_id(fs.system(open(5, None))), id);
    assert_ne!(session_id(fs.system(open(6, None))), id);
    fs.system(SystemRequest::RenewSession { session: id }).unwrap();
    let row = session(&fs.state, id).unwrap().unwrap();
    assert_eq!((row.renewed, row.granted), (fs.now(), 1 << 20));
    fs.system(SystemRequest::EndSession { session: id }).unwrap();
    fs.system(SystemRequest::EndSession { session: id }).unwrap();
    let refused = fs.system(SystemRequest::RenewSession { session: id });
    assert_eq!(refused, Err(SystemError::UnknownSession(id)));
    assert_eq!(list_sessions(&fs.state).unwrap().len(), 2);
    assert!(session_id(fs.system(open(5, None))) > id, "an id is never used again");
}

#[test]
fn what_a_session_is_still_to_replay_stays_in_its_row_until_it_has() {
    let mut fs = Fs::new();
    let id = session_id(fs.system(open(5, None)));
    let missed = Some(Missed { recovered: Version(3), mark: Version(2) });
    fs.system(SystemRequest::NoteMissed { session: id, missed }).unwrap();
    fs.system(SystemRequest::RenewSession { session: id }).unwrap();
    fs.session = id;
    fs.ask(&ROOT, Request::Grant { count: 10 }).unwrap();
    let row = session(&fs.state, id).unwrap().unwrap();
    assert_eq!((row.missed, row.renewed > row.opened), (missed, true));
    let parked = vec![(7, Errno::ESTALE)];
    fs.system(SystemRequest::NoteParked { session: id, calls: parked.clone() }).unwrap();
    let row = Session { parked, ..row };
    fs.system(SystemRequest::NoteMissed { session: id, missed: None }).unwrap();
    assert_eq!(session(&fs.state, id).unwrap().unwrap(), Session { missed: None, ..row });
    fs.system(SystemRequest::EndSession { session: id }).unwrap();
    let refused = fs.system(SystemRequest::NoteMissed { session: id, missed });
    assert_eq!(refused, Err(SystemError::UnknownSession(id)));
}

#[test]
fn grants_follow_each_other() {
    let mut fs = Fs::new();
    let first = 1 << 20;
    let grant = |fs: &mut Fs, count| fs.ask(&ROOT, Request::Grant { count });
    assert_eq!(grant(&mut fs, 10), Ok(Reply::Grant { first, end: first + 10 }));
    assert_eq!(grant(&mut fs, 5), Ok(Reply::Grant { first: first + 10, end: first + 15 }));
    assert_eq!(grant(&mut fs, 0), Err(Errno::EINVAL));
    fs.session = SessionId(99);
    assert_eq!(grant(&mut fs, 5), Err(Errno::ESTALE));
}

#[test]
fn only_instants_that_can_be_had_are_leased() {
    let mut fs = Fs::new();
    let born = volume(&fs.state, VOLUME).unwrap().unwrap().born;
    let refused = fs.system(open(5, Some(Version(born.0 - 1))));
    let now = fs.now();
    assert_eq!(refused, Err(SystemError::Instant { at: Version(born.0 - 1), earliest: born, latest: now }));
    session_id(fs.system(open(5, Some(born))));
    let future = Version(fs.version + SECOND);
    assert!(matches!(fs.system(open(6, Some(future))), Err(SystemError::Instant { .. })));
    fs.version += 4000 * SECOND;
    let late = fs.system(open(6, Some(born)));
    let earliest = Version(fs.version - 3600 * SECOND);
    assert_eq!(late, Err(SystemError::Instant { at: born, earliest, latest: fs.now() }));
    session_id(fs.system(open(6, Some(Version(fs.version - 3000 * SECOND)))));
}

#[test]
fn what_is_held_can_be_leased_when_the_window_has_passed_unless_it_was_found_too_late() {
    let mut fs = Fs::new();
    let (from, to) = (fs.now(), Version(fs.now().0 + 10));
    let keep = |id, at, to, found| SystemRequest::Keep {
        volume: spec().id,
        id: uuid::Uuid::from_u128(id),
        at,
        to,
        ends: None,
        note: String::new(),
        found,
    };
    fs.version += SECOND;
    fs.system(keep(1, from, to, false)).unwrap();
    fs.version += 4000 * SECOND;
    let before = Version(from.0 - 1);
    // It lay in the block store, and its rows may be gone: it is protected, and no more.
    let stray = Version(to.0 + 100);
    fs.system(keep(2, stray, stray, true)).unwrap();
    for (n, refused) in [before, Version(to.0 + 1), stray].into_iter().enumerate() {
        let said = fs.system(open(20 + n as u128, Some(refused)));
        assert!(matches!(said, Err(SystemError::Instant { .. })), "{refused}: {said:?}");
    }
    let late = fs.system(keep(3, stray, stray, false));
    assert!(matches!(late, Err(SystemError::Instant { .. })), "{late:?}");
    for (n, held) in [from, to].into_iter().enumerate() {
        session_id(fs.system(open(30 + n as u128, Some(held))));
    }
    fs.system(keep(4, to, to, false)).unwrap();
    fs.system(SystemRequest::Release { volume: spec().id, id: uuid::Uuid::from_u128(1) }).unwrap();
    assert!(matches!(fs.system(open(40, Some(from))), Err(SystemError::Instant { .. })));
    session_id(fs.system(open(41, Some(to))));
}

#[test]
fn instants_in_a_gap_are_refused_with_its_ends() {
    let mut fs = Fs::new();
    let mut row = volume(&fs.state, VOLUME).unwrap().unwrap();
    let (before, after) = (Version(fs.version + 100), Version(fs.version + 200));
    row.gaps.push((before, after));
    let mut txn =
        chronofs_history::Txn::new(&fs.state, crate::rows::STORE_WIDE, Version(fs.version + 1), false);
    txn.put_plain(crate::rows::VOLUME, &VOLUME.0.to_be_bytes(), &crate::rows::Format::encode(&row).unwrap());
    let batch = txn.into_batch();
    fs.version += 1;
    fs.commit(batch);
    fs.version += 1000;
    let at = Version(before.0 + 1);
    assert_eq!(fs.system(open(5, Some(at))), Err(SystemError::Gap { at, before, after }));
    session_id(fs.system(open(5, Some(before))));
    session_id(fs.system(open(6, Some(after))));
}

#[test]
fn history_begins_when_retention_does() {
    let mut fs = Fs::with(VolumeSpec { retention: Retention::None, ..spec() });
    let early = fs.now();
    let refused = fs.system(open(5, Some(early)));
    assert_eq!(refused, Err(SystemError::Instant { at: early, earliest: fs.now(), latest: fs.now() }));
    fs.system(SystemRequest::UpdateVolume(spec())).unwrap();
    let since = fs.now();
    fs.file(Ino::ROOT, "f");
    let row = volume(&fs.state, VOLUME).unwrap().unwrap();
    assert_eq!((row.history_since, instants(&row, fs.now()).0), (Some(since), since));
    assert_eq!(fs.lookup_at(Some(since), Ino::ROOT, "f"), Err(Errno::ENOENT));
    session_id(fs.system(open(5, Some(since))));
    fs.system(SystemRequest::UpdateVolume(VolumeSpec { retention: Retention::None, ..spec() })).unwrap();
    assert_eq!(volume(&fs.state, VOLUME).unwrap().unwrap().history_since, None);
}

#[test]
fn what_has_left_the_window_does_not_come_back_with_a_wider_one() {
    let mut fs = Fs::new();
    fs.version += 7200 * SECOND;
    let gone = Version(fs.version - 3700 * SECOND);
    let wider = VolumeSpec { retention: Retention::Seconds(86_400), ..spec() };
    fs.system(SystemRequest::UpdateVolume(wider)).unwrap();
    let earliest = Version(fs.version - 3600 * SECOND);
    let refused = fs.system(open(5, Some(gone)));
    assert_eq!(refused, Err(SystemError::Instant { at: gone, earliest, latest: fs.now() }));
    session_id(fs.system(open(6, Some(earliest))));
}

#[test]
fn the_horizon_moves_forward_only_and_spares_window_and_leases() {
    let mut fs = Fs::new();
    let born = fs.now();
    let id = session_id(fs.system(open(5, Some(born))));
    let advance = |fs: &mut Fs, to| match fs.system(SystemRequest::AdvanceHorizon { volume: spec().id, to }) {
        Ok(SystemReply::Horizon(horizon)) => horizon,
        other => panic!("{other:?}"),
    };
    let horizon = advance(&mut fs, Version::MAX);
    assert!(horizon <= born, "all of it is in the window");
    fs.version += 7200 * SECOND;
    let horizon = advance(&mut fs, Version::MAX);
    assert_eq!(horizon, Version(fs.version - 3600 * SECOND));
    assert_eq!(advance(&mut fs, born), horizon);
    let row = volume(&fs.state, VOLUME).unwrap().unwrap();
    let protected = |fs: &Fs| {
        let sessions = list_sessions(&fs.state).unwrap();
        protected_instants(VOLUME, &row, &sessions, &list_kept(&fs.state).unwrap())
            .intervals()
            .collect::<Vec<_>>()
    };
    let window = (horizon, Version::MAX);
    assert_eq!(protected(&fs), [(born, born), window]);
    fs.system(SystemRequest::EndSession { session: id }).unwrap();
    assert_eq!(protected(&fs), [window]);
}
