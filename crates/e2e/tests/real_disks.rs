//! A snapshot of real disks: three metadata servers, each on a machine with a disk of its own, which are imaged as a
//! subvolume of btrfs, by shared blocks of xfs, and as a whole disk while its file system is frozen; ten volumes under load.
//! What is restored elsewhere is the source at the cut, file for file, and at instants before it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chronofs_core::Version;
use chronofs_e2e::disk::{Disk, done};
use chronofs_e2e::installation::token_in;
use chronofs_e2e::model::{Writer, now_ns};
use chronofs_e2e::network::{Hosts, Network, is_inside};
use chronofs_e2e::process::{Process, chronofs_binary, http_get, text, wait_for};
use chronofs_e2e::snapshot::{Programs, uid_in};
use chronofs_e2e::{Installation, Manifest, Mount, Rng, seed, tree};
use serde_json::Value;

const VOLUMES: usize = 10;
const STORES: [&str; 3] = ["store", "two", "three"];
/// Further machines than the first have these names.
const MACHINES: [&str; 3] = ["m0", "m1", "m2"];

/// The snapshot's program: on each machine its own way.
const PROGRAM: &str = r#"#!/bin/sh
export CHRONOFS_CONFIG_DIR=HERE/conf
snap() { exec CHRONOFS snap-create "$@"; }
case $CHRONOFS_SNAPSHOT_ADDRESS in
    10.77.0.11:*) snap --method btrfs --destdir DISKS/m0/backup "$@" ;;
    10.77.0.12:*) snap --method reflink --destdir DISKS/m1/backup "$@" ;;
    10.77.0.13:*) snap --method command --command freeze --destdir DISKS/elsewhere "$@" ;;
    *) snap --method copy --destdir DISKS/elsewhere "$@" ;;
esac
"#;

/// As for a disk of a cloud: the file system stands still while the disk under it is imaged. Two roles of a server come at
/// the same time, and nothing may be written to the frozen disk meanwhile.
const FREEZE: &str = r#"#!/bin/sh
set -e
[ "$CHRONOFS_SNAPSHOT_ACTION" = create ] || exit 0
while [ "$1" != --path ]; do shift; done
mount=$(stat -c %m "$2")
exec 9> DISKS/freezing
flock 9
trap 'fsfreeze --unfreeze "$mount"' EXIT
trap 'exit 1' INT TERM
fsfreeze --freeze "$mount"
cp --sparse=always "$mount.disk" "$CHRONOFS_SNAPSHOT_IMAGE/disk"
"#;

fn source_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 11 + n as u8)
}

fn clone_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 21 + n as u8)
}

const ADMIN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const ADMIN_OF_CLONE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|error| panic!("{error}"))
}

fn shown(version: u64) -> String {
    Version(version).to_string()
}

fn wait_until_ready(process: &mut Process, http: SocketAddr) {
    wait_for("a metadata server to be ready", || {
        process.assert_running();
        http_get(http, "/readyz").ok().filter(|(status, _)| *status == 200)
    });
}

/// The machines with their disks, and the servers on them.
struct World {
    installation: Installation,
    _more: Vec<Process>,
    _programs: Programs,
    program: PathBuf,
    disks: Vec<Disk>,
    /// What lies on no machine's own disk, and where all disks are mounted.
    folder: tempfile::TempDir,
}

