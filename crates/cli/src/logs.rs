//! Logs: to standard error, as text or as one JSON object per line.

use crate::output;
use clap::{Args, ValueEnum};
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;

const VARIABLE: &str = "CHRONOFS_LOG";

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// From which level on there are lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    /// A person must look
    Error,
    /// And what may become a problem
    Warn,
    /// And what happens
    Info,
    /// And how
    Debug,
    /// And every step
    Trace,
}

/// What every server and mount can be told about its log.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct LogArgs {
    /// Form of the log on standard error
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// Least important lines to log [default: CHRONOFS_LOG, or info]
    #[arg(long, value_enum)]
    pub(crate) log_level: Option<LogLevel>,
}

impl LogArgs {
    /// Starts logging. Without a level `CHRONOFS_LOG` chooses (`debug`, `chronofs_meta=trace,info`).
    pub(crate) fn start(self) {
        let builder = tracing_subscriber::fmt().with_env_filter(self.filter()).with_writer(io::stderr);
        match self.log_format {
            LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
            LogFormat::Json => builder.json().flatten_event(true).init(),
        }
    }

    fn filter(self) -> EnvFilter {
        // What fuser warns of is answered by ourselves already. That a request to a bucket is tried again is no news; that
        // it failed in the end is said by whoever asked.
        let of_level = |level: &str| EnvFilter::new(format!("{level},fuser=error,object_store=warn"));
        let variable = std::env::var(VARIABLE).unwrap_or_default();
        match (self.log_level.and_then(|level| level.to_possible_value()), variable.as_str()) {
            (Some(level), _) => of_level(level.get_name()),
            (None, "") => of_level("info"),
            (None, wanted) => EnvFilter::try_new(wanted).unwrap_or_else(|error| {
                output::warn(format!(
                    "{VARIABLE}='{wanted}' is not understood, it is taken for info: {error}"
                ));
                of_level("info")
            }),
        }
    }
}
