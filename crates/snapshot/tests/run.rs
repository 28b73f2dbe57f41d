//! A snapshot program that behaves badly: it is ended, nothing of it is left, and its own words come back.
//!
//! One test, so that descriptors and children of this process can be counted around each case. It has a `main` of its own,
//! since it is also the guard of the programs, and a server that is killed while one runs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_snapshot::run::{GUARD, Surroundings, stand_guard};
use chronofs_snapshot::{Abort, End, Guard, Invocation, Limits, Report, Role, Whitelist, run};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct World {
    /// Removes the folder in the end.
    _folder: Option<TempDir>,
    root: PathBuf,
}

const QUICK: Limits = Limits {
    run: Duration::from_secs(20),
    terminate: Duration::from_secs(5),
    left: Duration::from_secs(2),
    kill: Duration::from_secs(10),
};

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        World { _folder: Some(folder), root }
    }

    fn call(&self, script: &str) -> Invocation {
        let path = self.root.join("program");
        // Written beside and moved: a program that was just open for writing may be busy in a child forked meanwhile.
        let beside = self.root.join("program.new");
        fs::write(&beside, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&beside, &path).unwrap();
        let list = Whitelist::new([path.clone()]).unwrap();
        Invocation {
            program: list.check(&path, rustix::process::geteuid().as_raw()).unwrap(),
            arguments: Vec::new(),
            path: self.root.join("data of it"),
            version: "7.3.79".to_owned(),
            role: Role::Tlog,
            uid: "de01497a344441362c2deffed56a529b".parse().unwrap(),
            surroundings: Surroundings::default(),
            guard: Guard::default(),
        }
    }

    /// Runs it, and finds nothing of it afterwards: no process whose command line names our folder or which is in a
    /// group of ours, no child, no descriptor.
    fn run(&self, script: &str, limits: &Limits) -> Report {
        let call = self.call(script);
        let abort = Abort::new().unwrap();
        let before = descriptors();
        let report = run(&call, limits, &abort);
        assert_eq!(descriptors(), before, "descriptors after: {script}");
        assert_eq!(children(), Vec::<String>::new(), "children after: {script}");
        assert_eq!(self.processes(), Vec::<String>::new(), "processes after: {script}");
        report
    }

    /// Command lines of processes that name our folder, or are guards.
    fn processes(&self) -> Vec<String> {
        let folder = self.root.to_str().unwrap();
        let own = std::env::current_exe().unwrap();
        let is_guard = |dir: &Path| {
            fs::read_link(dir.join("exe")).is_ok_and(|exe| exe == own)
                && !dir.ends_with(std::process::id().to_string())
        };
        let lines = proc_dirs().filter_map(|dir| Some((is_guard(&dir), fs::read(dir.join("cmdline")).ok()?)));
        let texts = lines.map(|(guard, line)| (guard, String::from_utf8_lossy(&line).replace('\0', " ")));
        texts.filter(|(guard, text)| *guard || text.contains(folder)).map(|(_, text)| text).collect()
    }
}

fn proc_dirs() -> impl Iterator<Item = PathBuf> {
    let of_process = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().parse::<u32>().is_ok();
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(of_process)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Children of this process, zombies among them.
fn children() -> Vec<String> {
    let stats = proc_dirs().filter_map(|dir| fs::read_to_string(dir.join("stat")).ok());
    let me = std::process::id().to_string();
    stats
        .filter(|stat| stat.rsplit(')').next().unwrap().split_whitespace().nth(1) == Some(me.as_str()))
        .collect()
}

const NAME: &str = "whatever_a_program_does_it_is_ended_and_its_words_come_back";

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => serve(&PathBuf::from(arguments.next().unwrap()), &arguments.next().unwrap()),
        Some(GUARD) => stand_guard().unwrap(),
        // What it is to be filtered by; options of the usual harness say nothing to this one.
        Some(filter) if !filter.starts_with('-') && !NAME.contains(filter) => {}
        _ => test(),
    }
}

fn test() {
    let world = World::new();
    arguments_and_environment(&world);
    failures(&world);
    output(&world);
    time(&world);
    children_of_its_own(&world);
    aborts(&world);
    a_server_that_is_killed(&world);
    println!("test {NAME} ... ok");
}

