//! Real mounts and servers over a store that lies and fails: no wrong byte is read, what was synced is there, now and as
//! of its instants, and what nothing needs any more goes. A simulation tries many more orders of things
//! (`crates/mount/src/simulation`); here it is all of the program, over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_e2e::installation::is_mount_point;
use chronofs_e2e::lying_proxy::{Lie, LyingProxy};
use chronofs_e2e::object_server::{BUCKET, Kind, ObjectServer, request};
use chronofs_e2e::place::gcs_flags;
use chronofs_e2e::process::{http_get, run_within, text, text_of, wait_for};
use chronofs_e2e::{Installation, Mount, Rng, env_number, seed};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Error, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const FILES: u64 = 5;
const RETENTION_S: u64 = 60;

type Contents = BTreeMap<String, Vec<u8>>;

/// Writes a file until it is stored: while the store fails, fsync says so, and says no more than that.
fn write_until_synced(path: &Path, bytes: &[u8]) -> u32 {
    let (begun, mut failed) = (Instant::now(), 0);
    loop {
        let write = || -> Result<(), Error> {
            let mut file = File::create(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        match write() {
            Ok(()) => return failed,
            Err(error) => assert_eq!(error.raw_os_error(), Some(5), "{error}"),
        }
        failed += 1;
        assert!(begun.elapsed() < Duration::from_secs(120), "{} cannot be stored", path.display());
    }
}

/// Reads every file whole. Whatever is read is right; gives how many could not be.
fn read_all(mount: &Mount, expected: &Contents, what: &str) -> u32 {
    let mut failed = 0;
    for (name, bytes) in expected {
        let mut found = Vec::new();
        match File::open(mount.path(name)).and_then(|mut file| file.read_to_end(&mut found)) {
            Ok(_) => assert!(&found == bytes, "{what}: {name} has other bytes"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{what}: {name}: {error}");
                assert!(bytes.starts_with(&found), "{what}: wrong bytes before the end of {name}");
                failed += 1;
            }
        }
    }
    failed
}

/// The flags of the server with the proxy's address.
fn flags(server: &ObjectServer, proxy: &LyingProxy) -> Vec<String> {
    let (honest, through) = (server.endpoint(), format!("http://{}", proxy.address));
    server.flags().into_iter().map(|flag| if flag == honest { through.clone() } else { flag }).collect()
}

/// Mounts while the store is honest: with each new token the server looks whether the store is still the one it knows, and one
/// that shows something else is not served until it is looked at again.
fn mount(installation: &Installation, proxy: &LyingProxy, past: Option<(&Mount, &str)>) -> Mount {
    proxy.lie_one_in(0);
    let mount = match past {
        Some((live, at)) => installation.mount_past(live, at),
        None => installation.mount("v", &[]),
    };
    proxy.lie_one_in(3);
    mount
}

/// How many objects the server behind the proxy has, however many pages that takes.
fn objects(server: &ObjectServer) -> usize {
    let path = format!("/{BUCKET}?list-type=2&prefix=objects/&max-keys=1000");
    let (status, answer) = request(server.address, "GET", &path, &[]);
    assert!(status == 200 && answer.contains("<IsTruncated>false"), "{answer}");
    answer.matches("<Key>").count()
}

#[test]
fn over_a_store_that_lies_no_wrong_byte_is_read_and_nothing_that_was_synced_is_lost() {
    let seed = seed("lying store");
    let mut rng = Rng::new(seed);
    let server = ObjectServer::start(Kind::Moto);
    let proxy = LyingProxy::start(server.address, rng.bits());
    let mut installation =
        Installation::start_with_meta_arguments(&["--slice-life", "1", "--horizon-step", "1"]);
    installation.create_block_store("cloud", &flags(&server, &proxy), &[]);
    let retention = format!("{RETENTION_S}s");
    installation.create_volume_in("cloud", "v", &["--compression", "none", "--retention", &retention]);
    let mut writer = installation.mount("v", &[]);

    proxy.lie_one_in(3);
    let (mut now, mut instants, mut failed) = (Contents::new(), Vec::new(), 0);
    for round in 0..env_number("CHRONOFS_ROUNDS", 4) {
        for n in 0..FILES {
            let (name, len) = (format!("file{n}"), rng.between(1, 700_000));
            let bytes = rng.bytes(len as usize);
            failed += write_until_synced(&writer.path(&name), &bytes);
            now.insert(name, bytes);
        }
        instants.push((writer.instant(), Instant::now(), now.clone()));
        // Whoever wrote it dies, or the server does: what was synced is there.
        match round % 2 {
            0 => {
                writer.kill();
                writer = mount(&installation, &proxy, None);
            }
            _ => {
                installation.meta.kill();
                // A server that starts has to see that the store is the one it knows.
                proxy.lie_one_in(0);
                installation.start_meta();
                proxy.lie_one_in(3);
            }
        }
        // Its caches are empty: it reads what the store says.
        let mut reader = mount(&installation, &proxy, None);
        failed += read_all(&reader, &now, &format!("seed {seed}, live"));
        reader.unmount();
        let (at, _, then) = &instants[rng.below(instants.len() as u64) as usize];
        let mut past = mount(&installation, &proxy, Some((&writer, at)));
        failed += read_all(&past, then, &format!("seed {seed}, at {at}"));
        past.unmount();
    }
    writer.kill();
    println!("seed {seed}: {failed} calls failed with EIO; the store: {:?}", proxy.told());
    proxy.lie_one_in(0);
    let mut reader = installation.mount("v", &[]);
    assert_eq!(read_all(&reader, &now, &format!("seed {seed}, in the end")), 0);
    for (at, when, then) in &instants {
        if when.elapsed() < Duration::from_secs(RETENTION_S - 10) {
            let mut past = installation.mount_past(&reader, at);
            assert_eq!(read_all(&past, then, &format!("seed {seed}, in the end at {at}")), 0);
            past.unmount();
        }
    }
    // What the window lets go is deleted although the store says that it did and did not, and nothing else.
    installation.ok(&["configure", "update", "volume", "v", "--retention", "0", "--grace", "0"]);
    proxy.lie_one_in(4);
    let address = installation.http_address.to_string();
    let begun = Instant::now();
    let left = |installation: &Installation| {
        installation.ok(&["meta", "gc", "--full", "--http-addr", &address]);
        objects(&server)
    };
    while left(&installation) > 2 * FILES as usize {
        assert!(begun.elapsed() < Duration::from_secs(200), "{} objects are left", objects(&server));
        std::thread::sleep(Duration::from_secs(2));
    }
    proxy.lie_one_in(0);
    reader.unmount();
    let mut reader = installation.mount("v", &[]);
    assert_eq!(read_all(&reader, &now, &format!("seed {seed}, collected")), 0);
    reader.unmount();
    wait_for("the lies to have been told", || (proxy.told().len() > 10).then_some(()));
    installation.stop_meta_and_verify();
}

/// A store that does not know create-only puts, and keeps its word in all else, is taken, and is used without them.
#[test]
fn over_a_store_that_knows_no_create_only_puts_files_are_kept_and_their_room_comes_back() {
    let server = ObjectServer::start(Kind::Moto);
    let proxy = LyingProxy::start(server.address, 1);
    proxy.put_over();
    let timing = ["--slice-life", "1", "--horizon-step", "1", "--pack-after", "1"];
    let mut installation = Installation::start_with_meta_arguments(&timing);
    installation.create_block_store("cloud", &flags(&server, &proxy), &[]);
    let shown = installation.ok(&["configure", "show", "block-store", "cloud"]);
    let found = shown.lines().find(|line| line.starts_with("create-only puts")).unwrap_or_default();
    assert!(found.ends_with("no"), "{shown}");
    installation.create_volume_in("cloud", "v", &["--compression", "none", "--retention", "0"]);
    let (mut rng, mut now) = (Rng::new(seed("a weak store")), Contents::new());
    let mut writer = installation.mount("v", &[]);
    for round in 0..3 {
        for n in 0..FILES {
            let large = rng.between(100_000, 700_000);
            for (name, len) in [(format!("small{n}"), 1000 + n), (format!("large{n}"), large)] {
                let bytes = rng.bytes(len as usize);
                assert!(write_synced(&writer.path(&name), &bytes), "{name} in round {round}");
                now.insert(name, bytes);
            }
        }
        // Whoever wrote it dies, and another one finds all of it.
        writer.kill();
        writer = installation.mount("v", &[]);
        assert_eq!(read_all(&writer, &now, &format!("round {round}")), 0);
    }
    let (_, figures) = http_get(installation.http_address, "/metrics").unwrap();
    assert!(
        figures.contains("chronofs_meta_signed_total{action=\"put\"} 0\n"),
        "a put that can overwrite is signed"
    );
    let address = installation.http_address.to_string();
    let begun = Instant::now();
    while objects(&server) > 2 * FILES as usize {
        assert!(begun.elapsed() < Duration::from_secs(120), "{} objects are left", objects(&server));
        installation.ok(&["meta", "gc", "--full", "--http-addr", &address]);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(objects(&server) >= FILES as usize, "an object for each large file, and what is packed");
    writer.unmount();
    let mut reader = installation.mount("v", &[]);
    assert_eq!(read_all(&reader, &now, "collected"), 0);
    reader.unmount();
    let conditions = |head: &String| head.to_ascii_lowercase().contains("if-none-match");
    assert!(proxy.heads().iter().any(conditions), "the probe has tried it");
    installation.stop_meta_and_verify();
}

#[test]
fn a_store_that_always_lies_is_refused() {
    let server = ObjectServer::start(Kind::Moto);
    let installation = Installation::start();
    for (lie, word) in [
        (Lie::WrongByte, "write"),
        (Lie::Page, "not a marker"),
        (Lie::CutsShort, ""),
        (Lie::Missing, "write"),
        (Lie::Fails, ""),
        (Lie::Lost, "delete"),
        // What it leaves out may be the pin that somebody relies on.
        (Lie::LeavesOut, "list: a list of"),
    ] {
        let proxy = LyingProxy::start(server.address, 1);
        proxy.always(lie);
        let flags = flags(&server, &proxy);
        let create = ["configure", "create", "block-store", "liar"].map(str::to_owned);
        let create: Vec<String> = create.into_iter().chain(flags).collect();
        let refused = installation.fails(&create.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(refused.contains(word), "{lie:?}: {refused}");
        assert!(!proxy.told().is_empty(), "{lie:?}");
    }
}

/// Writes a file once, and says whether it is stored.
fn write_synced(path: &Path, bytes: &[u8]) -> bool {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = &written {
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }
    written.is_ok()
}

/// The objects that a server has as files.
fn object_files(server: &ObjectServer) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = server.files();
    files.retain(|path, _| path.to_string_lossy().contains("/objects/"));
    files
}

/// Has everything collected that may go, of a server that keeps objects as files: what a file had before it was written
/// over goes, and nothing else.
fn collects_nothing_that_is_needed(installation: &Installation, server: &ObjectServer, path: &Path) {
    let mut rng = Rng::new(1);
    // After all that went wrong the store may be taken for one that is away for a moment.
    let first = path.with_extension("first");
    wait_for("the store to be used again", || write_synced(&first, &[7; 100_000]).then_some(()));
    let mut kept = object_files(server);
    assert!(!kept.is_empty());
    assert!(write_synced(path, &rng.bytes(200_000)));
    let mut over = object_files(server);
    over.retain(|path, _| !kept.contains_key(path));
    assert!(write_synced(path, &rng.bytes(300_000)));
    kept.extend(object_files(server).into_iter().filter(|(path, _)| !over.contains_key(path)));
    let address = installation.http_address.to_string();
    let begun = Instant::now();
    while object_files(server).keys().any(|path| over.contains_key(path)) {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?} is still there", over.keys());
        installation.ok(&["meta", "gc", "--full", "--http-addr", &address]);
        std::thread::sleep(Duration::from_secs(1));
    }
    for _ in 0..2 {
        installation.ok(&["meta", "gc", "--full", "--http-addr", &address]);
    }
    assert!(object_files(server) == kept, "what rows name has changed");
}

/// A volume in a store that the probe refuses.
fn create_unchecked(installation: &Installation, flags: &[String]) {
    let create = ["configure", "create", "block-store", "liar"].into_iter();
    let refused = installation.fails(&create.chain(flags.iter().map(String::as_str)).collect::<Vec<_>>());
    assert!(refused.contains("--unchecked"), "{refused}");
    installation.create_block_store("liar", flags, &["--unchecked"]);
    installation.create_volume_in("liar", "v", &["--compression", "none", "--retention", "0"]);
}

/// Uses a server that the probe refuses all the same. Gives how many files it took, and how many it gave back.
fn used_unchecked(kind: Kind) -> (u32, u32) {
    let server = ObjectServer::start(kind);
    let timing = ["--slice-life", "1", "--horizon-step", "1", "--pack-after", "1"];
    let installation = Installation::start_with_meta_arguments(&timing);
    create_unchecked(&installation, &server.flags());
    let mut writer = installation.mount("v", &["--on-store-outage", "fail"]);
    let mut rng = Rng::new(seed("a dishonest server"));
    let mut stored = Contents::new();
    let mut write = |name: String, len: u64| {
        let bytes = rng.bytes(len as usize);
        if write_synced(&writer.path(&name), &bytes) {
            stored.insert(name, bytes);
        }
    };
    (0..FILES).for_each(|n| write(format!("small{n}"), 1000 + n));
    // They are read from the middle of an object that the server makes of them.
    wait_for("small files to be packed", || (!object_files(&server).is_empty()).then_some(()));
    (0..FILES).for_each(|n| write(format!("large{n}"), 100_000 * (n + 1)));
    writer.kill();
    let read = |what: &str| {
        let mut reader = installation.mount("v", &["--on-store-outage", "fail"]);
        let failed = read_all(&reader, &stored, &format!("{kind:?}, {what}"));
        if what == "at first" {
            collects_nothing_that_is_needed(&installation, &server, &reader.path("over"));
        }
        reader.unmount();
        failed
    };
    let failed = read("at first");
    assert_eq!(read("in the end"), failed);
    (stored.len() as u32, stored.len() as u32 - failed)
}

#[test]
fn over_rclone_every_byte_is_right_or_an_error_and_nothing_goes_that_is_needed() {
    let (stored, read) = used_unchecked(Kind::Rclone);
    // It gives what is asked for, but says that it is the whole: that is believed of nobody.
    assert_eq!((stored, read), (2 * FILES as u32, 0));
}

#[test]
fn over_s3rver_every_byte_is_right_or_an_error_and_nothing_goes_that_is_needed() {
    let (stored, read) = used_unchecked(Kind::S3rver);
    // What it gives instead of a single byte, nobody asks for here.
    assert_eq!((stored, read), (2 * FILES as u32, 2 * FILES as u32));
}

#[test]
fn an_emulator_of_gcs_that_cannot_say_what_it_has_gets_no_byte() {
    let server = ObjectServer::start(Kind::GcpEmulator);
    let installation = Installation::start();
    create_unchecked(&installation, &gcs_flags(&installation, &server.endpoint()));
    let state = || {
        let shown = installation.ok(&["configure", "show", "volume", "v", "--json"]);
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()
    };
    let shown =
        wait_for("the volume not to be served", || Some(state()).filter(|shown| shown["state"] == "problem"));
    assert!(shown["detail"].to_string().contains(&server.endpoint()), "{shown}");
    let (token, place) = (installation.create_token("v", &[]), installation.path("place"));
    fs::create_dir(&place).unwrap();
    let refused = installation.fails(&["mount", "start", "v", text(&place), "--token", &token]);
    assert!(!is_mount_point(&place), "{refused}");
}

/// The files are held by other processes: one that holds files of a mount that waits cannot start any.
#[test]
fn requests_that_are_never_answered_cost_a_time_out_and_no_byte() {
    let server = ObjectServer::start(Kind::Moto);
    let proxy = LyingProxy::start(server.address, 1);
    let mut installation = Installation::start();
    installation.create_block_store("cloud", &flags(&server, &proxy), &[]);
    installation.create_volume_in("cloud", "v", &[]);
    let mut writer = installation.mount("v", &["--on-store-outage", "fail"]);
    let mut rng = Rng::new(seed("no answer"));
    let (kept, late) = (rng.bytes(700_000), rng.bytes(3 << 20));
    assert!(write_synced(&writer.path("kept"), &kept));
    let mut reader = installation.mount("v", &["--on-store-outage", "fail"]);
    let (source, read) = (installation.path("source"), installation.path("read"));
    fs::write(&source, &late).unwrap();
    proxy.always(Lie::Hangs);
    let copy = |from: &Path, to: &Path| {
        let (from, to) = (format!("if={}", text(from)), format!("of={}", text(to)));
        let begun = Instant::now();
        let done = run_within(
            Duration::from_secs(200),
            Command::new("dd").args([&from, &to, "bs=1M", "conv=fsync"]),
        );
        println!("{from} {to}: {:?} {}", begun.elapsed(), text_of(&done));
        done.status.success()
    };
    let (wrote, got) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| copy(&source, &writer.path("late")));
        let reading = scope.spawn(|| copy(&reader.path("kept"), &read));
        // A read that hangs is asked for again: that hangs, too.
        let told = |kind: &str| proxy.told().get(&(kind.to_owned(), Lie::Hangs)).copied().unwrap_or_default();
        wait_for("requests that hang", || (told("PUT") >= 1 && told("GET") >= 2).then_some(()));
        proxy.lie_one_in(0);
        (writing.join().unwrap(), reading.join().unwrap())
    });
    // The metadata server is asked then, and does better.
    assert!(wrote && got, "{:?}", proxy.told());
    assert!(fs::read(&read).unwrap() == kept);
    reader.unmount();
    writer.unmount();
    let mut after = installation.mount("v", &[]);
    assert!(fs::read(after.path("kept")).unwrap() == kept);
    assert!(fs::read(after.path("late")).unwrap() == late);
    after.unmount();
    installation.stop_meta_and_verify();
}
