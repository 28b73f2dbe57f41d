//! The servers of one machine as services: started, stopped, looked at.
//!
//! A service is a unit file `chronofs-NAME.service`; it says what runs. Where systemd runs, systemd does the work
//! ([`systemd`]); elsewhere, as in a container, a keeper does what systemd would ([`keeper`]): one process for each service,
//! which starts the server again when it ends by itself. So a machine has one description of its services in both cases.
//! Executables of services are replaced by [`Installing`]; where they come from is not this crate's business.

mod health;
mod install;
mod keeper;
mod systemd;
mod unit;
mod upgrade;

use anyhow::{Context, Result, bail};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use install::{Installed, Installing, version_of};
pub use keeper::keep;

/// Servers that others need come first: they are started in this order and stopped in the other.
const ORDER: [&str; 3] = ["admin", "tlog", "meta"];

/// A server that runs for so long has started.
const STARTED_AFTER: Duration = Duration::from_secs(1);
/// So many of the last lines of what a server said go into a message.
const LAST_WORDS: usize = 10;

/// Where things are on this machine.
#[derive(Clone, Debug)]
pub struct Places {
    /// Unit files.
    pub units: PathBuf,
    /// Which processes run, where systemd does not. Gone after a restart of the machine.
    pub run: PathBuf,
    /// What servers say, where systemd does not run.
    pub logs: PathBuf,
    /// Whether systemd does the work.
    pub systemd: bool,
}

/// Whether systemd runs this machine (sd_booted(3)).
pub fn systemd_runs() -> bool {
    fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir())
}

/// One service of this machine.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    places: Places,
    /// The executable of this process, for keepers. Asked for once, and early: after it was replaced by another it has no name.
    own: PathBuf,
}

/// How a service is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// It runs; the server is this process.
    Running(u32),
    /// Its server ended by itself and is started again soon.
    Restarting,
    /// Nothing runs.
    Stopped,
}

impl Service {
    /// The services of this machine that are named, or all, in the order in which they are started.
    ///
    /// # Errors
    /// One that is named has no unit file, or there is none at all.
    pub fn find(places: &Places, named: &[String]) -> Result<Vec<Service>> {
        let mut known = unit::names(&places.units)?;
        known.sort_by_key(|name| {
            (ORDER.iter().position(|first| first == name).unwrap_or(ORDER.len()), name.clone())
        });
        let units = places.units.display();
        if let Some(name) = named.iter().find(|name| !known.contains(name)) {
            bail!(
                "there is no unit file {units}/{} on this machine; chronofs admin|meta init systemd --output {units} makes one",
                unit::file(name)
            );
        }
        if known.is_empty() {
            bail!(
                "no unit file chronofs-NAME.service is in {units}; chronofs admin|meta init systemd --output {units} makes one"
            );
        }
        known.retain(|name| named.is_empty() || named.contains(name));
        let own = std::env::current_exe().context("cannot find the own executable")?;
        let service = |name| Service { name, places: places.clone(), own: own.clone() };
        Ok(known.into_iter().map(service).collect())
    }

    /// Its name: `admin`, `meta`, ….
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it. Whether it did not run before.
    ///
    /// # Errors
    /// It cannot be started, or ends at once: with the last lines of what it said.
    pub fn start(&self) -> Result<bool> {
        if self.state()? != State::Stopped {
            return Ok(false);
        }
        match self.places.systemd {
            true => systemd::start(&self.name)?,
            false => keeper::start(self)?,
        }
        Ok(true)
    }

    /// Stops it and waits until nothing of it runs. Whether it ran before.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&self) -> Result<bool> {
        if self.state()? == State::Stopped {
            return Ok(false);
        }
        match self.places.systemd {
            true => systemd::stop(&self.name)?,
            false => keeper::stop(self)?,
        }
        Ok(true)
    }

    /// How it is.
    ///
    /// # Errors
    /// It cannot be found out.
    pub fn state(&self) -> Result<State> {
        match self.places.systemd {
            true => systemd::state(&self.name),
            false => keeper::state(self),
        }
    }

    /// Shows the last lines of what it said, and what it says from now on if `follow`. Comes back only if that cannot be.
    pub fn show_log(&self, lines: u32, follow: bool) -> Result<std::convert::Infallible> {
        match self.places.systemd {
            true => systemd::show_log(&self.name, lines, follow),
            false => keeper::show_log(self, lines, follow),
        }
    }

    /// The executable that its unit file runs.
    ///
    /// # Errors
    /// The unit file does not say that in a way that is understood here.
    pub fn program(&self) -> Result<PathBuf> {
        Ok(self.words()?.into_iter().next().map(PathBuf::from).unwrap_or_default())
    }

    /// What its unit file runs, as what ever user.
    fn words(&self) -> Result<Vec<String>> {
        unit::program(&self.unit())
    }

    /// What a keeper runs.
    fn command(&self) -> Result<Vec<String>> {
        unit::command(&self.unit())
    }

    fn unit(&self) -> PathBuf {
        self.places.units.join(unit::file(&self.name))
    }

    fn last_words(&self) -> String {
        let said = match self.places.systemd {
            true => systemd::last_words(&self.name, LAST_WORDS),
            false => last_lines(&self.log(), LAST_WORDS).map_err(anyhow::Error::from),
        };
        said.unwrap_or_else(|error| format!("(not known: {error:#})"))
    }

    fn log(&self) -> PathBuf {
        self.places.logs.join(format!("{}.log", self.name))
    }

    fn lock(&self) -> PathBuf {
        self.places.run.join(format!("{}.pid", self.name))
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))
}

/// The end of a file that may be long, for a message.
fn last_lines(path: &Path, count: usize) -> io::Result<String> {
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
}
