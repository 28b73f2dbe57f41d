//! Behaviours of the data path as a whole, over a server and a store in memory.

mod disk;
mod encrypted;
mod lost;
mod model;
mod order;
mod packed;

use super::testing::{Faults, INO, MemoryMeta, MemoryPort, SLICES_PER_BLOCK_CAP, VOLUME};
use super::*;
use chronofs_core::slice::Place;
use chronofs_core::{Errno, SetAttr, SetTime};
use std::sync::Arc;

type File = Arc<FileData<MemoryMeta>>;

struct World {
    meta: Arc<MemoryMeta>,
    port: Arc<MemoryPort>,
    faults: Arc<Faults>,
    block_size: u32,
    disk: Option<Arc<DiskCache>>,
    keys: Option<Arc<KeyRing>>,
}

impl World {
    fn new(seed: u64, block_size: u32, fail_one_in: u64, delay_ms_max: u64, exclusive: bool) -> World {
        let faults = Faults::new(seed, fail_one_in, delay_ms_max);
        let meta = MemoryMeta::new(faults.clone(), exclusive, block_size);
        World { meta, port: MemoryPort::new(faults.clone()), faults, block_size, disk: None, keys: None }
    }

    fn mount(&self, session: u64, tuning: Tuning) -> Arc<Data<MemoryMeta>> {
        let config = Config {
            volume: VOLUME,
            incarnation: 1,
            session: SessionId(session),
            grant: (0, 3),
            block_size: self.block_size,
            compression: if self.block_size > 1024 { Compression::None } else { Compression::Lz4 },
            read_only: false,
            keys: self.keys.clone(),
            disk: self.disk.clone(),
            tuning,
        };
        Data::start(config, self.meta.clone(), self.port.clone())
    }

    fn open(&self, data: &Data<MemoryMeta>) -> File {
        let file = data.file(&self.meta.attr());
        file.opened(&self.meta.attr(), None);
        file
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

fn calm(block_size: u32) -> World {
    World::new(1, block_size, 0, 0, false)
}

#[test]
fn written_bytes_are_published_by_age_without_a_flush() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        world.open(&data).write(0, b"hello", false).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(world.meta.attr().size, 0);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(world.meta.attr().size, 5);
        assert_eq!(data.budget.used(), 0);
    });
}

#[test]
fn full_blocks_go_out_while_writing_goes_on() {
    runtime().block_on(async {
        let world = calm(128 << 10);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        for n in 0..5 * 32 {
            file.write(n * 4096, &[n as u8; 4096], false).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.meta.attr().size, 5 * (128 << 10));
        assert_eq!(world.port.len(), 5, "one object for each block");
        assert_eq!(data.budget.used(), 0);
    });
}

#[test]
fn a_writer_waits_while_memory_is_full_and_gets_on_when_old_bytes_went() {
    runtime().block_on(async {
        let world = World::new(1, 64 << 10, 0, 50, false);
        let data = world.mount(1, Tuning { dirty_bytes_max: 100 << 10, ..Tuning::default() });
        let file = world.open(&data);
        for n in 0..40u64 {
            file.write(n * (70 << 10), &vec![n as u8; 30 << 10], false).await.unwrap();
            assert!(data.budget.used() <= 100 << 10);
        }
        file.flush(&file.error_mark()).await.unwrap();
        let seen = file.read(39 * (70 << 10), 10).await.unwrap();
        assert_eq!(&seen[..], &[39; 10]);
    });
}

#[test]
fn a_refused_publish_is_told_once_to_each_handle_and_its_bytes_are_gone() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        let (one, other) = (file.error_mark(), file.error_mark());
        world.meta.refuse(Some(PublishError::Answered(Errno::EDQUOT)));
        file.write(0, b"too much", false).await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(file.flush(&one).await, Err(Errno::EDQUOT));
        assert_eq!(file.flush(&one).await, Ok(()));
        assert_eq!(file.flush(&other).await, Err(Errno::EDQUOT));
        assert_eq!(file.flush(&file.error_mark()).await, Ok(()));
        assert_eq!((file.size(), data.budget.used()), (0, 0));
    });
}

