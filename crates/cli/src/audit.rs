//! `chronofs audit`: who did what, as the admin server wrote it down.

use crate::cluster::AdminArgs;
use crate::output::{self, Column};
use crate::serve;
use anyhow::{Context, Result};
use chronofs_admin::db::audit::LIST_MAX;
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
        /// At most so many, the newest; 10,000 at once
        #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
        limit: u32,
    },
}

fn instant(text: &str) -> Result<Version, String> {
    parse_instant(text, &Zoned::now()).map_err(|e| e.to_string())
}

/// Leaves the first `limit` of those that were listed, one more than that if there were; whether that leaves any out.
fn cut(listed: &mut Vec<Value>, limit: u32) -> bool {
    let (found, limit) = (listed.len(), usize::try_from(limit).unwrap_or(usize::MAX));
    listed.truncate(limit);
    found > limit || found >= LIST_MAX as usize
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
    // One more says whether there are more.
    let asked = limit.saturating_add(1);
    let mut path = format!("/v1/audit?limit={asked}&since_ns={}", since.map_or(0, |since| since.0));
    if let Some(who) = who {
        path.push_str(&format!("&who={}", output::escaped(&who)));
    }
    let mut listed: Vec<Value> =
        serve(async move { client.call(Method::GET, &path, None::<&()>).await })?.context("audit list")?;
    if cut(&mut listed, limit) {
        output::warn(format!(
            "only the newest {} are shown: there may be more before; choose others with --since, --who or --limit",
            listed.len()
        ));
    }
    match json {
        true => output::line(serde_json::to_string_pretty(&listed)?),
        false => output::line(output::table(&COLUMNS, &listed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_was_cut_is_known_as_such() {
        let cut_of = |found: usize, limit: u32| {
            let mut listed = vec![Value::Null; found];
            (cut(&mut listed, limit), listed.len())
        };
        assert_eq!(cut_of(3, 3), (false, 3));
        assert_eq!(cut_of(4, 3), (true, 3));
        assert_eq!(cut_of(0, 0), (false, 0));
        let max = LIST_MAX as usize;
        assert_eq!(cut_of(max, u32::MAX), (true, max), "the server gives no more at once");
    }
}
