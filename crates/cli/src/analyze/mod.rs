//! `chronofs analyze`: what the metadata server of a volume finds when it looks into it, through the admin server's API.
//!
//! `follow` hears a look to its end; each other module is one kind of look.

mod blocks;
mod discard;
mod follow;
mod repair;
mod rows;
mod salvage;
mod usage;

pub(crate) use rows::{only_store, rows};

use crate::cluster::AdminArgs;
use crate::serve;
use anyhow::{Context, Result};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use std::process::ExitCode;

#[derive(Args, Debug)]
pub(crate) struct Analyze {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Find every file, now and in the past, of which bytes are missing or damaged in the block store
    #[command(after_help = "Ends with 1 if anything is lost, or not all could be looked at")]
    Blocks(blocks::Blocks),
    /// Put back what is lost from where its bytes still are: a copy of the block store, a mount's cache, a copy of the files
    #[command(
        after_help = "Examples:\n  chronofs analyze repair home --from-store home-copy --dry-run\n  chronofs analyze repair home --deep \
                      --from-cache /var/cache/chronofs --from-copy /backup/home\n\nFolders are those of the metadata server's machine. \
                      Ends with 1 if anything stays lost"
    )]
    Repair(repair::Repair),
    /// Rebuild files that the metadata lost from objects in the block store that nothing explains any more
    #[command(
        after_help = "Examples:\n  chronofs analyze salvage home --list\n  chronofs analyze salvage home --to /mnt/home/lost+found/salvaged\n\n\
                      What a file holds is what was written last, as far as it can be told: it may bring back what had been overwritten \
                      or deleted. Ends with 1 if anything cannot be read"
    )]
    Salvage(salvage::Salvage),
    /// Show what the present and the past of a volume take, and what another retention would cost
    Usage(usage::Usage),
    /// Show how full the objects of a volume are, and what of its block store nothing explains
    Objects(usage::Objects),
    /// Delete objects of the block store that nothing explains and nobody may need, by names that you have decided on
    #[command(
        after_help = "Example:\n  chronofs analyze objects home --quarantined --json > names\n  chronofs analyze discard home --names names \
                      --dry-run\n\nWhat they hold of files that the metadata lost is lost with them: chronofs analyze salvage brings it back \
                      before. Ends with 1 if one of them stays"
    )]
    Discard(discard::Discard),
    /// Show how many files a volume has, how large they are, and how well they are compressed
    Volume(usage::Of),
}

/// The volume that is looked into.
#[derive(Args, Debug)]
struct Volume {
    /// Name or id of the volume
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
}

pub(crate) fn run(analyze: Analyze) -> Result<ExitCode> {
    let client = analyze.admin.client().context("analyze")?;
    serve(async move {
        match analyze.command {
            Command::Blocks(blocks) => {
                let name = blocks.volume.volume.clone();
                blocks::run(&client, blocks).await.with_context(|| format!("analyze blocks {name}"))
            }
            Command::Repair(repair) => {
                let name = repair.volume.volume.clone();
                repair::run(&client, repair).await.with_context(|| format!("analyze repair {name}"))
            }
            Command::Salvage(salvage) => {
                let name = salvage.volume.volume.clone();
                salvage::run(&client, salvage).await.with_context(|| format!("analyze salvage {name}"))
            }
            Command::Usage(usage) => {
                let name = usage.of.volume.volume.clone();
                usage::usage(&client, usage).await.with_context(|| format!("analyze usage {name}"))
            }
            Command::Objects(asked) => {
                let name = asked.of.volume.volume.clone();
                usage::objects(&client, asked).await.with_context(|| format!("analyze objects {name}"))
            }
            Command::Discard(asked) => {
                let name = asked.volume.volume.clone();
                discard::run(&client, asked).await.with_context(|| format!("analyze discard {name}"))
            }
            Command::Volume(of) => {
                let name = of.volume.volume.clone();
                usage::volume(&client, of).await.with_context(|| format!("analyze volume {name}"))
            }
        }
    })?
}
