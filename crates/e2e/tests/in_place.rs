//! Disaster drills: a server that is lost goes on in its own place, from the newest backup. Each runs under load, compares what is
//! there with what the backup held, live and past, and prints how long it took until files could be read again, and what is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use chronofs_e2e::clone::{Clone, mapping};
use chronofs_e2e::drill::{Drill, Load};
use chronofs_e2e::object_server::{Kind, ObjectServer};
use chronofs_e2e::process::{PATIENCE, Process, free_address, run, text, text_of, wait_for};
use chronofs_e2e::snapshot::read_record;
use chronofs_e2e::tree::files_under;
use chronofs_e2e::{Installation, Manifest, Mount, Rng, change};
use serde_json::Value;

/// An installation whose servers are backed up into a folder.
struct Lab {
    installation: Installation,
    dest: PathBuf,
    key: PathBuf,
}

/// What a backup holds, and how it is found.
struct Backup {
    uid: String,
    /// The instant that it holds last, as text.
    point: String,
    point_ns: u64,
    /// How the volume was then.
    held: Manifest,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab::without_volume();
        lab.installation.create_volume("one", &[]);
        lab
    }

    /// With the bytes of its volume in a bucket.
    fn in_bucket(server: &ObjectServer) -> Lab {
        let lab = Lab::without_volume();
        lab.installation.create_block_store("cloud", &server.flags(), &[]);
        lab.installation.create_volume_in("cloud", "one", &[]);
        lab
    }

    fn without_volume() -> Lab {
        let installation = Installation::start();
        let (dest, key) = (installation.path("backups"), installation.path("backup.key"));
        fs::create_dir(&dest).unwrap();
        installation.ok(&["backup", "key", text(&key)]);
        Lab { installation, dest, key }
    }

    fn backup(&self, mount: &Mount) -> Backup {
        let arguments = ["backup", "create", text(&self.dest), "--json", "--key-file", text(&self.key)];
        let made: Value = serde_json::from_str(&self.installation.ok(&arguments)).unwrap();
        let point_ns = made["point_ns"].as_u64().unwrap();
        let point = chronofs_core::Version(point_ns).to_string();
        let held = of(&self.installation.mount_past(mount, &point).dir);
        Backup { uid: made["uid"].as_str().unwrap().to_owned(), point, point_ns, held }
    }

    /// `backup restore` of the newest, and `restore prepare --in-place` of it; gives what that says and where the folders are.
    fn prepare(&self, backup: &Backup, more: &[String]) -> (String, PathBuf) {
        let (images, out) = (self.installation.path("images"), self.installation.path("restored"));
        fs::create_dir(&images).unwrap();
        let key = text(&self.key);
        let to = ["backup", "restore", text(&self.dest), "--to", text(&images), "--key-file", key];
        self.installation.ok(&to);
        let (set, record) = (images.join(&backup.uid), self.record(backup));
        let mut arguments =
            vec!["restore", "prepare", text(&set), "--in-place", "--json", "--out", text(&out)];
        arguments.extend(["--record", text(&record)]);
        arguments.extend(more.iter().map(String::as_str));
        (self.installation.ok(&arguments), out)
    }

    fn record(&self, backup: &Backup) -> PathBuf {
        self.installation.path("images").join(format!("{}.json", backup.uid))
    }

    /// Puts the one prepared folder where the lost one was.
    fn put(&self, prepared: &str, to: &str) {
        let prepared: Value = serde_json::from_str(prepared).unwrap();
        let [only] = &prepared.as_array().unwrap()[..] else { panic!("{prepared}") };
        let folder = Path::new(only["folder"].as_str().unwrap()).join("data");
        fs::rename(folder, self.installation.path(to)).unwrap();
    }
}

