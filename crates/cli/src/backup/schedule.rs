//! `chronofs backup schedule`: backups that the admin server makes by itself.

use super::{KEEP, KeyArgs, put_into, seconds_of};
use crate::output::{self, Column};
use crate::serve;
use anyhow::{Result, bail};
use chronofs_core::{Retention, Version};
use chronofs_wire::http::{AdminClient, Method};
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Subcommand, Debug)]
pub(crate) enum Schedule {
    /// Have backups made from now on; the key is kept by the admin server, sealed
    #[command(
        after_help = "Example:\n  chronofs backup schedule create hourly /mnt/backup --key-file backup.key --every 1h --extend"
    )]
    Create {
        /// Its name
        name: String,
        /// Folder of the backups, as with backup create
        dest: String,
        #[command(flatten)]
        key: KeyArgs,
        /// Make one every so often [default: 1h]
        #[arg(long, value_name = "TIME", conflicts_with = "daily_at")]
        every: Option<Retention>,
        /// Make one each day at this time, UTC
        #[arg(long, value_name = "HH:MM", value_parser = time_of_day)]
        daily_at: Option<u64>,
        /// Keep each, and what it needs in the block stores, for so long; -1: until it is deleted
        #[arg(long, value_name = "TIME", default_value = KEEP, allow_hyphen_values = true)]
        keep: Retention,
        /// Call the cluster unhealthy when the newest recoverable point is older [default: one and a half periods]
        #[arg(long, value_name = "TIME")]
        alarm_after: Option<Retention>,
        /// Keep what backups need in the block stores longer than volumes keep their past
        #[arg(long)]
        extend: bool,
    },
    /// Show schedules, and how old the newest recoverable point of each is
    List,
    /// Delete a schedule; its backups stay, and what they need is kept on
    Delete {
        /// Its name
        name: String,
    },
}

fn time_of_day(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a time of day: write it as 03:30");
    let (hours, minutes) = text.split_once(':').ok_or_else(bad)?;
    let number = |text: &str, below: u64| -> Result<u64, String> {
        let number: u64 = text.parse().map_err(|_| bad())?;
        let is_plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_plain && number < below { Ok(number) } else { Err(bad()) }
    };
    Ok(number(hours, 24)? * 3600 + number(minutes, 60)? * 60)
}

fn time(text: &str, given: Option<Retention>) -> Result<Option<u64>> {
    match given {
        None => Ok(None),
        Some(Retention::Seconds(seconds)) => Ok(Some(seconds)),
        Some(_) => bail!("{text} needs a time, as 1h"),
    }
}

const COLUMNS: [Column; 7] = [
    ("NAME", "name"),
    ("WHEN", "when"),
    ("KEPT", "keep"),
    ("NEWEST POINT", "point"),
    ("MAY BE OLD", "limit"),
    ("PLACE", "dest"),
    ("PROBLEM", "problem"),
];

fn row(value: &Value) -> Value {
    let shown = |seconds: &Value| seconds.as_u64().map(|seconds| Retention::Seconds(seconds).to_string());
    let when = match (value["when"]["every"].as_u64(), value["when"]["daily"].as_u64()) {
        (Some(seconds), _) => format!("every {}", Retention::Seconds(seconds)),
        (_, Some(at)) => format!("daily at {:02}:{:02} UTC", at / 3600, at / 60 % 60),
        _ => String::new(),
    };
    let problem = if value["fault"].is_null() { &value["problem"] } else { &value["fault"] };
    json!({
        "name": value["name"], "when": when, "dest": value["dest"], "problem": problem,
        "keep": shown(&value["keep_seconds"]).unwrap_or_else(|| "until deleted".to_owned()),
        "limit": shown(&value["limit_seconds"]),
        "point": value["point_ns"].as_u64().map(|ns| Version(ns).to_string()),
    })
}

pub(crate) fn run(
    schedule: Schedule,
    client: impl FnOnce() -> Result<AdminClient>,
    json: bool,
) -> Result<()> {
    const PATH: &str = "/v1/backup-schedules";
    match schedule {
        Schedule::Create { name, dest, key, every, daily_at, keep, alarm_after, extend } => {
            let unlock = key.of_a_writer()?;
            let every = match (time("--every", every)?, daily_at) {
                (None, None) => Some(3600),
                (every, _) => every,
            };
            let mut body = json!({
                "name": name, "dest": dest, "every_seconds": every,
                "daily_at_seconds": daily_at, "keep_seconds": seconds_of(keep)?,
                "limit_seconds": time("--alarm-after", alarm_after)?, "extend": extend,
            });
            put_into(&mut body, &unlock);
            let client = client()?;
            let made: Value = serve(async move { client.call(Method::POST, PATH, Some(&body)).await })??;
            match json {
                true => output::line(serde_json::to_string_pretty(&made)?),
                false => output::line(output::table(&COLUMNS, &[row(&made)])),
            }
        }
        Schedule::List => {
            let client = client()?;
            let all: Vec<Value> = serve(async move { client.call(Method::GET, PATH, None::<&()>).await })??;
            match json {
                true => output::line(serde_json::to_string_pretty(&all)?),
                false => output::line(output::table(&COLUMNS, &all.iter().map(row).collect::<Vec<_>>())),
            }
        }
        Schedule::Delete { name } => {
            let client = client()?;
            let path = format!("{PATH}/{name}");
            let _: Value = serve(async move { client.call(Method::DELETE, &path, None::<&()>).await })??;
            output::line(format_args!("schedule {name} is deleted; its backups stay"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_day_is_read_as_it_is_written_and_nothing_else_is() {
        assert_eq!((time_of_day("03:30"), time_of_day("23:59")), (Ok(12_600), Ok(86_340)));
        for bad in ["", "3:30", "24:00", "03:60", "03", "0330", "+3:30", "03:30:00"] {
            assert!(time_of_day(bad).is_err(), "{bad}");
        }
    }
}
