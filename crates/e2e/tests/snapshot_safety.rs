//! Who may have what run for a disk snapshot, with which arguments; and what of a program that misbehaves stays in a server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use chronofs_e2e::Installation;
use chronofs_e2e::installation::token_in;
use chronofs_e2e::process::{Process, run, text, text_of, wait_for};
use chronofs_e2e::snapshot::{Programs, uid_in};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Notes each of its arguments between angle brackets, a call to a line.
const TELLER: &str = r#"#!/bin/sh
[ "$CHRONOFS_SNAPSHOT_DEADLINE" -gt "$(date +%s)" ] || exit 9
line=$(for a; do printf '<%s>' "$a"; done | tr '\n' '~')
printf '%s\n' "$line" >> "$(dirname "$0")/told"
"#;

fn create<'a>(program: &'a Path, arguments: &[&'a str]) -> Vec<&'a str> {
    [&["snapshot", "create", "--", text(program)][..], arguments].concat()
}

#[test]
fn only_an_account_with_the_right_to_it_takes_ends_or_forgets_a_snapshot() {
    let programs = Programs::new();
    let program = programs.add("teller", TELLER);
    let installation = Installation::start_with_whitelist(&[&program], &[]);
    installation.create_volume("v", &[]);
    let account =
        |role: &str| token_in(&installation.ok(&["configure", "create", "account", role, "--role", role]));
    let (viewer, operator) = (account("viewer"), account("operator"));
    let volume = installation.create_token("v", &[]);
    let store = token_in(&installation.ok(&["configure", "create", "metadata-store", "other"]));
    installation.ok(&["configure", "delete", "metadata-store", "other"]);
    let ask = |token: &str, arguments: &[&str]| {
        let output = run(installation.command(arguments).env("CHRONOFS_TOKEN", token));
        (output.status.success(), text_of(&output))
    };
    let whole = ask(&operator, &create(&program, &[]));
    assert!(whole.0, "{}", whole.1);
    let uid = uid_in(&whole.1);
    let told = programs.told().len();
    for words in [create(&program, &[]), vec!["snapshot", "abort", &uid], vec!["snapshot", "delete", &uid]] {
        let (done, said) = ask(&viewer, &words);
        assert!(!done && said.contains("needs the role operator"), "{words:?}: {said}");
        for (whose, token) in [("a volume's token", &volume), ("a metadata store's token", &store)] {
            let (done, said) = ask(token, &words);
            assert!(!done, "{whose}, {words:?}: {said}");
        }
    }
    assert_eq!(programs.told().len(), told, "nothing ran");
    // A refusal has a code and the UID, too, also for programs.
    let wanted = "d".repeat(32);
    let words = ["snapshot", "create", "--json", "--uid", &wanted, "--", text(&program)];
    let output = run(installation.command(&words).env("CHRONOFS_TOKEN", &viewer));
    let said = text_of(&output);
    assert!(said.contains("Snapshot command failed 4000 (An unknown error occurred)."), "{said}");
    assert!(said.contains(&format!("with UID {wanted}.")), "{said}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&object["uid"], &object["code"]), (&wanted.as_str().into(), &4000.into()));
    assert!(object["why"].to_string().contains("needs the role operator"), "{object}");
    let (done, said) = ask(&operator, &["snapshot", "create", "--json", "--", "/bin/not-listed"]);
    assert!(!done && said.contains(r#""code": 2505"#) && said.contains(r#""uid": ""#), "{said}");
    let (done, said) = ask(&viewer, &["snapshot", "describe", &uid]);
    assert!(done && said.contains("COMPLETE"), "{said}");
    let (done, said) = ask(&operator, &["snapshot", "delete", &uid]);
    assert!(done, "{said}");
}

#[test]
fn a_machine_that_does_not_list_a_program_runs_it_for_nobody() {
    let programs = Programs::new();
    let program = programs.add("teller", TELLER);
    // The admin server would: its metadata server would not.
    let installation = Installation::start_with_whitelist(&[], &["--whitelist-binpath", text(&program)]);
    let begun = Instant::now();
    let said = installation.fails(&create(&program, &[]));
    assert!(said.contains("failed 2505") && said.contains("is not in whitelist_binpath"), "{said}");
    assert!(said.contains(&format!("store at {}", installation.meta_address)), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(programs.told().len(), 0, "nothing ran");
}

#[test]
fn what_could_be_another_program_than_the_listed_one_is_refused() {
    let programs = Programs::new();
    let program = programs.add("teller", TELLER);
    let folder = program.parent().unwrap();
    let link = folder.join("link");
    symlink(&program, &link).unwrap();
    let [writable, foreign] = ["writable", "foreign"].map(|name| programs.add(name, TELLER));
    let installation = Installation::start_with_whitelist(&[&program, &link, &writable, &foreign], &[]);
    // Since the servers began to run.
    fs::set_permissions(&writable, fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
    let path = text(&program);
    let refused = |path: &str, words: &str| {
        let said = installation.fails(&["snapshot", "create", "--", path]);
        assert!(said.contains("failed 2505") && said.contains(words), "{path}: {said}");
    };
    refused(text(&link), "is in truth");
    refused(text(&writable), "can be written by others");
    refused(text(&foreign), "belongs to user 12345");
    let plain = "is not a plain absolute path";
    refused(&format!("{}/../{}/teller", text(folder), folder.file_name().unwrap().to_str().unwrap()), plain);
    for spelled in [
        format!("{path} "),
        format!(" {path}"),
        format!("{path}\n"),
        format!("/{path}"),
        format!("\"{path}\""),
    ] {
        refused(&spelled, plain);
    }
    for spelled in [
        format!("{path}\""),
        format!("{path}'"),
        format!("{path};id"),
        format!("{path} --x"),
        "/bin/sh".to_owned(),
    ] {
        refused(&spelled, "is not in whitelist_binpath");
    }
    refused("teller", plain);
    assert_eq!(programs.told().len(), 0, "nothing ran");
    assert_eq!(uid_in(&installation.ok(&create(&program, &[]))).len(), 32);
}

#[test]
fn arguments_are_data_from_end_to_end() {
    let programs = Programs::new();
    let program = programs.add("teller", TELLER);
    let installation = Installation::start_with_whitelist(&[&program], &[]);
    let made = installation.path("made");
    let (substitution, ticks) = (format!("$(touch {})", text(&made)), format!("`touch {}`", text(&made)));
    let and = format!("; touch {}", text(&made));
    let odd = [
        "two words",
        " ",
        "",
        "\"double\"",
        "it's",
        "back\\slash",
        "-x",
        "--path",
        "--",
        "--uid=other",
        "ünï 日本 🜁",
        "*",
        "~",
        "a\nb",
        "%s%n",
        "{a,b}",
        &substitution,
        &ticks,
        &and,
        "$HOME",
        "| cat",
        "> out",
        "&",
    ];
    let uid = uid_in(&installation.ok(&create(&program, &odd)));
    let expected: String = odd.iter().map(|argument| format!("<{}>", argument.replace('\n', "~"))).collect();
    let told = programs.told();
    assert_eq!(told.len(), 3, "{told:?}");
    for (role, line) in ["storage", "tlog", "coord"].iter().map(|role| {
        let end = format!("<--role><{role}><--uid><{uid}>");
        (role, told.iter().find(|line| line.ends_with(&end)).unwrap_or_else(|| panic!("{role}: {told:?}")))
    }) {
        assert!(line.starts_with(&format!("{expected}<--path></")), "{role}: {line}");
        let server = &line[expected.len()..];
        assert_eq!(server.matches('<').count(), 8, "{role}: {line}");
    }
    assert!(!made.exists(), "an argument was run");
    // In the operators' shell blanks part words outside of double quotes, and nothing else means anything.
    let line = format!(r#"snapshot {} "two words" "" $(id) -n"#, text(&program));
    uid_in(&installation.ok(&["cli", "--exec", &line]));
    assert!(programs.told()[3..].iter().all(|line| line.starts_with("<two words><><$(id)><-n><--path>")));
}

/// By its first argument; all of them end, or are ended.
const MISCHIEF: &str = r#"#!/bin/sh
case "$1" in
    exit3) echo "there is no room for it" >&2; exit 3 ;;
    deaf) trap '' TERM; while :; do sleep 0.1; done ;;
    grandchild) sh -c 'trap "" TERM; sleep 71; :' & exit 0 ;;
    chatty) head -c 10000000 /dev/zero | tr '\0' x; echo; echo the end ;;
    mute) exec >&- 2>&-; sleep 0.3; exit 4 ;;
    late) trap 'exit 0' TERM; while :; do sleep 0.1; done ;;
    stopped) kill -STOP $$ ;;
    wait) sleep 4 ;;
