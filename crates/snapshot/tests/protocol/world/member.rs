//! What a member does of what it is told, in the world of `main.rs`.

use super::*;

impl World {
    /// Also in a later life: who sends does not know.
    pub(super) fn answered(&mut self, n: usize, _life: u64, mut orders: Vec<Order>) {
        // The record of a set cannot be put into the block stores now.
        if !self.quiet && self.random.one_in(8) {
            orders.retain(|order| !matches!(order.what, What::Finish { complete: true }));
        }
        for mut order in orders {
            if self.mutant == Some(Mutant::EpochNotChecked) {
                order.epoch = self.servers[n].member.epoch();
            }
            if !self.servers[n].up {
                return;
            }
            if let What::Do(intent, _) = &order.what {
                assert_eq!(intent.attempt, order.attempt);
            }
            let now_ms = self.now_ms;
            let todo = match self.mutant {
                // A clock that stands still.
                Some(Mutant::LeaseEndNotNoticed) => self.servers[n].member.order(0, &order),
                _ => self.servers[n].member.order(now_ms, &order),
            };
            self.carry_out(n, todo);
        }
    }

    // ---- what members do

    pub(super) fn carry_out(&mut self, n: usize, todo: Vec<Do>) {
        for what in todo {
            match what {
                Do::Begin(intent, step) => {
                    let delay = self.delay();
                    if step == Step::Ready {
                        self.servers[n].kept.insert(intent.attempt.clone());
                    }
                    if let Step::Run(role) = step {
                        self.servers[n].running.insert((intent.attempt.number, role));
                    }
                    let life = self.servers[n].life;
                    self.after(delay, Event::Ended(n, life, intent, step));
                }
                Do::LetGo(attempt) => {
                    let all = self.mutant == Some(Mutant::StragglerNotFenced);
                    self.servers[n].holds.retain(|number| !all && *number != attempt.number);
                }
                Do::Keep(attempt) => {
                    self.servers[n].forget(attempt.number);
                    self.servers[n].complete.insert(attempt);
                }
                Do::Leave(attempt) => self.servers[n].forget(attempt.number),
                Do::Discard(attempt) => {
                    self.servers[n].forget(attempt.number);
                    self.servers[n].kept.remove(&attempt);
                }
            }
        }
    }

    pub(super) fn ended(&mut self, n: usize, life: u64, intent: &Intent, step: Step) {
        if !self.servers[n].up || self.servers[n].life != life {
            return;
        }
        let done_as = match (self.mutant, step) {
            (Some(Mutant::OrderSwapped), Step::Image(Role::Storage)) => Step::Image(Role::Tlog),
            (Some(Mutant::OrderSwapped), Step::Image(Role::Tlog)) => Step::Image(Role::Storage),
            _ => step,
        };
        let end = self.do_step(n, intent, done_as);
        let now_ms = if self.mutant == Some(Mutant::LeaseEndNotNoticed) { 0 } else { self.now_ms };
        let todo = self.servers[n].member.done(now_ms, &intent.attempt, step, end);
        self.carry_out(n, todo);
        self.ask(n);
    }

    pub(super) fn do_step(&mut self, n: usize, intent: &Intent, step: Step) -> Result<Told, Fault> {
        let number = intent.attempt.number;
        let fails = !self.quiet && self.random.one_in(60);
        let server = &mut self.servers[n];
        let fault = |code, why: &str| Err(Fault { code, why: why.to_owned() });
        if fails {
            return fault(SnapshotCode::StorageFailed, "the disk is full");
        }
        match step {
            Step::Hold => {
                if self.mutant != Some(Mutant::HoldNotTaken) {
                    server.holds.insert(number);
                }
                if self.mutant == Some(Mutant::LeaseEndNotNoticed) {
                    self.after(intent.hold_ms, Event::HoldEnds(n, number));
                }
            }
            Step::Image(Role::Tlog) if server.id == "far" => {
                let Some(Ended { length: end, .. }) = intent.ended.get(COPIED).copied() else {
                    return fault(SnapshotCode::TlogFailed, "nobody said where the log ended");
                };
                let owner = self.servers.iter().find(|server| server.id == COPIED && !server.superseded);
                if owner.is_none_or(|owner| owner.store.last_durable() < end) {
                    return fault(SnapshotCode::TlogFailed, "the copy does not go so far");
                }
                self.servers[n].images.insert((number, Role::Tlog), (Image::Copy { end }, false));
                self.note("a log server made its image");
            }
            Step::Image(role) => {
                let (image, version) = match role {
                    Role::Storage => server.store.image_store(),
                    Role::Tlog => server.store.image_log(),
                    Role::Coord => (Image::Coord, 0),
                };
                server.images.insert((number, role), (image, false));
                let version = (role != Role::Coord).then_some(version);
                let ended = version.filter(|_| role == Role::Tlog).map(|length| Ended { segment: 1, length });
                return Ok(Told { version, ended, ..Told::default() });
            }
            Step::Label => {
                let roles = server.roles.clone();
                for role in roles {
                    match server.images.get_mut(&(number, role)) {
                        Some((_, labelled)) => *labelled = true,
                        None => return fault(SnapshotCode::StorageFailed, "there is no image to label"),
                    }
                }
            }
            Step::Run(role) => {
                // Killed, but for one that hung in the kernel and goes on afterwards.
                let alive = server.running.remove(&(number, role));
                let image = server.images.get(&(number, role)).cloned();
                let (uid, id) = (intent.attempt.uid.clone(), server.id.clone());
                match image {
                    Some((image, true)) if alive || self.random.one_in(4) => {
                        self.out.insert((uid, id, role), (number, image));
                    }
                    _ => return fault(SnapshotCode::StorageFailed, "the program found no image"),
                }
            }
            Step::Ready | Step::Release => {}
        }
        Ok(Told::default())
    }

    // ---- clients
}

impl Server {
    /// All attempts of which it has anything.
    pub(super) fn holding(&self) -> Vec<Held> {
        let held = |attempt: &Attempt| Held {
            attempt: attempt.clone(),
            complete: self.complete.contains(attempt),
            resting: false,
        };
        self.kept.iter().map(held).collect()
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.images.retain(|(of, _), _| *of != number);
        self.running.retain(|(of, _)| *of != number);
    }
}
