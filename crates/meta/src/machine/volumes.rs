//! Volumes and tokens: what the admin server assigns, brought into the state through the log.

use super::Machine;
use super::collect::{Collecting, CollectionShown};
use super::copying::Copying;
use super::falls::Falls;
use super::forget::Forgetting;
use super::group::{Effect, Group, Then};
use super::leave::{self, Leaving};
use super::packing::{Packing, PackingShown};
use super::pins::PinsKnown;
use super::tag::Tag;
use chronofs_core::ops::SystemRequest;
use chronofs_core::volume::VolumeSpec;
use chronofs_core::{Ino, SessionId, Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::{FREED_MAX, SystemCtx, SystemError, SystemReply, drawn_apart_since, rows};
use chronofs_wire::admin::{AssignedStore, AssignedVolume, KeptKeys};
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

/// Which sessions changed a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChangedBy {
    /// None.
    Nobody,
    /// Just this one.
    One(SessionId),
    /// Several.
    Many,
}

impl ChangedBy {
    /// This one did, too.
    pub(super) fn note(&mut self, session: SessionId) {
        *self = match *self {
            ChangedBy::Nobody => ChangedBy::One(session),
            ChangedBy::One(one) if one == session => return,
            _ => ChangedBy::Many,
        };
    }

    /// Whether anybody else did.
    pub(super) fn others(self, session: SessionId) -> bool {
        !matches!(self, ChangedBy::Nobody) && self != ChangedBy::One(session)
    }
}

/// A volume as the server serves it.
#[derive(Clone, Debug)]
pub struct VolumeState {
    /// Its place in keys.
    pub index: VolumeIndex,
    /// Its row.
    pub row: rows::Volume,
    /// Its sealed keys, if it is encrypted.
    pub keys: Option<KeptKeys>,
    /// Where its objects are; unknown until it is assigned.
    pub store: Option<AssignedStore>,
    /// Why it cannot be served, if it cannot.
    pub problem: Option<String>,
    /// Open files with the number of their opens.
    pub(super) opens: HashMap<Ino, u32>,
    /// Files whose last open ended: they go if they have no link.
    pub(super) to_reap: BTreeSet<Ino>,
    /// Who has changed it since the server started.
    pub(super) changed_by: ChangedBy,
    /// Rows of files that are gone are not removed any more, because some are damaged.
    pub(super) purge_damaged: bool,
    /// How far what nobody can ask for any more is forgotten.
    pub(super) forgetting: Forgetting,
    /// How the collection of its objects stands.
    pub(super) collecting: Collecting,
    /// How far the packing of its staged slices is.
    pub(super) packing: Packing,
    /// How far what its source stored is copied.
    pub(super) copying: Copying,
    /// How far it is gone, if it is given up.
    pub(super) leaving: Leaving,
    /// What is known of the pins in its block store.
    pub(super) pins: PinsKnown,
    /// How many files it had lately.
    pub(super) falls: Falls,
    /// How many objects and staged slices rows named.
    pub(super) falls_of_held: Falls,
}

impl VolumeState {
    pub(super) fn new(index: VolumeIndex, row: rows::Volume) -> Self {
        VolumeState {
            index,
            row,
            keys: None,
            store: None,
            problem: None,
            opens: HashMap::new(),
            to_reap: BTreeSet::new(),
            changed_by: ChangedBy::Nobody,
            purge_damaged: false,
            forgetting: Forgetting::default(),
            collecting: Collecting::default(),
            packing: Packing::default(),
            copying: Copying::default(),
            leaving: Leaving::default(),
            pins: PinsKnown::default(),
            falls: Falls::default(),
            falls_of_held: Falls::default(),
        }
    }

    /// Its id.
    pub fn id(&self) -> Uuid {
        self.row.spec.id
    }

    /// How the collection of its objects stands.
    pub fn collection(&self) -> &CollectionShown {
        &self.collecting.shown
    }

    /// How the packing of its small slices goes.
    pub fn packing(&self) -> &PackingShown {
        &self.packing.shown
    }

    /// Ends `count` opens of `ino`; whether none is left.
    pub(super) fn closed(&mut self, ino: Ino, count: u32) -> bool {
        let Some(have) = self.opens.get_mut(&ino) else { return true };
        *have = have.saturating_sub(count);
        let last = *have == 0;
        if last {
            self.opens.remove(&ino);
        }
        last
    }
}

/// The sealed keys of an assignment, if they are newer than what is kept.
fn newer_keys(known: &VolumeState, assigned: &AssignedVolume) -> Option<KeptKeys> {
    let kept = known.keys.as_ref().map(|keys| keys.revision);
    assigned.keys.clone().filter(|keys| kept.is_none_or(|kept| kept < keys.revision))
}

