//! `analyze discard`: deletes objects that nothing explains, by names that somebody has decided on.

use super::Volume;
use super::follow::follow;
use crate::output;
use anyhow::{Context, Result, bail};
use chronofs_wire::analyze::{DISCARD_MAX, DiscardedObject, Look, News, Subject, Sum};
use chronofs_wire::http::AdminClient;
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args, Debug)]
pub(super) struct Discard {
    #[command(flatten)]
    pub(super) volume: Volume,
    /// The names, each on a line, or what `analyze objects --quarantined --json` printed
    #[arg(long, value_name = "FILE")]
    names: PathBuf,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Of what `analyze objects --quarantined --json` prints.
#[derive(Deserialize)]
struct Printed {
    objects: Vec<PrintedObject>,
}

#[derive(Deserialize)]
struct PrintedObject {
    object: String,
}

pub(super) async fn run(client: &AdminClient, asked: Discard) -> Result<ExitCode> {
    let names = read(&asked.names)?;
    let subject = Subject::Volume(asked.volume.volume.clone());
    let mut found = BTreeMap::<String, DiscardedObject>::new();
    for names in names.chunks(DISCARD_MAX) {
        let hear = |news: News| {
            if let News::Discarded(object) = news {
                // A server that is started anew meanwhile does not find again what it has deleted.
                let before = found.get(&object.object).is_some_and(|before| before.refused.is_none());
                if !before {
                    found.insert(object.object.clone(), *object);
                }
            }
            Ok(())
        };
        let look = || Look::Discard { dry_run: asked.dry_run, names: names.to_vec() };
        let ended = follow(client, &subject, look, hear).await;
        if ended.is_err() {
            // What is gone is said before why the rest is not.
            show(&asked, &found)?;
        }
        let Sum::Discarded(_) = ended? else {
            bail!("the server looked at something else; are the versions the same?")
        };
    }
    show(&asked, &found)?;
    let all = found.values().all(|object| object.refused.is_none());
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(asked: &Discard, found: &BTreeMap<String, DiscardedObject>) -> Result<()> {
    let gone = found.values().filter(|object| object.refused.is_none()).count();
    if asked.json {
        let objects: Vec<_> = found.values().collect();
        let all = json!({ "dry_run": asked.dry_run, "discarded": gone, "objects": objects });
        return output::line(serde_json::to_string_pretty(&all)?);
    }
    for DiscardedObject { object, refused } in found.values() {
        match refused {
            Some(why) => output::line(format!("stays: {object}: {why}"))?,
            None if asked.dry_run => output::line(format!("would be deleted: {object}"))?,
            None => output::line(format!("deleted: {object}"))?,
        }
    }
    let how = if asked.dry_run { "would be deleted" } else { "deleted" };
    output::line(format!("{how}: {gone}; stay: {}", found.len() - gone))
}

fn read(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let names = parse(&text).with_context(|| format!("cannot read {}", file.display()))?;
    if names.is_empty() {
        bail!("{} names no object", file.display());
    }
    Ok(names)
}

fn parse(text: &str) -> Result<Vec<String>> {
    if text.trim_start().starts_with('{') {
        let printed: Printed = serde_json::from_str(text)
            .context("it is not what `chronofs analyze objects --quarantined --json` prints")?;
        return Ok(printed.objects.into_iter().map(|object| object.object).collect());
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_on_lines_or_as_the_listing_prints_them() {
        assert_eq!(parse("\n a/1 \n# kept: a/2\na/3").unwrap(), ["a/1", "a/3"]);
        let printed = r#"{"count": 1, "objects": [{"object": "a/1", "bytes": 7}]}"#;
        assert_eq!(parse(printed).unwrap(), ["a/1"]);
        assert!(parse(r#"{"count": 1}"#).is_err());
    }
}