fn arguments_and_environment(world: &World) {
    let script = r#"for a; do printf '<%s>' "$a"; done; echo; env | sort; pwd; readlink /proc/self/fd/0
                    read line && echo "read: $line"; cut -d ' ' -f 1,5 /proc/$$/stat
                    nice; cut -d ' ' -f 19 /proc/$(cut -d ' ' -f 5 /proc/$$/stat)/stat; exit 0"#;
    let mut call = world.call(script);
    let odd = ["--destdir", "/a b", "", "it's \"q\"", "-x", "--", "zwölf$(id)\n*"];
    call.arguments = odd.iter().map(OsString::from).collect();
    call.surroundings.address = Some("10.0.0.1:4500".to_owned());
    call.surroundings.locality = Some("zoneid=z1".to_owned());
    let report = run(&call, &QUICK, &Abort::new().unwrap());
    let text = report.output.to_string();
    assert!(report.succeeded(), "{report:?}");
    let own = "<--destdir></a b><><it's \"q\"><-x><--><zwölf$(id)\n*>";
    let told = format!(
        "<--path><{}><--version><7.3.79><--role><tlog><--uid><de01497a344441362c2deffed56a529b>\n",
        call.path.display()
    );
    assert!(text.starts_with(&format!("{own}{told}")), "{text}");
    let after: Vec<_> = text[own.len() + told.len()..].lines().collect();
    // PWD is the shell's own.
    assert_eq!(after[0], "CHRONOFS_SNAPSHOT_ADDRESS=10.0.0.1:4500");
    assert_eq!(after[1], "CHRONOFS_SNAPSHOT_LOCALITY=zoneid=z1");
    assert!(after[2].starts_with("PATH=/usr/local/sbin:") && after[3] == "PWD=/", "{text}");
    assert_eq!(after[4..6], ["/", "/dev/null"], "{text}");
    let (pid, group) = after[6].split_once(' ').unwrap();
    let own = rustix::process::getpgrp().as_raw_nonzero().to_string();
    assert!(pid != group && group != own, "it is in a group that its guard leads: {pid}, {group}");
    let own = rustix::process::getpriority_process(None).unwrap();
    let nice: Vec<i32> = after[7..].iter().map(|nice| nice.parse().unwrap()).collect();
    assert!(nice[0] == own && nice[1] == (own + 10).min(19), "only the guard gives way: {nice:?}, not {own}");
}

fn failures(world: &World) {
    let report = world.run("echo first; echo the disk is gone >&2; exit 3", &QUICK);
    assert_eq!(report.end, End::Exited(3));
    assert_eq!(report.output.last_lines(2), ["first", "the disk is gone"]);
    assert!(!report.succeeded());
    assert_eq!(report.end.to_string(), "exited with 3");
    assert_eq!(world.run("kill -9 $$", &QUICK).end, End::Signalled(9));
    let mut call = world.call("exit 0");
    let path = call.program.path().to_owned();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    call.arguments.push("x".into());
    let before = descriptors();
    let report = run(&call, &QUICK, &Abort::new().unwrap());
    assert!(matches!(&report.end, End::NotStarted(why) if why.contains("ermission")), "{report:?}");
    assert_eq!(descriptors(), before);
}

fn output(world: &World) {
    let report =
        world.run("echo begin; head -c 10000000 /dev/zero | tr '\\0' x; echo; echo end; exit 0", &QUICK);
    assert!(report.succeeded(), "{:?}", report.end);
    assert_eq!(report.output.bytes(), 10_000_000 + 11);
    let text = report.output.to_string();
    assert!(text.starts_with("begin\nxxx") && text.ends_with("x\nend\n") && text.len() < 64 << 10);
    // It closes what it could write to, and is waited for nevertheless.
    let report = world.run("exec >&- 2>&-; sleep 0.5; exit 7", &QUICK);
    assert_eq!(report.end, End::Exited(7));
    assert!(report.took >= Duration::from_millis(500));
}

fn time(world: &World) {
    let short = Limits { run: Duration::from_secs(1), ..QUICK };
    let report = world.run("echo working; sleep 60", &short);
    assert_eq!(report.end, End::TimedOut(short.run));
    assert_eq!(report.output.to_string(), "working\n");
    assert!(report.took < Duration::from_secs(5), "{:?}", report.took);
    // Whoever finishes after its time has failed, also with status 0.
    let report = world.run("trap 'echo late; exit 0' TERM; while :; do sleep 0.05; done", &short);
    assert_eq!(report.end, End::TimedOut(short.run));
    assert!(report.output.to_string().ends_with("late\n"), "{report:?}");
    let short = Limits { terminate: Duration::from_millis(500), ..short };
    let report = world.run("trap '' TERM; echo deaf; while :; do sleep 0.05; done", &short);
    assert_eq!(report.end, End::TimedOut(short.run));
    assert!(report.took >= short.run + short.terminate && report.took < Duration::from_secs(8));
    // Stopped processes hear SIGKILL too.
    assert_eq!(world.run("kill -STOP $$", &short).end, End::TimedOut(short.run));
    // Full of output and slow to end: neither waits for the other.
    let report = world.run("trap '' TERM; while :; do echo yes; done", &short);
    assert_eq!(report.end, End::TimedOut(short.run));
}

