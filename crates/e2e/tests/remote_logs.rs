//! Copies of the log on log servers: killed, cut off, full, asked by strangers, and what is recovered from them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use bytes::{Bytes, BytesMut};
use chronofs_e2e::Installation;
use chronofs_e2e::installation::token_in;
use chronofs_e2e::log_copies::{
    Disk, LogServer, Synced, another_server, keep_copies, members, put_together, wait_until_ready,
};
use chronofs_e2e::process::{free_address, http_get, run, serve_each, text, text_of, wait_for};
use chronofs_e2e::snapshot::{Programs, uid_in};
use chronofs_wire::frame::{self, FrameReader};
use chronofs_wire::identity::Sha256;
use chronofs_wire::tlog::{LogHello, LogReply, LogRequest, LogWelcome};
use chronofs_wire::tls;
use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;

fn status(installation: &Installation) -> String {
    // Ends with 1 where anything is unwell.
    text_of(&run(&mut installation.command(&["cli", "--exec", "status details"])))
}

fn until_members(what: &str, installation: &Installation, wanted: &[&str]) {
    wait_for(what, || (members(installation) == wanted).then_some(()));
}

/// Starts a new server of the store on an empty folder, with what the log servers have.
fn recovered(installation: &mut Installation, synced: &mut Synced, what: &str) {
    installation.meta.kill();
    fs::remove_dir_all(installation.path("meta")).unwrap();
    let folder = installation.path("meta again");
    let (mut server, http) = another_server(installation, &folder, &["--recover-log"]);
    server.start();
    wait_until_ready(&mut server, http);
    let mut mount = installation.mount("v", &[]);
    synced.check(&mount, what);
    synced.write(&mount, 5);
    mount.unmount();
    server.stop();
    installation.ok(&["meta", "verify", "--blocks", "--db-folder", text(&folder)]);
}

#[test]
fn a_log_server_that_is_killed_is_left_out_shows_and_is_caught_up_again() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let (mut a, mut b) = (LogServer::new(&installation, "a"), LogServer::new(&installation, "b"));
    a.start();
    b.start();
    keep_copies(&installation, &["tlog:a", "tlog:b"]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 40);
    b.process.kill();
    // Calls wait until another epoch is recorded, and no longer.
    synced.write(&mount, 40);
    until_members("the dead one to be left out", &installation, &["tlog:a"]);
    let shown = wait_for("status to say so", || {
        let shown = status(&installation);
        shown.contains("log server 'b': unreachable").then_some(shown)
    });
    assert!(shown.contains("log copy tlog:b") && shown.contains("1 of 2 are in touch"), "{shown}");
    let listed = installation.ok(&["configure", "list", "log-server"]);
    assert!(listed.contains("store"), "{listed}");
    let refused = installation.fails(&["configure", "delete", "log-server", "b"]);
    assert!(refused.contains("metadata store 'store'"), "{refused}");
    b.start();
    until_members("it to be back", &installation, &["tlog:a", "tlog:b"]);
    synced.write(&mount, 20);
    let said = installation.ok(&["tlog", "status", "--http-addr", &b.http.to_string()]);
    assert!(said.contains("open") && said.contains("store"), "{said}");
    let (_, figures) = http_get(b.http, "/metrics").unwrap();
    assert!(figures.contains("chronofs_tlog_appended_bytes_total"), "{figures}");
    mount.kill();
    // The one that was away has everything.
    a.process.kill();
    fs::remove_dir_all(&a.folder).unwrap();
    recovered(&mut installation, &mut synced, "from the one that was away");
}

