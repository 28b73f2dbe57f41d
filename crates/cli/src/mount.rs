//! `chronofs mount` and `chronofs instant`.

use crate::systemd::{self, SystemdArgs};
use crate::{credentials, output};
use anyhow::{Context, Result};
use chronofs_mount::StartConfig;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prepare this machine
    #[command(subcommand)]
    Init(Init),
    /// Mount a volume
    #[command(after_help = "Examples:\n  chronofs mount start data /mnt/data\n  \
                            chronofs mount start data /mnt/past --at-time 'yesterday 17:00'")]
    Start(Start),
    /// Unmount, and wait until everything that was written is stored
    Stop {
        /// Folder the volume is mounted on
        dir: PathBuf,
    },
    /// List the mounts of this machine
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
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

#[derive(Args, Debug)]
pub(crate) struct Start {
    /// Name or id of the volume
    volume: String,
    /// Folder to mount it on
    dir: PathBuf,
    /// Show this instant: RFC 3339, -2h, 'yesterday 17:00'
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    at_time: Option<String>,
    /// Refuse writing
    #[arg(long)]
    ro: bool,
    /// Serve the mount in this process
    #[arg(long)]
    foreground: bool,
    /// Token of the volume (others may see it in the list of processes; better keep it with init creds)
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the token of the volume
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
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
        Command::Start(start) => {
            let what = format!("mount {} on {}", start.volume, start.dir.display());
            start_mount(start).context(what)
        }
        Command::Stop { dir } => chronofs_mount::stop(&dir, |notice| output::warn(notice))
            .with_context(|| format!("stop {}", dir.display())),
        Command::List { json } => list(json).context("list mounts"),
    }
}

fn start_mount(start: Start) -> Result<()> {
    let token = credentials::mount(&start.volume, start.token, start.token_file.as_deref())?;
    let config = StartConfig {
        volume: start.volume,
        dir: start.dir,
        at: start.at_time,
        read_only: start.ro,
        foreground: start.foreground,
        token,
        ready: None,
    };
    Ok(chronofs_mount::start(config)?)
}

fn list(json: bool) -> Result<()> {
    let mounts = serde_json::to_value(chronofs_mount::list()?)?;
    if json {
        return output::line(serde_json::to_string_pretty(&mounts)?);
    }
    let columns = [
        ("VOLUME", "volume"),
        ("FOLDER", "dir"),
        ("AT", "at"),
        ("READ-ONLY", "read_only"),
        ("STATE", "state"),
        ("PROCESS", "pid"),
    ];
    output::line(output::table(&columns, mounts.as_array().map_or(&[][..], Vec::as_slice)))
}

/// Flushes the mount `dir` lies in, and prints the instant that shows everything written before.
pub(crate) fn instant(dir: &Path) -> Result<()> {
    let instant = chronofs_mount::instant(dir).with_context(|| format!("instant of {}", dir.display()))?;
    output::line(instant)
}
