//! An agent whose host notes what it was asked for, and takes its time where a test says so.

use super::*;
use crate::protocol::What;
use std::sync::mpsc;

#[derive(Default)]
struct Double {
    released: Mutex<Vec<Attempt>>,
    /// The first release waits for a word.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
    /// So does the first image.
    imaging: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Double {
    fn released(&self) -> usize {
        self.released.lock().unwrap().len()
    }
}

impl Host for Arc<Double> {
    fn ready(&self, _: &Intent) -> Result<(), Fault> {
        Ok(())
    }

    fn hold(&self, _: &Attempt) -> Result<(), Fault> {
        Ok(())
    }

    fn let_go(&self, _: &Attempt) {}

    fn image(&self, _: &Intent, _: Role, place: &Path) -> Result<Imaged, Fault> {
        let gate = self.imaging.lock().unwrap().take();
        gate.into_iter().for_each(|gate| gate.recv().unwrap());
        fs::create_dir_all(place).unwrap();
        fs::write(place.join("file"), "bytes").unwrap();
        Ok(Imaged { version: Some(7), ended: None })
    }

    fn keep(&self, _: &Intent, _: Option<Cut>) -> Result<(), Fault> {
        Ok(())
    }

    fn release(&self, attempt: &Attempt) {
        self.released.lock().unwrap().push(attempt.clone());
        let gate = self.gate.lock().unwrap().take();
        gate.into_iter().for_each(|gate| gate.recv().unwrap());
    }

    fn kept(&self) -> Result<Vec<Attempt>, String> {
        Ok(Vec::new())
    }
}

/// A guard in place of ours, which only an executable with a `main` of ours can be: it says that it is there, and ends its group
/// when its server is gone.
fn guard() -> Guard {
    let script = "trap '' TERM; printf x >&0; read -r _; kill -KILL 0";
    Guard::by("/bin/sh".into(), ["-c", script].map(Into::into).into())
}

struct Bench {
    _folder: tempfile::TempDir,
    images: PathBuf,
    double: Arc<Double>,
    agent: Agent,
}

const NODE: &str = "0190";

fn attempt() -> Attempt {
    Attempt { uid: "c50263df28be44ebb596f5c2a849adbb".parse().unwrap(), number: 7 }
}

fn intent(program: &Path, argument: &str) -> Intent {
    let node = crate::protocol::Node {
        id: NODE.to_owned(),
        name: "store".to_owned(),
        address: "10.0.0.1:8444".to_owned(),
        epoch: 3,
        roles: vec![Role::Storage, Role::Tlog],
        copies: Vec::new(),
    };
    Intent {
        attempt: attempt(),
        cluster: "c1".to_owned(),
        program: program.to_str().unwrap().to_owned(),
        arguments: vec![argument.to_owned()],
        nodes: vec![node],
        started_ns: 0,
        keep_until_ns: None,
        hold_ms: 30_000,
        run_ms: 60_000,
        ended: BTreeMap::new(),
    }
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        let double = Arc::<Double>::default();
        // `/bin` may be a link, and only plain paths may run.
        let shell = fs::canonicalize("/bin/sh").unwrap();
        let setup = Setup {
            node: NODE.to_owned(),
            folder: images.clone(),
            whitelist: Whitelist::new([shell]).unwrap(),
            version: "0".to_owned(),
            whereabouts: Default::default(),
            guard: guard(),
        };
        let agent = Agent::new(setup, 3, double.clone(), || {}).unwrap();
        Bench { _folder: folder, images, double, agent }
    }

    fn order(&self, what: What) {
        self.agent.orders(&[Order { attempt: attempt(), epoch: 3, what }]);
    }

