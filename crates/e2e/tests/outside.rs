//! Disaster drill: the disk under the admin server and the metadata server is imaged from outside while they run under load, which
//! no server is told but by `backup register`. Servers that are given the image in the place of the disk serve.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chronofs_e2e::disk::{Bound, Disk, done};
use chronofs_e2e::drill::{Drill, Load};
use chronofs_e2e::model::now_ns;
use chronofs_e2e::process::{text, wait_for};
use chronofs_e2e::tree::files_under;
use chronofs_e2e::{Installation, Manifest, Rng, change};

/// How an image is taken of a disk that is in use.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// A snapshot of the subvolume that all lies in.
    Subvolume,
    /// A copy of the whole disk while its file system is frozen, as a cloud makes one.
    Frozen,
}

/// Of a file that lies in objects of its own.
const LARGE: usize = 1 << 20;

/// The file system thaws whatever happens.
const FREEZE: &str = r#"
trap 'fsfreeze --unfreeze "$1"' EXIT
fsfreeze --freeze "$1"
cp --sparse=always "$2" "$3"
"#;

fn of(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// The disk of the servers, and the folder on it.
fn disk(folder: &Path, way: Way) -> (Disk, PathBuf) {
    let mkfs: &[&str] = match way {
        Way::Subvolume => &["mkfs.btrfs", "-q"],
        Way::Frozen => &["mkfs.xfs", "-q"],
    };
    let disk = Disk::new(folder, "servers", mkfs);
    let data = disk.mount.join("data");
    match way {
        Way::Subvolume => drop(done(Command::new("btrfs").args(["subvolume", "create"]).arg(&data))),
        Way::Frozen => fs::create_dir(&data).unwrap(),
    }
    (disk, data)
}

/// Takes an image of the disk; gives the folder on it, and the disk that it was copied to.
fn image(folder: &Path, disk: &Disk, data: &Path, way: Way) -> (PathBuf, Option<Disk>) {
    match way {
        Way::Subvolume => {
            let taken = disk.mount.join("taken");
            done(Command::new("btrfs").args(["subvolume", "snapshot"]).arg(data).arg(&taken));
            (taken, None)
        }
        Way::Frozen => {
            let copy = folder.join("copy.disk");
            let mut shell = Command::new("sh");
            done(shell.args(["-e", "-c", FREEZE, "sh"]).arg(&disk.mount).arg(&disk.image).arg(&copy));
            // It has the name of the disk that it is a copy of.
            let attached = Disk::mount(copy, folder.join("attached"), "nouuid");
            (attached.mount.join("data"), Some(attached))
        }
    }
}

fn an_image_of_a_running_disk_serves(way: Way, name: &'static str) {
    let seed = chronofs_e2e::seed(name);
    let folder = tempfile::Builder::new().prefix("chronofs-outside-").tempdir().unwrap();
    let (disk, data) = disk(folder.path(), way);
    let mut installation = Installation::start_below(&data, &["--slice-life", "1", "--horizon-step", "1"]);
    installation.create_volume("one", &["--retention", "1h"]);
    let mut mount = installation.mount("one", &[]);
    let quiet = mount.path("quiet");
    change::changed_tree(&quiet, &mut Rng::new(seed)).unwrap();
    // Too large to travel with the metadata, which the image has.
    fs::write(quiet.join("large"), Rng::new(seed).bytes(LARGE)).unwrap();
    let was = of(&quiet);
    let load = Load::on(&mount.path("busy"));
    load.goes_on();

    let at = mount.instant();
    let begun_ns = now_ns();
    let (taken, _attached) = image(folder.path(), &disk, &data, way);
    let register = ["backup", "register", "--at", &at, "--keep", "1d", "--note", "from outside"];
    assert!(installation.ok(&register).contains("is kept"));
    load.goes_on();
    // The source goes on, and forgets at once what it deletes; but not what the image needs.
    let blocks = installation.path("blocks/objects");
    let before = files_under(&blocks);
    let later = [0, 1, 2].map(|n| mount.path(&format!("since{n}")));
    for file in &later {
        fs::write(file, Rng::new(seed + 1).bytes(LARGE)).unwrap();
        mount.instant();
    }
    let mut since = files_under(&blocks);
    since.retain(|object| !before.contains(object));
    fs::remove_dir_all(&quiet).unwrap();
    later.iter().for_each(|file| fs::remove_file(file).unwrap());
    installation.ok(&["configure", "update", "volume", "one", "--retention", "0", "--grace", "0"]);
    wait_for("the source to collect what came after the image", || {
        since.iter().any(|object| !object.exists()).then_some(())
    });
    // What else were to go would have gone with it, or goes now.
    std::thread::sleep(Duration::from_secs(2));
    load.goes_on();

    let token = mount.token.clone();
    installation.meta.kill();
    installation.admin.kill();
    let drill = Drill::struck(name);
    mount.kill();
    let written = load.end();
    let below = installation.path("").strip_prefix(&data).unwrap().to_owned();
    let (admin, meta) = (installation.path("admin"), installation.path("meta"));
    let _bound = [&admin, &meta].map(|at| {
        fs::rename(at, at.with_extension("lost")).unwrap();
        Bound::new(&taken.join(&below).join(at.file_name().unwrap()), at.clone())
    });
    installation.start_admin();
    let of_store = fs::read_to_string(meta.join("credentials")).unwrap();
    let creds = ["meta", "init", "creds", "--token", of_store.trim(), "--db-folder", text(&meta)];
    installation.ok(&[&creds[..], &["--old-copy"]].concat());
    installation.start_meta();
    let mount = installation.mount_with("one", &token, &[]);
    let found = of(&mount.path("quiet"));
    drill.recovered("files are read again");
    drill.is_whole("what was quiet when the image was taken", &was, &found);
    // What fsync returned for before is there; the load went on after, and that is lost.
    let lost = drill.account(&written, &mount.path("busy"), Some(begun_ns));
    assert!(!lost.is_empty(), "something was stored after the image was taken");
    let said = installation.ok(&["restore", "status", "--wait", "60s"]);
    assert!(said.contains("an old copy of its folder"), "{said}");
    drill.says(&said);
    fs::write(mount.path("new"), "written since").unwrap();
    installation.ok(&["restore", "accept"]);
    assert_eq!(fs::read_to_string(mount.path("new")).unwrap(), "written since");
    drop(mount);
    installation.meta.stop();
    installation.ok(&["meta", "verify", "--db-folder", text(&meta)]);
    installation.admin.stop();
}

#[test]
fn an_image_of_a_subvolume_that_servers_run_on_serves_in_its_place() {
    an_image_of_a_running_disk_serves(Way::Subvolume, "servers' disk lost, image of a subvolume");
}

#[test]
fn an_image_of_a_frozen_disk_that_servers_run_on_serves_in_its_place() {
    an_image_of_a_running_disk_serves(Way::Frozen, "servers' disk lost, image of a whole disk");
}
