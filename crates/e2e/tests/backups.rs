//! Backups of a real installation: made while it works, each after the first only what is new, and brought back after the
//! loss of every server.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chronofs_e2e::clone::{Clone, mapping};
use chronofs_e2e::log_copies::{LogServer, keep_copies};
use chronofs_e2e::object_server::{Kind, ObjectServer};
use chronofs_e2e::process::{run, text, text_of, wait_for};
use chronofs_e2e::snapshot::read_record;
use chronofs_e2e::{Installation, Manifest, Rng, change};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// An installation with a folder for backups and a key.
struct Lab {
    installation: Installation,
    dest: PathBuf,
    key: PathBuf,
}

impl Lab {
    fn new() -> Lab {
        Lab::on(Installation::start())
    }

    fn on(installation: Installation) -> Lab {
        let (dest, key) = (installation.path("backups"), installation.path("backup.key"));
        fs::create_dir(&dest).unwrap();
        installation.ok(&["backup", "key", text(&key)]);
        Lab { installation, dest, key }
    }

    fn with_key<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--key-file", text(&self.key)]].concat()
    }

    #[track_caller]
    fn create(&self) -> Value {
        let said = self.installation.ok(&self.with_key(&["backup", "create", text(&self.dest), "--json"]));
        serde_json::from_str(&said).unwrap()
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.installation.ok(&self.with_key(arguments))
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> String {
        self.installation.fails(&self.with_key(arguments))
    }

    fn listed(&self) -> BTreeMap<String, Value> {
        let all: Vec<Value> =
            serde_json::from_str(&self.installation.ok(&["backup", "list", "--json"])).unwrap();
        all.into_iter().map(|backup| (backup["uid"].as_str().unwrap().to_owned(), backup)).collect()
    }
}

fn uid(backup: &Value) -> &str {
    backup["uid"].as_str().unwrap()
}

fn of(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// As text, to the nanosecond.
fn instant(backup: &Value) -> String {
    chronofs_core::Version(backup["point_ns"].as_u64().unwrap()).to_string()
}

/// Bytes of all files below a folder.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.metadata().unwrap() {
            meta if meta.is_dir() => bytes_in(&entry.path()),
            meta => meta.len(),
        })
        .sum()
}

#[test]
fn a_passphrase_opens_a_place_in_place_of_a_key_file_and_is_nowhere_to_be_found() {
    const WORDS: &str = "four words by chance";
    let lab = Lab::new();
    let (installation, dest) = (&lab.installation, text(&lab.dest).to_owned());
    let file = |name: &str, words: &str| {
        let path = installation.path(name);
        fs::write(&path, format!("{words}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        text(&path).to_owned()
    };
    installation.create_volume("one", &[]);
    let (right, wrong, short) =
        (file("right", WORDS), file("wrong", "four words by change"), file("short", "four"));
    let said = installation.fails(&["backup", "create", &dest]);
    assert!(said.contains("--passphrase-file") && said.contains("CHRONOFS_BACKUP_PASSPHRASE"), "{said}");
    let said = installation.fails(&["backup", "create", &dest, "--passphrase-file", &short]);
    assert!(said.contains("at least 8 characters"), "{said}");
    assert_eq!(bytes_in(&lab.dest), 0);
    installation.ok(&["backup", "create", &dest, "--passphrase-file", &right]);
    installation.ok(&["backup", "verify", &dest, "--passphrase-file", &right]);
    let said = installation.fails(&["backup", "create", &dest, "--passphrase-file", &wrong]);
    assert!(said.contains("not opened by this passphrase"), "{said}");
    let said = lab.fails(&["backup", "verify", &dest]);
    assert!(said.contains("by a passphrase"), "{said}");
    // By the environment.
    let listed = |words: &str| {
        let mut command = installation.command(&["backup", "list", &dest]);
        command.env("CHRONOFS_BACKUP_PASSPHRASE", words).output().unwrap().status.success()
    };
    assert!(listed(WORDS) && !listed("four words by change"));
    // A schedule goes on without it.
    let made =
        ["backup", "schedule", "create", "often", &dest, "--every", "1h", "--extend", "--passphrase-file"];
    installation.ok(&[&made[..], &[&right]].concat());
    wait_for("a backup by schedule", || {
        lab.listed()
            .values()
            .any(|backup| backup["schedule"] == "often" && backup["state"] == "COMPLETE")
            .then_some(())
    });
    fs::set_permissions(&right, fs::Permissions::from_mode(0o644)).unwrap();
    let said = installation.fails(&["backup", "list", &dest, "--passphrase-file", &right]);
    assert!(said.contains("others may read it"), "{said}");
    // What the servers keep and log, and what lies with the backups.
    for path in ["right", "wrong", "short"] {
        fs::remove_file(installation.path(path)).unwrap();
    }
    assert_eq!(holding(&installation.path(""), WORDS.as_bytes()), Vec::<PathBuf>::new());
}

/// The files below a folder that have these bytes in them.
fn holding(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(holding(&path, bytes));
        } else if kind.is_file()
            && fs::read(&path).is_ok_and(|all| all.windows(bytes.len()).any(|part| part == bytes))
        {
            found.push(path);
        }
    }
    found
}

