//! Real mounts and servers over a store that lies and fails: no wrong byte is read, what was synced is there, now and as
//! of its instants, and what nothing needs any more goes. A simulation tries many more orders of things
//! (`crates/mount/src/simulation`); here it is all of the program, over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_e2e::lying_proxy::{Lie, LyingProxy};
use chronofs_e2e::object_server::{BUCKET, Kind, ObjectServer, request};
use chronofs_e2e::process::wait_for;
use chronofs_e2e::{Installation, Mount, Rng, env_number, seed};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, Read, Write};
use std::path::Path;
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
    installation.ok(&["configure", "update", "volume", "v", "--retention", "0"]);
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

#[test]
fn a_store_that_always_lies_is_refused_or_its_weakness_is_told() {
    let server = ObjectServer::start(Kind::Moto);
    let installation = Installation::start();
    for (lie, word) in [
        (Lie::WrongByte, "write"),
        (Lie::Page, "not a marker"),
        (Lie::CutsShort, ""),
        (Lie::Missing, "write"),
        (Lie::Fails, ""),
        (Lie::Lost, "delete"),
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
    let proxy = LyingProxy::start(server.address, 1);
    proxy.always(Lie::LeavesOut);
    let told = installation.create_block_store("forgetful", &flags(&server, &proxy), &["--json"]);
    let weaknesses = serde_json::from_str::<serde_json::Value>(&told).unwrap()["weaknesses"].to_string();
    assert!(weaknesses.contains("list: a list of"), "{told}");
}
