//! A member: does each step once, for the newest attempt only, and only for its own epoch. It holds its log as a lease:
//! when that runs out the log is let go, whatever the coordinator does, and everything that rests on it fails.

use super::{Attempt, Fault, Intent, Order, Said, Step, Told, What};
use crate::code::SnapshotCode;
use crate::name::Role;
use std::collections::{BTreeMap, BTreeSet};

/// What the server around a [`Member`] is to do. Each may be asked for more than once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Do {
    /// Do a step, and tell [`Member::done`].
    Begin(Box<Intent>, Step),
    /// Let the log go that was held for this attempt.
    LetGo(Attempt),
    /// End the attempt's programs, then take its images and all that is kept for it away.
    Discard(Attempt),
    /// Another attempt or epoch began, and nobody has said what became of this one, which may be a set: end the attempt's
    /// programs and take its images away. What is kept for it stays until the coordinator says.
    Leave(Attempt),
    /// The set is complete: take the images away, go on keeping what the set needs.
    Keep(Attempt),
}

#[derive(Clone, Debug)]
struct Current {
    intent: Intent,
    lease: Lease,
    begun: BTreeSet<Step>,
    done: BTreeMap<Step, Result<Told, Fault>>,
}

/// How the log is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lease {
    No,
    /// Until then, by this member's own clock.
    Until(u64),
    /// It ran out.
    Lost,
    /// It was given back in time.
    Over,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Member {
    epoch: u64,
    current: Option<Current>,
    /// Attempts up to this number are over here.
    fence: u64,
}

impl Member {
    /// A member that has just started.
    #[must_use]
    pub const fn new(epoch: u64) -> Member {
        Member { epoch, current: None, fence: 0 }
    }

    /// Under which epoch it is a member.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// It is a member under another epoch now: all of before is over.
    pub fn set_epoch(&mut self, epoch: u64) -> Vec<Do> {
        let changed = self.epoch != epoch;
        self.epoch = epoch;
        if changed { self.end().unwrap_or_default() } else { Vec::new() }
    }

    /// The attempt that it takes part in.
    #[must_use]
    pub fn attempt(&self) -> Option<&Attempt> {
        self.current.as_ref().map(|current| &current.intent.attempt)
    }

