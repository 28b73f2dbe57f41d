//! A server that lost power, and with it answers that it had given.

use super::super::testing::Survives;
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
