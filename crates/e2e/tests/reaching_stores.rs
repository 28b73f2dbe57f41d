//! How servers and mounts get to a bucket: as who, at which address, and which certificates they believe.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use chronofs_e2e::bearer_front::BearerFront;
use chronofs_e2e::gcs_double::GcsDouble;
use chronofs_e2e::installation::is_mount_point;
use chronofs_e2e::lying_proxy::LyingProxy;
use chronofs_e2e::machine::{BEARER, Machine, ROLE_KEY_ID, ROLE_SECRET, ROLE_TOKEN};
use chronofs_e2e::object_server::{AZURE_ACCOUNT, BUCKET, KEY_ID, Kind, ObjectServer, SECRET};
use chronofs_e2e::process::{http_get, run, text, text_of};
use chronofs_e2e::tls_front::TlsFront;
use chronofs_e2e::{Installation, Mount, Rng};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::Duration;

fn owned(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|&flag| flag.to_owned()).collect()
}

/// A volume in a new block store with these flags, and a mount of it.
fn mounted(installation: &Installation, flags: &[String]) -> Mount {
    installation.create_block_store("cloud", flags, &[]);
    installation.create_volume_in("cloud", "v", &[]);
    installation.mount("v", &[])
}

/// Writes through a mount and reads through others, which know nothing of it.
fn writes_and_reads(installation: &Installation, mount: &Mount) {
    let bytes = Rng::new(7).bytes(5 << 20);
    fs::write(mount.path("large"), &bytes).unwrap();
    File::open(mount.path("large")).unwrap().sync_all().unwrap();
    let other = installation.mount("v", &[]);
    assert!(fs::read(other.path("large")).unwrap() == bytes);
}

