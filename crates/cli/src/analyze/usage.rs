//! `analyze usage`, `analyze objects` and `analyze volume`: sums, and by name what nothing explains.

use super::Volume;
use super::follow::{Meter, follow};
use crate::output;
use anyhow::{Result, bail};
use chronofs_core::{Retention, Version};
use chronofs_wire::analyze::{By, Look, News, Subject, Sum};
use chronofs_wire::http::AdminClient;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// The volume, and how it is shown.
#[derive(Args, Debug)]
pub(super) struct Of {
    #[command(flatten)]
    pub(super) volume: Volume,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct Usage {
    #[command(flatten)]
    pub(super) of: Of,
    /// Tell parts of the volume apart
    #[arg(long, value_name = "WHAT")]
    by: Option<Parts>,
    /// Say what the past would take with this retention: 7d, 12h, 0
    #[arg(long)]
    retention: Option<Retention>,
}

#[derive(Args, Debug)]
pub(super) struct Objects {
    #[command(flatten)]
    pub(super) of: Of,
    /// Name each object that nothing explains, with its size, when it was stored, and why it is not explained
    #[arg(long)]
    quarantined: bool,
}

/// Parts of a volume.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Parts {
    /// Folders in its root
    Folder,
    /// User ids
    Owner,
    /// How long ago it was written
    Age,
}

async fn sum(client: &AdminClient, of: &Of, look: Look) -> Result<Sum> {
    let mut meter = Meter::new();
    let hear = |news: News| {
        match news {
            News::At(progress) => meter.show(&progress),
            News::Rows(rows) => meter.tell(&format!("rows read: {rows}")),
            _ => {}
        }
        Ok(())
    };
    let ended = follow(client, &Subject::Volume(of.volume.volume.clone()), || look.clone(), hear).await;
    meter.clear();
    ended
}

fn other<T>() -> Result<T> {
    bail!("the server looked at something else; are the versions the same?")
}

/// As JSON, with the instant as people write it.
fn print_json(at_ns: u64, sum: &impl Serialize) -> Result<ExitCode> {
    let mut value = serde_json::to_value(sum)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("at_ns");
        fields.insert("at".to_owned(), Version(at_ns).to_string().into());
    }
    output::line(serde_json::to_string_pretty(&value)?)?;
    Ok(ExitCode::SUCCESS)
}

fn print_table(columns: &[output::Column], rows: &[Value]) -> Result<()> {
    output::line(output::table(columns, rows))
}

