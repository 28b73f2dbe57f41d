//! A server that lost power, and with it answers that it had given.

use super::super::testing::{PARKED, Survives};
use super::*;

/// A file of which "old" is durable and what is written over it is not.
async fn with_undurable(world: &World, data: &Arc<Data<MemoryMeta>>, over: &[u8]) -> (File, Survives) {
    let file = world.open(data);
    file.write(0, b"old", false).await.unwrap();
    file.flush(&file.error_mark()).await.unwrap();
    let durable = world.meta.durable();
    file.write(0, over, false).await.unwrap();
    file.flush(&file.error_mark()).await.unwrap();
    assert_eq!(&file.read(0, 100).await.unwrap()[..], over);
    (file, durable)
}

#[test]
fn bytes_that_the_server_lost_are_not_shown_any_more() {
    for exclusive in [false, true] {
        runtime().block_on(async {
            let world = World::new(1, 256, 0, 5, exclusive);
            let data = world.mount(1, Tuning::default());
            let (file, durable) = with_undurable(&world, &data, b"newer").await;
            world.meta.restart(&durable, false);
            assert_eq!(file.try_read(0, 100), None, "what is known may be lost");
            assert_eq!(&file.read(0, 100).await.unwrap()[..], b"old");
            assert_eq!(file.overlay(world.meta.attr()).size, 3);
            // And what is published from here on is seen.
            file.write(1, b"we", false).await.unwrap();
            file.flush(&file.error_mark()).await.unwrap();
            assert_eq!(&file.read(0, 100).await.unwrap()[..], b"owe");
        });
    }
}

#[test]
fn what_is_not_published_outlives_a_restart_of_the_server() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let (file, durable) = with_undurable(&world, &data, b"newer").await;
        file.write(0, b"O", false).await.unwrap();
        world.meta.restart(&durable, false);
        assert_eq!(&file.read(0, 100).await.unwrap()[..], b"Old");
        assert_eq!(file.append(b"!", false).await, Ok(3), "the end is that of what survived");
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!(&file.read(0, 100).await.unwrap()[..], b"Old!");
    });
}

#[test]
fn who_has_a_file_open_of_which_something_was_lost_is_told_once() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let (file, durable) = with_undurable(&world, &data, b"newer").await;
        let (one, other) = (file.error_mark(), file.error_mark());
        world.meta.restart(&durable, true);
        for mark in [&one, &other] {
            assert_eq!(file.flush(mark).await, Err(Errno::EIO));
            assert_eq!(file.flush(mark).await, Ok(()));
        }
        assert_eq!(file.flush(&file.error_mark()).await, Ok(()), "it was opened since");
    });
}

/// A child process that was forked meanwhile closes what it inherited.
#[test]
fn a_close_is_told_of_an_error_and_leaves_it_to_fsync() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let (file, durable) = with_undurable(&world, &data, b"newer").await;
        let mark = file.error_mark();
        world.meta.restart(&durable, true);
        for _ in 0..2 {
            assert_eq!(file.close(&mark).await, Err(Errno::EIO));
        }
        assert_eq!(file.flush(&mark).await, Err(Errno::EIO));
        assert_eq!((file.close(&mark).await, file.flush(&mark).await), (Ok(()), Ok(())));
    });
}

#[test]
fn an_open_that_was_answered_before_a_restart_does_not_bring_back_what_was_lost() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let (file, durable) = with_undurable(&world, &data, b"newer").await;
        let before = world.meta.attr();
        world.meta.restart(&durable, false);
        file.opened(&before, None);
        file.overlay(before);
        assert_eq!(&file.read(0, 100).await.unwrap()[..], b"old");
    });
}

#[test]
fn bytes_of_a_file_that_a_restore_has_lost_are_kept_in_another_and_who_has_it_open_is_told() {
    runtime().block_on(async {
        let world = calm(4096);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, b"stored", false).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        let (one, other) = (file.error_mark(), file.error_mark());
        file.write(10, b"not stored", false).await.unwrap();
        world.meta.restore(1);
        assert_eq!(file.flush(&one).await, Err(Errno::EAGAIN), "there is no room for it yet");
        assert_eq!(data.unpublished(), 10, "and nothing is dropped");
        assert_eq!(file.flush(&one).await, Err(Errno::ESTALE));
        assert_eq!(file.flush(&one).await, Ok(()), "once");
        assert_eq!(file.flush(&other).await, Err(Errno::ESTALE), "to everybody");
        assert_eq!(file.try_write(0, b"more", false), Some(Err(Errno::ESTALE)));
        assert_eq!(file.write(0, b"more", false).await, Err(Errno::ESTALE));
        let parked = data.existing(PARKED).expect("it is held");
        let bytes = parked.read(0, 100).await.unwrap();
        assert_eq!(&bytes[..], [&[0; 10][..], b"not stored"].concat());
        let (said, report) = world.meta.parked_there();
        assert_eq!(said, [(super::INO, "lost+found/43".to_owned(), 10)]);
        assert!(report > 20, "{report}");
        assert_eq!((data.refused(), data.unpublished(), data.is_unclean()), (0, 0, false));
        assert_eq!(world.meta.made(), 1, "what is made already is not made again when it is tried again");
    });
}

