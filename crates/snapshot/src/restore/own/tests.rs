//! A set of an admin and two metadata servers, whole and spoiled in every way.

use super::*;
use crate::error::Error;
use crate::label::{LABEL, Label};
use crate::name::Role;
use crate::protocol::{Attempt, Cut, Intent, Node, Record, State};
use crate::tree::{Depth, list_tree, sum_of};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const UID: &str = "c50263df28be44ebb596f5c2a849adbb";
const OTHER: &str = "d50263df28be44ebb596f5c2a849adbb";
const NOW: &str = "2026-11-22T02:00:00Z";

fn nodes() -> Vec<Node> {
    let node = |id: &str, name: &str, port: u16, roles: &[Role]| Node {
        id: id.to_owned(),
        name: name.to_owned(),
        address: format!("10.0.0.1:{port}"),
        epoch: 3,
        roles: roles.to_vec(),
        copies: Vec::new(),
    };
    let meta = [Role::Storage, Role::Tlog];
    vec![
        node("admin", "admin", 8443, &[Role::Coord]),
        node("01", "one", 8444, &meta),
        node("02", "two", 8445, &meta),
        Node { copies: vec!["01".to_owned()], ..node("03", "far", 8446, &[Role::Tlog]) },
    ]
}

fn attempt() -> Attempt {
    Attempt { uid: UID.parse().unwrap(), number: 7 }
}

fn cut_of(node: &str) -> Option<Cut> {
    match node {
        "01" => Some(Cut { store: 10, cut: 12 }),
        "02" => Some(Cut { store: 11, cut: 14 }),
        _ => None,
    }
}

/// The images of a set, each in `UID/ADDRESS/ROLE`.
struct Example {
    _folder: tempfile::TempDir,
    root: PathBuf,
}

impl Example {
    fn new() -> Example {
        Example::labelled(|_| {})
    }

    fn labelled(change: impl Fn(&mut Label)) -> Example {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(UID);
        for node in nodes() {
            for role in &node.roles {
                let place = root.join(&node.address).join(role.as_str());
                fs::create_dir_all(&place).unwrap();
                let names: &[&str] = match role {
                    Role::Coord => &["admin.sqlite", "tls.pem"],
                    Role::Storage => &["000012.sst", "MANIFEST-1", "format"],
                    Role::Tlog => &["00000000000000000004.log"],
                };
                for name in names {
                    fs::write(place.join(name), format!("{name} of {}", node.name)).unwrap();
                }
                let mut label = Label::new("lab:42".to_owned(), attempt(), nodes(), &node, *role);
                label.cut = cut_of(&node.id);
                label.files = list_tree(&place).unwrap();
                for entry in &mut label.files {
                    entry.blake3 = Some(sum_of(&place.join(&entry.path)).unwrap().1);
                }
                change(&mut label);
                label.write(&place).unwrap();
            }
        }
        Example { _folder: folder, root }
    }

    fn at(&self, port: u16, role: Role) -> PathBuf {
        self.root.join(format!("10.0.0.1:{port}")).join(role.as_str())
    }

    fn read(&self) -> Result<OwnSet, Error> {
        OwnSet::read(std::slice::from_ref(&self.root))
    }

    /// As `snapshot verify` and `restore prepare` do it.
    fn verify(&self, proof: Proof<'_>) -> Result<(), Error> {
        let set = self.read()?;
        check(&set, proof)?;
        set.images.values().try_for_each(check_files)
    }

    fn refused(&self) -> String {
        self.verify(Proof::Record(&record())).unwrap_err().to_string()
    }
}

fn record() -> Record {
    let intent = Intent {
        attempt: attempt(),
        cluster: "lab:42".to_owned(),
        program: "/bin/snap".to_owned(),
        arguments: Vec::new(),
        nodes: nodes(),
        started_ns: 1,
        keep_until_ns: None,
        hold_ms: 30_000,
        run_ms: 300_000,
        ended: BTreeMap::new(),
    };
    let cuts = ["01", "02"].map(|id| (id.to_owned(), cut_of(id).unwrap())).into();
    let (bytes, held_ms, labels) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    Record {
        intent,
        state: State::Complete,
        ended_ns: Some(2),
        cuts,
        bytes,
        held_ms,
        labels,
        code: None,
        failures: Vec::new(),
    }
}

