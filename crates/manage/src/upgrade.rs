//! Runs a service by an executable that was just installed, and goes back to the one before if it does not come up.

use crate::{Installed, Service, State, health};
use anyhow::{Context, Result, anyhow, bail};
use std::thread::sleep;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A server that serves and is there still after this time has come up.
const STAYS: Duration = Duration::from_secs(1);

impl Service {
    /// Waits until it serves.
    ///
    /// # Errors
    /// It has ended meanwhile, or does not serve within this time.
    pub fn wait_until_it_serves(&self, within: Duration) -> Result<()> {
        let (name, begun) = (self.name(), Instant::now());
        let command = self.words()?;
        let (mut first, mut since) = (None, None::<Instant>);
        loop {
            let state = self.state()?;
            match (&state, first) {
                (State::Running(pid), None) => first = Some(*pid),
                (State::Running(pid), Some(before)) if *pid == before => {}
                _ => bail!("{name} has ended; its last words:\n{}", self.last_words()),
            }
            let why = match (health::serves(&command), since) {
                (Ok(()), Some(since)) if since.elapsed() >= STAYS => return Ok(()),
                (Ok(()), _) => {
                    since.get_or_insert_with(Instant::now);
                    None
                }
                (Err(why), _) => {
                    since = None;
                    Some(why)
                }
            };
            if let Some(why) = why.filter(|_| begun.elapsed() >= within) {
                bail!("{name} runs, but does not serve after {} s: {why}", within.as_secs());
            }
            sleep(LOOK_EVERY);
        }
    }

    /// Runs by what was installed: stops it, starts it, and waits until it serves. If it does not, the executable before is put
    /// back, and it runs by that one again if it ran.
    ///
    /// # Errors
    /// It did not come up; how it is now is said.
    pub fn upgrade(&self, installed: &Installed, within: Duration) -> Result<()> {
        let ran = self.state()? != State::Stopped;
        let comes_up = || -> Result<()> {
            self.stop()?;
            self.start()?;
            self.wait_until_it_serves(within)
        };
        let Err(why) = comes_up() else { return Ok(()) };
        let name = self.name();
        let stopped = self.stop();
        // Also if that does not end: the next start is to be by the one before.
        if let Err(error) = installed.go_back().and(stopped.map(drop)) {
            return Err(why).with_context(|| {
                format!("the new executable does not come up, and going back failed ({error:#})")
            });
        }
        if !ran {
            return Err(why.context(format!(
                "the new executable does not come up; the one before is in its place again, and {name} is stopped as it was"
            )));
        }
        match self.start().and_then(|_| self.wait_until_it_serves(within)) {
            Ok(()) => Err(why.context(format!(
                "the new executable does not come up; {name} runs by the one before again"
            ))),
            Err(error) => Err(anyhow!(
                "the new executable does not come up ({why:#}), and with the one before, which is in its place again, {name} does \
                 not come up either ({error:#}); see chronofs manage logs {name}"
            )),
        }
    }
}
