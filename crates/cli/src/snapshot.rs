//! `chronofs snapshot`: disk snapshots of all servers. Scripts know its two sentences and its exit status from elsewhere, so
//! they are said word for word, without a prefix.

use crate::clone::{self, Committed};
use crate::cluster::AdminArgs;
use crate::interrupts::Interrupts;
use crate::output::{self, Column};
use crate::serve;
use anyhow::{Context, Result, anyhow, bail};
use chronofs_core::{Retention, Version};
use chronofs_snapshot::protocol::{Fault, Node, Record, State};
use chronofs_snapshot::{SnapshotCode, SnapshotUid, code, record};
use chronofs_wire::http::{AdminClient, ClientError, Method};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the admin server waits for a snapshot's end before it says how it stands: with somebody who sees that, without.
const ASKED_FOR: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(20)];
/// How long until it is asked again.
const BETWEEN: Duration = Duration::from_millis(10);
/// The same if it did not wait, as one of an earlier release, one that stops and one that is away do not,
const BETWEEN_UNWAITED: Duration = Duration::from_millis(200);
/// which is seen by an answer within this time.
const UNWAITED: Duration = Duration::from_millis(100);
/// How much of what is left is shown, in characters.
const LEFT_WIDTH: usize = 60;
/// How long the admin server may be out of reach until the command gives up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub(crate) struct Snapshot {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Have every server run a program on an image of its data, and wait until the set is complete
    #[command(
        after_help = "Example:\n  chronofs snapshot create -- /usr/lib/chronofs/snap-create.sh --destdir /mnt/backup"
    )]
    Create {
        /// UID of the snapshot: 32 digits of 0 to 9 and a to f [default: drawn]
        #[arg(long)]
        uid: Option<String>,
        /// Keep what the set needs for so long, as 30d [default: until snapshot delete]
        #[arg(long, value_name = "TIME")]
        keep: Option<Retention>,
        /// The program, an absolute path in whitelist_binpath of every server, and what it is told
        #[arg(last = true, required = true, value_name = "BIN [ARG...]")]
        program: Vec<String>,
    },
    /// Show snapshots, newest first
    List,
    /// Show all that is known of a snapshot
    Describe {
        /// Its UID
        uid: SnapshotUid,
        /// Also write its record into a file
        #[arg(long, value_name = "FILE")]
        record: Option<PathBuf>,
    },
    /// Check a set that a snapshot left: labels, every byte, and that all servers are there
    #[command(after_help = "Example:\n  chronofs snapshot verify /mnt/backup/UID")]
    Verify {
        /// Folder that the snapshot's program wrote to, or several
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        #[command(flatten)]
        committed: Committed,
    },
    /// Show the snapshot that is under way
    Status,
    /// End a snapshot that is under way: programs are killed, and what was made for it goes
    Abort {
        /// Its UID
        uid: SnapshotUid,
    },
    /// Forget a snapshot that is over: what its set needs is not kept any more; copies of it stay
    Delete {
        /// Its UID
        uid: SnapshotUid,
        /// Also while a clone reads what it keeps, a server does not answer, or nobody knows the snapshot
        #[arg(long)]
        force: bool,
    },
}

/// What is wanted of a snapshot.
pub(crate) struct Wanted {
    /// As the caller gave it.
    pub(crate) uid: Option<String>,
    pub(crate) keep: Option<Retention>,
    pub(crate) program: Vec<String>,
    pub(crate) json: bool,
}

