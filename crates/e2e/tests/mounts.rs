//! Mounting, unmounting, and what mounts see of each other and of servers that are away.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chronofs_e2e::installation::{detach, is_mount_point};
use chronofs_e2e::process::{chronofs_binary, http_get, run, text, text_of, wait_for};
use chronofs_e2e::{Installation, Manifest, Rng, seed};
use chronofs_wire::token::Token;
use rustix::process::{Pid, Signal, kill_process};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn mounting_and_unmounting_in_the_background_and_the_list_of_mounts() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let token = installation.create_token("v", &[]);
    let dir = installation.path("a place");
    fs::create_dir(&dir).unwrap();
    installation.ok(&["mount", "init", "creds", "--token", &token]);
    installation.ok(&["mount", "start", "v", text(&dir)]);
    assert!(is_mount_point(&dir));
    fs::write(dir.join("file"), "written without fsync").unwrap();

    let list = installation.ok(&["mount", "list"]);
    assert!(list.contains(text(&dir)) && list.contains('v'), "{list}");
    let list: serde_json::Value =
        serde_json::from_str(&installation.ok(&["mount", "list", "--json"])).unwrap();
    let here = list.as_array().unwrap().iter().find(|m| m.to_string().contains(text(&dir)));
    assert!(here.is_some(), "{list}");

    fs::create_dir(installation.path("relative")).unwrap();
    let mut relative = installation.command(&["mount", "start", "v", "relative"]);
    let output = run(relative.current_dir(installation.path("")));
    assert!(output.status.success(), "{}", text_of(&output));
    assert!(is_mount_point(&installation.path("relative")), "mounted somewhere else");
    let logs = names(&installation.path("log"));
    let of_absolute_path = |log: &&String| log.ends_with("-relative.log") && *log != "mount-v-relative.log";
    assert_eq!(logs.iter().filter(of_absolute_path).count(), 1, "{logs:?}");
    installation.ok(&["mount", "stop", text(&installation.path("relative"))]);

    let again = installation.fails(&["mount", "start", "v", text(&dir)]);
    assert!(again.contains(text(&dir)), "{again}");
    installation.ok(&["mount", "stop", text(&dir)]);
    assert!(names(&dir).is_empty(), "still mounted after mount stop");
    let twice = installation.fails(&["mount", "stop", text(&dir)]);
    assert!(twice.contains(text(&dir)), "{twice}");
    let strange = installation.fails(&["mount", "stop", "a\nb\u{1b}c"]);
    assert!(strange.contains(r"a\nb\u{1b}c") && !strange.contains('\u{1b}'), "{strange}");

    installation.ok(&["mount", "start", "v", text(&dir), "--ro"]);
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "written without fsync");
    let error = fs::write(dir.join("file"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    let output = run(Command::new("umount").arg(&dir));
    assert!(output.status.success(), "{}", text_of(&output));
}

/// mount(8) and fstab find `mount.chronofs`; in a mount namespace of its own, so that nothing of the machine changes.
#[test]
fn mount_8_and_fstab_work_and_umount_flushes() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let token_file = installation.path("token");
    fs::write(&token_file, installation.create_token("v", &[])).unwrap();
    let dir = installation.path("mnt");
    fs::create_dir(&dir).unwrap();
    let script = r#"
        set -eu
        mount -t tmpfs none /usr/sbin
        ln -s "$BIN" /usr/sbin/mount.chronofs
        mount -t chronofs v "$DIR" -o "token-file=$TOKEN_FILE"
        findmnt -n -o FSTYPE,SOURCE "$DIR"
        echo first > "$DIR/file"
        instant=$("$BIN" instant "$DIR")
        echo second > "$DIR/file"
        umount "$DIR"
        printf 'v %s chronofs noauto,ro,token-file=%s 0 0\n' "$DIR" "$TOKEN_FILE" > "$DIR.fstab"
        mount -T "$DIR.fstab" "$DIR"
        cat "$DIR/file"
        ! touch "$DIR/new" 2> /dev/null
        umount "$DIR"
        mount -t chronofs v "$DIR" -o "at-time=$instant,token-file=$TOKEN_FILE"
        cat "$DIR/file"
        umount "$DIR"
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-c", script]);
    command.env("BIN", chronofs_binary()).env("DIR", &dir).env("TOKEN_FILE", &token_file);
    command.envs(installation.environment());
    let output = run(&mut command);
    assert!(output.status.success(), "{}", text_of(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("chronofs"), "{said}");
    assert!(said.ends_with("second\nfirst\n"), "{said}");
}

/// What the machine's own mount(8), fstab and a person say after `-o` holds, and is seen in /proc/self/mountinfo.
#[test]
fn mount_options_hold_however_they_are_said() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let token = installation.create_token("v", &[]);
    let token_file = installation.path("token");
    fs::write(&token_file, &token).unwrap();
    // The address in the token leads nowhere; the option has the right one.
    let lost: Token = token.parse().unwrap();
    let lost_file = installation.path("lost, \\ token");
    fs::write(&lost_file, Token { admin: "127.0.0.1:1".to_owned(), ..lost }.to_string()).unwrap();
    let dir = installation.path("mnt");
    fs::create_dir(&dir).unwrap();
    let script = r#"
        set -eu
        mount -t tmpfs none /usr/sbin
        ln -s "$BIN" /usr/sbin/mount.chronofs
        T=token-file=$TOKEN_FILE
        shown() { echo "$1: $(grep " $DIR " /proc/self/mountinfo | cut -d ' ' -f 6)"; }
        mount.chronofs() { /usr/sbin/mount.chronofs "$@"; }

        mount -t chronofs v "$DIR" -o "$T"
        shown plain
        printf '#!/bin/sh\necho it runs\n' > "$DIR/program"
        chmod 755 "$DIR/program"
        "$DIR/program"
        ln -s program "$DIR/link"
        umount "$DIR"

        mount.chronofs v "$DIR" -o "$T,ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"
        shown helper
        ! "$DIR/program" 2> /dev/null || echo "noexec does not hold"
        ! touch "$DIR/new" 2> /dev/null || echo "ro does not hold"
        ! cat "$DIR/link" 2> /dev/null || echo "nosymfollow does not hold"
        umount "$DIR"

        echo "v $DIR chronofs $T,noauto,user,exec,relatime,_netdev,nofail,x-systemd.automount,comment=a 0 0" > /etc/fstab
        mount "$DIR"
        shown fstab
        "$DIR/program"
        umount "$DIR"
        mount "$DIR" -o ro,strictatime,noexec
        shown "fstab and more"
        umount v

        echo "v $DIR chronofs $T,noexec 0 0" > /etc/fstab
        mount -a
        mount -a && echo "again: $(grep -c " $DIR " /proc/self/mountinfo)"
        umount "$DIR"

        "$BIN" mount start v "$DIR" --token-file "$TOKEN_FILE" -o nodev,noexec -o exec
        shown start
        instant=$("$BIN" instant "$DIR")
        umount "$DIR"
        mount -t chronofs "v@$instant" "$DIR" -o "token-file=\"$LOST_FILE\",admin=$ADMIN,log-format=json,log-level=warn"
        shown past
        umount "$DIR"
        ! mount -t chronofs v "$DIR" -o "$T,shiny" || echo "took a word that nobody knows"
        ! mount -t chronofs v "$DIR" -o "$T,rw,remount,nosuid" || echo "took remount"
        mount -t chronofs v "$DIR" -s -o "$T,shiny,sync"
        umount "$DIR"
    "#;
    let mut command = Command::new("unshare");
    let over_etc = format!(
        "mount -t tmpfs none {0}.etc && mkdir {0}.etc/u {0}.etc/w && mount -t overlay o -o lowerdir=/etc,upperdir={0}.etc/u,workdir={0}.etc/w /etc",
        text(&dir)
    );
    fs::create_dir(installation.path("mnt.etc")).unwrap();
    command.args([
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-c",
        &format!("set -eu\n{over_etc}\n{script}"),
    ]);
    command.env("BIN", chronofs_binary()).env("DIR", &dir).env("TOKEN_FILE", &token_file);
    command.env("LOST_FILE", &lost_file).env("ADMIN", installation.admin_address.to_string());
    command.envs(installation.environment());
    let output = run(&mut command);
    assert!(output.status.success(), "{}", text_of(&output));
    let expected = "\
plain: rw,relatime
it runs
helper: ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow
fstab: rw,nosuid,nodev,relatime
it runs
fstab and more: ro,nosuid,nodev,noexec
again: 1
start: rw,nodev,relatime
past: ro,relatime
";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", text_of(&output));
    let said = text_of(&output);
    assert!(said.contains("mount option 'shiny' is not known"), "{said}");
}

