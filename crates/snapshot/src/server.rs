//! Who the server is that an image is made of: where it is reached, where it stands, what it was started with.
//!
//! A chronofs server says so in variables (`CHRONOFS_SNAPSHOT_*`). FoundationDB says nothing, so there it is read from
//! the command line of the process that called us, with the options as its server spells them.

use crate::cluster_file::ClusterFile;
use crate::error::Error;
use crate::name::Address;
use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;

/// A server, as far as its image must remember it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Where it is reached.
    pub address: Address,
    /// The name of its cluster.
    pub cluster: Option<String>,
    /// Its cluster file, word for word.
    pub cluster_file: Option<String>,
    /// Machine, zone and so on.
    pub locality: BTreeMap<String, String>,
    /// What it was started with.
    pub command_line: Vec<String>,
    /// Its data folder, where it was started with one.
    pub data_folder: Option<PathBuf>,
}

/// What a person says about the server; it counts more than what is found.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Where it is reached.
    pub address: Option<Address>,
    /// Where its cluster file is.
    pub cluster_file: Option<PathBuf>,
    /// Machine, zone and so on.
    pub locality: BTreeMap<String, String>,
}

/// The process that called us.
#[derive(Clone, Debug, Default)]
pub struct Parent {
    /// Its arguments.
    pub command_line: Vec<String>,
    /// What its relative paths start from.
    pub folder: PathBuf,
}

impl Parent {
    /// Of this process.
    pub fn of_this_process() -> Result<Parent, Error> {
        let Some(pid) = rustix::process::getppid() else { return Ok(Parent::default()) };
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let file = proc.join("cmdline");
        let bytes = fs::read(&file).map_err(Error::io("read", &file))?;
        // The folder of a process of another user cannot be seen; then only absolute paths of it mean something.
        let folder = fs::read_link(proc.join("cwd")).unwrap_or_default();
        Ok(Parent { command_line: split_command_line(&bytes), folder })
    }
}

/// Arguments as /proc shows them, each ended by a zero byte; or written by a script that put blanks in their place.
#[must_use]
pub fn split_command_line(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    match text.strip_suffix('\0') {
        Some(text) => text.split('\0').map(str::to_owned).collect(),
        None if text.contains('\0') => text.split('\0').map(str::to_owned).collect(),
        None => text.split_ascii_whitespace().map(str::to_owned).collect(),
    }
}

/// What the options of a FoundationDB server say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// `--cluster-file`, `-C`
    pub cluster_file: Option<String>,
    /// `--public-address`, `-p`: the first of them
    pub public_address: Option<String>,
    /// `--datadir`, `-d`
    pub data_folder: Option<String>,
    /// `--locality-NAME`, and the older `--machine-id` and `--datacenter-id`
    pub locality: BTreeMap<String, String>,
}

impl Options {
    /// Reads `--name value` and `--name=value`, with `-` or `_` inside of names, as the server does.
    #[must_use]
    pub fn read(command_line: &[String]) -> Options {
        let mut options = Options::default();
        let mut arguments = command_line.iter().skip(1);
        while let Some(argument) = arguments.next() {
            let (name, joined) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let name = match name.strip_prefix("--") {
                Some(long) => format!("--{}", long.replace('_', "-").to_ascii_lowercase()),
                None => name.to_owned(),
            };
            let Some(known) = Known::named(&name) else { continue };
            if let Some(value) = joined.or_else(|| arguments.next().cloned()) {
                options.set(known, value);
            }
        }
        options
    }

    fn set(&mut self, option: Known, value: String) {
        match option {
            Known::ClusterFile => self.cluster_file = Some(value),
            Known::DataFolder => self.data_folder = Some(value),
            Known::PublicAddress => self.public_address = value.split(',').next().map(str::to_owned),
            Known::Locality(key) => drop(self.locality.insert(key, value)),
        }
    }
}

/// An option that tells something of a server.
enum Known {
    ClusterFile,
    DataFolder,
    PublicAddress,
    Locality(String),
}

impl Known {
    fn named(name: &str) -> Option<Known> {
        Some(match name {
            "--cluster-file" | "-C" => Known::ClusterFile,
            "--datadir" | "-d" => Known::DataFolder,
            "--public-address" | "-p" => Known::PublicAddress,
            "--machine-id" | "-i" => Known::Locality("machineid".to_owned()),
            "--datacenter-id" | "-a" => Known::Locality("dcid".to_owned()),
            other => Known::Locality(other.strip_prefix("--locality-")?.to_owned()),
        })
    }
}

impl Server {
    /// Puts together what is given, what variables say, and else what the parent was started with.
    pub fn discover(
        given: Given,
        variable: impl Fn(&str) -> Option<String>,
        parent: Parent,
    ) -> Result<Server, Error> {
        let variable =
            |name: &str| variable(&format!("CHRONOFS_SNAPSHOT_{name}")).filter(|value| !value.is_empty());
        let options = Options::read(&parent.command_line);
        let path = given.cluster_file.or_else(|| variable("CLUSTER_FILE").map(PathBuf::from));
        let path = path.or_else(|| options.cluster_file.map(|file| parent.folder.join(file)));
        let read = |path: PathBuf| -> Result<_, Error> {
            let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            let parsed: ClusterFile = text.parse().map_err(|why| Error::ClusterFile { path, why })?;
            Ok((text, parsed))
        };
        let (text, parsed) = path.map(read).transpose()?.unzip();
        let address = match (given.address, variable("ADDRESS").or(options.public_address)) {
            (Some(address), _) => address,
            (None, Some(said)) => address_of(&said, parsed.as_ref())?,
            (None, None) => {
                let line = parent.command_line.join(" ");
                return Err(Error::NoAddress(format!(
                    "the process that called has no --public-address ({line})"
                )));
            }
        };
        let mut locality = options.locality;
        locality.extend(variable("LOCALITY").iter().flat_map(|text| pairs(text)));
        locality.extend(given.locality);
        let data_folder = options.data_folder.map(|folder| parent.folder.join(folder));
        // Description and id tell clusters of one description apart.
        let cluster = variable("CLUSTER_ID").or_else(|| parsed.map(|file| file.description));
        Ok(Server {
            address,
            cluster,
            cluster_file: text,
            locality,
            command_line: parent.command_line,
            data_folder,
        })
    }
}

