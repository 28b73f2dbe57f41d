//! Volumes whose bytes are in a bucket: through the command line, the servers and a mount, as people use them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use chronofs_e2e::gcs_double::{Fault, GcsDouble};
use chronofs_e2e::object_server::{AZURE_KEY, Kind, ObjectServer, SECRET, request};
use chronofs_e2e::place::gcs_flags;
use chronofs_e2e::process::{http_get, wait_for};
use chronofs_e2e::{Installation, Mount};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that no compression makes small.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(draw).collect()
}

fn mounted(installation: &Installation, server: &ObjectServer) -> Mount {
    installation.create_block_store("cloud", &server.flags(), &["--prefix", "team/one"]);
    installation.create_volume_in("cloud", "v", &[]);
    installation.mount("v", &[])
}

#[test]
fn files_are_kept_in_a_bucket_and_read_back_by_another_mount() {
    for kind in [Kind::Moto, Kind::Azurite] {
        let server = ObjectServer::start(kind);
        let installation = Installation::start();
        let mut mount = mounted(&installation, &server);
        let files = [("small", noise(100, 1)), ("large", noise(9 << 20, 2)), ("odd", noise(777_777, 3))];
        for (name, bytes) in &files {
            fs::write(mount.path(name), bytes).unwrap();
        }
        let then = mount.instant();
        fs::write(mount.path("odd"), noise(300_000, 4)).unwrap();
        let live = installation.mount("v", &[]);
        let past = installation.mount_past(&mount, &then);
        assert!(fs::read(live.path("odd")).unwrap() == noise(300_000, 4));
        for (name, bytes) in &files {
            assert!(&fs::read(past.path(name)).unwrap() == bytes, "{kind:?}: {name} as it was");
        }
        mount.unmount();
    }
}

/// A figure of the metadata server.
#[track_caller]
fn figure(installation: &Installation, name: &str) -> u64 {
    let (_, text) = http_get(installation.http_address, "/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in:\n{text}"))
}

/// Bytes of objects that went through the metadata server: put and read.
#[track_caller]
fn through_server(installation: &Installation) -> (u64, u64) {
    let bytes = |action: &str| {
        figure(installation, &format!("chronofs_meta_object_bytes_total{{action=\"{action}\"}}"))
    };
    (bytes("put"), bytes("get"))
}

fn create_gcs(installation: &Installation, double: &GcsDouble) {
    installation.create_block_store("cloud", &gcs_flags(installation, &double.endpoint()), &[]);
    installation.create_volume_in("cloud", "v", &[]);
}

#[test]
fn no_byte_of_an_object_goes_through_the_metadata_server() {
    let server = ObjectServer::start(Kind::Moto);
    let installation = Installation::start();
    let mount = mounted(&installation, &server);
    // The first put is not to wait for that.
    wait_for("puts to be signed for a mount that has written nothing yet", || {
        (figure(&installation, "chronofs_meta_signed_total{action=\"put\"}") > 0).then_some(())
    });
    fs::create_dir(mount.path("folder")).unwrap();
    let (large, medium) = (noise(40 << 20, 2), noise(777_777, 3));
    fs::write(mount.path("large"), &large).unwrap();
    fs::write(mount.path("folder/medium"), &medium).unwrap();
    let then = mount.instant();
    fs::write(mount.path("large"), noise(5 << 20, 4)).unwrap();
    let past = installation.mount_past(&mount, &then);
    assert!(fs::read(past.path("large")).unwrap() == large);
    let live = installation.mount("v", &[]);
    assert!(fs::read(live.path("large")).unwrap() == noise(5 << 20, 4));
    let token = installation.create_token("v", &["--path", "/folder", "--no-past"]);
    let confined = installation.mount_with("v", &token, &[]);
    assert!(fs::read(confined.path("medium")).unwrap() == medium);
    assert_eq!(through_server(&installation), (0, 0));
    for action in ["put", "get"] {
        let name = format!("chronofs_meta_signed_total{{action=\"{action}\"}}");
        assert!(figure(&installation, &name) > 0, "{name}");
    }
}