#[test]
fn a_publish_without_an_answer_is_told_and_loses_nothing() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        let mark = file.error_mark();
        world.meta.refuse(Some(PublishError::NoAnswer(Errno::EIO)));
        file.write(0, b"kept", false).await.unwrap();
        assert_eq!(file.flush(&mark).await, Err(Errno::EIO));
        assert_eq!(&file.read(0, 10).await.unwrap()[..], b"kept");
        world.meta.refuse(None);
        assert_eq!(file.flush(&mark).await, Ok(()));
        assert_eq!(world.meta.attr().size, 4);
    });
}

#[test]
fn a_publish_that_may_be_done_later_is_tried_again_and_nobody_hears_of_it() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        let mark = file.error_mark();
        world.meta.refuse(Some(PublishError::Answered(Errno::EAGAIN)));
        file.write(0, b"kept", false).await.unwrap();
        let later = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            world.meta.refuse(None);
        };
        let (flushed, ()) = tokio::join!(file.flush(&mark), later);
        assert_eq!((flushed, world.meta.attr().size), (Ok(()), 4));

        world.meta.refuse(Some(PublishError::Answered(Errno::EAGAIN)));
        file.write(4, b" too", false).await.unwrap();
        let start = tokio::time::Instant::now();
        assert_eq!(file.flush(&mark).await, Err(Errno::EAGAIN), "not for ever");
        assert!((Duration::from_secs(5)..Duration::from_secs(20)).contains(&start.elapsed()));
        world.meta.refuse(None);
        assert_eq!(file.flush(&mark).await, Ok(()));
        let other = world.open(&world.mount(2, Tuning::default()));
        assert_eq!(&other.read(0, 10).await.unwrap()[..], b"kept too");
    });
}

#[test]
fn a_publish_under_a_session_that_is_over_waits_for_the_next_one_and_nobody_hears_of_it() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, b"kept", false).await.unwrap();
        file.zero(1, 1, false, false).await.unwrap();
        world.meta.refuse(Some(PublishError::SessionOver));
        let next = async {
            // The data path hears of the new session later than the connection.
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.meta.refuse(None);
            world.meta.take_only(SessionId(7));
            data.set_grant(1, SessionId(7), (0, 100));
        };
        let mark = file.error_mark();
        let (flushed, ()) = tokio::join!(file.flush(&mark), next);
        assert_eq!(flushed, Ok(()));
        let other = world.open(&world.mount(2, Tuning::default()));
        assert_eq!(&other.read(0, 10).await.unwrap()[..], b"k\0pt");
    });
}

#[test]
fn a_failing_store_fails_every_flush_and_loses_nothing() {
    runtime().block_on(async {
        let world = World::new(1, 128 << 10, 1, 0, false);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        let mark = file.error_mark();
        let bytes = vec![7; 100 << 10];
        file.write(0, &bytes, false).await.unwrap();
        assert_eq!(file.flush(&mark).await, Err(Errno::EIO));
        assert_eq!(file.flush(&mark).await, Err(Errno::EIO));
        assert!(file.read(0, 200 << 10).await.unwrap() == bytes);
        world.faults.heal();
        assert_eq!(file.flush(&mark).await, Ok(()));
        assert_eq!(world.meta.attr().size, 100 << 10);
    });
}

#[test]
fn a_damaged_or_missing_object_is_eio_on_its_range_only() {
    for remove in [false, true] {
        runtime().block_on(async {
            let world = calm(128 << 10);
            let data = world.mount(1, Tuning::default());
            let file = world.open(&data);
            file.write(0, &vec![1; 128 << 10], false).await.unwrap();
            file.flush(&file.error_mark()).await.unwrap();
            world.port.harm(remove);
            file.write(128 << 10, &vec![2; 128 << 10], false).await.unwrap();
            file.flush(&file.error_mark()).await.unwrap();
            let other = world.open(&world.mount(2, Tuning::default()));
            assert_eq!(other.read(100, 10).await, Err(Errno::EIO));
            assert_eq!(other.read((128 << 10) - 1, 2).await, Err(Errno::EIO));
            assert_eq!(&other.read(128 << 10, 3).await.unwrap()[..], &[2; 3]);
        });
    }
}

