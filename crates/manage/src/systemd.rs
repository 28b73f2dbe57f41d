//! Services where systemd runs: by its own tools, systemctl(1) and journalctl(1).

use crate::{LAST_WORDS, STARTED_AFTER, State, unit};
use anyhow::{Context, Result, bail};
use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn start(name: &str) -> Result<()> {
    // A unit file may be newer than what systemd has read.
    systemctl(&["daemon-reload"])?;
    systemctl(&["start", &unit::file(name)])?;
    // For systemd a server has started before it has done anything; one that ends at once would be started again for ever.
    let begun = Instant::now();
    while begun.elapsed() < STARTED_AFTER {
        if !matches!(state(name)?, State::Running(_)) {
            let said = last_words(name, LAST_WORDS)?;
            stop(name)?;
            bail!("{name} ended as soon as it was started:\n{said}");
        }
        sleep(LOOK_EVERY);
    }
    Ok(())
}

pub(crate) fn stop(name: &str) -> Result<()> {
    systemctl(&["stop", &unit::file(name)]).map(drop)
}

pub(crate) fn state(name: &str) -> Result<State> {
    let shown = systemctl(&["show", "--property=ActiveState,MainPID", &unit::file(name)])?;
    let value = |key: &str| shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let pid = value("MainPID").and_then(|pid| pid.parse().ok()).unwrap_or(0);
    match (value("ActiveState"), pid) {
        (Some("inactive" | "failed"), _) => Ok(State::Stopped),
        (Some(_), 0) => Ok(State::Restarting),
        (Some(_), pid) => Ok(State::Running(pid)),
        (None, _) => bail!("systemctl show does not say how {} is: {shown}", unit::file(name)),
    }
}

pub(crate) fn show_log(name: &str, lines: u32, follow: bool) -> Result<Infallible> {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output=cat", "--unit", &unit::file(name), "--lines", &lines.to_string()]);
    if follow {
        command.arg("--follow");
    }
    Err(command.exec()).context("cannot run journalctl")
}

pub(crate) fn last_words(name: &str, lines: usize) -> Result<String> {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output=cat", "--unit", &unit::file(name), "--lines", &lines.to_string()]);
    let said = command.output().context("cannot run journalctl")?;
    Ok(String::from_utf8_lossy(&said.stdout).trim_end().to_owned())
}

fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).output().context("cannot run systemctl")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("systemctl {} failed: {}", arguments.join(" "), why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
