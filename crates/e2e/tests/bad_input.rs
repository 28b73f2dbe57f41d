//! What people get wrong: it is refused with the thing, the reason and the next step.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chronofs_e2e::Installation;
use chronofs_e2e::installation::{assert_failed_cleanly, detach, token_in};
use chronofs_e2e::process::{free_address, run, text, wait_for};
use chronofs_wire::token::{Token, TokenKind};

/// An empty folder to mount at.
fn place(installation: &Installation) -> PathBuf {
    let dir = installation.path("place");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// The token with another secret.
fn forged(token: &str) -> String {
    let good: Token = token.parse().unwrap();
    let drawn = Token::draw(TokenKind::Volume, &good.admin, good.pin).unwrap();
    Token { secret: drawn.secret, ..good }.to_string()
}

/// A token of the right server that nobody issued.
fn unknown(token: &str) -> String {
    let good: Token = token.parse().unwrap();
    Token::draw(TokenKind::Volume, &good.admin, good.pin).unwrap().to_string()
}

#[test]
fn tokens_that_do_not_fit_are_refused() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    installation.create_volume("other", &[]);
    let dir = place(&installation);
    let good = installation.create_token("v", &[]);
    let for_other = installation.create_token("other", &[]);
    let no_past = installation.create_token("v", &["--no-past"]);
    let table: [(&str, &str, &[&str], &str); 7] = [
        ("no token at all", "hello", &[], "token"),
        ("a token cut short", &good[..good.len() / 2], &[], "token"),
        ("a token with another secret", &forged(&good), &[], "token"),
        ("a token that nobody issued", &unknown(&good), &[], "token"),
        ("a token of another volume", &for_other, &[], "token"),
        ("a token without the past", &no_past, &["--at-time", "-1s"], "past"),
        ("a volume that is not there", &good, &[], "nowhere"),
    ];
    for (what, token, flags, expected) in table {
        let volume = if expected == "nowhere" { "nowhere" } else { "v" };
        let mut arguments = vec!["mount", "start", volume, text(&dir), "--token", token];
        arguments.extend(flags);
        let said = installation.fails(&arguments);
        assert!(said.to_lowercase().contains(expected), "{what}: {said}");
        assert!(!chronofs_e2e::installation::is_mount_point(&dir), "{what}: mounted all the same");
        assert!(!said.contains(&good), "{what}: the message shows a secret: {said}");
    }
}

#[test]
fn a_deleted_token_opens_nothing_any_more() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let dir = place(&installation);
    let token = installation.create_token("v", &[]);
    let mut mount = installation.mount_with("v", &token, &[]);
    mount.unmount();
    let list = installation.ok(&["configure", "list", "volume-token", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let ids: Vec<&str> = list.as_array().unwrap().iter().filter_map(|t| t["id"].as_str()).collect();
    assert!(!ids.is_empty(), "{list}");
    for id in ids {
        installation.ok(&["configure", "delete", "volume-token", id]);
    }
    wait_for("the token to be refused", || {
        let output = run(&mut installation.command(&["mount", "start", "v", text(&dir), "--token", &token]));
        detach(&dir);
        (!output.status.success()).then(|| assert_failed_cleanly(&output, "mount start"))
    });
}

#[test]
fn a_token_confines_to_what_it_names() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let whole = installation.mount("v", &[]);
    fs::create_dir_all(whole.path("a/b")).unwrap();
    fs::write(whole.path("a/inside"), "inside").unwrap();
    fs::write(whole.path("outside"), "outside").unwrap();
    whole.instant();

    let read_only = installation.mount_with("v", &installation.create_token("v", &["--read-only"]), &[]);
    assert_eq!(fs::read_to_string(read_only.path("a/inside")).unwrap(), "inside");
    let error = fs::write(read_only.path("new"), "x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{error}");

    let part = installation.mount_with("v", &installation.create_token("v", &["--path", "/a"]), &[]);
    let mut names: Vec<_> = fs::read_dir(&part.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["b", "inside"]);
    assert!(!part.path("outside").exists());
    fs::write(part.path("b/new"), "from within").unwrap();
    assert_eq!(fs::read_to_string(whole.path("a/b/new")).unwrap(), "from within");
}

