//! Every command that the guide, the README and the helps show is one that the command line takes: no page names an option that
//! does not exist. The guide's `console` blocks are run besides, by the end-to-end tests; `text` blocks are not.

use crate::Cli;
use crate::argv::{Argv, rewrite};
use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory};
use std::fs;
use std::path::{Path, PathBuf};

/// What may stand before a command.
const BEFORE: [&str; 10] = ["if", "then", "else", "while", "until", "do", "!", "exec", "sudo", "{"];

/// How exact a shown command is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Exact {
    /// It can be typed, but for words that stand for values.
    Whole,
    /// It is named in a sentence: what is required may be missing.
    Part,
}

struct Shown {
    place: String,
    words: Vec<String>,
    exact: Exact,
}

/// Reads the simple commands of a line of a shell, those in `$(...)` too.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut reader = Reader { rest: line.chars().collect(), at: 0 };
    reader.commands(&mut found, false);
    found
}

struct Reader {
    rest: Vec<char>,
    at: usize,
}

impl Reader {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.get(self.at).copied();
        self.at += 1;
        next
    }

    fn eats(&mut self, wanted: char) -> bool {
        let found = self.rest.get(self.at) == Some(&wanted);
        self.at += usize::from(found);
        found
    }

    /// Up to the end, or to the bracket that closes what began before.
    fn commands(&mut self, found: &mut Vec<Vec<String>>, nested: bool) {
        let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
        let mut skip = false;
        loop {
            let next = self.next();
            let ends_word = next.is_none_or(|c| c.is_whitespace() || ";|&()<>".contains(c));
            if ends_word && let Some(whole) = word.take() {
                let is_descriptor =
                    matches!(next, Some('<' | '>')) && whole.chars().all(|c| c.is_ascii_digit());
                if !skip && !is_descriptor {
                    words.push(whole);
                }
                skip = false;
            }
            let Some(c) = next else { break };
            match c {
                '\'' => {
                    let word = word.get_or_insert_default();
                    while let Some(c) = self.next().filter(|c| *c != '\'') {
                        word.push(c);
                    }
                }
                '"' => {
                    let word = word.get_or_insert_default();
                    while let Some(c) = self.next().filter(|c| *c != '"') {
                        word.push(c);
                        if c == '$' && self.eats('(') {
                            self.commands(found, true);
                        }
                    }
                }
                '$' => {
                    word.get_or_insert_default().push('$');
                    if self.eats('(') {
                        self.commands(found, true);
                    }
                }
                '\\' => word.get_or_insert_default().extend(self.next()),
                '#' if word.is_none() => self.at = self.rest.len(),
                '<' | '>' => {
                    // `>>`, `2>&1`
                    while self.eats('>') || self.eats('<') || self.eats('&') {}
                    skip = true;
                }
                ')' if nested => break,
                ';' | '|' | '&' | '(' | ')' => {
                    found.push(std::mem::take(&mut words));
                    skip = false;
                }
                c if c.is_whitespace() => {}
                c => word.get_or_insert_default().push(c),
            }
        }
        found.push(words);
    }
}

/// The command of ours in these words.
fn ours(words: Vec<String>) -> Option<Vec<String>> {
    let is_set = |word: &str| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    let mut words = words
        .into_iter()
        .skip_while(|word| BEFORE.contains(&word.as_str()) || is_set(word.as_str()))
        .peekable();
    let first = words.peek()?;
    (first == "chronofs" || first.ends_with("/chronofs")).then(|| words.collect())
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    let mut open = vec![root.join("docs/src")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false if path.extension().is_some_and(|extension| extension == "md") => pages.push(path),
                false => {}
            }
        }
    }
    pages
}

/// What a page shows: in its blocks, and between single backticks.
fn of_page(page: &Path, found: &mut Vec<Shown>) {
    let text = fs::read_to_string(page).unwrap();
    let mut block: Option<String> = None;
    let mut whole = String::new();
    for (n, line) in text.lines().enumerate() {
        let place = format!("{}:{}", page.display(), n + 1);
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            block = if block.is_some() { None } else { Some(fence.to_owned()) };
            whole.clear();
            continue;
        }
        match block.as_deref() {
            None => {
                for part in line.split('`').skip(1).step_by(2).filter(|part| part.starts_with("chronofs ")) {
                    let words = commands(part).into_iter().filter_map(ours);
                    found.extend(words.map(|words| Shown {
                        place: place.clone(),
                        words,
                        exact: Exact::Part,
                    }));
                }
            }
            // What is shown there must be refused.
            Some("console,fails") => {}
            Some(kind) => {
                let prompted = line.trim_start().strip_prefix("$ ").or(line.trim_start().strip_prefix("# "));
                let shown = match (whole.is_empty(), prompted) {
                    (false, _) => line,
                    (true, Some(command)) => command,
                    // Of a console the rest is what is printed.
                    (true, None) if kind == "console" => continue,
                    // The shell's own commands.
                    (true, None) if line.starts_with("chronofs>") => continue,
                    (true, None) => line,
                };
                whole.push_str(shown);
                if whole.ends_with('\\') {
                    whole.pop();
                    continue;
                }
                let words = commands(&std::mem::take(&mut whole)).into_iter().filter_map(ours);
                found.extend(words.map(|words| Shown { place: place.clone(), words, exact: Exact::Whole }));
            }
        }
    }
}

