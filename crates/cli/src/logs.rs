//! Logs: to standard error, as text or as one JSON object per line.

use clap::ValueEnum;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// Each try of a request to a bucket is no news; that one failed in the end is said by whoever asked.
const DEFAULT: &str = "info,object_store=warn";

/// Starts logging. `CHRONOFS_LOG` chooses levels (`debug`, `chronofs_meta=trace,info`); [`DEFAULT`] unless set.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("CHRONOFS_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
