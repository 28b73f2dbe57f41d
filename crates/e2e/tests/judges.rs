//! Test suites that others wrote, on a mount: pjdfstest and fsx.
//!
//! scripts/test installs both into target/tools and puts them into PATH.
//! Long variant: `CHRONOFS_FSX_OPS=1000000 cargo test --workspace --test judges`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use chronofs_e2e::{Installation, Rng, env_number, seed};

fn judges(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("judges").join(name)
}

/// The tool from PATH or target/tools; a clear failure where it is missing.
fn tool(name: &str) -> Command {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin").join(name);
    let path = std::env::var_os("PATH").unwrap();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join(name));
    let found = in_path.chain([installed]).find(|path| path.is_file());
    Command::new(
        found.unwrap_or_else(|| panic!("{name} is not installed: run `scripts/test packages tools` first")),
    )
}

/// These run for minutes, so they have no limit of their own here.
fn run_long(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// The names of tests that did not end as wanted, and how many there were in all, from pjdfstest's report.
fn failed_and_passed(report: &str) -> (BTreeSet<String>, usize) {
    let mut failed = BTreeSet::new();
    let mut passed = 0;
    for line in report.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "ok"] if name.contains("::") => passed += 1,
            [name, "FAILED", ..] | [name, "failed", ..] if name.contains("::") => {
                failed.extend([name.to_owned()])
            }
            _ => {}
        }
    }
    (failed, passed)
}

#[test]
fn pjdfstest_passes_but_for_what_limits_names() {
    let installation = Installation::start();
    installation.create_volume("v", &[]);
    let mount = installation.mount("v", &[]);
    fs::create_dir(mount.path("pjd")).unwrap();
    let secondary = tempfile::tempdir().unwrap();
    let mut command = tool("pjdfstest");
    command.arg("-c").arg(judges("pjdfstest.toml")).arg("-p").arg(mount.path("pjd"));
    command.arg("-s").arg(secondary.path());
    let output = run_long(&mut command);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let (failed, passed) = failed_and_passed(&report);
    let summary = report.lines().rev().find(|line| line.starts_with("Summary")).unwrap_or("no summary");
    println!("pjdfstest: {summary}");
    assert!(
        passed + failed.len() >= 380,
        "{passed} passed, {} failed: too few tests ran:\n{report}",
        failed.len()
    );
    assert!(
        summary.contains(&format!("{} failed", failed.len())),
        "{summary}: but the report names {failed:?}"
    );

    let allowed = fs::read_to_string(judges("pjdfstest.allowed")).unwrap();
    let allowed: BTreeSet<String> =
        allowed.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(str::to_owned).collect();
    let limits =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/limits.md")).unwrap();
    for name in &allowed {
        assert!(
            limits.contains(name.as_str()),
            "{name} is allowed to fail, but docs/src/limits.md does not say why"
        );
    }
    let unexpected: Vec<_> = failed.difference(&allowed).collect();
    let better: Vec<_> = allowed.difference(&failed).collect();
    assert!(unexpected.is_empty(), "these fail:\n{unexpected:#?}\n{report}");
    assert!(better.is_empty(), "these pass now; take them from the list and from limits.md: {better:?}");
}

/// Runs fsx with `ops` operations on `file`, which it leaves there.
fn fsx(file: &Path, ops: u64, seed: u64, artifacts: &Path) {
    let mut command = tool("fsx");
    command.args(["-N", &ops.to_string(), "-S", &seed.to_string(), "-f"]).arg(judges("fsx.toml"));
    command.arg("-P").arg(artifacts).arg(file);
    let output = run_long(&mut command);
    assert!(
        output.status.success(),
        "fsx on {} with seed {seed}, {ops} operations: {}\n{}\n{}",
        file.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn fsx_finds_no_fault_now_or_in_the_past() {
    let seed = seed("fsx");
    let runs = 5;
    let ops = env_number("CHRONOFS_FSX_OPS", 10_000) / runs;
    let installation = Installation::start();
    installation.create_volume("v", &["--block-size", "256KiB"]);
    let live = installation.mount("v", &[]);
    let local = tempfile::tempdir().unwrap();
    let mut draw = Rng::new(seed);
    let mut seen = Vec::new();
    for _ in 0..runs {
        let run_seed = draw.below(1 << 31);
        fsx(&live.path("fsx"), ops, run_seed, local.path());
        let at = live.instant();
        let content = fs::read(live.path("fsx")).unwrap();
        // The same operations on a local file system leave the same bytes.
        fsx(&local.path().join("fsx"), ops, run_seed, local.path());
        let same = fs::read(local.path().join("fsx")).unwrap() == content;
        assert!(
            same,
            "seed {run_seed}: the mount's file is not what a local file system has after {ops} operations"
        );
        seen.push((at, content));
    }
    for (at, content) in &seen {
        let mut past = installation.mount_past(&live, at);
        assert!(fs::read(past.path("fsx")).unwrap() == *content, "fsx's file at {at} is not what it was");
        past.unmount();
    }
}
