//! `chronofs cli`: a shell for operators. Looks at the cluster, and works with its small key space.
//!
//! `words` reads lines, `commands` has what can be done, `show` writes the status, `edit` is the terminal.

mod commands;
mod edit;
mod show;
mod words;

use crate::cluster::AdminArgs;
use crate::output;
use anyhow::{Context, Result};
use chronofs_wire::http::AdminClient;
use clap::Args;
use commands::Outcome;
use edit::{Line, Terminal};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::runtime::Runtime;

#[derive(Args, Debug)]
pub(crate) struct Cli {
    /// Run these commands, with ; between them, instead of reading some; end with 1 at the first that fails
    #[arg(long, value_name = "COMMANDS")]
    exec: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// What commands work with.
struct Shell {
    client: AdminClient,
    runtime: Runtime,
    /// The cluster file in use.
    cluster_file: Option<PathBuf>,
    /// Keys may be changed.
    write_mode: bool,
}

pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let client = cli.admin.client().context("cli")?;
    let cluster_file = cli.admin.cluster.read_with_path().context("cli")?.map(|(path, _)| path);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let mut shell = Shell { client, runtime, cluster_file, write_mode: false };
    match cli.exec {
        Some(line) => Ok(code_of(shell.run_line(&line))),
        None => shell.run_terminal(),
    }
}

/// What became of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ran {
    /// Every command did what it is for, and nothing ails the cluster.
    well: bool,
    /// The shell is to end.
    quit: bool,
}

fn code_of(ran: Ran) -> ExitCode {
    if ran.well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Shell {
    /// Runs the commands of a line. After one that failed the others are left out: they may rest on it.
    fn run_line(&mut self, line: &str) -> Ran {
        let mut ran = Ran { well: true, quit: false };
        let commands = match words::parse(line) {
            Ok(commands) => commands,
            Err(error) => {
                output::error(error);
                return Ran { well: false, ..ran };
            }
        };
        let several = commands.len() > 1;
        for command in commands {
            if several {
                // What was asked, before what came of it.
                let shown = command.iter().map(|word| words::quoted(word)).collect::<Vec<_>>().join(" ");
                if output::line(format_args!(">>> {shown}")).is_err() {
                    return Ran { well: false, quit: true };
                }
            }
            match commands::run(self, &command) {
                Ok(Outcome::Done) => {}
                Ok(Outcome::Unwell) => ran.well = false,
                Ok(Outcome::Failed) => return Ran { well: false, ..ran },
                Ok(Outcome::Quit) => return Ran { quit: true, ..ran },
                Ok(Outcome::Ended) => return Ran { well: false, quit: true },
                Err(error) => {
                    output::error(crate::told(&error));
                    return Ran { well: false, ..ran };
                }
            }
        }
        ran
    }

    /// Reads lines until the end. Of a person it is success, of a pipe only if all went well.
    fn run_terminal(&mut self) -> Result<ExitCode> {
        let mut terminal = Terminal::open()?;
        let mut well = true;
        if terminal.is_person() {
            output::line(self.greeting())?;
        }
        loop {
            match terminal.line()? {
                Line::Text(line) => {
                    let ran = self.run_line(&line);
                    well &= ran.well;
                    if ran.quit {
                        break;
                    }
                }
                Line::Dropped => {}
                Line::End => break,
            }
        }
        terminal.close();
        Ok(code_of(Ran { well: well || terminal.is_person(), quit: true }))
    }

    fn greeting(&self) -> String {
        format!("{}\nType `help' for what can be done, `exit' to leave.", self.source())
    }

    /// Where the admin server was found.
    fn source(&self) -> String {
        match &self.cluster_file {
            Some(path) => format!("Using cluster file `{}'.", path.display()),
            None => format!("Using the admin server at {}, which the token names.", self.client.address()),
        }
    }
}
