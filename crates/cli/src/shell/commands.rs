//! What can be done in the shell. A new command is a row of [`COMMANDS`].

use super::words::{Command, behind_prefix, printable};
use super::{Shell, show};
use crate::snapshot::Wanted;
use crate::{interrupts, output};
use anyhow::{Result, anyhow, bail};
use chronofs_wire::http::Method;
use chronofs_wire::question::{Blob, KeyOp, KeyReply, KeyValue};
use chronofs_wire::status::ClusterStatus;
use std::process::ExitCode;

/// Pairs that `getrange` shows unless it is told otherwise.
const RANGE: u32 = 25;

/// What became of a command that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// All is well.
    Done,
    /// It was done, and what it found is not well.
    Unwell,
    /// It failed, and has said so.
    Failed,
    /// The shell is to end.
    Quit,
    /// It failed, and the shell is to end.
    Ended,
}

struct Known {
    name: &'static str,
    /// What follows the name.
    usage: &'static str,
    help: &'static str,
    /// More, for `help NAME`.
    more: &'static str,
    run: fn(&mut Shell, &[Vec<u8>]) -> Result<Outcome>,
}

const COMMANDS: &[Known] = &[
    Known {
        name: "clear",
        usage: "KEY",
        help: "take a key out of the key space",
        more: "Prints the version from which on it has no value. Needs writemode on.",
        run: clear,
    },
    Known { name: "exit", usage: "", help: "leave the shell; also quit and Ctrl-D", more: "", run: exit },
    Known {
        name: "get",
        usage: "KEY",
        help: "show the value of a key",
        more: "A key is at most 10000 bytes. Write \\xHH for any byte, and \"...\" around blanks and semicolons.",
        run: get,
    },
    Known {
        name: "getrange",
        usage: "BEGIN [END] [LIMIT]",
        help: "show keys and values from BEGIN on, up to but without END",
        more: "Without END: the keys that begin with BEGIN. Without LIMIT: 25.",
        run: get_range,
    },
    Known { name: "help", usage: "[COMMAND]", help: "tell what can be done", more: "", run: help },
    Known { name: "quit", usage: "", help: "leave the shell", more: "", run: exit },
    Known {
        name: "set",
        usage: "KEY VALUE",
        help: "give a key a value",
        more: "Prints the version from which on it has it, when that is durable. A value is at most 100000 bytes. Needs \
               writemode on.",
        run: set,
    },
    Known {
        name: "snapshot",
        usage: "BIN [ARG...]",
        help: "have every server run a program on an image of its data",
        more: "Ends when the set is complete, and prints its UID. BIN is an absolute path in whitelist_binpath of every \
               server; chronofs snapshot shows and ends snapshots.",
        run: snapshot,
    },
    Known {
        name: "status",
        usage: "[details|json]",
        help: "tell how the cluster is",
        more: "With details: each server. With json: all that is known, for programs. If anything ails the cluster, the \
               shell's exit status is 1.",
        run: status,
    },
    Known {
        name: "writemode",
        usage: "on|off",
        help: "let keys be changed, or not",
        more: "Off at the start, so that nothing is changed by mistake.",
        run: write_mode,
    },
];

/// Runs one.
pub(super) fn run(shell: &mut Shell, command: &Command) -> Result<Outcome> {
    let Some((name, arguments)) = command.split_first() else { return Ok(Outcome::Done) };
    (find(name)?.run)(shell, arguments)
}

fn find(name: &[u8]) -> Result<&'static Known> {
    COMMANDS
        .iter()
        .find(|known| known.name.as_bytes() == name)
        .ok_or_else(|| anyhow!("there is no command `{}': type help for those there are", printable(name)))
}

