//! A real set of FoundationDB's images, prepared for other addresses; and every way in which a set can be wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

mod support;

use chronofs_snapshot::restore::{self, Attached, Mapping, Plan, Set, Source};
use chronofs_snapshot::server::Options;
use chronofs_snapshot::{Error, Method, Role, Server, create, create::Request};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use support::{ADDRESSES, Recorded, UID, assert_restored, right_restore};

const NOW: &str = "2026-11-21T20:00:00Z";

fn mapping() -> Mapping {
    let pairs = ADDRESSES.map(|old| format!("{old}={}", moved(old)));
    Mapping::read(&pairs, None).unwrap()
}

/// The second octet changes, and the ports swap places: 4601 becomes 5603.
fn moved(old: &str) -> String {
    let port = 10_204 - old.rsplit(':').next().unwrap().parse::<u32>().unwrap();
    format!("10.7.0.1:{port}")
}

fn plan(set: &Path) -> Result<Plan, Error> {
    let source = Source { folder: set.to_owned(), address: None };
    Plan::new(&Set::read(&[source], &[], None)?, &mapping())
}

#[track_caller]
fn refused(set: &Path, said: &[&str]) {
    let error = plan(set).expect_err("it must be refused").to_string();
    for said in said {
        assert!(error.contains(said), "not '{said}' in: {error}");
    }
}

/// The same set as `snap-create --method copy` makes it of those data folders.
fn with_manifests(recorded: &Recorded, destdir: &Path) -> PathBuf {
    for address in ADDRESSES {
        for role in Role::ALL {
            let image = recorded.image(address, role.as_str());
            let line = fs::read_to_string(image.join("parent-cmdline")).unwrap();
            let command_line: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let request = Request {
                destdir: destdir.to_owned(),
                method: Method::Copy,
                path: image.join("files"),
                version: "7.3.79".to_owned(),
                role,
                uid: UID.parse().unwrap(),
                server: Server {
                    address: address.parse().unwrap(),
                    cluster: Some("trial".to_owned()),
                    cluster_file: Some(fs::read_to_string(image.join("fdb.cluster")).unwrap()),
                    locality: Options::read(&command_line).locality,
                    command_line,
                    data_folder: None,
                },
                created: NOW.to_owned(),
                command: None,
            };
            create(&request).unwrap();
        }
    }
    destdir.join(UID)
}

#[test]
fn a_recorded_set_is_prepared_as_foundationdb_needs_it() {
    let recorded = Recorded::new();
    let out = tempfile::tempdir().unwrap();
    let plan = plan(&recorded.set()).unwrap();
    assert_eq!(
        plan.cluster_file,
        "trial:qq8TJ7mjya12kq2DcNgncxpM1xtA2rNd@10.7.0.1:5603,10.7.0.1:5602,10.7.0.1:5601"
    );
    let machine = &plan.machines[1];
    assert_eq!((machine.locality["machineid"].as_str(), machine.locality["zoneid"].as_str()), ("m2", "z2"));
    assert_eq!(machine.server_version.as_deref(), Some("7.3.79"));
    // A dry run writes nothing.
    let named = restore::prepare(&plan, &out.path().join("new"), None, true, NOW).unwrap();
    assert_eq!((named.len(), fs::read_dir(out.path()).unwrap().count()), (3, 0));
    // What is in the way, if it is empty, is taken.
    fs::create_dir(out.path().join("10.7.0.1:5601")).unwrap();
    let folders = restore::prepare(&plan, out.path(), None, false, NOW).unwrap();
    assert_eq!(folders.len(), 3);
    for old in ADDRESSES {
        let folder = out.path().join(moved(old));
        assert_restored(&folder.join("data"), &right_restore(|role| recorded.image(old, role).join("files")));
        let written = fs::read_to_string(folder.join("fdb.cluster")).unwrap();
        assert_eq!(written, format!("{}\n", plan.cluster_file));
    }
    assert!(restore::verify(out.path()).unwrap().iter().all(|prepared| prepared.state.whole));
    // What was prepared is not overwritten, and notices a change.
    let error = restore::prepare(&plan, out.path(), None, false, NOW).unwrap_err().to_string();
    assert!(error.contains("exists and is not empty"), "{error}");
    let changed = support::one_named(&out.path().join("10.7.0.1:5602/data"), "storage-");
    File::options().write(true).open(&changed).unwrap().write_all_at(&[9], 90 << 20).unwrap();
    fs::write(out.path().join("10.7.0.1:5603/fdb.cluster"), "trial:other@10.7.0.1:5603\n").unwrap();
    let verified = restore::verify(out.path()).unwrap();
    let damages: Vec<_> = verified.iter().map(|prepared| prepared.state.damages.join("; ")).collect();
    assert_eq!(damages[0], "");
    assert!(damages[1].contains("other content") && damages[1].starts_with("storage-"), "{damages:?}");
    assert!(damages[2].starts_with("fdb.cluster is not"), "{damages:?}");
    let status = restore::status(&out.path().join("10.7.0.1:5602")).unwrap();
    assert_eq!((status.len(), status[0].state.whole), (1, true), "sizes are as they were");
}