impl World {
    fn start() -> World {
        let network = Network::new(&[ADMIN, ADMIN_OF_CLONE]);
        for (n, name) in MACHINES.iter().enumerate() {
            network.add(name, &[source_address(n), clone_address(n)]);
        }
        let folder = tempfile::Builder::new().prefix("chronofs-disks-").tempdir().unwrap();
        let xfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
        let makers: [&[&str]; 3] = [&["mkfs.btrfs", "-q"], &xfs, &xfs];
        let disks: Vec<Disk> =
            MACHINES.iter().zip(makers).map(|(name, mkfs)| Disk::new(folder.path(), name, mkfs)).collect();
        done(
            std::process::Command::new("btrfs")
                .args(["subvolume", "create"])
                .arg(disks[0].mount.join("data")),
        );
        let programs = Programs::new();
        let here = programs.add("of-the-test", "").parent().unwrap().to_owned();
        let filled = |script: &str| {
            let script = script.replace("HERE", text(&here)).replace("DISKS", text(folder.path()));
            script.replace("CHRONOFS ", &format!("'{}' ", chronofs_binary().display()))
        };
        let program = programs.add("snap.sh", &filled(PROGRAM));
        fs::create_dir_all(here.join("conf/snap-create.d")).unwrap();
        programs.add("conf/snap-create.d/freeze", &filled(FREEZE));
        let hosts =
            Hosts { admin: ADMIN.into(), meta: source_address(0).into(), machine: MACHINES[0].to_owned() };
        let installation = Installation::start_on(&hosts, &disks[0].mount.join("data/meta"), &program);
        let more = [1, 2].map(|n| add_store(&installation, n, &disks[n].mount.join("meta"), &program));
        World { installation, _more: more.into(), _programs: programs, program, disks, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The places of the set's images, each as its machine's way left it, once the disk that was imaged is attached.
    fn places(&self, uid: &str) -> (Vec<PathBuf>, Vec<Disk>) {
        let mut places: Vec<PathBuf> = [0, 1].map(|n| self.disks[n].mount.join("backup").join(uid)).into();
        let elsewhere = self.path("elsewhere").join(uid);
        places.push(elsewhere.join(format!("{ADMIN}:8443")));
        let attached = ["storage", "tlog"].map(|role| {
            let image = elsewhere.join(format!("{}:8444", source_address(2))).join(role).join("disk");
            // It has the name of the disk that it is a copy of, and what its log holds is brought in at the mount.
            Disk::mount(image, self.path(&format!("copy of {role}")), "nouuid")
        });
        places.extend(attached.iter().map(|disk| disk.mount.clone()));
        (places, attached.into())
    }
}

/// A further metadata store on machine `n`.
fn add_store(installation: &Installation, n: usize, folder: &Path, program: &Path) -> Process {
    let token = token_in(&installation.ok(&["configure", "create", "metadata-store", STORES[n]]));
    installation.ok(&["meta", "init", "creds", "--token", &token, "--db-folder", text(folder)]);
    let (address, http) =
        (format!("{}:8444", source_address(n)), SocketAddr::from((source_address(n), 8445)));
    let shown = http.to_string();
    let mut arguments = vec!["meta", "start", "--db-folder", text(folder), "--bind-addr", &address];
    arguments.extend(["--advertise", &address, "--http-addr", &shown, "--whitelist-binpath", text(program)]);
    let log = installation.path(&format!("{}.log", STORES[n]));
    let mut process = Process::new(STORES[n], &arguments, &[], &log).on(MACHINES[n]);
    process.start();
    wait_until_ready(&mut process, http);
    process
}

/// A volume with a writer of its own, and what is known of it.
struct Volume {
    name: String,
    store: &'static str,
    live: Mount,
    writer: Writer,
    /// An instant before the load, and how it looked then.
    early: (String, Manifest),
}

fn volumes(installation: &Installation, rng: &Rng) -> Vec<Volume> {
    let make = |n: usize| {
        let (name, store) = (format!("v{n}"), STORES[n % 3]);
        let place = ["--block-store", "blocks", "--metadata-store", store];
        installation.ok(&[&["configure", "create", "volume", &name][..], &place].concat());
        let live = installation.mount(&name, &[]);
        if n < 3 {
            fs::create_dir(live.path("tree")).unwrap();
            tree::generate(&live.path("tree"), 120, &mut rng.split(&format!("tree {n}"))).unwrap();
        }
        let writer = Writer::new(&live.path("w"), rng.split(&name)).unwrap();
        let early = (live.instant(), manifest(&live.dir));
        Volume { name, store, live, writer, early }
    };
    (0..VOLUMES).map(make).collect()
}

/// Servers on the folders that `restore prepare` made, each on the machine of its address.
fn start_clone(installation: &Installation, prepared: &str) -> (Vec<Process>, String) {
    let prepared: Value = serde_json::from_str(prepared).unwrap();
    let (mut servers, mut cluster_file) = (Vec::new(), String::new());
    for server in prepared.as_array().unwrap() {
        let (name, line) = (server["server"].as_str().unwrap(), server["start"].as_str().unwrap());
        let mut arguments: Vec<&str> = line.split(' ').skip(1).collect();
        let log = installation.path(&format!("clone-{name}.log"));
        let Some(n) = STORES.iter().position(|store| *store == name) else {
            cluster_file = format!("{}/data/chronofs.cluster", server["folder"].as_str().unwrap());
            let mut process = Process::new(name, &arguments, &[], &log);
            process.start();
            wait_for("the admin server of the clone", || {
                process.assert_running();
                std::net::TcpStream::connect((ADMIN_OF_CLONE, 8443)).ok()
            });
            servers.push(process);
            continue;
        };
        let http = SocketAddr::from((clone_address(n), 8445));
        let shown = http.to_string();
        arguments.extend(["--http-addr", &shown]);
        let mut process = Process::new(&format!("clone {name}"), &arguments, &[], &log).on(MACHINES[n]);
        process.start();
        wait_until_ready(&mut process, http);
        assert!(process.log().contains("as of its cut"), "{}", process.log());
        servers.push(process);
    }
    (servers, cluster_file)
}

/// Takes a snapshot while all writers write, from well before it until well after it.
fn snapshot_under_load(world: &World, volumes: &mut [Volume]) -> String {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for Volume { writer, .. } in volumes {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    writer.step().unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        let said = world.installation.command(&["snapshot", "create", "--", text(&world.program)]).output();
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        let said = said.unwrap();
        assert!(said.status.success(), "{}", chronofs_e2e::process::text_of(&said));
        uid_in(&String::from_utf8(said.stdout).unwrap())
    })
}

#[test]
fn what_is_restored_from_three_kinds_of_disks_is_the_source_at_the_cut() {
    if !is_inside("what_is_restored_from_three_kinds_of_disks_is_the_source_at_the_cut") {
        return;
    }
    let rng = Rng::new(seed("real_disks"));
    let world = World::start();
    let source = &world.installation;
    let mut volumes = volumes(source, &rng);
    let began_ns = now_ns();
    let uid = snapshot_under_load(&world, &mut volumes);

    let record = world.path("record.json");
    source.ok(&["snapshot", "describe", &uid, "--record", text(&record)]);
    let sealed = fs::read_to_string(&record).unwrap();
    let parsed: Value = serde_json::from_str(sealed.lines().next().unwrap()).unwrap();
    let parsed = &parsed["record"];
    let nodes = parsed["intent"]["nodes"].as_array().unwrap();
    let cuts: BTreeMap<&str, u64> = nodes
        .iter()
        .filter_map(|node| {
            Some((node["name"].as_str()?, parsed["cuts"][node["id"].as_str()?]["cut"].as_u64()?))
        })
        .collect();
    assert_eq!(cuts.keys().copied().collect::<Vec<_>>(), ["store", "three", "two"]);

    let (places, _attached) = world.places(&uid);
    let out = world.path("restored");
    let mut map = vec!["--map".to_owned(), format!("admin={ADMIN_OF_CLONE}:8443")];
    for (n, name) in STORES.iter().enumerate() {
        map.extend(["--map".to_owned(), format!("{name}={}:8444", clone_address(n))]);
    }
    let with = |words: &[&str]| -> String {
        let mut arguments: Vec<&str> = words.to_vec();
        arguments.extend(places.iter().map(|place| text(place)));
        arguments.extend(["--record", text(&record)]);
        if words[0] == "restore" {
            arguments.extend(map.iter().map(String::as_str));
        }
        source.ok(&arguments)
    };
    let said = with(&["snapshot", "verify"]);
    assert!(said.contains("is whole: 7 images of 4 servers"), "{said}");
    let said = with(&["restore", "plan"]);
    assert!(said.contains("subvolume/") && said.contains("copy of "), "{said}");
    let made = with(&["restore", "prepare", "--json", "--out", text(&out)]);
    let (_servers, cluster) = start_clone(source, &made);
    source.ok(&["restore", "status", "--wait", "60s", "--cluster-file", &cluster]);

    let look = |mut mount: Mount| {
        let seen = manifest(&mount.dir);
        mount.unmount();
        fs::remove_dir(&mount.dir).unwrap();
        seen
    };
    for volume in &volumes {
        let Volume { name, store, live, writer, early } = volume;
        let cut = cuts[store];
        let acted = writer.done();
        assert!(
            acted[0].started_ns < cut && cut < acted[acted.len() - 1].ended_ns,
            "{name} was not under load"
        );
        let in_clone = |more: &[&str]| {
            look(source.mount_with(name, &live.token, &[&["--cluster-file", &cluster][..], more].concat()))
        };
        let then = look(source.mount_past(live, &shown(cut)));
        let restored = in_clone(&[]);
        then.assert_same(&restored, &format!("{name} at the cut, of the source and restored"));
        // So says also who wrote.
        let own = |whole: &Manifest| {
            let below = whole.0.iter().filter_map(|(path, entry)| {
                let path = if path == b"w" { b"" } else { path.strip_prefix(b"w/")? };
                let same = entry.same_as.strip_prefix(b"w/").unwrap_or_default().to_vec();
                Some((path.to_vec(), chronofs_e2e::manifest::Entry { same_as: same, ..entry.clone() }))
            });
            Manifest(below.collect())
        };
        let possible = writer.possible_at(cut);
        if !possible.contains(&own(&restored)) {
            possible[0].assert_same(&own(&restored), &format!("{name} at the cut, by its writer's record"));
        }
        let between = shown(began_ns.midpoint(cut));
        look(source.mount_past(live, &between)).assert_same(
            &in_clone(&["--at-time", &between]),
            &format!("{name} at {between}, during the load"),
        );
        early.1.assert_same(&in_clone(&["--at-time", &early.0]), &format!("{name} at {}", early.0));
    }
    // Both go on, each for itself.
    let live = &volumes[0].live;
    let clone = source.mount_with("v0", &live.token, &["--cluster-file", &cluster]);
    fs::write(clone.path("of the clone"), "new").unwrap();
    fs::write(live.path("of the source"), "new").unwrap();
    assert!(!live.path("of the clone").exists() && !clone.path("of the source").exists());
}
