//! Bodies that servers and mounts exchange with the admin server, as JSON, and that those of older programs are understood.

use super::*;
use chronofs_core::store::{Bucket, Credentials, Secret};
use chronofs_wire::admin::{
    AssignedStore, AssignedToken, AssignedVolume, Assignment, Cluster, KeptKeys, Known, ParkedBytes, Probe,
    Probed, Problem, Register, Registered, Report, Resolve, Resolved, RestoreEpoch, StoreKind, StorePlace,
    VolumeReport,
};
use chronofs_wire::analyze::{
    Analyze, Begun, By, Counted, DiscardedObject, Ended, Fate, Fill, Follow, FoundFile, Inodes, Look,
    MendedObject, NamedAt, News, Objects, Part, Piece, Progress, QuarantinedObject, RowsSeen, Salvaged,
    SliceFault, Strange, Subject, Sum, Taken, Told, Usage,
};
use chronofs_wire::deploy::Release;
use chronofs_wire::log::{LogChange, LogCopies, LogEpoch, OpenLog};
use chronofs_wire::question::{
    Answer, Answers, Asked, Blob, HeldSaid, KeepInstant, KeyOp, KeyRefused, KeyReply, KeyValue, Question,
    Questions, Said, Starting,
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
        born_ns: 26,
        give_up_after_s: Some(23),
        store: AssignedStore { id: uuid(1), create_only: kind.bucket().is_some(), kind, credentials },
        keys: Some(KeptKeys { revision: 24, sealed: "{}".to_owned() }),
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
        copy_restored: true,
        reader_stores: vec![AssignedStore {
            id: uuid(9),
            kind: StoreKind::Local { path: "/srv/left".to_owned() },
            credentials: Credentials::Ambient,
            create_only: false,
        }],
        admin_epoch: 91,
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
        missing: true,
        given_up: true,
        gone: true,
        keys: Some(KeptKeys { revision: 25, sealed: "{}".to_owned() }),
    };
    let probed = Probed { id: 14, problem: Some("not empty".to_owned()) };
    Report {
        revision: 15,
        volumes: vec![volume],
        probed: vec![probed],
        kept_epoch: 3,
        boot: 26,
        durable_ns: 27,
    }
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
        restore: Some(restore()),
        recovers: true,
        last_commit_ns: Some(28),
    };
    assert_body("register.json", &register);
    let named = |n| [(uuid(n), format!("v{n}"))].into();
    let (volumes, deleted) = (named(82), named(83));
    let known = Known { tokens: vec![uuid(81)], volumes, deleted, admin_epoch: 92 };
    assert_body("known.json", &known);
    let (mount, path) = ("host:/mnt".to_owned(), "lost+found/a".to_owned());
    assert_body("parked.json", &ParkedBytes { mount, path, files: 84, bytes: 85 });
    assert_body("registered.json", &registered());
    assert_body("assignment.json", &assignment());
    let members = LogCopies { copies: vec!["/disk2/log".to_owned()], anti_quorum: 0 };
    let change = Some(LogChange { after: 8, members });
    assert_body("open-log.json", &OpenLog { boot: 9, above: 10, change });
    assert_body("report.json", &report());
    assert_body("resolve.json", &Resolve { volume: "work".to_owned() });
    let keys = Some("{}".to_owned());
    let resolved =
        Resolved { volume: uuid(20), name: "work".to_owned(), address, certificate_sha256, epoch: 21, keys };
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

fn looks() -> [Look; 11] {
    let from = Some(Blob::from(&[1, 255][..]));
    let by = every!(By { Nothing = By::Nothing, Folder = By::Folder, Owner = By::Owner, Age = By::Age });
    let usage = |n: usize| Look::Usage { by: by[n].1, retention_s: (n > 0).then_some(50) };
    let blocks = Look::Blocks { deep: true, bytes_per_second: 30, from };
    let repair = Look::Repair {
        dry_run: true,
        deep: true,
        bytes_per_second: 51,
        from_store: Some("copy".to_owned()),
        from_cache: Some("/cache".to_owned()),
        from_copy: Some("/copy".to_owned()),
        from: None,
    };
    [
        blocks,
        Look::Rows,
        usage(0),
        usage(1),
        usage(2),
        usage(3),
        Look::Objects,
        repair,
        Look::Salvage { list_only: true },
        Look::Quarantined,
        Look::Discard { dry_run: true, names: vec!["objects/03".to_owned()] },
    ]
}

