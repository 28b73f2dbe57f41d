//! `chronofs admin` and `chronofs configure` as people run them.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, mode};

#[test]
fn a_volume_is_made_listed_and_shown_in_tables_and_json() {
    let world = World::started();
    world.configure("create block-store disk --kind local --path /srv/blocks").ok();
    let made = world.configure("create metadata-store m1").ok();
    assert!(made.lines().last().unwrap().starts_with("chronofs1_"), "{made}");
    let line = "create volume data --blockStore disk --metadataStore m1 --blockSize 1MiB --retention -1 --max-bytes 1TiB";
    let made = world.configure(line);
    assert!(made.err.contains("warning: volume 'data' is created but not served yet"), "{}", made.err);
    let shown = made.ok();
    assert!(
        shown.lines().any(|line| line.starts_with("block size  ") && line.ends_with("  1 MiB")),
        "{shown}"
    );
    let table = world.configure("list volume").ok();
    let expected = "\
NAME  STATE    BLOCK-STORE  METADATA-STORE  RETENTION  USED  INODES  MOUNTS
data  waiting  disk         m1              -1         -     -       -
";
    assert_eq!(table, expected);
    let table = world.configure("list block-store").ok();
    assert_eq!(table, "NAME  KIND   PLACE        VOLUMES\ndisk  local  /srv/blocks  data\n");
    let json: serde_json::Value =
        serde_json::from_str(&world.configure("show volume data --json").ok()).unwrap();
    assert_eq!((&json["block_size"], &json["max_bytes"]), (&(1 << 20).into(), &(1u64 << 40).into()));
    world.configure("update volume data --retention 2d --grace 0 --max-bytes 0 --new-name files").ok();
    let json: serde_json::Value =
        serde_json::from_str(&world.configure("show volume files --json").ok()).unwrap();
    assert_eq!((&json["retention"], &json["max_bytes"]), (&"2d".into(), &serde_json::Value::Null));
    let made = world
        .configure("create volume-token --volume files --path /sub --read-only --no-past --ends 30d --json");
    let json: serde_json::Value = serde_json::from_str(&made.ok()).unwrap();
    assert_eq!(
        (&json["read_only"], &json["past"], &json["path"]),
        (&true.into(), &false.into(), &"/sub".into())
    );
    let token = json["token"].as_str().unwrap();
    world.run(&["mount", "init", "creds", "--token", token, "--volume", "files"]).ok();
    for name in ["configure.toml", "mount.toml"] {
        assert_eq!(mode(&world.folder.path().join("config").join(name)), 0o600, "{name}");
    }
    world.configure(&format!("delete volume-token {}", json["id"].as_str().unwrap())).ok();
    for what in ["volume files", "deleted-volume files", "block-store disk", "metadata-store m1"] {
        world.configure(&format!("delete {what}")).ok();
    }
}

