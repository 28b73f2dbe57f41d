//! What nobody can ask for any more goes, its bytes too, and nothing else does: with a real window of a minute on a real
//! mount.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use chronofs_blocks::{object_name, parse_object_name};
use chronofs_core::{ObjectId, SessionId};
use chronofs_e2e::model::now_ns;
use chronofs_e2e::object_server::request;
use chronofs_e2e::process::wait_for;
use chronofs_e2e::{Installation, Manifest, Mount, Rng, seed};
use serde_json::{Value, json};

/// Seconds.
const WINDOW: u64 = 60;
/// Seconds that the horizon and the deletes may lag behind the window.
const MARGIN: u64 = 6;
/// Seconds after which the server has given up a silent client.
const SESSION: u64 = 65;
/// Files of which each fills objects of its own, and small ones of which many share one, where they are packed.
const LARGE: u64 = 12;
const SMALL: u64 = 200;
const SECOND_NS: u64 = 1_000_000_000;

/// A moment, and what was there.
struct Moment {
    at: String,
    ns: u64,
    was: Manifest,
}

impl Moment {
    fn now(live: &Mount) -> Moment {
        let at = live.instant();
        Moment { at, ns: now_ns(), was: manifest(&live.dir) }
    }

    fn check(&self, seen: &Path, seed: u64) {
        self.was.assert_same(&manifest(seen), &format!("seed {seed}: the volume at {}", self.at));
    }
}

/// Every content that a file ever had, and from when to when. It says what bytes are needed, and knows nothing of
/// objects.
#[derive(Default)]
struct Contents {
    live: BTreeMap<String, (u64, u64)>,
    /// Since when, until when, bytes.
    past: Vec<(u64, u64, u64)>,
}

impl Contents {
    /// Writes a file anew, or removes it.
    fn set(&mut self, live: &Mount, name: &str, bytes: Option<Vec<u8>>) {
        let began_ns = now_ns();
        match &bytes {
            Some(bytes) => fs::write(live.path(name), bytes).unwrap(),
            None => drop(fs::remove_file(live.path(name))),
        }
        if let Some((since_ns, len)) = self.live.remove(name) {
            self.past.push((since_ns, now_ns(), len));
        }
        self.live.extend(bytes.map(|bytes| (name.to_owned(), (began_ns, bytes.len() as u64))));
    }

    /// Overwrites, removes and makes a few files.
    fn change(&mut self, live: &Mount, rng: &mut Rng) {
        for _ in 0..2 {
            let (name, bytes) = (format!("large{}", rng.below(LARGE)), rng.between(100_000, 700_000));
            let removed = rng.one_in(6);
            self.set(live, &name, (!removed).then(|| rng.bytes(bytes as usize)));
        }
        for _ in 0..10 {
            let (name, bytes) = (format!("small{}", rng.below(SMALL)), rng.between(1_000, 8_000));
            self.set(live, &name, Some(rng.bytes(bytes as usize)));
        }
    }