#[test]
fn what_is_said_of_an_executable_and_what_is_signed_of_it_is_as_the_golden_files_have_it() {
    // Of the key of RFC 8032, section 7.1, test 2.
    let public_key = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c".parse().unwrap();
    let hash = chronofs_wire::identity::Sha256([7; 32]);
    let release = Release::new("chronofs", "1.2.3-rc1", "x86_64-unknown-linux-gnu", 8, hash).unwrap();
    assert_golden("release.txt", &release.statement());
    assert_body("release.json", &release.signed(public_key, &[9; 64]));
}

#[test]
fn looks_and_their_news_are_written_as_the_golden_files_have_them() {
    let subjects = [Subject::Volume("v".to_owned()), Subject::MetadataStore("main".to_owned())];
    let begins = subjects.into_iter().cycle().zip(looks()).map(|(subject, look)| Analyze { subject, look });
    assert_body("analyze.json", &begins.collect::<Vec<_>>());
    assert_body("begun.json", &Begun { store: "s".to_owned(), look: 31 });
    assert_body("follow.json", &Follow { store: "s".to_owned(), look: 31, seen: 32 });
    let at = Progress { listed: 33, slices: 34, bytes: 35, faults: 36, next: Some(Blob::from(&[0][..])) };
    let fates = every!(Fate { Missing = Fate::Missing, Damaged = Fate::Damaged });
    let fault = |fate| SliceFault {
        volume: "v".to_owned(),
        fate,
        reason: "why".to_owned(),
        object: Some("objects/00".to_owned()),
        at: 37,
        stored_len: 38,
        slice: "0/1/2#3".to_owned(),
        ino: 39,
        from: 40,
        to: 41,
        since_ns: 42,
        until_ns: Some(43),
        paths: vec![NamedAt { path: "/a".to_owned(), since_ns: 42, until_ns: None }],
        more_paths: true,
    };
    let seen = RowsSeen { at_ns: 44, volumes: 45, rows: 46, faults: 47 };
    let mended = News::Mended(Box::new(MendedObject {
        object: "objects/00".to_owned(),
        fate: Fate::Missing,
        slices: 81,
        bytes: 82,
        left: 83,
        from: vec!["the copy /srv/copy".to_owned()],
    }));
    let mut news: Vec<News> = fates.into_iter().map(|(_, fate)| News::Slice(Box::new(fault(fate)))).collect();
    news.extend([News::At(at.clone()), News::Row("row".to_owned()), News::Rows(48), mended]);
    let (found, piece, unreadable) = salvage();
    let bytes = News::Bytes(Blob::from(&[7, 255][..]));
    news.extend([News::File(Box::new(found)), News::Piece(Box::new(piece)), bytes, unreadable]);
    news.push(News::Quarantined(Box::new(QuarantinedObject {
        object: "objects/02".to_owned(),
        bytes: 101,
        incarnation: 102,
        stored_ns: Some(103),
        reason: "why".to_owned(),
    })));
    for refused in [None, Some("why".to_owned())] {
        let object = "objects/03".to_owned();
        news.push(News::Discarded(Box::new(DiscardedObject { object, refused })));
    }
    let salvaged = Salvaged { objects: 84, files: 85, slices: 86, bytes: 87, unreadable: 88 };
    let sums = [
        Sum::Blocks(at),
        Sum::Rows(seen),
        Sum::Usage(usage()),
        Sum::Objects(objects()),
        Sum::Salvage(salvaged),
        Sum::Quarantined(Counted { count: 104, bytes: 105 }),
        Sum::Discarded(107),
    ];
    let ends = sums.map(Ended::Whole).into_iter().chain([Ended::Stopped("why".to_owned())]);
    let told = ends.map(|ended| Told { news: news.clone(), upto: 49, ended: Some(ended), gone: false });
    assert_body("told.json", &told.collect::<Vec<_>>());
}

