//! `analyze blocks`: each slice that is lost on a line, with the files that had it.

use super::Volume;
use super::follow::{Meter, follow};
use crate::output;
use anyhow::{Context, Result, bail};
use chronofs_core::Version;
use chronofs_wire::analyze::{Fate, Look, News, Progress, SliceFault, Subject, Sum};
use chronofs_wire::http::AdminClient;
use chronofs_wire::question::Blob;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::RefCell;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Args, Debug)]
pub(super) struct Blocks {
    #[command(flatten)]
    pub(super) volume: Volume,
    /// Read every slice and check it, instead of comparing sizes of objects with what rows need of them
    #[arg(long)]
    deep: bool,
    /// With --deep read at most so many bytes a second: 50M, 1G
    #[arg(long, value_name = "SIZE", value_parser = output::parse_size, requires = "deep")]
    rate: Option<u64>,
    /// Keep in this file how far it is, and go on there if there is such a file; it is removed at the end
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Print JSON: a line for each slice that is lost, and one with the sums
    #[arg(long)]
    json: bool,
}

/// What `--resume` keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    volume: String,
    deep: bool,
    /// All before this was looked at and printed.
    next: Option<Blob>,
    /// What was looked at before.
    slices: u64,
    bytes: u64,
    faults: u64,
}

impl Kept {
    const FORMAT: u32 = 1;

    fn new(asked: &Blocks) -> Kept {
        let volume = asked.volume.volume.clone();
        Kept { format: Self::FORMAT, volume, deep: asked.deep, next: None, slices: 0, bytes: 0, faults: 0 }
    }

    fn read(path: &Path, asked: &Blocks) -> Result<Kept> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Kept::new(asked)),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let kept: Kept = serde_json::from_slice(&text).with_context(|| {
            format!("{} does not say how far an earlier look came; name another file", path.display())
        })?;
        if kept.format != Self::FORMAT || kept.volume != asked.volume.volume || kept.deep != asked.deep {
            bail!(
                "{} is of another look ({} {}); name another file, or remove it to begin anew",
                path.display(),
                kept.volume,
                if kept.deep { "--deep" } else { "without --deep" }
            );
        }
        Ok(kept)
    }

    /// Written beside and renamed, so that there is always one that is whole.
    fn save(&self, path: &Path) -> Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let saved = std::fs::File::create(&beside)
            .and_then(|mut file| file.write_all(&serde_json::to_vec(self)?))
            .and_then(|()| std::fs::rename(&beside, path));
        saved.with_context(|| format!("cannot keep how far it is in {}", path.display()))
    }

    fn plus(&self, progress: &Progress) -> Progress {
        Progress {
            listed: progress.listed,
            slices: self.slices + progress.slices,
            bytes: self.bytes + progress.bytes,
            faults: self.faults + progress.faults,
            next: progress.next.clone(),
        }
    }
}

/// What was heard.
struct Heard {
    /// What looks before the one under way came to.
    before: Kept,
    /// All that was looked at and printed.
    sum: Progress,
    meter: Meter,
}

