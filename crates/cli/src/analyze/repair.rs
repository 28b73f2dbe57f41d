//! `analyze repair`: each object of which something was put back on a line, and what stays lost as `analyze blocks` shows it.

use super::Volume;
use super::blocks::{print, said, shown};
use super::follow::{Meter, follow};
use crate::output;
use anyhow::{Result, bail};
use chronofs_wire::analyze::{Fate, Look, MendedObject, News, Progress, Subject, Sum};
use chronofs_wire::http::AdminClient;
use chronofs_wire::question::Blob;
use clap::{ArgGroup, Args};
use serde_json::json;
use std::cell::RefCell;
use std::process::ExitCode;

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("source").required(true).multiple(true).args(["from_store", "from_cache", "from_copy"]))]
pub(super) struct Repair {
    #[command(flatten)]
    pub(super) volume: Volume,
    /// A copy of the block store: the name of a block store that holds one, or its folder
    #[arg(long, value_name = "NAME|DIR")]
    from_store: Option<String>,
    /// The folder of a mount's disk cache, or a copy of one
    #[arg(long, value_name = "DIR")]
    from_cache: Option<String>,
    /// A copy of the volume's files, with their paths from its root
    #[arg(long, value_name = "DIR")]
    from_copy: Option<String>,
    /// Only say what would be put back
    #[arg(long)]
    dry_run: bool,
    /// Read every slice and check it, instead of comparing sizes of objects with what rows need of them
    #[arg(long)]
    deep: bool,
    /// With --deep read at most so many bytes a second: 50M, 1G
    #[arg(long, value_name = "SIZE", value_parser = output::parse_size, requires = "deep")]
    rate: Option<u64>,
    /// Print JSON: a line for each object of which something was put back and for each slice that stays lost, and one with the sums
    #[arg(long)]
    json: bool,
}

/// What was heard.
struct Heard {
    objects: u64,
    slices: u64,
    bytes: u64,
    lost: u64,
    next: Option<Blob>,
    meter: Meter,
}

pub(super) async fn run(client: &AdminClient, asked: Repair) -> Result<ExitCode> {
    let heard = Heard { objects: 0, slices: 0, bytes: 0, lost: 0, next: None, meter: Meter::new() };
    let heard = RefCell::new(heard);
    let look = || Look::Repair {
        dry_run: asked.dry_run,
        deep: asked.deep,
        bytes_per_second: asked.rate.unwrap_or(0),
        from_store: asked.from_store.clone(),
        from_cache: asked.from_cache.clone(),
        from_copy: asked.from_copy.clone(),
        // One that a server forgot goes on behind what was heard of it.
        from: heard.borrow().next.clone(),
    };
    let subject = Subject::Volume(asked.volume.volume.clone());
    let ended = follow(client, &subject, look, |news| hear(&mut heard.borrow_mut(), news, &asked)).await;
    heard.borrow_mut().meter.clear();
    let Heard { objects, slices, bytes, lost, .. } = heard.into_inner();
    let Sum::Blocks(sum) = ended? else {
        bail!("the server looked at something else; are the versions the same?")
    };
    tell(&asked, [objects, slices, bytes, lost], &sum)?;
    Ok(if lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(asked: &Repair, [objects, slices, bytes, lost]: [u64; 4], sum: &Progress) -> Result<()> {
    if asked.json {
        let sum = json!({
            "slices": sum.slices, "bytes": sum.bytes, "deep": asked.deep, "dry_run": asked.dry_run,
            "mended_objects": objects, "mended_slices": slices, "mended_bytes": bytes, "faults": lost,
        });
        return output::line(json!({ "sum": sum }));
    }
    if objects == 0 && lost == 0 {
        return output::line(format!("nothing is lost; {}", said(sum)));
    }
    let how = if asked.dry_run { "would be put back" } else { "put back" };
    output::line(format!(
        "{how}: {slices} slices with {} in {objects} objects; still lost: {lost}; {}",
        output::show_size(bytes),
        said(sum)
    ))?;
    if lost > 0 {
        output::note(
            "what is still lost has to come from elsewhere: name another source, copy the files that are named above from a backup \
             (chronofs backup restore) or from a past that has other bytes of them, or write them anew",
        );
    }
    Ok(())
}

fn hear(heard: &mut Heard, news: News, asked: &Repair) -> Result<()> {
    match news {
        News::Mended(mended) => {
            heard.meter.clear();
            heard.objects += 1;
            heard.slices += mended.slices;
            heard.bytes += mended.bytes;
            show(&mended, asked)
        }
        News::Slice(fault) => {
            heard.meter.clear();
            heard.lost += 1;
            match asked.json {
                true => output::line(json!({ "lost": shown(&fault) })),
                false => print(&fault),
            }
        }
        News::At(progress) => {
            heard.meter.show(&progress);
            if progress.next.is_some() {
                heard.next = progress.next;
            }
            Ok(())
        }
        // Nothing of it concerns bytes.
        _ => Ok(()),
    }
}

fn show(mended: &MendedObject, asked: &Repair) -> Result<()> {
    let MendedObject { object, fate, slices, bytes, left, from } = mended;
    if asked.json {
        return output::line(json!({ "mended": mended }));
    }
    let how = if asked.dry_run { "would be put back" } else { "put back" };
    let was = match fate {
        Fate::Missing => "missing",
        Fate::Damaged => "damaged",
    };
    let left = if *left > 0 { format!("; slices that stay lost: {left}") } else { String::new() };
    output::line(format!(
        "{how}: object {object}, which was {was}: slices: {slices} with {}{left}; from {}",
        output::show_size(*bytes),
        from.join(" and ")
    ))
}
