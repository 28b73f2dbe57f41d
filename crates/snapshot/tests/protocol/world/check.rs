//! What must hold: of a set that is said to be complete, and of the world when all is quiet.

use super::World;
use crate::model::Image;
use chronofs_snapshot::Role;
use chronofs_snapshot::protocol::{Attempt, Node, Record, State};
use std::collections::BTreeSet;

impl World {
    pub(super) fn check(&self, record: &Record) -> Result<(), String> {
        let Attempt { uid, number } = &record.intent.attempt;
        let members = record.intent.nodes.iter().map(|node| node.id.clone()).collect::<BTreeSet<_>>();
        let all = self.lasts().into_keys().collect::<BTreeSet<_>>();
        if members != all {
            return Err(format!("{members:?} are in the set, not {all:?}"));
        }
        let image = |node: &Node, role: Role| match self.out.get(&(uid.clone(), node.id.clone(), role)) {
            Some((by, image)) if by == number => Ok(image),
            Some((by, _)) => Err(format!("the image {role} of {} is of attempt {by}, not {number}", node.id)),
            None => Err(format!("the image {role} of {} is missing", node.id)),
        };
        for node in &record.intent.nodes {
            if node.roles.contains(&Role::Coord) {
                image(node, Role::Coord)?;
                continue;
            }
            if node.keeps_copies() {
                let end = record.cuts.get(super::COPIED).map_or(0, |cut| cut.cut);
                match image(node, Role::Tlog)? {
                    Image::Copy { end: copied } if *copied == end => continue,
                    other => {
                        return Err(format!(
                            "{}: the image is {other:?}, not of a log that ends at {end}",
                            node.id
                        ));
                    }
                }
            }
            let cut = record.cuts.get(&node.id).ok_or("a cut is missing")?;
            let owner = self.servers.iter().find(|server| server.id == node.id && !server.superseded);
            let store = &owner.ok_or("nobody owns the store")?.store;
            store
                .check(image(node, Role::Storage)?, image(node, Role::Tlog)?, cut.cut)
                .map_err(|why| format!("{}: {why}", node.id))?;
            let (before, after) = (self.begun[uid][&node.id], store.last());
            if cut.cut < before || cut.cut > after {
                return Err(format!("{}: the cut {} is not within {before} and {after}", node.id, cut.cut));
            }
        }
        Ok(())
    }

    pub(super) fn nothing_is_left(&self) -> Result<(), String> {
        for server in &self.servers {
            let complete =
                |attempt: &Attempt| self.saved.get(&attempt.uid).is_some_and(|r| r.state == State::Complete);
            if !server.holds.is_empty() || !server.images.is_empty() || !server.running.is_empty() {
                return Err(format!(
                    "{} still has holds {:?}, images {:?}, programs {:?}",
                    server.id,
                    server.holds,
                    server.images.keys().collect::<Vec<_>>(),
                    server.running
                ));
            }
            if let Some(attempt) = server.kept.iter().find(|attempt| !complete(attempt)) {
                return Err(format!("{} keeps instants for {attempt:?}, which is no set", server.id));
            }
            let kept = |record: &&Record| {
                let member = record.intent.node(&server.id).map(|node| node.epoch);
                record.state == State::Complete && member == Some(server.member.epoch())
            };
            if let Some(record) =
                self.saved.values().filter(kept).find(|record| !server.kept.contains(&record.intent.attempt))
            {
                return Err(format!(
                    "{} does not keep what set {:?} needs",
                    server.id, record.intent.attempt
                ));
            }
        }
        Ok(())
    }
}
