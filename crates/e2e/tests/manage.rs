//! The servers of a machine as services, where no systemd runs; and the oldest backup: stop, copy the folder, start.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_e2e::process::{free_address, text, wait_for};
use chronofs_e2e::services::Services;
use chronofs_e2e::{Installation, Manifest, Rng};
use rustix::process::{Signal, kill_process};
use std::fs;
use std::process::Command;

fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(Command::new("cp").args(["-r", text(from), text(to)]).status().unwrap().success());
}

#[test]
fn a_copy_of_the_folder_of_a_stopped_server_brings_everything_back() {
    let installation = Installation::start();
    installation.create_volume("v", &["--retention", "1h"]);
    let token = installation.create_token("v", &[]);
    let services = Services::of(installation);
    assert_eq!(services.ok(&["start"]), "admin: started\nmeta: started\n");
    services.until_ready();
    assert!(services.ok(&["status"]).contains("meta: running, process "));
    let mut live = services.installation.mount_with("v", &token, &[]);
    let mut rng = Rng::new(5);
    fs::create_dir(live.path("d")).unwrap();
    fs::write(live.path("d/large"), rng.bytes(3 << 20)).unwrap();
    fs::write(live.path("small"), "then").unwrap();
    let then = live.instant();
    let was = Manifest::of(&live.dir).unwrap();
    fs::write(live.path("small"), "now").unwrap();
    let kept = Manifest::of(&live.dir).unwrap();
    live.unmount();

    let path = |name: &str| services.installation.path(name);
    assert_eq!(services.ok(&["stop"]), "meta: stopped\nadmin: stopped\n");
    copy(&path("meta"), &path("backup-meta"));
    copy(&path("admin"), &path("backup-admin"));
    assert_eq!(services.ok(&["start"]), "admin: started\nmeta: started\n");
    assert_eq!(services.ok(&["start"]), "admin: runs already\nmeta: runs already\n");
    services.until_ready();

    assert_eq!(services.ok(&["stop"]), "meta: stopped\nadmin: stopped\n");
    fs::remove_dir_all(path("meta")).unwrap();
    fs::remove_dir_all(path("admin")).unwrap();
    copy(&path("backup-meta"), &path("meta"));
    copy(&path("backup-admin"), &path("admin"));
    services.ok(&["start", "admin"]);
    services.ok(&["start", "meta"]);
    services.until_ready();
    let live = services.installation.mount_with("v", &token, &[]);
    kept.assert_same(&Manifest::of(&live.dir).unwrap(), "the copy");
    let past = services.installation.mount_past(&live, &then);
    was.assert_same(&Manifest::of(&past.dir).unwrap(), "its past");
    drop((past, live));
}

#[test]
fn a_copy_of_the_metadata_that_is_older_than_what_was_written_is_refused_and_goes_on_as_a_restore() {
    let mut installation = Installation::start();
    installation.create_volume("v", &["--retention", "1h"]);
    let mount = installation.mount("v", &[]);
    fs::write(mount.path("kept"), "in the copy").unwrap();
    let then = mount.instant();
    drop(mount);
    let (meta, copied, newer) =
        (installation.path("meta"), installation.path("copied"), installation.path("newer"));
    installation.meta.stop();
    copy(&meta, &copied);
    installation.start_meta();
    let mount = installation.mount("v", &[]);
    let late = Rng::new(6).bytes(1 << 20);
    fs::write(mount.path("late"), &late).unwrap();
    let lost = mount.instant();
    drop(mount);
    wait_for("the admin server to know of the second start", || {
        let log = fs::read_to_string(installation.path("admin.log")).ok()?;
        log.lines().any(|line| line.contains("epoch=2") && line.contains("older copies")).then_some(())
    });
    installation.meta.stop();
    fs::rename(&meta, &newer).unwrap();
    fs::rename(&copied, &meta).unwrap();

    let address = installation.meta_address.to_string();
    let start = ["meta", "start", "--db-folder", text(&meta), "--bind-addr", &address];
    let refused = installation.fails(&start);
    assert!(refused.contains("older copy") && refused.contains("--old-copy"), "{refused}");
    let token = fs::read_to_string(meta.join("credentials")).unwrap();
    let init = ["meta", "init", "creds", "--token", token.trim(), "--db-folder", text(&meta), "--old-copy"];
    let said = installation.ok(&init);
    assert!(said.contains("restore accept"), "{said}");
    installation.start_meta();
    let mount = installation.mount("v", &[]);
    assert_eq!(fs::read_to_string(mount.path("kept")).unwrap(), "in the copy");
    assert!(!mount.path("late").exists());
    let past = installation.mount_past(&mount, &then);
    assert_eq!(fs::read_to_string(past.path("kept")).unwrap(), "in the copy");
    drop(past);
    let dir = installation.path("never");
    fs::create_dir(&dir).unwrap();
    let mut gap =
        installation.command(&["mount", "start", "v", text(&dir), "--foreground", "--at-time", &lost]);
    let gap = chronofs_e2e::process::run(gap.env("CHRONOFS_TOKEN", &mount.token));
    assert!(!gap.status.success(), "an instant of what is lost was mounted");
    let said = installation.ok(&["restore", "status", "--wait", "60s"]);
    assert!(said.contains("an old copy of its folder"), "{said}");
    // What the copy does not know of is in the block store still.
    let to = installation.path("salvaged");
    installation.ok(&["analyze", "salvage", "v", "--to", text(&to)]);
    let found = fs::read_dir(&to).unwrap().any(|file| fs::read(file.unwrap().path()).unwrap() == late);
    assert!(found, "what was written after the copy is not salvaged");
    installation.ok(&["restore", "accept"]);
    let elsewhere = free_address().to_string();
    let refused =
        installation.fails(&["meta", "start", "--db-folder", text(&newer), "--bind-addr", &elsewhere]);
    assert!(refused.contains("restored from an old copy of its folder"), "{refused}");
    drop(mount);
    installation.stop_meta_and_verify();
}