#[test]
fn one_machine_alone_can_be_prepared_where_it_is() {
    let recorded = Recorded::new();
    let out = tempfile::tempdir().unwrap();
    let plan = plan(&recorded.set()).unwrap();
    for only in ["127.0.0.1:4602", "10.7.0.1:5601"] {
        let folders = restore::prepare(&plan, out.path(), Some(&only.parse().unwrap()), false, NOW).unwrap();
        assert_eq!(folders.len(), 1);
    }
    let mut names: Vec<_> =
        fs::read_dir(out.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["10.7.0.1:5601", "10.7.0.1:5602"]);
    let other = Some("10.0.0.1:1".parse().unwrap());
    let error = restore::prepare(&plan, out.path(), other.as_ref(), false, NOW).unwrap_err().to_string();
    assert!(error.contains("10.0.0.1:1 is no server of the set"), "{error}");
    let error =
        restore::prepare(&plan, &recorded.set().join("out"), None, true, NOW).unwrap_err().to_string();
    assert!(error.contains("lies in"), "{error}");
}

#[test]
fn a_set_with_checksums_is_prepared_alike_and_any_damage_is_refused() {
    let recorded = Recorded::new();
    let destdir = tempfile::tempdir().unwrap();
    let set = with_manifests(&recorded, destdir.path());
    let out = tempfile::tempdir().unwrap();
    let checked = plan(&set).unwrap();
    assert!(checked.machines.iter().flat_map(|machine| &machine.parts).all(|part| part.checksums));
    restore::prepare(&checked, out.path(), None, false, NOW).unwrap();
    for old in ADDRESSES {
        let right = right_restore(|role| recorded.image(old, role).join("files"));
        assert_restored(&out.path().join(moved(old)).join("data"), &right);
    }
    // One byte, in a hole of a file of 100 MB.
    let image = set.join("127.0.0.1:4602/storage/files");
    let flipped = support::one_named(&image, "storage-");
    File::options().write(true).open(&flipped).unwrap().write_all_at(&[1], 77 << 20).unwrap();
    let second = tempfile::tempdir().unwrap();
    let error =
        restore::prepare(&plan(&set).unwrap(), second.path(), None, false, NOW).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:4602/storage") && error.contains("has other content"), "{error}");
    let left: Vec<_> =
        fs::read_dir(second.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [moved("127.0.0.1:4601").as_str()], "nothing half is left");
    // Cut off by whole pages, which only a manifest can tell.
    let log = support::one_named(&set.join("127.0.0.1:4603/tlog/files"), "logqueue-");
    let size = fs::metadata(&log).unwrap().len();
    File::options().write(true).open(&log).unwrap().set_len(size - 4096).unwrap();
    refused(&set, &["127.0.0.1:4603/tlog", "bytes long, not", "take another"]);
    fs::remove_file(&log).unwrap();
    refused(&set, &["127.0.0.1:4603/tlog", "is missing", "take another"]);
}

#[test]
fn an_image_in_the_wrong_place_is_refused() {
    let recorded = Recorded::new();
    let other = "00000000000000000000000000000000";
    let arguments = recorded.image("127.0.0.1:4602", "tlog").join("arguments");
    let text = fs::read_to_string(&arguments).unwrap();
    fs::write(&arguments, text.replace(UID, other)).unwrap();
    refused(
        &recorded.set(),
        &["4602/tlog is of snapshot 00000000", "mixed into this set", "put the right image"],
    );
    fs::write(&arguments, text).unwrap();
    plan(&recorded.set()).unwrap();

    // Two servers, then two roles, then only the files of two servers.
    let exchange = |a: &Path, b: &Path| {
        let aside = recorded.folder.path().join("aside");
        fs::rename(a, &aside).unwrap();
        fs::rename(b, a).unwrap();
        fs::rename(&aside, b).unwrap();
    };
    let server = |address: &str| recorded.set().join(address);
    exchange(&server("127.0.0.1:4601"), &server("127.0.0.1:4603"));
    refused(&recorded.set(), &["was made of 127.0.0.1:4603, and not of 127.0.0.1:4601", "were swapped"]);
    exchange(&server("127.0.0.1:4601"), &server("127.0.0.1:4603"));
    let role = |role: &str| recorded.image("127.0.0.1:4601", role);
    exchange(&role("tlog"), &role("storage"));
    refused(&recorded.set(), &["was made of tlog, and not of storage", "were swapped"]);
    exchange(&role("tlog"), &role("storage"));
    let files = |address: &str| recorded.image(address, "storage").join("files");
    exchange(&files("127.0.0.1:4601"), &files("127.0.0.1:4602"));
    refused(
        &recorded.set(),
        &["were made of two processes", "places of 127.0.0.1:4601", "images of two servers were swapped"],
    );
    exchange(&files("127.0.0.1:4601"), &files("127.0.0.1:4602"));
    plan(&recorded.set()).unwrap();

    // One server's images twice, under the name of another too.
    for role in Role::ALL {
        let (from, to) = ("127.0.0.1:4601", "127.0.0.1:4602");
        let (from, to) = (recorded.image(from, role.as_str()), recorded.image(to, role.as_str()));
        fs::remove_dir_all(to.join("files")).unwrap();
        support::run(std::process::Command::new("cp").arg("-a").arg(from.join("files")).arg(to));
    }
    refused(&recorded.set(), &["are of the same process, but of two servers"]);
}