#[test]
fn bad_input_is_refused_with_its_name_its_reason_and_the_right_exit_code() {
    let world = World::started();
    world.configure("create block-store b --kind local --path /srv/b").ok();
    world.configure("create metadata-store m").ok();
    world.configure("create volume v --block-store b --metadata-store m").ok();
    let volume = |rest: &str| format!("create volume x --block-store b --metadata-store m {rest}");
    for (line, code, message) in [
        ("show volume none".to_owned(), 1, "show volume none: volume 'none' does not exist"),
        ("show volume ../v".to_owned(), 1, "volume '../v' does not exist"),
        (volume("--block-size 3MiB"), 1, "block size of 3145728 bytes"),
        (volume("--block-size big"), 2, "'big' is not a size"),
        (volume("--retention soon"), 2, "'soon' is not a retention"),
        (volume("--retention -2"), 2, "'-2' is not a retention"),
        (volume("--compression rar"), 2, "possible values: lz4, zstd, none"),
        (volume("--max-bytes 0"), 1, "quota of 0 bytes"),
        (volume("--max-inodes -1"), 2, "'-1'"),
        (volume("--colour red"), 2, "--colour"),
        (
            "create volume V --block-store b --metadata-store m".to_owned(),
            1,
            "'V' cannot be the name of a volume",
        ),
        ("create volume v --block-store b --metadata-store m".to_owned(), 1, "volume 'v' exists already"),
        (
            "create volume x --block-store none --metadata-store m".to_owned(),
            1,
            "block-store 'none' does not exist",
        ),
        ("create block-store y --kind local --path rel".to_owned(), 1, "not absolute"),
        ("create block-store y --kind tape --path /x".to_owned(), 2, "possible values: local"),
        ("create account y --role king".to_owned(), 2, "'king' is not a role"),
        ("create volume-token --volume none".to_owned(), 1, "volume 'none' does not exist"),
        ("create volume-token --volume v --ends yesterday".to_owned(), 1, "choose an instant to come"),
        ("create volume-token --volume v --ends soon".to_owned(), 2, "'soon' is not an instant"),
        ("delete block-store b".to_owned(), 1, "block-store 'b' is in use by volume 'v'"),
        ("delete metadata-store m".to_owned(), 1, "metadata-store 'm' is in use by volume 'v'"),
        ("delete account root".to_owned(), 1, "only account with the role admin"),
        ("list".to_owned(), 2, "required"),
        ("show volume EMPTY".to_owned(), 2, "<NAME>"),
        ("delete account EMPTY".to_owned(), 2, "<NAME>"),
        ("update volume-token EMPTY --no-past true".to_owned(), 2, "<ID>"),
        ("update account root".to_owned(), 2, "--new-token"),
        ("update volume v".to_owned(), 2, "--retention"),
        ("update volume-token x".to_owned(), 2, "--ends"),
        ("update volume v --new-name EMPTY".to_owned(), 1, "'' cannot be the name of a volume"),
        ("create account \u{fc}".to_owned(), 1, "'\u{fc}' cannot be the name of an account"),
        ("show volume a?b=c#d".to_owned(), 1, "volume 'a?b=c#d' does not exist"),
        ("create block-store y --kind local --path EMPTY".to_owned(), 2, "--path"),
        (volume("--retention 99999999999999999999d"), 2, "is not a retention"),
        (volume("--max-inodes 18446744073709551615"), 1, "quota of 18446744073709551615 inodes"),
        ("create volume-token --volume v --ends 9999999d".to_owned(), 2, "too far away"),
        ("init creds --token secret".to_owned(), 1, "not a chronofs token"),
    ] {
        let ran = world.configure(&line);
        assert_eq!(ran.code, code, "{line}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(message), "{line}: {}", ran.err);
    }
}

#[test]
fn wrong_tokens_and_no_server_are_told_apart() {
    let mut world = World::started();
    let with = |token: &str| -> common::Ran {
        world.command(&["configure", "list", "volume"]).env("CHRONOFS_TOKEN", token).output().unwrap().into()
    };
    let other = World::started();
    let moved: chronofs_wire::token::Token = other.root.parse().unwrap();
    let wrong_pin = chronofs_wire::token::Token { admin: world.address.clone(), ..moved.clone() };
    let here: chronofs_wire::token::Token = world.root.parse().unwrap();
    let unknown = chronofs_wire::token::Token { secret: moved.secret, ..here };
    for (token, message) in [
        ("secret", "not a chronofs token"),
        (&world.root[..world.root.len() - 2], "cut or mistyped"),
        (&wrong_pin.to_string(), "certificate is another"),
        (&unknown.to_string(), "unknown to this server"),
    ] {
        let ran = with(token);
        assert_eq!(ran.code, 1);
        assert!(ran.err.contains(message), "{}", ran.err);
    }
    assert_eq!(world.terminate(), Some(0));
    let ran = world.configure("list volume");
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains(&world.address) && ran.err.contains("is it running"), "{}", ran.err);
}

#[test]
fn what_is_kept_and_cannot_be_used_is_named_and_no_secret_is_shown() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::prepared();
    let config = world.folder.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("configure.toml"), format!("\ntoken = \"{}\n", world.root)).unwrap();
    let broken = world.run(&["configure", "list", "volume"]);
    assert!(broken.code == 1 && broken.err.contains("configure.toml: line 2"), "{}", broken.err);
    assert!(broken.err.contains("init creds") && !broken.err.contains(&world.root[..30]), "{}", broken.err);
    let mut command = world.command(&["configure", "list", "volume"]);
    let odd = common::Ran::from(
        command.env("CHRONOFS_TOKEN", std::ffi::OsStr::from_bytes(b"\xff")).output().unwrap(),
    );
    assert!(odd.code == 1 && odd.err.contains("CHRONOFS_TOKEN"), "{}", odd.err);
    let file = config.join("configure.toml");
    let mut command = world.command(&["configure", "init", "creds", "--token", &world.root]);
    let nowhere = common::Ran::from(command.env("CHRONOFS_CONFIG_DIR", &file).output().unwrap());
    assert!(nowhere.code == 1 && nowhere.err.contains("CHRONOFS_CONFIG_DIR"), "{}", nowhere.err);
}

