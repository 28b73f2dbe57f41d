//! `manage download` and `manage upgrade`: executables from the admin server's deploy folder.
//!
//! The admin server is not believed: an executable is taken only if somebody signed it whose public key is on this machine.

use super::PlacesArgs;
use crate::cluster::AdminArgs;
use crate::{credentials, output, serve};
use anyhow::{Context, Result, bail};
use chronofs_manage::{Installed, Installing, version_of};
use chronofs_wire::deploy::{PublicKey, Release, choose, compare_versions, own_target};
use chronofs_wire::http::AdminClient;
use chronofs_wire::identity::{Sha256, Sha256Sum};
use clap::Args;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Where executables go when no unit file says it.
const PROGRAM: &str = "/usr/local/bin/chronofs";
/// The public key of whoever signs executables, in the folder of credentials.
const PUBLIC_KEY: &str = "deploy.pub";

/// Where an executable comes from, and whom to believe.
#[derive(Args, Debug)]
pub(crate) struct Source {
    /// The version to take [default: the highest]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// Public key of whoever signs executables [default: deploy.pub in /etc/chronofs]
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// Token to ask the admin server with, of any kind [default: that of configure]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Download {
    /// What it is for: admin, meta, tlog, mount
    #[arg(value_name = "COMPONENT")]
    component: String,
    /// Put it in the place of the executable that the unit file of COMPONENT runs, and keep the old one beside it
    #[arg(long)]
    install: bool,
    /// Put it here instead
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    places: PlacesArgs,
}

#[derive(Args, Debug)]
pub(crate) struct Upgrade {
    /// The service
    #[arg(value_name = "COMPONENT")]
    component: String,
    /// Seconds until it must serve; else the old executable is put back
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    wait: u64,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    places: PlacesArgs,
}

/// What became of an executable that was asked for.
enum Got {
    /// It is there already.
    Same(PathBuf),
    New(Installed),
}

impl Source {
    /// What is to be taken, which somebody is believed to have signed.
    async fn find(&self, component: &str) -> Result<(AdminClient, Release)> {
        let key = self.public_key.clone().unwrap_or_else(|| credentials::folder().join(PUBLIC_KEY));
        let key = PublicKey::read(&key)?;
        let client = self.admin.client_by(&credentials::any(self.token_file.as_deref())?)?;
        let offered = client.deployed().await?;
        let chosen = choose(&offered, component, &own_target(), self.version.as_deref())?;
        let release = chosen.believed(&key)?;
        Ok((client, release))
    }

    /// An older one than there is must be asked for by its version: the admin server could offer it to bring old faults back.
    fn must_not_be_older(&self, release: &Release, there: &Path) -> Result<()> {
        if self.version.is_some() || !there.exists() {
            return Ok(());
        }
        // What does not say its version is refused where it would be replaced.
        let Ok(now) = version_of(there) else { return Ok(()) };
        if compare_versions(release.version(), &now).is_lt() {
            bail!(
                "{} is version {now}, and the highest that the admin server has is {}, which is older: nothing was changed; to go back \
                 to it all the same, add --version {}",
                there.display(),
                release.version(),
                release.version()
            );
        }
        Ok(())
    }

    /// Fetches what is to be at `to`, unless it is there.
    async fn get(&self, client: &AdminClient, release: &Release, to: &Path) -> Result<Got> {
        if hash_of(to)? == Some(release.sha256()) {
            return Ok(Got::Same(to.to_owned()));
        }
        self.must_not_be_older(release, to)?;
        let mut installing = Installing::begin(to)?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let fetched = tokio::select! {
            fetched = client.fetch(release, |part| installing.write(part)) => fetched,
            _ = terminate.recv() => bail!("ended by SIGTERM; nothing was changed"),
            _ = interrupt.recv() => bail!("interrupted; nothing was changed"),
        };
        fetched.context("nothing was changed")?;
        installing.finish(release.version()).map(Got::New)
    }
}

/// The hash of a file, if there is one.
fn hash_of(path: &Path) -> Result<Option<Sha256>> {
    let hash = || -> io::Result<Option<Sha256>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let (mut sum, mut part) = (Sha256Sum::default(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut part)? {
                0 => return Ok(Some(sum.end())),
                count => sum.add(&part[..count]),
            }
        }
    };
    hash().with_context(|| format!("cannot read {}", path.display()))
}

pub(crate) fn download(asked: Download) -> Result<()> {
    let Download { component, install, to, source, places } = asked;
    let target = match (to, install) {
        (Some(to), _) => Some(to),
        // Without a unit file it is a machine that is being set up.
        (None, true) => Some(match places.known(&component)? {
            Some(service) => service.program()?,
            None => PathBuf::from(PROGRAM),
        }),
        (None, false) => None,
    };
    let (release, got) = serve(async {
        let (client, release) = source.find(&component).await?;
        let target = target.unwrap_or_else(|| PathBuf::from(format!("chronofs-{}", release.version())));
        let got = source.get(&client, &release, &target).await?;
        Ok::<_, anyhow::Error>((release, got))
    })??;
    tell(&release, &got, &component)
}

/// What was done, and how to go back.
fn tell(release: &Release, got: &Got, component: &str) -> Result<()> {
    let version = release.version();
    let installed = match got {
        Got::Same(path) => return output::line(format!("{} is {version} already", path.display())),
        Got::New(installed) => installed,
    };
    let target = installed.target().display();
    output::line(format!("{target} is {version} now; signature and SHA-256 were right"))?;
    match installed.old() {
        Some(old) => output::line(format!(
            "the one before is {}; a server takes the new one when it is started anew: chronofs manage restart {component}; to go \
             back: mv {} {target} && chronofs manage restart {component}",
            old.display(),
            old.display()
        )),
        None => Ok(()),
    }
}

pub(crate) fn upgrade(asked: Upgrade) -> Result<()> {
    let Upgrade { component, wait, source, places } = asked;
    let service = places.one(component)?;
    let (name, program) = (service.name().to_owned(), service.program()?);
    let (release, got) = serve(async {
        let (client, release) = source.find(&name).await?;
        let got = source.get(&client, &release, &program).await?;
        Ok::<_, anyhow::Error>((release, got))
    })??;
    let version = release.version();
    let installed = match got {
        Got::New(installed) => installed,
        Got::Same(path) => {
            return output::line(format!(
                "{} is {version} already, and nothing was done; if {name} was not started anew since: chronofs manage restart {name}",
                path.display()
            ));
        }
    };
    service.upgrade(&installed, Duration::from_secs(wait))?;
    output::line(format!("{name}: runs by {version} and serves"))?;
    match installed.old() {
        Some(old) => output::line(format!(
            "the one before is {}; to go back: mv {} {} && chronofs manage restart {name}",
            old.display(),
            old.display(),
            installed.target().display()
        )),
        None => Ok(()),
    }
}
