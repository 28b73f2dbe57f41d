//! `chronofs mount`.

use crate::systemd::{self, SystemdArgs};
use crate::{credentials, output};
use anyhow::{Context, Result};
use clap::Subcommand;

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prepare this machine
    #[command(subcommand)]
    Init(Init),
}

#[derive(Subcommand, Debug)]
pub(crate) enum Init {
    /// Keep a volume token for mounts
    #[command(after_help = "Example:\n  chronofs mount init creds --token chronofs1_... --volume data")]
    Creds {
        /// Token that configure create volume-token printed
        #[arg(long)]
        token: String,
        /// Use it for this volume only
        #[arg(long)]
        volume: Option<String>,
    },
    /// Print an example of a systemd mount unit
    Systemd {
        #[command(flatten)]
        systemd: SystemdArgs,
    },
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Init(Init::Creds { token, volume }) => {
            let path = credentials::save_mount(&token, volume.as_deref()).context("mount init creds")?;
            output::line(format!("wrote {}", path.display()))
        }
        Command::Init(Init::Systemd { systemd }) => {
            systemd::put(&systemd::mount_unit(), "mnt-data.mount", &systemd)
        }
    }
}