/// `sync` is a promise: what write(2) returned for is seen by others, and durable, without a close.
#[test]
fn a_mount_with_sync_stores_every_write_before_it_returns() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let (synced, other) = (installation.mount("v", &["-o", "sync"]), installation.mount("v", &[]));
    let file = File::create(synced.path("file")).unwrap();
    for n in 0..20u64 {
        file.write_all_at(&n.to_le_bytes(), n * 8).unwrap();
        let seen = fs::read(other.path("file")).unwrap();
        assert_eq!(seen.len() as u64, (n + 1) * 8, "write {n} is not there");
    }
}

#[test]
fn two_mounts_see_what_the_other_closed_or_synced() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let (a, b) = (installation.mount("v", &[]), installation.mount("v", &[]));
    let seed = seed("two_mounts");
    let mut rng = Rng::new(seed);
    for round in 0..60 {
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let len = *rng.pick(&[1usize, 500, 5_000, 70_000, 5_000_000]);
        let bytes = rng.bytes(len);
        let name = format!("file {}", rng.below(4));
        let sync = rng.one_in(2);
        let mut file = File::create(writer.path(&name)).unwrap();
        file.write_all(&bytes).unwrap();
        if sync {
            file.sync_all().unwrap();
        } else {
            drop(file);
        }
        let found = fs::read(reader.path(&name)).unwrap();
        assert!(
            found == bytes,
            "seed {seed}, round {round}: {len} bytes, sync {sync}: the other sees {}",
            found.len()
        );
        match round % 5 {
            0 => fs::rename(reader.path(&name), reader.path("renamed")).unwrap(),
            1 => fs::remove_file(reader.path(&name)).unwrap(),
            2 => fs::create_dir_all(reader.path(&format!("d{round}"))).unwrap(),
            _ => {}
        }
        let seen = (Manifest::of(&a.dir).unwrap(), Manifest::of(&b.dir).unwrap());
        seen.0.assert_same(&seen.1, &format!("seed {seed}, round {round}: the two mounts"));
    }
}