#[test]
fn instants_that_cannot_be_had_are_refused_with_those_that_can() {
    let installation = Installation::start();
    installation.create_volume("v", &["--retention", "1h"]);
    let live = installation.mount("v", &[]);
    fs::write(live.path("file"), "x").unwrap();
    live.instant();
    let dir = place(&installation);
    let mount = |at: &str| {
        installation.fails(&["mount", "start", "v", text(&dir), "--token", &live.token, "--at-time", at])
    };
    for at in ["2999-01-01T00:00:00Z", "1999-01-01T00:00:00Z", "-2h", "-30m", "yesterday 00:00"] {
        let said = mount(at);
        // The one that was asked for, the earliest and the latest.
        let instants = said.matches("Z").count();
        assert!(said.contains("cannot be had") && instants >= 3, "{at}: {said}");
        let foreground = installation.fails(&[
            "mount",
            "start",
            "v",
            text(&dir),
            "--token",
            &live.token,
            "--at-time",
            at,
            "--foreground",
            "--log-level=error",
        ]);
        for said in [said, foreground] {
            assert_eq!(said.matches("cannot be had").count(), 1, "{at}: {said}");
            assert_eq!(said.lines().count(), 1, "{at}: {said}");
        }
    }
    for at in ["", "noon", "2026-03-15", "2026-03-15T10:30:00", "--", "-5x", "2026-13-45T10:30:00Z"] {
        let said = installation.fails(&[
            "mount",
            "start",
            "v",
            text(&dir),
            "--token",
            &live.token,
            &format!("--at-time={at}"),
        ]);
        assert!(said.contains("RFC 3339") || said.contains("--at-time"), "{at}: {said}");
    }
}

#[test]
fn bad_commands_name_what_is_wrong() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let dir = place(&installation);
    let file = installation.path("a file");
    fs::write(&file, "x").unwrap();
    let in_file = file.join("folder");
    let (blocks, fresh) = (installation.path("blocks"), installation.path("fresh"));
    let volume = |name: &'static str, flags: &[&'static str]| {
        let mut all = vec![
            "configure",
            "create",
            "volume",
            name,
            "--block-store",
            "blocks",
            "--metadata-store",
            "store",
        ];
        all.extend(flags);
        all
    };
    let token = installation.create_token("v", &[]);
    let store = |name: &'static str, path| {
        vec!["configure", "create", "block-store", name, "--kind", "local", "--path", path]
    };
    let table: Vec<(Vec<&str>, &str)> = vec![
        (vec!["frobnicate"], "frobnicate"),
        (vec!["mount", "start"], "VOLUME"),
        (vec!["mount", "start", "v", text(&dir), "--token", &token, "--frobnicate"], "--frobnicate"),
        (vec!["mount", "start", "v", "/proc/nowhere/folder", "--token", &token], "/proc/nowhere/folder"),
        (vec!["mount", "start", "v", text(&file), "--token", &token], "a file"),
        (vec!["mount", "start", "v", text(&dir), "--token-file", "/no/such/file"], "/no/such/file"),
        (vec!["mount", "stop", text(&dir)], text(&dir)),
        (vec!["instant", text(&dir)], text(&dir)),
        (vec!["mount", "start", "", text(&dir)], "VOLUME"),
        (vec!["mount", "start", "v@soon", text(&dir), "--token", &token], "'soon'"),
        (vec!["mount", "start", "v", "/", "--token", &token], "another directory"),
        (vec!["mount", "start", "v", "/proc/self", "--token", &token], "another directory"),
        (vec!["mount", "start", "v", text(&dir), "-o", "shiny", "--token", &token], "'shiny'"),
        (vec!["mount", "start", "v", text(&dir), "-o", "admin=a b", "--token", &token], "'a b'"),
        (vec!["mount", "start", "v", text(&dir), "--admin", "h:99999"], "HOST:PORT"),
        (vec!["mount", "start", "v", text(&dir), "--token-file", text(&dir)], text(&dir)),
        (vec!["mount", "start", "v", text(&dir), "--log-level", "loud"], "loud"),
        (vec!["mount", "stop", "/no/such/folder"], "mount list"),
        (vec!["mount", "init", "creds", "--token", &token, "--volume", ""], "--volume"),
        (vec!["mount", "init", "systemd", "--output", "/no/such/folder"], "/no/such/folder"),
        (vec!["configure", "init", "creds", "--token", &token], "account"),
        (vec!["configure", "list", "volume", "--admin", "http://h"], "http://h"),
        (vec!["admin", "init", "creds", "--db-folder", text(&fresh), "--address", "a b"], "'a b'"),
        (vec!["admin", "init", "creds", "--db-folder", text(&file)], "a file"),
        (vec!["admin", "start", "--db-folder", text(&dir)], "init creds"),
        (vec!["admin", "start", "--db-folder", text(&in_file)], "Not a directory"),
        (vec!["admin", "status", "--db-folder", text(&in_file)], "Not a directory"),
        (vec!["meta", "start", "--db-folder", text(&file)], "a file"),
        (vec!["meta", "start", "--db-folder", text(&fresh), "--advertise", ""], "--advertise"),
        (vec!["man", "/no/such/folder"], "/no/such/folder"),
        (vec!["completions", "tcsh"], "tcsh"),
        (vec!["meta", "verify", "--db-folder", text(&dir)], "holds no metadata store"),
        (vec!["meta", "verify", "--db-folder", "/proc/nowhere/folder"], "/proc/nowhere/folder"),
        (vec!["meta", "init", "creds", "--token", "x", "--db-folder", text(&dir)], "token"),
        (volume("v", &[]), "volume 'v' exists already"),
        (volume("", &[]), "name"),
        (volume("a/b", &[]), "a/b"),
        (volume("w", &["--block-size", "100"]), "block"),
        (volume("w", &["--block-size", "huge"]), "huge"),
        (volume("w", &["--compression", "rar"]), "rar"),
        (volume("w", &["--retention", "7 parsecs"]), "7 parsecs"),
        (volume("w", &["--max-bytes", "-5"]), "-5"),
        (
            vec!["configure", "create", "volume", "w", "--block-store", "nope", "--metadata-store", "store"],
            "nope",
        ),
        (
            vec!["configure", "create", "volume", "w", "--block-store", "blocks", "--metadata-store", "nope"],
            "nope",
        ),
        (store("blocks", text(&blocks)), "block-store 'blocks' exists already"),
        (store("relative", "some/folder"), "some/folder"),
        (vec!["configure", "show", "volume", "nope"], "nope"),
        (vec!["configure", "delete", "volume", "nope"], "nope"),
        (vec!["configure", "update", "volume", "nope", "--retention", "1d"], "nope"),
        (
            vec!["configure", "delete", "block-store", "blocks"],
            "block-store 'blocks' is in use by volume 'v'",
        ),
        (
            vec!["configure", "delete", "metadata-store", "store"],
            "metadata-store 'store' is in use by volume 'v'",
        ),
        (vec!["configure", "create", "volume-token", "--volume", "nope"], "nope"),
        (vec!["configure", "create", "volume-token", "--volume", "v", "--ends", "soon"], "soon"),
    ];
    for (arguments, expected) in table {
        let said = installation.fails(&arguments);
        assert!(
            said.contains(expected),
            "chronofs {}: does not name {expected}: {said}",
            arguments.join(" ")
        );
        assert!(fs::read_dir(&dir).unwrap().next().is_none(), "{arguments:?} left something behind");
        assert!(!fresh.exists(), "{arguments:?} left a folder behind");
    }
}

