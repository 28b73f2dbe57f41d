//! Instants that are kept beyond the window by command, with a window of seconds on a real mount.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use chronofs_e2e::process::{text, wait_for};
use chronofs_e2e::{Installation, Manifest, Mount};
use serde_json::Value;

/// Seconds.
const WINDOW: u64 = 5;
const LARGE: usize = 300_000;

fn start() -> Installation {
    Installation::start_with_meta_arguments(&["--slice-life", "1", "--horizon-step", "1"])
}

fn hold(installation: &Installation, flags: &[&str]) -> Value {
    let create = ["configure", "create", "hold", "--volume", "v", "--reason", "audit: of june", "--json"];
    serde_json::from_str(&installation.ok(&[&create[..], flags].concat())).unwrap()
}

fn list(installation: &Installation) -> Value {
    serde_json::from_str(&installation.ok(&["configure", "list", "hold", "--json"])).unwrap()
}

fn listed(installation: &Installation) -> Vec<Value> {
    list(installation)["holds"].as_array().unwrap().clone()
}

fn id(hold: &Value) -> &str {
    hold["id"].as_str().unwrap()
}

fn of(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Files or bytes below a folder.
fn below(folder: &Path, count: fn(&fs::Metadata) -> u64) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => below(&entry.path(), count),
        Ok(found) => count(&found),
        Err(_) => 0,
    });
    each.sum()
}

fn pins(installation: &Installation) -> u64 {
    below(&installation.path("blocks/pins"), |_| 1)
}

fn stored(installation: &Installation) -> u64 {
    below(&installation.path("blocks/objects"), fs::Metadata::len)
}

fn write_all(mount: &Mount, byte: u8) -> String {
    for n in 0..8 {
        fs::write(mount.path(&format!("file{n}")), vec![byte; LARGE]).unwrap();
    }
    mount.instant()
}

/// A mount of the past that must be refused, and what it said.
fn refused(installation: &Installation, mount: &Mount, at: &str) -> String {
    let dir = installation.path("nowhere");
    fs::create_dir_all(&dir).unwrap();
    installation.fails(&["mount", "start", "v", text(&dir), "--token", &mount.token, "--at-time", at])
}

#[test]
fn a_held_instant_is_mounted_after_its_window_passed_and_goes_with_the_hold() {
    let mut installation = start();
    installation.create_volume("v", &["--retention", &format!("{WINDOW}s"), "--compression", "none"]);
    let live = installation.mount("v", &[]);
    write_all(&live, 1);
    fs::write(live.path("small"), "as it was").unwrap();
    let held_at = live.instant();
    let was = of(&live.dir);
    let made = hold(&installation, &["--at", &held_at]);
    assert_eq!((&made["from"], &made["to"]), (&Value::from(held_at.as_str()), &made["from"]));
    assert_eq!((made["owner"].as_str(), made["reason"].as_str()), (Some("root"), Some("audit: of june")));
    assert_eq!(pins(&installation), 1);
    let span_from = write_all(&live, 2);
    let span_to = write_all(&live, 3);
    hold(&installation, &["--from", &span_from, "--to", &span_to, "--until", "3s"]);
    fs::remove_file(live.path("small")).unwrap();
    let unheld = write_all(&live, 4);
    // What was acknowledged is there after a crash.
    installation.meta.kill();
    installation.start_meta();
    wait_for("the window to pass, and the hold with an end", || {
        let said = listed(&installation);
        std::thread::sleep(Duration::from_secs(1));
        (said.len() == 1).then_some(())
    });
    std::thread::sleep(Duration::from_secs(WINDOW + 2));
    wait_for("what nobody holds to go", || (stored(&installation) < 20 * LARGE as u64).then_some(()));
    for gone in [&span_from, &span_to, &unheld] {
        assert!(refused(&installation, &live, gone).contains("cannot be had"), "{gone}");
    }
    let late = installation.fails(&[
        "configure",
        "create",
        "hold",
        "--volume",
        "v",
        "--at",
        &unheld,
        "--reason",
        "too late",
    ]);
    assert!(late.contains("cannot be had: choose one from 2"), "{late}");
    assert_eq!(listed(&installation).len(), 1, "what was refused left nothing");
    assert_eq!(id(&listed(&installation)[0]), id(&made));
    let mut past = installation.mount_past(&live, &held_at);
    was.assert_same(&of(&past.dir), "the held instant");
    past.unmount();
    // Every slice of it, too.
    installation.stop_meta_and_verify();
    installation.start_meta();
    installation.ok(&["configure", "delete", "hold", id(&made)]);
    wait_for("the hold to end", || listed(&installation).is_empty().then_some(()));
    assert!(refused(&installation, &live, &held_at).contains("cannot be had"));
    wait_for("the bytes to go", || (stored(&installation) < 9 * LARGE as u64).then_some(()));
    assert!(pins(&installation) <= 1, "that of the hold with an end goes a day later");
}