impl Machine {
    /// The live volume of an id.
    pub(super) fn volume_by_id(&self, id: Uuid) -> Option<&VolumeState> {
        self.volumes.values().find(|volume| volume.id() == id && volume.row.deleted.is_none())
    }

    /// A system request, decided and committed with the group. `None`: it was refused for the reason given.
    pub(super) fn system(
        &mut self,
        group: &mut Group,
        request: &SystemRequest,
    ) -> Result<Result<SystemReply, SystemError>, EngineError> {
        let version = self.next_version(group);
        // A reap is asked for only when nobody has the file open.
        let is_open = |_: Ino| false;
        let known = &self.volumes;
        let place = |id: Uuid| known.values().find(|volume| volume.id() == id).map(|volume| volume.index);
        let ctx = SystemCtx { version, is_open: &is_open, freed_max: FREED_MAX, place: &place };
        let outcome = match chronofs_namespace::system(&group.reads, &ctx, request) {
            Ok(outcome) => outcome,
            Err(stop) => {
                self.stopped(group, stop, &format!("{request:?}"))?;
                return Err(EngineError::Damaged {
                    what: "the metadata store's own tables".to_owned(),
                    detail: format!("{request:?} could not be decided; run `chronofs meta verify`"),
                });
            }
        };
        if outcome.reply.is_ok() && !outcome.batch.0.is_empty() {
            self.commit_system(group, version, outcome.batch);
        }
        Ok(outcome.reply)
    }

    pub(super) fn commit_system(
        &mut self,
        group: &mut Group,
        version: Version,
        batch: chronofs_engine::Batch,
    ) {
        self.last = version;
        group.commit(version, &Tag::System, batch);
    }

    /// Brings the volumes of the waiting assignment into the state. What could not be committed is tried again at
    /// the next tick.
    pub(super) fn assign(&mut self, group: &mut Group) -> Result<(), EngineError> {
        let Some(assignment) = self.to_assign.take() else { return Ok(()) };
        if self.is_recovering() {
            // Without tokens nobody could come back; volumes wait until what was lost is applied.
            self.take_assignment(group, assignment.clone());
            self.to_assign = Some(assignment);
            return Ok(());
        }
        if group.full {
            // Tokens hold at once; volumes are tried again at the ticks to come.
            self.take_assignment(group, assignment.clone());
            self.to_assign = Some(assignment);
            return Ok(());
        }
        let before = group.commits.len();
        let wanted = |id: &Uuid| assignment.volumes.iter().any(|of| of.spec.id == *id && !of.deleted);
        self.missing.retain(|id, _| wanted(id));
        for volume in &assignment.volumes {
            self.assign_volume(group, volume)?;
        }
        if group.commits.len() == before {
            self.take_assignment(group, assignment);
        } else {
            // Its definitions hold once they are applied; the next tick finds nothing more to change.
            self.to_assign = Some(assignment);
        }
        Ok(())
    }

    /// Whether a volume that was served before can be made anew: only where its objects and inodes would be others.
    fn may_make(&self, group: &mut Group, born: Version) -> Result<bool, EngineError> {
        match drawn_apart_since(&group.reads) {
            Ok(since) => Ok(since.max(self.config.began_apart).is_some_and(|since| born < since)),
            Err(stop) => self.stopped(group, stop, "looking for the metadata store").map(|_| false),
        }
    }

    /// Nothing is made in the place of a volume that was served before: its objects would be taken for leftovers, and new ones
    /// would have their names.
    fn is_missing(&mut self, group: &mut Group, spec: &VolumeSpec) {
        let problem = format!(
            "volume {} was served before, and this folder has nothing of it: start the server on the right folder (--db-folder), or \
             restore it from the newest backup; nothing is made in its place, and its objects stay as they are. If its metadata is \
             lost for good: chronofs meta init creds --begin-anew in an empty folder, and chronofs analyze salvage",
            spec.name
        );
        if self.missing.insert(spec.id, problem.clone()).is_none() {
            group.effects.push(Effect::Warn(problem));
        }
    }