fn salvage() -> (FoundFile, Piece, News) {
    let found =
        FoundFile { ino: 89, incarnation: 100, path: Some("/b".to_owned()), slices: 90, bytes: 91, len: 92 };
    let piece = Piece {
        ino: 89,
        at: 93,
        len: 94,
        incarnation: 95,
        session: 96,
        n: 97,
        index: 98,
        codec: 1,
        stored_len: 2,
        full_len: 94,
        crc32c: 99,
    };
    (found, piece, News::Unreadable { object: "objects/01".to_owned(), reason: "why".to_owned() })
}

fn usage() -> Usage {
    let inodes =
        Inodes { files: 51, folders: 52, links: 53, others: 54, size_bytes: 55, allocated_bytes: 56 };
    let taken = Taken { slices: 57, bytes: 58, opened_bytes: 59, inline_bytes: 60, small_bytes: 61 };
    let part = Part { name: "/a".to_owned(), live_bytes: 62, past_bytes: 63, kept_bytes: 64 };
    Usage { at_ns: 65, inodes, live: taken.clone(), past: taken, kept_bytes: 66, parts: vec![part] }
}

fn objects() -> Objects {
    let counted = |count| Counted { count, bytes: 1000 + count };
    Objects {
        at_ns: 67,
        packed: counted(68),
        direct: counted(69),
        small: counted(70),
        retired: counted(71),
        condemned: counted(72),
        fills: vec![Fill { up_to_percent: 25, objects: 73, bytes: 74, needed_bytes: 75 }],
        known: counted(76),
        open: counted(77),
        garbage: counted(78),
        quarantined: counted(79),
        examples: vec![Strange { object: "x".to_owned(), bytes: 80, reason: "why".to_owned() }],
    }
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
    let (volume, to_ns) = (None, None);
    let keep = KeepInstant { id: uuid(24), at_ns: Some(25), ends_ns: None, note, volume, to_ns, hold: false };
    let (volume, to_ns) = (Some(uuid(26)), Some(27));
    let hold = KeepInstant { volume, to_ns, hold: true, ..keep.clone() };
    let last = [Asked::Keep(keep), Asked::Keep(hold), Asked::Holds];
    let replica = |look: &Look| match look {
        Look::Repair { .. } => Some(Box::new(AssignedStore {
            id: uuid(52),
            kind: StoreKind::Local { path: "/srv/copy".to_owned() },
            credentials: Credentials::Ambient,
            create_only: false,
        })),
        _ => None,
    };
    let looks = looks().map(|look| Asked::Look { volume: Some(uuid(28)), replica: replica(&look), look });
    let mut looks = Vec::from(looks);
    // What came later stands behind what was there.
    looks.insert(looks.len() - 2, Asked::Follow { look: 29, seen: 30 });
    let asked = [Asked::Status].into_iter().chain(ops.map(Asked::Keys)).chain(last).chain(looks);
    let asked = asked.chain([Asked::ReleaseBrake]);
    Questions { questions: (1..).zip(asked).map(|(id, asked)| Question { id, asked }).collect() }
}

fn answers() -> Answers {
    let blob = |text: &str| Blob::from(text.as_bytes());
    let held = HeldSaid {
        id: uuid(28),
        volume: uuid(26),
        name: "data".to_owned(),
        owner: "hold".to_owned(),
        note: "root: why".to_owned(),
        from_ns: 25,
        to_ns: 27,
        made_ns: 28,
        ends_ns: Some(29),
    };
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
        Said::Holds(vec![held]),
        Said::Looking(29),
        Said::Looked(Told { gone: true, ..Told::default() }),
        Said::Released,
    ];
    Answers { answers: (1..).zip(said).map(|(id, said)| Answer { id, said }).collect() }
}

fn restore() -> RestoreEpoch {
    let (id, uid) = ("86".to_owned(), "c5".to_owned());
    RestoreEpoch { epoch: 86, id, uid, cut_ns: 87, began_ns: Some(88), prepared_ns: Some(90) }
}

fn registered() -> Registered {
    let (store, name, cluster) = (uuid(18), "main".to_owned(), Some("lab:23".to_owned()));
    Registered { store, name, epoch: 19, cluster, restore: Some(restore()), review: true, admin_epoch: 89 }
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
    let register: Register = serde_json::from_value(read("register.json", "restore")).unwrap();
    assert_eq!((register.restore, register.recovers), (None, true));
    let older: Registered = serde_json::from_value(read("registered.json", "restore")).unwrap();
    assert_eq!(older, Registered { restore: None, ..registered() });
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
