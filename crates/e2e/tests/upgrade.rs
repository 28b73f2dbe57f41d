//! Executables from the admin server: what is taken and what is refused, and services that go on by the new one or go back.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_e2e::Installation;
use chronofs_e2e::disk::done;
use chronofs_e2e::installation::{assert_failed_cleanly, detach};
use chronofs_e2e::process::{run, serve_each, text, text_of, wait_for};
use chronofs_e2e::services::{Services, make_program, names_in};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longer than what passes a [`cutting`] proxy.
const LENGTH: usize = 1 << 20;

/// An installation with a key, its public half where machines look for it, and version 0.2.0 in the deploy folder.
fn deployed() -> Installation {
    let installation = Installation::start();
    let key = installation.path("deploy.key");
    installation.ok(&["admin", "deploy", "key", text(&key)]);
    fs::copy(installation.path("deploy.key.pub"), installation.path("etc/deploy.pub")).unwrap();
    add(&installation, "0.2.0", "");
    installation
}

/// Puts a version into the deploy folder; gives its name.
fn add(installation: &Installation, version: &str, more: &str) -> String {
    let program = installation.path(&format!("made/{version}"));
    make_program(&program, version, more, LENGTH);
    let key = installation.path("deploy.key");
    let said = installation.ok(&["admin", "deploy", "add", text(&program), "--signing-key", text(&key)]);
    said.trim().strip_prefix("added ").unwrap().to_owned()
}

/// Runs `chronofs manage download meta`, to `chronofs` in a folder of its own.
fn download(installation: &Installation, more: &[&str]) -> (std::process::Output, PathBuf) {
    let to = installation.path("bin/chronofs");
    fs::create_dir_all(installation.path("bin")).unwrap();
    let command = [&["manage", "download", "meta", "--to", text(&to)], more].concat();
    (run(&mut installation.command(&command)), to)
}

#[track_caller]
fn downloads(installation: &Installation, more: &[&str]) -> String {
    let (output, _) = download(installation, more);
    assert!(output.status.success(), "{}", text_of(&output));
    text_of(&output)
}

#[track_caller]
fn refuses(installation: &Installation, more: &[&str]) -> String {
    let (output, to) = download(installation, more);
    let before = to.exists().then(|| version_of(&to));
    let said = assert_failed_cleanly(&output, "manage download");
    let left = names_in(&installation.path("bin"));
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?} after {said}");
    assert_eq!(to.exists().then(|| version_of(&to)), before);
    said
}

fn version_of(program: &Path) -> String {
    let said = done(Command::new(program).arg("--version"));
    said.trim().strip_prefix("chronofs ").unwrap().to_owned()
}

/// A way to the admin server on which answers end after so many bytes: the connection breaks, or stays open and silent.
fn cutting(server: SocketAddr, bytes: u64, silent: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    serve_each(listener, move |client: TcpStream| {
        let server = TcpStream::connect(server)?;
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let (mut answers, mut client_end) = (server.take(bytes), client);
        std::io::copy(&mut answers, &mut client_end)?;
        client_end.flush()?;
        if silent {
            std::thread::sleep(Duration::from_secs(120));
        }
        client_end.shutdown(std::net::Shutdown::Both)
    });
    address.to_string()
}