#[test]
fn a_lost_disk_is_recovered_from_a_log_server_on_top_of_a_disk_snapshot() {
    let programs = Programs::new();
    let program = programs.snap_create();
    let mut installation = Installation::start_with_whitelist(&[&program], &[]);
    installation.create_volume("v", &[]);
    let mut far = LogServer::with_program(&installation, "far", &program);
    far.start();
    keep_copies(&installation, &[&far.copy()]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 40);
    let stores = fs::read_dir(far.folder.join("stores")).unwrap();
    let store = stores.map(|entry| entry.unwrap().path()).next().unwrap();
    let oldest = store.join("log/00000000000000000001.log");
    let backup = installation.path("backup");
    let create = ["snapshot", "create", "--", text(&program), "--destdir", text(&backup), "--method", "copy"];
    installation.ok(&create);
    assert!(oldest.exists());
    synced.write(&mount, 10);
    // Every snapshot ends a segment, and the store is flushed when there are some.
    let uid = (0..50)
        .find_map(|_| {
            let uid = uid_in(&installation.ok(&create));
            (!oldest.exists()).then_some(uid)
        })
        .expect("the copy lets the first segment go");
    synced.write(&mount, 40);
    mount.kill();
    installation.meta.kill();
    fs::remove_dir_all(installation.path("meta")).unwrap();

    // Not enough alone, and that is said before anything is written.
    let bare = installation.path("bare");
    let (mut wrong, _) = another_server(&installation, &bare, &["--recover-log"]);
    wrong.start();
    assert!(!wrong.wait().success());
    let said = wrong.log();
    assert!(said.contains("a disk snapshot has what is older") && said.contains("newest complete"), "{said}");
    assert_eq!(fs::read_dir(bare.join("engine/log")).unwrap().count(), 0);

    let images = backup.join(&uid).join(installation.meta_address.to_string());
    let folder = installation.path("meta again");
    put_together(&images, &folder);
    let (mut server, http) = another_server(&installation, &folder, &["--recover-log"]);
    server.start();
    wait_until_ready(&mut server, http);
    let mut mount = installation.mount("v", &[]);
    synced.check(&mount, "after the recovery");
    synced.write(&mount, 5);
    mount.unmount();
    server.stop();
    installation.ok(&["meta", "verify", "--blocks", "--db-folder", text(&folder)]);
}

#[test]
fn a_log_server_whose_disk_is_full_is_left_out_and_comes_back() {
    let holder = tempfile::tempdir().unwrap();
    let small = Disk::new(holder.path().join("small"), 8);
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut a = LogServer::new(&installation, "a");
    let addresses = (free_address(), free_address());
    let mut b = LogServer::in_folder(&installation, "b", small.0.join("b"), addresses, &[], &[]);
    a.start();
    b.start();
    keep_copies(&installation, &["tlog:a", "tlog:b"]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 400);
    until_members("the full one to be left out", &installation, &["tlog:a"]);
    let shown = status(&installation);
    assert!(shown.contains("log copy tlog:b") && shown.contains("No space left"), "{shown}");
    assert!(shown.contains("log server 'b': its disk is almost full"), "{shown}");
    synced.write(&mount, 20);
    small.resize(400);
    until_members("it to be back", &installation, &["tlog:a", "tlog:b"]);
    synced.write(&mount, 20);
    mount.kill();
    a.process.kill();
    fs::remove_dir_all(&a.folder).unwrap();
    recovered(&mut installation, &mut synced, "from the one that was full");
}

#[test]
fn of_two_servers_only_the_newer_makes_anything_durable_on_a_log_server() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut far = LogServer::new(&installation, "far");
    far.start();
    keep_copies(&installation, &["tlog:far"]);
    let mut first = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&first, 20);
    let folder = installation.path("meta again");
    let (mut server, http) = another_server(&installation, &folder, &["--recover-log"]);
    server.start();
    wait_until_ready(&mut server, http);
    drop(fs::write(first.path("lost"), "written to the old server, or to the new one"));
    let status = installation.meta.wait();
    assert!(!status.success(), "{status}");
    let said = installation.meta.log();
    assert!(
        said.contains("another owner") || said.contains("taken over"),
        "{}",
        installation.meta.log_tail()
    );
    let mut second = installation.mount("v", &[]);
    synced.check(&second, "at the newer server");
    synced.write(&second, 20);
    synced.check(&second, "at the newer server");
    first.kill();
    second.unmount();
    server.stop();
}

/// Two ends of a wire, one of them in a network namespace.
struct Network {
    name: String,
    outer: String,
}

impl Network {
    fn new(name: &str, subnet: u8) -> Network {
        let network = Network { name: name.to_owned(), outer: format!("cfs{subnet}a") };
        network.remove();
        let (inner, ip) = (format!("cfs{subnet}b"), |host: u8| format!("10.213.{subnet}.{host}/24"));
        let at = ["netns", "exec", name, "ip"];
        network.ip(&["netns", "add", name]);
        network.ip(&["link", "add", &network.outer, "type", "veth", "peer", "name", &inner]);
        network.ip(&["link", "set", &inner, "netns", name]);
        network.ip(&["addr", "add", &ip(1), "dev", &network.outer]);
        network.ip(&["link", "set", &network.outer, "up"]);
        network.ip(&[&at[..], &["addr", "add", &ip(2), "dev", &inner]].concat());
        network.ip(&[&at[..], &["link", "set", &inner, "up"]].concat());
        network.ip(&[&at[..], &["link", "set", "lo", "up"]].concat());
        network
    }

