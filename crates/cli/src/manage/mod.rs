//! `chronofs manage`.

mod download;

use crate::output;
use anyhow::{Context, Result, bail};
use chronofs_manage::{Places, Service, State, systemd_runs};
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

/// Which services, and where they are.
#[derive(Args, Debug)]
pub(crate) struct Which {
    /// Services [default: all that have a unit file]
    #[arg(value_name = "COMPONENT")]
    components: Vec<String>,
    #[command(flatten)]
    places: PlacesArgs,
}

/// Where things are on this machine.
#[derive(Args, Debug)]
pub(crate) struct PlacesArgs {
    /// Folder of the unit files chronofs-COMPONENT.service
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    unit_dir: PathBuf,
    /// Where no systemd runs: folder that says which processes run
    #[arg(long, value_name = "DIR", default_value = "/run/chronofs")]
    run_dir: PathBuf,
    /// Where no systemd runs: folder of what servers say
    #[arg(long, value_name = "DIR", default_value = "/var/log/chronofs")]
    log_dir: PathBuf,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start services; wait until they run
    #[command(after_help = "Example:\n  chronofs manage start meta")]
    Start(Which),
    /// Stop services; wait until nothing of them runs
    #[command(
        after_help = "Example:\n  chronofs manage stop && cp -r /var/lib/chronofs/meta /backup && chronofs manage start"
    )]
    Stop(Which),
    /// Stop services and start them again
    Restart(Which),
    /// Say which services run; exit code 1 if one does not
    Status {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a service said
    Logs {
        /// The service
        #[arg(value_name = "COMPONENT")]
        component: String,
        #[command(flatten)]
        places: PlacesArgs,
        /// How many of the last lines
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: u32,
        /// Go on showing what it says
        #[arg(long, short)]
        follow: bool,
    },
    /// Fetch an executable from the admin server's deploy folder; only one that is signed rightly is taken
    #[command(
        after_help = "Examples:\n  chronofs manage download meta\n  chronofs manage download meta --install"
    )]
    Download(Box<download::Download>),
    /// Fetch and install the executable of a service, restart it, wait until it serves, and go back if it does not
    #[command(after_help = "Example:\n  chronofs manage upgrade meta")]
    Upgrade(Box<download::Upgrade>),
    /// Keep a server running, in the place of systemd
    #[command(hide = true)]
    Keep {
        component: String,
        #[command(flatten)]
        places: PlacesArgs,
    },
}

impl PlacesArgs {
    fn places(self, systemd: bool) -> Result<Places> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).with_context(|| format!("cannot find {}", path.display()))
        };
        let (units, run, logs) = (absolute(self.unit_dir)?, absolute(self.run_dir)?, absolute(self.log_dir)?);
        Ok(Places { units, run, logs, systemd })
    }

    /// systemd knows the units of its own folders only.
    fn here(self) -> Result<Places> {
        let systemd = systemd_runs() && self.unit_dir.starts_with("/etc/systemd");
        self.places(systemd)
    }

    /// The service, if it has a unit file on this machine.
    fn known(self, component: &str) -> Result<Option<Service>> {
        let file = self.unit_dir.join(format!("chronofs-{component}.service"));
        match file.try_exists().with_context(|| format!("cannot look at {}", file.display()))? {
            true => self.one(component.to_owned()).map(Some),
            false => Ok(None),
        }
    }

    fn one(self, component: String) -> Result<Service> {
        let found = Service::find(&self.here()?, &[component])?;
        found.into_iter().next().context("no such service")
    }
}

impl Which {
    fn services(self) -> Result<Vec<Service>> {
        Service::find(&self.places.here()?, &self.components)
    }
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Start(which) => start(&which.services()?).context("manage start"),
        Command::Stop(which) => stop(&which.services()?).context("manage stop"),
        Command::Restart(which) => {
            let services = which.services()?;
            stop(&services).and_then(|()| start(&services)).context("manage restart")
        }
        Command::Status { which, json } => status(&which.services()?, json).context("manage status"),
        Command::Logs { component, places, lines, follow } => {
            places.one(component)?.show_log(lines, follow).map(|never| match never {})
        }
        Command::Download(asked) => download::download(*asked).context("manage download"),
        Command::Upgrade(asked) => download::upgrade(*asked).context("manage upgrade"),
        Command::Keep { component, places } => {
            let found = Service::find(&places.places(false)?, &[component])?;
            found.first().map_or(Ok(()), chronofs_manage::keep)
        }
    }
}

fn start(services: &[Service]) -> Result<()> {
    for service in services {
        let started = service.start()?;
        output::line(format!("{}: {}", service.name(), if started { "started" } else { "runs already" }))?;
    }
    Ok(())
}

fn stop(services: &[Service]) -> Result<()> {
    for service in services.iter().rev() {
        let stopped = service.stop()?;
        output::line(format!("{}: {}", service.name(), if stopped { "stopped" } else { "did not run" }))?;
    }
    Ok(())
}

fn status(services: &[Service], json: bool) -> Result<()> {
    let mut states = Vec::new();
    for service in services {
        states.push((service.name(), service.state()?));
    }
    if json {
        let each = states.iter().map(|(name, state)| match state {
            State::Running(pid) => json!({"component": name, "state": "running", "pid": pid}),
            State::Restarting => json!({"component": name, "state": "restarting"}),
            State::Stopped => json!({"component": name, "state": "stopped"}),
        });
        output::line(serde_json::to_string_pretty(&each.collect::<Vec<_>>())?)?;
    } else {
        for (name, state) in &states {
            output::line(match state {
                State::Running(pid) => format!("{name}: running, process {pid}"),
                State::Restarting => format!(
                    "{name}: ended by itself, and is started again soon; see chronofs manage logs {name}"
                ),
                State::Stopped => format!("{name}: stopped"),
            })?;
        }
    }
    let down: Vec<&str> = states
        .iter()
        .filter(|(_, state)| !matches!(state, State::Running(_)))
        .map(|(name, _)| *name)
        .collect();
    if !down.is_empty() {
        bail!("not running: {}", down.join(", "));
    }
    Ok(())
}
