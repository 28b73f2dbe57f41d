//! A log that is lost is recovered from its copies, or it is said why it cannot be.

use super::*;

#[test]
fn what_was_durable_survives_the_loss_of_the_disk() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..100);
    lose(engine);
    let again = lab.recover("new").unwrap();
    assert_eq!(held(&again), 100);
    // And the new one is copied in its turn.
    write(&again, 100..150);
    drop(again);
    let third = lab.recover("newer").unwrap();
    assert_eq!(held(&third), 150);
}

#[test]
fn recovery_needs_more_copies_than_may_lack_what_is_durable() {
    let lab = Lab::new(&["a", "b", "c"], 1);
    let engine = lab.open("meta");
    wait_until("all count", || lab.whole());
    write(&engine, 0..50);
    lose(engine);
    for lost in ["b", "c"] {
        lab.take_away(lost);
    }
    let error = lab.recover("new").err().unwrap().to_string();
    assert!(error.contains("1 of the 3 log copies") && error.contains("2 are needed"), "{error}");
    lab.bring_back("b");
    assert_eq!(held(&lab.recover("new").unwrap()), 50);
}

#[test]
fn a_folder_that_is_older_than_the_copies_is_refused_until_it_is_recovered() {
    let lab = Lab::new(&["a"], 0);
    let engine = lab.open("meta");
    wait_until("it counts", || lab.whole());
    write(&engine, 0..20);
    drop(engine);
    for to in ["old", "old too"] {
        let mut copy = std::process::Command::new("cp");
        let copied = copy.arg("-a").arg(lab.path("meta")).arg(lab.path(to)).status();
        assert!(copied.unwrap().success());
    }
    let engine = lab.open("meta");
    write(&engine, 20..60);
    lose(engine);
    let error = lab.open_with("old", lab.setup()).err().unwrap().to_string();
    assert!(error.contains("--recover-log"), "{error}");
    assert_eq!(held(&lab.recover("old too").unwrap()), 60);
}

#[test]
fn a_copy_that_a_crash_tore_goes_on_and_one_that_is_damaged_is_not_recovered_from() {
    let lab = Lab::new(&["a"], 0);
    let engine = lab.open("meta");
    wait_until("it counts", || lab.whole());
    write(&engine, 0..50);
    drop(engine);
    let path = newest_segment(&lab.path("a"));
    let whole = std::fs::read(&path).unwrap();
    let name = lab.path("a").to_str().unwrap().to_owned();
    let mut torn = whole.clone();
    torn.extend_from_slice(&whole[..200]);
    std::fs::write(&path, &torn).unwrap();
    let mut copy = FolderCopy::new(Path::new(&name), STORE).unwrap();
    assert_eq!(copy.seal(100).unwrap().end().offset, whole.len() as u64);
    assert_eq!(std::fs::read(&path).unwrap(), whole, "what was torn is gone");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let error = copy.seal(101).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), damaged, "it is left as it is");
    // The owner has all of it.
    lab.recorded.lock().unwrap().epoch = 200;
    let engine = lab.open("meta");
    wait_until("it counts again", || lab.whole());
    write(&engine, 50..60);
    drop(engine);
    assert_eq!(held(&lab.recover("new").unwrap()), 60);
}

#[test]
fn a_folder_that_was_never_whole_is_no_copy() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..20);
    lose(engine);
    // Neither disk is mounted: the folders are made anew where the disks should be.
    for name in ["a", "b"] {
        std::fs::remove_dir_all(lab.path(name)).unwrap();
    }
    let error = lab.recover("new").err().unwrap().to_string();
    assert!(error.contains("0 of the 2 log copies"), "{error}");
}

#[test]
fn what_one_copy_lacks_is_recovered_from_the_other() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..200);
    lose(engine);
    let segment = |copy: &str, number: u64| lab.path(copy).join(format!("log/{number:020}.log"));
    let cut = |path: PathBuf| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    cut(segment("b", 2));
    cut(segment("a", 4));
    std::fs::remove_file(segment("b", 5)).unwrap();
    assert_eq!(held(&lab.recover("new").unwrap()), 200);
    // What no copy has is said before anything is written.
    for copy in ["a", "b"] {
        cut(segment(copy, 3));
    }
    let setup = lab.setup();
    let folder = lab.path("newer");
    std::fs::create_dir(&folder).unwrap();
    let refused = recover::recover(&folder, setup.epoch, &setup.recorded, &setup.connect).unwrap_err();
    assert!(refused.to_string().contains("segment 3 ends at offset"), "{refused}");
    assert_eq!(segments(&folder), Vec::<PathBuf>::new());
}