/// A label that is right by itself, with its checksum beside it, over files that are as it says.
#[test]
fn a_label_that_was_made_anew_is_refused_by_the_record() {
    let set = Example::new();
    let mut record = record();
    for image in set.read().unwrap().images.values() {
        let sums = record.labels.entry(image.label.node.clone()).or_default();
        sums.insert(image.label.role, image.label_sum.clone());
    }
    set.verify(Proof::Record(&record)).unwrap();
    let place = set.at(8445, Role::Storage);
    fs::write(place.join("000012.sst"), "other bytes").unwrap();
    let mut label = Label::read(&place).unwrap().unwrap();
    [LABEL, crate::label::LABEL_SUM].iter().for_each(|name| fs::remove_file(place.join(name)).unwrap());
    label.files = list_tree(&place).unwrap();
    for entry in &mut label.files {
        entry.blake3 = Some(sum_of(&place.join(&entry.path)).unwrap().1);
    }
    label.write(&place).unwrap();
    says(&set.verify(Proof::Record(&record)).unwrap_err().to_string(), &["8445/storage", "another label"]);
    set.verify(Proof::Labels).unwrap();
    // One of a server of an earlier version, which has told none.
    record.labels.remove("02");
    set.verify(Proof::Record(&record)).unwrap();
    record.labels.get_mut("01").unwrap().remove(&Role::Tlog);
    says(&set.verify(Proof::Record(&record)).unwrap_err().to_string(), &["8444/tlog", "another label"]);
}

fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    fs::rename(a, &aside).unwrap();
    fs::rename(b, a).unwrap();
    fs::rename(aside, b).unwrap();
}

fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
}

#[test]
fn a_whole_set_is_proved_by_its_record_or_on_demand_by_its_labels() {
    let set = Example::new();
    set.verify(Proof::Record(&record())).unwrap();
    set.verify(Proof::Labels).unwrap();
    // What is kept for it elsewhere is another question.
    set.verify(Proof::Record(&Record { state: State::Expired, ..record() })).unwrap();
    says(
        &set.verify(Proof::None).unwrap_err().to_string(),
        &["nothing proves", "--record", "--accept-uncommitted"],
    );
    for (state, word) in [
        (State::Failed, "failed"),
        (State::Aborted, "aborted"),
        (State::Running, "running"),
        (State::Deleted, "deleted"),
    ] {
        let record = Record { state, ..record() };
        says(&set.verify(Proof::Record(&record)).unwrap_err().to_string(), &["not complete", word]);
    }
}

#[test]
fn the_record_has_to_be_the_one_of_the_set() {
    let set = Example::new();
    let refused = |change: &dyn Fn(&mut Record)| {
        let mut record = record();
        change(&mut record);
        set.verify(Proof::Record(&record)).unwrap_err().to_string()
    };
    says(&refused(&|r| r.intent.attempt.uid = OTHER.parse().unwrap()), &["the record is of snapshot", OTHER]);
    says(&refused(&|r| r.intent.attempt.number = 8), &["try 7", "try 8"]);
    says(&refused(&|r| drop(r.intent.nodes.pop())), &["the same members"]);
    says(
        &refused(&|r| _ = r.cuts.insert("02".to_owned(), Cut { store: 11, cut: 15 })),
        &["two at", "15", "14"],
    );
    says(&refused(&|r| _ = r.cuts.remove("01")), &["one at", "nothing", "12"]);
}

#[test]
fn a_set_that_is_mixed_with_another_is_refused() {
    let (set, other) =
        (Example::new(), Example::labelled(|label| label.attempt.uid = OTHER.parse().unwrap()));
    fs::remove_dir_all(set.at(8444, Role::Tlog)).unwrap();
    fs::rename(other.at(8444, Role::Tlog), set.at(8444, Role::Tlog)).unwrap();
    says(&set.refused(), &["tlog is of snapshot", OTHER, "mixed"]);
    // Also where the folder does not tell which one is meant.
    let elsewhere = set.root.with_file_name("images");
    fs::rename(&set.root, &elsewhere).unwrap();
    let said = OwnSet::read(&[elsewhere]).unwrap_err().to_string();
    says(&said, &["is of snapshot", OTHER, "mixed"]);
    let straggler = Example::labelled(|label| {
        if label.node == "02" && label.role == Role::Tlog {
            label.attempt.number = 6;
        }
    });
    says(&straggler.refused(), &["8445/tlog", "try 6", "try 7"]);
    let foreign = Example::labelled(|label| {
        if label.role == Role::Storage {
            label.cluster = "lab:43".to_owned();
        }
    });
    says(&foreign.refused(), &["lab:43", "one cluster"]);
    let members = Example::labelled(|label| {
        if label.node == "02" {
            label.nodes.pop();
        }
    });
    says(&members.refused(), &["different members"]);
}

