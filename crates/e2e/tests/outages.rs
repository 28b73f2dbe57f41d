//! Block stores that cannot be used for a while, as programs on mounts see it.
//!
//! A process that has files open in a mount that waits must not start another: the copy closes the files before it
//! becomes another program, and each close waits for the store. So no test here opens a file of a mount itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use chronofs_e2e::gcs_double::{Fault, GcsDouble, service_account};
use chronofs_e2e::process::{http_get, run_within, text, text_of, wait_for};
use chronofs_e2e::{Installation, Mount, Rng};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than every look at the store and every pause between tries.
const OVER_WITHIN: Duration = Duration::from_secs(180);

/// A program with a file of a mount; killed at the end of the test, whatever it waits for.
struct Program(Child);

impl Program {
    /// `dd` from a file to a file, synced if `more` says so.
    fn dd(from: &Path, to: &Path, more: &[&str]) -> Program {
        let mut command = Command::new("dd");
        command.arg(format!("if={}", text(from))).arg(format!("of={}", text(to))).args(["bs=1M"]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Program(command.spawn().unwrap())
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Its end, and what it said.
    #[track_caller]
    fn end(&mut self, limit: Duration) -> (bool, String) {
        let start = Instant::now();
        while self.is_running() {
            assert!(start.elapsed() < limit, "dd still waits after {limit:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut said = String::new();
        drop(std::io::Read::read_to_string(self.0.stderr.as_mut().unwrap(), &mut said));
        (self.0.try_wait().unwrap().unwrap().success(), said)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let start = Instant::now();
        while self.is_running() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The folder of a block store, elsewhere until this goes.
struct Away {
    there: PathBuf,
    away: PathBuf,
}

impl Away {
    fn take(installation: &Installation) -> Away {
        let (there, away) = (installation.path("blocks"), installation.path("unmounted"));
        fs::rename(&there, &away).unwrap();
        Away { there, away }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // A put that had just seen the folder makes one on its way.
        drop(fs::remove_dir_all(&self.there));
        fs::rename(&self.away, &self.there).unwrap();
    }
}

/// What a mount says of itself in `mount list --json`.
fn listed(installation: &Installation, mount: &Mount) -> serde_json::Value {
    let all: serde_json::Value =
        serde_json::from_str(&installation.ok(&["mount", "list", "--json"])).unwrap();
    let dir = text(&mount.dir);
    all.as_array().unwrap().iter().find(|listed| listed["dir"] == dir).unwrap().clone()
}

/// The block store in the metadata server's status.
fn store(installation: &Installation) -> serde_json::Value {
    let address = installation.http_address.to_string();
    let status = installation.ok(&["meta", "status", "--http-addr", &address, "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["stores"].as_array().unwrap().len(), 1, "{status}");
    status["stores"][0].clone()
}

fn outage_seconds(installation: &Installation) -> u64 {
    let (_, text) = http_get(installation.http_address, "/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with("chronofs_meta_store_outage_seconds{"));
    line.unwrap_or_else(|| panic!("{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

fn lines_with(mount: &Mount, what: &str) -> usize {
    mount.process.log().lines().filter(|line| line.contains(what)).count()
}

/// 3 MiB that no compression makes small, in a file outside of all mounts.
fn source(installation: &Installation, name: &str) -> (PathBuf, Vec<u8>) {
    let bytes = Rng::new(name.len() as u64).bytes(3 << 20);
    let path = installation.path(name);
    fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn copy(from: &Path, to: &Path) -> Output {
    let (from, to) = (format!("if={}", text(from)), format!("of={}", text(to)));
    run_within(OVER_WITHIN, Command::new("dd").args([&from, &to, "bs=1M", "conv=fsync"]))
}

#[test]
fn while_the_block_store_is_away_operations_wait_or_fail_as_was_asked_and_nothing_is_lost() {
    let installation = Installation::start();
    installation.create_volume("v", &["--compression", "none"]);
    let (kept, kept_bytes) = source(&installation, "kept");
    let (new, new_bytes) = source(&installation, "much-newer");
    let writer = installation.mount("v", &[]);
    assert!(copy(&kept, &writer.path("kept")).status.success());
    let fails = installation.mount("v", &["--on-store-outage", "fail"]);
    let waits = installation.mount("v", &["-o", "on-store-outage=wait"]);
    let away = Away::take(&installation);

    let (done, said) = Program::dd(&fails.path("kept"), Path::new("/dev/null"), &[]).end(OVER_WITHIN);
    assert!(!done && said.contains("Input/output error"), "{said}");
    let failed = copy(&new, &fails.path("of-fails"));
    assert!(!failed.status.success() && text_of(&failed).contains("Input/output error"));
    let read_to = installation.path("read");
    let mut reading = Program::dd(&waits.path("kept"), &read_to, &[]);
    let mut syncing = Program::dd(&new, &waits.path("of-waits"), &["conv=fsync"]);
    let mut closing = Program::dd(&new, &waits.path("closed"), &[]);
    for (mount, policy) in [(&fails, "fail"), (&waits, "wait")] {
        let shown = wait_for("the outage to be listed", || {
            Some(listed(&installation, mount)).filter(|shown| shown["state"] == "no store")
        });
        let status = &shown["status"];
        assert_eq!(status["on_store_outage"], policy, "{shown}");
        assert!(status["store_outage"]["reason"].as_str().unwrap().contains("blocks"), "{shown}");
        assert!(status["unstored_bytes"].as_u64().unwrap() >= 3 << 20, "{shown}");
    }

    // Names, and what is small enough to lie with them, need no store.
    fs::create_dir(waits.path("folder")).unwrap();
    let small = installation.path("small");
    fs::write(&small, "small").unwrap();
    assert!(copy(&small, &waits.path("folder/small")).status.success());
    assert_eq!(fs::metadata(writer.path("folder/small")).unwrap().len(), 5);
    // What waits can be killed.
    let mut killed = Program::dd(&waits.path("kept"), Path::new("/dev/null"), &[]);
    let mut killed_writer = Program::dd(&new, &waits.path("killed"), &["conv=fsync"]);
    std::thread::sleep(Duration::from_secs(2));
    for waiting in [&mut reading, &mut syncing, &mut closing, &mut killed, &mut killed_writer] {
        assert!(waiting.is_running());
    }
    for waiting in [&mut killed, &mut killed_writer] {
        waiting.0.kill().unwrap();
        assert!(!waiting.end(Duration::from_secs(10)).0);
    }

    drop(away);
    assert!(reading.end(OVER_WITHIN).0 && syncing.end(OVER_WITHIN).0 && closing.end(OVER_WITHIN).0);
    assert!(fs::read(&read_to).unwrap() == kept_bytes);
    for mount in [&fails, &waits] {
        wait_for("the mount to be well", || {
            let shown = listed(&installation, mount);
            (shown["state"] == "connected" && shown["status"]["unstored_bytes"] == 0).then_some(())
        });
        for (log, lines) in [("the block store cannot be used", 1), ("the block store can be used again", 1)]
        {
            assert_eq!(lines_with(mount, log), lines, "{}", mount.process.log());
        }
    }
    for (name, bytes) in
        [("kept", &kept_bytes), ("of-fails", &new_bytes), ("of-waits", &new_bytes), ("closed", &new_bytes)]
    {
        assert!(&fs::read(writer.path(name)).unwrap() == bytes, "{name}");
    }
    assert!(fs::read(fails.path("kept")).unwrap() == kept_bytes);
}

#[test]
fn the_end_of_a_mount_waits_for_the_store_and_says_what_is_not_stored_unless_it_is_forced() {
    let mut installation = Installation::start();
    installation.create_volume("v", &["--compression", "none"]);
    let (new, bytes) = source(&installation, "new");
    let mut patient = installation.mount("v", &[]);
    let mut forced = installation.mount("v", &[]);
    let away = Away::take(&installation);
    for mount in [&patient, &forced] {
        let mut closing =
            Program::dd(&new, &mount.path(mount.dir.file_name().unwrap().to_str().unwrap()), &[]);
        wait_for("the outage to be listed", || {
            (listed(&installation, mount)["state"] == "no store").then_some(())
        });
        // The file is closed, and its bytes are not stored.
        closing.0.kill().unwrap();
        assert!(!closing.end(Duration::from_secs(10)).0);
    }
    let said = installation.ok_with_stderr(&["mount", "stop", "--force", text(&forced.dir)]);
    assert!(said.contains("giving up") && said.contains("3145728 bytes"), "{said}");
    assert!(!forced.process.wait().success());
    let log = forced.process.log();
    assert!(
        log.contains("not everything that was written could be stored") && log.contains("3145728"),
        "{log}"
    );

    let began = Instant::now();
    let said = installation.fails(&["mount", "stop", text(&patient.dir)]);
    assert!(began.elapsed() < Duration::from_secs(50), "{said}");
    let pid = patient.process.pid().unwrap();
    for part in ["3145728 bytes", "the block store cannot be used for", &format!("kill {pid}")] {
        assert!(said.contains(part), "no {part} in: {said}");
    }
    drop(away);
    assert!(patient.process.wait().success(), "{}", patient.process.log());
    let after = installation.mount("v", &[]);
    let name = patient.dir.file_name().unwrap().to_str().unwrap();
    assert!(fs::read(after.path(name)).unwrap() == bytes);
    drop(after);
    installation.stop_meta_and_verify();
}

#[test]
fn an_outage_of_a_bucket_is_seen_by_the_metadata_server_and_waited_for_through_it() {
    let double = GcsDouble::start();
    let installation = Installation::start();
    let account = installation.path("account.json");
    fs::write(&account, service_account()).unwrap();
    let endpoint = double.endpoint();
    let create = ["configure", "create", "block-store", "cloud", "--kind", "gcs", "--bucket", "bytes"];
    installation
        .ok(&[&create[..], &["--endpoint", &endpoint, "--credentials-file", text(&account)]].concat());
    let volume =
        ["configure", "create", "volume", "v", "--block-store", "cloud", "--metadata-store", "store"];
    installation.ok(&volume);
    let waits = installation.mount("v", &[]);
    let fails = installation.mount("v", &["--on-store-outage", "fail"]);
    let (kept, bytes) = source(&installation, "kept");
    assert!(copy(&kept, &waits.path("kept")).status.success());
    assert_eq!((store(&installation)["outage"].is_null(), outage_seconds(&installation)), (true, 0));

    double.set_fault(Fault::Away);
    let mut writing = Program::dd(&kept, &waits.path("new"), &["conv=fsync"]);
    let (done, said) = Program::dd(&fails.path("kept"), Path::new("/dev/null"), &[]).end(OVER_WITHIN);
    assert!(!done && said.contains("Input/output error"), "{said}");
    let shown = wait_for("the outage in the status", || {
        Some(store(&installation)).filter(|store| !store["outage"].is_null())
    });
    assert!(shown["place"].as_str().unwrap().contains(&endpoint), "{shown}");
    assert!(shown["outage"]["reason"].as_str().unwrap().contains("cannot be"), "{shown}");
    assert!(outage_seconds(&installation) > 0);
    let address = installation.http_address.to_string();
    let said = installation.ok_with_stderr(&["meta", "status", "--http-addr", &address]);
    assert!(said.contains("cannot be used for") && said.contains(&endpoint), "{said}");
    wait_for("the outage to be listed", || {
        (listed(&installation, &waits)["state"] == "no store").then_some(())
    });
    assert!(writing.is_running());

    double.set_fault(Fault::None);
    let (done, said) = writing.end(OVER_WITHIN);
    assert!(done, "{said}");
    wait_for("the end of the outage", || store(&installation)["outage"].is_null().then_some(()));
    assert_eq!(outage_seconds(&installation), 0);
    let log = installation.meta.log();
    for said in ["cannot be used:", "can be used again"] {
        assert_eq!(log.matches(said).count(), 1, "{log}");
    }
    let other = installation.mount("v", &[]);
    for name in ["kept", "new"] {
        assert!(fs::read(other.path(name)).unwrap() == bytes, "{name}");
    }
}