pub(super) async fn run(client: &AdminClient, asked: Blocks) -> Result<ExitCode> {
    let before = match &asked.resume {
        Some(path) => Kept::read(path, &asked)?,
        None => Kept::new(&asked),
    };
    let sum = before.plus(&Progress { next: before.next.clone(), ..Progress::default() });
    let heard = RefCell::new(Heard { before, sum, meter: Meter::new() });
    let look = || {
        let mut heard = heard.borrow_mut();
        // A look that was forgotten goes on behind what was heard of it.
        let Progress { slices, bytes, faults, next, .. } = heard.sum.clone();
        heard.before = Kept { next: next.clone(), slices, bytes, faults, ..heard.before.clone() };
        Look::Blocks { deep: asked.deep, bytes_per_second: asked.rate.unwrap_or(0), from: next }
    };
    let hear = |news: News| hear(&mut heard.borrow_mut(), news, &asked);
    let subject = Subject::Volume(asked.volume.volume.clone());
    let ended = follow(client, &subject, look, hear).await;
    heard.borrow_mut().meter.clear();
    let Heard { before, sum, .. } = heard.into_inner();
    let ended = match (ended, &asked.resume) {
        (Ok(ended), _) => ended,
        (Err(error), Some(path)) if path.exists() => {
            return Err(error.context(format!("after {}; the same command goes on there", said(&sum))));
        }
        (Err(error), _) => return Err(error.context(format!("after {}", said(&sum)))),
    };
    let Sum::Blocks(ended) = ended else {
        bail!("the server looked at something else; are the versions the same?")
    };
    let sum = before.plus(&ended);
    if let Some(path) = asked.resume.as_ref().filter(|path| path.exists()) {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    if asked.json {
        let sum = json!({"slices": sum.slices, "bytes": sum.bytes, "faults": sum.faults, "deep": asked.deep});
        output::line(json!({ "sum": sum }))?;
    } else if sum.faults == 0 {
        let how = if asked.deep { "whole" } else { "there" };
        output::line(format!("all are {how}; {}", said(&sum)))?;
    } else {
        output::line(format!("lost: {}; {}", sum.faults, said(&sum)))?;
    }
    Ok(if sum.faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn said(sum: &Progress) -> String {
    format!("slices: {} with {} as stored", sum.slices, output::show_size(sum.bytes))
}

fn hear(heard: &mut Heard, news: News, asked: &Blocks) -> Result<()> {
    match news {
        News::Slice(fault) => {
            heard.meter.clear();
            if asked.json { output::line(serde_json::to_string(&shown(&fault))?) } else { print(&fault) }
        }
        News::At(progress) => {
            let sum = heard.before.plus(&progress);
            heard.meter.show(&sum);
            // While the block store is listed nothing was looked at.
            let Some(next) = progress.next else { return Ok(()) };
            heard.sum = sum;
            let Progress { slices, bytes, faults, .. } = heard.sum;
            let kept = Kept { next: Some(next), slices, bytes, faults, ..heard.before.clone() };
            asked.resume.as_ref().map_or(Ok(()), |path| kept.save(path))
        }
        // Not of this look.
        _ => Ok(()),
    }
}

fn span(since_ns: u64, until_ns: Option<u64>) -> String {
    match until_ns {
        Some(until_ns) => format!("from {} to {}", Version(since_ns), Version(until_ns)),
        None => format!("since {}", Version(since_ns)),
    }
}

pub(super) fn print(fault: &SliceFault) -> Result<()> {
    let fate = match fault.fate {
        Fate::Missing => "missing",
        Fate::Damaged => "damaged",
    };
    let place = match &fault.object {
        Some(object) => {
            format!("object {object} bytes {} to {}", fault.at, fault.at + u64::from(fault.stored_len))
        }
        None => "the metadata".to_owned(),
    };
    output::line(format!(
        "{fate}: bytes {} to {} of inode {} {}: slice {} in {place}: {}",
        fault.from,
        fault.to,
        fault.ino,
        span(fault.since_ns, fault.until_ns),
        fault.slice,
        fault.reason
    ))?;
    for name in &fault.paths {
        let live = if name.until_ns.is_none() { "now" } else { "past" };
        output::line(format!("  {live}: {} {}", name.path, span(name.since_ns, name.until_ns)))?;
    }
    if fault.more_paths {
        output::line("  and more names")?;
    }
    if fault.paths.is_empty() {
        output::line("  no name: it was removed while it was open, or is being removed")?;
    }
    Ok(())
}

/// As JSON, with instants as people write them.
pub(super) fn shown(fault: &SliceFault) -> serde_json::Value {
    let instant = |ns: u64| Version(ns).to_string();
    let named = |name: &chronofs_wire::analyze::NamedAt| {
        json!({
            "path": name.path, "since": instant(name.since_ns), "until": name.until_ns.map(instant),
        })
    };
    json!({
        "volume": fault.volume, "fate": fault.fate, "reason": fault.reason, "object": fault.object,
        "at": fault.at, "stored_len": fault.stored_len, "slice": fault.slice, "ino": fault.ino,
        "from": fault.from, "to": fault.to, "since": instant(fault.since_ns),
        "until": fault.until_ns.map(instant), "more_paths": fault.more_paths,
        "paths": fault.paths.iter().map(named).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(volume: &str, deep: bool) -> Blocks {
        let volume = Volume { volume: volume.to_owned() };
        Blocks { volume, deep, rate: None, resume: None, json: false }
    }

    #[test]
    fn how_far_it_came_is_kept_for_the_same_look_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("kept");
        let kept = Kept::read(&path, &asked("v", true)).unwrap();
        assert_eq!((kept.next.clone(), kept.slices), (None, 0));
        let kept = Kept { next: Some(Blob::from(&[1, 2][..])), slices: 3, faults: 1, ..kept };
        kept.save(&path).unwrap();
        let again = Kept::read(&path, &asked("v", true)).unwrap();
        assert_eq!((again.next, again.slices, again.faults), (kept.next, 3, 1));
        for other in [asked("w", true), asked("v", false)] {
            let refused = Kept::read(&path, &other).unwrap_err().to_string();
            assert!(refused.contains("another look"), "{refused}");
        }
        std::fs::write(&path, "{").unwrap();
        assert!(Kept::read(&path, &asked("v", true)).is_err());
    }
}