#[test]
fn sigterm_makes_a_mount_flush_and_go() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &["--log-format", "json", "--log-level", "info"]);
    let bytes = Rng::new(5).bytes(9 << 20);
    fs::write(mount.path("file"), &bytes).unwrap();
    mount.process.stop();
    assert!(!is_mount_point(&mount.dir), "still mounted after SIGTERM");
    for line in mount.process.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    mount.start();
    assert!(fs::read(mount.path("file")).unwrap() == bytes, "what was written is not there");
}

/// `ls DIR` in the background. It hears SIGINT also where whoever runs the tests does not, as in a shell's background.
fn list_in_background(dir: &Path) -> Child {
    let mut command = Command::new("env");
    command
        .args(["--default-signal=INT", "ls", "-f"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn still_running(child: &mut Child, how_long: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < how_long {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn a_server_that_is_down_makes_operations_wait_and_never_looks_like_an_empty_folder() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mount = installation.mount("v", &[]);
    fs::create_dir(mount.path("dir")).unwrap();
    for n in 0..50 {
        fs::write(mount.path(&format!("dir/{n}")), "x").unwrap();
    }
    mount.instant();
    installation.meta.kill();
    std::thread::sleep(Duration::from_millis(1500)); // longer than anything the kernel may have cached
    let mut listing = list_in_background(&mount.path("dir"));
    let waits = still_running(&mut listing, Duration::from_secs(2));
    installation.start_meta();
    let output = listing.wait_with_output().unwrap();
    let said = text_of(&output);
    assert!(waits, "did not wait for the server: {said}");
    assert!(output.status.success(), "{said}");
    assert_eq!(said.lines().filter(|l| !l.starts_with('.')).count(), 50, "{said}");
}

#[test]
fn a_signal_interrupts_an_operation_that_waits() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mount = installation.mount("v", &[]);
    fs::create_dir(mount.path("dir")).unwrap();
    fs::write(mount.path("dir/file"), "x").unwrap();
    installation.meta.kill();
    std::thread::sleep(Duration::from_millis(1500));
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut waiting = list_in_background(&mount.path("dir"));
        assert!(
            still_running(&mut waiting, Duration::from_millis(700)),
            "did not wait: {:?}",
            waiting.wait()
        );
        let _ = kill_process(Pid::from_child(&waiting), signal);
        let ended = !still_running(&mut waiting, Duration::from_secs(5));
        if !ended {
            installation.start_meta(); // or this test could not end
        }
        assert!(ended, "{signal:?} did not end a program that waits for the server");
    }
    installation.start_meta();
    assert_eq!(fs::read_to_string(mount.path("dir/file")).unwrap(), "x");
}

#[test]
fn existing_mounts_go_on_while_the_admin_server_is_away() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    let token = mount.token.clone();
    installation.admin.kill();
    fs::write(mount.path("file"), "without admin").unwrap();
    installation.meta.kill();
    installation.start_meta_without_admin();
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "without admin");
    fs::write(mount.path("file"), "still").unwrap();
    mount.instant();
    let dir = installation.path("place");
    fs::create_dir(&dir).unwrap();
    let said = installation.fails(&["mount", "start", "v", text(&dir), "--token", &token]);
    assert!(
        said.contains(&installation.admin_address.to_string()),
        "names the server that does not answer: {said}"
    );
    detach(&dir);
    installation.start_admin();
    mount.unmount();
    installation.stop_meta_and_verify();
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let copied = run(Command::new("cp").arg("-a").args([from, to]));
    assert!(copied.status.success(), "{}", text_of(&copied));
}