esac
exit 0
"#;

/// How many descriptors a process has, and its children, zombies among them.
fn held_by(process: &Process) -> (usize, Vec<String>) {
    let pid = process.pid().unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let stats = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let parent =
        |stat: &String| stat.rsplit(')').next().unwrap().split_whitespace().nth(1).map(str::to_owned);
    (open, stats.filter(|stat| parent(stat) == Some(pid.to_string())).collect())
}

#[test]
fn whatever_a_program_does_the_set_fails_and_nothing_of_it_stays_in_the_servers() {
    let programs = Programs::new();
    let program = programs.add("mischief", MISCHIEF);
    let installation = Installation::start_with_whitelist(&[&program], &["--snap-create-max-timeout", "2"]);
    let failed = |way: &str, words: &str| {
        let said = installation.fails(&create(&program, &[way]));
        let code = ["2501", "2502", "2503"].into_iter().any(|code| said.contains(&format!("failed {code}")));
        assert!(code && said.contains(words), "{way}: {said}");
    };
    let succeeds = || uid_in(&installation.ok(&create(&program, &["nothing"])));
    let images_are_gone = || {
        for folder in ["meta/engine/images", "admin/images"] {
            wait_for("images to go", || {
                let mut left = fs::read_dir(installation.path(folder)).unwrap();
                left.all(|entry| entry.unwrap().path().is_file()).then_some(())
            });
        }
    };
    succeeds();
    images_are_gone();
    let servers = [&installation.admin, &installation.meta];
    let before = servers.map(|server| held_by(server).0);
    // Each takes the time until SIGKILL.
    failed("deaf", "did not end within 2 s");
    failed("stopped", "did not end within 2 s");
    for _ in 0..2 {
        failed("exit3", "exited with 3");
        failed("exit3", "there is no room for it");
        failed("late", "did not end within 2 s");
        failed("grandchild", "still ran");
        failed("mute", "exited with 4");
        let uid = uid_in(&installation.ok(&create(&program, &["chatty"])));
        assert_ne!(uid, succeeds());
        images_are_gone();
    }
    for (server, before) in servers.into_iter().zip(before) {
        let (open, children) = held_by(server);
        assert_eq!(children, Vec::<String>::new());
        // Connections come and go; a dozen failures with three programs each would show.
        assert!(open <= before + 3, "{open} descriptors, {before} before");
    }
    let left = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x0071\x00"));
    assert_eq!(left.count(), 0, "a grandchild is left");
}

