//! What the embedded engine makes of bytes that changed, of full disks and of failing ones.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use chronofs_core::Version;
use chronofs_engine::embedded::log::format::{Place, SEGMENT_HEADER, decode_group_header};
use chronofs_engine::embedded::log::segment_name;
use chronofs_engine::embedded::{Disk, DiskFile, Embedded, MemMedium, MemStore, Options};
use chronofs_engine::sim::{Fault, SimDisk};
use chronofs_engine::{Engine, EngineError};
use std::time::Duration;
use support::{all, commit, put};

type Simulated = Embedded<MemStore, SimDisk>;

fn options() -> Options {
    Options {
        segment_bytes: 8192,
        ceiling_ahead: Duration::from_nanos(1000),
        keeper: false,
        ..Options::default()
    }
}

fn open(disk: &SimDisk, medium: &MemMedium) -> Result<Simulated, EngineError> {
    Embedded::new(disk.clone(), MemStore::open(medium.clone()), options())
}

/// A disk with one segment of ten synced groups and one that is not known to be synced, left by a killed process.
fn written() -> (SimDisk, Vec<Place>) {
    let disk = SimDisk::new(7);
    let engine = open(&disk, &MemMedium::default()).unwrap();
    for version in 1..=11 {
        engine.apply(vec![commit(version, [put(&format!("key {version}"), "some value of a row")])]).unwrap();
        if version <= 10 {
            engine.sync().unwrap();
        }
    }
    disk.power_off();
    drop(engine);
    disk.thaw();
    let places = groups(&disk, 1);
    assert_eq!(places.len(), 11);
    (disk, places)
}

fn groups(disk: &SimDisk, segment: u64) -> Vec<Place> {
    let bytes = disk.open(&segment_name(segment)).unwrap().read().unwrap();
    let mut place = Place { segment, offset: SEGMENT_HEADER as u64 };
    let mut places = Vec::new();
    while let Some(header) = decode_group_header(&bytes[place.offset as usize..], place) {
        places.push(place);
        place.offset += header.length();
    }
    places
}

fn flip(disk: &SimDisk, segment: u64, offset: u64) -> SimDisk {
    let copy = disk.copy();
    copy.damage(&segment_name(segment), |content| content[offset as usize] ^= 0x40);
    copy
}

