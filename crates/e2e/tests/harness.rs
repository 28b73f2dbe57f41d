//! The harness itself, on a local folder: a test that leans on it can only be right if these hold.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::path::Path;
use std::process::Command;

use chronofs_e2e::model::{Writer, now_ns};
use chronofs_e2e::process::run;
use chronofs_e2e::{Manifest, Rng, change, seed, tree};

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path).unwrap()
}

#[test]
fn the_same_seed_makes_the_same_tree_and_the_same_changes() {
    let seed = seed("harness");
    let made: Vec<Manifest> = (0..2)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap();
            tree::generate(dir.path(), 600, &mut Rng::new(seed).split("tree")).unwrap();
            change::random_batch(dir.path(), 300, &mut Rng::new(seed).split("changes")).unwrap();
            manifest(dir.path()).without_times()
        })
        .collect();
    assert!(made[0].0.len() > 500);
    made[0].assert_same(&made[1], "two trees of one seed");
}

#[test]
fn a_manifest_sees_every_kind_of_difference() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    std::fs::write(&file, "one").unwrap();
    std::fs::hard_link(&file, dir.path().join("b")).unwrap();
    let before = manifest(dir.path());
    let changes: [(&str, &str); 7] = [
        ("content", "printf two > a; touch -d @1 a"),
        ("mode", "chmod 600 a"),
        ("uid", "chown 77 a"),
        ("mtime", "touch -d @2 a"),
        ("xattrs", "setfattr -n user.x -v y a"),
        ("same inode as", "rm b; cp -a a b; ln a c; ln b d"),
        ("only in", "rm d"),
    ];
    let mut last = before;
    for (field, script) in changes {
        let output = run(Command::new("sh").args(["-ec", script]).current_dir(dir.path()));
        assert!(output.status.success(), "{script}: {output:?}");
        let now = manifest(dir.path());
        let found = last.differences(&now, 100).join("\n");
        assert!(found.contains(field), "after `{script}`: {found}");
        last = now;
    }
}

#[test]
fn the_model_of_a_writer_is_what_a_local_folder_holds() {
    let seed = seed("model");
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(&dir.path().join("w"), Rng::new(seed)).unwrap();
    let mut seen = Vec::new();
    for step in 0..400 {
        writer.step().unwrap();
        if step % 20 == 0 {
            seen.push((now_ns(), manifest(writer.root())));
        }
    }
    for (instant_ns, found) in seen {
        let possible = writer.possible_at(instant_ns);
        assert_eq!(possible.len(), 1, "no action was under way");
        possible[0].assert_same(&found, &format!("seed {seed}, instant {instant_ns}"));
    }
    writer.folder().manifest().assert_same(&manifest(writer.root()), "at the end");
}
