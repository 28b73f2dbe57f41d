//! Small slices that are packed while somebody reads them.

use super::*;

#[test]
fn a_slice_that_is_staged_again_because_its_move_was_lost_with_the_servers_power_is_read() {
    runtime().block_on(async {
        let world = calm(64 << 10);
        let file = world.open(&world.mount(1, Tuning::default()));
        for n in 0..4u8 {
            file.write(u64::from(n) * 2000, &[n + 1; 1000], false).await.unwrap();
        }
        file.flush(&file.error_mark()).await.unwrap();
        let other = world.open(&world.mount(2, Tuning::default()));
        assert_eq!(&other.read(0, 1).await.unwrap()[..], &[1], "the block is listed");
        let survives = world.meta.durable();
        world.meta.pack(&world.port);
        world.meta.restart_when_missed(survives);
        assert_eq!(&other.read(2000, 1000).await.unwrap()[..], &[2; 1000]);
    });
}