    /// Bytes that are needed by what is there now, by what was there since an instant, and by one moment.
    fn needed(&self, since_ns: u64, held: Option<&Moment>) -> u64 {
        let held_ns = held.map_or(u64::MAX, |moment| moment.ns);
        let past = self.past.iter().filter(|(from_ns, until_ns, _)| {
            *until_ns >= since_ns || (*from_ns..=*until_ns).contains(&held_ns)
        });
        past.map(|(.., len)| len).sum::<u64>() + self.live.values().map(|(_, len)| len).sum::<u64>()
    }
}

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Bytes of all objects in the block store.
fn stored(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => stored(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    each.sum()
}

fn gc(installation: &Installation, flags: &[&str]) -> Value {
    let address = installation.http_address.to_string();
    let arguments = [&["meta", "gc", "--json", "--http-addr", &address][..], flags].concat();
    serde_json::from_str(&installation.ok(&arguments)).unwrap()
}

/// Kills a client in the middle of writing, so that it leaves behind what it stored and never published. Gives all objects
/// that it stored.
fn leave_garbage(
    installation: &Installation,
    live: &Mount,
    contents: &mut Contents,
    rng: &mut Rng,
) -> Vec<PathBuf> {
    for _ in 0..10 {
        let others = put_by_clients(installation);
        let mut killed = installation.mount_with("v", &live.token, &[]);
        let (target, bytes) = (killed.path("never"), rng.bytes(12_000_000));
        let began_ns = now_ns();
        let writing = std::thread::spawn(move || drop(fs::write(target, bytes)));
        // With the first object in the store its block is not published yet, and others are on their way.
        let begun = Instant::now();
        while put_by_clients(installation) == others && begun.elapsed() < Duration::from_secs(10) {}
        killed.kill();
        writing.join().unwrap();
        let published = fs::metadata(live.path("never")).map_or(0, |found| found.len());
        if published > 0 {
            fs::remove_file(live.path("never")).unwrap();
            // The dead client has it open until the server gives that client up.
            contents.past.push((began_ns, now_ns() + SESSION * SECOND_NS, published));
        }
        let mut left = put_by_clients(installation);
        left.retain(|path| !others.contains(path));
        // What objects have beside their slices is much less.
        if bytes_of(&left) > published + 100_000 {
            return left;
        }
    }
    panic!("ten clients were killed while they wrote 12 MB, and none left anything behind")
}

fn bytes_of(paths: &[PathBuf]) -> u64 {
    paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

/// Checks every moment that stays in the window for long enough, and gives how many these were.
fn check_all(installation: &Installation, live: &Mount, moments: &[Moment], seed: u64) -> usize {
    let mut checked = 0;
    for moment in moments {
        if moment.ns + (WINDOW - MARGIN) * SECOND_NS > now_ns() {
            let mut past = installation.mount_past(live, &moment.at);
            moment.check(&past.dir, seed);
            past.unmount();
            checked += 1;
        }
    }
    checked
}

#[test]
fn the_window_stays_whole_and_what_left_it_comes_back_as_space() {
    let seed = seed("forgetting");
    let mut rng = Rng::new(seed);
    let timing = ["--slice-life", "1", "--horizon-step", "1", "--first-look", "10", "--look-every", "10"];
    let mut installation = Installation::start_with_meta_arguments(&timing);
    installation.create_volume("v", &["--retention", &format!("{WINDOW}s"), "--compression", "none"]);
    let mut live = installation.mount("v", &[]);
    let blocks = installation.path("blocks/objects");
    // Nobody can say whose this is.
    fs::create_dir_all(blocks.join("00")).unwrap();
    fs::write(blocks.join("00/letter"), "dear").unwrap();

    let mut contents = Contents::default();
    for n in 0..LARGE * 40 {
        contents.set(&live, &format!("large{}", n % LARGE), Some(rng.bytes(300_000)));
    }
    (0..SMALL).for_each(|n| contents.set(&live, &format!("small{n}"), Some(rng.bytes(4_000))));
    let first = Moment::now(&live);
    // Of it nothing is read before the window is over, so nothing is in a cache of the mount's.
    let mut leased = installation.mount_past(&live, &first.at);
    let left = leave_garbage(&installation, &live, &mut contents, &mut rng);
    let left_bytes = bytes_of(&left);
    let asked = gc(&installation, &[])["asked"].as_u64().unwrap();

    let begun = Instant::now();
    let (mut moments, mut worst, mut most) = (Vec::new(), 0.0, 0);
    let needed_now = |contents: &Contents| {
        let since_ns = now_ns() - (WINDOW + MARGIN) * SECOND_NS;
        contents.needed(since_ns, Some(&first))
    };
    // Until so much was written that the bounds would not hold if nothing had gone.
    while begun.elapsed() < Duration::from_secs(2 * WINDOW + 10)
        || 2 * needed_now(&contents) >= contents.needed(0, None)
    {
        assert!(
            begun.elapsed() < Duration::from_secs(6 * WINDOW),
            "too little is written: this shows nothing"
        );
        for _ in 0..3 {
            contents.change(&live, &mut rng);
            moments.push(Moment::now(&live));
        }
        moments.retain(|moment| moment.ns + (WINDOW - MARGIN) * SECOND_NS > now_ns());
        let moment = rng.pick(&moments);
        let mut past = installation.mount_past(&live, &moment.at);
        moment.check(&past.dir, seed);
        past.unmount();
        let (kept, needed) = (stored(&blocks), needed_now(&contents));
        assert!(kept <= 2 * needed, "seed {seed}: {kept} bytes are kept and {needed} needed");
        worst = f64::max(worst, kept as f64 / needed as f64);
        most = most.max(kept);
    }
    let all = contents.needed(0, None);
    let status = gc(&installation, &["--dry-run"]);
    let volume = &status["volumes"][0];
    assert!(volume["deleted"].as_u64().unwrap() > 0, "nothing came back by itself: {status}");
    let (sure_ns, of_live) = (now_ns() - (WINDOW - MARGIN) * SECOND_NS, contents.needed(u64::MAX, None));
    let sure = contents.needed(sure_ns, None) - of_live;
    assert!(volume["past"]["bytes"].as_u64() >= Some(sure), "{sure} bytes of the past are needed: {status}");
    // What was killed has no row. It is found by the looks through the store, which come without being asked for.
    wait_for_long("what a killed client left to go by itself", Duration::from_secs(60), || {
        left.iter().all(|path| !path.exists()).then_some(())
    });
    assert_eq!(status["asked"], asked, "somebody asked for it");
    assert!(status["looks"].as_u64() > Some(asked + 5), "{status}");
    // Only the lease holds it, for longer than the window.
    first.check(&leased.dir, seed);
    let checked = check_all(&installation, &live, &moments, seed);
    println!("{checked} of {} moments were still in the window, and exact", moments.len());
    assert!(checked > 5, "the machine is too slow to look at the window");

    let (kept, needed) = comes_down_to_5_percent(&installation, &contents, Some(&first));
    println!(
        "{all} bytes written, {left_bytes} by killed clients; at most {most} kept, {worst:.2} of what was needed;"
    );
    println!("after gc --full {kept} for {needed}");
    first.check(&leased.dir, seed);
    leased.unmount();
    comes_down_to_5_percent(&installation, &contents, None);
    let status = gc(&installation, &["--full"]);
    let found = &status["stores"][0];
    assert_eq!((&found["quarantined"]["count"], &found["open"]["count"]), (&json!(1), &json!(0)), "{status}");
    assert_eq!(found["garbage"]["count"], 0, "{status}");
    assert!(blocks.join("00/letter").exists(), "what nothing explains is left alone");
    let place = installation.path("mnt1");
    let refused =
        ["mount", "start", "v", place.to_str().unwrap(), "--token", &live.token, "--at-time", &first.at];
    assert!(installation.fails(&refused).contains("cannot be had"), "it left the window long ago");
    let last = Moment::now(&live);
    live.unmount();
    let mut again = installation.mount("v", &[]);
    last.check(&again.dir, seed);
    again.unmount();
    installation.stop_meta_and_verify();
}

/// Waits until the store holds what is there now, what was there within the window, and `held`, and hardly more; gives
/// the bytes that are kept and those that are needed.
fn comes_down_to_5_percent(
    installation: &Installation,
    contents: &Contents,
    held: Option<&Moment>,
) -> (u64, u64) {
    let blocks = installation.path("blocks/objects");
    // The killed session ends after a minute of silence; then what it stored is known garbage.
    wait_for_long("space to come back", Duration::from_secs(100), || {
        gc(installation, &["--full"]);
        let since_ns = now_ns() - (WINDOW + MARGIN) * SECOND_NS;
        let (kept, needed) = (stored(&blocks), contents.needed(since_ns, held));
        println!("{kept} bytes are kept, {needed} needed");
        (kept * 100 <= needed * 105).then_some((kept, needed))
    })
}

fn wait_for_long<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < limit, "{what} took longer than {limit:?}");
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Paths of all objects below `path`.
fn objects(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        match entry.metadata().unwrap().is_dir() {
            true => objects(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

/// Paths of all objects in the block store that clients put there, and not the server.
fn put_by_clients(installation: &Installation) -> Vec<PathBuf> {
    let (blocks, mut found) = (installation.path("blocks"), Vec::new());
    objects(&blocks.join("objects"), &mut found);
    found.retain(|path| {
        let name = parse_object_name(path.strip_prefix(&blocks).unwrap().to_str().unwrap());
        name.is_some_and(|(_, id)| id.session != SessionId::SERVER)
    });
    found.sort();
    found
}

#[test]
fn what_the_past_costs_is_what_only_the_past_needs() {
    let timing = ["--slice-life", "1", "--horizon-step", "1", "--pack-after", "3600"];
    let mut installation = Installation::start_with_meta_arguments(&timing);
    installation.create_volume("v", &["--retention", "1h", "--compression", "none"]);
    let mut live = installation.mount("v", &[]);
    let (mut rng, mut contents) = (Rng::new(seed("past")), Contents::default());
    for _ in 0..3 {
        (0..4).for_each(|n| contents.set(&live, &format!("large{n}"), Some(rng.bytes(300_000))));
        (0..20).for_each(|n| contents.set(&live, &format!("small{n}"), Some(rng.bytes(4_000))));
    }
    contents.set(&live, "large0", None);
    live.instant();
    assert!(gc(&installation, &[])["volumes"][0]["past"].is_null(), "it is not known before it was counted");
    let (all, of_live) = (contents.needed(0, None), contents.needed(u64::MAX, None));
    let volume = gc(&installation, &["--dry-run"])["volumes"][0].clone();
    assert_eq!((&volume["held"]["count"], &volume["held"]["bytes"]), (&json!(72), &json!(all)), "{volume}");
    assert_eq!(volume["live_bytes"], of_live, "{volume}");
    assert_eq!(volume["past"]["bytes"], all - of_live, "{volume}");
    // From then on it is shown as it was then.
    assert_eq!(gc(&installation, &[])["volumes"][0]["past"], volume["past"]);
    let address = installation.http_address;
    let table = installation.ok(&["meta", "gc", "--http-addr", &address.to_string()]);
    assert!(table.contains("HELD") && table.contains("PAST") && !table.contains("OBJECTS"), "{table}");
    let metric = format!("chronofs_meta_past_bytes{{volume=\"v\"}} {}\n", all - of_live);
    let metrics = request(address, "GET", "/metrics", &[]).1;
    assert!(metrics.contains(&metric), "{metrics}");
    installation.ok(&["configure", "update", "volume", "v", "--retention", "0", "--grace", "0"]);
    wait_for_long("the past to cost nothing", Duration::from_secs(30), || {
        let volume = gc(&installation, &["--dry-run"])["volumes"][0].clone();
        (volume["past"]["bytes"] == 0 && volume["held"]["bytes"] == of_live).then_some(())
    });
    live.unmount();
    installation.stop_meta_and_verify();
}

#[test]
fn what_the_brake_holds_comes_back_when_it_is_released() {
    // It is for 10,000 objects and small slices at least.
    const FILES: u64 = 10_200;
    let timing = ["--slice-life", "20", "--horizon-step", "1", "--pack-after", "1"];
    let mut installation = Installation::start_with_meta_arguments(&timing);
    installation.create_volume("v", &["--retention", "1h", "--compression", "none"]);
    let mut live = installation.mount("v", &[]);
    let (mut rng, blocks) = (Rng::new(seed("brake")), installation.path("blocks/objects"));
    let kept = rng.bytes(300_000);
    fs::write(live.path("kept"), &kept).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (folder, mut rng) = (live.path(&format!("d{thread}")), rng.split(&thread.to_string()));
            scope.spawn(move || {
                fs::create_dir(&folder).unwrap();
                (0..FILES / 4).for_each(|n| fs::write(folder.join(n.to_string()), rng.bytes(700)).unwrap());
            });
        }
    });
    live.instant();
    let status = || gc(&installation, &[])["volumes"][0].clone();
    wait_for_long("the small files to be packed", Duration::from_secs(60), || {
        (status()["to_pack"]["count"] == 0).then_some(())
    });
    assert!(stored(&blocks) > FILES * 700);
    (0..4).for_each(|thread| fs::remove_dir_all(live.path(&format!("d{thread}"))).unwrap());
    installation.ok(&["configure", "update", "volume", "v", "--retention", "0", "--grace", "0"]);

    let braked = |volume: &Value| volume["braked"] == true;
    wait_for_long("the brake", Duration::from_secs(90), || braked(&status()).then_some(()));
    let address = installation.http_address;
    let told = installation.ok_with_stderr(&["meta", "gc", "--http-addr", &address.to_string()]);
    assert!(told.contains("chronofs meta gc --release-brake"), "{told}");
    let stopped = |count: u32| {
        let metrics = request(address, "GET", "/metrics", &[]).1;
        assert!(metrics.contains(&format!("chronofs_meta_collection_stopped {count}\n")), "{metrics}");
    };
    stopped(1);
    // A look through the store is no such word.
    gc(&installation, &["--full"]);
    std::thread::sleep(Duration::from_secs(3));
    assert!(braked(&status()) && stored(&blocks) > FILES * 700, "{}", status());

    gc(&installation, &["--release-brake"]);
    wait_for_long("the space to come back", Duration::from_secs(120), || {
        (stored(&blocks) < 400_000).then_some(())
    });
    assert!(!braked(&status()), "{}", status());
    stopped(0);
    assert!(fs::read(live.path("kept")).unwrap() == kept);
    live.unmount();
    installation.stop_meta_and_verify();
}

#[test]
fn while_a_store_has_objects_of_a_newer_copy_of_the_metadata_nothing_that_was_found_there_goes() {
    let mut installation =
        Installation::start_with_meta_arguments(&["--slice-life", "1", "--horizon-step", "1"]);
    installation.create_volume("v", &[]);
    let mut live = installation.mount("v", &[]);
    fs::write(live.path("file"), Rng::new(1).bytes(300_000)).unwrap();
    live.instant();
    live.unmount();
    let blocks = installation.path("blocks");
    let mut found = Vec::new();
    objects(&blocks.join("objects"), &mut found);
    let named: Vec<_> = found
        .iter()
        .filter_map(|path| parse_object_name(path.strip_prefix(&blocks).unwrap().to_str().unwrap()))
        .collect();
    let &[(volume, object)] = &named[..] else { panic!("{found:?}") };
    let plant = |id| {
        let path = blocks.join(object_name(volume, id));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "bytes").unwrap();
        path
    };
    // The session of the mount was granted this name, is over, and has published nothing under it. That looks like
    // garbage also to metadata that was put back from before it did.
    let garbage = plant(ObjectId { n: object.n + 5000, ..object });
    let newer = plant(ObjectId { session: SessionId(object.session.0 + 5000), ..object });
    let judged = wait_for_long("the garbage to be known as such", Duration::from_secs(30), || {
        let store = gc(&installation, &["--full"])["stores"][0].clone();
        (store["garbage"]["count"] == 1).then_some(store)
    });
    assert_eq!(judged["unexplained"], 1, "{judged}");
    for _ in 0..3 {
        gc(&installation, &["--full"]);
        std::thread::sleep(Duration::from_millis(500));
        assert!(garbage.exists() && newer.exists());
    }
    fs::remove_file(newer).unwrap();
    wait_for_long("the garbage to go", Duration::from_secs(30), || {
        gc(&installation, &["--full"]);
        (!garbage.exists()).then_some(())
    });
    assert!(found[0].exists());
    installation.stop_meta_and_verify();
}