/// Where the word before the end of `line` begins, and what it can be.
pub(super) fn completions(line: &str) -> (usize, Vec<String>) {
    let command = line.rfind(';').map_or(0, |at| at + 1);
    let begun = line[command..].trim_start();
    let start = line.rfind([' ', ';']).map_or(0, |at| at + 1);
    let word = &line[start..];
    let names = || COMMANDS.iter().map(|known| known.name).collect::<Vec<_>>();
    let possible = match begun.split_once(' ').map(|(name, rest)| (name, rest.trim_start())) {
        None => names(),
        Some((_, rest)) if rest.contains(' ') => Vec::new(),
        Some(("help", _)) => names(),
        Some(("status", _)) => vec!["details", "json"],
        Some(("writemode", _)) => vec!["on", "off"],
        Some(_) => Vec::new(),
    };
    let fits = possible.into_iter().filter(|possible| possible.starts_with(word));
    (start, fits.map(str::to_owned).collect())
}

/// Refuses more or fewer arguments.
fn counted<'a>(name: &str, arguments: &'a [Vec<u8>], from: usize, to: usize) -> Result<&'a [Vec<u8>]> {
    if (from..=to).contains(&arguments.len()) {
        return Ok(arguments);
    }
    let usage = find(name.as_bytes())?.usage;
    bail!("{name} is written `{}'; words with blanks or ; go into \"\"", format!("{name} {usage}").trim_end())
}

fn snapshot(shell: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    let program = counted("snapshot", arguments, 1, usize::MAX)?.iter().map(|word| {
        String::from_utf8(word.clone()).map_err(|_| anyhow!("`{}' is not UTF-8", printable(word)))
    });
    let wanted = Wanted { uid: None, keep: None, program: program.collect::<Result<_>>()?, json: false };
    let ended = shell.runtime.block_on(crate::snapshot::create(&shell.client, wanted))?;
    // A signal that was for the snapshot as well.
    Ok(match (ended == ExitCode::SUCCESS, interrupts::told_to_end()) {
        (true, false) => Outcome::Done,
        (false, false) => Outcome::Failed,
        (true, true) => Outcome::Quit,
        (false, true) => Outcome::Ended,
    })
}

fn keys(shell: &Shell, op: &KeyOp) -> Result<KeyReply> {
    Ok(shell.runtime.block_on(shell.client.call(Method::POST, "/v1/keys", Some(op)))?)
}

fn unexpected() -> anyhow::Error {
    anyhow!("the admin server answered something else; are the versions the same?")
}

fn get(shell: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    let key = &counted("get", arguments, 1, 1)?[0];
    let KeyReply::Value { value, .. } = keys(shell, &KeyOp::Get { key: Blob::from(&key[..]) })? else {
        return Err(unexpected());
    };
    output::line(match value {
        Some(value) => format!("`{}' is `{}'", printable(key), printable(&value.0)),
        None => format!("`{}': not found", printable(key)),
    })?;
    Ok(Outcome::Done)
}

fn get_range(shell: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    let arguments = counted("getrange", arguments, 1, 3)?;
    let begin = Blob::from(&arguments[0][..]);
    let end = match arguments.get(1) {
        Some(end) => Some(Blob::from(&end[..])),
        None => behind_prefix(&begin.0).map(|end| Blob(end.into())),
    };
    let limit = match arguments.get(2) {
        Some(text) => {
            let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            number.ok_or_else(|| anyhow!("`{}' is not a number of pairs", printable(text)))?
        }
        None => RANGE,
    };
    let KeyReply::Range { pairs, more, .. } = keys(shell, &KeyOp::GetRange { begin, end, limit })? else {
        return Err(unexpected());
    };
    for KeyValue { key, value } in &pairs {
        output::line(format_args!("`{}' is `{}'", printable(&key.0), printable(&value.0)))?;
    }
    if more {
        output::line(format_args!("Range limited to {} keys; there are more", pairs.len()))?;
    }
    Ok(Outcome::Done)
}

