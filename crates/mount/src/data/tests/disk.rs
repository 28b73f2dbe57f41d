//! Reading with a disk cache, and ahead of readers on a store that is far away.

use super::*;
use bytes::Bytes;
use std::fs;
use std::path::Path;

const CACHE_BYTES: u64 = 64 << 20;
const BLOCK: u32 = 128 << 10;

fn with_cache(world: &mut World, dir: &Path) -> Arc<DiskCache> {
    let cache = DiskCache::start(dir, CACHE_BYTES);
    world.disk = Some(cache.clone());
    cache
}

fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

async fn write(world: &World, data: &Data<MemoryMeta>, bytes: &[u8]) {
    let file = world.open(data);
    file.write(0, bytes, false).await.unwrap();
    file.flush(&file.error_mark()).await.unwrap();
}

async fn read(world: &World, session: u64, len: usize) -> Bytes {
    // Nothing but the disk cache is left from one to the next.
    let data = world.mount(session, Tuning::default());
    world.open(&data).read(0, len as u32).await.unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_was_read_once_is_read_from_disk_after_a_restart() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut world = calm(BLOCK);
        let bytes = content(5 * BLOCK as usize + 77_777);
        write(&world, &world.mount(1, Tuning::default()), &bytes).await;
        let cache = with_cache(&mut world, dir.path());
        assert!(read(&world, 2, bytes.len()).await == bytes);
        let gets = world.port.gets();
        assert!(gets >= 6, "{gets}");
        cache.close();
        let cache = with_cache(&mut world, dir.path());
        wait_until("the index", || !cache.figures().loading);
        world.port.harm(true);
        assert!(read(&world, 3, bytes.len()).await == bytes);
        assert_eq!(world.port.gets(), gets, "no request");
        assert_eq!((cache.figures().hits, cache.figures().misses), (6, 0));
    });
}

#[test]
fn what_was_written_is_read_from_disk_without_a_request() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut world = calm(BLOCK);
        let cache = with_cache(&mut world, dir.path());
        let bytes = content(3 * BLOCK as usize);
        write(&world, &world.mount(1, Tuning::default()), &bytes).await;
        wait_until("the slices", || cache.figures().kept == 3);
        assert!(read(&world, 2, bytes.len()).await == bytes);
        assert_eq!((world.port.gets(), cache.figures().hits), (0, 3));
    });
}

#[test]
fn what_is_damaged_on_the_disk_comes_from_the_store_and_is_kept_anew() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut world = calm(BLOCK);
        let cache = with_cache(&mut world, dir.path());
        let bytes = content(3 * BLOCK as usize);
        write(&world, &world.mount(1, Tuning::default()), &bytes).await;
        wait_until("the slices", || cache.figures().kept == 3);
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let harmed: Vec<u8> = fs::read(&path).unwrap().iter().map(|byte| byte ^ 4).collect();
            fs::write(&path, harmed).unwrap();
        }
        assert!(read(&world, 2, bytes.len()).await == bytes);
        assert_eq!((world.port.gets(), cache.figures().damaged), (3, 3));
        wait_until("the slices", || cache.figures().kept == 6);
        assert!(read(&world, 3, bytes.len()).await == bytes);
        assert_eq!((world.port.gets(), cache.figures().hits), (3, 3));
    });
}

#[test]
fn damage_in_the_store_is_no_wrong_byte_and_does_not_enter_the_cache() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut world = calm(BLOCK);
        write(&world, &world.mount(1, Tuning::default()), &content(BLOCK as usize)).await;
        let cache = with_cache(&mut world, dir.path());
        world.port.harm(false);
        let data = world.mount(2, Tuning::default());
        assert_eq!(world.open(&data).read(0, 10).await, Err(Errno::EIO));
        cache.close();
        assert_eq!(cache.figures().kept, 0);
    });
}

/// Milliseconds that a program needs to read a file in order from a store that answers after some 20 ms, and how many
/// requests that took.
async fn read_in_order(world: &World, len: usize, tuning: Tuning) -> (u128, u64) {
    let data = world.mount(9, tuning);
    let reader = world.open(&data);
    let (gets, began) = (world.port.gets(), tokio::time::Instant::now());
    for offset in (0..len as u64).step_by(32 << 10) {
        reader.read(offset, 32 << 10).await.unwrap();
    }
    (began.elapsed().as_millis(), world.port.gets() - gets)
}

#[test]
fn a_cold_reader_in_order_has_several_requests_in_flight() {
    runtime().block_on(async {
        let world = World::new(1, BLOCK, 0, 40, false);
        let bytes = content(64 * BLOCK as usize);
        write(&world, &world.mount(1, Tuning::default()), &bytes).await;
        let (took_ms, gets) = read_in_order(&world, bytes.len(), Tuning::default()).await;
        assert_eq!(gets, 64, "nothing twice");
        assert!(took_ms < 64 * 20 / 4, "{took_ms} ms");
    });
}

#[test]
fn what_is_read_ahead_of_a_file_larger_than_the_memory_for_it_is_still_there_when_its_turn_comes() {
    runtime().block_on(async {
        let world = World::new(1, BLOCK, 0, 2, false);
        let bytes = content(300 * BLOCK as usize);
        write(&world, &world.mount(1, Tuning::default()), &bytes).await;
        // In blocks, what they are for blocks of 4 MiB unless told otherwise.
        let (cache_bytes_max, read_ahead_bytes) = (64 * u64::from(BLOCK), 8 * u64::from(BLOCK));
        let tuning = Tuning { cache_bytes_max, read_ahead_bytes, ..Tuning::default() };
        assert_eq!(read_in_order(&world, bytes.len(), tuning).await.1, 300, "nothing twice");
    });
}

#[test]
fn blocks_of_many_slices_are_read_ahead_with_several_requests_too() {
    runtime().block_on(async {
        let world = World::new(1, 1 << 20, 0, 40, false);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        let piece = content(72 << 10);
        let pieces = 8 * (1 << 20) / piece.len() as u64;
        for n in 0..pieces {
            file.write(n * piece.len() as u64, &piece, false).await.unwrap();
            file.flush(&file.error_mark()).await.unwrap();
        }
        let (took_ms, gets) = read_in_order(&world, pieces as usize * piece.len(), Tuning::default()).await;
        assert!(gets >= pieces, "{gets}");
        assert!(u64::try_from(took_ms).unwrap() < pieces * 20 / 6, "{took_ms} ms for {gets}");
    });
}
