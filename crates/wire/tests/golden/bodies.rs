//! Bodies that servers and mounts exchange with the admin server, as JSON, and that those of older programs are understood.

use super::*;
use chronofs_core::store::{Bucket, Credentials, Secret};
use chronofs_wire::admin::{
    AssignedStore, AssignedToken, AssignedVolume, Assignment, Cluster, Probe, Probed, Problem, Register,
    Registered, Report, Resolve, Resolved, StoreKind, StorePlace, VolumeReport,
};
use chronofs_wire::log::{LogChange, LogCopies, LogEpoch, OpenLog};
use chronofs_wire::question::{
    Answer, Answers, Asked, Blob, KeepInstant, KeyOp, KeyRefused, KeyReply, KeyValue, Question, Questions,
    Said, Starting,
};
use chronofs_wire::tlog::LogServerAccess;

fn assignment() -> Assignment {
    let text = |text: &str| Some(text.to_owned());
    let bucket = || Bucket { bucket: "bytes".to_owned(), prefix: "team/one".to_owned(), ..Bucket::default() };
    let full = Bucket {
        endpoint: text("https://s3.example:9000"),
        region: text("eu-1"),
        virtual_hosted: true,
        ca_pem: text("-----BEGIN CERTIFICATE-----"),
        ..bucket()
    };
    let kinds = every!(StoreKind {
        Local = StoreKind::Local { path: "/srv/blocks".to_owned() },
        S3 = StoreKind::S3(full),
        Gcs = StoreKind::Gcs(bucket()),
        Azure = StoreKind::Azure(Bucket { account: text("account"), ..bucket() }),
        Oci = StoreKind::Oci(Bucket { account: text("space"), region: text("eu-1"), ..bucket() }),
    });
    let credentials = every!(Credentials {
        Ambient = Credentials::Ambient,
        AccessKey = Credentials::AccessKey {
            id: "AKIA".to_owned(),
            secret: Secret::new("s"),
            session_token: Some(Secret::new("t")),
        },
        ServiceAccount = Credentials::ServiceAccount { json: Secret::new("{}") },
        AccountKey = Credentials::AccountKey { key: Secret::new("a2V5") },
        Anonymous = Credentials::Anonymous,
        SharedAccess = Credentials::SharedAccess { token: Secret::new("sig=x") },
    });
    // The last kind is there twice: there are more credentials than kinds.
    let last = kinds.last().cloned();
    let stores = kinds.into_iter().chain(last).zip(credentials);
    let volume = |((_, kind), (_, credentials)): ((_, StoreKind), (_, Credentials))| AssignedVolume {
        spec: spec(Compression::Zstd),
        deleted: true,
        give_up_after_s: Some(23),
        store: AssignedStore { id: uuid(1), create_only: kind.bucket().is_some(), kind, credentials },
    };
    let token = AssignedToken {
        id: uuid(2),
        secret_sha256: "ab".repeat(32),
        volume: uuid(3),
        path: Some("/home".to_owned()),
        read_only: true,
        past: false,
        ends_ns: Some(4),
    };
    let probe = Probe { id: 5, store: uuid(6), path: "/srv/new".to_owned() };
    Assignment {
        revision: 7,
        volumes: stores.map(volume).collect(),
        tokens: vec![token],
        probes: vec![probe],
        log: LogEpoch {
            epoch: 8,
            members: LogCopies { copies: vec!["/disk2/log".to_owned()], anti_quorum: 0 },
            wanted: LogCopies {
                copies: vec!["/disk2/log".to_owned(), "/disk3/log".to_owned()],
                anti_quorum: 1,
            },
            boot: 9,
        },
        log_servers: vec![LogServerAccess {
            address: text("far.example:8446"),
            certificate_sha256: text(&"cd".repeat(32)),
            ..LogServerAccess::new("far".to_owned(), &chronofs_wire::identity::Secret([24; 32]))
        }],
        accepted_restore: None,
    }
}

fn report() -> Report {
    let volume = VolumeReport {
        id: uuid(8),
        born_ns: 9,
        earliest_ns: 10,
        used_bytes: 11,
        used_inodes: 12,
        sessions: 13,
        problem: Some("what is wrong".to_owned()),
        given_up: true,
        gone: true,
    };
    let probed = Probed { id: 14, problem: Some("not empty".to_owned()) };
    Report { revision: 15, volumes: vec![volume], probed: vec![probed] }
}

/// The body is that of the golden file, which also means the same.
pub(super) fn assert_body<T: Serialize + DeserializeOwned + PartialEq + Debug>(file: &str, body: &T) {
    let text = serde_json::to_string_pretty(body).unwrap() + "\n";
    assert_golden(file, &text);
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), body, "{file}");
}