#[test]
fn after_the_loss_of_every_server_the_newest_backup_gives_back_live_and_past() {
    let seed = chronofs_e2e::seed("backups");
    let mut lab = Lab::new();
    let source = &lab.installation;
    source.create_volume("one", &[]);
    let mut mount = source.mount("one", &[]);
    let mut rng = Rng::new(seed);
    change::changed_tree(&mount.path("quiet"), &mut rng).unwrap();
    let moment = mount.instant();
    let was = of(&mount.dir);
    let first = lab.create();
    // The second one is made under load.
    let busy = mount.path("busy");
    fs::create_dir(&busy).unwrap();
    let stop = AtomicBool::new(false);
    let second = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut n = 0u32;
            while !stop.load(Ordering::Relaxed) {
                fs::write(busy.join((n % 50).to_string()), n.to_string().repeat(20)).unwrap();
                n += 1;
            }
            n
        });
        std::thread::sleep(Duration::from_millis(300));
        let second = lab.create();
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 50);
        second
    });
    let source = &lab.installation;
    let now = of(&source.mount_past(&mount, &instant(&second)).dir);
    fs::write(mount.path("late"), "not in it").unwrap();
    let token = mount.token.clone();
    mount.unmount();
    drop(mount);
    assert!(lab.listed().values().all(|backup| backup["wholeness"] == "WHOLE"));
    // Everything but block store, place of backups and key is lost.
    lab.installation.meta.kill();
    lab.installation.admin.kill();
    for lost in ["admin", "meta"] {
        fs::remove_dir_all(lab.installation.path(lost)).unwrap();
    }
    let listed = lab.ok(&["backup", "list", text(&lab.dest)]);
    assert!(listed.contains(uid(&first)) && listed.contains(uid(&second)), "{listed}");
    let said = lab.ok(&["backup", "verify", text(&lab.dest)]);
    assert_eq!(said.matches("every byte was read").count(), 2, "{said}");
    let images = lab.installation.path("images");
    fs::create_dir(&images).unwrap();
    let said = lab.ok(&["backup", "restore", text(&lab.dest), "--to", text(&images)]);
    let (set, record) = (images.join(uid(&second)), images.join(format!("{}.json", uid(&second))));
    assert!(said.contains(text(&set)), "{said}");
    let parsed = read_record(&record);
    let out = lab.installation.path("restore");
    let map = mapping(&parsed);
    let mut prepare =
        vec!["restore", "prepare", text(&set), "--record", text(&record), "--out", text(&out), "--json"];
    prepare.extend(map.iter().map(String::as_str));
    let made = lab.installation.ok(&prepare);
    let clone = Clone::start(&lab.installation, &made, &[]);
    clone.ok(&lab.installation, &["restore", "status", "--wait", "60s"]);
    let cluster = text(&clone.cluster_file).to_owned();
    let live = lab.installation.mount_with("one", &token, &["--cluster-file", &cluster]);
    now.assert_same(&of(&live.dir), &format!("seed {seed}: live"));
    let flags = ["--cluster-file", &cluster, "--at-time", &moment];
    let past = lab.installation.mount_with("one", &token, &flags);
    was.assert_same(&of(&past.dir), &format!("seed {seed}: at {moment}"));
    // The clone is another cluster: it makes no backups among those of its source, and those stay as they are.
    let arguments = ["backup", "create", text(&lab.dest), "--cluster-file", &cluster];
    let said = lab.fails(&arguments);
    assert!(said.contains("holds the backups of cluster"), "{said}");
    lab.ok(&["backup", "verify", text(&lab.dest), "--quick"]);
}

