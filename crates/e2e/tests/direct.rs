//! Mounts that use the bucket of their volume with credentials of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use chronofs_e2e::installation::is_mount_point;
use chronofs_e2e::object_server::{AZURE_KEY, BUCKET, KEY_ID, Kind, ObjectServer, SECRET};
use chronofs_e2e::process::{http_get, run, text, text_of};
use chronofs_e2e::{Installation, Rng};
use std::fs;
use std::path::{Path, PathBuf};

fn create(installation: &Installation, store: &str, server: &ObjectServer, volume: &str) {
    let flags = server.flags();
    let mut arguments = vec!["configure", "create", "block-store", store, "--prefix", "team/one"];
    arguments.extend(flags.iter().map(String::as_str));
    installation.ok(&arguments);
    let volume =
        ["configure", "create", "volume", volume, "--block-store", store, "--metadata-store", "store"];
    installation.ok(&volume);
}

/// A file with a key as the tools of AWS keep it.
fn key_file(installation: &Installation, name: &str, profile: &str) -> PathBuf {
    let path = installation.path(name);
    let keys = format!("[{profile}]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n");
    fs::write(&path, keys).unwrap();
    path
}

/// Figures of the metadata server: all that objects cost it.
fn cost(installation: &Installation) -> Vec<(String, u64)> {
    let (_, figures) = http_get(installation.http_address, "/metrics").unwrap();
    let names = [
        "chronofs_meta_object_bytes_total",
        "chronofs_meta_signed_total",
        "chronofs_meta_object_failures_total",
    ];
    let lines = figures.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    let cost: Vec<_> = lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect();
    assert_eq!(cost.len(), 6, "{figures}");
    cost
}

fn files_with(folder: &Path, needle: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !is_mount_point(&path) {
            files_with(&path, needle, found);
        } else if kind.is_file()
            && fs::read(&path).unwrap_or_default().windows(needle.len()).any(|part| part == needle.as_bytes())
        {
            found.push(path);
        }
    }
}

#[test]
fn a_mount_with_credentials_of_its_own_costs_the_metadata_server_nothing_for_objects_and_shows_no_secret() {
    let server = ObjectServer::start(Kind::Moto);
    let mut installation = Installation::start();
    create(&installation, "cloud", &server, "v");
    let keys = key_file(&installation, "keys", "team");
    let direct = ["--direct", "--credentials-file", text(&keys), "--profile", "team", "--log-level", "trace"];
    let mut rng = Rng::new(4);
    let (large, small, later) = (rng.bytes(20 << 20), rng.bytes(100), rng.bytes(3 << 20));
    let mount = installation.mount("v", &direct);
    fs::write(mount.path("large"), &large).unwrap();
    fs::write(mount.path("small"), &small).unwrap();
    let then = mount.instant();
    fs::write(mount.path("large"), &later).unwrap();
    mount.instant();
    let other = installation.mount_with(
        "v",
        &mount.token,
        &["-o", &format!("direct,credentials-file={},profile=team", text(&keys))],
    );
    assert!(
        fs::read(other.path("large")).unwrap() == later && fs::read(other.path("small")).unwrap() == small
    );
    let at: Vec<&str> = direct.iter().copied().chain(["--at-time", &then]).collect();
    let past = installation.mount_with("v", &mount.token, &at);
    assert!(fs::read(past.path("large")).unwrap() == large);

    // In the background, with the environment's.
    let place = installation.path("place");
    fs::create_dir(&place).unwrap();
    let start = ["mount", "start", "v", text(&place), "--token", &mount.token, "--direct"];
    let mut command = installation.command(&start);
    let started = run(command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET));
    assert!(started.status.success(), "{}", text_of(&started));
    fs::write(place.join("more"), &later).unwrap();
    let listed: serde_json::Value =
        serde_json::from_str(&installation.ok(&["mount", "list", "--json"])).unwrap();
    // Others may mount something on this machine, too.
    let ours = |listed: &&serde_json::Value| {
        Path::new(listed["dir"].as_str().unwrap()).starts_with(installation.path(""))
    };
    let pids: Vec<u64> =
        listed.as_array().unwrap().iter().filter(ours).map(|ours| ours["pid"].as_u64().unwrap()).collect();
    assert_eq!(pids.len(), 4, "{listed}");
    for pid in pids {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains(SECRET));
    }
    installation.ok(&["mount", "stop", text(&place)]);
    assert!(fs::read(other.path("more")).unwrap() == later);

    assert!(cost(&installation).iter().all(|(_, value)| *value == 0), "{:?}", cost(&installation));
    let signed = installation.mount_with("v", &mount.token, &[]);
    assert!(fs::read(signed.path("large")).unwrap() == later);
    assert!(cost(&installation).iter().any(|(_, value)| *value > 0), "the test looks where it shows");

    drop((mount, other, past, signed));
    fs::remove_file(&keys).unwrap();
    let mut found = Vec::new();
    files_with(&installation.path(""), SECRET, &mut found);
    assert_eq!(found, Vec::<PathBuf>::new());
    installation.stop_meta_and_verify();
}

