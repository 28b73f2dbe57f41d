//! Copies of the log on other disks: what fsync returned for survives the loss of the metadata server's disk, whatever
//! happened to one copy, and of two servers only the newer one makes anything durable.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::Path;

use chronofs_e2e::Installation;
use chronofs_e2e::log_copies::{
    Disk, Synced, another_server, keep_copies, members, put_together, wait_until_ready,
};
use chronofs_e2e::process::{chronofs_binary, text, wait_for};
use chronofs_e2e::snapshot::{Programs, uid_in};

#[test]
fn what_fsync_returned_for_survives_the_loss_of_the_disk() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let (a, b) = (installation.path("copy a"), installation.path("copy b"));
    keep_copies(&installation, &[text(&a), text(&b)]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 120);
    // A restart of the same server goes on with its copies.
    mount.kill();
    installation.meta.kill();
    installation.start_meta();
    let mut mount = installation.mount("v", &[]);
    synced.write(&mount, 30);
    mount.kill();
    installation.meta.kill();
    fs::remove_dir_all(installation.path("meta")).unwrap();

    // One copy is gone with the disk; the other one is enough.
    fs::remove_dir_all(&a).unwrap();
    let folder = installation.path("meta again");
    let (mut wrong, _) = another_server(&installation, &folder, &[]);
    wrong.start();
    assert!(!wrong.wait().success(), "an empty folder must not be served in place of what the copies hold");
    assert!(wrong.log().contains("--recover-log"), "{}", wrong.log_tail());
    fs::remove_dir_all(&folder).unwrap();
    let (mut server, http) = another_server(&installation, &folder, &["--recover-log"]);
    server.start();
    wait_until_ready(&mut server, http);
    let mut mount = installation.mount("v", &[]);
    synced.check(&mount, "after the recovery");
    synced.write(&mount, 5);
    // The new server knows that the lost one counted, so an empty folder there could be a disk that is not mounted.
    assert_eq!(members(&installation), [text(&b)]);
    assert!(server.log().contains("held a copy and is empty now"), "{}", server.log_tail());
    keep_copies(&installation, &[text(&installation.path("copy c")), text(&b)]);
    mount.unmount();
    server.stop();
    installation.ok(&["meta", "verify", "--blocks", "--db-folder", text(&folder)]);
}

/// A server that does not start, and why.
fn refused(installation: &Installation, folder: &Path, more: &[&str]) -> String {
    let (mut server, _) = another_server(installation, folder, more);
    server.start();
    assert!(!server.wait().success(), "this folder must not be served");
    server.log()
}

#[test]
fn a_disk_snapshot_and_what_the_copies_have_since_give_everything_back() {
    let holder = tempfile::tempdir().unwrap();
    let disk = Disk::new(holder.path().join("disk"), 100);
    let copy = disk.0.join("log");
    let oldest = copy.join("log/00000000000000000001.log");
    // The program of a snapshot that is not complete yet finds the copy's first segment, or fails.
    let programs = Programs::new();
    let script = format!(
        "#!/bin/sh\n[ -e '{}' ] || exit 9\nexec '{}' snap-create \"$@\"\n",
        oldest.display(),
        chronofs_binary().display()
    );
    let program = programs.add("snap-create", &script);
    let any = format!("#!/bin/sh\nexec '{}' snap-create \"$@\"\n", chronofs_binary().display());
    let any = programs.add("any", &any);
    let mut installation = Installation::start_with_whitelist(&[&program, &any], &[]);
    installation.create_volume("v", &[]);
    keep_copies(&installation, &[text(&copy)]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 40);
    let backup = installation.path("backup");
    let with =
        |program| ["snapshot", "create", "--", program, "--destdir", text(&backup), "--method", "copy"];
    let (create, later) = (with(text(&program)), with(text(&any)));
    // A copy keeps the segment in which the store's image begins. Every snapshot ends a segment, and the store is flushed when
    // there are some, so that one lets go of the first segment, and nobody has to fill its 64 MiB.
    installation.ok(&create);
    assert!(oldest.exists());
    synced.write(&mount, 10);
    let uid = (0..50)
        .find_map(|_| {
            let uid = uid_in(&installation.ok(&later));
            (!oldest.exists()).then_some(uid)
        })
        .expect("the copy lets the first segment go");
    synced.write(&mount, 40);
    mount.kill();
    installation.meta.kill();
    fs::remove_dir_all(installation.path("meta")).unwrap();

    // The copy alone is not enough any more.
    let said = refused(&installation, &installation.path("without the snapshot"), &["--recover-log"]);
    assert!(said.contains("newest complete disk snapshot"), "{said}");
    let images = backup.join(&uid).join(installation.meta_address.to_string());
    let folder = installation.path("meta again");
    put_together(&images, &folder);
    // Who forgets the option is told, and goes on with the same folder.
    let said = refused(&installation, &folder, &[]);
    assert!(said.contains("durable commits that this log has not"), "{said}");
    assert!(said.contains("--recover-log"), "{said}");
    let (mut server, http) = another_server(&installation, &folder, &["--recover-log"]);
    server.start();
    wait_until_ready(&mut server, http);
    let mut mount = installation.mount("v", &[]);
    synced.check(&mount, "after the recovery");
    synced.write(&mount, 5);
    mount.unmount();
    server.stop();
    let verify = ["meta", "verify", "--blocks", "--db-folder", text(&folder)];
    let said = installation.ok(&verify);
    assert!(said.contains("nothing is wrong"), "{said}");
    // Later starts are without the option.
    let (mut server, http) = another_server(&installation, &folder, &[]);
    server.start();
    wait_until_ready(&mut server, http);
    let mut mount = installation.mount("v", &[]);
    synced.check(&mount, "after a later start");
    mount.unmount();
    server.stop();
}

