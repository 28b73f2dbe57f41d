//! How many requests things take, at the block store and at the metadata server: what is slow elsewhere shows here as a
//! number.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_e2e::lying_proxy::LyingProxy;
use chronofs_e2e::object_server::{Kind, ObjectServer};
use chronofs_e2e::process::http_get;
use chronofs_e2e::{Installation, Mount, Rng};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;

/// How many objects were put through a proxy that tells no lie.
fn puts(proxy: &LyingProxy) -> usize {
    let is_put = |head: &&String| {
        let line = head.lines().next().unwrap_or_default();
        line.starts_with("PUT ") && line.contains("/objects/")
    };
    proxy.heads().iter().filter(is_put).count()
}

#[test]
fn a_small_append_that_is_synced_puts_no_object_and_a_thousand_of_them_put_a_few() {
    let server = ObjectServer::start(Kind::Moto);
    let proxy = LyingProxy::start(server.address, 1);
    // Nothing is packed while it is counted.
    let installation = Installation::start_with_meta_arguments(&["--pack-after", "3600"]);
    let (honest, counted) = (server.endpoint(), format!("http://{}", proxy.address));
    let flags = server.flags().into_iter().map(|flag| if flag == honest { counted.clone() } else { flag });
    installation.create_block_store("cloud", &flags.collect::<Vec<_>>(), &[]);
    installation.create_volume_in("cloud", "v", &["--compression", "none"]);
    let mut mount = installation.mount("v", &[]);
    let (mut rng, mut expected) = (Rng::new(1), Vec::new());
    let mut log = File::create(mount.path("log")).unwrap();
    let mut append = |times: u32| {
        for _ in 0..times {
            let line = rng.bytes(100);
            log.write_all(&line).unwrap();
            log.sync_all().unwrap();
            expected.extend(line);
        }
    };
    append(600);
    assert_eq!(puts(&proxy), 0, "what is small stays with the metadata");
    append(400);
    // The slices of the block are merged now and then, by now into an object.
    let put = puts(&proxy);
    assert!(put <= 10, "{put} objects were put");
    mount.kill();
    let mut mount = installation.mount("v", &[]);
    assert!(fs::read(mount.path("log")).unwrap() == expected);
    mount.unmount();
    // Who counts sees what is put.
    let before = puts(&proxy);
    let mut mount = installation.mount("v", &[]);
    let mut large = File::create(mount.path("large")).unwrap();
    large.write_all(&[7; 300_000]).unwrap();
    large.sync_all().unwrap();
    assert!(puts(&proxy) > before);
    drop(large);
    mount.unmount();
}

/// Kinds of requests that are asked for each file: of those that are left out some come when time passes, whatever is done.
const KINDS: [&str; 8] = ["create", "open", "setattr", "publish", "slices", "staged", "sync", "grant"];
const FILES: u64 = 60;
const LARGE: usize = 32 << 20;

/// How many requests of these kinds the metadata server has answered.
fn answered(installation: &Installation) -> BTreeMap<&'static str, u64> {
    let (_, text) = http_get(installation.http_address, "/metrics").unwrap();
    let sum = |kind: &str| {
        let label = format!("kind=\"{kind}\"");
        let lines = text.lines().filter(|line| line.starts_with("chronofs_meta_requests_total{"));
        let values = lines.filter(|line| line.contains(&label)).filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<u64>().unwrap()).sum::<u64>()
    };
    KINDS.into_iter().map(|kind| (kind, sum(kind))).collect()
}

/// Requests signed for puts, and bytes of objects that went through the metadata server.
fn signed_and_through(installation: &Installation) -> (u64, u64) {
    let (_, text) = http_get(installation.http_address, "/metrics").unwrap();
    let sum = |name: &str| {
        let lines = text.lines().filter(|line| line.starts_with(name));
        let values = lines.filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<u64>().unwrap()).sum::<u64>()
    };
    (sum("chronofs_meta_signed_total{action=\"put\"}"), sum("chronofs_meta_object_bytes_total"))
}

/// What `job` asks the metadata server for.
fn asked_by(installation: &Installation, job: impl FnOnce()) -> BTreeMap<&'static str, u64> {
    let before = answered(installation);
    job();
    answered(installation).into_iter().map(|(kind, count)| (kind, count - before[kind])).collect()
}

fn write(mount: &Mount, name: &str, bytes: &[u8]) {
    let mut file = File::create(mount.path(name)).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// What is asked for while files and a large one are written, and while another mount reads them.
fn written_and_read(installation: &Installation) -> [(&'static str, BTreeMap<&'static str, u64>); 2] {
    let (mut rng, mut mount) = (Rng::new(2), installation.mount("v", &[]));
    let files: Vec<Vec<u8>> = (0..FILES).map(|_| rng.bytes(300_000)).collect();
    let large = rng.bytes(LARGE);
    let wrote = asked_by(installation, || {
        for (n, bytes) in files.iter().enumerate() {
            write(&mount, &format!("file{n}"), bytes);
        }
        write(&mount, "large", &large);
    });
    mount.unmount();
    let mut other = installation.mount("v", &[]);
    let read = asked_by(installation, || {
        for (n, bytes) in files.iter().enumerate() {
            assert!(fs::read(other.path(&format!("file{n}"))).unwrap() == *bytes);
        }
        assert!(fs::read(other.path("large")).unwrap() == large);
    });
    other.unmount();
    [("write", wrote), ("read", read)]
}

#[test]
fn files_in_a_bucket_ask_the_metadata_server_for_no_more_than_files_in_a_folder() {
    let folder = Installation::start();
    folder.create_volume("v", &["--compression", "none"]);
    let of_folder = written_and_read(&folder);
    drop(folder);
    let (server, bucket) = (ObjectServer::start(Kind::Moto), Installation::start());
    bucket.create_block_store("cloud", &server.flags(), &[]);
    bucket.create_volume_in("cloud", "v", &["--compression", "none"]);
    let of_bucket = written_and_read(&bucket);
    for ((what, folder), (_, bucket)) in of_folder.iter().zip(&of_bucket) {
        println!("{what}: {folder:?} in a folder, {bucket:?} in a bucket");
        for kind in KINDS {
            // Blocks of the large file may be published together or not. One more for each file would be 60.
            let most = folder[kind] + 10;
            assert!(bucket[kind] <= most, "{what}, {kind}: {folder:?} in a folder, {bucket:?} in a bucket");
        }
    }
    assert!(of_folder[0].1["publish"] >= FILES && of_folder[1].1["open"] >= FILES, "{of_folder:?}");
    // Requests for puts are signed many at a time: for all that was put, and for some that would come next, of two mounts.
    let (signed, through) = signed_and_through(&bucket);
    assert!((FILES..FILES * 5).contains(&signed), "{signed} were signed for {FILES} files and a large one");
    assert_eq!(through, 0, "bytes of objects go to the bucket and come from it");
}