#[test]
fn a_store_that_takes_no_signed_request_from_a_mount_is_reached_through_the_metadata_server() {
    for fault in [Fault::SignedRefused, Fault::SignedAway] {
        let double = GcsDouble::start();
        let installation = Installation::start();
        create_gcs(&installation, &double);
        let mount = installation.mount("v", &[]);
        let bytes = [noise(5 << 20, 5), noise(3 << 20, 6)];
        fs::write(mount.path("before"), &bytes[0]).unwrap();
        File::open(mount.path("before")).unwrap().sync_all().unwrap();
        assert_eq!(through_server(&installation), (0, 0));
        double.set_fault(fault);
        fs::write(mount.path("after"), &bytes[1]).unwrap();
        let other = installation.mount("v", &[]);
        assert!(fs::read(other.path("before")).unwrap() == bytes[0], "{fault:?}");
        assert!(fs::read(other.path("after")).unwrap() == bytes[1], "{fault:?}");
        let (put, got) = through_server(&installation);
        assert!(put >= 3 << 20 && got >= 8 << 20, "{fault:?}: {put} {got}");
    }
}

#[test]
fn a_signed_request_that_is_not_taken_any_more_is_replaced_by_a_new_one() {
    let double = GcsDouble::start();
    let installation = Installation::start();
    create_gcs(&installation, &double);
    let mount = installation.mount("v", &[]);
    double.set_fault(Fault::SignedRefusedOnce);
    let bytes = noise(20 << 20, 8);
    fs::write(mount.path("file"), &bytes).unwrap();
    File::open(mount.path("file")).unwrap().sync_all().unwrap();
    let other = installation.mount("v", &[]);
    assert!(fs::read(other.path("file")).unwrap() == bytes);
    assert_eq!(through_server(&installation), (0, 0));
}

#[test]
fn a_read_that_hangs_does_not_hold_up_a_mount() {
    let double = GcsDouble::start();
    let installation = Installation::start();
    create_gcs(&installation, &double);
    let bytes = noise(40 << 20, 9);
    fs::write(installation.mount("v", &[]).path("file"), &bytes).unwrap();
    double.set_fault(Fault::ReadsHang);
    let (mut tries, mut hedged) = (0, 0);
    // One in 25 hangs, and a read of the file takes at least 10.
    while hedged == 0 {
        tries += 1;
        assert!(tries < 20, "no read was sent twice");
        let other = installation.mount("v", &[]);
        let began = Instant::now();
        assert!(fs::read(other.path("file")).unwrap() == bytes);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let listed: serde_json::Value =
            serde_json::from_str(&installation.ok(&["mount", "list", "--json"])).unwrap();
        let dir = other.dir.to_str().unwrap();
        let listed = listed.as_array().unwrap().iter().find(|listed| listed["dir"] == dir).unwrap();
        hedged = listed["status"]["hedged_reads_won"].as_u64().unwrap();
    }
    assert_eq!(through_server(&installation), (0, 0));
}

#[test]
fn where_signatures_cover_no_headers_whole_objects_are_read_directly_by_whom_the_volume_belongs_to() {
    let server = ObjectServer::start(Kind::Azurite);
    let installation = Installation::start();
    let mount = mounted(&installation, &server);
    fs::create_dir(mount.path("folder")).unwrap();
    let bytes = noise(3 << 20, 7);
    fs::write(mount.path("folder/file"), &bytes).unwrap();
    let (put, _) = through_server(&installation);
    assert!(put >= 3 << 20, "a put that could overwrite is not signed");
    let other = installation.mount("v", &[]);
    assert!(fs::read(other.path("folder/file")).unwrap() == bytes);
    assert_eq!(through_server(&installation).1, 0);
    let token = installation.create_token("v", &["--path", "/folder"]);
    let confined = installation.mount_with("v", &token, &[]);
    assert!(fs::read(confined.path("file")).unwrap() == bytes);
    assert!(through_server(&installation).1 >= 3 << 20);
}

#[test]
fn what_the_probe_found_is_shown_and_is_found_anew_on_demand() {
    let server = ObjectServer::start(Kind::Moto);
    let installation = Installation::start();
    installation.create_block_store("cloud", &server.flags(), &["--unchecked"]);
    let before = installation.ok(&["configure", "show", "block-store", "cloud", "--json"]);
    assert!(before.contains("\"probed\": null"), "{before}");
    let after = installation.ok(&["configure", "probe", "block-store", "cloud"]);
    let shown = installation.ok(&["configure", "show", "block-store", "cloud"]);
    assert_eq!(after, shown);
    let line =
        |title: &str| shown.lines().find(|line| line.starts_with(title)).unwrap_or_default().to_owned();
    assert!(line("create-only puts").ends_with("yes"), "{shown}");
    assert!(line("parallel puts").ends_with("32") && line("weaknesses").ends_with('-'), "{shown}");
    assert!(line("credentials").contains("access key S3RVER"), "{shown}");
    assert!(line("place").contains(&server.endpoint()), "{shown}");
    let refused = installation.fails(&["configure", "probe", "block-store", "blocks"]);
    assert!(refused.contains("folder"), "{refused}");
}