#[test]
fn an_executable_comes_whole_signed_and_checked() {
    let installation = deployed();
    let said = downloads(&installation, &[]);
    let to = installation.path("bin/chronofs");
    assert!(said.contains("is 0.2.0 now"), "{said}");
    assert_eq!(version_of(&to), "0.2.0");
    assert!(downloads(&installation, &[]).contains("is 0.2.0 already"));
    add(&installation, "0.10.0", "");
    downloads(&installation, &[]);
    assert_eq!(version_of(&to), "0.10.0");
    assert_eq!(version_of(&installation.path("bin/chronofs.old")), "0.2.0");
    assert_eq!(names_in(&installation.path("bin")), ["chronofs", "chronofs.old"]);
    // One of an older version only if it is asked for.
    let listed: Vec<Value> =
        serde_json::from_str(&installation.ok(&["admin", "deploy", "list", "--json"])).unwrap();
    assert_eq!(listed.len(), 2);
    let newest = listed.iter().find(|release| release["version"] == "0.10.0").unwrap();
    let target = newest["target"].as_str().unwrap();
    installation.ok(&["admin", "deploy", "remove", &format!("chronofs_0.10.0_{target}")]);
    let refused = refuses(&installation, &[]);
    assert!(refused.contains("which is older") && refused.contains("--version 0.2.0"), "{refused}");
    downloads(&installation, &["--version", "0.2.0"]);
    assert_eq!(version_of(&to), "0.2.0");
    // The token of a mount does as well.
    installation.create_volume("v", &[]);
    let token = installation.path("token");
    fs::write(&token, installation.create_token("v", &[])).unwrap();
    fs::remove_file(&to).unwrap();
    downloads(&installation, &["--token-file", text(&token)]);
    // What runs is the executable itself, not only scripts of tests.
    let real = chronofs_e2e::process::chronofs_binary();
    let key = installation.path("deploy.key");
    installation.ok(&[
        "admin",
        "deploy",
        "add",
        text(&real),
        "--signing-key",
        text(&key),
        "--component",
        "tlog",
    ]);
    let own = installation.path("real");
    installation.ok(&["manage", "download", "tlog", "--to", text(&own), "--version", &version_of(&real)]);
    assert!(fs::read(&own).unwrap() == fs::read(&real).unwrap());
    let audited = installation.ok(&["audit", "list"]);
    assert!(
        audited.contains("POST /v1/deploy") && audited.contains("executable chronofs_0.10.0"),
        "{audited}"
    );
}

#[test]
fn what_is_not_signed_rightly_or_is_not_what_was_signed_is_refused() {
    let installation = deployed();
    let name = names_in(&installation.path("admin/deploy")).remove(0);
    let file = installation.path("admin/deploy").join(&name);
    let said = installation.path("admin/deploy").join(format!("{name}.json"));
    let (bytes, text_of_said) = (fs::read(&file).unwrap(), fs::read_to_string(&said).unwrap());
    // Somebody has changed the executable.
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&file, &changed).unwrap();
    let refused = refuses(&installation, &[]);
    assert!(refused.contains("SHA-256") && refused.contains("refused"), "{refused}");
    fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
    assert!(refuses(&installation, &[]).contains("bytes and not"));
    // And what is said of it.
    fs::write(&file, &changed).unwrap();
    let with = |field: &str, value: String| {
        let mut changed: Value = serde_json::from_str(&text_of_said).unwrap();
        changed[field] = json!(value);
        fs::write(&said, changed.to_string()).unwrap();
        refuses(&installation, &[])
    };
    let hash = done(Command::new("sha256sum").arg(&file));
    let refused = with("sha256", hash.split(' ').next().unwrap().to_owned());
    assert!(refused.contains("the signature of") && refused.contains("wrong"), "{refused}");
    assert!(with("signature", String::new()).contains("is not signed"));
    // And has signed it himself.
    fs::write(&file, &bytes).unwrap();
    fs::write(&said, &text_of_said).unwrap();
    let other = installation.path("other.key");
    installation.ok(&["admin", "deploy", "key", text(&other)]);
    let public = installation.path("other.key.pub");
    let refused = refuses(&installation, &["--public-key", text(&public)]);
    assert!(refused.contains("is signed with the key"), "{refused}");
    let missing = refuses(&installation, &["--public-key", "/nowhere/deploy.pub"]);
    assert!(missing.contains("admin deploy key"), "{missing}");
    downloads(&installation, &[]);
}

#[test]
fn a_download_that_is_cut_off_or_ended_leaves_nothing_and_can_be_tried_again() {
    let installation = deployed();
    let broken = cutting(installation.admin_address, 300_000, false);
    let refused = refuses(&installation, &["--admin", &broken]);
    assert!(refused.contains("nothing was changed"), "{refused}");
    for signal in [Signal::TERM, Signal::INT] {
        let silent = cutting(installation.admin_address, 300_000, true);
        let bin = installation.path("bin");
        let to = bin.join("chronofs");
        let command = ["manage", "download", "meta", "--to", text(&to), "--admin", &silent];
        let mut silenced = installation.command(&command).stderr(Stdio::null()).spawn().unwrap();
        wait_for("a part of the executable", || {
            fs::metadata(bin.join(".chronofs.new")).ok().filter(|part| part.len() > 100_000)
        });
        let (second, _) = download(&installation, &[]);
        let refused = assert_failed_cleanly(&second, "a second download");
        assert!(refused.contains("another installs"), "{refused}");
        kill_process(Pid::from_child(&silenced), signal).unwrap();
        assert_eq!(silenced.wait().unwrap().code(), Some(1));
        assert_eq!(names_in(&bin), [""; 0]);
    }
    // Nobody can clean up after SIGKILL but the next one.
    fs::write(installation.path("bin/.chronofs.new"), "half").unwrap();
    downloads(&installation, &[]);
    assert_eq!(names_in(&installation.path("bin")), ["chronofs"]);
}

