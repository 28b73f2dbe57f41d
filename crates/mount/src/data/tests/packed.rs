//! Small slices, whose bytes come with their publish: packed while somebody reads them, and published twice.

use super::*;
use chronofs_core::SliceId;

/// Four small slices, and the file as another mount has it, which has listed their block.
async fn listed(world: &World) -> Arc<FileData<MemoryMeta>> {
    let file = world.open(&world.mount(1, Tuning::default()));
    for n in 0..4u8 {
        file.write(u64::from(n) * 2000, &[n + 1; 1000], false).await.unwrap();
    }
    file.flush(&file.error_mark()).await.unwrap();
    assert_eq!(world.port.len(), 0, "they are staged");
    let other = world.open(&world.mount(2, Tuning::default()));
    assert_eq!(&other.read(0, 1).await.unwrap()[..], &[1], "the block is listed");
    other
}

#[test]
fn slices_that_were_packed_after_they_were_listed_are_read_from_their_object() {
    runtime().block_on(async {
        let world = calm(64 << 10);
        let other = listed(&world).await;
        world.meta.pack(&world.port);
        for n in 1..4u8 {
            assert_eq!(&other.read(u64::from(n) * 2000, 1000).await.unwrap()[..], &[n + 1; 1000]);
        }
        let later = world.open(&world.mount(3, Tuning::default()));
        assert_eq!(&later.read(2000, 1000).await.unwrap()[..], &[2; 1000], "listed as packed");
    });
}

#[test]
fn a_slice_that_is_staged_again_because_its_move_was_lost_with_the_servers_power_is_read() {
    runtime().block_on(async {
        let world = calm(64 << 10);
        let other = listed(&world).await;
        let survives = world.meta.durable();
        world.meta.pack(&world.port);
        world.meta.restart_when_missed(survives);
        assert_eq!(&other.read(2000, 1000).await.unwrap()[..], &[2; 1000]);
    });
}

#[test]
fn small_slices_whose_publish_was_done_without_an_answer_are_published_again_under_other_ids() {
    runtime().block_on(async {
        let world = calm(64 << 10);
        let data = world.mount(1, Tuning::default());
        let file = world.open(&data);
        file.write(0, &[7; 1000], false).await.unwrap();
        world.meta.lose_next_answer();
        let mark = file.error_mark();
        file.flush(&mark).await.unwrap_err();
        assert_eq!(data.unpublished(), 1000, "nobody knows whether it was done");
        file.flush(&file.error_mark()).await.unwrap();
        assert_eq!((data.unpublished(), data.refused()), (0, 0));
        let staged: Vec<SliceId> = (world.meta.all_slices().iter())
            .filter(|placed| matches!(placed.slice.place, Place::Staged(_)))
            .filter_map(|placed| Some(placed.slice.place.seal()?.id))
            .collect();
        assert!(staged.len() == 2 && staged[0].object != staged[1].object, "{staged:?}");
        assert_eq!(&file.read(0, 1000).await.unwrap()[..], &[7; 1000]);
    });
}