#[test]
fn a_bucket_that_cannot_be_used_is_refused_with_the_reason_unless_nobody_is_to_look() {
    let installation = Installation::start();
    let create = |flags: &[String], more: &[&str]| {
        let mut arguments = vec!["configure", "create", "block-store", "cloud"];
        arguments.extend(flags.iter().map(String::as_str).chain(more.iter().copied()));
        installation.fails(&arguments)
    };
    let azurite = ObjectServer::start(Kind::Azurite);
    let wrong_key = AZURE_KEY.replace("Eby8", "Eby9");
    let mut flags = azurite.flags();
    *flags.iter_mut().find(|flag| *flag == AZURE_KEY).unwrap() = wrong_key.clone();
    let refused = create(&flags, &[]);
    assert!(refused.contains("403") && !refused.contains(&wrong_key), "{refused}");
    let rclone = ObjectServer::start(Kind::Rclone);
    let refused = create(&rclone.flags(), &[]);
    assert!(refused.contains("ranges") && refused.contains("--unchecked"), "{refused}");
    let mut moto = ObjectServer::start(Kind::Moto);
    let mut flags = moto.flags();
    let bucket = flags.iter().position(|flag| flag == "--bucket").unwrap();
    flags[bucket + 1] = "no-such-bucket".to_owned();
    let refused = create(&flags, &[]);
    assert!(refused.contains("NoSuchBucket"), "{refused}");
    moto.kill();
    let began = Instant::now();
    let refused = create(&moto.flags(), &[]);
    assert!(refused.contains("refused") && began.elapsed() < Duration::from_secs(30), "{refused}");
    assert!(create(&moto.flags()[2..], &["--kind", "local"]).contains("--path"));
    assert_eq!(installation.ok(&["configure", "list", "block-store"]).lines().count(), 2, "nothing was made");
    installation.create_block_store("later", &moto.flags(), &["--unchecked"]);
    assert!(installation.ok(&["configure", "list", "block-store"]).contains("later"));
}

#[test]
fn a_bucket_that_is_away_holds_up_bytes_and_nothing_else() {
    let double = GcsDouble::start();
    let mut installation = Installation::start();
    create_gcs(&installation, &double);
    let mount = installation.mount("v", &[]);
    let (kept, late) = (noise(3 << 20, 5), noise(2 << 20, 6));
    fs::write(mount.path("kept"), &kept).unwrap();
    File::open(mount.path("kept")).unwrap().sync_all().unwrap();
    double.set_fault(Fault::Away);
    // Names and small files need no bucket, also after a restart of the metadata server.
    fs::create_dir(mount.path("folder")).unwrap();
    installation.meta.stop();
    installation.start_meta();
    fs::write(mount.path("folder/small"), b"small").unwrap();
    assert_eq!(fs::read(mount.path("folder/small")).unwrap(), b"small");
    let mut file = File::create(mount.path("late")).unwrap();
    file.write_all(&late).unwrap();
    let synced = std::thread::spawn(move || file.sync_all());
    // Longer than servers take to give a volume up, shorter than they try.
    std::thread::sleep(Duration::from_secs(5));
    assert!(!synced.is_finished(), "fsync waits for the bucket");
    double.set_fault(Fault::None);
    let done = synced.join().unwrap();
    done.unwrap_or_else(|e| panic!("{e}; the metadata server says:\n{}", installation.meta.log_tail()));
    let other = installation.mount("v", &[]);
    assert!(fs::read(other.path("late")).unwrap() == late);
    assert!(fs::read(other.path("kept")).unwrap() == kept);
    let shown = installation.ok(&["configure", "show", "volume", "v", "--json"]);
    assert!(shown.contains("\"state\": \"ready\""), "{shown}");
}

