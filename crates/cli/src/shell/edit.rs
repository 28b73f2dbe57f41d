//! The terminal: lines with history and completion.

use super::commands::completions;
use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};
use std::io::{IsTerminal, stdin};
use std::path::PathBuf;

const PROMPT: &str = "chronofs> ";
/// Lines that are kept.
const HISTORY: usize = 1000;
/// In the home folder.
const HISTORY_FILE: &str = ".chronofs_history";

/// What was read.
pub(super) enum Line {
    /// A line.
    Text(String),
    /// Nothing: Ctrl-C.
    Dropped,
    /// No more.
    End,
}

pub(super) struct Terminal {
    editor: Editor<Words, DefaultHistory>,
    history: Option<PathBuf>,
}

impl Terminal {
    pub(super) fn open() -> Result<Terminal> {
        let person = stdin().is_terminal();
        let config = rustyline::Config::builder().max_history_size(HISTORY)?.auto_add_history(person).build();
        let mut editor = Editor::with_config(config).context("cannot use this terminal")?;
        editor.set_helper(Some(Words));
        let history = std::env::var_os("HOME").filter(|home| person && !home.is_empty());
        let history = history.map(|home| PathBuf::from(home).join(HISTORY_FILE));
        if let Some(path) = &history {
            // The first time there is none.
            drop(editor.load_history(path));
        }
        Ok(Terminal { editor, history })
    }

    /// Whether a person types.
    pub(super) fn is_person(&self) -> bool {
        stdin().is_terminal()
    }

    pub(super) fn line(&mut self) -> Result<Line> {
        match self.editor.readline(if self.is_person() { PROMPT } else { "" }) {
            Ok(line) => Ok(Line::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Line::Dropped),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(error).context("cannot read commands"),
        }
    }

    /// Keeps the history.
    pub(super) fn close(&mut self) {
        if let Some(path) = &self.history {
            // A home that cannot be written to is no reason to fail.
            drop(self.editor.save_history(path));
        }
    }
}

/// Completes names of commands, and what can follow them.
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(completions(&line[..at]))
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}