#[test]
fn a_byte_that_changed_before_the_last_known_sync_is_refused_with_segment_and_offset() {
    let (disk, places) = written();
    let last = places[10].offset;
    let mut unnoticed = 0;
    for offset in 0..last {
        match open(&flip(&disk, 1, offset), &MemMedium::default()) {
            Err(EngineError::Damaged { what, detail }) => {
                let group =
                    places.iter().rev().find(|place| place.offset <= offset).map_or(0, |place| place.offset);
                assert_eq!(what, format!("sim/{} at offset {group}", segment_name(1)));
                assert!(detail.contains("restore"), "{detail}");
            }
            Err(error) => panic!("offset {offset}: {error}"),
            Ok(engine) => {
                // Padding between groups.
                assert_eq!(engine.opening().last_commit, Version(11), "offset {offset}");
                unnoticed += 1;
            }
        }
    }
    assert!(unnoticed < 8 * 10, "{unnoticed}");
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on_behind_it() {
    let (disk, places) = written();
    let end =
        disk.open(&segment_name(1)).unwrap().read().unwrap().iter().rposition(|byte| *byte != 0).unwrap();
    for offset in places[10].offset..end as u64 {
        let disk = flip(&disk, 1, offset);
        let medium = MemMedium::default();
        let engine = open(&disk, &medium).unwrap();
        assert_eq!(engine.opening().last_commit, Version(10), "offset {offset}");
        assert!(engine.opening().torn);
        assert_eq!(all(&*engine.view()).len(), 10);
        let next = engine.applied().next(0);
        engine.apply(vec![commit(next.0, [put("later", "")])]).unwrap();
        drop(engine);
        let engine = open(&disk, &medium).unwrap();
        assert_eq!(engine.opening().last_commit, next);
        assert_eq!(all(&*engine.view()).len(), 11);
    }
}

#[test]
fn a_damaged_segment_before_the_last_one_is_refused() {
    let disk = SimDisk::new(3);
    let engine = open(&disk, &MemMedium::default()).unwrap();
    for version in 1..=100 {
        engine.apply(vec![commit(version, [put("key", &"x".repeat(200))])]).unwrap();
    }
    assert!(engine.metrics().log_segments > 3);
    drop(engine);
    for segment in 1..=2 {
        let place = *groups(&disk, segment).last().unwrap();
        let error = open(&flip(&disk, segment, place.offset + 100), &MemMedium::default()).err().unwrap();
        let expected = format!("sim/{} at offset {}", segment_name(segment), place.offset);
        assert!(error.to_string().contains(&expected), "{error}");
    }
    let without = disk.copy();
    without.remove(&segment_name(2)).unwrap();
    let error = open(&without, &MemMedium::default()).err().unwrap();
    assert!(error.to_string().contains(&segment_name(2)) && error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_store_that_is_ahead_of_its_log_is_refused() {
    let (disk, medium) = (SimDisk::new(3), MemMedium::default());
    let empty = disk.copy();
    let engine = open(&disk, &medium).unwrap();
    engine.apply(vec![commit(1, [put("key", "")])]).unwrap();
    engine.flush().unwrap();
    medium.complete_one();
    drop(engine);
    let error = open(&empty, &medium).err().unwrap();
    assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
    let place = groups(&disk, 1)[0];
    disk.damage(&segment_name(1), |content| content[place.offset as usize..].fill(0));
    let error = open(&disk, &medium).err().unwrap();
    assert!(error.to_string().contains("the store holds everything up to here"), "{error}");
}

#[test]
fn a_newer_format_of_the_log_is_refused() {
    let (disk, _) = written();
    disk.damage(&segment_name(1), |content| {
        content[8] = 2;
        let sum = crc32c::crc32c(&content[..SEGMENT_HEADER - 4]).to_le_bytes();
        content[SEGMENT_HEADER - 4..SEGMENT_HEADER].copy_from_slice(&sum);
    });
    let error = open(&disk, &MemMedium::default()).err().unwrap();
    assert!(error.to_string().contains("log format 2"), "{error}");
}

#[test]
fn a_full_disk_refuses_the_group_and_the_engine_goes_on_when_there_is_space() {
    for operation in 1..=8 {
        let (disk, medium) = (SimDisk::new(operation), MemMedium::default());
        let engine = open(&disk, &medium).unwrap();
        engine.apply(vec![commit(1, [put("first", "")])]).unwrap();
        // Larger than the segment, so that space has to be allocated.
        let large = "x".repeat(20_000);
        disk.fail_at(operation, Fault::NoSpace);
        let refused = match engine.apply(vec![commit(2, [put("second", &large)])]) {
            Ok(()) => false,
            Err(EngineError::NoSpace { .. }) => true,
            Err(error) => panic!("operation {operation}: {error}"),
        };
        assert_eq!(all(&*engine.view()).len(), if refused { 1 } else { 2 });
        disk.clear_faults();
        engine.apply(vec![commit(3, [put("third", &large)])]).unwrap();
        engine.sync().unwrap();
        disk.power_off();
        drop(engine);
        disk.power_on();
        let keys: Vec<_> =
            all(&*open(&disk, &medium).unwrap().view()).into_iter().map(|(key, _)| key).collect();
        let expected: &[&str] = if refused { &["first", "third"] } else { &["first", "second", "third"] };
        assert_eq!(keys, expected, "operation {operation}");
    }
}

#[test]
fn a_refused_group_never_comes_back_whatever_a_power_cut_keeps() {
    for seed in 0..2000 {
        let (disk, medium) = (SimDisk::new(seed), MemMedium::default());
        let engine = open(&disk, &medium).unwrap();
        engine.apply(vec![commit(1, [put("first", "")])]).unwrap();
        if seed % 2 == 0 {
            engine.sync().unwrap();
        }
        // Over several sectors, and as long as the group that takes its place.
        disk.fail_at(1, Fault::NoSpace);
        let refused = engine.apply(vec![commit(2, [put("other", &"x".repeat(2000))])]);
        assert!(matches!(refused, Err(EngineError::NoSpace { .. })), "seed {seed}: {refused:?}");
        if seed % 3 > 0 {
            engine.apply(vec![commit(3, [put("third", &"y".repeat(2000))])]).unwrap();
        }
        disk.power_off();
        drop(engine);
        disk.power_on();
        let engine = open(&disk, &medium).unwrap();
        let refused = all(&*engine.view()).into_iter().find(|(key, _)| key == "other");
        assert_eq!(refused.map(|(key, _)| key), None, "seed {seed}: what was refused came back");
    }
}

#[test]
fn an_error_of_fdatasync_stops_the_engine_for_good() {
    let disk = SimDisk::new(1);
    let engine = open(&disk, &MemMedium::default()).unwrap();
    engine.apply(vec![commit(1, [])]).unwrap();
    engine.sync().unwrap();
    engine.apply(vec![commit(2, [])]).unwrap();
    let syncs = engine.metrics().syncs;
    disk.fail_at(1, Fault::Io);
    assert!(matches!(engine.sync(), Err(EngineError::Io { action: "fdatasync", .. })));
    assert!(matches!(engine.sync(), Err(EngineError::Stopped(_))));
    assert!(matches!(engine.apply(vec![commit(3, [])]), Err(EngineError::Stopped(_))));
    assert!(matches!(engine.mark(Version(1)), Err(EngineError::Stopped(_))));
    assert_eq!(engine.durable(), Version(1));
    assert_eq!(engine.metrics().syncs, syncs + 1, "it was tried again");
}

#[test]
fn a_store_that_cannot_flush_stops_the_engine_and_loses_nothing() {
    let (disk, medium) = (SimDisk::new(1), MemMedium::default());
    let engine = open(&disk, &medium).unwrap();
    engine.apply(vec![commit(1, [put("key", "value")])]).unwrap();
    engine.flush().unwrap();
    medium.break_down();
    assert!(matches!(engine.maintain(), Err(EngineError::Store(_))));
    assert!(matches!(engine.apply(vec![commit(2, [])]), Err(EngineError::Stopped(_))));
    drop(engine);
    assert_eq!(all(&*open(&disk, &MemMedium::default()).unwrap().view()), [("key".into(), "value".into())]);
}

#[test]
fn a_disk_without_room_for_a_flush_does_not_stop_the_engine() {
    let (disk, medium) = (SimDisk::new(1), MemMedium::default());
    let engine = open(&disk, &medium).unwrap();
    engine.apply(vec![commit(1, [put("a", "1")])]).unwrap();
    medium.set_full(true);
    engine.flush().unwrap();
    engine.apply(vec![commit(2, [put("b", "2")])]).unwrap();
    assert_eq!((engine.metrics().flushes, engine.stopped()), (0, None));
    medium.set_full(false);
    engine.flush().unwrap();
    assert_eq!(engine.metrics().flushes, 1);
}

#[test]
fn commits_that_do_not_fit_are_refused_without_a_trace() {
    let engine = open(&SimDisk::new(1), &MemMedium::default()).unwrap();
    engine.apply(vec![commit(5, [put("a", "")])]).unwrap();
    assert!(engine.apply(vec![commit(5, [put("b", "")])]).is_err());
    assert!(engine.apply(vec![commit(6, [put("c", "")]), commit(6, [])]).is_err());
    assert!(engine.apply(vec![commit(7, [put("", "")])]).is_err());
    assert_eq!(engine.applied(), Version(5));
    engine.apply(vec![commit(6, [put("d", "")])]).unwrap();
    assert_eq!(all(&*engine.view()).len(), 2);
}

#[test]
fn segments_go_when_the_store_and_the_mark_have_passed_them() {
    let (disk, medium) = (SimDisk::new(1), MemMedium::default());
    let engine = open(&disk, &medium).unwrap();
    let fill = |from: u64| {
        for version in from..from + 100 {
            engine.apply(vec![commit(version, [put("key", &"x".repeat(300))])]).unwrap();
        }
        engine.metrics().log_segments
    };
    let full = fill(1);
    assert!(full > 3);
    engine.flush().unwrap();
    medium.complete_one();
    engine.maintain().unwrap();
    assert_eq!(engine.metrics().log_segments, full, "without a mark every tag is needed");
    engine.mark(Version(101)).unwrap();
    let fuller = fill(101);
    engine.sync().unwrap();
    engine.maintain().unwrap();
    assert!(engine.metrics().log_segments <= fuller - full + 1);
    drop(engine);
    let engine = open(&disk, &medium).unwrap();
    let tags = engine.recovered();
    assert_eq!(tags.first().map(|tag| tag.version), Some(Version(101)));
    assert_eq!((tags.len(), engine.opening().replayed), (100, 100));
}

#[test]
fn versions_begin_above_the_ceiling_after_a_crash_and_above_the_last_commit_after_a_clean_end() {
    let (disk, medium) = (SimDisk::new(1), MemMedium::default());
    let engine = open(&disk, &medium).unwrap();
    engine.apply(vec![commit(50, [])]).unwrap();
    drop(engine);
    let engine = open(&disk, &medium).unwrap();
    assert_eq!((engine.floor(), engine.applied()), (Version(50), Version(50)));
    engine.apply(vec![commit(60, [])]).unwrap();
    disk.power_off();
    drop(engine);
    disk.power_on();
    assert_eq!(open(&disk, &medium).unwrap().floor(), Version(1060));
}
