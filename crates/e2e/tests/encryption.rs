//! Encrypted volumes on real mounts: what programs see is as ever, what servers and disks hold shows nothing, and without the
//! secret nothing is read or written.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use chronofs_e2e::clone::{Clone, check_files, mapping, prepare, record_of, write_files};
use chronofs_e2e::installation::assert_failed_cleanly;
use chronofs_e2e::process::{run, text, wait_for};
use chronofs_e2e::snapshot::{PAGE, Programs, uid_in};
use chronofs_e2e::{Installation, Manifest, Mount};
use serde_json::Value;

const PHRASE: &str = "quiet-otter-passphrase";
const OTHER: &str = "loud-walrus-passphrase";
/// Stand in names and content, and must stand nowhere else.
const NAME: &str = "merger-plan";
const CONTENT: &str = "the-board-will-vote-on-friday ";

/// A file with a secret, for its owner alone.
fn secret(installation: &Installation, name: &str, content: &str) -> PathBuf {
    let path = installation.path(name);
    fs::write(&path, format!("{content}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn with<'a>(option: &'a str, file: &'a Path) -> [&'a str; 2] {
    [option, text(file)]
}

/// An installation with the encrypted volume `vault`, and the file with its passphrase.
fn vault(installation: &Installation, more: &[&str]) -> PathBuf {
    let phrase = secret(installation, "phrase", PHRASE);
    let flags = [&["--encrypt"][..], &with("--passphrase-file", &phrase), more].concat();
    installation.create_volume("vault", &flags);
    phrase
}

/// What a mount of the volume says that is refused.
fn refused(installation: &Installation, token: &str, flags: &[&str]) -> String {
    let dir = installation.path("refused");
    fs::create_dir_all(&dir).unwrap();
    let arguments = [&["mount", "start", "vault", text(&dir), "--foreground"][..], flags].concat();
    let mut command = installation.command(&arguments);
    let output = run(command.env("CHRONOFS_TOKEN", token));
    assert_failed_cleanly(&output, "a mount that must be refused")
}

/// The session of the mount on `dir`. They are numbered one after the other.
fn session_at(installation: &Installation, dir: &Path) -> u64 {
    let listed: Value = serde_json::from_str(&installation.ok(&["mount", "list", "--json"])).unwrap();
    let found = listed.as_array().unwrap().iter().find(|listed| listed["dir"] == text(dir));
    found.unwrap_or_else(|| panic!("{listed}"))["status"]["session"].as_u64().unwrap()
}

/// Every file below `dir`, and whether it has these bytes.
fn files_with(dir: &Path, needle: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).map(|metadata| metadata.file_type());
            match kind {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() => {
                    let bytes = fs::read(&path).unwrap_or_default();
                    if bytes.windows(needle.len()).any(|part| part == needle.as_bytes()) {
                        found.push(path);
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// Small and large files, folders, long names, links, attributes.
fn fill(mount: &Mount) {
    let folder = mount.path(&format!("{NAME}-folder"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(NAME), CONTENT).unwrap();
    fs::write(folder.join("staged"), CONTENT.repeat(1000)).unwrap();
    fs::write(folder.join("large"), CONTENT.repeat(200_000)).unwrap();
    fs::write(folder.join("empty"), "").unwrap();
    fs::write(mount.path(&"n".repeat(255)), CONTENT).unwrap();
    fs::write(mount.path("with space, ümlaut\nand line"), CONTENT).unwrap();
    symlink(format!("{NAME}-folder/{NAME}"), mount.path("link")).unwrap();
    symlink("t".repeat(4095), mount.path("long link")).unwrap();
    fs::hard_link(folder.join(NAME), mount.path("second name")).unwrap();
    let file = folder.join("staged");
    xattr::set(&file, format!("user.{NAME}"), CONTENT.as_bytes()).unwrap();
    xattr::set(&file, "trusted.chronofs-test", b"root sees it").unwrap();
    xattr::set(&file, format!("user.{}", "a".repeat(250)), &[7; 60_000]).unwrap();
}

#[test]
fn an_encrypted_volume_is_as_any_other_to_programs_and_shows_nothing_to_anybody_else() {
    let mut installation = Installation::start();
    let phrase = vault(&installation, &["--block-size", "256KiB"]);
    let shown = installation.ok(&["configure", "show", "volume", "vault"]);
    assert!(shown.contains("opened by a passphrase; data key 1"), "{shown}");
    let cache = installation.path("cache");
    let key = with("--passphrase-file", &phrase);
    let mut mount = installation.mount("vault", &[&key[..], &["--cache-dir", text(&cache)]].concat());
    fill(&mount);
    let folder = mount.path(&format!("{NAME}-folder"));

    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new(&format!("{NAME}-folder/{NAME}")));
    assert_eq!(fs::symlink_metadata(mount.path("long link")).unwrap().size(), 4095);
    assert_eq!(fs::read_to_string(mount.path("link")).unwrap(), CONTENT);
    let mut names: Vec<_> =
        xattr::list(folder.join("staged")).unwrap().map(|name| name.into_string().unwrap()).collect();
    names.sort();
    let long = format!("user.{}", "a".repeat(250));
    assert_eq!(names, ["trusted.chronofs-test".to_owned(), long, format!("user.{NAME}")]);
    let too_long = fs::write(mount.path(&"n".repeat(256)), "").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(36), "ENAMETOOLONG");
    let before = Manifest::of(&mount.dir).unwrap();
    let instant = mount.instant();

    // Names are bound to their folders, and move all the same.
    fs::create_dir(mount.path("elsewhere")).unwrap();
    fs::rename(folder.join(NAME), mount.path("elsewhere").join(NAME)).unwrap();
    fs::rename(mount.path("second name"), mount.path("elsewhere").join("third name")).unwrap();
    fs::rename(&folder, mount.path("elsewhere").join("folder")).unwrap();
    assert_eq!(fs::read_to_string(mount.path("elsewhere").join(NAME)).unwrap(), CONTENT);
    assert!(!folder.exists());
    fs::remove_file(mount.path("elsewhere").join("third name")).unwrap();
    xattr::remove(mount.path("elsewhere/folder/staged"), format!("user.{NAME}")).unwrap();
    let now = Manifest::of(&mount.dir).unwrap();

    let mut second = installation.mount("vault", &key);
    now.assert_same(&Manifest::of(&second.dir).unwrap(), "another mount");
    let mut past =
        installation.mount_with("vault", &mount.token, &[&key[..], &["--at-time", &instant]].concat());
    before.assert_same(&Manifest::of(&past.dir).unwrap(), "the past");
    let listed = installation.ok(&["mount", "list", "--json"]);
    assert!(listed.contains("vault"), "{listed}");
    past.unmount();
    second.unmount();
    mount.unmount();

    // The same again out of the cache on disk, with nothing of it in the clear.
    let again = installation.mount("vault", &[&key[..], &["--cache-dir", text(&cache)]].concat());
    now.assert_same(&Manifest::of(&again.dir).unwrap(), "with a cache");
    drop(again);
    installation.stop_meta_and_verify();
    for needle in [NAME, CONTENT.trim_end(), PHRASE] {
        for place in ["blocks", "meta", "admin", "cache", "log", "etc"] {
            let found = files_with(&installation.path(place), needle);
            assert!(found.is_empty(), "'{needle}' stands in {found:?}");
        }
        let logs = fs::read_dir(installation.path("")).unwrap().map(|entry| entry.unwrap().path());
        for log in logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let log_text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
            assert!(!log_text.contains(needle), "'{needle}' stands in {}", log.display());
        }
    }
    // The sealed keys are in the bucket, too.
    assert!(!files_with(&installation.path("blocks/keys"), "\"format\":1").is_empty());
}

#[test]
fn without_the_secret_nothing_is_read_or_written() {
    let installation = Installation::start();
    let phrase = vault(&installation, &[]);
    let wrong = secret(&installation, "wrong", OTHER);
    let key = installation.path("key");
    installation.ok(&["configure", "init", "volume-key", text(&key)]);
    let mut mount = installation.mount("vault", &with("--passphrase-file", &phrase));
    fs::write(mount.path("file"), CONTENT).unwrap();
    let first = session_at(&installation, &mount.dir);
    mount.unmount();
    let token = mount.token.clone();

    let said = refused(&installation, &token, &with("--passphrase-file", &wrong));
    assert!(
        said.contains("'vault' cannot be opened") && said.contains("nothing was read or written"),
        "{said}"
    );
    assert!(!said.contains(OTHER) && !said.contains(PHRASE), "{said}");
    let said = refused(&installation, &token, &[]);
    assert!(said.contains("'vault' is encrypted") && said.contains("--passphrase-file FILE"), "{said}");
    let said = refused(&installation, &token, &with("--key-file", &key));
    assert!(said.contains("opened by a passphrase, not by a key file"), "{said}");
    fs::set_permissions(&phrase, fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused(&installation, &token, &with("--passphrase-file", &phrase));
    assert!(said.contains("others may read it"), "{said}");
    fs::set_permissions(&phrase, fs::Permissions::from_mode(0o600)).unwrap();

    installation.create_volume("open", &[]);
    let opened = installation.create_token("open", &[]);
    let dir = installation.path("not-encrypted");
    fs::create_dir(&dir).unwrap();
    let arguments = ["mount", "start", "open", text(&dir), "--foreground", "--key-file", text(&key)];
    let output = run(installation.command(&arguments).env("CHRONOFS_TOKEN", &opened));
    let said = assert_failed_cleanly(&output, "a key for a volume that is not encrypted");
    assert!(said.contains("'open' is not encrypted"), "{said}");
    let said = installation.fails(&[
        "configure",
        "update",
        "volume-keys",
        "open",
        "--rotate-data-key",
        "--key-file",
        text(&key),
    ]);
    assert!(said.contains("'open' is not encrypted"), "{said}");

    // In the background, and by the environment: the process that serves has it from the one that started it.
    let dir = installation.path("background");
    fs::create_dir(&dir).unwrap();
    let mut command = installation.command(&["mount", "start", "vault", text(&dir)]);
    let output = run(command.env("CHRONOFS_TOKEN", &token).env("CHRONOFS_VOLUME_PASSPHRASE", PHRASE));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), CONTENT);
    assert_eq!(session_at(&installation, &dir), first + 1, "no refused mount had a session");
    installation.ok(&["mount", "stop", text(&dir)]);
}

#[test]
fn another_secret_or_another_data_key_leaves_everything_readable_and_writes_nothing_anew() {
    let installation = Installation::start();
    let phrase = vault(&installation, &[]);
    let other = secret(&installation, "other", OTHER);
    let running = installation.mount("vault", &with("--passphrase-file", &phrase));
    fs::write(running.path("before"), CONTENT.repeat(100_000)).unwrap();
    let instant = running.instant();
    let token = running.token.clone();

    let update = |flags: &[&str]| {
        installation.ok_with_stderr(&[&["configure", "update", "volume-keys", "vault"][..], flags].concat())
    };
    let old = with("--passphrase-file", &phrase);
    let said = update(&[&old[..], &["--rotate-data-key"]].concat());
    assert!(said.contains("data key 2"), "{said}");
    let mut newer = installation.mount("vault", &old);
    fs::write(newer.path("after"), CONTENT.repeat(100_000)).unwrap();
    fs::write(newer.path("small"), CONTENT).unwrap();
    newer.instant();
    // A mount of before meets what the new key sealed.
    assert!(fs::read_to_string(running.path("after")).unwrap() == CONTENT.repeat(100_000));
    assert_eq!(fs::read_to_string(running.path("small")).unwrap(), CONTENT);
    newer.unmount();

    let said = update(&[&old[..], &with("--new-passphrase-file", &other)].concat());
    assert!(said.contains("new ones need the new secret") && !said.contains(OTHER), "{said}");
    let said = refused(&installation, &token, &old);
    assert!(said.contains("cannot be opened"), "{said}");
    let new = with("--passphrase-file", &other);
    let there = installation.mount_with("vault", &token, &new);
    for name in ["before", "after"] {
        assert!(fs::read_to_string(there.path(name)).unwrap() == CONTENT.repeat(100_000), "{name}");
    }
    let past = installation.mount_with("vault", &token, &[&new[..], &["--at-time", &instant]].concat());
    assert!(past.path("before").exists() && !past.path("after").exists());
    drop((past, there, running));

    // From a passphrase to a key file.
    let key = installation.path("key");
    installation.ok(&["configure", "init", "volume-key", text(&key)]);
    update(&[&new[..], &with("--new-key-file", &key)].concat());
    assert!(refused(&installation, &token, &new).contains("by a key file, not by a passphrase"));
    let there = installation.mount_with("vault", &token, &with("--key-file", &key));
    assert_eq!(fs::read_to_string(there.path("small")).unwrap(), CONTENT);
    // What lies in the bucket is what is in force, and nothing older.
    wait_for("the sealed keys in the block store", || {
        let lying = files_with(&installation.path("blocks/keys"), "\"revision\":4");
        let older = ["1", "2", "3"]
            .map(|n| files_with(&installation.path("blocks/keys"), &format!("\"revision\":{n},")));
        (lying.len() == 1 && older.iter().all(Vec::is_empty)).then_some(())
    });
    let lying = files_with(&installation.path("blocks/keys"), "\"revision\":4").remove(0);
    let said = installation.fails(
        &[
            &["configure", "update", "volume-keys", "vault"][..],
            &with("--key-file", &key),
            &with("--from-copy", &lying),
        ]
        .concat(),
    );
    assert!(said.contains("has nothing that the admin server lost"), "{said}");
}

#[test]
fn an_admin_server_that_lost_the_newest_keys_has_them_again_from_the_metadata_server() {
    let mut installation = Installation::start();
    let phrase = vault(&installation, &[]);
    let mount = installation.mount("vault", &with("--passphrase-file", &phrase));
    fs::write(mount.path("file"), CONTENT).unwrap();
    let token = mount.token.clone();
    drop(mount);
    installation.admin.stop();
    let (folder, copy) = (installation.path("admin"), installation.path("admin.copy"));
    assert!(run(std::process::Command::new("cp").args(["-a", text(&folder), text(&copy)])).status.success());
    installation.start_admin();
    let old = with("--passphrase-file", &phrase);
    installation
        .ok(&[&["configure", "update", "volume-keys", "vault", "--rotate-data-key"][..], &old].concat());
    let mount = installation.mount_with("vault", &token, &old);
    fs::write(mount.path("newer"), CONTENT.repeat(10)).unwrap();
    drop(mount);
    installation.admin.stop();
    fs::rename(&folder, installation.path("admin.lost")).unwrap();
    fs::rename(&copy, &folder).unwrap();
    installation.start_admin();
    wait_for("the admin server to have the newest keys again", || {
        installation.ok(&["configure", "show", "volume", "vault"]).contains("data key 2").then_some(())
    });
    let mount = installation.mount_with("vault", &token, &old);
    assert_eq!(fs::read_to_string(mount.path("newer")).unwrap(), CONTENT.repeat(10));
}

#[test]
fn a_clone_of_an_encrypted_volume_is_opened_by_the_same_secret() {
    let programs = Programs::new();
    let program = programs.add("snap_create.sh", PAGE);
    let mut source = Installation::start_with_whitelist(&[&program], &[]);
    let phrase = vault(&source, &[]);
    let key = with("--passphrase-file", &phrase);
    let mut mount = source.mount("vault", &key);
    write_files(&mount.dir, 0..40);
    let backup = source.path("backup");
    let commands = format!("snapshot {} --destdir {}", text(&program), text(&backup));
    let output = run(&mut source.command(&["cli", "--exec", &commands]));
    assert!(output.status.success(), "{output:?}");
    let uid = uid_in(&chronofs_e2e::process::text_of(&output));
    mount.unmount();
    let (record, parsed) = record_of(&source, &uid);
    source.meta.kill();
    source.admin.kill();
    let out = source.path("restore");
    let more = ["--out", text(&out), "--record", text(&record), "--json"];
    let made = prepare(&source, &backup.join(&uid), &mapping(&parsed), &more);
    let clone = Clone::start(&source, &made, &[]);
    clone.ok(&source, &["restore", "status", "--wait", "60s"]);
    let cluster = text(&clone.cluster_file).to_owned();
    let there = source.mount_with("vault", &mount.token, &[&key[..], &["--cluster-file", &cluster]].concat());
    check_files(&there.dir, 40);
    write_files(&there.dir, 40..45);
    check_files(&there.dir, 45);
}
