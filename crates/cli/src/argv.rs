//! The command line before clap sees it: one executable under many names, camelCase spellings of options, and the
//! call of mount(8).

use std::ffi::OsString;
use std::path::Path;

const ROLES: [&str; 6] = ["admin", "manage", "meta", "configure", "mount", "snap-create"];
/// What follows `mount.chronofs` when a person and not mount(8) calls it.
const MOUNT_COMMANDS: [&str; 6] = ["init", "start", "stop", "list", "help", "--help"];

/// What to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Argv {
    /// These arguments, for clap.
    Run(Vec<OsString>),
    /// Nothing: mount(8) asked to pretend.
    Pretend,
}

/// Rewrites `ROLE.ANYTHING ...` as `chronofs ROLE ...`, options as kebab-case, and calls of mount(8).
pub(crate) fn rewrite(args: Vec<OsString>) -> Result<Argv, String> {
    let Some((program, rest)) = args.split_first() else { return Ok(Argv::Run(args)) };
    let name = Path::new(program).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let role = name.split_once('.').map(|(role, _)| role).filter(|role| ROLES.contains(role));
    let Some(role) = role else { return Ok(Argv::Run(kebab(args))) };
    let called_by_person = rest.first().is_none_or(|first| {
        let first = first.to_string_lossy();
        MOUNT_COMMANDS.contains(&first.as_ref()) || first == "-h"
    });
    let mut rewritten = vec![OsString::from("chronofs"), role.into()];
    if role == "mount" && !called_by_person {
        return mount_helper(rewritten, rest);
    }
    rewritten.extend_from_slice(rest);
    Ok(Argv::Run(kebab(rewritten)))
}

/// `--atTime=X` becomes `--at-time=X`; everything after `--` stays.
fn kebab(mut args: Vec<OsString>) -> Vec<OsString> {
    for arg in args.iter_mut().skip(1) {
        if arg == "--" {
            break;
        }
        let Some(text) = arg.to_str().filter(|text| text.starts_with("--")) else { continue };
        let (name, value) = text.find('=').map_or((text, ""), |at| text.split_at(at));
        if !name.bytes().any(|b| b.is_ascii_uppercase()) {
            continue;
        }
        let mut spelled = String::new();
        for c in name.chars() {
            if c.is_ascii_uppercase() {
                spelled.push('-');
            }
            spelled.push(c.to_ascii_lowercase());
        }
        *arg = (spelled + value).into();
    }
    args
}

/// `mount.chronofs VOLUME DIR [-sfnv] [-o OPTIONS] [-t TYPE] [-N NAMESPACE]`, as mount(8) calls it.
fn mount_helper(mut rewritten: Vec<OsString>, args: &[OsString]) -> Result<Argv, String> {
    rewritten.push("start".into());
    let mut pretend = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-o") => {
                let value = args.next().ok_or("option -o needs a value: -o at-time=T,ro,...")?;
                let mut joined = OsString::from("--options=");
                joined.push(value);
                rewritten.push(joined);
            }
            Some("-t" | "-N") => drop(args.next()),
            Some(flags) if flags.len() > 1 && flags.starts_with('-') && !flags.starts_with("--") => {
                for flag in flags[1..].chars() {
                    match flag {
                        'f' => pretend = true,
                        's' => rewritten.push("--sloppy".into()),
                        'n' | 'v' => {}
                        _ => {
                            return Err(format!(
                                "option -{flag} is not one of mount(8): use -f, -n, -s, -v, -o"
                            ));
                        }
                    }
                }
            }
            _ => rewritten.push(arg.clone()),
        }
    }
    Ok(if pretend { Argv::Pretend } else { Argv::Run(rewritten) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        match rewrite(args) {
            Ok(Argv::Run(args)) => args.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" "),
            Ok(Argv::Pretend) => "pretend".to_owned(),
            Err(message) => format!("refused: {message}"),
        }
    }

    #[test]
    fn every_name_and_spelling_means_the_same() {
        for (line, means) in [
            ("chronofs admin start --db-folder X", "chronofs admin start --db-folder X"),
            ("/usr/bin/chronofs admin start --dbFolder X", "/usr/bin/chronofs admin start --db-folder X"),
            ("chronofs x --dbFolder=/A/B -- --dbFolder", "chronofs x --db-folder=/A/B -- --dbFolder"),
            ("/sbin/meta.chronofs start --bindAddr :1", "chronofs meta start --bind-addr :1"),
            ("/lib/snap-create.fdb --destdir D --path P", "chronofs snap-create --destdir D --path P"),
            ("configure.sh list volume", "chronofs configure list volume"),
            ("mount.chronofs", "chronofs mount"),
            ("mount.chronofs start v /mnt --atTime -2h", "chronofs mount start v /mnt --at-time -2h"),
            ("mount.chronofs v /mnt", "chronofs mount start v /mnt"),
            ("mount.chronofs v /mnt -o ro,atTime=-2h", "chronofs mount start v /mnt --options=ro,atTime=-2h"),
            (
                "mount.chronofs v /mnt -n -o rw,_netdev -t chronofs -o token-file=/etc/t",
                "chronofs mount start v /mnt --options=rw,_netdev --options=token-file=/etc/t",
            ),
            ("mount.chronofs v /mnt -fv", "pretend"),
            ("mount.chronofs v /mnt -s -o shiny", "chronofs mount start v /mnt --sloppy --options=shiny"),
        ] {
            assert_eq!(run(line), means, "{line}");
        }
    }

    #[test]
    fn what_mount_cannot_do_is_refused_by_name() {
        assert!(run("mount.chronofs v /mnt -o").contains("-o needs a value"));
        assert!(run("mount.chronofs v /mnt -q").contains("-q"));
    }
}
