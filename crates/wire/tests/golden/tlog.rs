//! What metadata servers and log servers say to each other, and to the admin server about each other.

use super::bodies::assert_body;
use super::*;
use chronofs_wire::identity::{Secret, Sha256};
use chronofs_wire::tlog::{
    AllowedStore, HeldCopy, LogAssignment, LogHello, LogReply, LogRequest, LogServerSaid, LogWelcome,
};

fn requests() -> Lines<LogRequest> {
    every!(LogRequest {
        Seal = LogRequest::Seal { epoch: 1 },
        Open = LogRequest::Open { epoch: 2 },
        Append = LogRequest::Append { epoch: 3, segment: 4, offset: 5, bytes: Bytes::from("group") },
        Whole = LogRequest::Whole { epoch: 6 },
        Cut = LogRequest::Cut { epoch: 7, segment: 8, offset: 9 },
        Pop = LogRequest::Pop { epoch: 10, before: 11 },
        Sum = LogRequest::Sum { segment: 12, length: 13 },
        Read = LogRequest::Read { segment: 14, offset: 15, length: 16 },
    })
}

fn replies() -> Lines<LogReply> {
    every!(LogReply {
        Holding = LogReply::Holding {
            segments: vec![(17, 18), (19, 20)],
            known_segment: 21,
            known_offset: 22,
            filling: true,
        },
        Done = LogReply::Done,
        Sum = LogReply::Sum([23; 32]),
        Bytes = LogReply::Bytes(Bytes::from("bytes")),
        Fenced = LogReply::Fenced(24),
        Elsewhere = LogReply::Elsewhere { segment: 25, offset: 26 },
        Unusable = LogReply::Unusable("why".to_owned()),
    })
}

#[test]
fn messages_of_log_servers_are_written_as_the_golden_files_have_them() {
    let hello = LogHello {
        protocol_min: 1,
        protocol_max: 1,
        store: uuid(1),
        secret: Bytes::from(vec![2; 32]),
        known: true,
    };
    assert_frames("log_hello.hex", &vec![("LogHello", hello)]);
    let welcomes = every!(LogWelcome {
        Welcome = LogWelcome::Welcome { protocol: 1 },
        Refused = LogWelcome::Refused { reason: "why".to_owned(), soon: true },
    });
    assert_frames("log_welcome.hex", &welcomes);
    assert_frames("log_request.hex", &requests());
    assert_frames("log_reply.hex", &replies());
}

#[test]
fn bodies_of_log_servers_are_written_as_the_golden_files_have_them() {
    let secret_sha256: Sha256 = Secret([1; 32]).sha256();
    let allowed = AllowedStore { id: uuid(2), name: "main".to_owned(), secret_sha256 };
    assert_body("log_assignment.json", &LogAssignment { revision: 3, stores: vec![allowed] });
    let copy = HeldCopy {
        id: uuid(4),
        name: Some("main".to_owned()),
        epoch: 5,
        sealed: true,
        filling: true,
        segments: 6,
        bytes: 7,
        problem: Some("why".to_owned()),
    };
    let said = LogServerSaid { boot: 8, epoch: 9, connections: 10, copies: vec![copy], ..Default::default() };
    assert_body("log_server_said.json", &said);
}
