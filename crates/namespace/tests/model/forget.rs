//! Leases on the past, and forgetting what nobody can ask for.

use crate::world::{Check, World, ensure};
use bytes::Bytes;
use chronofs_core::ops::SystemRequest;
use chronofs_core::{Ino, Retention, Version};
use chronofs_engine::{Commit, Engine};
use chronofs_history::{Protected, Snapshot};
use chronofs_namespace::rows::{VERSIONED, Volume};
use chronofs_namespace::{
    SystemReply, check_kept_instant, list_kept, list_sessions, protected_instants, volume,
};

impl World {
    pub fn lease(&mut self, tick: u64) -> Check {
        let version = Version(self.now().version.0 + tick);
        let request = SystemRequest::OpenSession {
            volume: self.spec.id,
            client: u128::from(version.0),
            at: Some(version),
            read_only: true,
            ttl_ms: 60_000,
            scope: chronofs_core::ops::Scope { token: uuid::Uuid::nil(), root: Ino::ROOT },
        };
        match self.system(version, &request)? {
            SystemReply::Session { id, .. } => self.leases.push((id, version)),
            other => return Err(format!("{request:?}: {other:?}")),
        }
        self.unchanged(version);
        Ok(())
    }

    pub fn end_lease(&mut self) -> Check {
        let version = Version(self.now().version.0 + 1);
        if let Some((session, _)) = self.leases.pop() {
            self.system(version, &SystemRequest::EndSession { session })?;
            self.unchanged(version);
        }
        Ok(())
    }

    /// What disk snapshots do is applied at once: a crash takes nothing of it back.
    fn keeping(&mut self, request: &SystemRequest) -> Result<SystemReply, String> {
        let version = Version(self.now().version.0 + 1);
        let reply = self.system(version, request)?;
        self.unchanged(version);
        self.apply();
        Ok(reply)
    }

    pub fn keep_past(&mut self, tick: u64) -> Check {
        self.unchanged(Version(self.now().version.0 + tick));
        let (n, volume) = (self.next_set, self.spec.id);
        let ids = [n, n + 1].map(uuid::Uuid::from_u128);
        let request = SystemRequest::KeepPast { volume, ids, ends: Version::MAX, note: String::new() };
        match self.keeping(&request)? {
            SystemReply::Kept(at, to) if at <= to && to == self.now().version => {
                self.sets.push((n, at, None));
                self.next_set += 3;
                Ok(())
            }
            other => Err(format!("{request:?}: {other:?}")),
        }
    }

    pub fn cut(&mut self) -> Check {
        let (volume, to) = (self.spec.id, self.now().version);
        let Some(place) = self.sets.iter().position(|(.., last)| last.is_none()) else { return Ok(()) };
        let (n, at, _) = self.sets[place];
        let id = uuid::Uuid::from_u128(n + 2);
        let note = String::new();
        self.keeping(&SystemRequest::Keep { volume, id, at, to, ends: None, note, found: false })?;
        self.sets[place].2 = Some(to);
        for id in [n, n + 1].map(uuid::Uuid::from_u128) {
            self.keeping(&SystemRequest::Release { volume, id })?;
        }
        Ok(())
    }

    pub fn let_go(&mut self) -> Check {
        let Some((n, ..)) = self.sets.pop() else { return Ok(()) };
        for id in [n, n + 1, n + 2].map(uuid::Uuid::from_u128) {
            self.keeping(&SystemRequest::Release { volume: self.spec.id, id })?;
        }
        Ok(())
    }

    /// An instant of each set.
    fn of_sets(&self, pick: u64) -> Vec<Version> {
        let of = |(_, from, last): &(u128, Version, Option<Version>)| {
            let last = last.unwrap_or(self.now().version);
            Version(from.0 + pick % (last.0 - from.0 + 1))
        };
        self.sets.iter().map(of).collect()
    }

    pub fn move_horizon(&mut self, tick: u64) -> Check {
        let version = Version(self.now().version.0 + tick);
        let request = SystemRequest::AdvanceHorizon { volume: self.spec.id, to: Version::MAX };
        let reply = self.system(version, &request)?;
        self.pass_window(version);
        ensure!(reply == SystemReply::Horizon(self.horizon), "{reply:?}; the model says {:?}", self.horizon);
        self.unchanged(version);
        Ok(())
    }

