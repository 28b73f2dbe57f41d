//! A look is begun, and heard to its end. One that the server forgot, because it was started anew, is begun again where it
//! was.

use crate::output;
use anyhow::{Result, bail};
use chronofs_wire::analyze::{Analyze, Begun, Ended, Follow, Look, News, Progress, Subject, Sum, Told};
use chronofs_wire::http::{AdminClient, ClientError, Method};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Servers may be away for so long.
const PATIENCE: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often those who read no terminal are told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Has a server look, and calls `hear` with all news. `look` is what is to be begun as things are: at first, and anew if the
/// server has forgotten it.
pub(super) async fn follow(
    client: &AdminClient,
    subject: &Subject,
    mut look: impl FnMut() -> Look,
    mut hear: impl FnMut(News) -> Result<()>,
) -> Result<Sum> {
    let mut heard = Instant::now();
    'begun: loop {
        let wanted = Analyze { subject: subject.clone(), look: look() };
        let begun: Begun = match client.call(Method::POST, "/v1/analyze", Some(&wanted)).await {
            Ok(begun) => begun,
            Err(error) => {
                wait(error, heard).await?;
                continue;
            }
        };
        let mut seen = 0;
        loop {
            let follow = Follow { store: begun.store.clone(), look: begun.look, seen };
            let told: Told = match client.call(Method::POST, "/v1/analyze/follow", Some(&follow)).await {
                Ok(told) => told,
                Err(error) => {
                    wait(error, heard).await?;
                    continue;
                }
            };
            heard = Instant::now();
            if told.gone {
                // A server that stops takes questions for a moment still.
                tokio::time::sleep(TRY_AGAIN).await;
                continue 'begun;
            }
            seen = told.upto;
            told.news.into_iter().try_for_each(&mut hear)?;
            match told.ended {
                Some(Ended::Whole(sum)) => return Ok(sum),
                Some(Ended::Stopped(why)) => bail!("{why}"),
                None => {}
            }
        }
    }
}

async fn wait(error: ClientError, heard: Instant) -> Result<()> {
    if !error.is_transient() || heard.elapsed() > PATIENCE {
        return Err(error.into());
    }
    tokio::time::sleep(TRY_AGAIN).await;
    Ok(())
}

/// Shows how far a look is, on standard error: a line that changes, or a line now and then.
pub(super) struct Meter {
    terminal: bool,
    shown: bool,
    told: Instant,
}

impl Meter {
    pub(super) fn new() -> Meter {
        Meter { terminal: std::io::stderr().is_terminal(), shown: false, told: Instant::now() }
    }

    pub(super) fn tell(&mut self, text: &str) {
        if self.terminal {
            // Nobody is left to tell if this fails.
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
            self.shown = true;
        } else if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            output::note(text);
        }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        let text = match progress.next {
            None if progress.slices == 0 => format!("objects listed: {}", progress.listed),
            _ => format!(
                "slices: {} with {} as stored, lost: {}",
                progress.slices,
                output::show_size(progress.bytes),
                progress.faults
            ),
        };
        self.tell(&text);
    }

    /// Makes room for a line.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