    fn assign_volume(&mut self, group: &mut Group, assigned: &AssignedVolume) -> Result<(), EngineError> {
        let id = assigned.spec.id;
        let known = self.volumes.values().find(|volume| volume.id() == id);
        let request = match known {
            None if assigned.deleted => return Ok(()),
            None if assigned.born_ns > 0 && !self.may_make(group, Version(assigned.born_ns))? => {
                self.is_missing(group, &assigned.spec);
                return Ok(());
            }
            None => {
                self.missing.remove(&id);
                match assigned.born_ns {
                    0 => SystemRequest::CreateVolume(assigned.spec.clone()),
                    _ => SystemRequest::CreateVolumeAgain(assigned.spec.clone()),
                }
            }
            Some(known) if assigned.deleted || !known.row.is_live() => match leave::assigned(known, assigned)
            {
                Some(request) => request,
                None => return Ok(()),
            },
            Some(known) if known.row.spec != assigned.spec => {
                SystemRequest::UpdateVolume(assigned.spec.clone())
            }
            Some(known) => match newer_keys(known, assigned) {
                Some(keys) => SystemRequest::SetKeys { id, revision: keys.revision, sealed: keys.sealed },
                None => return Ok(()),
            },
        };
        let done = self.system(group, &request)?;
        if let (Ok(SystemReply::Volume { index, .. }), SystemRequest::SetKeys { revision, sealed, .. }) =
            (&done, &request)
        {
            let keys = KeptKeys { revision: *revision, sealed: sealed.clone() };
            group.thens.push(Then::KeysChanged(*index, keys));
        }
        match done {
            Ok(SystemReply::Volume { index, volume }) => group.thens.push(Then::VolumeChanged(index, volume)),
            Ok(_) => {
                let gone = self.volumes.values().find(|volume| volume.id() == id);
                if let Some((index, mut row)) = gone.map(|volume| (volume.index, volume.row.clone())) {
                    row.deleted = Some(self.last);
                    group.thens.push(Then::VolumeChanged(index, Box::new(row)));
                }
            }
            Err(error) => {
                let problem = error.to_string();
                let warning = format!("volume {} cannot be as assigned: {problem}", assigned.spec.name);
                group.effects.push(Effect::Warn(warning));
                if let Some(volume) = self.volumes.values_mut().find(|volume| volume.id() == id) {
                    volume.problem = Some(problem);
                }
            }
        }
        Ok(())
    }

    /// Sealed keys that are newer than those of the assignment: the admin server was restored from an old copy.
    #[must_use]
    pub fn keys_beyond_assignment(&self, volume: &VolumeState) -> Option<KeptKeys> {
        let assigned = self.assignment.iter().flat_map(|assignment| &assignment.volumes);
        let assigned = assigned.filter(|assigned| assigned.spec.id == volume.id());
        let told = assigned.filter_map(|assigned| assigned.keys.as_ref()).map(|keys| keys.revision).max();
        volume.keys.clone().filter(|keys| told.is_none_or(|told| told < keys.revision))
    }

    pub(super) fn keys_changed(&mut self, index: VolumeIndex, keys: KeptKeys) {
        if let Some(volume) = self.volumes.get_mut(&index) {
            volume.keys = Some(keys);
        }
    }

    /// Stores, tokens and revision of an assignment whose volumes are all in the state.
    fn take_assignment(&mut self, group: &mut Group, assignment: Box<chronofs_wire::admin::Assignment>) {
        for assigned in &assignment.volumes {
            if let Some(volume) = self.volumes.values_mut().find(|volume| volume.id() == assigned.spec.id) {
                volume.store = Some(assigned.store.clone());
            }
        }
        self.tokens = assignment.tokens.iter().map(|token| (token.id, token.clone())).collect();
        self.assignment = Some(assignment);
        self.cut_off_revoked(group);
    }

    /// Connections that came with a token that is no more, or to a volume that is deleted, end.
    pub(super) fn cut_off_revoked(&mut self, group: &mut Group) {
        let now_ns = group.now_ns;
        for session in self.sessions.values() {
            let Some(conn) = session.conn else { continue };
            let token_holds = self
                .tokens
                .get(&session.token)
                .is_some_and(|token| token.ends_ns.is_none_or(|ends_ns| ends_ns > now_ns));
            let volume_holds =
                self.volumes.get(&session.index).is_some_and(|volume| volume.row.deleted.is_none());
            if !token_holds || !volume_holds {
                group.effects.push(Effect::Close(conn));
            }
        }
    }

    /// Sets or clears the reason why a volume cannot be served.
    pub fn set_problem(&mut self, id: Uuid, problem: Option<String>) {
        if let Some(volume) = self.volumes.values_mut().find(|volume| volume.id() == id) {
            volume.problem = problem;
        }
    }

    pub(super) fn volume_changed(&mut self, _group: &mut Group, index: VolumeIndex, row: rows::Volume) {
        match self.volumes.get_mut(&index) {
            Some(volume) => {
                let returns = !volume.row.is_live() && row.is_live();
                volume.row = row;
                volume.leaving.changed(self.last, returns);
                // Its horizon may be another one.
                volume.forgetting.shrunk(self.last);
            }
            None => {
                let mut volume = VolumeState::new(index, row);
                volume.pins = PinsKnown::new(volume.row.born);
                self.volumes.insert(index, volume);
            }
        }
    }
}