#[test]
fn a_block_of_many_slices_is_merged_and_reads_the_same() {
    runtime().block_on(async {
        let world = calm(4096);
        let data = world.mount(1, Tuning { slices_per_block_max: 8, ..Tuning::default() });
        let file = world.open(&data);
        let mut model = vec![0u8; 4096];
        for n in 0..30usize {
            file.write(n as u64 * 100, &[n as u8 + 1; 60], false).await.unwrap();
            model[n * 100..n * 100 + 60].fill(n as u8 + 1);
            file.flush(&file.error_mark()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(world.meta.merges() > 0);
        assert!(world.meta.all_slices().len() <= 30);
        model.truncate(29 * 100 + 60);
        let other = world.mount(2, Tuning::default());
        assert!(world.open(&other).read(0, 8192).await.unwrap() == model);
        assert!(file.read(0, 8192).await.unwrap() == model);
    });
}

#[test]
fn a_file_that_is_appended_to_without_a_pause_is_not_merged_in_vain() {
    runtime().block_on(async {
        // Whatever goes to server or store takes a while, in which more would be appended.
        let world = World::new(1, 2 << 20, 0, 20, false);
        let data = world.mount(1, Tuning { slices_per_block_max: 32, ..Tuning::default() });
        let file = world.open(&data);
        for n in 0..400u64 {
            file.write(n * 4096, &[n as u8 | 1; 4096], false).await.unwrap();
            file.flush(&file.error_mark()).await.unwrap();
        }
        assert!(world.meta.merges() > 8, "{}", world.meta.merges());
        assert!(world.port.len() <= 400 / 32 + 2, "{} objects", world.port.len());
        let read = file.read(0, 2 << 20).await.unwrap();
        assert!((0..400usize).all(|n| read[n * 4096..][..4096] == [n as u8 | 1; 4096]));
    });
}

#[test]
fn a_block_that_the_server_finds_too_full_is_merged_before_more_is_published() {
    runtime().block_on(async {
        let world = calm(4096);
        // Of itself it would not merge so few.
        let data = world.mount(1, Tuning { slices_per_block_max: SLICES_PER_BLOCK_CAP, ..Tuning::default() });
        let file = world.open(&data);
        let mut model = vec![0u8; 4096];
        for n in 0..200usize {
            file.write(n as u64 * 20, &[n as u8 + 1; 10], false).await.unwrap();
            model[n * 20..n * 20 + 10].fill(n as u8 + 1);
            file.flush(&file.error_mark()).await.unwrap();
            assert!(world.meta.all_slices().len() <= SLICES_PER_BLOCK_CAP);
        }
        assert!(world.meta.merges() > 0);
        model.truncate(199 * 20 + 10);
        let other = world.open(&world.mount(2, Tuning::default()));
        assert!(other.read(0, 8192).await.unwrap() == model);
    });
}

/// A file of `count` islands of 10 bytes, on a volume that has room for so many bytes more, and its content.
async fn islands(world: &World, count: usize, room: u64) -> (File, Vec<u8>) {
    let tuning = Tuning { slices_per_block_max: SLICES_PER_BLOCK_CAP, ..Tuning::default() };
    let file = world.open(&world.mount(1, tuning));
    let mut model = vec![0u8; (count - 1) * 100 + 10];
    for n in 0..count {
        file.write(n as u64 * 100, &[n as u8 + 1; 10], false).await.unwrap();
        model[n * 100..n * 100 + 10].fill(n as u8 + 1);
        file.flush(&file.error_mark()).await.unwrap();
    }
    world.meta.leave_room(room);
    (file, model)
}

#[test]
fn a_full_block_is_merged_without_zeros_when_the_quota_has_no_room_for_them() {
    runtime().block_on(async {
        let world = calm(4096);
        let (file, mut model) = islands(&world, 30, 50).await;
        for n in 0..60usize {
            let at = n % 30 * 100 + 2;
            file.write(at as u64, &[n as u8 + 100; 5], false).await.unwrap();
            model[at..at + 5].fill(n as u8 + 100);
            assert_eq!(file.flush(&file.error_mark()).await, Ok(()), "write {n}");
        }
        assert!(world.meta.merges() > 0);
        let other = world.open(&world.mount(2, Tuning::default()));
        assert!(other.read(0, 8192).await.unwrap() == model);
    });
}

#[test]
fn an_island_too_many_for_a_block_and_a_quota_is_refused_and_not_kept_for_ever() {
    runtime().block_on(async {
        let world = calm(8192);
        let (file, model) = islands(&world, SLICES_PER_BLOCK_CAP, 10).await;
        let mark = file.error_mark();
        file.write(5000, b"1 too many", false).await.unwrap();
        assert_eq!(file.flush(&mark).await, Err(Errno::EDQUOT));
        assert_eq!(file.flush(&mark).await, Ok(()), "it was told once, and nothing is left to be stored");
        assert!(!file.data.is_unclean());
        assert!(file.read(0, 8192).await.unwrap() == model);
    });
}

#[test]
fn a_sequential_reader_finds_the_next_blocks_fetched() {
    runtime().block_on(async {
        let world = calm(128 << 10);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, &vec![1; 16 * (128 << 10)], false).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        let other = world.mount(2, Tuning::default());
        let reader = world.open(&other);
        for n in 0..4 {
            reader.read(n * (16 << 10), 16 << 10).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(world.port.gets() > 1, "{}", world.port.gets());
        assert!(reader.try_read(128 << 10, 4096).is_some(), "the next block is in memory");
        let random = world.open(&world.mount(3, Tuning::default()));
        let before = world.port.gets();
        for n in [9, 3, 12, 6] {
            random.read(n * (128 << 10) + 7, 100).await.unwrap();
        }
        assert_eq!(world.port.gets() - before, 4, "a random reader fetches what it reads");
    });
}

#[test]
fn a_time_that_a_program_sets_is_not_undone_by_what_it_wrote_before() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, b"x", false).await.unwrap();
        assert_eq!(file.overlay(world.meta.attr()).mtime_ns, 1_000_000);
        let set = SetAttr { mtime: Some(SetTime::At(0)), ..SetAttr::default() };
        file.set_attr(&set, async { Ok(world.meta.attr()) }).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!((world.meta.attr().size, world.meta.attr().mtime_ns), (1, 0));
    });
}