#[test]
fn an_admin_restored_from_an_old_copy_goes_on_above_all_epochs_and_mounts_with_it() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let (admin, copy) = (installation.path("admin"), installation.path("admin.old"));
    let token = installation.create_token("v", &[]);
    installation.admin.stop();
    copy_folder(&admin, &copy);
    installation.start_admin();
    let epoch = |installation: &Installation| -> u64 {
        let shown = installation.ok(&["configure", "show", "metadata-store", "store", "--json"]);
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["epoch"].as_u64().unwrap()
    };
    for last in 1..4 {
        wait_for("the server to register", || (epoch(&installation) == last).then_some(()));
        installation.meta.stop();
        installation.start_meta();
    }
    wait_for("the server to register", || (epoch(&installation) == 4).then_some(()));
    let before = epoch(&installation);
    let mut mount = installation.mount_with("v", &token, &[]);
    fs::write(mount.path("file"), "before").unwrap();

    installation.admin.stop();
    copy_folder(&copy, &admin);
    installation.start_admin();
    wait_for("the server to register again", || (epoch(&installation) > before).then_some(()));
    let said = installation.admin.log();
    assert!(said.contains("held=4") && said.contains("known=1") && said.contains("old copy"), "{said}");
    // A mount refuses a server under a lower epoch than it has seen: it must find it again after a restart.
    installation.meta.kill();
    installation.start_meta();
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "before");
    wait_for("the server to register", || (epoch(&installation) > before + 1).then_some(()));
    let mut other = installation.mount_with("v", &token, &[]);
    assert_eq!(fs::read_to_string(other.path("file")).unwrap(), "before");
    other.unmount();
    mount.unmount();
    installation.stop_meta_and_verify();
}