    fn ip(&self, arguments: &[&str]) {
        let output = run(Command::new("ip").args(arguments));
        assert!(output.status.success(), "ip {arguments:?}: {}", text_of(&output));
    }

    /// Cuts the wire, or heals it.
    fn set(&self, state: &str) {
        let inner = self.outer.replace('a', "b");
        self.ip(&["netns", "exec", &self.name, "ip", "link", "set", &inner, state]);
    }

    fn remove(&self) {
        drop(run(Command::new("ip").args(["netns", "del", &self.name])));
        drop(run(Command::new("ip").args(["link", "del", &self.outer])));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Forwards what comes to this address.
fn forward(from: SocketAddr, to: SocketAddr) {
    serve_each(TcpListener::bind(from).unwrap(), move |mut near| {
        let mut far = TcpStream::connect(to)?;
        let (mut near_in, mut far_out) = (near.try_clone()?, far.try_clone()?);
        std::thread::spawn(move || drop(std::io::copy(&mut near_in, &mut far_out)));
        std::io::copy(&mut far, &mut near).map(drop)
    });
}

#[test]
fn a_log_server_that_is_cut_off_is_left_out_and_comes_back_when_the_wire_heals() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let subnet = 1 + (std::process::id() % 250) as u8;
    let network = Network::new(&format!("chronofs-tlog-{subnet}"), subnet);
    let mut a = LogServer::new(&installation, "a");
    a.start();
    // Its namespace reaches the admin server, which listens on loopback, through here.
    let gate: SocketAddr =
        format!("10.213.{subnet}.1:{}", installation.admin_address.port()).parse().unwrap();
    forward(gate, installation.admin_address);
    let at = |port: u16| format!("10.213.{subnet}.2:{port}").parse::<SocketAddr>().unwrap();
    let folder = installation.path("tlog far");
    let creds = ["--admin", &gate.to_string()];
    let mut far = LogServer::in_folder(&installation, "far", folder, (at(8446), at(8447)), &creds, &[]);
    far.process.run_in_network(&network.name);
    far.start();
    keep_copies(&installation, &["tlog:a", "tlog:far"]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 30);
    network.set("down");
    synced.write(&mount, 30);
    until_members("the one that is cut off to be left out", &installation, &["tlog:a"]);
    synced.write(&mount, 30);
    network.set("up");
    until_members("it to be back", &installation, &["tlog:a", "tlog:far"]);
    synced.write(&mount, 10);
    // Cut off in the middle of a restart: the start does without it, and it comes back again.
    network.set("down");
    mount.kill();
    installation.meta.kill();
    installation.start_meta();
    until_members("the start to do without it", &installation, &["tlog:a"]);
    network.set("up");
    until_members("it to be back once more", &installation, &["tlog:a", "tlog:far"]);
    let mut mount = installation.mount("v", &[]);
    synced.write(&mount, 10);
    mount.kill();
    a.process.kill();
    fs::remove_dir_all(&a.folder).unwrap();
    recovered(&mut installation, &mut synced, "from the one that was cut off");
}

/// What a log server answers to somebody who presents this.
async fn answered(
    far: SocketAddr,
    pin: Sha256,
    hello: &LogHello,
    request: &LogRequest,
) -> Result<LogReply, String> {
    let stream = tokio::net::TcpStream::connect(far).await.unwrap();
    let connector = TlsConnector::from(tls::client_config(pin).unwrap());
    let stream = connector.connect(tls::server_name(&far.to_string()), stream).await.unwrap();
    let (input, mut output) = tokio::io::split(stream);
    let mut out = BytesMut::new();
    frame::encode(hello, &mut out).unwrap();
    frame::encode(request, &mut out).unwrap();
    output.write_all(&out).await.unwrap();
    output.flush().await.unwrap();
    let mut frames = FrameReader::new(input);
    match frames.next::<LogWelcome>().await {
        Ok(Some(LogWelcome::Welcome { .. })) => Ok(frames.next::<LogReply>().await.unwrap().unwrap()),
        Ok(Some(LogWelcome::Refused { reason, .. })) => Err(reason),
        other => Err(format!("{other:?}")),
    }
}

fn registered(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("registered.json")).unwrap()).unwrap()
}