#[test]
fn a_backup_after_the_first_stores_what_is_new_and_deleting_one_leaves_the_others() {
    let lab = Lab::new();
    lab.installation.create_volume("one", &[]);
    let mount = lab.installation.mount("one", &[]);
    // Enough that it does not stay in memory.
    for n in 0..3000 {
        fs::write(mount.path(&n.to_string()), format!("{n} ").repeat(120)).unwrap();
    }
    let first = lab.create();
    fs::write(mount.path("new"), "little").unwrap();
    let second = lab.create();
    let stored = |backup: &Value| backup["stored"].as_u64().unwrap();
    let bytes = |backup: &Value| backup["bytes"].as_u64().unwrap();
    assert!(bytes(&second) > 2 * stored(&second), "{second}");
    assert!(stored(&first) > 100_000, "{first}");
    assert!(stored(&second) < stored(&first) / 2, "{second}");
    assert!(second["point_ns"].as_u64() > first["point_ns"].as_u64());
    // Nothing that a server knows can be read there.
    let text_of_folder = |needle: &[u8]| -> bool {
        let mut open = vec![lab.dest.clone()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => open.push(path),
                    false if fs::read(&path).unwrap().windows(needle.len()).any(|part| part == needle) => {
                        return true;
                    }
                    false => {}
                }
            }
        }
        false
    };
    assert!(!text_of_folder(b"SQLite format 3") && !text_of_folder(b"BEGIN PRIVATE KEY"));
    let key = fs::read_to_string(&lab.key).unwrap();
    for log in ["admin.log", "meta.log"] {
        let log = fs::read_to_string(lab.installation.path(log)).unwrap();
        assert!(!log.contains(key.trim()), "the key is in a log");
    }
    let database = fs::read(lab.installation.path("admin/admin.sqlite")).unwrap();
    let wal = fs::read(lab.installation.path("admin/admin.sqlite-wal")).unwrap_or_default();
    let kept = [database, wal].concat();
    assert!(!kept.windows(64).any(|part| part == key.trim().as_bytes()), "the key is in the database");
    let before = bytes_in(&lab.dest);
    let said = lab.ok(&["backup", "delete", uid(&first)]);
    assert!(said.contains("is deleted"), "{said}");
    assert!(bytes_in(&lab.dest) < before);
    assert_eq!(lab.listed().into_keys().collect::<Vec<_>>(), [uid(&second)]);
    lab.ok(&["backup", "verify", text(&lab.dest), uid(&second)]);
    let said = lab.fails(&["backup", "delete", uid(&first)]);
    assert!(said.contains("no backup"), "{said}");
    // Its place is lost: only what is kept for it can go.
    fs::rename(&lab.dest, lab.installation.path("elsewhere")).unwrap();
    let said = lab.fails(&["backup", "delete", uid(&second)]);
    assert!(said.contains("cannot be used"), "{said}");
    assert_eq!(lab.listed()[uid(&second)]["wholeness"], "WHOLE", "a lost place lets go of nothing");
    lab.installation.ok(&["backup", "delete", uid(&second), "--forget"]);
    assert!(lab.listed().is_empty());
}

