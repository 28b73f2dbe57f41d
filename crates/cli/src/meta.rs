//! `chronofs meta`.

use crate::admin::Tls;
use crate::logs::LogArgs;
use crate::systemd::{self, SystemdArgs};
use crate::{output, serve};
use anyhow::{Context, Result, bail};
use chronofs_meta::{Checked, StartConfig};
use chronofs_wire::http::parse_address;
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a long check says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub(crate) struct Folder {
    /// Folder of the metadata store
    #[arg(long, value_name = "DIR", default_value = "/var/lib/chronofs/meta")]
    db_folder: PathBuf,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prepare the server
    #[command(subcommand)]
    Init(Init),
    /// Run the server in the foreground
    #[command(
        after_help = "Example:\n  chronofs meta start --bind-addr 0.0.0.0:8444 --advertise meta1.example:8444"
    )]
    Start {
        #[command(flatten)]
        folder: Folder,
        /// Listen on this address for clients
        #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8444")]
        bind_addr: SocketAddr,
        /// Address for clients [default: the bound one, or the name of this host]
        #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
        advertise: Option<String>,
        /// Serve metrics and health over plain HTTP on this address
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8445")]
        http_addr: SocketAddr,
        #[command(flatten)]
        tls: Tls,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Say whether the server runs and what it serves
    Status {
        /// Where it serves metrics and health
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8445")]
        http_addr: SocketAddr,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check a metadata store whose server is stopped, and print what is wrong, a line each
    #[command(after_help = "Ends with 1 if anything is wrong")]
    Verify {
        #[command(flatten)]
        folder: Folder,
        /// Also open every slice of every file, now and in the past, in the block stores
        #[arg(long)]
        blocks: bool,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum Init {
    /// Keep the token of the metadata store that this server is to serve
    #[command(after_help = "Example:\n  chronofs meta init creds --token chronofs1_...")]
    Creds {
        /// Token that configure create metadata-store printed
        #[arg(long)]
        token: String,
        /// Reach the admin server here instead of where the token says
        #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
        admin: Option<String>,
        #[command(flatten)]
        folder: Folder,
    },
    /// Print a systemd unit
    Systemd {
        #[command(flatten)]
        folder: Folder,
        #[command(flatten)]
        systemd: SystemdArgs,
    },
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Init(Init::Creds { token, admin, folder }) => {
            chronofs_meta::init_creds(&folder.db_folder, &token, admin.as_deref())
                .context("meta init creds")?;
            output::line(format!("kept the token in {}", folder.db_folder.display()))
        }
        Command::Init(Init::Systemd { folder, systemd }) => {
            let unit = systemd::server_unit(
                "meta",
                "metadata server",
                &folder.db_folder,
                " chronofs-admin.service",
            )?;
            systemd::put(&unit, "chronofs-meta.service", &systemd)
        }
        Command::Start { folder, bind_addr, advertise, http_addr, tls, log } => {
            log.start();
            let (db_folder, tls) = (folder.db_folder, tls.files());
            let config = StartConfig { db_folder, bind_addr, advertise, http_addr: Some(http_addr), tls };
            serve(chronofs_meta::start(config))?.context("meta start")
        }
        Command::Status { http_addr, json } => status(http_addr, json).context("meta status"),
        Command::Verify { folder, blocks } => verify(&folder.db_folder, blocks).context("meta verify"),
    }
}

fn status(http_addr: SocketAddr, json: bool) -> Result<()> {
    let status = serve(chronofs_meta::status(http_addr))??;
    if json {
        return output::line(serde_json::to_string_pretty(&status)?);
    }
    output::line(format!("running: process {}, durable up to {}", status.pid, status.durable))?;
    if !status.assigned {
        output::warn("no list of volumes was received yet; is the admin server running?");
    }
    let volumes = serde_json::to_value(&status.volumes)?;
    let columns = [("VOLUME", "name"), ("MOUNTS", "sessions"), ("PROBLEM", "problem")];
    output::line(output::table(&columns, volumes.as_array().map_or(&[][..], Vec::as_slice)))
}

fn verify(db_folder: &Path, blocks: bool) -> Result<()> {
    let mut told = Instant::now();
    let mut tell = |checked: Checked| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            output::note(format!("{} so far, {} of them bad", show_checked(checked), checked.bad));
        }
    };
    let progress: Option<&mut dyn FnMut(Checked)> = if blocks { Some(&mut tell) } else { None };
    let verified = serve(chronofs_meta::verify(db_folder, progress))??;
    for fault in &verified.faults {
        output::line(fault)?;
    }
    let looked_at = match verified.blocks {
        Some(checked) => format!("volumes: {}, {}", verified.volumes, show_checked(checked)),
        None => format!("volumes: {}", verified.volumes),
    };
    match verified.faults.len() {
        0 => output::line(format!("nothing is wrong; {looked_at}")),
        n => bail!(
            "{n} faults in {} ({looked_at}); keep a copy of the folder before anything else",
            db_folder.display()
        ),
    }
}

fn show_checked(checked: Checked) -> String {
    format!("slices: {} with {} as stored", checked.slices, output::show_size(checked.bytes))
}