#[test]
fn a_copy_whose_disk_is_full_is_left_out_and_comes_back() {
    let holder = tempfile::tempdir().unwrap();
    let small = Disk::new(holder.path().join("small"), 8);
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let (a, b) = (installation.path("copy a"), small.0.join("copy b"));
    keep_copies(&installation, &[text(&a), text(&b)]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 400);
    wait_for("the full copy to be left out", || (members(&installation) == [text(&a)]).then_some(()));
    let status = installation.ok(&["meta", "status", "--http-addr", &installation.http_address.to_string()]);
    assert!(status.contains("does not count") && status.contains("copy b"), "{status}");
    synced.write(&mount, 20);
    small.resize(400);
    wait_for("the copy to be back", || (members(&installation).len() == 2).then_some(()));
    synced.write(&mount, 20);
    mount.kill();
    installation.meta.kill();
    // The one that was full has everything now.
    fs::remove_dir_all(installation.path("meta")).unwrap();
    fs::remove_dir_all(&a).unwrap();
    let folder = installation.path("meta again");
    let (mut server, http) = another_server(&installation, &folder, &["--recover-log"]);
    server.start();
    wait_until_ready(&mut server, http);
    let mut mount = installation.mount("v", &[]);
    synced.check(&mount, "after the recovery");
    mount.unmount();
    server.stop();
    drop(installation);
}

#[test]
fn of_two_servers_only_the_newer_makes_anything_durable() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let a = installation.path("copy a");
    keep_copies(&installation, &[text(&a)]);
    let mut first = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&first, 20);
    let folder = installation.path("meta again");
    let (mut server, http) = another_server(&installation, &folder, &["--recover-log"]);
    server.start();
    wait_until_ready(&mut server, http);
    // The old one may answer, but not call anything durable, and ends as soon as it is to.
    let lost = first.path("lost");
    drop(fs::write(&lost, "written to the old server, or to the new one"));
    let status = installation.meta.wait();
    assert!(!status.success(), "{status}");
    let said = installation.meta.log();
    assert!(
        said.contains("another owner") || said.contains("taken over"),
        "{}",
        installation.meta.log_tail()
    );
    let mut second = installation.mount("v", &[]);
    synced.check(&second, "at the newer server");
    synced.write(&second, 20);
    synced.check(&second, "at the newer server");
    first.kill();
    second.unmount();
    server.stop();
}

#[test]
fn an_anti_quorum_and_disk_snapshots_exclude_each_other() {
    let installation = Installation::start();
    let copies = ["copy a", "copy b", "copy c"].map(|name| installation.path(name));
    keep_copies(&installation, &copies.each_ref().map(|copy| text(copy)));
    let update = ["configure", "update", "metadata-store", "store", "--log-anti-quorum"];
    let refused = installation.fails(&[&update[..], &["2"]].concat());
    assert!(refused.contains("up to 1 is allowed"), "{refused}");
    installation.ok(&[&update[..], &["1"]].concat());
    let refused = installation.fails(&["snapshot", "create", "--", "/bin/true"]);
    assert!(refused.contains("Snapshot command failed 2507"), "{refused}");
}
