//! The operators' shell on real servers: the key space, and a status that tells the truth whatever fails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use chronofs_e2e::Installation;
use chronofs_e2e::installation::{assert_failed_cleanly, detach};
use chronofs_e2e::process::{http_get, run, text, text_of, wait_for};
use chronofs_e2e::snapshot::{Programs, uid_in};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What `cli --exec` prints, all in all, and its exit status.
fn exec(installation: &Installation, commands: &str) -> (String, i32) {
    let output = run(&mut installation.command(&["cli", "--exec", commands]));
    (text_of(&output), output.status.code().unwrap())
}

fn ok(installation: &Installation, commands: &str) -> String {
    let (said, code) = exec(installation, commands);
    assert_eq!(code, 0, "{commands}: {said}");
    said
}

/// What commands on standard input print, and the exit status.
fn piped(installation: &Installation, lines: &str) -> (String, i32) {
    let mut command = installation.command(&["cli"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines = lines.to_owned();
    let writer = std::thread::spawn(move || drop(input.write_all(lines.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (text_of(&output), output.status.code().unwrap())
}

fn version_in(line: &str) -> u64 {
    line.strip_prefix("Committed (").and_then(|rest| rest.strip_suffix(')')).unwrap().parse().unwrap()
}

/// The status, as programs read it, and the exit status.
fn status(installation: &Installation) -> (Value, i32) {
    let output = run(&mut installation.command(&["cli", "--exec", "status json"]));
    let all = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text_of(&output)));
    (all, output.status.code().unwrap())
}

#[test]
fn the_page_step_by_step() {
    let mut installation = Installation::start();
    let cluster_file = installation.path("admin").join("chronofs.cluster");
    let with_file = |commands: &str| {
        let arguments = ["cli", "--cluster-file", text(&cluster_file), "--exec", commands];
        installation.ok(&arguments)
    };
    let said = with_file("status");
    let source = format!("Using cluster file `{}'.", text(&cluster_file));
    for line in [
        source.as_str(),
        "  Redundancy mode        - single",
        "  Coordinators           - 1",
        "  chronofs processes     - 2",
        "  Metadata servers       - 1 of 1 answer",
        "  Machines               - 1",
        "  Health                 - Healthy",
        "  Sum of key-value sizes - 0 B",
        "  Running snapshots      - 0",
        "  Running backups        - 0",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    for part in ["Server time", "Client time: ", "free on most full server", " Hz", "Memory availability"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = with_file("writemode on; set key1 value1; set key2 value2");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        (lines[0], lines[1], lines[3]),
        (">>> writemode on", ">>> set key1 value1", ">>> set key2 value2")
    );
    let (first, second) = (version_in(lines[2]), version_in(lines[4]));
    assert!(first < second, "{said}");
    let get = "get key1; get key2; get key3; getrange key";
    let expected = "\
>>> get key1
`key1' is `value1'
>>> get key2
`key2' is `value2'
>>> get key3
`key3': not found
>>> getrange key
`key1' is `value1'
`key2' is `value2'
";
    assert_eq!(with_file(get), expected);
    // The versions are those of the store.
    let (all, code) = status(&installation);
    assert_eq!(code, 0);
    assert_eq!(all["members"][0]["said"]["keys"]["keys"], 2);
    assert!(all["now_ns"].as_u64().unwrap() > second && all["client"]["now_ns"].as_u64().unwrap() > second);
    let details = with_file("status details");
    for part in ["coord", "storage,tlog", "healthy", &installation.meta_address.to_string()] {
        assert!(details.contains(part), "{part}: {details}");
    }

    // What was said to be committed is there, however the server ends.
    installation.meta.kill();
    installation.start_meta();
    assert_eq!(ok(&installation, get), expected);
    installation.meta.stop();
    installation.start_meta();
    assert_eq!(ok(&installation, get), expected);
    let cleared = ok(&installation, "writemode on; clear key1; get key1");
    assert!(cleared.ends_with("`key1': not found\n"), "{cleared}");
    installation.stop_meta_and_verify();
}

#[test]
fn arguments_are_data_and_what_is_wrong_is_refused_by_name() {
    let installation = Installation::start();
    let odd = r#"writemode on; set "a key; \"no\" \\" "\x00\xff$(id)`id`" ; getrange "" \xff"#;
    let said = ok(&installation, odd);
    assert!(said.contains(r#"`a key; "no" \\' is `\x00\xff$(id)`id`'"#), "{said}");
    let long = |len: usize| "x".repeat(len);
    for (commands, why) in [
        ("nothing", "no command `nothing'"),
        ("set k v", "writemode must be enabled"),
        ("writemode on; writemode off; clear k", "writemode must be enabled"),
        ("writemode maybe", "on or off"),
        ("get", "get is written `get KEY'"),
        ("get a b", "get is written `get KEY'"),
        ("get \"a", "a quote is not closed"),
        ("get \\q", "after \\"),
        ("getrange a b many", "`many' is not a number"),
        ("getrange b a", "2005"),
        ("getrange a b 0", "1 to 10000"),
        ("status all", "details, json or nothing"),
        ("help nothing", "no command `nothing'"),
        (&format!("get {}", long(10_001)), "10001 bytes, and the most is 10000"),
        (&format!("writemode on; set k {}", long(100_001)), "100001 bytes, and the most is 100000"),
    ] {
        let output = run(&mut installation.command(&["cli", "--exec", commands]));
        let said = assert_failed_cleanly(&output, "cli");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && said.contains("ERROR: "), "{why}: {said}");
    }
    // What follows a failure is not done.
    let (said, code) = exec(&installation, "writemode on; get a b; set k v");
    assert!(code == 1 && !said.contains("Committed"), "{said}");
    assert!(ok(&installation, "get k").contains("not found"));
    ok(&installation, &format!("writemode on; set {} {}", long(10_000), long(100_000)));

    // Lines from a pipe: each by itself, and the whole fails if one does.
    assert_eq!(piped(&installation, "writemode on\nset p 1\n# a comment\nget p\nexit\nget none\n").1, 0);
    let (said, code) = piped(&installation, "get a b\nget p\n");
    assert!(code == 1 && said.contains("`p' is `1'"), "{said}");
    let help = ok(&installation, "help");
    for command in ["status", "writemode", "get", "set", "clear", "getrange", "exit"] {
        assert!(
            help.contains(command) && ok(&installation, &format!("help {command}")).contains(command),
            "{help}"
        );
    }

    // Whose account may only look does not change keys.
    let token = installation.ok(&["configure", "create", "account", "eve", "--role", "viewer"]);
    let token = chronofs_e2e::installation::token_in(&token);
    let as_eve = |commands: &str| {
        run(installation.command(&["cli", "--exec", commands]).env("CHRONOFS_TOKEN", &token))
    };
    assert!(as_eve("status; get p").status.success());
    let refused = assert_failed_cleanly(&as_eve("writemode on; set p 2"), "set");
    assert!(refused.contains("role viewer"), "{refused}");
    assert!(ok(&installation, "get p").contains("`1'"));
    // Another cluster's file.
    let wrong = installation.path("wrong.cluster");
    fs::write(&wrong, format!("lab:1@{}\n", installation.admin_address)).unwrap();
    let said = installation.fails(&["cli", "--cluster-file", text(&wrong), "--exec", "status"]);
    assert!(said.contains("lab:1") && said.contains("--cluster-file"), "{said}");
}

#[test]
fn the_status_tells_what_ails_the_cluster() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    ok(&installation, "writemode on; set k 1");

    // A store that never had a server.
    installation.ok(&["configure", "create", "metadata-store", "later"]);
    let (all, code) = status(&installation);
    assert_eq!((all["members"][0]["state"].as_str(), code), (Some("never_seen"), 1), "{all}");
    installation.ok(&["configure", "delete", "metadata-store", "later"]);
    wait_for("a healthy cluster", || (status(&installation).1 == 0).then_some(()));

    // A server that is killed.
    let mut mount = installation.mount("v", &[]);
    fs::write(mount.path("f"), "x").unwrap();
    mount.instant();
    mount.kill();
    installation.meta.kill();
    let (said, code) = exec(&installation, "status");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("Unhealthy: 1 fault") && said.contains("0 of 1 answer"), "{said}");
    assert!(
        said.contains("metadata store 'store': unreachable: it does not answer, last heard of"),
        "{said}"
    );
    let (said, code) = exec(&installation, "get k");
    assert!(code == 1 && said.contains("cannot be reached") && said.contains("nothing was done"), "{said}");

    // After a power cut it waits for the mount that is gone.
    fs::write(installation.path("meta").join("running"), "another boot").unwrap();
    installation.meta.start();
    let said = wait_for("a server that is replaying", || {
        let (said, code) = exec(&installation, "status details");
        (code == 1 && said.contains("replaying: it collects")).then_some(said)
    });
    assert!(said.lines().any(|line| line.contains("storage,tlog") && line.contains("replaying")), "{said}");
    let (said, code) = exec(&installation, "get k");
    assert!(code == 1 && said.contains("is replaying what a power cut took"), "{said}");
    wait_for("the end of that", || (status(&installation).1 == 0).then_some(()));
    assert!(ok(&installation, "get k").contains("`k' is `1'"));

    // A volume whose bytes are away.
    let (blocks, away) = (installation.path("blocks"), installation.path("blocks-away"));
    installation.meta.stop();
    fs::rename(&blocks, &away).unwrap();
    installation.start_meta();
    let (all, code) = wait_for("a problem", || Some(status(&installation)).filter(|(_, code)| *code == 1));
    assert_eq!((all["members"][0]["state"].as_str(), code), (Some("degraded"), 1), "{all}");
    assert!(all["faults"][0].as_str().unwrap().contains("volume v cannot be served"), "{all}");
    fs::rename(&away, &blocks).unwrap();
    installation.meta.stop();
    installation.start_meta();
    wait_for("a healthy cluster", || (status(&installation).1 == 0).then_some(()));

    // The admin server itself.
    installation.admin.stop();
    let (said, code) = exec(&installation, "status");
    assert!(code == 1 && said.contains("cannot reach the admin server"), "{said}");
}

/// A mounted tmpfs; unmounted at the end.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[test]
fn a_log_on_another_disk_than_the_store_is_told() {
    const TOLD: &str = "log and store lie on different disks";
    let holder = tempfile::tempdir().unwrap();
    let disk = SmallDisk(holder.path().join("log"));
    fs::create_dir_all(&disk.0).unwrap();
    let output = run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=900m", "log"]).arg(&disk.0));
    assert!(output.status.success(), "mounting a tmpfs: {}", text_of(&output));
    let mut installation = Installation::start();
    let (all, _) = status(&installation);
    assert!(!all["warnings"].to_string().contains(TOLD), "{}", all["warnings"]);
    installation.meta.stop();
    let log = installation.path("meta/engine/log");
    let copied = run(Command::new("cp").arg("-a").arg(log.join(".")).arg(&disk.0));
    assert!(copied.status.success(), "{}", text_of(&copied));
    fs::remove_dir_all(&log).unwrap();
    std::os::unix::fs::symlink(&disk.0, &log).unwrap();
    installation.start_meta();
    let all = wait_for("the warning", || {
        let (all, code) = status(&installation);
        (code == 0 && all["warnings"].to_string().contains(TOLD)).then_some(all)
    });
    assert_eq!(all["members"][0]["said"]["apart"], true);
    let (details, _) = exec(&installation, "status details");
    assert!(details.contains("warning: metadata store 'store': log and store lie on"), "{details}");
    let (_, figures) = http_get(installation.http_address, "/metrics").unwrap();
    assert!(figures.contains("chronofs_meta_log_apart_from_store 1"), "{figures}");
    let http = installation.http_address.to_string();
    let said = text_of(&run(&mut installation.command(&["meta", "status", "--http-addr", &http])));
    assert!(said.contains(TOLD), "{said}");
    installation.meta.stop();
}

#[test]
fn a_full_disk_is_told_refuses_changes_and_loses_nothing() {
    let holder = tempfile::tempdir().unwrap();
    let disk = SmallDisk(holder.path().join("small"));
    fs::create_dir_all(&disk.0).unwrap();
    let output = run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=900m", "small"]).arg(&disk.0));
    assert!(output.status.success(), "mounting a tmpfs: {}", text_of(&output));
    let installation = Installation::start_with_meta_folder(&disk.0.join("meta"));
    ok(&installation, "writemode on; set kept 1");
    // All the room there is, but for what the log has already.
    let filler = disk.0.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 1 << 16]).is_ok() {}
    drop(file);
    let value = "x".repeat(90_000);
    let sets: String = (0..100).map(|n| format!("set fill{n} {value}\n")).collect();
    let refused = (0..20).find_map(|_| {
        let (said, code) = piped(&installation, &format!("writemode on\n{sets}"));
        (code == 1).then_some(said)
    });
    let refused = refused.expect("a full disk");
    assert!(
        refused.contains("the disk of the metadata server is full"),
        "{}",
        refused.lines().last().unwrap()
    );
    let (all, code) = status(&installation);
    assert_eq!((all["members"][0]["state"].as_str(), code), (Some("full"), 1), "{}", all["faults"]);
    assert!(all["faults"][0].as_str().unwrap().contains("its disk is full"), "{}", all["faults"]);
    assert!(ok(&installation, "get kept").contains("`kept' is `1'"), "reads go on");

    fs::remove_file(&filler).unwrap();
    wait_for("changes to go on", || (exec(&installation, "writemode on; set kept 2").1 == 0).then_some(()));
    wait_for("a healthy cluster", || (status(&installation).1 == 0).then_some(()));
    assert!(ok(&installation, "get kept").contains("`kept' is `2'"));
    drop(installation);
}

#[test]
fn a_shell_in_which_a_snapshot_was_taken_still_ends_when_it_is_told_to() {
    let programs = Programs::new();
    let program = programs.add("nothing", "#!/bin/sh\nexit 0\n");
    let installation = Installation::start_with_whitelist(&[&program], &[]);
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = installation.command(&["cli"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "snapshot {}", text(&program)).unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        uid_in(&said);
        // It reads the next line soon, and nothing comes.
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(child.try_wait().unwrap(), None, "it waits for the next line");
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
        let status = wait_for("the shell to end", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{signal:?}");
        drop(input);
    }
}
