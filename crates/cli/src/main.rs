//! The `chronofs` command: every server and tool under one name, or under `ROLE.ANYTHING` through a link.
//!
//! It may depend on all crates, and holds no logic of its own: it reads the command line, calls the crate that does
//! the work, and shows what came of it. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod admin;
mod analyze;
mod argv;
mod audit;
mod backup;
mod brake;
mod clone;
mod cluster;
mod configure;
mod credentials;
mod deploy;
mod in_place;
mod interrupts;
mod logs;
mod manage;
mod meta;
mod mount;
mod options;
mod output;
mod rebuild;
mod restore;
mod secrets;
mod shell;
#[cfg(test)]
mod shown;
mod snap_create;
mod snapshot;
mod systemd;
mod tlog;

use anyhow::{Context, Result};
use argv::Argv;
use chronofs_snapshot::run::GUARD;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: u8 = 2;

/// A file system that remembers every instant
#[derive(Parser, Debug)]
#[command(name = "chronofs", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the server that knows accounts, stores and volumes
    #[command(subcommand)]
    Admin(admin::Command),
    /// Create, list, show, change and delete accounts, stores, volumes and tokens
    Configure(configure::Configure),
    /// Start, stop and look at the servers of this machine
    #[command(subcommand)]
    Manage(manage::Command),
    /// Run the server that holds names, attributes and the past of volumes
    #[command(subcommand)]
    Meta(meta::Command),
    /// Run a server that keeps copies of the logs of metadata servers
    #[command(subcommand)]
    Tlog(tlog::Command),
    /// Look into volumes: whether the bytes of all files are there, and what takes how much
    #[command(after_help = "Example:\n  chronofs analyze blocks home --deep")]
    Analyze(analyze::Analyze),
    /// Mount and unmount volumes
    #[command(subcommand)]
    Mount(mount::Command),
    /// Flush a mount, and print the instant that shows everything written before
    Instant {
        /// Folder in the mount
        dir: PathBuf,
    },
    /// Back all servers up together while they run; list, verify, restore and delete backups
    Backup(Box<backup::Backup>),
    /// Take disk snapshots of all servers, and look after them
    Snapshot(snapshot::Snapshot),
    /// Make an image of a server's data folder for a disk snapshot; list, verify and delete images
    #[command(
        after_help = "Example:\n  fdb> snapshot /usr/lib/chronofs/snap-create.fdb --destdir /mnt/backup --method btrfs"
    )]
    SnapCreate(snap_create::SnapCreate),
    /// Prepare the images of a disk snapshot for a new cluster
    #[command(subcommand)]
    Restore(restore::Command),
    /// Show who did what, as the admin server wrote it down
    Audit(audit::Audit),
    /// Look at a cluster and its key space, in a shell of its own
    #[command(
        after_help = "Examples:\n  chronofs cli\n  chronofs cli --exec status\n  chronofs cli --exec 'writemode on; set key1 value1'"
    )]
    Cli(shell::Cli),
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  chronofs completions bash > /etc/bash_completion.d/chronofs")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages of all commands
    #[command(after_help = "Example:\n  chronofs man /usr/local/share/man/man1")]
    Man {
        /// Folder to write them into
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    // A guard has to be there before a snapshot's program starts, and wants nothing of what follows.
    if std::env::args_os().nth(1).is_some_and(|first| first == GUARD) {
        return match chronofs_snapshot::run::stand_guard() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string(), ExitCode::from(USAGE)),
        };
    }
    let args = match argv::rewrite(std::env::args_os().collect()) {
        Ok(Argv::Run(args)) => args,
        Ok(Argv::Pretend) => return ExitCode::SUCCESS,
        Err(message) => return failed(&message, ExitCode::from(USAGE)),
    };
    // Prints help and usage errors itself, and exits with 0 and 2.
    let cli = Cli::parse_from(args);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => failed(&told(&error), ExitCode::FAILURE),
    }
}

/// An error and its causes, one after the other. Most of our errors name their cause themselves; that is not said again.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        match text.as_str() {
            "" => text = cause,
            said if said.contains(&cause) => {}
            _ => text = format!("{text}: {cause}"),
        }
    }
    text
}

fn failed(message: &str, code: ExitCode) -> ExitCode {
    output::note(message);
    code
}

/// Nearly every command has tokens, keys or credentials in its memory. What fails leaves none of it on a disk, and no other process of
/// its user may look at it.
fn leave_nothing_behind() -> Result<()> {
    const WHAT: &str = "cannot keep secrets out of core dumps";
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context(WHAT)?;
    // Programs that are started get the limit, too; what they may set it to is left to them.
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum }).context(WHAT)
}

fn run(command: Command) -> Result<ExitCode> {
    leave_nothing_behind()?;
    let done = match command {
        // It says itself how it failed.
        Command::Snapshot(snapshot) => return snapshot::run(snapshot),
        Command::Cli(cli) => return shell::run(cli),
        Command::Analyze(analyze) => return analyze::run(analyze),
        Command::Admin(command) => admin::run(command),
        Command::Audit(audit) => audit::run(audit),
        Command::Configure(command) => configure::run(command),
        Command::Manage(command) => manage::run(command),
        Command::Meta(command) => meta::run(command),
        Command::Tlog(command) => tlog::run(command),
        Command::Mount(command) => mount::run(command),
        Command::Instant { dir } => mount::instant(&dir),
        Command::SnapCreate(args) => snap_create::run(args),
        Command::Backup(backup) => backup::run(*backup),
        Command::Restore(command) => restore::run(command),
        Command::Completions { shell } => {
            // Not to standard output at once: there it panics when the reader has left.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "chronofs", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end())
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), &dir).with_context(|| {
            format!("cannot write manual pages into {}; name a folder that exists", dir.display())
        }),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Runs a task on all cores.
fn serve<T>(task: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    Ok(runtime.context("cannot start threads")?.block_on(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_ours_leaves_nothing_of_its_memory_to_a_dump_or_to_others_of_its_user() {
        leave_nothing_behind().unwrap();
        let dumps = rustix::process::dumpable_behavior().unwrap();
        assert_eq!((dumps, getrlimit(Resource::Core).current), (DumpableBehavior::NotDumpable, Some(0)));
    }

    #[test]
    fn a_cause_is_told_once() {
        let system = || std::io::Error::other("no space");
        let named = anyhow::anyhow!("cannot write f: no space").context("mount v");
        assert_eq!(told(&named), "mount v: cannot write f: no space");
        let with_source = anyhow::Error::new(system()).context("cannot write f: no space").context("mount v");
        assert_eq!(told(&with_source), "mount v: cannot write f: no space");
        assert_eq!(told(&anyhow::Error::new(system()).context("cannot write f")), "cannot write f: no space");
    }

    #[test]
    fn the_command_line_is_put_together_right_and_helps_end_without_a_full_stop() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        let mut all = vec![command];
        while let Some(command) = all.pop() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let helps = command.get_arguments().filter_map(|arg| arg.get_help()).map(ToString::to_string);
            for text in helps.chain([about]) {
                assert!(!text.ends_with('.') && !text.contains('\n'), "{}: {text}", command.get_name());
            }
            all.extend(command.get_subcommands().cloned());
        }
    }
}
