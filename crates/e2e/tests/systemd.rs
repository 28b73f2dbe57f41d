//! Services through systemd: `manage` against a stand-in of `systemctl` and `journalctl` that starts what the unit files say, in
//! namespaces of the test's own in which systemd is said to run.
//!
//! The stand-in knows of unit files what systemd.service(5) says of ours: ExecStart=, Restart=always, SIGTERM to stop. What systemd
//! itself makes of them is not tested here: it does not run on the machines of the tests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_e2e::Installation;
use chronofs_e2e::disk::done;
use chronofs_e2e::network::is_inside;
use chronofs_e2e::process::{text, wait_for};
use chronofs_e2e::services::{Services, make_program};
use rustix::process::{Signal, kill_process};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// `systemctl COMMAND [OPTION] [UNIT]`, as far as it is used. A supervisor for each unit starts the server again after a second.
const SYSTEMCTL: &str = r#"#!/bin/sh
state=STATE
echo "$*" >> $state/calls
for unit; do :; done
pid() { cat $state/$unit.server 2>/dev/null; }
runs() { [ -n "$1" ] && [ -r /proc/$1/cmdline ] && [ -n "$(tr -d '\0' < /proc/$1/cmdline 2>/dev/null)" ]; }
case $1 in
daemon-reload)
    rm -rf $state/read && cp -r /etc/systemd/system $state/read ;;
start)
    [ -e "$state/read/$unit" ] || { echo "Unit $unit not found." >&2; exit 5; }
    echo $$ > $state/$unit.wanted
    rm -f $state/$unit.server
    command=$(sed -n 's/^ExecStart=//p' $state/read/$unit)
    setsid sh -c "
        while [ \"\$(cat $state/$unit.wanted 2>/dev/null)\" = $$ ]; do
            $command >> $state/$unit.log 2>&1 &
            server=\$!
            echo \$server > $state/$unit.server
            wait \$server
            sleep 1
        done" > /dev/null 2>&1 < /dev/null &
    for n in 1 2 3 4 5 6 7 8 9 10; do runs "$(pid)" && exit 0; sleep 0.1; done ;;
stop)
    rm -f $state/$unit.wanted
    server=$(pid)
    [ -z "$server" ] || kill -TERM $server 2>/dev/null
    while runs "$server"; do sleep 0.05; done ;;
show)
    server=$(pid)
    if runs "$server"; then printf 'ActiveState=active\nMainPID=%s\n' $server
    elif [ -e $state/$unit.wanted ]; then printf 'ActiveState=activating\nMainPID=0\n'
    else printf 'ActiveState=inactive\nMainPID=0\n'; fi ;;
*)
    echo "Unknown command verb $1." >&2; exit 1 ;;
esac
"#;

/// `journalctl --no-pager --output=cat --unit UNIT --lines N`.
const JOURNALCTL: &str = r#"#!/bin/sh
tail -n $6 STATE/$4.log
"#;

fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// systemd is said to run here, with the stand-ins before everything in PATH, and unit files of this namespace only.
fn with_stand_ins(folder: &Path) -> Vec<(&'static str, OsString)> {
    let path = |name: &str| folder.join(name);
    done(Command::new("mount").args(["-t", "tmpfs", "run", "/run"]));
    fs::create_dir_all("/run/systemd/system").unwrap();
    for name in ["upper", "work", "stand-ins", "state"] {
        fs::create_dir(path(name)).unwrap();
    }
    done(Command::new("mount").args(["-t", "tmpfs", "over"]).arg(path("upper")));
    let (upper, work) = (path("upper/upper"), path("upper/work"));
    for folder in [&upper, &work] {
        fs::create_dir(folder).unwrap();
    }
    let layers = format!("lowerdir=/etc,upperdir={},workdir={}", text(&upper), text(&work));
    done(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers, "/etc"]));
    fs::create_dir_all("/etc/systemd/system").unwrap();
    let state = path("state");
    put(&path("stand-ins/systemctl"), &SYSTEMCTL.replace("STATE", text(&state)));
    put(&path("stand-ins/journalctl"), &JOURNALCTL.replace("STATE", text(&state)));
    let mut paths = vec![path("stand-ins")];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    vec![("PATH", std::env::join_paths(paths).unwrap())]
}

#[test]
fn where_systemd_runs_it_does_the_work_and_a_failed_upgrade_goes_back() {
    if !is_inside("where_systemd_runs_it_does_the_work_and_a_failed_upgrade_goes_back") {
        return;
    }
    done(Command::new("ip").args(["link", "set", "lo", "up"]));
    let folder = tempfile::tempdir().unwrap();
    let environment = with_stand_ins(folder.path());
    let installation = Installation::start();
    let program = installation.path("bin/chronofs");
    make_program(&program, "0.1.0", "", 0);
    let services = Services::of_systemd(installation, environment);
    services.run_by("meta", &program);
    assert_eq!(services.ok(&["start"]), "admin: started\nmeta: started\n");
    services.until_ready();
    assert!(services.ok(&["status"]).contains("meta: running, process "));
    let first = services.server("meta").unwrap();
    kill_process(first, Signal::KILL).unwrap();
    wait_for("another metadata server", || services.server("meta").filter(|pid| *pid != first));
    assert_eq!(services.ok(&["restart", "meta"]), "meta: stopped\nmeta: started\n");
    services.until_ready();
    assert!(services.ok(&["logs", "meta", "-n", "5"]).contains('{'), "what it said, as JSON");

    let key = services.installation.path("deploy.key");
    services.installation.ok(&["admin", "deploy", "key", text(&key)]);
    let public = services.installation.path("deploy.key.pub");
    fs::copy(public, services.installation.path("etc/deploy.pub")).unwrap();
    let add = |version: &str, more: &str| {
        let made = services.installation.path(version);
        make_program(&made, version, more, 0);
        services.installation.ok(&["admin", "deploy", "add", text(&made), "--signing-key", text(&key)]);
    };
    add("0.2.0", "");
    assert!(services.ok(&["upgrade", "meta"]).contains("runs by 0.2.0 and serves"));
    add("0.3.0", "[ \"$2\" != start ] || { echo no library >&2; exit 3; }");
    let failed = services.fails(&["upgrade", "meta"]);
    assert!(failed.contains("no library") && failed.contains("runs by the one before again"), "{failed}");
    assert_eq!(done(Command::new(&program).arg("--version")), "chronofs 0.2.0\n");
    services.until_ready();

    assert_eq!(services.ok(&["stop"]), "meta: stopped\nadmin: stopped\n");
    assert!(services.fails(&["status"]).contains("not running: admin, meta"));
    let unit = Path::new("/etc/systemd/system/chronofs-meta.service");
    fs::rename(unit, "/etc/systemd/system/meta.moved").unwrap();
    assert!(services.fails(&["start", "meta"]).contains("chronofs-meta.service"));
    let calls = fs::read_to_string(folder.path().join("state/calls")).unwrap();
    for call in ["daemon-reload", "start chronofs-meta.service", "stop chronofs-admin.service"] {
        assert!(calls.lines().any(|line| line == call), "{call} in {calls}");
    }
}