    /// Whether it holds its log.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.current.as_ref().is_some_and(|current| matches!(current.lease, Lease::Until(_)))
    }

    /// Takes an order.
    pub fn order(&mut self, now_ms: u64, order: &Order) -> Vec<Do> {
        let mut todo = self.tick(now_ms);
        if order.epoch != self.epoch {
            return todo;
        }
        match &order.what {
            What::Finish { complete } => {
                if self.attempt() == Some(&order.attempt) {
                    self.fence = order.attempt.number;
                    self.current = None;
                    todo.push(Do::LetGo(order.attempt.clone()));
                }
                let attempt = order.attempt.clone();
                todo.push(if *complete { Do::Keep(attempt) } else { Do::Discard(attempt) });
            }
            What::Do(intent, steps) => {
                let number = order.attempt.number;
                if number <= self.fence || self.attempt().is_some_and(|attempt| number < attempt.number) {
                    return todo;
                }
                if self.attempt() != Some(&order.attempt) {
                    todo.extend(self.end().unwrap_or_default());
                    let intent = (**intent).clone();
                    let (begun, done) = (BTreeSet::new(), BTreeMap::new());
                    self.current = Some(Current { intent, lease: Lease::No, begun, done });
                }
                if let Some(current) = &mut self.current {
                    current.intent.ended = intent.ended.clone();
                }
                for step in steps {
                    todo.extend(self.begin(now_ms, *step));
                }
            }
        }
        todo
    }

    /// A step has ended. What comes of an attempt that is over meanwhile is taken away.
    pub fn done(&mut self, now_ms: u64, attempt: &Attempt, step: Step, end: Result<Told, Fault>) -> Vec<Do> {
        let mut todo = self.tick(now_ms);
        match self.current.as_mut().filter(|current| current.intent.attempt == *attempt) {
            Some(current) => {
                current.done.entry(step).or_insert(end);
                // It came too late.
                if step == Step::Hold && !matches!(current.lease, Lease::Until(_)) {
                    todo.push(Do::LetGo(attempt.clone()));
                }
            }
            None => todo.extend([Do::LetGo(attempt.clone()), Do::Discard(attempt.clone())]),
        }
        todo
    }

    /// Looks at the clock.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Do> {
        let Some(current) = &mut self.current else { return Vec::new() };
        match current.lease {
            Lease::Until(until) if now_ms >= until => {
                current.lease = Lease::Lost;
                vec![Do::LetGo(current.intent.attempt.clone())]
            }
            _ => Vec::new(),
        }
    }

    /// How its steps ended.
    #[must_use]
    pub fn said(&self) -> Vec<Said> {
        let Some(current) = &self.current else { return Vec::new() };
        let number = current.intent.attempt.number;
        current.done.iter().map(|(step, end)| Said { number, step: *step, end: end.clone() }).collect()
    }

    /// The steps that it is at.
    #[must_use]
    pub fn doing(&self) -> Option<(u64, Vec<Step>)> {
        let current = self.current.as_ref()?;
        let open = current.begun.iter().filter(|step| !current.done.contains_key(step));
        Some((current.intent.attempt.number, open.copied().collect()))
    }

    fn begin(&mut self, now_ms: u64, step: Step) -> Option<Do> {
        let current = self.current.as_mut()?;
        if !current.begun.insert(step) {
            return None;
        }
        let lost = |what: &str| {
            let why = format!("the log was let go before {what}: it was held too long, or not at all");
            Err(Fault { code: SnapshotCode::EnableTlogPopFailed, why })
        };
        let held = matches!(current.lease, Lease::Until(_));
        match step {
            Step::Hold => current.lease = Lease::Until(now_ms + current.intent.hold_ms),
            Step::Image(Role::Storage | Role::Tlog) if !held => {
                current.done.insert(step, lost("its image was made"));
                return None;
            }
            Step::Release => {
                let Lease::Until(until) = current.lease else {
                    current.done.insert(step, lost("all images were made"));
                    return None;
                };
                let held_ms = (now_ms + current.intent.hold_ms).checked_sub(until);
                current.done.insert(step, Ok(Told { held_ms, ..Told::default() }));
                current.lease = Lease::Over;
                return Some(Do::LetGo(current.intent.attempt.clone()));
            }
            _ => {}
        }
        Some(Do::Begin(Box::new(current.intent.clone()), step))
    }

    fn end(&mut self) -> Option<Vec<Do>> {
        let attempt = self.current.take()?.intent.attempt;
        self.fence = self.fence.max(attempt.number);
        Some(vec![Do::LetGo(attempt.clone()), Do::Leave(attempt)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(number: u64) -> Intent {
        let uid = "c50263df28be44ebb596f5c2a849adbb".parse().unwrap();
        Intent {
            attempt: Attempt { uid, number },
            cluster: String::new(),
            program: String::new(),
            arguments: Vec::new(),
            nodes: Vec::new(),
            started_ns: 0,
            keep_until_ns: None,
            hold_ms: 30_000,
            run_ms: 1,
            ended: BTreeMap::new(),
        }
    }

    fn order(number: u64, step: Step) -> Order {
        let intent = intent(number);
        Order { attempt: intent.attempt.clone(), epoch: 1, what: What::Do(Box::new(intent), vec![step]) }
    }

    /// A member that holds its log since 0 and has its images.
    fn holding() -> Member {
        let mut member = Member::new(1);
        for step in [Step::Hold, Step::Image(Role::Storage), Step::Image(Role::Tlog)] {
            assert_eq!(member.order(0, &order(7, step)), [Do::Begin(Box::new(intent(7)), step)]);
            member.done(0, &intent(7).attempt, step, Ok(Told::default()));
        }
        member
    }

    #[test]
    fn a_lease_that_ends_just_before_the_release_is_lost_although_nothing_else_happened() {
        let released = |at| {
            let mut member = holding();
            let todo = member.order(at, &order(7, Step::Release));
            assert_eq!(todo, [Do::LetGo(intent(7).attempt)], "at {at}");
            assert!(!member.holds());
            member.said().into_iter().find(|said| said.step == Step::Release).unwrap().end
        };
        assert_eq!(released(29_999), Ok(Told { held_ms: Some(29_999), ..Told::default() }));
        assert_eq!(released(30_000).unwrap_err().code, SnapshotCode::EnableTlogPopFailed);
    }

    #[test]
    fn an_image_without_a_hold_is_none() {
        let mut member = Member::new(1);
        assert_eq!(member.order(0, &order(7, Step::Image(Role::Tlog))), []);
        assert!(member.said()[0].end.is_err());
        let mut member = holding();
        assert_eq!(member.tick(30_000), [Do::LetGo(intent(7).attempt)]);
        assert!(member.tick(40_000).is_empty(), "let go once");
    }

    #[test]
    fn each_step_is_begun_once_and_only_for_the_newest_attempt_of_its_epoch() {
        let mut member = holding();
        assert_eq!(member.order(1, &order(7, Step::Image(Role::Tlog))), []);
        let other = Order { epoch: 2, ..order(8, Step::Hold) };
        assert_eq!(member.order(1, &other), []);
        let begun = member.order(1, &order(8, Step::Ready));
        let (old, new) = (intent(7).attempt, intent(8));
        let expected =
            [Do::LetGo(old.clone()), Do::Leave(old.clone()), Do::Begin(Box::new(new), Step::Ready)];
        assert_eq!(begun, expected);
        assert_eq!(member.order(2, &order(7, Step::Run(Role::Tlog))), [], "the old one is over");
        let late = member.done(3, &old, Step::Label, Ok(Told::default()));
        assert_eq!(late, [Do::LetGo(old.clone()), Do::Discard(old)], "what it makes late goes");
    }

    #[test]
    fn without_a_word_of_the_coordinator_nothing_that_is_kept_goes() {
        let old = intent(7).attempt;
        let left = [Do::LetGo(old.clone()), Do::Leave(old.clone())];
        assert_eq!(holding().set_epoch(2), left);
        let mut member = holding();
        assert_eq!(member.order(1, &order(8, Step::Ready))[..2], left);
        let said = |complete| Order { attempt: old.clone(), epoch: 1, what: What::Finish { complete } };
        assert_eq!(member.order(2, &said(true)), [Do::Keep(old.clone())]);
        assert_eq!(member.order(2, &said(false)), [Do::Discard(old.clone())]);
        assert_eq!(member.attempt(), Some(&intent(8).attempt), "the new one goes on");
    }
}
