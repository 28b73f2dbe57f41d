//! Comparing replies and whole trees with the model.

use crate::mutate::Scope;
use crate::query::Reader;
use crate::state::State;
use crate::world::{BLOCK_SIZE, Check, World, ensure};
use bytes::Bytes;
use chronofs_core::ops::{DirEntry, Reply, Request};
use chronofs_core::{Attr, Caller, Errno, FileKind, Ino, Name, Version};
use std::collections::BTreeMap;

type Answer = Result<Reply, Errno>;

static ROOT: Caller = Caller::ROOT;

impl World {
    /// `got` is the answer that the model gives.
    pub fn same_reply(
        &self,
        request: &Request,
        expected: &Answer,
        got: &Answer,
        state: &State,
        past: bool,
    ) -> Check {
        match (expected, got) {
            (Ok(Reply::Attr(a)), Ok(Reply::Attr(b))) => same_attr(request, a, b, past),
            (Ok(Reply::Opened { attr: a, .. }), Ok(Reply::Opened { attr: b, slices })) => {
                if let Some(slices) = slices {
                    let content = self.content(slices)?;
                    let node = &state.nodes[&a.ino];
                    ensure!(
                        content == node.content,
                        "{request:?}: the content that came along is {content:?}"
                    );
                }
                same_attr(request, a, b, past)
            }
            (Ok(Reply::Names(a)), Ok(Reply::Names(b))) => {
                let mut b = b.clone();
                b.sort();
                ensure!(*a == b, "{request:?}: names {b:?}, not {a:?}");
                Ok(())
            }
            // The bodies of these are compared with the whole tree.
            (Ok(Reply::Done), Ok(Reply::Entries { .. } | Reply::Slices(_))) => Ok(()),
            (a, b) => {
                ensure!(a == b, "{request:?}:\n  the namespace says {b:?},\n  the model says     {a:?}");
                Ok(())
            }
        }
    }

    /// Everything there is, now or at an instant, is as in the model.
    pub fn check_tree(&mut self, at: Option<Version>) -> Check {
        let state = self.state_at(at);
        for ino in state.reachable() {
            self.check_inode(&state, ino, at)?;
            if state.node(ino).is_ok_and(|node| node.is_dir()) {
                self.check_dir(&state, ino, at)?;
            }
        }
        if at.is_none() {
            for ino in state.nodes.keys() {
                self.check_inode(&state, *ino, at)?;
            }
            let shown = self.query(&Caller::ROOT, Ino::ROOT, false, None, &Request::StatFs)?;
            let reader = self.as_root(&state);
            self.same_reply(&Request::StatFs, &reader.query(&Request::StatFs), &shown, &state, false)?;
        }
        Ok(())
    }

