//! Unit files, as far as they say what runs.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io;
use std::path::Path;

/// What changes as whom or in what surroundings a server runs: a keeper does not do that, and what it would start instead is not
/// what was meant.
const NOT_KEPT: [&str; 8] = [
    "User=",
    "Group=",
    "DynamicUser=",
    "Environment=",
    "EnvironmentFile=",
    "WorkingDirectory=",
    "RootDirectory=",
    "ExecStartPre=",
];

/// The file of a service.
pub(crate) fn file(name: &str) -> String {
    format!("chronofs-{name}.service")
}

/// The names of all services that have a file in `folder`.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let file = entry.with_context(|| format!("cannot list {}", folder.display()))?.file_name();
        let name = file.to_str().and_then(|file| file.strip_prefix("chronofs-")?.strip_suffix(".service"));
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
}

/// What the unit in a file runs, where a keeper runs it: a program and its arguments.
pub(crate) fn command(path: &Path) -> Result<Vec<String>> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let not_kept = |line: &&str| NOT_KEPT.iter().any(|key| line.trim().starts_with(key));
    if let Some(line) = text.lines().find(not_kept) {
        bail!("{shown}: {} is understood by systemd only; take it out, or run systemd", line.trim());
    }
    program(path)
}

/// What the unit in a file runs, by whoever: a program and its arguments.
pub(crate) fn program(path: &Path) -> Result<Vec<String>> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let starts: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("ExecStart=")).collect();
    let [start] = starts[..] else { bail!("{shown} has {} lines ExecStart=, not one", starts.len()) };
    let words = words(start).with_context(|| format!("{shown}: ExecStart={start}"))?;
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(words),
        _ => bail!("{shown}: ExecStart= does not begin with the absolute path of a program"),
    }
}

/// Splits a line as systemd does, as far as our units need it (systemd.service(5), "Command lines").
fn words(line: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (' ' | '\t', None) => words.extend(word.take()),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', _) => match chars.next() {
                Some(escaped @ ('\\' | '"' | '\'' | ' ')) => word.get_or_insert_default().push(escaped),
                other => bail!("\\{} is not understood here", other.map(String::from).unwrap_or_default()),
            },
            ('%' | '$', _) => match chars.next_if_eq(&c) {
                Some(_) => word.get_or_insert_default().push(c),
                None => bail!("a single {c} stands for something that only systemd knows"),
            },
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        bail!("a quotation mark is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_at_blanks_that_are_not_quoted() {
        let split = |line| words(line).unwrap();
        assert_eq!(split("/usr/bin/chronofs  meta start"), ["/usr/bin/chronofs", "meta", "start"]);
        assert_eq!(split(r#"/a "b c" d'e f' "" "g\"\\h""#), ["/a", "b c", "de f", "", "g\"\\h"]);
        assert_eq!(split("/a 100%% $$x"), ["/a", "100%", "$x"]);
        for bad in [r#"/a "b"#, "/a %n", "/a $HOME", r"/a \x"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_is_the_one_exec_start_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file("meta"));
        let with = |text: &str| {
            fs::write(&path, text).unwrap();
            command(&path)
        };
        assert_eq!(
            with("[Service]\nExecStart=/bin/chronofs meta start\n").unwrap(),
            ["/bin/chronofs", "meta", "start"]
        );
        assert!(with("[Service]\n").unwrap_err().to_string().contains("0 lines ExecStart="));
        assert!(with("ExecStart=/a\nExecStart=/b\n").unwrap_err().to_string().contains("2 lines"));
        assert!(
            with("User=names\nExecStart=/a\n")
                .unwrap_err()
                .to_string()
                .contains("User=names is understood by systemd")
        );
        assert_eq!(program(&path).unwrap(), ["/a"], "systemd runs it as another user");
        assert!(with("ExecStart=chronofs\n").unwrap_err().to_string().contains("absolute path"));
        assert_eq!(names(folder.path()).unwrap(), ["meta"]);
        assert_eq!(names(&folder.path().join("none")).unwrap(), [""; 0]);
    }
}
