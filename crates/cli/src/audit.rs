//! `chronofs audit`: who did what, as the admin server wrote it down.

use crate::cluster::AdminArgs;
use crate::output::{self, Column};
use crate::serve;
use anyhow::{Context, Result};
use chronofs_core::Version;
use chronofs_core::time::parse_instant;
use chronofs_wire::http::Method;
use clap::{Args, Subcommand};
use jiff::Zoned;
use serde_json::Value;

#[derive(Args, Debug)]
pub(crate) struct Audit {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show changes that accounts began, and attempts that were refused, the newest first
    #[command(after_help = "Example:\n  chronofs audit list --since -1d --who anna")]
    List {
        /// Only what was begun since this instant: RFC 3339, -2h, 'yesterday 17:00'
        #[arg(long, value_name = "INSTANT", value_parser = instant, allow_hyphen_values = true)]
        since: Option<Version>,
        /// Only what this account did
        #[arg(long, value_name = "ACCOUNT")]
        who: Option<String>,
        /// At most so many, the newest
        #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
        limit: u32,
    },
}

fn instant(text: &str) -> Result<Version, String> {
    parse_instant(text, &Zoned::now()).map_err(|e| e.to_string())
}

const COLUMNS: [Column; 7] = [
    ("AT", "at"),
    ("WHO", "who"),
    ("ADDRESS", "address"),
    ("ACTION", "action"),
    ("OBJECT", "object"),
    ("OUTCOME", "outcome"),
    ("TIMES", "times"),
];

pub(crate) fn run(audit: Audit) -> Result<()> {
    let Audit { json, admin, command } = audit;
    let Command::List { since, who, limit } = command;
    let client = admin.client().context("audit")?;
    let mut path = format!("/v1/audit?limit={limit}&since_ns={}", since.map_or(0, |since| since.0));
    if let Some(who) = who {
        path.push_str(&format!("&who={}", output::escaped(&who)));
    }
    let listed: Vec<Value> =
        serve(async move { client.call(Method::GET, &path, None::<&()>).await })?.context("audit list")?;
    match json {
        true => output::line(serde_json::to_string_pretty(&listed)?),
        false => output::line(output::table(&COLUMNS, &listed)),
    }
}