fn of(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// How long a call may take that waits for no server.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// Names the file to a [`Program`].
const FILE: &str = "CHRONOFS_DRILL_FILE";

/// A program that has a file open. It is a process of its own: if this one had it, every command that is started while the server is
/// away would wait for it, since the kernel closes the file in the new process.
struct Program {
    process: Child,
    input: ChildStdin,
    said: Receiver<String>,
}

impl Program {
    fn open(path: &Path) -> Program {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["what_a_program_does", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(FILE, path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (tell, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The harness says things, too, and not always on a line of their own.
                let Some((_, word)) = line.split_once("said: ") else { continue };
                if tell.send(word.to_owned()).is_err() {
                    return;
                }
            }
        });
        let program = Program { process, input, said };
        assert_eq!(program.answer(), Ok(()), "opening {}", path.display());
        program
    }

    /// Writes at an offset; gives the number of the error.
    fn write(&mut self, at: u64, text: &str) -> Result<(), i32> {
        writeln!(self.input, "{at} {text}").unwrap();
        self.answer()
    }

    fn sync(&mut self) -> Result<(), i32> {
        writeln!(self.input, "sync").unwrap();
        self.answer()
    }

    fn answer(&self) -> Result<(), i32> {
        let word = self.said.recv_timeout(PATIENCE).expect("the program answers");
        if word == "done" { Ok(()) } else { Err(word.parse().unwrap()) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may hang in a mount whose server never came back; nobody waits for it.
        let _ = self.process.kill();
    }
}

#[test]
#[ignore = "it is what other tests start"]
fn what_a_program_does() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let say = |done: std::io::Result<()>| match done {
        Ok(()) => println!("said: done"),
        Err(error) => println!("said: {}", error.raw_os_error().unwrap_or_default()),
    };
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    // What the kernel asks for before the first write is known then.
    let mut first = [0];
    file.read_exact_at(&mut first, 0).unwrap();
    say(file.write_all_at(&first, 0).and_then(|()| file.sync_all()));
    for line in std::io::stdin().lines() {
        match line.unwrap().split_once(' ') {
            Some((at, text)) => say(file.write_all_at(text.as_bytes(), at.parse().unwrap())),
            None => say(file.sync_all()),
        }
    }
}

#[test]
fn a_lost_metadata_server_goes_on_from_the_newest_backup_and_says_what_is_lost() {
    let seed = chronofs_e2e::seed("in_place metadata");
    let mut lab = Lab::new();
    let mount = lab.installation.mount("one", &[]);
    let quiet = mount.path("quiet");
    change::changed_tree(&quiet, &mut Rng::new(seed)).unwrap();
    fs::write(mount.path("kept"), "0123456789").unwrap();
    fs::write(quiet_large(&mount), vec![0; 1 << 20]).unwrap();
    let moment = mount.instant();
    let (was, was_quiet) = (of(&mount.dir), of(&quiet));
    let load = Load::on(&mount.path("busy"));
    load.goes_on();
    let backup = lab.backup(&mount);
    load.goes_on();
    // Nothing of this is in the backup.
    fs::write(mount.path("late"), "late and stored").unwrap();
    let large = large(seed);
    fs::write(mount.path("large"), &large).unwrap();
    // Written twice, and the second time in part.
    let changed = OpenOptions::new().write(true).open(mount.path("large")).unwrap();
    changed.write_all_at(&large[..CHANGED], CHANGED_AT as u64).unwrap();
    changed.sync_all().unwrap();
    drop(changed);
    fs::write(quiet_large(&mount), &large[..1 << 20]).unwrap();
    let late = mount.instant();
    let token = fs::read_to_string(lab.installation.path("meta/credentials")).unwrap();
    let (mut of_kept, mut of_late) = (Program::open(&mount.path("kept")), Program::open(&mount.path("late")));
    lab.installation.meta.kill();
    let drill = Drill::struck("metadata server's disk lost");
    // A write waits for no server, and nothing of it can be stored.
    let wrote = Instant::now();
    assert_eq!((of_kept.write(2, "dirty"), of_late.write(100, "not stored")), (Ok(()), Ok(())));
    assert!(wrote.elapsed() < WRITE_WITHIN, "{:?}", wrote.elapsed());
    // The disk is lost; what was on it turns up again later.
    fs::rename(lab.installation.path("meta"), lab.installation.path("old")).unwrap();

    let (prepared, _) = lab.prepare(&backup, &["--only".to_owned(), "store".to_owned()]);
    lab.put(&prepared, "meta");
    let folder = lab.installation.path("meta");
    lab.installation.ok(&["meta", "init", "creds", "--token", token.trim(), "--db-folder", text(&folder)]);
    lab.installation.start_meta();
    // The mount comes back by itself.
    was_quiet.assert_same(&of(&quiet), &format!("seed {seed}: live, after the restore"));
    assert_eq!(fs::read(quiet_large(&mount)).unwrap(), [0; 1 << 20]);
    drill.recovered("files are read again");
    load.goes_on();

    // What was written to a file that is there is in it; what was written to one that is lost is in lost+found.
    assert_eq!(of_kept.sync(), Ok(()));
    assert_eq!(fs::read_to_string(mount.path("kept")).unwrap(), "01dirty789");
    assert!(!mount.path("late").exists(), "it was made after the backup");
    let stale = rustix::io::Errno::STALE.raw_os_error();
    assert_eq!((of_late.sync(), of_late.write(0, "more")), (Err(stale), Err(stale)));
    drop(of_late);
    // The load may have lost files, too: theirs lie there as well.
    let parked = wait_for("what was written to lie in lost+found", || {
        let mut found = fs::read_dir(mount.path("lost+found")).ok()?.map(|entry| entry.unwrap().path());
        found.find(|path| fs::read(path).is_ok_and(|all| all.ends_with(b"not stored")))
    });
    assert_eq!(fs::metadata(&parked).unwrap().len(), 110);
    let beside = PathBuf::from(format!("{}.txt", parked.display()));
    assert!(fs::read_to_string(&beside).is_ok_and(|report| report.contains("offsets 100 and 110")));
    wait_for("the audit log to say so", || {
        lab.installation.ok(&["audit", "list"]).contains("lost with restore epoch 1").then_some(())
    });

    salvaged(&lab.installation, &mount, &large, &drill);

    // What the backup held is there, and what came after it is refused with both ends.
    let past = lab.installation.mount_past(&mount, &moment);
    was.assert_same(&of(&past.dir), &format!("seed {seed}: at {moment}"));
    drop(past);
    let at_cut = lab.installation.mount_past(&mount, &backup.point);
    drill.is_whole("what the backup held", &backup.held, &of(&at_cut.dir));
    drop(at_cut);
    let refused = refused_at(&lab.installation, &mount, &late);
    assert!(refused.contains(&backup.point[..19]), "{refused}");

    let said = lab.installation.ok(&["restore", "status", "--wait", "60s"]);
    for part in ["restored in place", &backup.uid, "restore accept", "lost+found"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(lab.installation.ok(&["audit", "list"]).contains("restore epoch 1"));
    drill.says(&said);

    // The old server comes back.
    let (address, old) = (free_address().to_string(), lab.installation.path("old"));
    let arguments = ["meta", "start", "--db-folder", text(&old), "--bind-addr", &address];
    let refused = lab.installation.fails(&arguments);
    assert!(refused.contains("restore epoch 1") && refused.contains(&backup.uid), "{refused}");

    let names = lab.installation.path("names");
    let unexplained = lab.installation.ok(&["analyze", "objects", "one", "--quarantined", "--json"]);
    fs::write(&names, unexplained).unwrap();
    let refused = lab.installation.fails(&["analyze", "discard", "one", "--names", text(&names)]);
    assert!(refused.contains("nobody has accepted"), "{refused}");
    let said = lab.installation.ok(&["restore", "accept"]);
    assert!(said.contains("restore epoch 1"), "{said}");
    wait_for("the server to hear of it", || {
        fs::read_to_string(lab.installation.path("meta.log"))
            .is_ok_and(|log| log.contains("the restore is accepted"))
            .then_some(())
    });
    discarded(&lab.installation, &names);
    load.goes_on();
    let written = load.end();
    let lost = drill.account(&written, &mount.path("busy"), Some(backup.point_ns));
    assert!(!lost.is_empty(), "something was stored between the backup and the loss");
    drop(mount);
    // It starts again in its place.
    lab.installation.meta.stop();
    lab.installation.start_meta();
    lab.installation.stop_meta_and_verify();
}

/// A file that the backup holds, and that is overwritten later.
fn quiet_large(mount: &Mount) -> PathBuf {
    mount.path("overwritten")
}

/// So many bytes of a large file are written a second time, too many to travel with the metadata.
const CHANGED: usize = 200_000;
const CHANGED_AT: usize = 1_500_000;

/// Bytes that do not compress, of several blocks.
fn large(seed: u64) -> Vec<u8> {
    Rng::new(seed).bytes(9 << 20)
}

/// Files that were made after the backup come back from the objects alone.
fn salvaged(installation: &Installation, mount: &Mount, large: &[u8], drill: &Drill) {
    let found = |said: &str| -> Vec<Value> {
        let lines = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| line.get("file").cloned()).collect()
    };
    let listed = found(&installation.ok(&["analyze", "salvage", "one", "--list", "--json"]));
    let of_path = |path: Option<&str>, len: usize| {
        let is_it = |file: &&Value| file["path"].as_str() == path && file["len"].as_u64() == Some(len as u64);
        let found = listed.iter().find(is_it).unwrap_or_else(|| panic!("{path:?} of {len}: {listed:?}"));
        format!("inode-{}-{}", found["ino"], found["incarnation"])
    };
    let (lost, overwritten) = (of_path(None, large.len()), of_path(Some("/overwritten"), 1 << 20));
    let to = mount.path("lost+found/salvaged");
    let made = found(&installation.ok(&["analyze", "salvage", "one", "--to", text(&to), "--json"]));
    assert_eq!(made.len(), listed.len());
    drill
        .says(&format!("of what came after the backup {} files are salvaged from their objects", made.len()));
    let mut expected = large.to_vec();
    expected[CHANGED_AT..][..CHANGED].copy_from_slice(&large[..CHANGED]);
    assert!(fs::read(to.join(&lost)).unwrap() == expected, "{lost} is another file");
    let again = fs::read(to.join(&overwritten)).unwrap();
    assert!(again == large[..1 << 20], "what was written to /overwritten after the backup");
    let refused = installation.fails(&["analyze", "salvage", "one", "--to", text(&to)]);
    assert!(refused.contains("is not empty"), "{refused}");
    assert!(installation.ok(&["audit", "list"]).contains("salvage"));
}

/// What the lost server stored after the backup goes by decision, and nothing else.
fn discarded(installation: &Installation, names: &Path) {
    let discard = |more: &[&str]| {
        let arguments = [&["analyze", "discard", "one", "--names", text(names), "--json"], more].concat();
        run(&mut installation.command(&arguments))
    };
    let dry = wait_for("the pins to be read", || {
        let said = discard(&["--dry-run"]);
        said.status.success().then(|| serde_json::from_slice::<Value>(&said.stdout).unwrap())
    });
    let count = dry["discarded"].as_u64().unwrap();
    assert!(count > 0 && dry["objects"].as_array().unwrap().len() as u64 == count, "{dry}");
    let left = |what: &str| -> u64 {
        let listed = installation.ok(&["analyze", "objects", "one", "--json"]);
        serde_json::from_str::<Value>(&listed).unwrap()[what]["count"].as_u64().unwrap()
    };
    assert!(left("quarantined") >= count, "a dry run deletes nothing");
    assert!(discard(&[]).status.success());
    assert_eq!(left("quarantined"), 0);
    // What files need is not deleted, whoever names it.
    let known = files_under(&installation.path("blocks/objects")).pop().unwrap();
    let store = installation.path("blocks");
    fs::write(names, format!("# no name\nno-name\n{}\n", known.strip_prefix(store).unwrap().display()))
        .unwrap();
    let said = discard(&[]);
    let said = (said.status.code(), serde_json::from_slice::<Value>(&said.stdout).unwrap());
    assert_eq!((said.0, &said.1["discarded"]), (Some(1), &Value::from(0)), "{said:?}");
    assert!(said.1.to_string().contains("it is known") && known.exists(), "{said:?}");
    assert!(installation.ok(&["audit", "list"]).contains("discard"));
}

/// Mounting an instant fails; gives what is said.
fn refused_at(installation: &Installation, mount: &Mount, at: &str) -> String {
    let dir = installation.path("never");
    fs::create_dir(&dir).unwrap();
    let mut command =
        installation.command(&["mount", "start", "one", text(&dir), "--foreground", "--at-time", at]);
    let output = run(command.env("CHRONOFS_TOKEN", &mount.token));
    assert!(!output.status.success(), "{at} was mounted");
    text_of(&output)
}

#[test]
fn a_lost_admin_server_goes_on_from_the_newest_backup_and_tokens_that_were_revoked_since_open_nothing() {
    let seed = chronofs_e2e::seed("in_place admin");
    let mut lab = Lab::new();
    let mount = lab.installation.mount("one", &[]);
    let quiet = mount.path("quiet");
    change::changed_tree(&quiet, &mut Rng::new(seed)).unwrap();
    let moment = mount.instant();
    let was = of(&mount.dir);
    let ids = |installation: &Installation| -> Vec<String> {
        let all = installation.ok(&["configure", "list", "volume-token", "--json"]);
        let all: Vec<Value> = serde_json::from_str(&all).unwrap();
        all.iter().map(|token| token["id"].as_str().unwrap().to_owned()).collect()
    };
    let before = ids(&lab.installation);
    let revoked = lab.installation.create_token("one", &[]);
    let with_revoked = ids(&lab.installation);
    let revoked_id = with_revoked.iter().find(|id| !before.contains(id)).unwrap().clone();
    let load = Load::on(&mount.path("busy"));
    load.goes_on();
    let backup = lab.backup(&mount);
    // Nothing of this is in the backup.
    lab.installation.ok(&["configure", "delete", "volume-token", &revoked_id]);
    let made = lab.installation.create_token("one", &[]);
    let made_id = ids(&lab.installation).into_iter().find(|id| !with_revoked.contains(id)).unwrap();
    fs::write(mount.path("late"), "stays").unwrap();
    // The metadata server has heard of both.
    let heard = lab.installation.path("meta/assignment.json");
    wait_for("the metadata server to hear of the tokens", || {
        let kept = fs::read_to_string(&heard).ok()?;
        (kept.contains(&made_id) && !kept.contains(&revoked_id)).then_some(())
    });
    lab.installation.admin.kill();
    let drill = Drill::struck("admin server's disk lost");
    fs::remove_dir_all(lab.installation.path("admin")).unwrap();
    load.goes_on();

    let (prepared, _) = lab.prepare(&backup, &["--only".to_owned(), "admin".to_owned()]);
    lab.put(&prepared, "admin");
    lab.installation.start_admin();
    let said = wait_for("the metadata server to say what it was told", || {
        let said = lab.installation.ok(&["restore", "status", "--wait", "60s"]);
        (said.contains(&revoked_id) && said.contains(&made_id)).then_some(said)
    });
    drill.recovered("the admin server is there again, and mounts never stopped,");
    drill.says(&said);
    assert!(said.contains(&backup.uid) && said.contains("restore accept"), "{said}");
    // The backup is known, with what it needs.
    let listed = lab.installation.ok(&["backup", "list", "--json"]);
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let known = listed.iter().find(|known| known["uid"] == backup.uid.as_str()).expect("it is known");
    assert_eq!((known["state"].as_str(), known["wholeness"].as_str()), (Some("COMPLETE"), Some("WHOLE")));
    for token in [&revoked, &made] {
        let refused = cannot_mount(&lab.installation, token);
        assert!(refused.contains("token"), "{refused}");
    }
    load.goes_on();
    assert_eq!(fs::read_to_string(mount.path("late")).unwrap(), "stays");
    let written = load.end();
    assert!(drill.account(&written, &mount.path("busy"), None).is_empty());
    let past = lab.installation.mount_past(&mount, &moment);
    was.assert_same(&of(&past.dir), &format!("seed {seed}: at {moment}"));
    drop(past);
    let at_cut = lab.installation.mount_past(&mount, &backup.point);
    drill.is_whole("what the backup held", &backup.held, &of(&at_cut.dir));
    drop(at_cut);
    // Looked at: the one is revoked again, for good.
    lab.installation.ok(&["configure", "delete", "volume-token", &revoked_id]);
    let said = lab.installation.ok(&["restore", "accept"]);
    assert!(said.contains("admin server"), "{said}");
    let refused = cannot_mount(&lab.installation, &revoked);
    assert!(refused.contains("token"), "{refused}");
    drop(mount);
    lab.installation.stop_meta_and_verify();
}

/// Mounting with a token fails; gives what is said.
fn cannot_mount(installation: &Installation, token: &str) -> String {
    let dir = installation.path("refused");
    fs::create_dir_all(&dir).unwrap();
    let mut command = installation.command(&["mount", "start", "one", text(&dir), "--foreground"]);
    let output = run(command.env("CHRONOFS_TOKEN", token));
    assert!(!output.status.success(), "it was mounted");
    text_of(&output)
}

#[test]
fn after_the_loss_of_both_servers_the_cluster_goes_on_elsewhere_from_bucket_and_backup() {
    let seed = chronofs_e2e::seed("in_place all");
    let server = ObjectServer::start(Kind::Moto);
    let mut lab = Lab::in_bucket(&server);
    let mut mount = lab.installation.mount("one", &[]);
    let quiet = mount.path("quiet");
    change::changed_tree(&quiet, &mut Rng::new(seed)).unwrap();
    let moment = mount.instant();
    let was = of(&mount.dir);
    let load = Load::on(&mount.path("busy"));
    load.goes_on();
    let backup = lab.backup(&mount);
    load.goes_on();
    fs::write(mount.path("late"), "not in it").unwrap();
    let (token, of_store) =
        (mount.token.clone(), fs::read_to_string(lab.installation.path("meta/credentials")).unwrap());
    lab.installation.meta.kill();
    lab.installation.admin.kill();
    let drill = Drill::struck("both servers lost, but for the bucket and the newest backup");
    // The machine with its mounts is gone as well.
    mount.kill();
    let written = load.end();
    for lost in ["admin", "meta"] {
        fs::remove_dir_all(lab.installation.path(lost)).unwrap();
    }

    let images = lab.installation.path("images");
    let (prepared, _) = {
        // Where the servers were says the record, which comes with the images.
        let key = text(&lab.key);
        fs::create_dir(&images).unwrap();
        let to = ["backup", "restore", text(&lab.dest), "--to", text(&images), "--key-file", key];
        lab.installation.ok(&to);
        let map = mapping(&read_record(&lab.record(&backup)));
        fs::remove_dir_all(&images).unwrap();
        lab.prepare(&backup, &map)
    };
    let folders: Value = serde_json::from_str(&prepared).unwrap();
    let store = folders.as_array().unwrap().iter().find(|server| server["server"] == "store").unwrap();
    let data = Path::new(store["folder"].as_str().unwrap()).join("data");
    lab.installation.ok(&["meta", "init", "creds", "--token", of_store.trim(), "--db-folder", text(&data)]);
    let restored = Clone::start(&lab.installation, &prepared, &[]);
    let cluster = text(&restored.cluster_file).to_owned();
    let live = lab.installation.mount_with("one", &token, &["--cluster-file", &cluster]);
    let found = of(&live.dir);
    drill.recovered("files are read again");
    drill.is_whole("what the backup held", &backup.held, &found);
    let lost = drill.account(&written, &live.path("busy"), Some(backup.point_ns));
    assert!(!lost.is_empty(), "something was stored between the backup and the loss");
    let said = restored.ok(&lab.installation, &["restore", "status", "--wait", "60s"]);
    assert!(said.contains(&backup.uid) && said.contains("(admin)"), "{said}");
    let flags = ["--cluster-file", &cluster, "--at-time", &moment];
    let past = lab.installation.mount_with("one", &token, &flags);
    was.assert_same(&of(&past.dir), &format!("seed {seed}: at {moment}"));
    drop(past);
    let load = Load::on(&live.path("again"));
    load.goes_on();
    restored.ok(&lab.installation, &["restore", "accept"]);
    // It is the same cluster: it goes on among its own backups.
    let key = text(&lab.key);
    let created = ["backup", "create", text(&lab.dest), "--key-file", key];
    restored.ok(&lab.installation, &created);
    load.goes_on();
    load.end();
    drop(live);
    let Clone { mut servers, .. } = restored;
    servers.iter_mut().for_each(Process::stop);
    lab.installation.ok(&["meta", "verify", "--blocks", "--db-folder", text(&data)]);
}
