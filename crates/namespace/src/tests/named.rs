//! Paths of inodes over time, and slices that are looked at again.

use super::*;
use crate::{HeldFrom, NamedFor, held_again, held_slices, names_of, resolve};
use std::collections::BTreeMap;

fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// Every path of every inode at an instant, by walking down.
fn walked(fs: &Fs, at: Version) -> BTreeMap<Ino, BTreeSet<String>> {
    let (mut found, mut open) = (BTreeMap::<Ino, BTreeSet<String>>::new(), vec![(Ino::ROOT, String::new())]);
    while let Some((dir, path)) = open.pop() {
        for name in fs.list(Some(at), dir, 1000).unwrap().into_iter().filter(|name| !name.starts_with('.')) {
            let path = format!("{path}/{name}");
            let (ino, kind) =
                resolve(&fs.state, VOLUME, Some(at), Ino::ROOT, path.as_bytes()).unwrap().unwrap();
            found.entry(ino).or_default().insert(path.clone());
            if kind == chronofs_core::FileKind::Dir {
                open.push((ino, path));
            }
        }
    }
    found
}

fn at_that_time(names: &[NamedFor], at: Version) -> BTreeSet<String> {
    let then = names.iter().filter(|name| name.since <= at && name.until.is_none_or(|until| at < until));
    then.map(|name| String::from_utf8(name.path.clone()).unwrap()).collect()
}

/// 30 cases of 60 changes.
#[test]
fn the_paths_of_every_inode_at_every_instant_are_those_that_lead_to_it() {
    for seed in 0..30 {
        let mut next = numbers(seed);
        let mut fs = Fs::new();
        let mut dirs = vec![Ino::ROOT];
        let (mut inos, mut instants) = (BTreeSet::new(), Vec::new());
        for n in 0..60 {
            let [from, to] = [0, 1].map(|_| dirs[next(dirs.len() as u64) as usize]);
            let [old, new] = [0, 1].map(|_| format!("n{}", next(4)));
            // What cannot be done is left.
            match next(6) {
                0 => {
                    let made = fs.make_as(&ROOT, from, &format!("d{n}"), NewNode::Dir, 0o755);
                    dirs.extend(made.ok().map(|attr| attr.ino));
                }
                1 => drop(fs.make_as(&ROOT, from, &old, NewNode::File, 0o644)),
                2 => drop(fs.rename((from, &old), (to, &new))),
                3 => {
                    if let Ok(file) = fs.lookup(from, &old) {
                        drop(fs.link(file, to, &new));
                    }
                }
                4 => drop(fs.unlink(&ROOT, from, &old)),
                _ => {
                    let dir = dirs[next(dirs.len() as u64) as usize];
                    let named = fs.list(None, from, 1000).unwrap_or_default();
                    let mut named = named.iter().filter(|name| !name.starts_with('.'));
                    let moved = named.find(|&name| fs.lookup(from, name) == Ok(dir)).cloned();
                    if let Some(name) = moved {
                        drop(fs.rename((from, &name), (to, &name)));
                    }
                }
            }
            let now = fs.now();
            instants.push(now);
            inos.extend(walked(&fs, now).into_keys());
        }
        let then: Vec<_> = instants.into_iter().map(|at| (at, walked(&fs, at))).collect();
        for ino in inos {
            let whole = names_of(&fs.state, VOLUME, ino, Version(0), None).unwrap();
            assert!(!whole.more);
            for (at, walked) in &then {
                let (at, expected) = (*at, walked.get(&ino).cloned().unwrap_or_default());
                assert_eq!(at_that_time(&whole.names, at), expected, "seed {seed}: {ino:?} at {at}");
                let only = names_of(&fs.state, VOLUME, ino, at, Some(Version(at.0 + 1))).unwrap();
                assert_eq!(at_that_time(&only.names, at), expected, "seed {seed}: {ino:?} only at {at}");
                assert_eq!(whole.within(at, Some(Version(at.0 + 1))), only, "seed {seed}: {ino:?} at {at}");
            }
        }
    }
}

#[test]
fn a_row_that_is_written_anew_ends_no_name() {
    let mut fs = Fs::new();
    let dir = fs.dir(Ino::ROOT, "d");
    let file = fs.file(dir, "f");
    let since = fs.now();
    for mode in [0o600, 0o640] {
        fs.chmod(&ROOT, file, mode).unwrap();
        fs.chmod(&ROOT, dir, mode).unwrap();
    }
    let names = names_of(&fs.state, VOLUME, file, Version(0), None).unwrap().names;
    assert_eq!(names, [NamedFor { path: b"/d/f".to_vec(), since, until: None }]);
}

#[test]
fn a_slice_is_found_again_when_it_is_of_the_past_and_not_when_it_is_forgotten() {
    let mut fs = Fs::new();
    let file = fs.file(Ino::ROOT, "f");
    fs.write(file, 0, b"some staged bytes");
    let (page, next) = held_slices(&fs.state, VOLUME, &HeldFrom::default(), 10).unwrap();
    let [live] = &page[..] else { panic!("{page:?}") };
    assert_eq!(held_again(&fs.state, VOLUME, live).unwrap().as_ref(), Some(live));
    fs.truncate(file, 4).unwrap();
    let past = held_again(&fs.state, VOLUME, live).unwrap().unwrap();
    assert_eq!((past.since, past.until.is_some(), past.slice.len), (live.since, true, live.slice.len));
    assert_eq!(held_again(&fs.state, VOLUME, &past).unwrap(), Some(past.clone()));
    // Where a listing goes on can be kept.
    let from = next.unwrap();
    let kept = HeldFrom::from_bytes(&from.to_bytes()).unwrap();
    let rest = [from, kept].map(|from| {
        let (mut found, mut next) = (Vec::new(), Some(from));
        while let Some(from) = next {
            let page;
            (page, next) = held_slices(&fs.state, VOLUME, &from, 10).unwrap();
            found.extend(page);
        }
        found
    });
    assert_eq!(rest[0], rest[1]);
    assert!(rest[0].contains(&past), "{rest:?}");
    assert!(HeldFrom::from_bytes(&[]).is_none() && HeldFrom::from_bytes(&[2]).is_none());
    let gone = crate::HeldSlice { ino: Ino(99), ..live.clone() };
    assert_eq!(held_again(&fs.state, VOLUME, &gone).unwrap(), None);
}