/// A snapshot's client on its way, whose programs run.
fn begin(installation: &Installation, uid: &str, program: &Path) -> Child {
    let arguments = ["snapshot", "create", "--uid", uid, "--", text(program), "wait"];
    let mut command = installation.command(&arguments);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the snapshot to run its program", || {
        let shown = installation.ok(&["snapshot", "status", "--json"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        (shown["phase"] == "run" && shown["intent"]["attempt"]["uid"] == uid).then_some(())
    });
    child
}

#[test]
fn a_client_that_is_interrupted_ends_the_snapshot_and_one_that_is_killed_leaves_it_to_its_end() {
    let programs = Programs::new();
    let program = programs.add("mischief", MISCHIEF);
    let installation = Installation::start_with_whitelist(&[&program], &[]);
    let two = "b".repeat(32);
    for (digit, signal) in [("a", Signal::INT), ("c", Signal::TERM)] {
        let one = digit.repeat(32);
        let child = begin(&installation, &one, &program);
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text_of(&output);
        let told = said.contains("aborted on demand") && said.contains(&one) && !said.contains("advice");
        assert!(!output.status.success() && told, "{said}");
    }
    // The next one begins at once.
    let mut child = begin(&installation, &two, &program);
    child.kill().unwrap();
    child.wait().unwrap();
    let said = installation.fails(&create(&program, &["nothing"]));
    assert!(said.contains("failed 1000") && said.contains(&two), "{said}");
    // Who asks again with the same words hears how it ended; it was done once.
    let again = ["snapshot", "create", "--uid", &two, "--", text(&program), "wait"];
    assert_eq!(uid_in(&installation.ok(&again)), two);
    uid_in(&installation.ok(&create(&program, &["nothing"])));
    let listed: Value = serde_json::from_str(&installation.ok(&["snapshot", "list", "--json"])).unwrap();
    let states: Vec<&str> =
        listed.as_array().unwrap().iter().map(|set| set["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["COMPLETE", "COMPLETE", "ABORTED", "ABORTED"]);
}
