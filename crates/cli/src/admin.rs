//! `chronofs admin`.

use crate::cluster::LocalityArgs;
use crate::logs::LogArgs;
use crate::systemd::{self, SystemdArgs};
use crate::{deploy, output, rebuild, serve};
use anyhow::{Context, Result, bail};
use chronofs_admin::{InitConfig, SnapshotConfig, StartConfig, Status};
use chronofs_wire::http::{AdminClient, parse_address};
use chronofs_wire::token::{Token, TokenKind};
use clap::{Args, Subcommand};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct Folder {
    /// Folder of the configuration database
    #[arg(long, value_name = "DIR", default_value = "/var/lib/chronofs/admin")]
    db_folder: PathBuf,
}

impl Folder {
    pub(crate) fn path(self) -> PathBuf {
        self.db_folder
    }
}

/// Programs for disk snapshots.
#[derive(Args, Debug)]
pub(crate) struct Whitelist {
    /// Program that may run here for disk snapshots; may be given more than once
    #[arg(long, value_name = "PATH")]
    pub(crate) whitelist_binpath: Vec<PathBuf>,
}

/// An own certificate.
#[derive(Args, Debug)]
pub(crate) struct Tls {
    /// Use this certificate (PEM, with its chain) instead of a self-made one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl Tls {
    pub(crate) fn files(self) -> Option<(PathBuf, PathBuf)> {
        self.tls_cert.zip(self.tls_key)
    }
}

/// Where the server keeps its cluster file.
#[derive(Args, Debug)]
pub(crate) struct OwnClusterFile {
    /// Cluster file to keep, made at the first start [default: chronofs.cluster in the folder]
    #[arg(long, value_name = "FILE", env = "CHRONOFS_CLUSTER_FILE", hide_env_values = true)]
    cluster_file: Option<PathBuf>,
}

impl OwnClusterFile {
    pub(crate) fn path(self) -> Option<PathBuf> {
        self.cluster_file.filter(|path| !path.as_os_str().is_empty())
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prepare the server
    #[command(subcommand)]
    Init(Init),
    /// Run the server in the foreground
    #[command(after_help = "Example:\n  chronofs admin start --bind-addr 0.0.0.0:8443 --log-format json")]
    Start {
        #[command(flatten)]
        folder: Folder,
        /// Listen on this address
        #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8443")]
        bind_addr: SocketAddr,
        #[command(flatten)]
        cluster: OwnClusterFile,
        #[command(flatten)]
        tls: Tls,
        #[command(flatten)]
        whitelist: Whitelist,
        #[command(flatten)]
        locality: LocalityArgs,
        /// Folder of executables for the machines of the cluster [default: deploy in the folder]
        #[arg(long, value_name = "DIR")]
        deploy_folder: Option<PathBuf>,
        /// Kill programs of disk snapshots that run longer
        #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
        snap_create_max_timeout: u64,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Make the server anew of what a block store says of its volumes, when its database and every backup are lost
    #[command(
        after_help = "Example:\n  chronofs admin rebuild --address admin.example:8443 --name main --kind s3 --bucket bytes --region eu-central-1\n\n\
                      Again with another block store, it brings the volumes of that one back, too"
    )]
    Rebuild(Box<rebuild::Rebuild>),
    /// Sign executables and offer them to the machines of the cluster
    Deploy(deploy::Deploy),
    /// Say whether the server runs and is ready
    Status {
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum Init {
    /// Create database, certificate and root account, and print the root token once
    #[command(after_help = "Example:\n  chronofs admin init creds --address admin.example:8443")]
    Creds {
        #[command(flatten)]
        folder: Folder,
        /// Address for all clients, part of every token [default: localhost:8443]
        #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
        address: Option<String>,
        /// Revoke the root token and print a new one
        #[arg(long)]
        rotate: bool,
        #[command(flatten)]
        cluster: OwnClusterFile,
        #[command(flatten)]
        tls: Tls,
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
        Command::Init(Init::Creds { folder, address, rotate, cluster, tls }) => {
            let (cluster_file, tls) = (cluster.path(), tls.files());
            let config = InitConfig { db_folder: folder.db_folder, address, tls, rotate, cluster_file };
            let token = chronofs_admin::init_creds(&config).context("admin init creds")?;
            output::line(token)
        }
        Command::Init(Init::Systemd { folder, systemd }) => {
            let unit = systemd::server_unit("admin", "admin server", &folder.db_folder, "", &systemd)?;
            systemd::put(&unit, "chronofs-admin.service", &systemd)
        }
        Command::Start {
            folder,
            bind_addr,
            cluster,
            tls,
            whitelist,
            locality,
            deploy_folder,
            snap_create_max_timeout,
            log,
        } => {
            log.start();
            let locality = locality.map().context("admin start")?;
            let run_limit = Duration::from_secs(snap_create_max_timeout);
            let snapshots = SnapshotConfig { whitelist: whitelist.whitelist_binpath, run_limit };
            let (db_folder, cluster_file, tls) = (folder.db_folder, cluster.path(), tls.files());
            let config =
                StartConfig { db_folder, bind_addr, tls, cluster_file, snapshots, locality, deploy_folder };
            serve(chronofs_admin::start(config))?.context("admin start")
        }
        Command::Rebuild(asked) => rebuild::run(*asked).context("admin rebuild"),
        Command::Deploy(asked) => deploy::run(asked).context("admin deploy"),
        Command::Status { folder } => status(&folder.db_folder).context("admin status"),
    }
}

fn status(folder: &Path) -> Result<()> {
    let shown = folder.display();
    let (pid, address, pin) = match chronofs_admin::status(folder)? {
        Status::NotSetUp => bail!("folder {shown} was not set up; run chronofs admin init creds"),
        Status::Stopped => bail!("no admin server runs on {shown}; run chronofs admin start"),
        Status::Running { pid, address, pin } => (pid, address, pin),
    };
    let Ok(mut reach) = address.parse::<SocketAddr>() else { bail!("process {pid} is starting on {shown}") };
    reach.set_ip(match reach.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    });
    // Any token will do: the question needs none, the client wants a pin.
    let token = Token::draw(TokenKind::Account, &reach.to_string(), pin.parse()?)?;
    serve(async { AdminClient::new(&token)?.ready().await })??;
    output::line(format!("ready: process {pid}, listening on {address}, folder {shown}"))
}