#[test]
fn a_full_disk_and_what_is_no_chronofs_are_clear_errors() {
    let installation = deployed();
    let bin = installation.path("bin");
    fs::create_dir(&bin).unwrap();
    done(Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "small"]).arg(&bin));
    let refused = refuses(&installation, &[]);
    detach(&bin);
    assert!(refused.contains("the disk is full") && refused.contains("--to"), "{refused}");
    fs::copy("/bin/true", bin.join("chronofs")).unwrap();
    let to = bin.join("chronofs");
    let command = ["manage", "download", "meta", "--to", text(&to)];
    let refused = installation.fails(&command);
    assert!(refused.contains("is not replaced"), "{refused}");
    assert!(fs::read(bin.join("chronofs")).unwrap() == fs::read("/bin/true").unwrap());
}

#[test]
fn a_service_runs_by_the_new_executable_or_by_the_old_one_again() {
    let installation = deployed();
    let notes = installation.path("notes");
    let note = |version: &str| format!("[ \"$2\" != start ] || echo {version} >> {}", text(&notes));
    let program = installation.path("bin/chronofs");
    make_program(&program, "0.1.0", &note("0.1.0"), 0);
    let services = Services::of(installation);
    services.run_by("meta", &program);
    services.ok(&["start"]);
    services.until_ready();
    let ran =
        || fs::read_to_string(&notes).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ran(), ["0.1.0"]);

    // Installed while the server runs: it goes on by the old one until it is started anew.
    let running = services.server("meta").unwrap();
    add(&services.installation, "0.3.0", &note("0.3.0"));
    let said = services.ok(&["download", "meta", "--install"]);
    assert!(said.contains("is 0.3.0 now") && said.contains("to go back: mv "), "{said}");
    assert_eq!(services.server("meta"), Some(running));
    assert_eq!((version_of(&program), ran().len()), ("0.3.0".to_owned(), 1));
    services.ok(&["restart", "meta"]);
    services.until_ready();
    assert_eq!(ran(), ["0.1.0", "0.3.0"]);

    add(&services.installation, "0.4.0", &note("0.4.0"));
    let said = services.ok(&["upgrade", "meta"]);
    assert!(said.contains("runs by 0.4.0 and serves"), "{said}");
    assert_eq!(ran(), ["0.1.0", "0.3.0", "0.4.0"]);
    assert!(services.ok(&["upgrade", "meta"]).contains("is 0.4.0 already"));

    // One that says what it is and does not start.
    add(&services.installation, "0.5.0", "[ \"$2\" != start ] || { echo no library >&2; exit 3; }");
    let failed = services.fails(&["upgrade", "meta"]);
    assert!(failed.contains("no library") && failed.contains("runs by the one before again"), "{failed}");
    assert_eq!(version_of(&program), "0.4.0");
    assert_eq!(ran(), ["0.1.0", "0.3.0", "0.4.0", "0.4.0"]);
    services.until_ready();
    assert!(services.server("meta").is_some());
    assert_eq!(names_in(program.parent().unwrap()), ["chronofs"]);
    // And one that does not even say what it is never gets into the place.
    let name = add(&services.installation, "0.6.0", "");
    let file = services.installation.path("made/0.6.0");
    fs::write(&file, "#!/bin/sh\nexit 1\n").unwrap();
    services.installation.ok(&["admin", "deploy", "remove", &name]);
    let key = services.installation.path("deploy.key");
    let again = ["admin", "deploy", "add", text(&file), "--signing-key", text(&key), "--version", "0.6.0"];
    services.installation.ok(&again);
    let refused = services.fails(&["upgrade", "meta"]);
    assert!(refused.contains("does not run on this machine"), "{refused}");
    assert_eq!((version_of(&program), ran().len()), ("0.4.0".to_owned(), 4));
}
