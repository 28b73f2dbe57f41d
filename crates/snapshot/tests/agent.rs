//! A server as a member of a snapshot: what it refuses, whoever orders it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use chronofs_snapshot::agent::{Agent, Host, Imaged, Setup};
use chronofs_snapshot::protocol::{Attempt, Cut, Fault, Intent, Node, Order, Said, Step, What};
use chronofs_snapshot::{Guard, Role, SnapshotCode, Whitelist};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Of which nothing is asked here.
struct Idle;

impl Host for Idle {
    fn ready(&self, _: &Intent) -> Result<(), Fault> {
        Ok(())
    }
    fn hold(&self, _: &Attempt) -> Result<(), Fault> {
        Ok(())
    }
    fn let_go(&self, _: &Attempt) {}
    fn image(&self, _: &Intent, _: Role, _: &Path) -> Result<Imaged, Fault> {
        Ok(Imaged::default())
    }
    fn keep(&self, _: &Intent, _: Option<Cut>) -> Result<(), Fault> {
        Ok(())
    }
    fn release(&self, _: &Attempt) {}
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

struct World {
    folder: tempfile::TempDir,
    root: PathBuf,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        World { folder, root }
    }

    /// A program that leaves a trace.
    fn program(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::write(&path, format!("#!/bin/sh\necho ran >> '{}/ran'\n", self.root.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn agent(&self, listed: &Path) -> Agent {
        let whitelist = Whitelist::new([listed.to_owned()]).unwrap();
        let setup = Setup {
            node: "01".to_owned(),
            folder: self.folder.path().join("images"),
            whitelist,
            version: "0".to_owned(),
            whereabouts: Default::default(),
            guard: guard(),
        };
        Agent::new(setup, 3, Idle, || {}).unwrap()
    }

    fn ran(&self) -> bool {
        self.root.join("ran").exists()
    }
}

/// To the member of epoch 3.
fn order(program: &Path, step: Step) -> Order {
    let attempt = Attempt { uid: "c50263df28be44ebb596f5c2a849adbb".parse().unwrap(), number: 7 };
    let node = Node {
        id: "01".to_owned(),
        name: "store".to_owned(),
        address: "10.0.0.1:8444".to_owned(),
        epoch: 3,
        roles: vec![Role::Storage, Role::Tlog],
        copies: Vec::new(),
    };
    let intent = Intent {
        attempt: attempt.clone(),
        cluster: "lab:1".to_owned(),
        program: program.to_str().unwrap().to_owned(),
        arguments: Vec::new(),
        nodes: vec![node],
        started_ns: 1,
        keep_until_ns: None,
        hold_ms: 30_000,
        run_ms: 5_000,
        ended: Default::default(),
    };
    Order { attempt, epoch: 3, what: What::Do(Box::new(intent), vec![step]) }
}

/// What the member says of the step.
fn said(agent: &Agent) -> Said {
    let begun = Instant::now();
    loop {
        if let Some(said) = agent.poll().unwrap().said.pop() {
            return said;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it says nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_program_that_is_not_listed_here_does_not_run_also_when_it_is_ordered_directly() {
    for step in [Step::Ready, Step::Run(Role::Storage)] {
        let world = World::new();
        let (listed, other) = (world.program("listed"), world.program("other"));
        let agent = world.agent(&listed);
        agent.orders(&[order(&other, step)]);
        let Said { step: of, end, .. } = said(&agent);
        assert_eq!((of, end.unwrap_err().code), (step, SnapshotCode::PathNotWhitelisted));
        assert!(!world.ran());
    }
}

#[test]
fn a_listed_program_that_changed_hands_since_the_first_look_does_not_run() {
    let world = World::new();
    let listed = world.program("listed");
    let agent = world.agent(&listed);
    agent.orders(&[order(&listed, Step::Ready)]);
    assert!(said(&agent).end.is_ok());
    fs::set_permissions(&listed, fs::Permissions::from_mode(0o777)).unwrap();
    agent.orders(&[order(&listed, Step::Run(Role::Storage))]);
    let begun = Instant::now();
    let end = loop {
        match agent.poll().unwrap().said.into_iter().find(|said| said.step == Step::Run(Role::Storage)) {
            Some(said) => break said.end,
            None => assert!(begun.elapsed() < Duration::from_secs(20), "it says nothing"),
        }
    };
    let fault = end.unwrap_err();
    assert_eq!(fault.code, SnapshotCode::PathNotWhitelisted);
    assert!(fault.why.contains("can be written by others") && !world.ran(), "{}", fault.why);
}

#[test]
fn an_order_to_another_epoch_is_nobodys() {
    let world = World::new();
    let listed = world.program("listed");
    let agent = world.agent(&listed);
    agent.orders(&[Order { epoch: 2, ..order(&listed, Step::Run(Role::Storage)) }]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(agent.poll().unwrap().said.is_empty() && agent.poll().unwrap().doing.is_none() && !world.ran());
    agent.orders(&[order(&listed, Step::Run(Role::Storage))]);
    assert!(said(&agent).end.is_ok() && world.ran(), "to its own it listens");
}