#[test]
fn images_of_another_cluster_are_refused() {
    let recorded = Recorded::new();
    let id = recorded.file("127.0.0.1:4603", "coord", "clusterId");
    let before = fs::read(&id).unwrap();
    let mut other = before.clone();
    other[10] ^= 1;
    fs::write(&id, &other).unwrap();
    refused(&recorded.set(), &["is of cluster id", "images of two clusters were mixed"]);
    fs::write(&id, &before).unwrap();
    let file = recorded.image("127.0.0.1:4602", "storage").join("fdb.cluster");
    fs::write(&file, "other:id@127.0.0.1:4601\n").unwrap();
    refused(&recorded.set(), &["is of cluster other:id", "of cluster trial:"]);
    fs::write(&file, "trial:id2@127.0.0.1:4601\n").unwrap();
    refused(&recorded.set(), &["names the coordinators 127.0.0.1:4601,", "changed during the snapshot"]);
}

#[test]
fn a_set_that_lacks_an_image_is_refused() {
    let recorded = Recorded::new();
    let without = |folder: &str, said: &[&str]| {
        let (folder, aside) = (recorded.set().join(folder), recorded.folder.path().join("aside"));
        fs::rename(&folder, &aside).unwrap();
        refused(&recorded.set(), said);
        fs::rename(&aside, &folder).unwrap();
    };
    without("127.0.0.1:4602/storage", &["the image of storage of 127.0.0.1:4602 is missing", "bring it"]);
    without("127.0.0.1:4603/tlog", &["the image of tlog of 127.0.0.1:4603 is missing", "bring it"]);
    without(
        "127.0.0.1:4601/coord",
        &["image of coord of 127.0.0.1:4601 is missing", "names as a coordinator"],
    );
    without("127.0.0.1:4601", &["image of coord of 127.0.0.1:4601 is missing"]);
    let tlog = recorded.image("127.0.0.1:4601", "tlog");
    fs::rename(tlog.join("files"), tlog.join("aside")).unwrap();
    refused(&recorded.set(), &["127.0.0.1:4601/tlog has no files", "never finished"]);
    fs::rename(tlog.join("aside"), tlog.join("files")).unwrap();
    for address in ADDRESSES {
        fs::remove_dir_all(recorded.image(address, "coord")).unwrap();
    }
    refused(
        &recorded.set(),
        &["no image of a coordinator", "127.0.0.1:4601, 127.0.0.1:4602, 127.0.0.1:4603"],
    );
    for address in ADDRESSES {
        fs::remove_dir_all(recorded.set().join(address)).unwrap();
    }
    refused(&recorded.set(), &["holds no image"]);
}

#[test]
fn a_file_that_was_cut_off_is_refused_where_it_shows() {
    let recorded = Recorded::new();
    let file = recorded.file("127.0.0.1:4601", "tlog", "logqueue-");
    let size = fs::metadata(&file).unwrap().len();
    File::options().write(true).open(&file).unwrap().set_len(size - 1000).unwrap();
    refused(&recorded.set(), &["logqueue-", "is not whole pages of 4096", "take another image"]);
    // Of another role it does not matter in this image.
    File::options().write(true).open(&file).unwrap().set_len(size).unwrap();
    let other = recorded.file("127.0.0.1:4601", "coord", "logqueue-");
    File::options().write(true).open(other).unwrap().set_len(1000).unwrap();
    plan(&recorded.set()).unwrap();
    let files = recorded.image("127.0.0.1:4602", "coord").join("files");
    for name in ["coordination-0.fdq", "coordination-1.fdq"] {
        fs::remove_file(files.join(name)).unwrap();
    }
    refused(&recorded.set(), &["127.0.0.1:4602/coord holds no file of its role coord (coordination-*)"]);
}

