//! Behaviours of the data path as a whole, over a server and a store in memory.

use super::testing::{Faults, INO, MemoryMeta, MemoryPort, Rng, cases};
use super::*;
use chronofs_core::Errno;
use chronofs_core::slice::Place;
use std::sync::Arc;

type File = Arc<FileData<MemoryMeta>>;

struct World {
    meta: Arc<MemoryMeta>,
    port: Arc<MemoryPort>,
    faults: Arc<Faults>,
    block_size: u32,
}

impl World {
    fn new(seed: u64, block_size: u32, fail_one_in: u64, delay_ms_max: u64, exclusive: bool) -> World {
        let faults = Faults::new(seed, fail_one_in, delay_ms_max);
        let meta = MemoryMeta::new(faults.clone(), exclusive, block_size);
        World { meta, port: MemoryPort::new(faults.clone()), faults, block_size }
    }

    fn mount(&self, session: u64, tuning: Tuning) -> Arc<Data<MemoryMeta>> {
        let config = Config {
            volume: Uuid::from_u128(1),
            incarnation: 1,
            session: SessionId(session),
            grant: (0, 3),
            block_size: self.block_size,
            compression: if self.block_size > 1024 { Compression::None } else { Compression::Lz4 },
            read_only: false,
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

/// What the file must hold, and what it is done with.
struct Story {
    rng: Rng,
    model: Vec<u8>,
    size_max: u64,
}

impl Story {
    fn range(&mut self) -> (u64, u64) {
        let at = self.rng.below(self.size_max);
        let long = if self.rng.one_in(4) { self.size_max } else { self.size_max / 16 };
        (at, 1 + self.rng.below(long.min(self.size_max - at)))
    }

    fn noise(&mut self, len: u64) -> Vec<u8> {
        // Some bytes that compress and some that do not; never 0, so that holes tell.
        let mask = if self.rng.one_in(2) { 0xff } else { 0x03 };
        (0..len).map(|_| (self.rng.next() as u8 & mask).max(1)).collect()
    }

    fn grow(&mut self, size: u64) {
        if self.model.len() < size as usize {
            self.model.resize(size as usize, 0);
        }
    }

    async fn write(&mut self, file: &File) {
        let (at, len) = self.range();
        let bytes = self.noise(len);
        let now = if self.rng.one_in(2) { file.try_write(at, &bytes, false) } else { None };
        match now {
            Some(result) => result.unwrap(),
            // With the store failing and memory full, a write may be told so; then nothing was written.
            None if file.write(at, &bytes, false).await.is_err() => return,
            None => {}
        }
        self.grow(at + len);
        self.model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
    }

    async fn check_read(&mut self, file: &File) {
        let (at, len) = self.range();
        let end = ((at + len) as usize).min(self.model.len());
        let expected = self.model.get(at as usize..end).unwrap_or(&[]);
        if let Some(now) = file.try_read(at, len as u32) {
            assert!(now.unwrap() == expected, "try_read {at}+{len}");
        }
        let (one, other) = tokio::join!(file.read(at, len as u32), file.read(at, len as u32));
        assert!(one.unwrap() == expected && other.unwrap() == expected, "read {at}+{len}");
    }

    async fn truncate(&mut self, file: &File, meta: &MemoryMeta) {
        let size = self.rng.below(self.size_max);
        let attr = file.set_attr(Some(size), false, meta.truncate(size)).await.unwrap();
        assert_eq!(attr.size, size);
        self.model.resize(size as usize, 0);
    }

    async fn zero(&mut self, file: &File) {
        let (at, len) = self.range();
        let extend = self.rng.one_in(3);
        file.zero(at, len, extend, false).await.unwrap();
        if extend {
            self.grow(at + len);
        }
        let end = ((at + len) as usize).min(self.model.len());
        self.model.get_mut(at as usize..end).unwrap_or_default().fill(0);
    }

    async fn seek(&mut self, file: &File) {
        let at = self.rng.below(self.size_max);
        let rest = self.model.get(at as usize..).unwrap_or(&[]);
        let data = file.seek(at, Seek::Data).await;
        let until = data.map_or(rest.len(), |found| (found - at) as usize);
        assert!(rest[..until].iter().all(|byte| *byte == 0), "data before {data:?} from {at}");
        match file.seek(at, Seek::Hole).await {
            Ok(found) if found < self.model.len() as u64 => assert_eq!(self.model[found as usize], 0),
            Ok(found) => assert_eq!(found, self.model.len() as u64),
            Err(errno) => assert!(errno == Errno::ENXIO && rest.is_empty()),
        }
    }

    async fn append(&mut self, file: &File) {
        let len = 1 + self.rng.below(self.size_max / 32);
        let bytes = self.noise(len);
        if self.model.len() as u64 + len <= self.size_max
            && let Ok(at) = file.append(&bytes, false).await
        {
            assert_eq!(at, self.model.len() as u64);
            self.model.extend(bytes);
        }
    }
}

async fn play(seed: u64) {
    let mut rng = Rng::new(seed);
    let large = rng.one_in(4);
    let block_size = if large { 40 << 10 } else { 256 };
    let fail_one_in = [0, 3, 10][rng.below(3) as usize];
    let world = World::new(seed, block_size, fail_one_in, [0, 5, 3000][rng.below(3) as usize], rng.one_in(2));
    let size_max = u64::from(block_size) * 16;
    let tuning = Tuning {
        dirty_bytes_max: if rng.one_in(3) { size_max / 4 } else { size_max * 16 },
        cache_bytes_max: if rng.one_in(3) { size_max / 4 } else { size_max * 16 },
        slices_per_block_max: 6,
        ..Tuning::default()
    };
    let data = world.mount(1, tuning.clone());
    let mut file = world.open(&data);
    let mark = file.error_mark();
    let mut story = Story { rng, model: Vec::new(), size_max };
    for _ in 0..if large { 25 } else { 60 } {
        match story.rng.below(20) {
            0..=5 => story.write(&file).await,
            6..=10 => story.check_read(&file).await,
            11 => story.truncate(&file, &world.meta).await,
            12 | 13 => story.zero(&file).await,
            14 => story.seek(&file).await,
            15 => story.append(&file).await,
            16 | 17 => {
                let flushed = file.flush(&mark).await;
                assert!(flushed.is_ok() || fail_one_in > 0, "{flushed:?}");
            }
            18 => tokio::time::sleep(Duration::from_millis(story.rng.below(4000))).await,
            _ => file = world.open(&data),
        }
        let attr = file.overlay(world.meta.attr());
        assert_eq!(attr.size, story.model.len() as u64, "size");
    }
    world.faults.heal();
    file.flush(&mark).await.unwrap();
    check_published(&world, &story, &data, tuning).await;
    data.stop();
}

/// What another mount sees after everything was flushed.
async fn check_published(world: &World, story: &Story, data: &Data<MemoryMeta>, tuning: Tuning) {
    assert_eq!(data.budget.used(), 0, "memory is given back");
    assert_eq!(world.meta.attr().size, story.model.len() as u64);
    let other = world.mount(2, tuning);
    let seen = world.open(&other).read(0, u32::MAX).await.unwrap();
    assert!(seen == story.model, "another mount sees other bytes");
}

#[test]
fn a_file_reads_as_a_plain_array_whatever_fails_or_dawdles() {
    let replay = std::env::var("CHRONOFS_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = replay.map_or(0..u64::from(cases(1000)), |seed| seed..seed + 1);
    for seed in seeds {
        let played = std::panic::catch_unwind(|| runtime().block_on(play(seed)));
        assert!(played.is_ok(), "failed with CHRONOFS_SEED={seed}");
    }
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
        file.set_attr(None, true, async { Ok(world.meta.attr()) }).await.unwrap();
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