/// Bytes of objects that went through the metadata server.
fn through_server(installation: &Installation) -> u64 {
    let (_, text) = http_get(installation.http_address, "/metrics").unwrap();
    let lines = text.lines().filter(|line| line.starts_with("chronofs_meta_object_bytes_total"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Servers on a machine with a proxy in its environment.
fn started_on(machine: &Machine, proxy: &LyingProxy) -> Installation {
    let (environment, proxy) = (machine.environment(), format!("http://{}", proxy.address));
    let environment = environment.iter().map(|(key, value)| (*key, &**value));
    let environment: Vec<_> = environment.chain([("http_proxy", &*proxy), ("ALL_PROXY", &proxy)]).collect();
    Installation::start_with_environment(&environment)
}

#[test]
fn servers_and_direct_mounts_use_the_key_that_amazon_gives_their_machine() {
    let (machine, server) = (Machine::start(), ObjectServer::start(Kind::Moto));
    let proxy = LyingProxy::start(server.address, 1);
    let stranger = LyingProxy::start(server.address, 1);
    let mut installation = started_on(&machine, &stranger);
    let endpoint = format!("http://{}", proxy.address);
    let flags = ["--kind", "s3", "--region", "us-east-1", "--bucket", BUCKET, "--endpoint", &endpoint];
    let flags = owned(&[&flags[..], &["--ambient-credentials"]].concat());
    let mount = mounted(&installation, &flags);
    writes_and_reads(&installation, &mount);
    assert_eq!(through_server(&installation), 0, "what the machine's key has signed is used by mounts");
    let given = machine.given();
    assert!((2..20).contains(&given), "admin and meta ask, and not for each request: {given}");

    let place = installation.path("place");
    fs::create_dir(&place).unwrap();
    let start =
        ["mount", "start", "v", text(&place), "--token", &mount.token, "--direct", "--ambient-credentials"];
    let started = run(installation.command(&start).envs(machine.environment()));
    assert!(started.status.success(), "{}", text_of(&started));
    assert!(is_mount_point(&place) && fs::read(place.join("large")).unwrap().len() == 5 << 20);
    installation.ok(&["mount", "stop", text(&place)]);
    assert!(machine.given() > given);

    assert_eq!(stranger.heads(), Vec::<String>::new(), "neither keys nor bytes go through a proxy");
    let heads = proxy.heads();
    assert!(heads.len() > 150, "a probe alone is more: {}", heads.len());
    for head in heads {
        assert!(head.contains(ROLE_KEY_ID) && head.contains(ROLE_TOKEN), "{head}");
        assert!(!head.contains(ROLE_SECRET), "{head}");
    }
    drop(mount);
    installation.meta.stop();
    let folder = installation.path("meta");
    let verify = ["meta", "verify", "--blocks", "--db-folder", text(&folder)];
    let verified = run(installation.command(&verify).envs(machine.environment()));
    assert!(verified.status.success(), "{}", text_of(&verified));
}

#[test]
fn a_key_that_ends_is_followed_by_another_before_it_does() {
    // Another is asked for when five minutes are left.
    let (machine, server) =
        (Machine::start_with_keys_for(Duration::from_secs(302)), ObjectServer::start(Kind::Moto));
    let proxy = LyingProxy::start(server.address, 1);
    let installation = started_on(&machine, &proxy);
    let endpoint = format!("http://{}", proxy.address);
    let flags = ["--kind", "s3", "--region", "us-east-1", "--bucket", BUCKET, "--endpoint", &endpoint];
    let mount = mounted(&installation, &owned(&[&flags[..], &["--ambient-credentials"]].concat()));
    writes_and_reads(&installation, &mount);
    let keys = |heads: &[String]| -> BTreeSet<u32> {
        let number = |head: &String| {
            let digits = head.split(ROLE_KEY_ID).nth(1)?.chars().take_while(char::is_ascii_digit);
            digits.collect::<String>().parse().ok()
        };
        heads
            .iter()
            .map(|head| number(head).unwrap_or_else(|| panic!("no key of the machine: {head}")))
            .collect()
    };
    let before = proxy.heads();
    let (known, given) = (keys(&before), machine.given());
    std::thread::sleep(Duration::from_secs(3));
    fs::write(mount.path("later"), Rng::new(8).bytes(5 << 20)).unwrap();
    File::open(mount.path("later")).unwrap().sync_all().unwrap();
    // What was signed before is used up first; for another mount all is signed anew.
    let other = installation.mount("v", &[]);
    assert!(fs::read(other.path("later")).unwrap() == Rng::new(8).bytes(5 << 20));
    let later = keys(&proxy.heads()[before.len()..]);
    assert!(machine.given() > given, "{given}");
    assert!(later.iter().any(|key| !known.contains(key)), "{known:?}, then {later:?}");
}

#[test]
fn servers_use_the_token_that_google_gives_their_machine() {
    let (machine, double) = (Machine::start(), GcsDouble::start());
    double.only_for_bearer(BEARER);
    let stranger = LyingProxy::start(double.address, 1);
    let installation = started_on(&machine, &stranger);
    let flags = ["--kind", "gcs", "--bucket", BUCKET, "--endpoint", &double.endpoint()];
    let refused = ["configure", "create", "block-store", "other", "--anonymous"];
    let refused = installation.fails(&[&refused[..], &flags].concat());
    assert!(refused.contains("cannot be used") && refused.contains("401"), "{refused}");
    let mount = mounted(&installation, &owned(&[&flags[..], &["--ambient-credentials"]].concat()));
    writes_and_reads(&installation, &mount);
    assert!(double.names().iter().any(|name| name.contains("/objects/")), "{:?}", double.names());
    // Google's machines sign nothing: what mounts move goes through the server.
    assert!(through_server(&installation) >= 10 << 20);
    let given = machine.given();
    assert!((2..20).contains(&given), "admin and meta ask, and not for each request: {given}");
    assert_eq!(stranger.heads(), Vec::<String>::new(), "neither tokens nor bytes go through a proxy");
}

#[test]
fn servers_use_the_token_that_azure_gives_their_machine() {
    let (machine, server) = (Machine::start(), ObjectServer::start(Kind::Azurite));
    let front = BearerFront::start(server.address, BEARER);
    let stranger = LyingProxy::start(server.address, 1);
    let installation = started_on(&machine, &stranger);
    let endpoint = front.endpoint();
    let flags = ["--kind", "azure", "--account", AZURE_ACCOUNT, "--bucket", BUCKET, "--endpoint", &endpoint];
    let refused = ["configure", "create", "block-store", "other", "--anonymous"];
    let refused = installation.fails(&[&refused[..], &flags].concat());
    assert!(refused.contains("cannot be used") && refused.contains("401"), "{refused}");
    assert_eq!(machine.given(), 0, "who is nobody does not ask who it is");
    let mount = mounted(&installation, &owned(&[&flags[..], &["--ambient-credentials"]].concat()));
    writes_and_reads(&installation, &mount);
    // Its machines sign nothing either.
    assert!(through_server(&installation) >= 10 << 20);
    let given = machine.given();
    assert!((2..20).contains(&given), "admin and meta ask, and not for each request: {given}");
    assert_eq!(stranger.heads(), Vec::<String>::new(), "neither tokens nor bytes go through a proxy");
}

#[test]
fn a_store_with_a_certificate_of_its_own_is_used_by_those_who_are_told_of_it_and_refused_by_others() {
    let server = ObjectServer::start(Kind::Moto);
    let (front, another) = (TlsFront::start(server.address), TlsFront::start(server.address));
    let mut installation = Installation::start();
    let endpoint = front.endpoint();
    let honest = server.endpoint();
    let flags = server.flags().into_iter().map(|flag| if flag == honest { endpoint.clone() } else { flag });
    let flags: Vec<String> = flags.collect();
    let (known, wrong) = (front.ca_file(), another.ca_file());
    let create = owned(&["configure", "create", "block-store", "refused"]);
    for trusted in [&[][..], &["--ca-file", text(&wrong)]] {
        let arguments = [&create[..], &flags, &owned(trusted)].concat();
        let refused = installation.fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(refused.contains("cannot be used") && refused.contains("certificate"), "{refused}");
        assert!(!refused.contains(SECRET), "{refused}");
    }
    let mount = mounted(&installation, &[&flags[..], &owned(&["--ca-file", text(&known)])].concat());
    installation.ok(&["configure", "probe", "block-store", "cloud"]);
    writes_and_reads(&installation, &mount);
    assert_eq!(through_server(&installation), 0, "mounts are told of the certificate");
    let keys = installation.path("keys");
    fs::write(&keys, format!("[default]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n"))
        .unwrap();
    let direct = installation.mount_with(
        "v",
        &mount.token,
        &["--direct", "--credentials-file", text(&keys), "--on-store-outage", "fail"],
    );
    assert_eq!(fs::read(direct.path("large")).unwrap().len(), 5 << 20);
    drop((mount, direct));
    installation.stop_meta_and_verify();
}

#[test]
fn oracles_store_is_reached_with_its_region_and_the_bucket_in_the_path() {
    let server = ObjectServer::start(Kind::Moto);
    let proxy = LyingProxy::start(server.address, 1);
    let mut installation = Installation::start();
    let endpoint = format!("http://{}", proxy.address);
    let flags = ["--kind", "oci", "--region", "eu-frankfurt-1", "--bucket", BUCKET, "--endpoint", &endpoint];
    let keys = ["--access-key-id", KEY_ID, "--secret-access-key", SECRET];
    let mount = mounted(&installation, &owned(&[&flags[..], &keys].concat()));
    writes_and_reads(&installation, &mount);
    assert_eq!(through_server(&installation), 0);
    for head in proxy.heads() {
        // In the header, or in the address of what was signed for a mount.
        let scope = head.replace("%2F", "/");
        assert!(scope.contains("/eu-frankfurt-1/s3/aws4_request"), "{head}");
        let target = head.split(' ').nth(1).unwrap();
        assert!(target.starts_with(&format!("/{BUCKET}")), "{head}");
    }
    drop(mount);
    installation.stop_meta_and_verify();
}