#[test]
fn nothing_is_put_into_a_bucket_that_forgot_whose_it_is() {
    let mut server = ObjectServer::start(Kind::Moto);
    let mut installation = Installation::start();
    installation.create_block_store("cloud", &server.flags(), &["--prefix", "team/one"]);
    installation.create_volume_in("cloud", "v", &[]);
    let mount = installation.mount("v", &["--on-store-outage", "fail"]);
    fs::write(mount.path("kept"), noise(1 << 20, 5)).unwrap();
    File::open(mount.path("kept")).unwrap().sync_all().unwrap();
    // It comes back empty: to the servers that is another bucket.
    server.kill();
    server.resume();
    server.make_bucket();
    installation.meta.stop();
    installation.start_meta();
    wait_for("the problem to be reported", || {
        let shown = installation.ok(&["configure", "show", "volume", "v", "--json"]);
        shown.contains("chronofs-store.json").then_some(())
    });
    let mut file = File::create(mount.path("late")).unwrap();
    file.write_all(&noise(1 << 20, 6)).unwrap();
    file.sync_all().expect_err("fsync returned without a bucket");
    let (_, list) = request(server.address, "GET", "/bytes?list-type=2", &[]);
    assert!(!list.contains("<Key>"), "{list}");
}

#[test]
fn another_store_in_the_same_place_is_refused() {
    let server = ObjectServer::start(Kind::Moto);
    let installation = Installation::start();
    let mount = mounted(&installation, &server);
    fs::write(mount.path("x"), noise(200_000, 7)).unwrap();
    let flags = server.flags();
    let mut arguments = vec!["configure", "create", "block-store", "second", "--prefix", "team/one"];
    arguments.extend(flags.iter().map(String::as_str));
    let refused = installation.fails(&arguments);
    assert!(refused.contains("belongs to the store"), "{refused}");
}

/// Every file below `folder` in which `needle` stands.
fn files_with(folder: &Path, needle: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !path.file_name().unwrap().to_string_lossy().starts_with("mnt") {
            files_with(&path, needle, found);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(needle.len()).any(|part| part == needle.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
}

#[test]
fn no_file_log_or_answer_of_the_servers_holds_a_secret_and_credentials_can_be_rotated() {
    let server = ObjectServer::start(Kind::Moto);
    let mut installation = Installation::start();
    let mut said = installation.create_block_store("cloud", &server.flags(), &["--prefix", "p"]);
    installation.create_volume_in("cloud", "v", &[]);
    let mount = installation.mount("v", &["--log-level", "trace"]);
    fs::write(mount.path("first"), noise(1 << 20, 8)).unwrap();
    let second = "another-secret-of-the-tests";
    let file = installation.path("new-key");
    fs::write(&file, format!("[default]\naws_access_key_id=NEWKEY\naws_secret_access_key={second}\n"))
        .unwrap();
    let update =
        ["configure", "update", "block-store", "cloud", "--credentials-file", file.to_str().unwrap()];
    said += &installation.ok(&update);
    assert!(said.contains("access key NEWKEY"), "{said}");
    fs::remove_file(&file).unwrap();
    fs::write(mount.path("second"), noise(1 << 20, 9)).unwrap();
    // The kept assignment is used without the admin server.
    installation.admin.stop();
    installation.meta.stop();
    installation.start_meta_without_admin();
    assert!(fs::read(mount.path("first")).unwrap() == noise(1 << 20, 8));
    installation.start_admin();
    for arguments in [
        &["configure", "list", "block-store", "--json"][..],
        &["configure", "show", "block-store", "cloud", "--json"],
        &["configure", "show", "block-store", "cloud"],
        &["configure", "probe", "block-store", "cloud", "--json"],
        &["configure", "show", "volume", "v", "--json"],
    ] {
        said += &installation.ok(arguments);
    }
    let (_, metrics) = http_get(installation.http_address, "/metrics").unwrap();
    said += &metrics;
    // Nor what a signed request needs: who reads a log could send it.
    for secret in [SECRET, second, "X-Amz-Signature="] {
        assert!(!said.contains(secret), "{said}");
        let mut found = Vec::new();
        files_with(&installation.path(""), secret, &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
    let kept = fs::read_to_string(installation.path("meta/assignment.json")).unwrap();
    assert!(kept.contains("NEWKEY"), "the test looks where credentials are: {kept}");
}