#[test]
fn mapped_files_and_open_files_are_written_back_by_umount() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    let copied =
        run(Command::new("cp").args(["-a", "--sparse=always", "/usr/bin/bash"]).arg(mount.path("bash")));
    assert!(copied.status.success(), "{}", text_of(&copied));
    let ran = run(Command::new(mount.path("bash")).args(["-c", "echo runs from the mount"]));
    assert!(text_of(&ran).contains("runs from the mount"), "{}", text_of(&ran));
    let file = File::create(mount.path("file")).unwrap();
    file.write_all_at(b"at the end", 10 << 20).unwrap();
    drop(file);
    mount.unmount();
    mount.start();
    let (a, b) = (fs::read("/usr/bin/bash").unwrap(), fs::read(mount.path("bash")).unwrap());
    assert!(a == b, "the copy differs");
    let mut end = String::new();
    let mut file = File::open(mount.path("file")).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(10 << 20)).unwrap();
    file.read_to_string(&mut end).unwrap();
    assert_eq!(end, "at the end");
}

#[test]
fn servers_tell_their_health_and_figures() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let mount = installation.mount("v", &[]);
    fs::write(mount.path("file"), "x").unwrap();
    mount.instant();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http_get(installation.http_address, path).unwrap().0, 200, "{path}");
    }
    let (status, metrics) = http_get(installation.http_address, "/metrics").unwrap();
    assert_eq!(status, 200);
    let samples: Vec<&str> = metrics.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    assert!(samples.iter().any(|l| l.starts_with("chronofs_")), "{metrics}");
    for line in samples {
        let value = line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
        assert!(value.is_some(), "not a sample of Prometheus: {line}");
    }
    // The root and the file.
    wait_for("the admin server to hear of the volume's use", || {
        let shown = installation.ok(&["configure", "show", "volume", "v", "--json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown["used_inodes"].as_u64().filter(|used| *used >= 2)
    });
}

#[test]
fn meta_status_tells_what_is_served_and_when_nothing_is() {
    let mut installation = Installation::start();
    let address = installation.http_address.to_string();
    let status = |installation: &Installation| -> serde_json::Value {
        let said = installation.ok(&["meta", "status", "--http-addr", &address, "--json"]);
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
    };
    installation.create_volume("shelf", &[]);
    let mut mount = installation.mount("shelf", &[]);
    fs::write(mount.path("file"), "x").unwrap();
    let at = mount.instant();
    let told = wait_for("what was synced to be durable", || {
        Some(status(&installation)).filter(|s| s["durable"].as_str().is_some_and(|durable| *durable >= *at))
    });
    assert_eq!(told["pid"].as_u64(), installation.meta.pid().map(u64::from), "{told}");
    assert_eq!(told["assigned"], true, "{told}");
    let volumes = told["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 1, "{told}");
    assert_eq!((&volumes[0]["name"], &volumes[0]["sessions"]), (&"shelf".into(), &1.into()), "{told}");
    assert!(volumes[0]["problem"].is_null(), "{told}");

    let shown = installation.ok(&["meta", "status", "--http-addr", &address]);
    let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    let head = ["VOLUME", "MOUNTS", "TO", "BE", "PACKED", "SIZE", "PROBLEM"];
    assert!(words.contains(&head.to_vec()), "{shown}");
    assert!(words.contains(&vec!["shelf", "1", "0", "0", "B", "-"]), "{shown}");
    assert!(shown.contains(&format!("process {},", told["pid"])), "{shown}");

    // A volume whose blocks are out of reach has its reason.
    mount.unmount();
    let (blocks, away) = (installation.path("blocks"), installation.path("away"));
    installation.meta.stop();
    fs::rename(&blocks, &away).unwrap();
    fs::create_dir(&blocks).unwrap();
    installation.start_meta();
    let problem = wait_for("the problem of the volume to be told", || {
        status(&installation)["volumes"][0]["problem"].as_str().map(str::to_owned)
    });
    assert!(problem.contains(text(&blocks)), "{problem}");
    let shown = installation.ok(&["meta", "status", "--http-addr", &address]);
    assert!(shown.contains("shelf") && shown.contains(&problem), "{shown}");

    installation.meta.stop();
    let said = installation.fails(&["meta", "status", "--http-addr", &address]);
    assert!(said.contains(&address) && said.contains("is it running"), "{said}");
}

#[test]
fn a_changed_retention_holds_for_a_volume_that_is_mounted() {
    let installation = Installation::start();
    installation.create_volume("v", &["--retention", "1h"]);
    let live = installation.mount("v", &[]);
    fs::write(live.path("file"), "then").unwrap();
    let at = live.instant();
    fs::write(live.path("file"), "now").unwrap();
    let past = installation.mount_past(&live, &at);
    let place = installation.path("place");
    fs::create_dir(&place).unwrap();
    let seen_at = |at: &str| {
        let arguments = ["mount", "start", "v", text(&place), "--token", &live.token, "--at-time", at];
        let output = run(&mut installation.command(&arguments));
        let seen = output.status.success().then(|| fs::read_to_string(place.join("file")).unwrap());
        detach(&place);
        assert!(seen.is_some() || text_of(&output).contains("cannot be had"), "{}", text_of(&output));
        seen
    };
    let mounted_show_the_same = || {
        assert_eq!(fs::read_to_string(past.path("file")).unwrap(), "then", "in the past that was mounted");
        assert_eq!(fs::read_to_string(live.path("file")).unwrap(), "now");
    };
    let update = |retention: &str| {
        installation.ok(&["configure", "update", "volume", "v", "--retention", retention, "--grace", "0"]);
    };
    assert_eq!(seen_at(&at).as_deref(), Some("then"));
    update("1s");
    wait_for("the retention of 1s to hold", || seen_at(&at).is_none().then_some(()));
    mounted_show_the_same();
    // Longer again: a window grows from now on, and what has left it stays out of reach.
    update("1h");
    wait_for("the retention of 1h to hold", || {
        let later = live.instant();
        std::thread::sleep(Duration::from_secs(2));
        seen_at(&later)
    });
    assert_eq!(seen_at(&at), None);
    mounted_show_the_same();
}

#[test]
fn quotas_are_kept_and_told() {
    let installation = Installation::start();
    installation.create_volume("v", &["--max-bytes", "20MiB", "--max-inodes", "20"]);
    let mount = installation.mount("v", &[]);
    let free = run(Command::new("stat").args(["-f", "-c", "%b %S %c"]).arg(&mount.dir));
    let numbers: Vec<u64> = text_of(&free).split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!((numbers[0] * numbers[1], numbers[2]), (20 << 20, 20), "{}", text_of(&free));
    let bytes = Rng::new(6).bytes(30 << 20);
    let written = File::create(mount.path("big")).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    let error = written.expect_err("30 MiB into 20 MiB");
    assert!(matches!(error.raw_os_error(), Some(28 | 122)), "ENOSPC or EDQUOT: {error}");
    fs::remove_file(mount.path("big")).unwrap();
    let made = (0..40).take_while(|n| File::create(mount.path(&format!("f{n}"))).is_ok()).count();
    assert!((15..=20).contains(&made), "{made} files were made with 20 inodes");
}
