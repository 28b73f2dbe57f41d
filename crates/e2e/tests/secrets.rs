//! What opens something stands in no log of any server or mount, in no message, and in no core dump.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use chronofs_e2e::installation::token_in;
use chronofs_e2e::log_copies::{LogServer, keep_copies};
use chronofs_e2e::object_server::{Kind, ObjectServer, SECRET};
use chronofs_e2e::process::{free_address, run, text, text_of};
use chronofs_e2e::tree::files_under;
use chronofs_e2e::{Installation, Rng};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const OF_BACKUPS: &str = "seven-patient-herons";
const OF_VOLUME: &str = "eleven-sleepy-badgers";
const WRONG: &str = "twelve-hungry-badgers";
const DEBUG: [&str; 2] = ["--log-level", "debug"];

/// A file with a secret, for its owner alone.
fn secret(installation: &Installation, name: &str, words: &str) -> String {
    let path = installation.path(name);
    fs::write(&path, format!("{words}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    text(&path).to_owned()
}

/// What a command says that must fail.
fn refused(installation: &Installation, token: &str, arguments: &[&str]) -> String {
    let output = run(installation.command(arguments).env("CHRONOFS_TOKEN", token));
    assert!(!output.status.success(), "{arguments:?}");
    text_of(&output)
}

#[test]
fn no_log_and_no_message_holds_a_token_a_key_or_a_passphrase() {
    let server = ObjectServer::start(Kind::Moto);
    let mut installation = Installation::start_for_snapshots(&[], &DEBUG, &DEBUG);
    let mut said = installation.create_block_store("cloud", &server.flags(), &[]);
    let folder = installation.path("tlog far");
    let addresses = (free_address(), free_address());
    let mut far = LogServer::in_folder(&installation, "far", folder.clone(), addresses, &[], &DEBUG);
    far.start();
    keep_copies(&installation, &["tlog:far"]);
    let (of_volume, wrong) =
        (secret(&installation, "of-volume", OF_VOLUME), secret(&installation, "wrong", WRONG));
    let with = ["--passphrase-file", of_volume.as_str()];
    installation.create_volume_in("cloud", "vault", &[&["--encrypt"][..], &with].concat());
    let token = installation.create_token("vault", &[]);
    let mount = installation.mount_with("vault", &token, &[&DEBUG[..], &with].concat());
    fs::write(mount.path("large"), Rng::new(7).bytes(2 << 20)).unwrap();
    fs::write(mount.path("small"), "content").unwrap();
    mount.instant();

    // Backups by a passphrase and by a key, in a folder and in the bucket, looked at and brought back.
    let (dest, key) = (installation.path("backups"), installation.path("backup.key"));
    fs::create_dir(&dest).unwrap();
    said += &installation.ok(&["backup", "key", text(&key)]);
    let of_backups = secret(&installation, "of-backups", OF_BACKUPS);
    let by_words = ["--passphrase-file", of_backups.as_str()];
    let by_key = ["--key-file", text(&key)];
    let images = installation.path("images");
    fs::create_dir(&images).unwrap();
    for arguments in [
        [&["backup", "create", text(&dest)][..], &by_words].concat(),
        [&["backup", "create", "store:cloud"][..], &by_key].concat(),
        [&["backup", "verify", text(&dest)][..], &by_words].concat(),
        [&["backup", "restore", text(&dest), "--to", text(&images)][..], &by_words].concat(),
    ] {
        said += &installation.ok_with_stderr(&arguments);
    }
    said += &installation.fails(&["backup", "list", text(&dest), "--passphrase-file", &wrong]);
    said += &installation.fails(&["backup", "list", text(&dest), "--key-file", text(&key)]);

    // All that opens something, where it is not the right one, and half of one.
    let of_store = fs::read_to_string(installation.path("meta/credentials")).unwrap().trim().to_owned();
    let of_log_server = fs::read_to_string(folder.join("credentials")).unwrap().trim().to_owned();
    let dir = installation.path("never");
    fs::create_dir(&dir).unwrap();
    let start = ["mount", "start", "vault", text(&dir), "--foreground"];
    let half = &token[..token.len() - 9];
    for shown in [of_store.as_str(), half] {
        said += &refused(&installation, shown, &[&start[..], &with].concat());
    }
    said += &refused(&installation, &token, &[&start[..], &["--passphrase-file", &wrong]].concat());
    installation.meta.stop();
    installation.start_meta();
    installation.admin.stop();
    installation.start_admin();
    assert_eq!(fs::read_to_string(mount.path("small")).unwrap(), "content");
    drop(mount);

    let accounts = files_under(&installation.path("etc")).into_iter().filter_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        text.contains("chronofs1_").then(|| token_in(&text))
    });
    let mut tokens: Vec<String> = accounts.collect();
    assert!(!tokens.is_empty(), "the token of the account is kept somewhere below etc");
    tokens.extend([token, of_store, of_log_server]);
    // Kind and id come before the secret in a token, and what everybody knows comes after it.
    let mut secrets: Vec<String> = tokens.iter().map(|token| token[35..73].to_owned()).collect();
    secrets.push(fs::read_to_string(&key).unwrap().trim().to_owned());
    secrets.extend([SECRET, OF_BACKUPS, OF_VOLUME, WRONG, "X-Amz-Signature="].map(str::to_owned));
    let logs: Vec<PathBuf> = files_under(&installation.path(""))
        .into_iter()
        .filter(|file| {
            file.extension().is_some_and(|extension| extension == "log")
                || file.starts_with(installation.path("log"))
        })
        .collect();
    let logged: Vec<(PathBuf, String)> = logs
        .into_iter()
        .map(|log| {
            let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
            (log, text)
        })
        .collect();
    assert!(logged.len() >= 4 && logged.iter().any(|(_, text)| text.contains("DEBUG")), "the logs are read");
    for secret in &secrets {
        assert!(secret.len() > 10 && !said.contains(secret.as_str()), "{secret} was said");
        let found: Vec<&PathBuf> =
            logged.iter().filter(|(_, text)| text.contains(secret.as_str())).map(|(log, _)| log).collect();
        assert!(found.is_empty(), "{secret} stands in {found:?}");
    }
}

#[test]
fn no_server_and_no_mount_leaves_its_memory_in_a_core_dump() {
    // Whoever is started here may leave one, as far as this process may.
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
    let installation = Installation::start();
    installation.create_volume("one", &[]);
    let mut far = LogServer::new(&installation, "far");
    far.start();
    let mount = installation.mount("one", &[]);
    for process in [&installation.admin, &installation.meta, &far.process, &mount.process] {
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid().unwrap())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(line.split_whitespace().nth(4), Some("0"), "{line}");
    }
}
