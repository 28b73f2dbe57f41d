//! What is written before a change of the file and what is written after it.

use super::*;
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