#[test]
fn a_start_that_reaches_no_copy_leaves_none_out_until_somebody_says_so() {
    let mut lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..20);
    drop(engine);
    for name in ["a", "b"] {
        lab.take_away(name);
    }
    let setup = lab.setup();
    let opened = std::thread::scope(|threads| {
        let opening = threads.spawn(|| lab.open_with("meta", setup).map(|engine| held(&engine)));
        std::thread::sleep(Duration::from_secs(4));
        assert!(!opening.is_finished() && lab.whole(), "nobody knows whether this log is the newest");
        // One is enough to say that it is.
        lab.bring_back("b");
        opening.join().unwrap().unwrap()
    });
    assert!(opened == 20 && !lab.whole());
    // Without any, it is for the operator to say.
    std::fs::remove_dir_all(lab.path("b")).unwrap();
    std::fs::write(lab.path("b"), "no folder").unwrap();
    lab.wanted = Quorum::default();
    assert_eq!(held(&lab.open("meta")), 20);
}

/// Links that hang when they are sealed, as a disk does that is gone.
struct Hangs;

impl Link for Hangs {
    fn seal(&mut self, _: u64) -> Result<Holding, CopyError> {
        loop {
            std::thread::park();
        }
    }

    fn open(&mut self, _: u64) -> Result<Holding, CopyError> {
        unreachable!("only sealed here")
    }

    fn append(&mut self, _: u64, _: Place, _: &Bytes) -> Result<(), CopyError> {
        unreachable!("only sealed here")
    }

    fn whole(&mut self, _: u64) -> Result<(), CopyError> {
        unreachable!("only sealed here")
    }

    fn cut(&mut self, _: u64, _: Place) -> Result<(), CopyError> {
        unreachable!("only sealed here")
    }

    fn pop(&mut self, _: u64, _: u64) -> Result<(), CopyError> {
        unreachable!("only sealed here")
    }

    fn sum(&mut self, _: u64, _: u64) -> Result<[u8; 32], CopyError> {
        unreachable!("only sealed here")
    }

    fn read(&mut self, _: Place, _: u64) -> Result<Bytes, CopyError> {
        unreachable!("only sealed here")
    }
}

#[test]
fn a_copy_that_hangs_does_not_hold_up_the_recovery_from_the_others() {
    let lab = Lab::new(&["a", "b"], 0);
    let engine = lab.open("meta");
    wait_until("both count", || lab.whole());
    write(&engine, 0..40);
    lose(engine);
    let setup = lab.setup();
    let folder = setup.connect.clone();
    let connect: Connect = Arc::new(move |name: &str| match name.ends_with("/a") {
        true => Ok(Box::new(Hangs) as Box<dyn Link>),
        false => folder(name),
    });
    let log = lab.path("new").join("log");
    drop(Folder::open(&lab.path("new")).unwrap());
    let within = Duration::from_secs(2);
    let found = recover::recover_within(&log, setup.epoch, &setup.recorded, &connect, within).unwrap();
    assert!(found.sealed.len() == 1 && found.copy.ends_with("/b"), "{found:?}");
    let mut quorum = setup.recorded.clone();
    quorum.members.retain(|name| name.ends_with("/a"));
    let refused = recover::recover_within(&log, setup.epoch, &quorum, &connect, within).unwrap_err();
    assert!(refused.to_string().contains("0 of the 1"), "{refused}");
}

#[test]
fn copies_that_do_not_reach_back_say_that_a_disk_snapshot_is_needed() {
    let lab = Lab::new(&["a"], 0);
    let engine = lab.open("meta");
    wait_until("it counts", || lab.whole());
    write(&engine, 0..100);
    engine.copies().unwrap().trim(3);
    let first = lab.path("a/log/00000000000000000002.log");
    wait_until("the copy lets segments go", || !first.exists());
    lose(engine);
    let Err(error) = lab.recover("new") else { panic!("it was recovered") };
    let said = error.to_string();
    assert!(
        said.contains("hold the log from segment 3 on") && said.contains("newest complete disk snapshot"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(lab.path("new/log")).unwrap().count(), 0, "nothing was written");
}
