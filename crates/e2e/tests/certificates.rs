//! Servers with certificates of somebody else: those that fit serve, those that do not stop the start.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::process::Command;

use chronofs_e2e::process::{Process, free_address, run, text, text_of};
use chronofs_e2e::{Installation, Rng};

#[test]
fn own_certificates_that_do_not_fit_stop_the_start() {
    let installation = Installation::start();
    let folder = installation.path("admin-with-certificate");
    let (certificate, key) = (installation.path("cert.pem"), installation.path("key.pem"));
    fs::write(&certificate, "no certificate").unwrap();
    let address = free_address().to_string();
    installation.ok(&["admin", "init", "creds", "--db-folder", text(&folder), "--address", &address]);
    let arguments = [
        "admin",
        "start",
        "--db-folder",
        text(&folder),
        "--bind-addr",
        &address,
        "--tls-cert",
        text(&certificate),
        "--tls-key",
        text(&key),
    ];
    for (what, expected) in [("a missing key", "key.pem"), ("a broken certificate", "cert.pem")] {
        let mut process = Process::new("admin", &arguments, &[], &installation.path("tls.log"));
        process.start();
        assert!(!process.wait().success(), "{what}: started");
        assert!(process.log().contains(expected), "{what}: {}", process.log());
        fs::write(&key, "no key").unwrap();
    }
}

/// SHA-256 of the certificate that a server shows, as openssl writes it.
fn shown_certificate(address: &str) -> String {
    let script = r#"openssl s_client -connect "$1" < /dev/null 2> /dev/null | openssl x509 -noout -sha256 -fingerprint"#;
    let output = run(Command::new("bash").args(["-o", "pipefail", "-c", script, "shown", address]));
    assert!(output.status.success(), "openssl s_client {address}: {}", text_of(&output));
    text_of(&output)
}

#[test]
fn servers_with_certificates_of_somebody_else_serve_mounts() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, kind: &[&str]| {
        let (certificate, key) =
            (folder.path().join(format!("{name}.crt")), folder.path().join(format!("{name}.key")));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey"]);
        let output = run(command.args(kind).arg("-out").arg(&certificate).arg("-keyout").arg(&key));
        assert!(output.status.success(), "openssl req: {}", text_of(&output));
        let print = run(Command::new("openssl")
            .args(["x509", "-noout", "-sha256", "-fingerprint", "-in"])
            .arg(&certificate));
        (
            [
                "--tls-cert".to_owned(),
                text(&certificate).to_owned(),
                "--tls-key".to_owned(),
                text(&key).to_owned(),
            ],
            text_of(&print),
        )
    };
    let (of_admin, admin_print) = made("admin", &["rsa:2048"]);
    let (of_meta, meta_print) = made("meta", &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    let mut installation = Installation::start_with_tls(&of_admin, &of_meta);
    assert_eq!(shown_certificate(&installation.admin_address.to_string()), admin_print);
    assert_eq!(shown_certificate(&installation.meta_address.to_string()), meta_print);
    assert_ne!(admin_print, meta_print);

    installation.create_volume("v", &[]);
    let mut mount = installation.mount("v", &[]);
    let bytes = Rng::new(4).bytes(3 << 20);
    fs::write(mount.path("file"), &bytes).unwrap();
    let at = mount.instant();
    fs::write(mount.path("more"), "x").unwrap();
    let mut past = installation.mount_past(&mount, &at);
    assert!(!past.path("more").exists());
    // Both servers come back with the same certificates, which the mounts go on to trust.
    installation.admin.stop();
    installation.start_admin();
    installation.meta.kill();
    installation.start_meta();
    assert!(fs::read(past.path("file")).unwrap() == bytes);
    fs::write(mount.path("more"), "y").unwrap();
    assert_eq!(shown_certificate(&installation.meta_address.to_string()), meta_print);
    past.unmount();
    mount.unmount();
}