#[test]
fn ports_and_folders_belong_to_one_process() {
    let installation = Installation::start();
    let (admin, meta) = (installation.path("admin"), installation.path("meta"));
    let (admin_port, meta_port) =
        (installation.admin_address.to_string(), installation.meta_address.to_string());
    let free = free_address().to_string();
    let spare = installation.path("spare");
    let token = token_in(&installation.ok(&["configure", "create", "metadata-store", "spare"]));
    installation.ok(&["meta", "init", "creds", "--token", &token, "--db-folder", text(&spare)]);
    let start = |role: &'static str, folder: &Path, address: &str| {
        let mut arguments = vec![role.to_owned(), "start".to_owned(), "--db-folder".to_owned()];
        arguments.extend([text(folder).to_owned(), "--bind-addr".to_owned(), address.to_owned()]);
        if role == "meta" {
            arguments.extend(["--http-addr".to_owned(), free_address().to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        installation.fails(&arguments)
    };
    for (what, said, expected) in [
        ("a second admin on the folder", start("admin", &admin, &free), text(&admin)),
        ("a second meta on the folder", start("meta", &meta, &free), text(&meta)),
        ("meta on a port in use", start("meta", &spare, &meta_port), &meta_port),
        ("meta on the admin's port", start("meta", &spare, &admin_port), &admin_port),
        (
            "a folder that was not initialised",
            start("meta", &installation.path("fresh"), &free),
            "init creds",
        ),
    ] {
        assert!(said.contains(expected), "{what}: does not name {expected}: {said}");
    }
}
