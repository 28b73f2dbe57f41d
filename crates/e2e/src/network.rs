//! Machines of a test's own: network namespaces on one bridge. The test runs in namespaces of mounts, processes and network
//! itself, so that all of it goes when it ends, however it ends.

use crate::disk::done;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Set for the test that runs inside.
const INSIDE: &str = "CHRONOFS_TEST_INSIDE";
const BRIDGE: &str = "machines";
/// Where `ip netns` keeps what it has named.
const NAMED: &str = "/run/netns";

/// Runs test `name` of this executable again, in namespaces of its own, and gives false; true is given in there.
///
/// `unshare` ends with this test and everything inside with `unshare`: processes, then mounts, loop devices and networks.
#[track_caller]
pub fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    crate::require_root_and_fuse();
    let folder = tempfile::Builder::new().prefix("chronofs-machines-").tempdir().expect("a temporary folder");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]);
    command.args(["--mount-proc", "--propagation", "private"]);
    command.arg(std::env::current_exe().expect("a test knows its own path"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(INSIDE, "1").env("TMPDIR", folder.path()).stdin(Stdio::null());
    let output = command.output().expect("setpriv and unshare of util-linux");
    let said = crate::process::text_of(&output);
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{}", output.status);
    false
}

/// See the module.
pub struct Network(());

impl Network {
    /// A bridge to this side with `addresses`.
    #[track_caller]
    pub fn new(addresses: &[Ipv4Addr]) -> Network {
        assert!(std::env::var_os(INSIDE).is_some(), "the machine's own network is left alone");
        std::fs::create_dir_all(NAMED).expect("a folder for names");
        done(Command::new("mount").args(["-t", "tmpfs", "netns", NAMED]));
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", "name", BRIDGE, "type", "bridge"]);
        for address in addresses {
            ip(&["address", "add", &format!("{address}/24"), "dev", BRIDGE]);
        }
        ip(&["link", "set", BRIDGE, "up"]);
        Network(())
    }

    /// A machine with `addresses` on the bridge.
    #[track_caller]
    pub fn add(&self, name: &str, addresses: &[Ipv4Addr]) {
        let outside = format!("to-{name}");
        ip(&["netns", "add", name]);
        ip(&["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", name]);
        ip(&["link", "set", &outside, "master", BRIDGE, "up"]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        for address in addresses {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        }
        ip(&["-n", name, "link", "set", "eth0", "up"]);
    }
}

/// How a process is started on machine `name`: what comes before its command.
pub fn on(name: &str) -> [String; 2] {
    // `ip netns exec` would give it mounts of its own, too.
    ["nsenter".to_owned(), format!("--net={}", PathBuf::from(NAMED).join(name).display())]
}

/// Where an installation's servers are, if not on loopback.
pub struct Hosts {
    /// The admin server, on this side.
    pub admin: IpAddr,
    /// The metadata server.
    pub meta: IpAddr,
    /// The metadata server's machine.
    pub machine: String,
}

#[track_caller]
fn ip(arguments: &[&str]) {
    done(Command::new("ip").args(arguments));
}