    fn wait(&self, what: &str, mut is_so: impl FnMut(&Bench) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn has_images(&self) -> bool {
        self.images.join("7").exists()
    }
}

/// The first word was that the set is complete, the second that it is deleted, while the images still go.
#[test]
fn what_is_to_go_goes_although_that_is_said_while_something_else_goes_already() {
    let bench = Bench::new();
    let (open, gate) = mpsc::channel();
    *bench.double.gate.lock().unwrap() = Some(gate);
    bench.order(What::Finish { complete: false });
    bench.wait("the first one to begin", |bench| bench.double.released() == 1);
    // A straggler has made an image meanwhile.
    fs::create_dir_all(bench.images.join("7/storage")).unwrap();
    bench.order(What::Finish { complete: true });
    bench.order(What::Finish { complete: false });
    open.send(()).unwrap();
    bench.wait("what came meanwhile to go", |bench| !bench.has_images());
    bench.wait("the second one", |bench| bench.double.released() == 2);
    bench.wait("an end", |bench| bench.agent.lock().going.is_empty());
    assert_eq!(bench.double.released(), 2, "once for both");
}

/// It stops while a program runs: that is ended, the images go, and what is kept for the set stays until it is known what
/// became of that.
#[test]
fn a_member_that_stops_ends_its_program_and_goes_on_keeping_what_its_set_needs() {
    let bench = Bench::new();
    let shell = fs::canonicalize("/bin/sh").unwrap();
    let mut intent = intent(&shell, "-c");
    // What follows is `--path` and so on, which are the script's own arguments.
    intent.arguments.push("sleep 71 & wait".to_owned());
    let steps = [Step::Hold, Step::Image(Role::Storage), Step::Image(Role::Tlog)];
    for step in steps.into_iter().chain([Step::Release, Step::Run(Role::Storage)]) {
        bench.order(What::Do(Box::new(intent.clone()), vec![step]));
        if !matches!(step, Step::Run(_)) {
            bench.wait("a step", |bench| {
                bench.agent.poll().unwrap().said.iter().any(|said| said.step == step)
            });
        }
    }
    bench.wait("the program to run", |bench| !bench.agent.lock().programs.is_empty());
    assert!(bench.has_images());
    bench.agent.stop();
    assert!(bench.agent.lock().programs.is_empty() && bench.agent.lock().going.is_empty());
    assert!(!bench.has_images());
    assert_eq!(bench.double.released(), 0, "others may complete the set");
    let left = fs::read_dir("/proc").unwrap().filter(|entry| {
        let line = fs::read(entry.as_ref().unwrap().path().join("cmdline"));
        line.is_ok_and(|line| line == b"sleep\x0071\0")
    });
    assert_eq!(left.count(), 0, "what the program started goes on");
}

/// All its steps are said, so it may be a set; that word has not come, or could not be heeded yet.
#[test]
fn an_attempt_that_another_one_or_another_epoch_ends_loses_its_images_and_nothing_that_is_kept() {
    for by_epoch in [false, true] {
        let bench = Bench::new();
        let shell = fs::canonicalize("/bin/sh").unwrap();
        for step in [Step::Hold, Step::Image(Role::Storage)] {
            bench.order(What::Do(Box::new(intent(&shell, "-c")), vec![step]));
            bench.wait("a step", |bench| {
                bench.agent.poll().unwrap().said.iter().any(|said| said.step == step)
            });
        }
        assert!(bench.has_images());
        if by_epoch {
            bench.agent.set_epoch(4);
        } else {
            let mut next = intent(&shell, "-c");
            next.attempt.number = 8;
            let attempt = next.attempt.clone();
            let what = What::Do(Box::new(next), vec![Step::Hold]);
            bench.agent.orders(&[Order { attempt, epoch: 3, what }]);
        }
        bench.wait("the images to go", |bench| !bench.has_images());
        bench.wait("an end", |bench| bench.agent.lock().going.is_empty());
        assert_eq!(bench.double.released(), 0, "by epoch: {by_epoch}");
        bench.agent.orders(&[Order {
            attempt: attempt(),
            epoch: if by_epoch { 4 } else { 3 },
            what: What::Finish { complete: false },
        }]);
        bench.wait("the coordinator's word", |bench| bench.double.released() == 1);
    }
}

#[test]
fn an_image_that_is_made_late_goes_when_it_is_made() {
    let bench = Bench::new();
    let (open, gate) = mpsc::channel();
    *bench.double.imaging.lock().unwrap() = Some(gate);
    let shell = fs::canonicalize("/bin/sh").unwrap();
    for step in [Step::Hold, Step::Image(Role::Storage)] {
        bench.order(What::Do(Box::new(intent(&shell, "-c")), vec![step]));
    }
    bench.wait("the image to be begun", |bench| bench.double.imaging.lock().unwrap().is_none());
    bench.order(What::Finish { complete: false });
    bench.wait("the end", |bench| bench.double.released() == 1);
    open.send(()).unwrap();
    bench.wait("the late one to go, too", |bench| bench.double.released() == 2 && !bench.has_images());
}