#[test]
fn a_taken_port_a_taken_folder_and_a_newer_schema_stop_the_start() {
    let mut world = World::started();
    let args = world.start_args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let second = world.run(&args);
    assert_eq!(second.code, 1);
    assert!(second.err.contains("is in use by process"), "{}", second.err);
    assert!(second.err.contains(world.admin_folder().to_str().unwrap()), "{}", second.err);
    let other = World::prepared();
    let folder = other.admin_folder();
    let taken = other.run(&[
        "admin",
        "start",
        "--db-folder",
        folder.to_str().unwrap(),
        "--bind-addr",
        &world.address,
    ]);
    assert_eq!(taken.code, 1);
    assert!(taken.err.contains(&world.address) && taken.err.contains("in use"), "{}", taken.err);
    world.kill();
    world.database().pragma_update(None, "user_version", 99).unwrap();
    let newer = world.run(&args);
    assert_eq!(newer.code, 1);
    assert!(newer.err.contains("version 99"), "{}", newer.err);
    let twice = other.run(&["admin", "init", "creds", "--db-folder", folder.to_str().unwrap()]);
    assert_eq!(twice.code, 1);
    assert!(twice.err.contains("--rotate"), "{}", twice.err);
}

#[test]
fn usage_help_completions_and_units_are_there() {
    let world = World::prepared();
    assert_eq!(world.run(&["nonsense"]).code, 2);
    assert_eq!(world.run(&[]).code, 2);
    assert!(world.run(&["--version"]).ok().starts_with("chronofs "));
    assert!(world.run(&["configure", "create", "volume", "--help"]).ok().contains("Example"));
    for role in ["admin", "meta"] {
        let unit = world.run(&[role, "init", "systemd"]).ok();
        assert!(unit.contains(&format!("{role} start --db-folder /var/lib/chronofs/{role}")), "{unit}");
    }
    assert!(world.run(&["mount", "init", "systemd"]).ok().contains("Type=chronofs"));
    let odd = world.run(&["meta", "init", "systemd", "--db-folder", "/srv/my 100%"]).ok();
    assert!(odd.contains("--db-folder \"/srv/my 100%%\" "), "{odd}");
    let relative = world.run(&["meta", "init", "systemd", "--db-folder", "here"]).ok();
    let here = std::env::current_dir().unwrap().join("here");
    assert!(relative.contains(&format!("--db-folder {} ", here.display())), "{relative}");
}

#[test]
fn shells_complete_all_commands_and_there_is_a_manual_page_for_each() {
    let world = World::prepared();
    for (shell, check) in [("bash", Some("bash")), ("zsh", None), ("fish", None)] {
        let script = world.run(&["completions", shell]).ok();
        for word in ["block-store", "completions", "at-time", "volume-token"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        if let Some(program) = check {
            let path = world.folder.path().join(shell);
            std::fs::write(&path, script).unwrap();
            assert!(std::process::Command::new(program).arg("-n").arg(path).status().unwrap().success());
        }
    }
    assert_eq!(world.run(&["completions", "tcsh"]).code, 2);
    let dir = world.folder.path().join("man");
    let dir = dir.to_str().unwrap();
    let missing = world.run(&["man", dir]);
    assert!(
        missing.code == 1 && missing.err.contains(dir) && missing.err.contains("exists"),
        "{}",
        missing.err
    );
    std::fs::create_dir(dir).unwrap();
    world.run(&["man", dir]).ok();
    let page = |name: &str| std::fs::read_to_string(format!("{dir}/{name}.1")).unwrap();
    assert!(page("chronofs").contains(".TH chronofs 1") && page("chronofs").contains("chronofs\\-mount"));
    let start = page("chronofs-mount-start");
    assert!(start.contains("at\\-time") && start.contains("yesterday 17:00"), "{start}");
    assert!(page("chronofs-configure-create-volume").contains("block\\-size"));
}