#[test]
fn a_server_that_is_away_holds_what_was_acknowledged_and_lets_go_when_it_is_back() {
    let mut installation = start();
    installation.create_volume("v", &["--retention", "1h"]);
    let live = installation.mount("v", &[]);
    let at = write_all(&live, 1);
    installation.meta.kill();
    let create = ["configure", "create", "hold", "--volume", "v", "--at", &at, "--reason", "audit"];
    let said = installation.fails(&create);
    assert!(said.contains("has not answered: nothing is held"), "{said}");
    assert!(listed(&installation).iter().all(|hold| hold["state"] == "ending"));
    installation.start_meta();
    wait_for("nothing to be held", || listed(&installation).is_empty().then_some(()));
    assert_eq!(pins(&installation), 0);
    let made = wait_for("the server to take questions", || {
        let output =
            chronofs_e2e::process::run(&mut installation.command(&[&create[..], &["--json"]].concat()));
        serde_json::from_slice::<Value>(&output.stdout).ok().filter(|_| output.status.success())
    });
    installation.meta.kill();
    let away = listed(&installation);
    assert_eq!((away.len(), away[0]["state"].as_str()), (1, Some("held")));
    assert_eq!(
        list(&installation)["silent"].as_array().unwrap().len(),
        1,
        "the list says that it is not whole"
    );
    installation.ok(&["configure", "delete", "hold", id(&made)]);
    assert_eq!(listed(&installation)[0]["state"], "ending");
    installation.admin.kill();
    installation.start_admin();
    installation.start_meta();
    wait_for("the hold to end", || listed(&installation).is_empty().then_some(()));
    assert_eq!(pins(&installation), 0);
    let said = installation.fails(&["configure", "show", "hold", id(&made)]);
    assert!(said.contains("does not exist"), "{said}");
}

#[test]
fn a_shorter_retention_waits_for_its_grace_and_can_be_taken_back() {
    let installation = start();
    installation.create_volume("v", &["--retention", "1h", "--compression", "none"]);
    let live = installation.mount("v", &[]);
    let at = write_all(&live, 1);
    let was = of(&live.dir);
    write_all(&live, 2);
    let all = stored(&installation);
    let update = |flags: &[&str]| {
        installation.ok_with_stderr(&[&["configure", "update", "volume", "v"][..], flags].concat())
    };
    let next = || -> Value {
        let shown = installation.ok(&["configure", "show", "volume", "v", "--json"]);
        serde_json::from_str::<Value>(&shown).unwrap()["next_retention"].take()
    };
    let said = update(&["--retention", "2s", "--grace", "20s", "--dry-run"]);
    assert!(said.contains("goes then") && said.contains("nothing was changed"), "{said}");
    assert_eq!(next(), Value::Null);
    let begun = Instant::now();
    let said = update(&["--retention", "2s", "--grace", "20s"]);
    assert!(said.contains("for 1h until 2") && said.contains("--undo"), "{said}");
    assert_eq!(next(), "2s");
    std::thread::sleep(Duration::from_secs(8));
    let has = |what: &str| {
        let mut past = installation.mount_past(&live, &at);
        was.assert_same(&of(&past.dir), what);
        past.unmount();
        assert!(stored(&installation) >= all, "{what}: nothing is gone");
    };
    has("in the time of grace");
    let said = update(&["--undo"]);
    assert!(said.contains("nothing went"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "too slow to show anything");
    std::thread::sleep(Duration::from_secs(24).saturating_sub(begun.elapsed()));
    has("it was taken back");
    let said = update(&["--retention", "2s", "--grace", "0"]);
    assert!(said.contains("goes now"), "{said}");
    wait_for("the past to go", || (stored(&installation) < all * 6 / 10).then_some(()));
    assert!(refused(&installation, &live, &at).contains("cannot be had"));
    let said = update(&["--retention", "1h"]);
    assert!(said.contains("is gone already, and does not come back"), "{said}");
}