#[test]
fn what_is_closed_on_one_mount_is_seen_at_the_next_open_on_another() {
    runtime().block_on(async {
        let world = calm(256);
        let (one, two) = (world.mount(1, Tuning::default()), world.mount(2, Tuning::default()));
        let (a, b) = (world.open(&one), world.open(&two));
        for n in 0..10u8 {
            let (writer, reader, data) = if n % 2 == 0 { (&a, &b, &two) } else { (&b, &a, &one) };
            writer.opened(&world.meta.attr(), None);
            writer.write(u64::from(n) * 10, &[n + 1; 300], false).await.unwrap();
            writer.flush(&writer.error_mark()).await.unwrap();
            assert!(Arc::ptr_eq(reader, &world.open(data)));
            assert_eq!(&reader.read(u64::from(n) * 10, 1000).await.unwrap()[..], &[n + 1; 300]);
            assert_eq!(reader.read(0, 5).await.unwrap(), writer.read(0, 5).await.unwrap());
        }
    });
}

#[test]
fn what_another_replaces_while_it_is_read_is_read_as_it_is_now() {
    runtime().block_on(async {
        let world = calm(128 << 10);
        world.port.read_only_what_shows(&world.meta);
        let (one, other) = (world.mount(1, Tuning::default()), world.mount(2, Tuning::default()));
        let writer = world.open(&one);
        writer.write(0, &[1; 128 << 10], false).await.unwrap();
        writer.flush(&writer.error_mark()).await.unwrap();
        let reader = world.open(&other);
        // It knows the slices, and has fetched none.
        assert_eq!(reader.seek(0, Seek::Data).await, Ok(0));
        writer.write(0, &[2; 128 << 10], false).await.unwrap();
        writer.flush(&writer.error_mark()).await.unwrap();
        world.meta.drop_covered();
        assert_eq!(reader.read(5, 3).await.unwrap(), &[2; 3][..]);
    });
}