#[test]
fn bodies_for_the_admin_server_are_written_as_the_golden_files_have_them() {
    let (certificate_sha256, address) = ("cd".repeat(32), "meta.example:7421".to_owned());
    let register = Register {
        address: address.clone(),
        certificate_sha256: certificate_sha256.clone(),
        boot: 16,
        epoch: 17,
    };
    assert_body("register.json", &register);
    assert_body("registered.json", &registered());
    assert_body("assignment.json", &assignment());
    let members = LogCopies { copies: vec!["/disk2/log".to_owned()], anti_quorum: 0 };
    let change = Some(LogChange { after: 8, members });
    assert_body("open-log.json", &OpenLog { boot: 9, above: 10, change });
    assert_body("report.json", &report());
    assert_body("resolve.json", &Resolve { volume: "work".to_owned() });
    let resolved =
        Resolved { volume: uuid(20), name: "work".to_owned(), address, certificate_sha256, epoch: 21 };
    assert_body("resolved.json", &resolved);
    let kind = StoreKind::S3(Bucket { bucket: "bytes".to_owned(), ..Bucket::default() });
    assert_body("store_place.json", &StorePlace { id: uuid(22), kind, create_only: true });
    let cluster = Cluster {
        description: "lab".to_owned(),
        id: "23".to_owned(),
        coordinators: vec!["admin:8443".to_owned()],
        line: "lab:23@admin:8443".to_owned(),
    };
    assert_body("cluster.json", &cluster);
    assert_body("questions.json", &questions());
    assert_body("answers.json", &answers());
    assert_body("starting.json", &Starting { seconds: 24 });
    let problem = Problem { code: "not_found".to_owned(), message: "what to do".to_owned() };
    assert_body("problem.json", &problem);
}

fn questions() -> Questions {
    let blob = |text: &str| Blob::from(text.as_bytes());
    let ops = [
        KeyOp::Get { key: blob("k") },
        KeyOp::GetRange { begin: blob(""), end: Some(blob("z")), limit: 25 },
        KeyOp::GetRange { begin: blob("a"), end: None, limit: 1 },
        KeyOp::Set { key: blob("k"), value: Blob::from(&[0, 255][..]) },
        KeyOp::Clear { key: blob("k") },
    ];
    let note = "registered".to_owned();
    let keep = KeepInstant { id: uuid(24), at_ns: Some(25), ends_ns: None, note };
    let asked = [Asked::Status].into_iter().chain(ops.map(Asked::Keys)).chain([Asked::Keep(keep)]);
    Questions { questions: (1..).zip(asked).map(|(id, asked)| Question { id, asked }).collect() }
}

fn answers() -> Answers {
    let blob = |text: &str| Blob::from(text.as_bytes());
    let said = [
        Said::Status(serde_json::json!({"pid": 1})),
        Said::Keys(KeyReply::Value { version: 1, value: Some(blob("v")) }),
        Said::Keys(KeyReply::Value { version: 2, value: None }),
        Said::Keys(KeyReply::Range {
            version: 3,
            pairs: vec![KeyValue { key: blob("k"), value: blob("v") }],
            more: true,
        }),
        Said::Keys(KeyReply::Committed { version: 1_800_000_000_000_000_000 }),
        Said::Refused(KeyRefused::KeyTooLarge(10_001)),
        Said::Refused(KeyRefused::ValueTooLarge(100_001)),
        Said::Refused(KeyRefused::InvertedRange),
        Said::Refused(KeyRefused::Limit(0)),
        Said::Refused(KeyRefused::SpaceFull(5)),
        Said::Refused(KeyRefused::DiskFull),
        Said::Refused(KeyRefused::Replaying),
        Said::Refused(KeyRefused::Damaged),
        Said::Refused(KeyRefused::Stopped("why".to_owned())),
        Said::Kept { problem: None },
        Said::Kept { problem: Some("why".to_owned()) },
    ];
    Answers { answers: (1..).zip(said).map(|(id, said)| Answer { id, said }).collect() }
}

fn registered() -> Registered {
    Registered { store: uuid(18), name: "main".to_owned(), epoch: 19, cluster: Some("lab:23".to_owned()) }
}

#[test]
fn bodies_of_programs_that_are_older_are_understood() {
    let read = |file: &str, without: &str| {
        let text = std::fs::read_to_string(golden_path(file)).unwrap();
        let mut body: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(body.as_object_mut().unwrap().remove(without).is_some(), "{file} has no {without}");
        body
    };
    let older: Registered = serde_json::from_value(read("registered.json", "cluster")).unwrap();
    assert_eq!(older, Registered { cluster: None, ..registered() });
    let register: Register = serde_json::from_value(read("register.json", "epoch")).unwrap();
    assert_eq!((register.boot, register.epoch), (16, 0));
    let assigned: Assignment = serde_json::from_value(read("assignment.json", "probes")).unwrap();
    assert_eq!(assigned, Assignment { probes: vec![], ..assignment() });
    let assigned: Assignment = serde_json::from_value(read("assignment.json", "log")).unwrap();
    assert_eq!(assigned, Assignment { log: LogEpoch::default(), ..assignment() });
    let assigned: Assignment = serde_json::from_value(read("assignment.json", "log_servers")).unwrap();
    assert_eq!(assigned, Assignment { log_servers: vec![], ..assignment() });
    let reported: Report = serde_json::from_value(read("report.json", "probed")).unwrap();
    assert_eq!(reported, Report { probed: vec![], ..report() });
    let mut older = serde_json::to_value(&assignment().volumes[0]).unwrap();
    older.as_object_mut().unwrap().remove("give_up_after_s").expect("it is told");
    let assigned: AssignedVolume = serde_json::from_value(older).unwrap();
    assert!(assigned.deleted && assigned.give_up_after_s.is_none(), "an older admin server gives nothing up");
    let mut older = serde_json::to_value(&report().volumes[0]).unwrap();
    for field in ["given_up", "gone"] {
        older.as_object_mut().unwrap().remove(field).expect("it is told");
    }
    let reported: VolumeReport = serde_json::from_value(older).unwrap();
    assert!(!reported.given_up && !reported.gone);
}