#[test]
fn without_a_restore_a_file_that_is_gone_is_not_parked() {
    runtime().block_on(async {
        let world = calm(4096);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        let mark = file.error_mark();
        file.write(0, b"of nobody", false).await.unwrap();
        world.meta.refuse(Some(PublishError::Answered(Errno::ENOENT)));
        assert_eq!(file.flush(&mark).await, Err(Errno::ENOENT));
        assert_eq!((world.meta.parked_there().0, data.refused()), (Vec::new(), 9));
    });
}

#[test]
fn a_file_that_is_there_after_a_restore_and_is_removed_later_is_not_parked() {
    for seen_by in ["publish", "read", "open"] {
        runtime().block_on(async {
            let world = calm(4096);
            let data = world.mount(1, Tuning::default());
            let mut file = world.open(&data);
            file.write(0, b"before", false).await.unwrap();
            file.flush(&file.error_mark()).await.unwrap();
            world.meta.restore_with_it();
            match seen_by {
                "publish" => {
                    file.write(0, b"after", false).await.unwrap();
                    file.flush(&file.error_mark()).await.unwrap();
                }
                "read" => drop(file.read(0, 6).await.unwrap()),
                _ => {
                    drop(file);
                    file = world.open(&data);
                    file.is_there(world.meta.restores());
                }
            }
            let mark = file.error_mark();
            file.write(0, b"of nobody", false).await.unwrap();
            world.meta.remove();
            assert_eq!(file.flush(&mark).await, Err(Errno::ENOENT), "{seen_by}");
            assert_eq!((world.meta.parked_there().0, data.refused()), (Vec::new(), 9));
        });
    }
}

#[test]
fn what_is_discarded_or_cut_away_of_a_lost_file_is_not_parked() {
    runtime().block_on(async {
        let world = World::new(1, 4096, 0, 50, false);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, b"of nobody", false).await.unwrap();
        world.meta.restore(0);
        let mark = file.error_mark();
        let flushing = tokio::spawn({
            let file = file.clone();
            async move { file.flush(&mark).await }
        });
        // Its last handle goes while it is on its way.
        tokio::time::sleep(Duration::from_millis(1)).await;
        file.discard();
        assert_eq!(flushing.await.unwrap(), Ok(()));
        assert_eq!(world.meta.parked_there(), (Vec::new(), 0));
        assert_eq!((data.refused(), data.unpublished(), data.is_unclean()), (0, 0, false));
    });
}

#[test]
fn every_write_back_ends_however_often_the_server_is_put_back_while_it_runs() {
    runtime().block_on(async {
        for seed in 0..20 {
            let world = World::new(seed, 256, 6, 40, false);
            let data = world.mount(1, Tuning { dirty_bytes_max: 2000, ..Tuning::default() });
            let file = world.open(&data);
            let writing = tokio::spawn({
                let file = file.clone();
                async move {
                    let mut gone = 0;
                    for n in 0..60u64 {
                        gone += u32::from(file.write(n * 100, &[7; 100], false).await == Err(Errno::ESTALE));
                        let _ = file.flush(&file.error_mark()).await;
                    }
                    gone
                }
            });
            tokio::time::sleep(Duration::from_millis(300)).await;
            for _ in 0..3 {
                world.meta.restore(2);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // The clock stands still but for what is waited for: a wait without an end would be seen.
            let gone = tokio::time::timeout(Duration::from_secs(600), writing).await;
            assert!(gone.expect("every call ends").unwrap() > 0, "seed {seed}");
            let end = tokio::time::timeout(Duration::from_secs(600), async {
                while data.is_unclean() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
            end.await.expect("what is parked is stored");
            assert_eq!((data.refused(), data.unpublished()), (0, 0), "seed {seed}");
        }
    });
}

#[test]
fn a_write_back_ends_though_the_server_takes_no_ids_and_its_bytes_are_kept() {
    runtime().block_on(async {
        let world = calm(4096);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, b"kept", false).await.unwrap();
        world.meta.refuse(Some(PublishError::SessionOver));
        let begun = tokio::time::Instant::now();
        assert_eq!(file.flush(&file.error_mark()).await, Err(Errno::EIO));
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        assert_eq!((data.unpublished(), data.refused()), (4, 0));
        world.meta.refuse(None);
        assert_eq!(file.flush(&file.error_mark()).await, Ok(()));
        assert_eq!(data.unpublished(), 0);
    });
}

#[test]
fn a_read_ends_though_the_server_went_back_to_versions_below_what_is_known() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        for _ in 0..5 {
            file.write(0, b"there", false).await.unwrap();
            file.flush(&file.error_mark()).await.unwrap();
        }
        world.meta.set_back();
        // Its block is not known any more, and what is answered is older than what is.
        file.state().map.clear();
        let read = tokio::time::timeout(Duration::from_secs(60), file.read(0, 5)).await;
        assert_eq!(&read.expect("it ends").unwrap()[..], b"there");
    });
}
