//! The machine and the engine together: groups of events are decided, committed at once, and only then their
//! effects are given out. No threads and no clock, so that simulations run the very same code.

use crate::machine::{Call, ConnId, Effect, Event, Group, Machine, Now};
use chronofs_core::Version;
use chronofs_core::ops::Request;
use chronofs_core::slice::{NewSlice, Place};
use chronofs_engine::{Engine, EngineError};
use std::sync::Arc;

/// Calls are decided in groups of so many at the most.
const GROUP_CALLS_MAX: usize = 4096;
/// A group takes no further call once the content in its calls is so long.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// What a group came to.
#[derive(Debug, Default)]
pub struct Decided {
    /// To be carried out, in order.
    pub effects: Vec<Effect>,
    /// Requests answered, by kind and errno (0: none).
    pub answered: Vec<(u8, i32)>,
    /// Commits applied.
    pub commits: usize,
    /// Bytes of keys, values and tags in them.
    pub bytes: usize,
    /// Rows of the past that they forget.
    pub forgotten: u64,
    /// The engine had no room; writes were answered with ENOSPC.
    pub full: Option<String>,
}

/// Machine and engine.
pub struct Core {
    /// The machine.
    pub machine: Machine,
    /// The engine.
    pub engine: Arc<dyn Engine>,
}

impl Core {
    /// Decides `events`, which came together, in their order. Calls that follow each other share one apply. An error
    /// is the end of the server: nothing that was decided in the failing group is given out.
    pub fn run(
        &mut self,
        now: impl Into<Now>,
        events: Vec<Event>,
        give_out: &mut dyn FnMut(Decided),
    ) -> Result<(), EngineError> {
        let now = now.into();
        let mut calls: Vec<(ConnId, Call)> = Vec::new();
        for event in events {
            match event {
                Event::Call(conn, call) => calls.push((conn, call)),
                event => {
                    self.run_calls(now, std::mem::take(&mut calls), give_out)?;
                    let decided = self.decide(now, |machine, group| machine.event(group, event.clone()))?;
                    give_out(decided);
                    while self.machine.is_replaying() {
                        give_out(self.decide(now, |machine, group| machine.go_on_replaying(group))?);
                    }
                    let released = self.machine.take_released();
                    self.run_calls(now, released, give_out)?;
                    for asked in self.machine.take_asked() {
                        give_out(self.decide(now, |machine, group| machine.decide_asked(group, &asked))?);
                    }
                }
            }
        }
        self.run_calls(now, calls, give_out)
    }

    fn run_calls(
        &mut self,
        now: Now,
        calls: Vec<(ConnId, Call)>,
        give_out: &mut dyn FnMut(Decided),
    ) -> Result<(), EngineError> {
        let mut rest = &calls[..];
        while !rest.is_empty() {
            let next = &rest[..group_len(rest)];
            let mut done = 0;
            let decided = self.decide(now, |machine, group| {
                done = machine.calls(group, next)?;
                Ok(())
            })?;
            give_out(decided);
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Decides one group and applies it; when the engine has no room, decides it again with every write refused.
    pub fn decide(
        &mut self,
        now: impl Into<Now>,
        mut decide: impl FnMut(&mut Machine, &mut Group) -> Result<(), EngineError>,
    ) -> Result<Decided, EngineError> {
        let now = now.into();
        match self.decide_once(now, false, &mut decide) {
            Err(error @ EngineError::NoSpace { .. }) => {
                let mut decided = self.decide_once(now, true, &mut decide)?;
                decided.full = Some(error.to_string());
                Ok(decided)
            }
            decided => decided,
        }
    }

    fn decide_once(
        &mut self,
        now: Now,
        full: bool,
        decide: &mut dyn FnMut(&mut Machine, &mut Group) -> Result<(), EngineError>,
    ) -> Result<Decided, EngineError> {
        let mut group = Group::new(now, self.engine.view(), full);
        let begun = self.machine.begin(&mut group);
        let decided = begun.and_then(|()| decide(&mut self.machine, &mut group));
        let decided = decided.and_then(|()| self.apply(&mut group));
        // Not every error ends the server: whoever asked a question of the machine may be told of it.
        decided.inspect_err(|_| self.machine.failed(&mut group))
    }

    fn apply(&mut self, group: &mut Group) -> Result<Decided, EngineError> {
        let commits = group.commits.len();
        let bytes = group.bytes();
        if commits > 0 {
            self.engine.apply(std::mem::take(&mut group.commits))?;
            if group.sync_first() {
                self.engine.sync()?;
            }
        }
        self.machine.applied(group, commits as u64);
        let (effects, answered) = (std::mem::take(&mut group.effects), std::mem::take(&mut group.answered));
        Ok(Decided { effects, answered, commits, bytes, forgotten: group.forgotten, full: None })
    }

    /// A clean stop: what only tags say is written into the state, and all is made durable.
    pub fn stop(&mut self, now: impl Into<Now>) -> Result<Version, EngineError> {
        let decided = self.decide(now, |machine, group| machine.stop(group))?;
        let durable = self.engine.sync()?;
        for effect in decided.effects {
            if let Effect::Mark(version) = effect {
                self.engine.mark(version)?;
            }
        }
        Ok(durable)
    }
}

/// How many of `calls` go into one group: what they carry stays far below the most that a group of the log may hold,
/// however much piled up while the server could not write.
fn group_len(calls: &[(ConnId, Call)]) -> usize {
    let mut bytes = 0;
    let fits = |(_, call): &&(ConnId, Call)| {
        let within = bytes < GROUP_BYTES_MAX;
        if let Request::Publish { slices, .. } = &call.request {
            bytes += slices.iter().map(carried_len).sum::<usize>();
        }
        within
    };
    calls.iter().take(GROUP_CALLS_MAX).take_while(fits).count()
}

/// Bytes of content that the metadata takes for a slice.
fn carried_len(new: &NewSlice) -> usize {
    let inline = match &new.slice.place {
        Place::Inline(_, bytes) => bytes.len(),
        _ => 0,
    };
    inline + new.staged.as_ref().map_or(0, |bytes| bytes.len())
}
