//! Every command of the user guide runs, in the order of the book, on a machine that has nothing yet: namespaces of
//! its own for mounts, processes and network, with empty folders laid over /etc, /var/lib, /var/log, /var/cache, /usr/local,
//! /srv, /mnt and /tmp.
//!
//! Blocks fenced as `console` hold commands after `$ `; all must succeed, those in `console,fails` must fail.
//! Those in `text` blocks need more than one machine, or what nobody has here: drills run what they do, and a test of the command line
//! holds that it takes every one of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use chronofs_e2e::process::{chronofs_binary, text_of};

struct Documented {
    page: String,
    command: String,
    fails: bool,
}

fn guide() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src")
}

/// The pages in the order of the book.
fn pages() -> Vec<String> {
    let summary = fs::read_to_string(guide().join("SUMMARY.md")).unwrap();
    summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

/// What a fenced block is.
#[derive(Clone, Copy, PartialEq)]
enum Block {
    Succeeds,
    Fails,
    Text,
}

fn commands_of(page: &str) -> Vec<Documented> {
    let text = fs::read_to_string(guide().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
    let mut found: Vec<Documented> = Vec::new();
    let mut block: Option<Block> = None;
    let mut continued = false;
    for line in text.lines() {
        if let Some(fence) = line.strip_prefix("```") {
            block = match (block, fence) {
                (Some(_), _) => None,
                (None, "console") => Some(Block::Succeeds),
                (None, "console,fails") => Some(Block::Fails),
                (None, "text") => Some(Block::Text),
                (None, other) => panic!("{page}: a block is console, console,fails or text, not '{other}'"),
            };
            continue;
        }
        let Some(block) = block.filter(|b| *b != Block::Text) else { continue };
        if let Some(command) = line.strip_prefix("$ ") {
            let fails = block == Block::Fails;
            found.push(Documented { page: page.to_owned(), command: command.to_owned(), fails });
        } else if continued {
            let last = found.last_mut().expect("a continued command");
            let _ = write!(last.command, "\n{line}");
        }
        continued = line.ends_with('\\');
    }
    found
}

/// One script of all commands. After a server was started in the background it waits until that listens, as a
/// person's fingers do.
fn script(commands: &[Documented]) -> String {
    let mut out = String::from(PREPARE);
    for Documented { page, command, fails } in commands {
        let quoted = command.replace('\'', "'\\''");
        let _ = writeln!(out, "echo '>>> {page}: {quoted}'");
        match fails {
            true => {
                let _ = writeln!(
                    out,
                    "if {command}\nthen echo 'succeeded, but the guide says that it fails'; exit 1; fi"
                );
            }
            false => {
                let _ = writeln!(out, "{command}");
            }
        }
        let words: Vec<&str> = command.split_whitespace().collect();
        let listens = words.iter().position(|w| *w == "--bind-addr").and_then(|at| words.get(at + 1));
        if let (Some(address), true) = (listens, command.ends_with('&')) {
            let _ = writeln!(out, "until_listens {address}");
        }
    }
    out.push_str("echo ALL COMMANDS RAN\n");
    out
}

const PREPARE: &str = r#"
set -euo pipefail
ip link set lo up
mount -t tmpfs scratch "$SCRATCH"
over() { # an empty layer over folder $1: changes stay in this namespace
    local name=${1//\//_}
    mkdir -p "$SCRATCH/$name.upper" "$SCRATCH/$name.work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$SCRATCH/$name.upper,workdir=$SCRATCH/$name.work" "$1"
}
over /etc
over /var/lib
over /var/log
over /var/cache
over /usr/sbin
over /usr/local
mount -t tmpfs srv /srv
mount -t tmpfs mnt /mnt
mkdir -p "$SCRATCH/bin" "$SCRATCH/home" "$SCRATCH/tmp"
# Before /tmp is covered: the executable may lie below it.
cp "$BIN" "$SCRATCH/bin/chronofs"
mount --bind "$SCRATCH/tmp" /tmp
PATH=$SCRATCH/bin:$PATH
cd "$SCRATCH/home"
until_listens() {
    local n
    for ((n = 0; n < 300; n++)); do
        if (exec 3<> "/dev/tcp/${1%:*}/${1#*:}") 2> /dev/null; then sleep 0.3; return; fi
        sleep 0.1
    done
    echo "nothing listens at $1"; tail -n 20 -- *.log; exit 1
}
trap 'echo "exit status $?"; tail -n 15 -- *.log' EXIT
"#;

#[test]
fn every_dependency_has_its_reason_in_the_architecture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let (_, dependencies) = manifest.split_once("[workspace.dependencies]\n").unwrap();
    let (_, reasons) = architecture.split_once("## Dependencies\n").unwrap();
    let (dependencies, _) = dependencies.split_once("\n[").unwrap();
    let (reasons, _) = reasons.split_once("\n## ").unwrap();
    let of_others = |name: &&str| !name.starts_with('#') && !name.starts_with("chronofs-");
    let names = dependencies.lines().filter_map(|line| line.split_once(" = ").map(|(name, _)| name));
    let mut left: Vec<&str> = reasons
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next())
        .flat_map(|crates| crates.split('`'))
        .collect();
    left.retain(|name| !name.is_empty() && *name != ", ");
    for name in names.filter(of_others) {
        let at = left.iter().position(|listed| *listed == name);
        left.remove(at.unwrap_or_else(|| panic!("ARCHITECTURE.md gives no reason for {name}")));
    }
    assert!(left.is_empty(), "ARCHITECTURE.md lists what is not used: {left:?}");
}

#[test]
fn every_command_of_the_guide_runs() {
    chronofs_e2e::require_root_and_fuse();
    let commands: Vec<Documented> = pages().iter().flat_map(|page| commands_of(page)).collect();
    assert!(commands.len() > 60, "only {} commands were found in the guide", commands.len());
    let scratch = tempfile::Builder::new().prefix("chronofs-docs-").tempdir_in("/var/tmp").unwrap();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "240", "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]);
    command.args(["--propagation", "private", "bash", "-c", &script(&commands)]);
    command.env("BIN", chronofs_binary()).env("SCRATCH", scratch.path()).env_remove("CHRONOFS_TOKEN");
    command.env_remove("CHRONOFS_CONFIG_DIR").stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = text_of(&output);
    assert!(output.status.success() && said.contains("ALL COMMANDS RAN"), "{}:\n{said}", output.status);
}