#[test]
fn two_servers_or_roles_that_were_swapped_are_refused() {
    let set = Example::new();
    swap(&set.at(8444, Role::Storage), &set.at(8445, Role::Storage));
    says(&set.refused(), &["was made of one at 10.0.0.1:8444", "not of two at 10.0.0.1:8445", "swapped"]);
    let set = Example::new();
    swap(&set.at(8444, Role::Storage), &set.at(8444, Role::Tlog));
    says(&set.refused(), &["was made of storage, and not of tlog", "swapped"]);
    // The files of one under the label of the other.
    let set = Example::new();
    let (a, b) = (set.at(8444, Role::Tlog), set.at(8445, Role::Tlog));
    swap(&a.join("00000000000000000004.log"), &b.join("00000000000000000004.log"));
    says(&set.refused(), &["00000000000000000004.log has other content"]);
}

#[test]
fn what_is_missing_is_named() {
    let set = Example::new();
    fs::remove_dir_all(set.at(8445, Role::Tlog)).unwrap();
    says(&set.refused(), &["the image of tlog of two at 10.0.0.1:8445 is missing"]);
    let set = Example::new();
    fs::remove_dir_all(set.root.join("10.0.0.1:8443")).unwrap();
    says(&set.refused(), &["no image of a coordinator", "admin at 10.0.0.1:8443"]);
    let set = Example::new();
    fs::remove_dir_all(&set.root).unwrap();
    fs::create_dir(&set.root).unwrap();
    says(&set.refused(), &["holds no image of chronofs"]);
    let set = Example::new();
    fs::remove_file(set.at(8445, Role::Tlog).join(LABEL)).unwrap();
    says(&set.refused(), &["8445/tlog", "no label"]);
    let set = Example::labelled(|label| label.cut = label.cut.filter(|_| label.role == Role::Storage));
    says(&set.refused(), &["tlog does not say up to which commit"]);
    let set = Example::labelled(|label| {
        if label.role == Role::Tlog {
            label.cut = Some(Cut { store: 10, cut: 13 });
        }
    });
    says(&set.refused(), &["do not say the same of their server's cut"]);
}

#[test]
fn every_byte_counts() {
    let spoil = |change: &dyn Fn(&Path)| {
        let set = Example::new();
        change(&set.at(8444, Role::Storage));
        set.refused()
    };
    let flip = |place: &Path| {
        let file = place.join("000012.sst");
        let mut bytes = fs::read(&file).unwrap();
        bytes[3] ^= 1;
        fs::write(file, bytes).unwrap();
    };
    says(&spoil(&flip), &["8444/storage", "000012.sst has other content"]);
    let cut_off = |place: &Path| fs::write(place.join("000012.sst"), "000").unwrap();
    says(&spoil(&cut_off), &["000012.sst is 3 bytes long, not 17"]);
    says(&spoil(&|place| fs::remove_file(place.join("MANIFEST-1")).unwrap()), &["MANIFEST-1 is missing"]);
    says(&spoil(&|place| fs::write(place.join("late"), "").unwrap()), &["late was added"]);
    let relabel = |place: &Path| {
        let text = fs::read_to_string(place.join(LABEL)).unwrap();
        fs::write(place.join(LABEL), text.replace("\"cut\": 12", "\"cut\": 13")).unwrap();
    };
    says(&spoil(&relabel), &["chronofs-image.json", "its checksum is wrong"]);
}

fn plan(set: &Example, pairs: &[&str]) -> Result<OwnPlan, Error> {
    let pairs: Vec<String> = pairs.iter().map(|&pair| pair.to_owned()).collect();
    OwnPlan::new(&set.read().unwrap(), &pairs, None)
}

