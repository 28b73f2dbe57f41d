//! Encrypted volumes: which keys are kept, who is told of them, and who may come in.

use super::*;
use chronofs_wire::admin::{Assignment, KeptKeys};
use chronofs_wire::message::{PROTOCOL_SEALED, Refusal, RefusalReason};

fn keys(revision: u64) -> KeptKeys {
    KeptKeys { revision, sealed: format!("sealed {revision}") }
}

fn assignment(keys: Option<KeptKeys>) -> Assignment {
    let mut assignment = common::assignment(std::path::Path::new("/nowhere"));
    assignment.volumes[0].keys = keys;
    assignment
}

fn sealed_hello(client: u128) -> Hello {
    Hello { protocol_min: PROTOCOL_SEALED, ..hello(client) }
}

impl Server {
    fn assign_keys(&mut self, keys: Option<KeptKeys>) {
        self.run(Event::Assignment(Box::new(assignment(keys))));
        self.run(Event::Tick);
        self.run(Event::Tick);
    }

    fn kept(&self) -> Option<u64> {
        self.core.machine.volumes().next().unwrap().keys.as_ref().map(|keys| keys.revision)
    }

    fn beyond(&self) -> Option<u64> {
        let volume = self.core.machine.volumes().next().unwrap();
        self.core.machine.keys_beyond_assignment(volume).map(|keys| keys.revision)
    }

    fn refused(&mut self, conn: u64, hello: Hello) -> Refusal {
        let effects = self.run(Event::Hello(ConnId(conn), Box::new(hello)));
        let said = effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(_, answer) => answer.err(),
            _ => None,
        });
        said.expect("a refusal")
    }
}

#[test]
fn only_clients_that_seal_come_to_an_encrypted_volume_and_they_come_to_no_other() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    let refusal = server.refused(1, sealed_hello(1));
    assert_eq!(refusal.reason, RefusalReason::Protocol);
    assert!(refusal.message.contains("is not encrypted here"), "{}", refusal.message);

    server.assign_keys(Some(keys(1)));
    let refusal = server.refused(2, hello(2));
    assert_eq!(refusal.reason, RefusalReason::Protocol);
    assert!(refusal.message.contains("is encrypted, and this client has no key"), "{}", refusal.message);
    let older = Hello { protocol_max: PROTOCOL_SEALED - 1, ..hello(3) };
    assert_eq!(server.refused(3, older).reason, RefusalReason::Protocol);
    assert_eq!(server.open(4, sealed_hello(4)).unwrap().protocol, PROTOCOL_SEALED);
}

#[test]
fn the_newest_keys_are_kept_over_restarts_and_an_admin_server_with_older_ones_is_told() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    assert_eq!((server.kept(), server.beyond()), (None, None));
    server.assign_keys(Some(keys(1)));
    server.assign_keys(Some(keys(3)));
    assert_eq!((server.kept(), server.beyond()), (Some(3), None));
    server.start_again(Config::default());
    server.run(Event::Tick);
    assert_eq!((server.kept(), server.beyond()), (Some(3), Some(3)), "this assignment knows of none");
    server.assign_keys(Some(keys(2)));
    assert_eq!((server.kept(), server.beyond()), (Some(3), Some(3)), "it was restored from an old copy");
    assert!(server.core.machine.volumes().next().unwrap().row.is_encrypted());
    server.assign_keys(Some(keys(4)));
    assert_eq!((server.kept(), server.beyond()), (Some(4), None));
}

#[test]
fn a_volume_with_files_that_are_not_encrypted_is_not_served_as_one_that_is() {
    let mut server = Server::start(Arc::new(Memory::default()), START_NS, false);
    server.open(1, hello(1)).unwrap();
    server.call(1, 1, create(Ino::ROOT, "plain", false)).1.unwrap();
    server.assign_keys(Some(keys(1)));
    let volume = server.core.machine.volumes().next().unwrap();
    assert!(volume.keys.is_none() && !volume.row.is_encrypted());
    assert!(volume.problem.as_ref().is_some_and(|problem| problem.contains("not encrypted")));
}
