//! `chronofs admin deploy`: what lies in the admin server's deploy folder, signed by whoever puts it there.

use crate::cluster::AdminArgs;
use crate::output::{self, Column};
use crate::serve;
use anyhow::{Context, Result, bail};
use chronofs_keys::SecretKey;
use chronofs_manage::version_of;
use chronofs_wire::deploy::{PublicKey, RELEASE_BYTES_MAX, Release, WHOLE, own_target};
use chronofs_wire::identity::Sha256;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

const MADE_BY: &str = "chronofs admin deploy key";

#[derive(Args, Debug)]
pub(crate) struct Deploy {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a key to sign executables with, and beside it in FILE.pub what machines check them by
    #[command(after_help = "Example:\n  chronofs admin deploy key deploy.key")]
    Key {
        /// File of the key; it must not be there
        file: PathBuf,
    },
    /// Sign an executable, and put it into the deploy folder
    #[command(
        after_help = "Example:\n  chronofs admin deploy add target/release/chronofs --signing-key deploy.key"
    )]
    Add {
        /// The executable
        executable: PathBuf,
        /// File of the key to sign with
        #[arg(long, value_name = "FILE")]
        signing_key: PathBuf,
        /// What it is an executable of: admin, meta, tlog, mount, or chronofs for all
        #[arg(long, value_name = "COMPONENT", default_value = WHOLE)]
        component: String,
        /// Its version [default: what it says itself]
        #[arg(long, value_name = "VERSION")]
        version: Option<String>,
        /// For what machines it is [default: those of this program]
        #[arg(long, value_name = "TARGET")]
        target: Option<String>,
    },
    /// List what is in the deploy folder
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take an executable away; machines that have it keep it
    Remove {
        /// Its name, as list shows it
        name: String,
    },
}

const COLUMNS: [Column; 6] = [
    ("NAME", "name"),
    ("COMPONENT", "component"),
    ("VERSION", "version"),
    ("TARGET", "target"),
    ("SIZE", "size_bytes"),
    ("SIGNED WITH", "public_key"),
];

pub(crate) fn run(deploy: Deploy) -> Result<()> {
    let Deploy { admin, command } = deploy;
    if let Command::Key { file } = &command {
        return make_key(file);
    }
    let client = admin.client()?;
    match command {
        Command::Key { .. } => Ok(()),
        Command::Add { executable, signing_key, component, version, target } => {
            let version = match (version, version_of(&executable)) {
                (None, says) => says.context("name its version with --version")?,
                (Some(version), Ok(says)) if says != version => {
                    bail!(
                        "{} says that it is version {says}, not {version}: no machine would take it",
                        executable.display()
                    )
                }
                // One for other machines cannot be asked here.
                (Some(version), _) => version,
            };
            let bytes = read(&executable)?;
            let target = target.unwrap_or_else(own_target);
            let release =
                Release::new(&component, &version, &target, bytes.len() as u64, Sha256::of(&bytes))?;
            let key = SecretKey::read(&signing_key, MADE_BY)?;
            let signature = key.sign(release.statement().as_bytes())?;
            let signed = release.signed(PublicKey(key.public_half()?), &signature);
            let added = serve(async { client.deploy(&signed, bytes.into()).await })??;
            output::line(format!("added {}", added.name()))
        }
        Command::List { json } => {
            let all = serve(async { client.deployed().await })??;
            if json {
                return output::line(serde_json::to_string_pretty(&all)?);
            }
            let rows = all.iter().map(|release| {
                let mut row = serde_json::to_value(release)?;
                row["name"] = release.name().into();
                row["size_bytes"] = release.size.into();
                Ok(row)
            });
            output::line(output::table(&COLUMNS, &rows.collect::<Result<Vec<_>>>()?))
        }
        Command::Remove { name } => {
            serve(async { client.undeploy(&output::escaped(&name)).await })??;
            output::line(format!("removed {name}"))
        }
    }
}

fn make_key(file: &Path) -> Result<()> {
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    if public.exists() {
        bail!("{} is there already, and is not overwritten; name another file", public.display());
    }
    let key = SecretKey::draw()?;
    key.write(file)?;
    let half = PublicKey(key.public_half()?);
    half.write(&public).with_context(|| format!("cannot write {}", public.display()))?;
    output::line(format!("wrote {} and {}", file.display(), public.display()))?;
    output::note(format!(
        "whoever has {} decides what runs on the machines: keep it away from them and from the admin server; bring {} to each of \
         them as /etc/chronofs/deploy.pub",
        file.display(),
        public.display()
    ));
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let length = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
    if length > RELEASE_BYTES_MAX {
        bail!("{shown} has {length} bytes, and an executable has 1 GiB at most");
    }
    std::fs::read(path).with_context(|| format!("cannot read {shown}"))
}