#[test]
fn slices_that_were_replaced_and_collected_since_they_were_listed_are_asked_for_anew() {
    runtime().block_on(async {
        let world = calm(128 << 10);
        let write = async |session, byte: u8| {
            let writer = world.open(&world.mount(session, Tuning::default()));
            writer.write(0, &vec![byte; 256 << 10], false).await.unwrap();
            writer.flush(&writer.error_mark()).await.unwrap();
        };
        write(1, 1).await;
        let reader = world.open(&world.mount(2, Tuning::default()));
        assert_eq!(&reader.read(0, 1).await.unwrap()[..], &[1], "both blocks are listed");
        world.meta.truncate(0).await.unwrap();
        world.port.harm(true);
        write(3, 2).await;
        assert_eq!(&reader.read(128 << 10, 9).await.unwrap()[..], &[2; 9]);
    });
}

#[test]
fn slices_whose_objects_were_repacked_and_deleted_since_they_were_listed_are_read_where_they_lie_now() {
    runtime().block_on(async {
        let world = calm(128 << 10);
        let writer = world.open(&world.mount(1, Tuning::default()));
        writer.write(0, &vec![7; 512 << 10], false).await.unwrap();
        writer.flush(&writer.error_mark()).await.unwrap();
        let reader = world.open(&world.mount(2, Tuning::default()));
        assert_eq!(&reader.read(0, 1).await.unwrap()[..], &[7], "the blocks are listed");
        for block in 1..4 {
            world.meta.repack(&world.port);
            assert_eq!(&reader.read(block * (128 << 10) + 5, 9).await.unwrap()[..], &[7; 9]);
        }
    });
}

#[test]
fn slices_that_are_shown_and_never_readable_are_eio_in_the_end() {
    runtime().block_on(async {
        let world = calm(128 << 10);
        let file = world.open(&world.mount(1, Tuning::default()));
        file.write(0, &[1; 128 << 10], false).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        let nobodys = MemoryMeta::new(world.faults.clone(), false, world.block_size);
        world.port.read_only_what_shows(&nobodys);
        let reader = world.open(&world.mount(2, Tuning::default()));
        assert_eq!(reader.read(0, 1).await, Err(Errno::EIO));
    });
}

#[test]
fn data_behind_a_huge_hole_is_found_with_few_requests() {
    const TIB: u64 = 1 << 40;
    runtime().block_on(async {
        let world = calm(256 << 10);
        let file = world.open(&world.mount(1, Tuning::default()));
        let set = SetAttr { size: Some(TIB), ..SetAttr::default() };
        file.set_attr(&set, world.meta.truncate(TIB)).await.unwrap();
        assert_eq!(file.seek(5, Seek::Data).await, Err(Errno::ENXIO));
        assert_eq!(file.seek(5, Seek::Hole).await, Ok(5));
        file.write(TIB / 2 + 7, b"x", false).await.unwrap();
        assert_eq!(file.seek(5, Seek::Data).await, Ok(TIB / 2 + 7), "not published yet");
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!(file.seek(5, Seek::Data).await, Ok(TIB / 2 + 7));
        assert_eq!(file.seek(TIB / 2 + 8, Seek::Data).await, Err(Errno::ENXIO));
        let alone = World::new(1, 256 << 10, 0, 0, true);
        let grown = alone.open(&alone.mount(1, Tuning::default()));
        grown.write(TIB - 1, b"x", false).await.unwrap();
        assert_eq!(grown.seek(0, Seek::Data).await, Ok(TIB - 1));
        grown.flush(&grown.error_mark()).await.unwrap();
        assert_eq!(grown.seek(0, Seek::Data).await, Ok(TIB - 1));
        let asked = world.meta.asked() + alone.meta.asked();
        assert!(asked < 100, "{asked} requests");
    });
}