#[test]
fn a_store_that_is_away_loses_nothing_and_collection_goes_on_when_it_is_back() {
    let mut installation =
        Installation::start_with_meta_arguments(&["--slice-life", "1", "--horizon-step", "1"]);
    installation.create_volume("v", &["--retention", "0", "--compression", "none"]);
    let mut live = installation.mount("v", &[]);
    let mut rng = Rng::new(seed("store away"));
    fs::write(live.path("kept"), rng.bytes(400_000)).unwrap();
    fs::write(live.path("gone"), rng.bytes(400_000)).unwrap();
    live.instant();
    let (blocks, away) = (installation.path("blocks"), installation.path("away"));
    fs::rename(&blocks, &away).unwrap();
    fs::create_dir(&blocks).unwrap();
    fs::remove_file(live.path("gone")).unwrap();
    // It says so whatever finds it out: the pins that are read first, or the deletes.
    let why = |status: &Value| {
        let told = ["waits", "problem"].map(|field| status["volumes"][0][field].as_str().unwrap_or_default());
        told.concat()
    };
    let problem = wait_for("the collection to fail", || {
        Some(why(&gc(&installation, &[]))).filter(|why| why.contains("store's folder"))
    });
    assert!(problem.contains("not the store's folder any more"), "{problem}");
    // Whoever looks through the store reads the pins there, and while they cannot be read nothing goes.
    let status = gc(&installation, &["--full"]);
    assert!(status["volumes"][0]["waits"].as_str().unwrap().contains("not the store's folder"), "{status}");
    assert!(status["stores"][0]["error"].is_string(), "{status}");
    // For longer than it takes to give up for a moment only.
    std::thread::sleep(Duration::from_secs(10));
    assert!(stored(&away) > 800_000);
    fs::remove_dir(&blocks).unwrap();
    fs::rename(&away, &blocks).unwrap();
    let back = Instant::now();
    // Nobody asks for it.
    wait_for("the space to come back", || (stored(&blocks) < 500_000).then_some(()));
    println!("it went on {:?} after the store was back", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(40), "{:?}", back.elapsed());
    let status = gc(&installation, &["--full"]);
    assert_eq!(status["stores"][0]["found"]["count"], 1, "{status}");
    assert_eq!(why(&status), "", "{status}");
    assert_eq!(fs::read(live.path("kept")).unwrap().len(), 400_000);
    live.unmount();
    installation.stop_meta_and_verify();
}