    /// The horizon is where the window begins, if it was not further already.
    pub fn pass_window(&mut self, version: Version) {
        let window_ns = match self.spec.retention {
            Retention::None => 0,
            Retention::Seconds(seconds) => seconds * 1_000_000_000,
            Retention::Forever => return,
        };
        self.horizon = self.horizon.max(Version(version.0.saturating_sub(window_ns)));
    }

    /// A step of a sweep. It may rest on a horizon that a crash takes back: then the step goes, too.
    pub fn forget(&mut self, limit: u32) -> Check {
        let version = Version(self.now().version.0 + 1);
        let from = std::mem::take(&mut self.sweep);
        match self.system(version, &SystemRequest::Expire { volume: self.spec.id, from, limit })? {
            SystemReply::Expired { next, .. } => self.sweep = next.unwrap_or_default(),
            other => return Err(format!("Expire: {other:?}")),
        }
        self.unchanged(version);
        Ok(())
    }

    pub fn forget_all(&mut self, tick: u64, limit: u32, pick: u64) -> Check {
        self.move_horizon(tick)?;
        self.sweep = Bytes::new();
        loop {
            self.forget(limit)?;
            self.apply();
            if self.sweep.is_empty() {
                break;
            }
        }
        let view = self.engine.view();
        let failed = |stop| format!("{stop}");
        let row = volume(&*view, self.index).map_err(failed)?.ok_or("no volume")?;
        let sessions = list_sessions(&*view).map_err(failed)?;
        let kept = list_kept(&*view).map_err(failed)?;
        let protected = protected_instants(self.index, &row, &sessions, &kept);
        for table in VERSIONED {
            let rows =
                Snapshot::new(&*view, self.index, None).history(table, &[], usize::MAX).map_err(failed)?;
            let left = rows.iter().find(|past| !protected.intersects(past.row.since, past.until()));
            ensure!(left.is_none(), "{} still has {left:?}", table.name);
        }
        self.check_kept(&row, &protected, pick)?;
        self.check_tree(None)?;
        let picked = [pick, pick / 3, pick / 5].map(|pick| self.instant(pick).0);
        let leased: Vec<Version> = self.leases.iter().map(|(_, at)| *at).collect();
        let of_sets = [pick, pick / 7, u64::MAX].map(|pick| self.of_sets(pick)).concat();
        leased.into_iter().chain(of_sets).chain(picked).try_for_each(|at| self.check_tree(Some(at)))
    }

    /// What is kept can be had, and what can be had is protected.
    fn check_kept(&self, row: &Volume, protected: &Protected, pick: u64) -> Check {
        let (now, view) = (self.now().version, self.engine.view());
        let had = |at| {
            let had = check_kept_instant(&*view, self.index, row, at, now);
            had.map_err(|stop| format!("{stop}"))
        };
        for at in [pick, pick / 7, u64::MAX].map(|pick| self.of_sets(pick)).concat() {
            let had = had(at)?;
            ensure!(had.is_ok(), "{at} is kept: {had:?}");
        }
        for at in [pick, pick / 3, pick / 5].map(|pick| self.instant(pick).0) {
            ensure!(had(at)?.is_err() || protected.covers(at, at), "{at} can be had and is not protected");
        }
        Ok(())
    }

    pub fn expire(&mut self, picks: &[u64], limit: usize) -> Check {
        self.apply();
        let kept: Vec<Version> = picks.iter().map(|pick| self.instant(*pick).0).collect();
        let protected: Protected = kept.iter().map(|at| (*at, *at)).collect();
        let (mut from, mut version) = (Bytes::new(), self.now().version);
        loop {
            let tables = &chronofs_namespace::rows::VERSIONED;
            let step =
                chronofs_history::expire(&*self.engine.view(), self.index, tables, &protected, &from, limit);
            let step = step.map_err(|stop| format!("expire: {stop}"))?;
            version.0 += 1;
            self.pending.push(Commit { version, tag: Bytes::new(), batch: step.batch });
            self.apply();
            match step.next {
                Some(next) => from = next,
                None => break,
            }
        }
        self.check_tree(None)?;
        kept.into_iter().try_for_each(|at| self.check_tree(Some(at)))
    }
}