/// As when the machine is rolled back: nothing in the folder says that its server has gone on.
#[test]
fn a_copy_of_the_metadata_that_was_made_while_the_same_start_served_is_refused_as_well() {
    let mut installation = Installation::start();
    installation.create_volume("v", &["--retention", "1h"]);
    let mount = installation.mount("v", &[]);
    fs::write(mount.path("kept"), "in the copy").unwrap();
    mount.instant();
    drop(mount);
    let (meta, copied) = (installation.path("meta"), installation.path("copied"));
    copy(&meta, &copied);
    let mount = installation.mount("v", &[]);
    fs::write(mount.path("late"), Rng::new(7).bytes(1 << 20)).unwrap();
    mount.instant();
    // Whatever changes is an occasion to report.
    let token = installation.create_token("v", &[]);
    wait_for("the admin server to know of what was written", || {
        let shown = installation.ok(&["configure", "show", "volume", "v", "--json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        (shown["used_bytes"].as_u64()? >= 1 << 20).then_some(())
    });
    installation.meta.kill();
    drop(mount);
    fs::remove_dir_all(&meta).unwrap();
    fs::rename(&copied, &meta).unwrap();

    let address = installation.meta_address.to_string();
    let start = ["meta", "start", "--db-folder", text(&meta), "--bind-addr", &address];
    for _ in 0..2 {
        let refused = installation.fails(&start);
        for part in ["older copy", "its last commit is of", "--old-copy"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(!refused.contains("serving"), "somebody could have been served: {refused}");
    }
    let credentials = fs::read_to_string(meta.join("credentials")).unwrap();
    let init =
        ["meta", "init", "creds", "--token", credentials.trim(), "--db-folder", text(&meta), "--old-copy"];
    installation.ok(&init);
    installation.start_meta();
    let mount = installation.mount_with("v", &token, &[]);
    assert_eq!(fs::read_to_string(mount.path("kept")).unwrap(), "in the copy");
    assert!(!mount.path("late").exists());
    fs::write(mount.path("new"), "written since").unwrap();
    mount.instant();
    installation.ok(&["restore", "status", "--wait", "60s"]);
    installation.ok(&["restore", "accept"]);
    // It is no older copy of anything when it is killed and started again.
    installation.meta.kill();
    installation.start_meta();
    assert_eq!(fs::read_to_string(mount.path("new")).unwrap(), "written since");
    drop(mount);
    installation.stop_meta_and_verify();
}

#[test]
fn a_server_that_ends_by_itself_is_started_again_and_one_whose_keeper_is_gone_can_be_stopped() {
    let services = Services::of(Installation::start());
    services.ok(&["start", "admin"]);
    let first = services.server("admin").unwrap();
    kill_process(first, Signal::KILL).unwrap();
    let second = wait_for("another admin server", || services.server("admin").filter(|pid| *pid != first));
    assert!(services.ok(&["logs", "admin"]).contains("admin ended by itself, signal: 9"), "it is said");

    kill_process(services.keeper("admin"), Signal::KILL).unwrap();
    assert_eq!(services.server("admin"), Some(second), "it serves on");
    assert_eq!(services.ok(&["stop", "admin"]), "admin: stopped\n");
    let left = fs::read(format!("/proc/{}/cmdline", second.as_raw_nonzero())).unwrap_or_default();
    assert!(left.is_empty(), "it runs no more, whoever is to reap it");
    assert_eq!(services.ok(&["stop", "admin"]), "admin: did not run\n");
    assert!(services.fails(&["status", "admin"]).contains("not running: admin"));
    services.ok(&["restart", "admin"]);
    assert!(services.server("admin").is_some());
}

#[test]
fn what_cannot_be_started_is_refused_with_the_reason() {
    let services = Services::of(Installation::start());
    let refused = services.fails(&["start", "mars"]);
    assert!(refused.contains("chronofs-mars.service") && refused.contains("init systemd"), "{refused}");
    let unit = services.installation.path("units/chronofs-admin.service");
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text.replace("--bind-addr", "--bind-address")).unwrap();
    let refused = services.fails(&["start", "admin"]);
    assert!(refused.contains("--bind-address") && refused.contains("as soon as it was started"), "{refused}");
    assert!(services.server("admin").is_none());
    fs::write(&unit, text.replace("ExecStart=/", "ExecStart=/nowhere/")).unwrap();
    let refused = services.fails(&["start", "admin"]);
    assert!(refused.contains("cannot run /nowhere/"), "{refused}");
    fs::write(&unit, "[Service]\n").unwrap();
    assert!(services.fails(&["start", "admin"]).contains("0 lines ExecStart="));
}