const MAP: [&str; 3] = ["admin=127.0.0.1:1", "10.0.0.1:8444=127.0.0.1:2", "two=127.0.0.1:3"];

#[test]
fn every_server_has_one_new_address() {
    let set = Example::new();
    let made = plan(&set, &MAP).unwrap();
    let names: Vec<_> = made.machines.iter().map(|m| format!("{} {}", m.name, m.new)).collect();
    assert_eq!(names, ["admin 127.0.0.1:1", "one 127.0.0.1:2", "two 127.0.0.1:3"]);
    let refused = |pairs: &[&str]| plan(&set, pairs).unwrap_err().to_string();
    says(&refused(&MAP[..2]), &["10.0.0.1:8445 has no new address"]);
    says(&refused(&[MAP[0], MAP[1], "two=127.0.0.1:2"]), &["both mapped to 127.0.0.1:2"]);
    says(&refused(&[MAP[0], MAP[1], MAP[2], "three=127.0.0.1:4"]), &["'three=127.0.0.1:4' is no mapping"]);
    says(&refused(&[MAP[0], MAP[1], MAP[2], "10.0.0.9:1=127.0.0.1:4"]), &["'10.0.0.9:1' is neither"]);
}

#[test]
fn a_server_in_place_keeps_its_address_unless_another_is_said() {
    let set = Example::new();
    let made = |only, pairs: &[&str]| {
        let pairs: Vec<String> = pairs.iter().map(|&pair| pair.to_owned()).collect();
        OwnPlan::in_place(&set.read().unwrap(), only, &pairs, None)
    };
    let names = |plan: OwnPlan| -> Vec<String> {
        assert!(plan.in_place);
        plan.machines.iter().map(|m| format!("{} {}", m.name, m.new)).collect()
    };
    let all = made(None, &["two=127.0.0.1:3"]).unwrap();
    assert_eq!(names(all), ["admin 10.0.0.1:8443", "one 10.0.0.1:8444", "two 127.0.0.1:3"]);
    for only in ["one", "01", "10.0.0.1:8444"] {
        assert_eq!(names(made(Some(only), &[]).unwrap()), ["one 10.0.0.1:8444"]);
    }
    // A log server has nothing that the metadata server does not have.
    for stranger in ["three", "far"] {
        says(&made(Some(stranger), &[]).unwrap_err().to_string(), &[&format!("'{stranger}' is neither")]);
    }
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let plan = made(Some("one"), &[]).unwrap();
    stage(&plan, &out, &plan.source, [4, 5], NOW, false).unwrap().finish().unwrap();
    let mark = Mark::read(&out.join("10.0.0.1:8444/data")).unwrap().unwrap();
    assert!(mark.in_place && mark.cluster == mark.source, "{mark:?}");
    assert_eq!(mark.accepted_by(), "00000000000000040000000000000005");
    assert_eq!(Mark { in_place: false, ..mark }.accepted_by(), UID);
}

fn staged(set: &Example, out: &Path, dry_run: bool) -> Result<Staged, Error> {
    stage(&plan(set, &MAP).unwrap(), out, "lab:99", [4, 5], NOW, dry_run)
}