pub(crate) fn run(snapshot: Snapshot) -> Result<ExitCode> {
    let Snapshot { admin, json, command } = snapshot;
    let client = || admin.client().context("snapshot");
    // Nobody need be there to ask, if the record is at hand.
    if let Command::Verify { dirs, committed } = &command {
        clone::verify_set(dirs, committed, client, json).context("snapshot verify")?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = client()?;
    serve(async move {
        match command {
            Command::Create { uid, keep, program } => {
                return create(&client, Wanted { uid, keep, program, json }).await;
            }
            Command::Verify { .. } => {}
            Command::List => list(&client, json).await.context("snapshot list")?,
            Command::Describe { uid, record } => {
                describe(&client, &uid, record, json).await.context("snapshot describe")?;
            }
            Command::Status => status(&client, json).await.context("snapshot status")?,
            Command::Abort { uid } => abort(&client, &uid, json).await.context("snapshot abort")?,
            Command::Delete { uid, force } => {
                let path = format!("/v1/snapshots/{uid}{}", if force { "?force=true" } else { "" });
                let deleted = client.call::<Value>(Method::DELETE, &path, None::<&()>).await;
                let is_old = deleted.context("snapshot delete")?["already"] == json!(true);
                let gone = if is_old { "is gone already: it was deleted" } else { "is forgotten" };
                output::line(format_args!(
                    "snapshot {uid} {gone}; delete the copies of its images yourself"
                ))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// `snapshot BIN [ARG...]`: begins, waits, and says how it ended. The UID is known before anything is done.
pub(crate) async fn create(client: &AdminClient, wanted: Wanted) -> Result<ExitCode> {
    let uid: SnapshotUid = match &wanted.uid {
        None => SnapshotUid::from_bytes(chronofs_wire::identity::random()?),
        Some(text) => match text.parse() {
            Ok(uid) => uid,
            Err(error) => {
                return refused(text, SnapshotCode::InvalidUid, &[format!("{error}")], wanted.json);
            }
        },
    };
    let keep_seconds = match wanted.keep {
        None | Some(Retention::Forever) => None,
        Some(Retention::Seconds(seconds)) => Some(seconds),
        Some(Retention::None) => {
            bail!("--keep 0 would keep nothing of the set: leave it out, or write a time")
        }
    };
    let (program, arguments) =
        wanted.program.split_first().ok_or_else(|| anyhow!("the program is missing"))?;
    let body = json!({
        "uid": uid.as_str(), "program": program, "arguments": arguments, "keep_seconds": keep_seconds,
    });
    // Before anything is done, so that nothing is left to itself.
    let mut interrupts = Interrupts::new()?;
    let begin = client.call::<Value>(Method::POST, "/v1/snapshots", Some(&body));
    let (begun, interrupted) = interrupts.beside(begin).await;
    let Some(begun) = begun else { return finished(&uid, end(client, &uid).await, wanted.json) };
    let begun = match begun {
        Ok(begun) => begun,
        Err(ClientError::Refused { message, .. }) => {
            return refused(uid.as_str(), SnapshotCode::Unknown, &[message], wanted.json);
        }
        // Nobody knows whether it began.
        Err(error) => {
            let unsure = format!("{error}; chronofs snapshot describe {uid} says later what became of it");
            return refused(uid.as_str(), SnapshotCode::Unknown, &[unsure], wanted.json);
        }
    };
    if let Ok(Fault { code, why }) = serde_json::from_value(begun["refused"].clone()) {
        let advice = format!("advice: {}", code.advice());
        return refused(uid.as_str(), code, &[why, advice], wanted.json);
    }
    if interrupted {
        return finished(&uid, end(client, &uid).await, wanted.json);
    }
    let record = tokio::select! {
        record = until_over(client, &uid) => record,
        () = interrupts.next() => end(client, &uid).await,
    };
    finished(&uid, record, wanted.json)
}

/// Has a snapshot ended, and gives what became of it.
async fn end(client: &AdminClient, uid: &SnapshotUid) -> Result<Record> {
    let path = format!("/v1/snapshots/{uid}/abort");
    Ok(client.call(Method::POST, &path, None::<&()>).await?)
}

fn finished(uid: &SnapshotUid, record: Result<Record>, json: bool) -> Result<ExitCode> {
    match record {
        Ok(record) => ended(&record, json),
        Err(error) => {
            let unsure = format!("{error:#}; chronofs snapshot describe {uid} says what became of it");
            refused(uid.as_str(), SnapshotCode::Unknown, &[unsure], json)
        }
    }
}

/// There is no set, and no record either.
fn refused(uid: &str, code: SnapshotCode, why: &[String], json: bool) -> Result<ExitCode> {
    failed(json.then(|| json!({})), uid, code, why)
}

/// Says on standard error that there is no set, and why. What programs read is added to what is known, on standard output.
fn failed(known: Option<Value>, uid: &str, code: SnapshotCode, why: &[String]) -> Result<ExitCode> {
    if let Some(known) = known {
        output::line(serde_json::to_string_pretty(&failure(known, uid, code, why))?)?;
    }
    output::plain_note(code.failure(uid));
    for text in why {
        text.lines().for_each(|line| output::plain_note(format_args!("  {line}")));
    }
    Ok(ExitCode::FAILURE)
}

fn failure(mut known: Value, uid: &str, code: SnapshotCode, why: &[String]) -> Value {
    known["uid"] = json!(uid);
    known["code"] = json!(code);
    known["name"] = json!(code.name());
    known["error"] = json!(code.text());
    known["why"] = json!(why);
    known
}

/// Follows a snapshot to its end; on a terminal it shows where it is.
async fn until_over(client: &AdminClient, uid: &SnapshotUid) -> Result<Record> {
    let terminal = std::io::stderr().is_terminal();
    let mut heard = Instant::now();
    let mut shown = String::new();
    let [seen, unseen] = ASKED_FOR;
    let wait_ms = if terminal { seen } else { unseen }.as_millis();
    let path = format!("/v1/snapshots/{uid}?wait_ms={wait_ms}");
    loop {
        let asked = Instant::now();
        let answer = client.call::<Value>(Method::GET, &path, None::<&()>).await;
        let waited = answer.is_ok() && asked.elapsed() >= UNWAITED;
        match answer {
            Ok(value) => {
                heard = Instant::now();
                let record: Record = serde_json::from_value(value.clone())?;
                if terminal {
                    show_progress(&value, &mut shown);
                }
                if record.state != State::Running {
                    return Ok(record);
                }
            }
            Err(error) if error.is_transient() && heard.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(if waited { BETWEEN } else { BETWEEN_UNWAITED }).await;
    }
}

/// The phase, and as many of the servers that are not done with it as fit on a line, with their roles.
fn progress(value: &Value) -> String {
    let Some(phase) = value["phase"].as_str() else { return String::new() };
    let words = |left: &Value| -> String {
        let words = [&left["server"], &left["role"]].into_iter().filter_map(Value::as_str);
        words.collect::<Vec<_>>().join(" ")
    };
    let left: Vec<String> = value["left"].as_array().into_iter().flatten().map(words).collect();
    if left.is_empty() {
        // An admin server of an earlier release names nobody.
        let steps = value["steps_left"].as_u64();
        return steps.map_or_else(String::new, |steps| format!("{phase}: {steps} to do"));
    }
    let widths = left.iter().scan(0_usize, |width, words| {
        *width += words.chars().count() + 2;
        Some(*width)
    });
    let named = widths.take_while(|width| *width <= LEFT_WIDTH).count().max(1);
    let more = match left.len() - named {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{phase}: {}{more}", left[..named].join(", "))
}

fn show_progress(value: &Value, shown: &mut String) {
    let text = progress(value);
    if text != *shown {
        // Nobody is left to tell if this fails.
        let _ = write!(std::io::stderr(), "\r{text:<width$}\r{text}", width = shown.len());
        if text.is_empty() {
            let _ = write!(std::io::stderr(), "\r");
        }
        *shown = text;
    }
}

fn ended(record: &Record, json: bool) -> Result<ExitCode> {
    let uid = &record.intent.attempt.uid;
    let mut known = json.then(|| serde_json::to_value(record)).transpose()?;
    if record.state == State::Complete {
        if let Some(known) = &mut known {
            known["uid"] = json!(uid.as_str());
            output::line(serde_json::to_string_pretty(known)?)?;
        } else {
            output::line(code::success(uid))?;
            for (node, cut) in &record.cuts {
                let name = record.intent.node(node).map_or(node.as_str(), |node| &node.name);
                output::plain_note(format_args!("{name} as of {}", Version(cut.cut).as_of()));
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let code = record.code.unwrap_or(SnapshotCode::Unknown);
    failed(known, uid.as_str(), code, &reasons(record))
}

/// What went wrong, each with role and address.
fn failures(record: &Record) -> Vec<String> {
    let shown = |failure: &chronofs_snapshot::protocol::Failure| {
        let node = failure.node.as_ref().and_then(|id| record.intent.node(id));
        let role = failure.role.map_or_else(String::new, |role| format!("{role} of "));
        match node {
            Some(Node { name, address, .. }) => format!("{role}{name} at {address}: {}", failure.why),
            None => failure.why.clone(),
        }
    };
    record.failures.iter().map(shown).collect()
}

/// Why there is no set, or none any more, and what the operator does about it.
fn reasons(record: &Record) -> Vec<String> {
    let mut why = failures(record);
    why.extend(record.expired().map(str::to_owned));
    why.extend(record.advice().map(|advice| format!("advice: {advice}")));
    why
}

async fn all(client: &AdminClient) -> Result<Vec<(Record, Value)>> {
    let values: Vec<Value> = client.call(Method::GET, "/v1/snapshots", None::<&()>).await?;
    values.into_iter().map(|value| Ok((serde_json::from_value(value.clone())?, value))).collect()
}

const COLUMNS: [Column; 9] = [
    ("UID", "uid"),
    ("STATE", "state"),
    ("PHASE", "phase"),
    ("STARTED", "started"),
    ("CUT", "cuts"),
    ("MEMBERS", "members"),
    ("SIZE", "bytes"),
    ("KEPT UNTIL", "kept_until"),
    ("READ BY", "readers"),
];

fn row(record: &Record, value: &Value) -> Value {
    let intent = &record.intent;
    let kept_until = match (record.state, intent.keep_until_ns) {
        (State::Complete, Some(ns)) => json!(Version(ns).to_string()),
        (State::Complete, None) => json!("deleted"),
        (State::Expired, Some(ns)) => json!(format!("{} (over: it may not be whole)", Version(ns))),
        _ => Value::Null,
    };
    let cuts: BTreeMap<&str, String> = record
        .cuts
        .iter()
        .map(|(id, cut)| (intent.node(id).map_or(id.as_str(), |node| &node.name), Version(cut.cut).as_of()))
        .collect();
    let cuts: Vec<String> = cuts.into_iter().map(|(name, cut)| format!("{name} {cut}")).collect();
    let held: Vec<String> = record
        .held_ms
        .iter()
        .map(|(id, ms)| format!("{} {ms} ms", intent.node(id).map_or(id.as_str(), |node| &node.name)))
        .collect();
    let members: Vec<&str> = intent.nodes.iter().map(|node| node.name.as_str()).collect();
    let bytes = (!record.bytes.is_empty()).then(|| record.bytes.values().sum::<u64>());
    let command: Vec<&str> =
        std::iter::once(&intent.program).chain(&intent.arguments).map(String::as_str).collect();
    json!({
        "uid": intent.attempt.uid.as_str(), "state": record.state, "phase": value["phase"],
        "started": Version(intent.started_ns).to_string(), "cuts": cuts, "held": held, "members": members, "bytes": bytes,
        "ended": record.ended_ns.map(|ns| Version(ns).to_string()), "kept_until": kept_until, "command": command,
        "code": record.code, "failures": failures(record), "readers": value["readers"],
    })
}

async fn list(client: &AdminClient, json: bool) -> Result<()> {
    let all = all(client).await?;
    if json {
        let values: Vec<&Value> = all.iter().map(|(_, value)| value).collect();
        return output::line(serde_json::to_string_pretty(&values)?);
    }
    let rows: Vec<Value> = all.iter().map(|(record, value)| row(record, value)).collect();
    output::line(output::table(&COLUMNS, &rows))?;
    let unknown: Vec<Value> = client.call(Method::GET, "/v1/snapshots/unknown", None::<&()>).await?;
    for kept in unknown {
        let names = |value: &Value| -> String {
            let all = value.as_array().into_iter().flatten();
            all.filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
        };
        let (uid, readers) = (kept["uid"].as_str().unwrap_or_default(), names(&kept["readers"]));
        let read = if readers.is_empty() { String::new() } else { format!(", read by {readers}") };
        output::warn(format_args!(
            "{} keeps what snapshot {uid} needs{read}, which is deleted or not known here: it is left alone; chronofs snapshot \
             delete {uid} --force has it gone",
            names(&kept["kept_at"])
        ));
    }
    Ok(())
}

const FIELDS: [Column; 14] = [
    ("uid", "uid"),
    ("state", "state"),
    ("phase", "phase"),
    ("code", "code"),
    ("failures", "failures"),
    ("command", "command"),
    ("started", "started"),
    ("ended", "ended"),
    ("cut", "cuts"),
    ("log held", "held"),
    ("members", "members"),
    ("size", "bytes"),
    ("kept until", "kept_until"),
    ("read by", "readers"),
];

async fn describe(client: &AdminClient, uid: &SnapshotUid, file: Option<PathBuf>, json: bool) -> Result<()> {
    let value: Value = client.call(Method::GET, &format!("/v1/snapshots/{uid}"), None::<&()>).await?;
    let record: Record = serde_json::from_value(value.clone())?;
    if let Some(file) = file {
        std::fs::write(&file, record::seal(&record)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if json {
        return output::line(serde_json::to_string_pretty(&value)?);
    }
    output::line(output::card(&FIELDS, &row(&record, &value)))
}

async fn status(client: &AdminClient, json: bool) -> Result<()> {
    let running = all(client).await?.into_iter().find(|(record, _)| record.state == State::Running);
    match (running, json) {
        (running, true) => {
            output::line(serde_json::to_string_pretty(&running.map_or(Value::Null, |(_, value)| value))?)
        }
        (Some((record, value)), false) => output::line(output::card(&FIELDS, &row(&record, &value))),
        (None, false) => output::line("no snapshot is under way"),
    }
}

async fn abort(client: &AdminClient, uid: &SnapshotUid, json: bool) -> Result<()> {
    let record: Record =
        client.call(Method::POST, &format!("/v1/snapshots/{uid}/abort"), None::<&()>).await?;
    if json {
        return output::line(serde_json::to_string_pretty(&record)?);
    }
    output::line(format_args!("snapshot {uid} is {}", json!(record.state).as_str().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_an_object_with_uid_code_and_reasons_for_programs() {
        let why = ["it needs the role operator".to_owned()];
        let expected = json!({
            "uid": "c502", "code": 4000, "name": "unknown_error", "error": "An unknown error occurred", "why": why,
        });
        assert_eq!(failure(json!({}), "c502", SnapshotCode::Unknown, &why), expected);
        let known =
            failure(json!({ "state": "FAILED", "code": null }), "c502", SnapshotCode::TlogFailed, &why);
        assert_eq!((&known["state"], &known["code"]), (&json!("FAILED"), &json!(2502)));
    }

    #[test]
    fn a_set_whose_time_is_over_before_somebody_hears_of_it_is_no_unknown_error_without_a_reason() {
        let mut record = json!({
            "intent": {
                "attempt": { "uid": "c50263df28be44ebb596f5c2a849adbb", "number": 7 }, "cluster": "c1", "program": "/bin/snap",
                "arguments": [], "nodes": [], "started_ns": 8, "keep_until_ns": 9, "hold_ms": 1, "run_ms": 1,
            },
            "state": "EXPIRED", "ended_ns": 10, "cuts": {}, "bytes": {}, "code": null, "failures": [],
        });
        let why = |record: &Value| reasons(&serde_json::from_value(record.clone()).unwrap());
        assert!(why(&record)[0].contains("its time to be kept"), "{:?}", why(&record));
        record["state"] = json!("ABORTED");
        assert_eq!(why(&record), Vec::<String>::new());
    }

    #[test]
    fn progress_names_servers_and_roles_as_far_as_they_fit() {
        let left = |server: &str, role: Value| json!({ "server": server, "role": role });
        let two = [left("store", json!("tlog")), left("admin", Value::Null)];
        let value = json!({ "phase": "run", "steps_left": 2, "left": two });
        assert_eq!(progress(&value), "run: store tlog, admin");
        let many: Vec<Value> = (10..30).map(|n| left(&format!("store-{n}"), json!("storage"))).collect();
        let value = json!({ "phase": "run", "steps_left": 20, "left": many });
        assert_eq!(progress(&value), "run: store-10 storage, store-11 storage, store-12 storage and 17 more");
        let long = [left(&"x".repeat(100), Value::Null), left("y", Value::Null)];
        let value = json!({ "phase": "label", "left": long });
        assert_eq!(progress(&value), format!("label: {} and 1 more", "x".repeat(100)));
        assert_eq!(progress(&json!({ "phase": "hold", "steps_left": 3 })), "hold: 3 to do");
        assert_eq!(progress(&json!({ "state": "COMPLETE" })), "");
    }
}