#[test]
fn strangers_are_refused_and_so_is_who_was_revoked() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut far = LogServer::new(&installation, "far");
    far.start();
    keep_copies(&installation, &["tlog:far"]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 5);
    // Tokens of other kinds, and no log server of that name.
    let account = token_in(&installation.ok(&["configure", "create", "account", "eve", "--role", "admin"]));
    let other = installation.path("other");
    let said =
        installation.fails(&["tlog", "init", "creds", "--token", &account, "--db-folder", text(&other)]);
    assert!(said.contains("log server"), "{said}");
    let update = ["configure", "update", "metadata-store", "store"];
    let said = installation.fails(&[&update[..], &["--log-copies", "tlog:nowhere"]].concat());
    assert!(said.contains("no log server 'nowhere'") && said.contains("tlog:far"), "{said}");

    let store: uuid::Uuid =
        registered(&installation.path("meta"))["store"].as_str().unwrap().parse().unwrap();
    let pin = tls::ServerIdentity::load_existing(&far.folder).unwrap().pin();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ask = |store: uuid::Uuid, secret: &[u8], request: &LogRequest| {
        let secret = Bytes::copy_from_slice(secret);
        let hello = LogHello { protocol_min: 1, protocol_max: 1, store, secret, known: false };
        runtime.block_on(answered(far.address, pin, &hello, request))
    };
    // With no secret, with a wrong one, for a store that is not known; reading, sealing and appending.
    let seal = LogRequest::Seal { epoch: 1 << 40 };
    let read = LogRequest::Read { segment: 1, offset: 0, length: 100 };
    for (of, secret) in [(store, &[][..]), (store, &[7; 32]), (uuid::Uuid::from_u128(7), &[7; 32])] {
        for request in [&seal, &read] {
            let said = ask(of, secret, request).unwrap_err();
            assert!(said.contains("not told by the admin server"), "{said}");
        }
    }
    synced.write(&mount, 5);

    // A new token of the metadata store takes from its server what opened the log server.
    let token = token_in(&installation.ok(&[&update[..], &["--new-token"]].concat()));
    wait_for("the log server to refuse the old server", || {
        drop(fs::write(mount.path("waits"), "for durability"));
        far.process.log().contains("revoked").then_some(())
    });
    mount.kill();
    installation.meta.kill();
    let meta = installation.path("meta");
    installation.ok(&["meta", "init", "creds", "--token", &token, "--db-folder", text(&meta)]);
    installation.start_meta();
    let mut mount = installation.mount("v", &[]);
    synced.check(&mount, "with the new token");
    synced.write(&mount, 5);
    mount.unmount();

    // A second server of the same name, on a folder of its own, is the one from then on; the first one ends.
    let folder = installation.path("tlog far again");
    let token = fs::read_to_string(far.folder.join("credentials")).unwrap();
    installation.ok(&["tlog", "init", "creds", "--token", token.trim(), "--db-folder", text(&folder)]);
    let (address, http) = (free_address().to_string(), free_address());
    let shown = http.to_string();
    let arguments =
        ["tlog", "start", "--db-folder", text(&folder), "--bind-addr", &address, "--http-addr", &shown];
    let log = installation.path("again.log");
    let mut second = chronofs_e2e::process::Process::new("the second", &arguments, &[], &log);
    second.start();
    let ended = far.process.wait();
    assert!(!ended.success() && far.process.log().contains("epoch"), "{}", far.process.log_tail());
    // It has nothing, and is not taken for a copy that holds nothing.
    wait_for("the empty one to be refused", || status(&installation).contains("is empty now").then_some(()));
    assert_eq!(fs::read_dir(folder.join("stores")).unwrap().count(), 0, "a copy was begun anew");
}

/// The admin server is away while a copy has failed: nothing more becomes durable, and the server still ends when it is told to.
#[test]
fn a_server_that_cannot_leave_a_copy_out_ends_when_it_is_told_to() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let mut far = LogServer::new(&installation, "far");
    far.start();
    keep_copies(&installation, &["tlog:far"]);
    let mut mount = installation.mount("v", &[]);
    let mut synced = Synced::new();
    synced.write(&mount, 5);
    installation.admin.kill();
    far.process.kill();
    fs::write(mount.path("more"), "applied, and not durable").unwrap();
    installation.meta.signal(rustix::process::Signal::TERM);
    let ended = installation.meta.wait();
    assert!(!ended.success(), "what was not durable everywhere is said");
    assert!(installation.meta.log().contains("do not have everything"), "{}", installation.meta.log_tail());
    // What was applied is in its own log.
    installation.start_admin();
    far.start();
    installation.start_meta();
    assert_eq!(fs::read_to_string(mount.path("more")).unwrap(), "applied, and not durable");
    synced.check(&mount, "after the restart");
    mount.unmount();
}