    fn as_root<'a>(&self, state: &'a State) -> Reader<'a> {
        fn open(_: Ino) -> bool {
            true
        }
        let scope = Scope { root: Ino::ROOT, is_open: &open };
        Reader { state, present: None, caller: &ROOT, scope, read_only: false }
    }

    fn check_inode(&self, state: &State, ino: Ino, at: Option<Version>) -> Check {
        let node = state.node(ino).map_err(|e| format!("the model lost {ino:?}: {e}"))?;
        let root = self.as_root(state);
        let mut requests = vec![Request::GetAttr { ino }, Request::ListXattr { ino }];
        if node.kind == FileKind::Symlink {
            requests.push(Request::ReadLink { ino });
        }
        if node.is_dir() && !node.removed {
            requests.push(Request::Parent { dir: ino });
        }
        if let Ok(Reply::Names(names)) = root.query(&Request::ListXattr { ino }) {
            requests.extend(names.into_iter().map(|name| Request::GetXattr { ino, name }));
        }
        for request in requests {
            let got = self.query(&Caller::ROOT, Ino::ROOT, false, at, &request)?;
            self.same_reply(&request, &root.query(&request), &got, state, at.is_some())
                .map_err(|e| format!("at {at:?}: {e}"))?;
        }
        if node.kind == FileKind::File {
            self.check_content(state, ino, at)?;
        }
        Ok(())
    }

    fn check_content(&self, state: &State, ino: Ino, at: Option<Version>) -> Check {
        let node = state.node(ino).map_err(|e| e.to_string())?;
        let staged = ino.0.is_multiple_of(2);
        let count = 8 + node.size.div_ceil(u64::from(BLOCK_SIZE)).min(64) as u32;
        let request = Request::Slices { ino, first: 0, count, staged };
        let Ok(Reply::Slices(mut slices)) = self.query(&Caller::ROOT, Ino::ROOT, false, at, &request)? else {
            return Err(format!("{request:?} at {at:?} shows no slices"));
        };
        self.with_staged(ino, at, &mut slices)?;
        let content = self.content(&slices)?;
        ensure!(
            content == node.content,
            "content of {ino:?} at {at:?}:\n  the namespace has {:?}\n  the model has     {:?}\n  slices {slices:?}",
            runs(&content),
            runs(&node.content)
        );
        Ok(())
    }

    /// A listing in pages shows every entry once, in the order of cookies that stay as they are.
    fn check_dir(&mut self, state: &State, dir: Ino, at: Option<Version>) -> Check {
        let node = state.node(dir).map_err(|e| e.to_string())?;
        let mut listed: Vec<DirEntry> = Vec::new();
        let limit = 1 + (dir.0 % 5) as u32;
        loop {
            let after = listed.last().map_or(0, |entry| entry.cookie);
            let request = Request::ReadDir { dir, after, limit, attrs: true };
            let reply = self.query(&Caller::ROOT, Ino::ROOT, false, at, &request)?;
            let Ok(Reply::Entries { entries, end }) = reply else {
                return Err(format!("{request:?} at {at:?}: {reply:?}"));
            };
            ensure!(entries.len() <= limit as usize, "{request:?}: more entries than asked for");
            ensure!(end || !entries.is_empty(), "{request:?}: neither entries nor the end");
            listed.extend(entries);
            if end {
                break;
            }
        }
        ensure!(listed.is_sorted_by(|a, b| a.cookie < b.cookie), "{dir:?} at {at:?}: cookies {listed:?}");
        let mut expected: BTreeMap<Bytes, Ino> = node.entries.clone();
        expected.insert(Bytes::from_static(b"."), dir);
        expected.insert(Bytes::from_static(b".."), node.parent);
        let shown: BTreeMap<Bytes, Ino> = listed.iter().map(|e| (e.name.clone(), e.ino)).collect();
        ensure!(
            shown == expected && listed.len() == expected.len(),
            "{dir:?} at {at:?} lists {shown:?}, the model {expected:?}"
        );
        for entry in listed {
            let kind = state.node(entry.ino).map_err(|e| e.to_string())?.kind;
            ensure!(entry.kind == kind, "{entry:?} at {at:?} is a {kind:?}");
            let special = matches!(&entry.name[..], b"." | b"..");
            if let Some(attr) = &entry.attr {
                let expected = state.attr(entry.ino).map_err(|e| e.to_string())?;
                same_attr(&Request::GetAttr { ino: entry.ino }, &expected, attr, at.is_some())
                    .map_err(|e| format!("listed in {dir:?} at {at:?}: {e}"))?;
            }
            ensure!(special || entry.attr.is_some(), "{entry:?} comes without attributes");
            ensure!(special == (entry.cookie <= 2), "the cookie of {entry:?}");
            if special {
                continue;
            }
            let name = Name::new(entry.name.clone()).map_err(|e| e.to_string())?;
            let lookup = Request::Lookup { parent: dir, name };
            match self.query(&Caller::ROOT, Ino::ROOT, false, at, &lookup)? {
                Ok(Reply::Attr(attr)) if attr.ino == entry.ino => {}
                other => {
                    return Err(format!("{lookup:?} at {at:?}: {other:?}, but it is listed as {entry:?}"));
                }
            }
            if at.is_none() {
                self.cookie((dir, entry.name, entry.ino), entry.cookie)?;
            }
        }
        Ok(())
    }
}

/// Attributes are the same, but for what is not versioned, and for a directory's `data_version`, which may rise
/// with any change of the directory.
fn same_attr(request: &Request, expected: &Attr, got: &Attr, past: bool) -> Check {
    let mut shown = got.clone();
    if past {
        shown.atime_ns = expected.atime_ns;
    }
    if expected.kind != FileKind::File {
        ensure!(
            expected.kind != FileKind::Dir || got.data_version >= expected.data_version,
            "{request:?}: data_version {:?} is before {:?}",
            got.data_version,
            expected.data_version
        );
        shown.data_version = expected.data_version;
    }
    ensure!(
        shown == *expected,
        "{request:?}:\n  the namespace shows {got:?},\n  the model says      {expected:?}"
    );
    Ok(())
}

/// Content in short: where runs start, and their bytes.
fn runs(content: &BTreeMap<u64, u8>) -> Vec<(u64, Vec<u8>)> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (&at, &byte) in content {
        match runs.last_mut() {
            Some((first, run)) if *first + run.len() as u64 == at => run.push(byte),
            _ => runs.push((at, vec![byte])),
        }
    }
    runs
}