#[test]
fn a_plan_becomes_folders_that_are_all_there_or_none() {
    let set = Example::new();
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    drop(staged(&set, &out, true).unwrap());
    assert!(!out.exists(), "a dry run makes nothing");
    drop(staged(&set, &out, false).unwrap());
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "what was not finished is gone");
    let late = staged(&set, &out, false).unwrap();
    fs::create_dir_all(out.join("127.0.0.1:3/another's")).unwrap();
    says(&late.finish().unwrap_err().to_string(), &["127.0.0.1:3 exists and is not empty"]);
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["127.0.0.1:3"], "those that were in place already went back");
    fs::remove_dir_all(out.join("127.0.0.1:3")).unwrap();
    staged(&set, &out, false).unwrap().finish().unwrap();
    let data = |n: u8| out.join(format!("127.0.0.1:{n}/data"));
    let paths =
        |n: u8| -> Vec<String> { list_tree(&data(n)).unwrap().into_iter().map(|entry| entry.path).collect() };
    assert_eq!(paths(1), ["admin.sqlite", MARK, "tls.pem"]);
    let expected = [
        MARK,
        "engine",
        "engine/format",
        "engine/log",
        "engine/log/00000000000000000004.log",
        "engine/store",
        "engine/store/000012.sst",
        "engine/store/MANIFEST-1",
    ];
    assert_eq!(paths(2), expected);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(
        (mode(data(1)), mode(data(1).join("tls.pem")), mode(data(2).join("engine/log"))),
        (0o700, 0o600, 0o700)
    );
    let mark = Mark::read(&data(3)).unwrap().unwrap();
    assert_eq!((mark.cut, mark.draw, mark.began, mark.accepted), (cut_of("02"), [4, 5], None, false));
    assert_eq!(
        (mark.source.as_str(), mark.cluster.as_str(), mark.old.as_str()),
        ("lab:42", "lab:99", "10.0.0.1:8445")
    );
    let said = staged(&set, &out, false).unwrap_err().to_string();
    says(&said, &["127.0.0.1:1 exists and is not empty"]);
    says(&staged(&set, &set.root.join("x"), false).unwrap_err().to_string(), &["lies in"]);
    // As it was prepared, until somebody changes it.
    let found = look(&out, Depth::Content).unwrap();
    assert!(found.len() == 3 && found.iter().all(|found| found.damages.is_empty()), "{found:?}");
    fs::write(data(2).join("engine/format"), "other bytes!").unwrap();
    let found = look(&out.join("127.0.0.1:2"), Depth::Content).unwrap();
    assert_eq!(found.len(), 1);
    says(&found[0].damages.join(" "), &["format"]);
}

#[test]
fn an_image_that_is_damaged_while_it_is_copied_makes_no_folder() {
    let set = Example::new();
    let place = tempfile::tempdir().unwrap();
    let made = plan(&set, &MAP).unwrap();
    fs::write(set.at(8445, Role::Storage).join("000012.sst"), "000012.sst of tvo").unwrap();
    let said = stage(&made, &place.path().join("out"), "lab:99", [4, 5], NOW, false).unwrap_err().to_string();
    says(&said, &["8445/storage", "000012.sst has other content"]);
    assert_eq!(fs::read_dir(place.path().join("out")).unwrap().count(), 0);
}

#[test]
fn the_images_are_found_wherever_a_program_put_them() {
    // As plain copies, in the files of snap-create, and within a whole volume, beside what is not finished.
    let set = Example::new();
    for (from, to) in [
        ("10.0.0.1:8444/storage", "hosts/a/files"),
        ("10.0.0.1:8444/tlog", "hosts/b/subvolume/var/lib/engine/images/7/tlog"),
        ("10.0.0.1:8445/storage", "hosts/storage"),
    ] {
        let to = set.root.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(set.root.join(from), to).unwrap();
    }
    fs::create_dir_all(set.root.join(".storage.4711")).unwrap();
    fs::write(set.root.join(".storage.4711").join(LABEL), "{").unwrap();
    set.verify(Proof::Record(&record())).unwrap();
}

#[test]
fn the_form_of_the_mark_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mark = Mark {
        format: 1,
        uid: UID.parse().unwrap(),
        number: 7,
        source: "lab:42".to_owned(),
        cluster: "lab:99".to_owned(),
        node: "01".to_owned(),
        name: "one".to_owned(),
        old: "10.0.0.1:8444".to_owned(),
        new: "127.0.0.1:2".to_owned(),
        prepared: NOW.to_owned(),
        cut: cut_of("01"),
        draw: [4, 5],
        began: Some(20),
        accepted: true,
        unmatched: Some([vec!["v".to_owned()], Vec::new()]),
        readers: vec!["03".to_owned()],
        kept: Some(true),
        detached: true,
        in_place: true,
        instead: Some("nothing".to_owned()),
        entries: Vec::new(),
    };
    assert_eq!(Mark::read(folder.path()).unwrap(), None);
    mark.write(folder.path()).unwrap();
    assert_eq!(Mark::read(folder.path()).unwrap().as_ref(), Some(&mark));
    let text = fs::read_to_string(folder.path().join(MARK)).unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/restore-1.json");
    if std::env::var("CHRONOFS_GOLDEN").is_ok_and(|word| word == "write") {
        fs::write(golden, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(golden).unwrap());
    Mark { format: 2, ..mark }.write(folder.path()).unwrap();
    says(&Mark::read(folder.path()).unwrap_err().to_string(), &["its format is 2"]);
}
