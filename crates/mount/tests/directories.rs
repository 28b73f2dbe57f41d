//! Directories that are listed while they change, on real mounts. Needs root and `/dev/fuse`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Rig, within};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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

fn name(entry: std::io::Result<fs::DirEntry>) -> String {
    entry.unwrap().file_name().into_string().unwrap()
}

#[test]
fn a_directory_of_5000_entries_is_listed_whole_while_it_changes() {
    within(LIMIT, || {
        let mut rig = Rig::new();
        let mount = rig.mount();
        let dir = mount.path("many");
        fs::create_dir(&dir).unwrap();
        for n in 0..5000 {
            File::create_new(dir.join(format!("entry {n}"))).unwrap();
        }
        let names = |dir: &Path| -> BTreeSet<String> { fs::read_dir(dir).unwrap().map(name).collect() };
        assert_eq!(names(&dir).len(), 5000);
        // Whoever removes while reading (rm -r) must see every other name exactly once.
        let mut seen = Vec::new();
        for entry in fs::read_dir(&dir).unwrap() {
            let name = name(entry);
            if name.ends_with('7') {
                fs::remove_file(dir.join(&name)).unwrap();
            }
            seen.push(name);
        }
        let distinct: BTreeSet<_> = seen.iter().cloned().collect();
        assert_eq!((seen.len(), distinct.len()), (5000, 5000));
        assert_eq!(names(&dir).len(), 4500);
        assert_eq!(fs::metadata(&dir).unwrap().nlink(), 2);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(names(&mount.dir).len(), 0);
        mount.unmount();
    });
}

#[test]
fn names_behind_many_that_go_while_a_directory_is_listed_are_not_missed() {
    within(LIMIT, || {
        let mut rig = Rig::new();
        let mount = rig.mount();
        let dir = mount.path("many");
        fs::create_dir(&dir).unwrap();
        for n in 0..1500 {
            File::create_new(dir.join(format!("entry {n}"))).unwrap();
        }
        let order: Vec<String> = fs::read_dir(&dir).unwrap().map(name).collect();
        let mut reading = fs::read_dir(&dir).unwrap();
        let mut seen = vec![name(reading.next().unwrap())];
        // Who looks at what it lists is given attributes with the names.
        fs::metadata(dir.join(&seen[0])).unwrap();
        let gone: BTreeSet<&String> = order[100..900].iter().collect();
        for name in &gone {
            fs::remove_file(dir.join(name)).unwrap();
        }
        seen.extend(reading.map(name));
        let distinct: BTreeSet<_> = seen.iter().collect();
        assert_eq!(seen.len(), distinct.len(), "a name came twice");
        let missed: Vec<_> =
            order.iter().filter(|name| !gone.contains(name) && !distinct.contains(name)).collect();
        assert!(missed.is_empty(), "{} names were not listed: {missed:?}", missed.len());
        mount.unmount();
    });
}