#[test]
fn what_is_bad_is_refused_with_a_word_and_leaves_nothing_that_counts() {
    let mut lab = Lab::new();
    lab.installation.create_volume("one", &[]);
    let mount = lab.installation.mount("one", &[]);
    fs::write(mount.path("file"), "content").unwrap();
    mount.instant();
    let other = lab.installation.path("other.key");
    lab.installation.ok(&["backup", "key", text(&other)]);
    let said = lab.installation.fails(&["backup", "key", text(&other)]);
    assert!(said.contains("exists"), "a key is never overwritten: {said}");
    let none = lab.installation.path("none");
    let said = lab.fails(&["backup", "create", text(&none)]);
    assert!(said.contains("the folder cannot be used"), "{said}");
    let said = lab.fails(&["backup", "create", "relative"]);
    assert!(said.contains("absolute path"), "{said}");
    let said = lab.fails(&["backup", "create", text(&lab.installation.path("blocks"))]);
    assert!(said.contains("something else than backups"), "{said}");
    let said = lab.fails(&["backup", "list", text(&lab.dest)]);
    assert!(said.contains("holds no backups"), "{said}");
    let backup = lab.create();
    let before = bytes_in(&lab.dest);
    for arguments in [
        &["backup", "create", text(&lab.dest)][..],
        &["backup", "verify", text(&lab.dest)],
        &["backup", "list", text(&lab.dest)],
        &["backup", "restore", text(&lab.dest), "--to", text(&lab.installation.path(""))],
        &["backup", "delete", uid(&backup)],
    ] {
        let said = lab.installation.fails(&[arguments, &["--key-file", text(&other)]].concat());
        assert!(said.contains("not opened by this key"), "{arguments:?}: {said}");
    }
    assert_eq!(bytes_in(&lab.dest), before);
    // One byte of a piece.
    let folder = fs::read_dir(lab.dest.join("chunks")).unwrap().next().unwrap().unwrap().path();
    let piece = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&piece).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&piece, bad).unwrap();
    let said = lab.fails(&["backup", "verify", text(&lab.dest)]);
    assert!(said.contains("does not open") && said.contains("missing or damaged"), "{said}");
    lab.ok(&["backup", "verify", text(&lab.dest), "--quick"]);
    fs::write(&piece, good).unwrap();
    // What a server that goes down has begun is no backup, and the next one works.
    lab.installation.ok(&["snapshot", "delete", uid(&backup)]);
    let listed = lab.listed();
    assert_eq!(listed[uid(&backup)]["wholeness"], "WHOLE", "the window still reaches back: {listed:?}");
    lab.installation.meta.kill();
    let (dest, key) = (text(&lab.dest).to_owned(), text(&lab.key).to_owned());
    let arguments = ["backup", "create", &dest, "--key-file", &key, "--json"];
    let mut child =
        lab.installation.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the backup to begin", || lab.listed().values().any(|b| b["state"] == "RUNNING").then_some(()));
    lab.installation.admin.kill();
    lab.installation.start_admin();
    assert!(!child.wait().unwrap().success());
    let failed = lab.listed().into_values().find(|backup| backup["state"] == "FAILED").unwrap();
    assert!(failed["why"].as_str().unwrap().contains("went down"), "{failed}");
    lab.installation.start_meta();
    let again = wait_for("a backup after the servers are back", || {
        let output = chronofs_e2e::process::run(&mut lab.installation.command(&arguments));
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    lab.ok(&["backup", "verify", text(&lab.dest), uid(&again)]);
    let left = lab.dest.join("parts").read_dir().unwrap().map(|entry| entry.unwrap().path());
    assert!(left.map(|folder| folder.read_dir().unwrap().count()).sum::<usize>() == 0, "unfinished parts");
}

#[test]
fn backups_in_a_bucket_need_nothing_but_the_bucket_and_the_key() {
    for kind in [Kind::Moto, Kind::Azurite] {
        let server = ObjectServer::start(kind);
        let lab = Lab::new();
        lab.installation.create_block_store("cloud", &server.flags(), &["--prefix", "team"]);
        lab.installation.create_volume("one", &[]);
        let mount = lab.installation.mount("one", &[]);
        for n in 0..500 {
            fs::write(mount.path(&n.to_string()), format!("{n} ").repeat(120)).unwrap();
        }
        let create = || -> Value {
            serde_json::from_str(&lab.ok(&["backup", "create", "store:cloud", "--json"])).unwrap()
        };
        let (first, second) = (create(), create());
        assert!(second["stored"].as_u64() < first["stored"].as_u64(), "{second}");
        let said = lab.fails(&["backup", "create", "store:none"]);
        assert!(said.contains("none"), "{said}");
        let said = lab.fails(&["backup", "create", "store:blocks"]);
        assert!(said.contains("is the folder"), "{said}");
        lab.ok(&["backup", "delete", uid(&first)]);
        // Without any server.
        let flags = server.flags();
        let with = |arguments: &[&str]| -> String {
            let mut all: Vec<&str> = arguments.to_vec();
            all.extend(flags.iter().map(String::as_str).chain(["--prefix", "team"]));
            lab.ok(&all)
        };
        let listed = with(&["backup", "list", "store:cloud"]);
        assert!(listed.contains(uid(&second)) && !listed.contains(uid(&first)), "{listed}");
        assert!(with(&["backup", "verify", "store:cloud"]).contains("every byte was read"));
        let images = lab.installation.path("images");
        fs::create_dir(&images).unwrap();
        with(&["backup", "restore", "store:cloud", "--to", text(&images)]);
        let (set, record) = (images.join(uid(&second)), images.join(format!("{}.json", uid(&second))));
        lab.installation.ok(&["snapshot", "verify", text(&set), "--record", text(&record)]);
    }
}

/// What `cli status json` says, healthy or not.
fn status(lab: &Lab) -> Value {
    let output = run(&mut lab.installation.command(&["cli", "--exec", "status json"]));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text_of(&output)))
}

