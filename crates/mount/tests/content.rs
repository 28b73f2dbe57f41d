//! What programs write is kept, on real mounts: beside other mounts, through mappings, and when a mount ends. Needs
//! root, `/dev/fuse`, and `cc` for a program that maps a file.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Rig, within};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn server_process() {
    common::serve_if_asked();
}

#[test]
fn mount_process() {
    common::mount_if_asked();
}

#[test]
fn making_a_file_longer_never_cuts_what_another_mount_wrote_at_that_moment() {
    const ROUNDS: u64 = 200;
    within(LIMIT, || {
        let mut rig = Rig::new();
        let (one, other) = (rig.mount(), rig.mount());
        fs::write(one.path("file"), "").unwrap();
        let writable = |path| File::options().read(true).write(true).open(path).unwrap();
        let (longer, writer) = (writable(one.path("file")), writable(other.path("file")));
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    start.wait();
                    fallocate(&longer, FallocateFlags::empty(), 0, round * 1000 + 500).unwrap();
                    longer.sync_all().unwrap();
                }
            });
            for round in 0..ROUNDS {
                start.wait();
                writer.write_all_at(&[7], round * 1000 + 900).unwrap();
                writer.sync_all().unwrap();
            }
        });
        drop((longer, writer));
        let found = fs::read(one.path("file")).unwrap();
        assert_eq!(found.len() as u64, (ROUNDS - 1) * 1000 + 901);
        let lost: Vec<u64> = (0..ROUNDS).filter(|round| found[*round as usize * 1000 + 900] != 7).collect();
        assert!(lost.is_empty(), "the bytes of rounds {lost:?} are gone");
        other.unmount();
        one.unmount();
    });
}