pub(super) async fn usage(client: &AdminClient, asked: Usage) -> Result<ExitCode> {
    let by = match asked.by {
        None => By::Nothing,
        Some(Parts::Folder) => By::Folder,
        Some(Parts::Owner) => By::Owner,
        Some(Parts::Age) => By::Age,
    };
    let retention_s = match asked.retention {
        None | Some(Retention::Forever) => None,
        Some(Retention::None) => Some(0),
        Some(Retention::Seconds(seconds)) => Some(seconds),
    };
    let Sum::Usage(usage) = sum(client, &asked.of, Look::Usage { by, retention_s }).await? else {
        return other();
    };
    if asked.of.json {
        return print_json(usage.at_ns, &usage);
    }
    let mut rows = vec![json!({
        "name": asked.of.volume.volume, "live_bytes": usage.live.bytes, "past_bytes": usage.past.bytes,
        "kept_bytes": usage.kept_bytes,
    })];
    for part in &usage.parts {
        rows.push(serde_json::to_value(part)?);
    }
    let mut columns = vec![("", "name"), ("NOW", "live_bytes"), ("PAST", "past_bytes")];
    if asked.retention.is_some() {
        columns.push(("PAST WITH THAT RETENTION", "kept_bytes"));
    }
    print_table(&columns, &rows)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn volume(client: &AdminClient, of: Of) -> Result<ExitCode> {
    let look = Look::Usage { by: By::Nothing, retention_s: None };
    let Sum::Usage(usage) = sum(client, &of, look).await? else { return other() };
    if of.json {
        return print_json(usage.at_ns, &usage);
    }
    let columns = [
        ("as of", "at"),
        ("files", "/inodes/files"),
        ("folders", "/inodes/folders"),
        ("symbolic links", "/inodes/links"),
        ("others", "/inodes/others"),
        ("size of the files", "/inodes/size_bytes"),
        ("without holes", "/inodes/allocated_bytes"),
        ("slices now", "/live/slices"),
        ("as stored", "/live/bytes"),
        ("of it in rows", "/live/inline_bytes"),
        ("of it small", "/live/small_bytes"),
        ("compressed to", "compressed"),
        ("slices of the past", "/past/slices"),
        ("as stored", "/past/bytes"),
    ];
    let mut value = serde_json::to_value(&usage)?;
    let percent = usage.live.bytes.saturating_mul(100).checked_div(usage.live.opened_bytes);
    value["compressed"] = percent.map_or(Value::Null, |percent| format!("{percent} %").into());
    value["at"] = Version(usage.at_ns).to_string().into();
    output::line(output::card(&columns, &value))?;
    Ok(ExitCode::SUCCESS)
}

/// Those that nothing explains. They stay until somebody names them: `analyze discard`.
async fn quarantined(client: &AdminClient, of: &Of) -> Result<ExitCode> {
    let (mut meter, mut found) = (Meter::new(), BTreeMap::new());
    let hear = |news: News| {
        match news {
            News::At(progress) => meter.show(&progress),
            // A server that is started anew meanwhile tells them again.
            News::Quarantined(object) => drop(found.insert(object.object.clone(), *object)),
            _ => {}
        }
        Ok(())
    };
    let subject = Subject::Volume(of.volume.volume.clone());
    let ended = follow(client, &subject, || Look::Quarantined, hear).await;
    meter.clear();
    let Sum::Quarantined(_) = ended? else { return other() };
    let bytes: u64 = found.values().map(|object| object.bytes).sum();
    let mut rows = Vec::new();
    for object in found.values() {
        let mut row = serde_json::to_value(object)?;
        row["stored"] = object.stored_ns.map_or(Value::Null, |ns| Version(ns).to_string().into());
        rows.push(row);
    }
    if of.json {
        let all = json!({ "count": rows.len(), "bytes": bytes, "objects": rows });
        output::line(serde_json::to_string_pretty(&all)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        ("OBJECT", "object"),
        ("SIZE", "bytes"),
        ("STORED", "stored"),
        ("INCARNATION", "incarnation"),
        ("BECAUSE", "reason"),
    ];
    print_table(&columns, &rows)?;
    output::line(format_args!(
        "\nunexplained: {}, {}; they are left alone",
        rows.len(),
        output::show_size(bytes)
    ))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn objects(client: &AdminClient, asked: Objects) -> Result<ExitCode> {
    let Objects { of, quarantined: named } = asked;
    if named {
        return quarantined(client, &of).await;
    }
    let Sum::Objects(objects) = sum(client, &of, Look::Objects).await? else { return other() };
    if of.json {
        return print_json(objects.at_ns, &objects);
    }
    let row = |what: &str, counted: &chronofs_wire::analyze::Counted| json!({"what": what, "count": counted.count, "bytes": counted.bytes});
    let rows = [
        row("objects that clients stored", &objects.direct),
        row("objects of small slices", &objects.packed),
        row("small slices to be packed", &objects.small),
        row("not needed any more, waiting", &objects.retired),
        row("being deleted", &objects.condemned),
        row("found in the block store", &objects.known),
        row("found, not used yet", &objects.open),
        row("found, never used", &objects.garbage),
        row("found, unexplained", &objects.quarantined),
    ];
    print_table(&[("", "what"), ("COUNT", "count"), ("SIZE", "bytes")], &rows)?;
    let fills: Vec<Value> = objects.fills.iter().map(|fill| json!({
        "percent": format!("up to {} %", fill.up_to_percent), "objects": fill.objects, "bytes": fill.bytes,
        "needed_bytes": fill.needed_bytes,
    })).collect();
    let columns =
        [("NEEDED", "percent"), ("OBJECTS", "objects"), ("SIZE", "bytes"), ("OF IT NEEDED", "needed_bytes")];
    print_table(&columns, &fills)?;
    for strange in &objects.examples {
        output::line(format!("  {}: {}; it is left alone", strange.object, strange.reason))?;
    }
    Ok(ExitCode::SUCCESS)
}