/// Retention and earliest instant, as each of these mounts and the volume show them.
fn windows(installation: &Installation, mounts: &[&Mount]) -> Vec<(String, String)> {
    let shown = |window: &Value| {
        let text = |field: &str| window[field].as_str().unwrap_or_default().to_owned();
        (text("retention"), text("earliest"))
    };
    let list: Value = serde_json::from_str(&installation.ok(&["mount", "list", "--json"])).unwrap();
    let of = |mount: &&Mount| {
        let listed =
            list.as_array().unwrap().iter().find(|listed| listed["dir"] == mount.dir.to_str().unwrap());
        shown(&listed.unwrap_or_else(|| panic!("{list}"))["status"])
    };
    let mut windows: Vec<_> = mounts.iter().map(of).collect();
    let volume = installation.ok(&["configure", "show", "volume", "v", "--json"]);
    windows.push(shown(&serde_json::from_str(&volume).unwrap()));
    windows
}

#[test]
fn mounts_and_the_volume_show_the_window_and_how_far_back_it_goes_also_when_it_is_changed() {
    let installation = Installation::start();
    installation.create_volume("v", &["--retention", "1h"]);
    let mut live = installation.mount("v", &[]);
    fs::write(live.path("file"), "then").unwrap();
    let at = live.instant();
    let mut past = installation.mount_past(&live, &at);
    let agree = |retention: &str, whether: &dyn Fn(&[String]) -> bool| {
        let begun = Instant::now();
        let earliest = wait_for(&format!("all to show {retention}"), || {
            let (shown, earliest): (Vec<_>, Vec<_>) =
                windows(&installation, &[&live, &past]).into_iter().unzip();
            let right = shown.iter().all(|shown| shown == retention) && whether(&earliest);
            right.then(|| earliest[0].clone())
        });
        assert!(begun.elapsed() < Duration::from_secs(10), "after {:?}", begun.elapsed());
        earliest
    };
    let same = |earliest: &[String]| earliest.iter().all(|each| *each == earliest[0]);
    // Instants are ordered as their texts are.
    let later = |earliest: &[String]| earliest.iter().all(|each| *each > at);
    let born = agree("1h", &|earliest| same(earliest) && !earliest[0].is_empty());
    assert!(born < at);
    let update = |retention: &str| {
        installation.ok(&["configure", "update", "volume", "v", "--retention", retention, "--grace", "0"]);
    };
    std::thread::sleep(Duration::from_secs(2));
    update("1s");
    agree("1s", &later);
    update("7d");
    // What left the window stays out of reach.
    let kept = agree("7d", &|earliest| same(earliest) && later(earliest));
    let table = installation.ok(&["mount", "list"]);
    let line = table.lines().find(|line| line.contains(past.dir.to_str().unwrap())).unwrap();
    assert!(table.contains("EARLIEST INSTANT") && line.contains("7d") && line.contains(&kept), "{table}");
    // It is the truth.
    installation.mount_past(&live, &kept).unmount();
    assert_eq!(fs::read_to_string(past.path("file")).unwrap(), "then", "a mounted past stays");
    past.unmount();
    live.unmount();
}

#[test]
fn who_released_the_brake_is_in_the_audit_log_and_nobody_can_do_it_elsewhere() {
    let installation = Installation::start();
    let address = installation.http_address;
    // Without a word of an account nothing is released.
    let asked = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "content-type: application/json"])
        .args(["-d", r#"{"full":false,"release_brake":true}"#, &format!("http://{address}/gc")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "422");
    let said = installation.ok(&["meta", "gc", "--release-brake"]);
    assert!(said.contains("metadata store 'store' lets go"), "{said}");
    let refused = installation.fails(&["meta", "gc", "--release-brake", "--metadata-store", "other"]);
    assert!(refused.contains("other"), "{refused}");
    let all: Value = serde_json::from_str(&installation.ok(&["audit", "list", "--json"])).unwrap();
    let released: Vec<&Value> = all
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["action"] == "POST /v1/metadata-stores/{name}/release-brake")
        .collect();
    assert_eq!(released.len(), 2, "{all}");
    assert_eq!((&released[0]["who"], &released[0]["outcome"]), (&json!("account root"), &json!("not_found")));
    let (object, outcome) = (&released[1]["object"], &released[1]["outcome"]);
    assert_eq!((object, outcome), (&json!("brake of metadata-store store"), &json!("done")));
}
