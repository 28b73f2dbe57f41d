//! What is written before a change of the file and what is written after it.

use super::*;
use futures::FutureExt;
use std::future::Future;

/// Truncates to `size` once `go` says so, after its program stopped waiting.
async fn truncate_behind_the_scenes(
    file: &File,
    meta: &Arc<MemoryMeta>,
    size: u64,
    go: impl Future<Output = ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let (file, meta) = (file.clone(), meta.clone());
    let set = SetAttr { size: Some(size), ..SetAttr::default() };
    let mut truncation = Box::pin(async move {
        let request = async {
            go.await;
            meta.truncate(size).await
        };
        file.set_attr(&set, request).await.unwrap();
    });
    assert!(futures::poll!(&mut truncation).is_pending());
    tokio::spawn(truncation)
}

#[test]
fn a_truncation_that_is_late_cuts_what_was_written_before_it_and_nothing_else() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        file.write(0, &[1; 600], false).await.unwrap();
        let late = truncate_behind_the_scenes(&file, &world.meta, 10, async {
            let _ = gone.await;
        })
        .await;
        file.write(300, b"later", false).await.unwrap();
        file.write(512, &[2; 256], false).await.unwrap();
        // Longer than what is written waits for its publish.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(world.meta.attr().size, 0, "what comes later waits");
        go.send(()).unwrap();
        late.await.unwrap();
        assert_eq!(file.flush(&file.error_mark()).await, Ok(()));
        let mut expected = vec![0; 768];
        expected[..10].fill(1);
        expected[300..305].copy_from_slice(b"later");
        expected[512..].fill(2);
        assert!(file.read(0, 1000).await.unwrap() == expected);
        let other = world.open(&world.mount(2, Tuning::default()));
        assert!(other.read(0, 1000).await.unwrap() == expected);
        assert_eq!(data.budget.used(), 0);
    });
}

#[test]
fn a_truncation_gives_back_the_memory_of_what_it_cut_and_keeps_its_time() {
    runtime().block_on(async {
        let world = calm(256);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, &[1; 100], false).await.unwrap();
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        file.set_attr(&set, world.meta.truncate(0)).await.unwrap();
        assert_eq!((data.budget.used(), file.is_unclean(), file.size()), (0, false, 0));
        file.write(0, &[1; 100], false).await.unwrap();
        let set = SetAttr { size: Some(50), ..SetAttr::default() };
        file.set_attr(&set, world.meta.truncate(50)).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        let attr = world.meta.attr();
        assert_eq!((attr.size, attr.mtime_ns), (50, 0), "the time of the truncation stays");
    });
}

#[test]
fn a_file_that_is_made_longer_is_not_cut_to_that_length_when_others_wrote_beyond() {
    runtime().block_on(async {
        let world = calm(256);
        let (one, two) = (world.mount(1, Tuning::default()), world.mount(2, Tuning::default()));
        let (file, other) = (world.open(&one), world.open(&two));
        file.extend(1000, false).unwrap();
        assert_eq!((file.size(), world.meta.attr().size), (1000, 0));
        other.write(3000, b"far", false).await.unwrap();
        other.flush(&other.error_mark()).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!(world.meta.attr().size, 3003);
        file.extend(5000, false).unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!((world.meta.attr().size, file.size()), (5000, 5000));
        other.opened(&world.meta.attr(), None);
        assert_eq!(&other.read(2999, 5).await.unwrap()[..], b"\0far\0");
        assert_eq!(file.extend(u64::MAX, false), Err(Errno::EFBIG));
    });
}

#[test]
fn a_truncation_after_making_a_file_longer_has_the_last_word() {
    runtime().block_on(async {
        let world = calm(256);
        let file = world.open(&world.mount(1, Tuning::default()));
        file.write(0, b"some bytes", false).await.unwrap();
        file.extend(1000, false).unwrap();
        let set = SetAttr { size: Some(4), ..SetAttr::default() };
        file.set_attr(&set, world.meta.truncate(4)).await.unwrap();
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!((world.meta.attr().size, file.size()), (4, 4));
        file.extend(2000, false).unwrap();
        assert_eq!(file.size(), 2000);
    });
}

#[test]
fn a_data_path_that_is_closed_has_taken_a_write_whole_or_not_at_all() {
    for round in 0..20 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let world = calm(4096);
            let data = world.mount(1, Tuning::default());
            let file = world.open(&data);
            let writer = std::thread::spawn(move || {
                let refused = |n: &u64| file.try_write(n * 8, &n.to_le_bytes(), false).unwrap().is_err();
                let taken = (0..).find(refused).unwrap();
                assert_eq!(file.zero(taken * 8, 8, true, false).now_or_never(), Some(Err(Errno::ENOTCONN)));
                assert_eq!(file.extend(taken * 9, false), Err(Errno::ENOTCONN));
                taken
            });
            tokio::time::sleep(Duration::from_micros(200 * round)).await;
            data.close();
            data.flush_all().await.unwrap();
            let published = world.meta.attr().size;
            assert_eq!((published, data.is_unclean()), (writer.join().unwrap() * 8, false), "round {round}");
            assert_eq!(data.budget.used(), 0);
        });
    }
}