/// `auto:PORT` stands for the address from which the machine reaches the first coordinator, as in FoundationDB.
fn address_of(said: &str, cluster: Option<&ClusterFile>) -> Result<Address, Error> {
    let unknown = |why: String| Error::NoAddress(format!("'{said}' {why}"));
    let Some(port) = said.strip_prefix("auto:") else {
        return said.parse().map_err(|_| unknown("is not an address".to_owned()));
    };
    let coordinators = cluster.map(|file| &file.coordinators[..]).unwrap_or_default();
    let first = coordinators.first().ok_or_else(|| unknown("needs a cluster file".to_owned()))?;
    let target = first.address.to_string();
    let unspecified = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    // Connecting a datagram socket sends nothing; it only chooses the way, and with it our address on it.
    let ours = UdpSocket::bind(unspecified).and_then(|socket| {
        socket.connect(&target)?;
        socket.local_addr()
    });
    let mut ours =
        ours.map_err(|error| unknown(format!("cannot be found out: no way to {target}: {error}")))?;
    ours.set_port(port.trim_end_matches(":tls").parse().map_err(|_| unknown("has no port".to_owned()))?);
    ours.to_string().parse().map_err(|_| unknown(format!("came to {ours}")))
}

/// `key=value,key=value`
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn every_spelling_of_an_option_of_the_server_is_understood() {
        let spelled = [
            "fdbserver --cluster-file /e/fdb.cluster -p 10.0.0.1:4500 --datadir /d --locality-machineid m --locality-zoneid z",
            "fdbserver --cluster-file=/e/fdb.cluster --public-address=10.0.0.1:4500 --datadir=/d --locality-machineid=m --locality-zoneid=z",
            "fdbserver -C /e/fdb.cluster --public_address 10.0.0.1:4500,10.1.0.1:4501:tls -d /d -i m --locality_zoneid=z",
            "fdbserver --knob-x --cluster_file=/e/fdb.cluster -l 0.0.0.0:1 -p=10.0.0.1:4500 --datadir /d --machine_id m --locality-zoneid z",
        ];
        for text in spelled {
            let read = Options::read(&line(text));
            let expected = Options {
                cluster_file: Some("/e/fdb.cluster".to_owned()),
                public_address: Some("10.0.0.1:4500".to_owned()),
                data_folder: Some("/d".to_owned()),
                locality: [("machineid", "m"), ("zoneid", "z")]
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .into(),
            };
            assert_eq!(read, expected, "{text}");
        }
        assert_eq!(Options::read(&line("-C -p")), Options { ..Options::default() });
    }

    #[test]
    fn variables_count_more_than_the_parent_and_what_is_given_more_than_variables() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("fdb.cluster"), "trial:id@127.0.0.1:4601\n").unwrap();
        let command_line = line("fdbserver -C fdb.cluster -d data -p 10.0.0.1:4500 --locality-zoneid=z1");
        let parent = Parent { command_line: command_line.clone(), folder: folder.path().to_owned() };
        let found = Server::discover(Given::default(), |_| None, parent.clone()).unwrap();
        assert_eq!(found.address.to_string(), "10.0.0.1:4500");
        assert_eq!(found.cluster.as_deref(), Some("trial"));
        assert_eq!(found.data_folder, Some(folder.path().join("data")));
        assert_eq!(found.cluster_file.as_deref(), Some("trial:id@127.0.0.1:4601\n"));
        assert_eq!((found.locality["zoneid"].as_str(), found.command_line), ("z1", command_line));
        let variable = |name: &str| match name {
            "CHRONOFS_SNAPSHOT_ADDRESS" => Some("10.0.0.2:8444".to_owned()),
            "CHRONOFS_SNAPSHOT_LOCALITY" => Some("zoneid=z2,rack=r".to_owned()),
            _ => None,
        };
        let found = Server::discover(Given::default(), variable, parent.clone()).unwrap();
        assert_eq!(found.address.to_string(), "10.0.0.2:8444");
        assert_eq!((found.locality["zoneid"].as_str(), found.locality["rack"].as_str()), ("z2", "r"));
        let given = Given { address: "10.0.0.3:1".parse().ok(), ..Given::default() };
        assert_eq!(Server::discover(given, variable, parent).unwrap().address.to_string(), "10.0.0.3:1");
    }

    #[test]
    fn auto_is_the_address_towards_the_first_coordinator() {
        let cluster: ClusterFile = "a:b@127.0.0.1:4601".parse().unwrap();
        assert_eq!(address_of("auto:4500", Some(&cluster)).unwrap().to_string(), "127.0.0.1:4500");
        assert!(address_of("auto:4500", None).unwrap_err().to_string().contains("needs a cluster file"));
    }

    #[test]
    fn who_calls_without_an_address_is_told_what_to_do() {
        let parent = Parent { command_line: line("bash -i"), folder: PathBuf::new() };
        let error = Server::discover(Given::default(), |_| None, parent).unwrap_err().to_string();
        assert!(error.contains("(bash -i)") && error.contains("give it with --address"), "{error}");
    }
}
