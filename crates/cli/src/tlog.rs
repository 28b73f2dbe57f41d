//! `chronofs tlog`.

use crate::admin::{Tls, Whitelist};
use crate::cluster::{ClusterArgs, LocalityArgs};
use crate::logs::LogArgs;
use crate::systemd::{self, SystemdArgs};
use crate::{output, serve};
use anyhow::{Context, Result};
use chronofs_tlog::StartConfig;
use chronofs_wire::http::parse_address;
use clap::{Args, Subcommand};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct Folder {
    /// Folder of the log server
    #[arg(long, value_name = "DIR", default_value = "/var/lib/chronofs/tlog")]
    db_folder: PathBuf,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prepare the server
    #[command(subcommand)]
    Init(Init),
    /// Run the server in the foreground
    #[command(
        after_help = "Example:\n  chronofs tlog start --bind-addr 0.0.0.0:8446 --advertise tlog1.example:8446"
    )]
    Start(Box<StartArgs>),
    /// Say whether the server runs and which copies it holds
    Status {
        /// Where it serves metrics and health
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8447")]
        http_addr: SocketAddr,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Options of `tlog start`.
#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    folder: Folder,
    /// Listen on this address for metadata servers
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8446")]
    bind_addr: SocketAddr,
    /// Address for metadata servers [default: the bound one, or the name of this host]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    advertise: Option<String>,
    /// Serve metrics and health over plain HTTP on this address
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8447")]
    http_addr: SocketAddr,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    whitelist: Whitelist,
    #[command(flatten)]
    locality: LocalityArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Init {
    /// Keep the token of this log server
    #[command(after_help = "Example:\n  chronofs tlog init creds --token chronofs1_...")]
    Creds {
        /// Token that configure create log-server printed
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
            chronofs_tlog::init_creds(&folder.db_folder, &token, admin.as_deref())
                .context("tlog init creds")?;
            output::line(format!("kept the token in {}", folder.db_folder.display()))
        }
        Command::Init(Init::Systemd { folder, systemd }) => {
            let unit = systemd::server_unit(
                "tlog",
                "log server",
                &folder.db_folder,
                " chronofs-admin.service",
                &systemd,
            )?;
            systemd::put(&unit, "chronofs-tlog.service", &systemd)
        }
        Command::Start(args) => start(*args).context("tlog start"),
        Command::Status { http_addr, json } => status(http_addr, json).context("tlog status"),
    }
}

fn start(args: StartArgs) -> Result<()> {
    args.log.start();
    let (cluster, whereabouts) = args.cluster.for_server(args.locality)?;
    let config = StartConfig {
        db_folder: args.folder.db_folder,
        bind_addr: args.bind_addr,
        advertise: args.advertise,
        http_addr: args.http_addr,
        tls: args.tls.files(),
        whitelist: args.whitelist.whitelist_binpath,
        cluster,
        whereabouts,
    };
    serve(chronofs_tlog::start(config))?
}

fn status(http_addr: SocketAddr, json: bool) -> Result<()> {
    let said = serve(chronofs_tlog::status(http_addr))??;
    if json {
        return output::line(serde_json::to_string_pretty(&said)?);
    }
    let registered = match said.epoch {
        0 => "not registered with the admin server yet".to_owned(),
        epoch => format!("registered under epoch {epoch}"),
    };
    output::line(format!("running: process {}, {registered}", said.process.pid))?;
    let rows = said.copies.iter().map(|copy| {
        let state = match (&copy.problem, copy.filling, copy.sealed) {
            (Some(problem), ..) => problem.as_str(),
            (None, true, _) => "filling",
            (None, false, true) => "sealed",
            (None, false, false) => "open",
        };
        json!({
            "store": copy.name.clone().unwrap_or_else(|| format!("{}, which has no copy here any more", copy.id)),
            "epoch": copy.epoch, "state": state, "segments": copy.segments, "bytes": copy.bytes,
        })
    });
    let columns = [
        ("METADATA STORE", "store"),
        ("EPOCH", "epoch"),
        ("STATE", "state"),
        ("SEGMENTS", "segments"),
        ("SIZE", "bytes"),
    ];
    output::line(output::table(&columns, &rows.collect::<Vec<_>>()))
}