#[test]
fn what_is_not_the_bucket_of_the_volume_or_not_opened_is_refused_before_anything_is_mounted() {
    let mut moto = ObjectServer::start(Kind::Moto);
    let azurite = ObjectServer::start(Kind::Azurite);
    let installation = Installation::start();
    installation.create_volume("local", &[]);
    create(&installation, "cloud", &moto, "s3");
    create(&installation, "blue", &azurite, "azure");
    let place = installation.path("place");
    fs::create_dir(&place).unwrap();
    let refused = |volume: &str, flags: &[&str]| {
        let token = installation.create_token(volume, &[]);
        let start = ["mount", "start", volume, text(&place), "--token", &token];
        let said = installation.fails(&[&start[..], flags].concat());
        assert!(!is_mount_point(&place), "{said}");
        assert!(!said.contains(SECRET) && !said.contains(AZURE_KEY), "{said}");
        said
    };
    let keys = key_file(&installation, "keys", "default");
    let direct = ["--direct", "--credentials-file", text(&keys)];

    let said = refused("local", &direct);
    assert!(said.contains("without --direct") && said.contains(text(&installation.path("blocks"))), "{said}");
    let said = refused("s3", &["--direct"]);
    assert!(said.contains("--credentials-file") && said.contains("AWS_SECRET_ACCESS_KEY"), "{said}");
    let said = refused("s3", &["--direct", "--credentials-file", text(&keys), "--profile", "none"]);
    assert!(said.contains("[none]"), "{said}");
    let said = refused("s3", &direct[1..]);
    assert!(said.contains("add --direct"), "{said}");

    let wrong = AZURE_KEY.replace("Eby8", "Eby9");
    let file = installation.path("azure-key");
    fs::write(&file, &wrong).unwrap();
    let said = refused("azure", &["--direct", "--credentials-file", text(&file)]);
    assert!(said.contains("403") && said.contains("credentials may read and write it"), "{said}");
    assert!(!said.contains(&wrong), "{said}");

    // It comes back empty, as another bucket; then as that of another store.
    moto.kill();
    moto.resume();
    let said = refused("s3", &direct);
    assert!(said.contains(BUCKET), "{said}");
    moto.make_bucket();
    let said = refused("s3", &direct);
    assert!(
        said.contains("there is no chronofs-store.json") && said.contains("not the bucket of the volume"),
        "{said}"
    );
    let strangers = Installation::start();
    create(&strangers, "cloud", &moto, "theirs");
    strangers.mount("theirs", &[]);
    let said = refused("s3", &direct);
    assert!(said.contains("belongs to the store") && said.contains("not the bucket of the volume"), "{said}");
}