fn children_of_its_own(world: &World) {
    // Two commands, so that the shell stays, with our folder in its command line.
    let marked = format!("sleep 60 # {}\n:", world.root.display());
    let background = format!("sh -c '{marked}' > /dev/null 2>&1 &");
    let report = world.run(&format!("{background} exit 0"), &QUICK);
    assert!(matches!(report.end, End::LeftRunning(left) if left >= 1), "{report:?}");
    // It holds the output, and is deaf.
    let report = world.run(&format!("sh -c 'trap \"\" TERM; {marked}' & echo out; exit 0"), &QUICK);
    assert!(matches!(report.end, End::LeftRunning(_)), "{report:?}");
    assert_eq!(report.output.to_string(), "out\n");
    let report = world.run(&format!("{background} exit 4"), &QUICK);
    assert_eq!(report.end, End::Exited(4), "its own failure is told");
    // A child that ends by itself a moment later, as the other end of a pipe does, is nothing bad.
    let report = world.run("(sleep 0.2; echo done) & exit 0", &QUICK);
    assert!(report.succeeded(), "{report:?}");
    assert_eq!(report.output.to_string(), "done\n");
    let short = Limits { run: Duration::from_millis(400), terminate: Duration::from_millis(300), ..QUICK };
    let report = world.run(&format!("sh -c 'trap \"\" TERM; {marked}' & wait"), &short);
    assert_eq!(report.end, End::TimedOut(short.run));
    // What goes to its group finds the guard there, which does not mind; without one it does not go on.
    let report = world.run("trap '' TERM HUP INT; kill 0; kill -HUP 0; echo still here; exit 0", &QUICK);
    assert!(report.succeeded() && report.output.to_string() == "still here\n", "{report:?}");
    assert_eq!(world.run("kill -9 0", &QUICK).end, End::Signalled(9));
    let report = world.run("kill -9 $(cut -d ' ' -f 5 /proc/$$/stat); sleep 60", &QUICK);
    assert!(report.end == End::Unguarded && report.took < Duration::from_secs(3), "{report:?}");
    // A session of its own puts it out of nobody's reach.
    let report = world.run(&format!("exec setsid sh -c '{marked}'"), &short);
    assert_eq!(report.end, End::TimedOut(short.run));
    // One that left the group and holds the pipe does not hold us.
    let escaped = format!("setsid sh -c 'sleep 8 # {}\n:' & sleep 0.2; exit 0", world.root.display());
    let begun = Instant::now();
    let report = run(&world.call(&escaped), &QUICK, &Abort::new().unwrap());
    assert!(report.succeeded() && begun.elapsed() < Duration::from_secs(7), "{report:?}");
    while !world.processes().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn aborts(world: &World) {
    let call = world.call("echo on; sleep 60");
    let abort = Abort::new().unwrap();
    let other = abort.clone();
    let puller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        other.abort().unwrap();
    });
    let report = run(&call, &QUICK, &abort);
    puller.join().unwrap();
    assert_eq!((report.end, report.output.to_string()), (End::Aborted, "on\n".to_owned()));
    assert!(report.took < Duration::from_secs(5));
    // An abort before the start is not lost.
    assert_eq!(run(&call, &QUICK, &abort).end, End::Aborted);
    assert_eq!(children(), Vec::<String>::new());
}

/// A server that runs a program of this folder, and nothing else.
fn serve(root: &Path, script: &str) {
    let world = World { _folder: None, root: root.to_owned() };
    let report = run(&world.call(script), &QUICK, &Abort::new().unwrap());
    panic!("it was to be killed before its program ends: {report:?}");
}

fn a_server_that_is_killed(world: &World) {
    let marked = |seconds| format!("sleep {seconds} # {}\n:", world.root.display());
    let begun = format!("touch '{}/begun'", world.root.display());
    let deaf = format!("trap '' TERM HUP INT; sh -c '{}' & {begun}; {}", marked(61), marked(62));
    // A session of its own, which it does not have to leave the program for.
    let child = format!("sh -c \"sleep 63; : {}\"", world.root.display());
    let session = format!("exec setsid sh -c '{begun}; {child} & {}'", marked(64));
    let stopped = format!("sh -c '{}' & {begun}; kill -STOP 0", marked(65));
    for script in [&deaf, &session, &stopped] {
        for pause_ms in [0, 30] {
            let mut command = Command::new("/proc/self/exe");
            let mut server = command.arg("serve").arg(&world.root).arg(script).spawn().unwrap();
            let mark = world.root.join("begun");
            wait_until("the program to run", || mark.exists());
            fs::remove_file(mark).unwrap();
            std::thread::sleep(Duration::from_millis(pause_ms));
            server.kill().unwrap();
            server.wait().unwrap();
            wait_until(&format!("nothing to be left of: {script}"), || world.processes().is_empty());
        }
    }
    // At any moment, also while the program is only being started.
    for ms in 0..40 {
        let mut server =
            Command::new("/proc/self/exe").arg("serve").arg(&world.root).arg(&deaf).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        server.kill().unwrap();
        server.wait().unwrap();
        wait_until(&format!("nothing to be left after {ms} ms"), || world.processes().is_empty());
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