fn metrics(lab: &Lab) -> String {
    let url = format!("https://{}/metrics", lab.installation.admin_address);
    let output = Command::new("curl").args(["--silent", "--insecure", &url]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_schedule_makes_backups_deletes_old_ones_and_is_red_when_they_stop() {
    let lab = Lab::new();
    lab.installation.create_volume("one", &[]);
    let mount = lab.installation.mount("one", &[]);
    fs::write(mount.path("file"), "content").unwrap();
    mount.instant();
    let warnings = status(&lab)["warnings"].to_string();
    assert!(warnings.contains("no backup is known"), "{warnings}");
    let create =
        ["backup", "schedule", "create", "quick", text(&lab.dest), "--every", "10s", "--alarm-after", "18s"];
    let said = lab.fails(&create);
    assert!(said.contains("volume 'one' keeps its past for 7d") && said.contains("--extend"), "{said}");
    let said = lab.fails(&["backup", "schedule", "create", "quick", text(&lab.dest), "--every", "1s"]);
    assert!(said.contains("too often") || said.contains("--extend"), "{said}");
    lab.ok(&[&create[..], &["--keep", "25s"]].concat());
    let said = lab.fails(&[&create[..], &["--keep", "25s"]].concat());
    assert!(said.contains("exists"), "{said}");
    let key = fs::read_to_string(&lab.key).unwrap();
    let database = ["admin/admin.sqlite", "admin/admin.sqlite-wal"];
    let database = database.map(|name| fs::read(lab.installation.path(name)).unwrap_or_default()).concat();
    assert!(!database.windows(64).any(|part| part == key.trim().as_bytes()), "the key is kept sealed");
    let complete = || -> Vec<String> {
        let listed = lab.listed().into_iter();
        listed.filter(|(_, backup)| backup["state"] == "COMPLETE").map(|(uid, _)| uid).collect()
    };
    let first = wait_for("the first backup by schedule", || complete().pop());
    let red = "chronofs_admin_backup_too_old{schedule=\"quick\"} 1";
    assert!(metrics(&lab).contains("chronofs_admin_backup_age_limit_seconds{schedule=\"quick\"} 18"));
    assert!(!metrics(&lab).contains(red) && status(&lab)["healthy"] == true, "{}", status(&lab));
    assert_eq!(status(&lab)["warnings"], Value::Null);
    let patience = std::time::Instant::now();
    while complete().contains(&first) {
        assert!(patience.elapsed() < Duration::from_secs(70), "the first backup stays: {:?}", lab.listed());
        std::thread::sleep(Duration::from_millis(500));
    }
    lab.ok(&["backup", "verify", text(&lab.dest)]);
    // Its place goes away: silence is a failure, too.
    let away = lab.installation.path("away");
    fs::rename(&lab.dest, &away).unwrap();
    let patience = std::time::Instant::now();
    while status(&lab)["healthy"] == true {
        assert!(patience.elapsed() < Duration::from_secs(60), "{}", status(&lab));
        std::thread::sleep(Duration::from_millis(500));
    }
    let faults = status(&lab)["faults"].to_string();
    assert!(faults.contains("backups by schedule 'quick'") && faults.contains("may be 18 s old"), "{faults}");
    assert!(metrics(&lab).contains(red), "{}", metrics(&lab));
    fs::rename(&away, &lab.dest).unwrap();
    wait_for("a backup after the place is back", || (status(&lab)["healthy"] == true).then_some(()));
    let listed = lab.installation.ok(&["backup", "schedule", "list"]);
    assert!(listed.contains("quick") && listed.contains("every 10s"), "{listed}");
    lab.installation.ok(&["backup", "schedule", "delete", "quick"]);
    assert!(!metrics(&lab).contains("quick"));
}

#[test]
fn what_a_registered_copy_needs_is_kept_until_it_is_deleted() {
    let soon = ["--slice-life", "1", "--horizon-step", "1"];
    let installation = Installation::start_with_meta_arguments(&soon);
    installation.create_volume("one", &["--retention", "1h", "--compression", "none"]);
    let mount = installation.mount("one", &[]);
    for n in 0..8 {
        fs::write(mount.path(&n.to_string()), vec![n; 300_000]).unwrap();
    }
    mount.instant();
    let stored = || bytes_in(&installation.path("blocks").join("objects"));
    let before = stored();
    assert!(before > 8 * 300_000);
    let said = installation.fails(&["backup", "register", "--at", "2999-01-01T00:00:00Z"]);
    assert!(said.contains("has not come yet"), "{said}");
    let registered = ["backup", "register", "--at", "-2s", "--keep", "1d", "--note", "snap-0123", "--json"];
    let copy: Value = serde_json::from_str(&installation.ok(&registered)).unwrap();
    let pins = || bytes_in(&installation.path("blocks").join("pins"));
    assert!(pins() > 0, "what it needs is pinned in the block store");
    let listed = installation.ok(&["backup", "list"]);
    for part in ["REGISTERED", "WHOLE", "snap-0123"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    (0..8).for_each(|n| fs::remove_file(mount.path(&n.to_string())).unwrap());
    mount.instant();
    installation.ok(&["configure", "update", "volume", "one", "--retention", "0", "--grace", "0"]);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(stored(), before, "what the copy needs is gone");
    installation.ok(&["backup", "delete", uid(&copy), "--forget"]);
    assert_eq!(pins(), 0);
    wait_for("what nothing needs any more to go", || (stored() < before / 2).then_some(()));
    assert_eq!(installation.ok(&["backup", "list", "--json"]).trim(), "[]");
}

#[test]
fn a_backup_is_partly_and_then_hollow_when_its_blocks_really_went() {
    let soon = ["--slice-life", "1", "--horizon-step", "1"];
    let lab = Lab::on(Installation::start_with_meta_arguments(&soon));
    let mounts = [("one", "3s"), ("two", "1h")].map(|(name, retention)| {
        lab.installation.create_volume(name, &["--retention", retention, "--compression", "none"]);
        let mount = lab.installation.mount(name, &[]);
        (0..8).for_each(|n| fs::write(mount.path(&n.to_string()), vec![n; 300_000]).unwrap());
        mount.instant();
        mount
    });
    let stored = || bytes_in(&lab.installation.path("blocks").join("objects"));
    let all = stored();
    let made = lab.ok(&["backup", "create", text(&lab.dest), "--keep", "25s", "--json"]);
    let backup: Value = serde_json::from_str(&made).unwrap();
    for mount in &mounts {
        (0..8).for_each(|n| fs::remove_file(mount.path(&n.to_string())).unwrap());
        mount.instant();
    }
    let judged = || {
        let backup = lab.listed().remove(uid(&backup)).unwrap();
        (backup["wholeness"].as_str().unwrap().to_owned(), backup["because"].as_str().unwrap().to_owned())
    };
    let (wholeness, because) = judged();
    assert!(wholeness == "WHOLE" && because.contains("is kept until"), "{wholeness}: {because}");
    let because = wait_for("the time of the backup to be over", || {
        let (wholeness, because) = judged();
        (wholeness == "PARTLY").then_some(because)
    });
    for part in ["files of one may lack their bytes", "the past of two still reaches"] {
        assert!(because.contains(part), "{part}: {because}");
    }
    wait_for("the blocks of one volume to go", || (stored() < all * 6 / 10).then_some(()));
    assert!(stored() > all * 4 / 10, "those of the other are there");
    assert!(lab.installation.ok(&["backup", "list"]).contains("PARTLY"));
    lab.installation.ok(&["configure", "update", "volume", "two", "--retention", "3s", "--grace", "0"]);
    wait_for("the backup to be hollow", || (judged().0 == "HOLLOW").then_some(()));
    wait_for("all blocks to go", || (stored() < all / 10).then_some(()));
    let listed = lab.installation.ok(&["backup", "list"]);
    assert!(listed.contains("HOLLOW"), "{listed}");
}

#[test]
fn a_client_that_is_told_to_end_ends_its_backup() {
    let lab = Lab::new();
    for (digit, signal) in [("a", Signal::INT), ("b", Signal::TERM)] {
        let wanted = digit.repeat(32);
        // It has no chance to be done.
        lab.installation.meta.signal(Signal::STOP);
        let mut command =
            lab.installation.command(&lab.with_key(&["backup", "create", text(&lab.dest), "--uid", &wanted]));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the backup to begin", || lab.listed().contains_key(&wanted).then_some(()));
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text_of(&output);
        assert!(!output.status.success() && said.contains("was ended on demand"), "{signal:?}: {said}");
        lab.installation.meta.signal(Signal::CONT);
        wait_for("it to be over", || (lab.listed()[&wanted]["state"] == "FAILED").then_some(()));
    }
    lab.create();
}

#[test]
fn a_log_server_stores_its_copies_too() {
    let lab = Lab::new();
    lab.installation.create_volume("one", &[]);
    let mut far = LogServer::new(&lab.installation, "far");
    far.start();
    keep_copies(&lab.installation, &["tlog:far"]);
    let mount = lab.installation.mount("one", &[]);
    fs::write(mount.path("file"), "content").unwrap();
    mount.instant();
    let backup = lab.create();
    let images = lab.installation.path("images");
    fs::create_dir(&images).unwrap();
    lab.ok(&["backup", "restore", text(&lab.dest), "--to", text(&images)]);
    let (set, record) = (images.join(uid(&backup)), images.join(format!("{}.json", uid(&backup))));
    let said = lab.installation.ok(&["snapshot", "verify", text(&set), "--record", text(&record)]);
    assert!(said.contains("4 images of 3 servers"), "{said}");
}