#[test]
fn a_mapping_must_fit_the_set() {
    let recorded = Recorded::new();
    let source = Source { folder: recorded.set(), address: None };
    let set = Set::read(&[source], &[], None).unwrap();
    let said = |pairs: &[&str]| {
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        Plan::new(&set, &Mapping::read(&pairs, None).unwrap()).unwrap_err().to_string()
    };
    let two = ["127.0.0.1:4601=10.0.0.1:1", "127.0.0.1:4602=10.0.0.2:1"];
    assert!(said(&two).contains("127.0.0.1:4603 has no new address"));
    let more = [&two[..], &["127.0.0.1:4603=10.0.0.3:1", "127.0.0.1:4604=10.0.0.4:1"]].concat();
    assert!(said(&more).contains("127.0.0.1:4604 is mapped, but no image is of it"));
}

#[test]
fn what_the_script_of_the_page_leaves_is_read_too() {
    let recorded = Recorded::new();
    let machines = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    for address in ADDRESSES {
        let set = machines.path().join(address.replace(':', "-")).join(UID);
        for role in ["storage", "tlog", "coord"] {
            fs::create_dir_all(set.join(role)).unwrap();
            for entry in fs::read_dir(recorded.image(address, role).join("files")).unwrap().flatten() {
                if entry.path().is_file() {
                    fs::hard_link(entry.path(), set.join(role).join(entry.file_name())).unwrap();
                }
            }
        }
        sources.push(format!("{address}={}", set.display()).parse::<Source>().unwrap());
    }
    let error = Set::read(&sources, &[], None).map(|set| Plan::new(&set, &mapping())).unwrap().unwrap_err();
    assert!(error.to_string().contains("give that of the source cluster with --cluster-file"), "{error}");
    let cluster_file = recorded.image("127.0.0.1:4601", "coord").join("fdb.cluster");
    let set = Set::read(&sources, &[], Some(&cluster_file)).unwrap();
    let out = tempfile::tempdir().unwrap();
    restore::prepare(&Plan::new(&set, &mapping()).unwrap(), out.path(), None, false, NOW).unwrap();
    for old in ADDRESSES {
        let right = right_restore(|role| recorded.image(old, role).join("files"));
        assert_restored(&out.path().join(moved(old)).join("data"), &right);
    }
    let read = |sources: &[Source]| Set::read(sources, &[], None).unwrap_err().to_string();
    let bare = Source { address: None, ..sources[0].clone() };
    assert!(read(&[bare]).contains("name it as ADDRESS=DIR"));
    let twice = [sources[0].clone(), Source { address: sources[0].address.clone(), ..sources[1].clone() }];
    assert!(read(&twice).contains("are both the image of"));
    let other = machines.path().join("00000000000000000000000000000000");
    fs::rename(&sources[1].folder, &other).unwrap();
    let two = [sources[0].clone(), Source { folder: other, ..sources[1].clone() }];
    assert!(read(&two).contains("restore one snapshot, never parts of two"));
    let unnamed = Source { folder: machines.path().to_owned(), address: None };
    assert!(read(&[unnamed]).contains("is not named by a snapshot's UID"));
}

#[test]
fn an_image_of_a_volume_is_read_where_it_is_attached() {
    let recorded = Recorded::new();
    let destdir = tempfile::tempdir().unwrap();
    let set = with_manifests(&recorded, destdir.path());
    // As snap-create leaves a snapshot of a logical volume: a manifest without files.
    let image = set.join("127.0.0.1:4602/tlog");
    let mut manifest = chronofs_snapshot::Manifest::read(&image).unwrap().unwrap();
    (manifest.method, manifest.data, manifest.entries) = (Method::Lvm, None, None);
    manifest.volume = Some("vg0/chronofs-tlog".to_owned());
    let mounted = tempfile::tempdir().unwrap();
    fs::rename(image.join("files"), mounted.path().join("data")).unwrap();
    fs::remove_dir_all(&image).unwrap();
    fs::create_dir(&image).unwrap();
    manifest.write(&image).unwrap();
    refused(&set, &["is the snapshot vg0/chronofs-tlog of a volume", "--attached 127.0.0.1:4602/tlog=DIR"]);
    let attached: Attached =
        format!("127.0.0.1:4602/tlog={}/data", mounted.path().display()).parse().unwrap();
    let source = Source { folder: set, address: None };
    let set = Set::read(&[source], &[attached], None).unwrap();
    let out = tempfile::tempdir().unwrap();
    restore::prepare(&Plan::new(&set, &mapping()).unwrap(), out.path(), None, false, NOW).unwrap();
    let right = right_restore(|role| recorded.image("127.0.0.1:4602", role).join("files"));
    assert_restored(&out.path().join(moved("127.0.0.1:4602")).join("data"), &right);
}
