//! An encrypted volume: what is stored shows nothing, and what a newer data key sealed is read by mounts of before.

use super::*;
use chronofs_keys::{SealedKeys, SecretKey, VolumeSecret};

const BLOCK: u32 = 128 << 10;

fn secret() -> VolumeSecret {
    VolumeSecret::Key(SecretKey::new([3; 32]))
}

/// Keys of a volume, and the same with one more data key.
fn two_revisions() -> (SealedKeys, SealedKeys) {
    let first = SealedKeys::draw(VOLUME, &secret()).unwrap();
    let kek = first.kek(&secret()).unwrap();
    let second = first.with_new_key(&first.open(&kek).unwrap(), &kek).unwrap();
    (first, second)
}

/// Small pieces, which stay with the metadata, and a large one, which becomes an object.
fn content() -> Vec<(u64, Vec<u8>)> {
    vec![
        (0, b"in the row".to_vec()),
        (5000, b"staged ".repeat(300)),
        (u64::from(BLOCK), b"object ".repeat(40_000)),
    ]
}

async fn write_all(file: &File) {
    for (at, bytes) in content() {
        file.write(at, &bytes, false).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
    }
}

async fn read_all(file: &File) -> bool {
    for (at, bytes) in content() {
        match file.read(at, bytes.len() as u32).await {
            Ok(read) => assert!(read == bytes, "at {at}"),
            Err(errno) => {
                assert_eq!(errno, Errno::EIO);
                return false;
            }
        }
    }
    true
}

#[test]
fn what_is_written_is_read_by_who_has_the_key_and_by_nobody_else() {
    runtime().block_on(async {
        let (first, _) = two_revisions();
        let mut world = calm(BLOCK);
        world.keys = Some(KeyRing::between(&first, &first, &secret()).unwrap());
        write_all(&world.open(&world.mount(1, Tuning::default()))).await;
        assert!(read_all(&world.open(&world.mount(2, Tuning::default()))).await);
        let (other, _) = two_revisions();
        for keys in [None, Some(KeyRing::between(&other, &other, &secret()).unwrap())] {
            world.keys = keys;
            assert!(!read_all(&world.open(&world.mount(3, Tuning::default()))).await);
        }
    });
}

#[test]
fn what_a_newer_data_key_sealed_is_read_by_a_mount_of_before_and_what_is_old_stays_readable() {
    runtime().block_on(async {
        let (first, second) = two_revisions();
        let mut world = calm(BLOCK);
        let before = KeyRing::between(&first, &second, &secret()).unwrap();
        world.keys = Some(Arc::clone(&before));
        let old = world.mount(1, Tuning::default());
        world.keys = Some(KeyRing::between(&second, &second, &secret()).unwrap());
        write_all(&world.open(&world.mount(2, Tuning::default()))).await;
        assert_eq!(before.now().active(), 1);
        assert!(read_all(&world.open(&old)).await);
        assert_eq!(before.now().active(), 2, "it seals with the newer one from now on");
        // The other way round: a mount that knows both reads what the older one sealed.
        world.keys = Some(KeyRing::between(&first, &first, &secret()).unwrap());
        write_all(&world.open(&world.mount(3, Tuning::default()))).await;
        world.keys = Some(KeyRing::between(&second, &second, &secret()).unwrap());
        assert!(read_all(&world.open(&world.mount(4, Tuning::default()))).await);
    });
}

#[test]
fn the_disk_cache_holds_sealed_bytes() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = two_revisions();
        let mut world = calm(BLOCK);
        world.keys = Some(KeyRing::between(&first, &first, &secret()).unwrap());
        let cache = DiskCache::start(dir.path(), 64 << 20);
        world.disk = Some(cache.clone());
        write_all(&world.open(&world.mount(1, Tuning::default()))).await;
        assert!(read_all(&world.open(&world.mount(2, Tuning::default()))).await);
        cache.close();
        assert!(cache.figures().kept > 0);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(14).any(|part| part == b"object object "));
        }
    });
}
