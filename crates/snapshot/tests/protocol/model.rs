//! A metadata store as far as a snapshot sees it: commits in a log, a store behind it, and a log that drops what the store
//! has. The state is a bank whose money is never more or less, a ring that is always one ring, and a counter. Where it is
//! asked for, a file system of real parts does the same beside it, and is what counts.

mod real;

use real::Real;

/// A small generator of random numbers (splitmix64), so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Op {
    from: u8,
    to: u8,
    money: i64,
}

impl Op {
    pub(crate) fn random(random: &mut Random) -> Op {
        let [from, to] = [(); 2].map(|()| random.below(6) as u8);
        Op { from, to, money: random.below(50) as i64 }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Content {
    bank: [i64; 6],
    ring: [u8; 6],
    count: u64,
}

impl Content {
    fn empty() -> Content {
        Content { bank: [100; 6], ring: [0, 1, 2, 3, 4, 5], count: 0 }
    }

    fn apply(&mut self, op: Op) {
        self.bank[op.from as usize] -= op.money;
        self.bank[op.to as usize] += op.money;
        self.ring.swap(op.from as usize, op.to as usize);
        self.count += 1;
    }

    fn is_sound(&self) -> bool {
        let mut ring = self.ring;
        ring.sort_unstable();
        self.bank.iter().sum::<i64>() == 600 && ring == [0, 1, 2, 3, 4, 5]
    }
}

/// Versions, oldest first, with what they did.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// All that was ever committed and not lost.
    log: Vec<(u64, Op)>,
    /// How many of them the log has dropped, how many the store has, how many are durable.
    dropped: usize,
    flushed: usize,
    durable: usize,
    real: Option<Real>,
}

#[derive(Clone, Debug)]
pub(crate) enum Image {
    Storage {
        version: u64,
        content: Content,
    },
    Tlog {
        before: u64,
        entries: Vec<(u64, Op)>,
    },
    /// Of either role, of real parts.
    Real(real::Image),
    Coord,
    /// A log server's image of the log of another server, which ends with this commit.
    Copy {
        end: u64,
    },
}

impl Store {
    /// With real parts by this seed, or without.
    pub(crate) fn new(real: Option<u64>) -> Store {
        Store { log: Vec::new(), dropped: 0, flushed: 0, durable: 0, real: real.map(Real::new) }
    }

    pub(crate) fn commit(&mut self, version: u64, op: Op) {
        self.log.push((version, op));
        if let Some(real) = &mut self.real {
            real.commit(version, op);
        }
    }

    pub(crate) fn sync(&mut self) {
        self.durable = self.log.len();
        if let Some(real) = &self.real {
            real.sync();
        }
    }

    pub(crate) fn flush(&mut self) {
        self.sync();
        self.flushed = self.log.len();
        if let Some(real) = &self.real {
            real.flush();
        }
    }

    /// From now on the log is held, or not.
    pub(crate) fn hold(&mut self, held: bool) {
        if let Some(real) = &mut self.real {
            real.hold(held);
        }
    }

    pub(crate) fn drop_log(&mut self, held: bool) {
        if !held {
            self.dropped = self.flushed;
        }
        if let Some(real) = &self.real {
            real.drop_log();
        }
    }

    pub(crate) fn restart(&mut self) {
        if let Some(real) = &mut self.real {
            real.restart();
        }
    }

    pub(crate) fn lose_power(&mut self) {
        match &mut self.real {
            None => self.log.truncate(self.durable),
            // A real disk keeps more than was synced, as it comes.
            Some(real) => {
                let last = real.lose_power();
                self.log.retain(|(version, _)| *version <= last);
                assert!(self.log.len() >= self.durable, "what was durable is gone");
                self.durable = self.log.len();
            }
        }
    }

    /// What log servers have, too.
    pub(crate) fn last_durable(&self) -> u64 {
        self.log[..self.durable].last().map_or(0, |(version, _)| *version)
    }

    pub(crate) fn last(&self) -> u64 {
        self.log.last().map_or(0, |(version, _)| *version)
    }

    fn at(&self, version: u64) -> Content {
        let mut content = Content::empty();
        self.log.iter().take_while(|(at, _)| *at <= version).for_each(|(_, op)| content.apply(*op));
        content
    }

    pub(crate) fn image_store(&mut self) -> (Image, u64) {
        if let Some(real) = &mut self.real {
            self.durable = self.log.len();
            return (Image::Real(real.image_store()), self.last());
        }
        self.flush();
        (Image::Storage { version: self.last(), content: self.at(self.last()) }, self.last())
    }

    pub(crate) fn image_log(&mut self) -> (Image, u64) {
        if let Some(real) = &mut self.real {
            self.durable = self.log.len();
            return (Image::Real(real.image_log()), self.last());
        }
        self.sync();
        let before = self.log[..self.dropped].last().map_or(0, |(version, _)| *version);
        (Image::Tlog { before, entries: self.log[self.dropped..].to_vec() }, self.last())
    }

    /// Whether the two images open, and as what this store was at `cut`.
    pub(crate) fn check(&self, storage: &Image, tlog: &Image, cut: u64) -> Result<(), String> {
        if let (Some(real), Image::Real(storage), Image::Real(tlog)) = (&self.real, storage, tlog) {
            return real.check(storage, tlog, cut);
        }
        let (Image::Storage { version, content }, Image::Tlog { before, entries }) = (storage, tlog) else {
            return Err("an image is of another role".to_owned());
        };
        if before > version {
            return Err(format!("the store's image ends at {version}, the log's begins after {before}"));
        }
        let end = entries.last().map_or(*before, |(version, _)| *version);
        let mut restored = content.clone();
        entries.iter().filter(|(at, _)| at > version).for_each(|(_, op)| restored.apply(*op));
        if end != cut || !restored.is_sound() || restored != self.at(cut) {
            return Err(format!(
                "the images open as {restored:?} at {end}, not as {:?} at {cut}",
                self.at(cut)
            ));
        }
        Ok(())
    }
}