fn change(shell: &Shell, op: &KeyOp) -> Result<Outcome> {
    if !shell.write_mode {
        bail!("writemode must be enabled to set or clear keys: writemode on");
    }
    let KeyReply::Committed { version } = keys(shell, op)? else { return Err(unexpected()) };
    output::line(format_args!("Committed ({version})"))?;
    Ok(Outcome::Done)
}

fn set(shell: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    let arguments = counted("set", arguments, 2, 2)?;
    let (key, value) = (Blob::from(&arguments[0][..]), Blob::from(&arguments[1][..]));
    change(shell, &KeyOp::Set { key, value })
}

fn clear(shell: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    let key = Blob::from(&counted("clear", arguments, 1, 1)?[0][..]);
    change(shell, &KeyOp::Clear { key })
}

fn write_mode(shell: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    shell.write_mode = match &counted("writemode", arguments, 1, 1)?[0][..] {
        b"on" => true,
        b"off" => false,
        other => bail!("writemode is on or off, not `{}'", printable(other)),
    };
    Ok(Outcome::Done)
}

fn status(shell: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    let detail = match counted("status", arguments, 0, 1)?.first().map(|word| &word[..]) {
        None => show::Detail::Short,
        Some(b"details") => show::Detail::Each,
        Some(b"json") => show::Detail::Json,
        Some(other) => bail!("status is followed by details, json or nothing, not by `{}'", printable(other)),
    };
    if detail != show::Detail::Json {
        output::line(shell.source())?;
    }
    let status = shell.runtime.block_on(shell.client.call(Method::GET, "/v1/status", None::<&()>));
    let status: ClusterStatus = status?;
    output::line(show::status(&status, detail, shell.cluster_file.as_deref(), &jiff::Zoned::now())?)?;
    Ok(if status.healthy { Outcome::Done } else { Outcome::Unwell })
}

fn help(_: &mut Shell, arguments: &[Vec<u8>]) -> Result<Outcome> {
    match counted("help", arguments, 0, 1)?.first() {
        Some(name) => {
            let Known { name, usage, help, more, .. } = find(name)?;
            output::line(format!("{name} {usage}").trim_end())?;
            output::line(format_args!("  {help}"))?;
            if !more.is_empty() {
                output::line(format_args!("  {more}"))?;
            }
        }
        None => {
            for Known { name, usage, help, .. } in COMMANDS {
                output::line(format_args!("  {:<30} {help}", format!("{name} {usage}")))?;
            }
            output::line("Several commands stand in a line with ; between them.")?;
        }
    }
    Ok(Outcome::Done)
}

fn exit(_: &mut Shell, _: &[Vec<u8>]) -> Result<Outcome> {
    Ok(Outcome::Quit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_help_is_one_line_without_a_full_stop() {
        assert!(COMMANDS.is_sorted_by_key(|known| known.name));
        for Known { name, help, .. } in COMMANDS {
            assert!(!help.contains('\n') && !help.ends_with('.'), "{name}");
        }
        let unknown = find(b"st\x00").err().unwrap().to_string();
        assert!(unknown.contains("`st\\x00'") && unknown.contains("help"), "{unknown}");
    }

    #[test]
    fn tab_completes_commands_and_what_follows_them() {
        for (line, start, words) in [
            ("ge", 0, &["get", "getrange"][..]),
            (
                "",
                0,
                &[
                    "clear",
                    "exit",
                    "get",
                    "getrange",
                    "help",
                    "quit",
                    "set",
                    "snapshot",
                    "status",
                    "writemode",
                ],
            ),
            ("get a; st", 7, &["status"]),
            ("get a;st", 6, &["status"]),
            ("status ", 7, &["details", "json"]),
            ("status j", 7, &["json"]),
            ("status json ", 12, &[]),
            ("writemode o", 10, &["on", "off"]),
            ("help w", 5, &["writemode"]),
            ("get ", 4, &[]),
            ("nothing x", 8, &[]),
        ] {
            assert_eq!(
                completions(line),
                (start, words.iter().map(|&word| word.to_owned()).collect()),
                "{line}"
            );
        }
    }
}