#[test]
fn more_slices_than_one_reply_carries_are_asked_for_in_parts() {
    runtime().block_on(async {
        let world = calm(4096);
        let file = world.open(&world.mount(1, Tuning::default()));
        let mut model = vec![0; 20 * 4096];
        for at in (0..20 * 4096).step_by(512) {
            file.write(at, &[at as u8 / 2 + 1; 9], false).await.unwrap();
            model[at as usize..at as usize + 9].fill(at as u8 / 2 + 1);
        }
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!(world.meta.all_slices().len(), 160);
        let other = world.open(&world.mount(2, Tuning::default()));
        assert!(other.read(0, 20 * 4096).await.unwrap() == model[..19 * 4096 + 3584 + 9]);
        let third = world.open(&world.mount(3, Tuning::default()));
        assert_eq!(third.seek(10, Seek::Data).await, Ok(512));
        assert_eq!(third.seek(3 * 4096, Seek::Hole).await, Ok(3 * 4096 + 9));
    });
}

#[test]
fn an_open_that_brings_the_slices_needs_no_further_request() {
    runtime().block_on(async {
        let world = calm(256);
        let writer = world.open(&world.mount(1, Tuning::default()));
        writer.write(0, &[5; 100], false).await.unwrap();
        writer.flush(&writer.error_mark()).await.unwrap();
        let slices = world.meta.all_slices();
        assert!(slices.iter().all(|placed| matches!(placed.slice.place, Place::Inline(..))));
        let data = world.mount(2, Tuning::default());
        let file = data.file(&world.meta.attr());
        file.opened(&world.meta.attr(), Some(slices));
        assert_eq!(file.ino, INO);
        assert_eq!(&file.read(0, 100).await.unwrap()[..], &[5; 100]);
    });
}

#[test]
fn what_cannot_be_written_is_refused() {
    runtime().block_on(async {
        let world = calm(256);
        let file = world.open(&world.mount(1, Tuning::default()));
        assert_eq!(file.write(u64::MAX - 1, b"xyz", false).await, Err(Errno::EFBIG));
        assert_eq!(file.write(u64::from(u32::MAX) * 256, b"x", false).await, Err(Errno::EFBIG));
        assert_eq!(file.try_write(u64::MAX, b"x", false), Some(Err(Errno::EFBIG)));
        assert_eq!(file.seek(0, Seek::Data).await, Err(Errno::ENXIO));
    });
}

#[test]
fn what_was_sealed_for_a_session_that_is_over_is_sealed_again_for_the_next() {
    runtime().block_on(async {
        let world = World::new(1, 128 << 10, 0, 100, false);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        // A full block is put at once; the session changes while its publish is on the way.
        file.write(0, &vec![9; 128 << 10], false).await.unwrap();
        file.write(200 << 10, &[8; 100], false).await.unwrap();
        while world.port.len() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.meta.take_only(SessionId(7));
        data.set_grant(1, SessionId(7), (0, 100));
        assert_eq!(file.flush(&file.error_mark()).await, Ok(()));
        let other = world.open(&world.mount(2, Tuning::default()));
        assert_eq!(other.read((128 << 10) - 1, 2).await.unwrap(), [9, 0][..]);
        assert_eq!(&other.read(200 << 10, 200).await.unwrap()[..], &[8; 100]);
    });
}

#[test]
fn an_object_that_is_put_while_its_session_is_replaced_is_put_again_under_the_next_and_nobody_hears_of_it() {
    runtime().block_on(async {
        let world = World::new(1, 128 << 10, 0, 100, false);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        world.meta.take_only(SessionId(7));
        world.port.take_only(SessionId(7));
        file.write(0, &vec![9; 300 << 10], false).await.unwrap();
        let news = tokio::spawn(async move {
            // The data path hears of the new session later than the connection.
            tokio::time::sleep(Duration::from_secs(3)).await;
            data.set_grant(1, SessionId(7), (0, 100));
        });
        assert_eq!(file.flush(&file.error_mark()).await, Ok(()));
        news.await.unwrap();
        assert_eq!(world.meta.attr().size, 300 << 10);
    });
}