/// What the helps of all commands show.
fn of_helps(command: &Command, found: &mut Vec<Shown>) {
    for help in [command.get_after_help(), command.get_after_long_help()].into_iter().flatten() {
        for line in help.to_string().lines().filter(|line| line.trim_start().starts_with("chronofs ")) {
            let place = format!("help of {}", command.get_name());
            let words = commands(line.trim_start()).into_iter().filter_map(ours);
            found.extend(words.map(|words| Shown { place: place.clone(), words, exact: Exact::Whole }));
        }
    }
    command.get_subcommands().for_each(|below| of_helps(below, found));
}

/// The command line with every value taken as it comes.
fn of_any_values(command: Command) -> Command {
    let command = command.mut_args(|arg| match arg.get_action().takes_values() {
        true => arg.value_parser(ValueParser::os_string()),
        false => arg,
    });
    command.mut_subcommands(of_any_values)
}

/// Whether a word stands for a value that somebody has to put there: `UID`, `/srv/images/UID`, `$uid`.
fn stands_for_a_value(word: &str) -> bool {
    let parts = word.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    word.contains('$')
        || parts.filter(|part| part.len() > 1).any(|part| part.chars().all(|c| c.is_ascii_uppercase()))
}

/// Why the command line does not take it.
fn fault(shown: &Shown) -> Option<String> {
    let open = shown.words.iter().any(|word| word == "...") || shown.exact == Exact::Part;
    let words = shown.words.iter().filter(|word| *word != "...").map(Into::into).collect();
    let words = match rewrite(words) {
        Ok(Argv::Run(words)) => words,
        Ok(Argv::Pretend) => return None,
        Err(why) => return Some(why),
    };
    let is_exact = !open && !shown.words.iter().any(|word| stands_for_a_value(word));
    let command = if is_exact { Cli::command() } else { of_any_values(Cli::command()) };
    let error = command.try_get_matches_from(words).err()?;
    let is_fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::TooFewValues => open,
        _ => false,
    };
    (!is_fine).then(|| error.to_string())
}

#[test]
fn every_command_that_is_shown_is_one_that_the_command_line_takes() {
    let mut shown = Vec::new();
    pages().iter().for_each(|page| of_page(page, &mut shown));
    of_helps(&Cli::command(), &mut shown);
    // "chronofs ROLE ...": what stands for any command.
    shown.retain(|shown| shown.words.get(1).is_none_or(|word| !stands_for_a_value(word)));
    assert!(shown.len() > 120, "only {} commands were found", shown.len());
    let faults: Vec<String> = shown
        .iter()
        .filter_map(|shown| {
            fault(shown).map(|why| format!("{}: {}\n{why}", shown.place, shown.words.join(" ")))
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_shown_command_with_an_option_that_does_not_exist_is_found_out() {
    let of = |line: &str, exact| {
        let words = commands(line).into_iter().find_map(ours).unwrap();
        fault(&Shown { place: String::new(), words, exact })
    };
    assert_eq!(of("said=$(chronofs mount start home /mnt --at-time \"$(cat t)\") &", Exact::Whole), None);
    assert_eq!(of("sudo chronofs meta start --db-folder DIR ... >> log 2>&1 # runs", Exact::Whole), None);
    assert_eq!(of("chronofs backup restore", Exact::Part), None);
    for (line, exact) in [
        ("chronofs mount start home /mnt --at-tim NOW", Exact::Whole),
        ("chronofs mount start home /mnt --at-time", Exact::Whole),
        ("chronofs backup restore", Exact::Whole),
        ("chronofs backup restor", Exact::Part),
        ("x | chronofs snapshot verify UID --recrd \"/srv/$uid.json\"", Exact::Part),
    ] {
        assert!(of(line, exact).is_some(), "{line}");
    }
}
