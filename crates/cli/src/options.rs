//! The words after `mount start -o` and in fstab: those of every file system, and the options of `mount start`
//! without their dashes.

use crate::logs::{LogFormat, LogLevel};
use crate::mount::OnOutage;
use crate::output::parse_size;
use chronofs_mount::MountOptions;
use chronofs_wire::http::parse_address;
use clap::ValueEnum;
use std::path::PathBuf;

/// What the words ask for.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Words {
    /// What the kernel is told.
    pub(crate) kernel: MountOptions,
    pub(crate) at_time: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) admin: Option<String>,
    pub(crate) cluster_file: Option<PathBuf>,
    pub(crate) cache_dir: Option<PathBuf>,
    pub(crate) cache_size: Option<u64>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) passphrase_file: Option<PathBuf>,
    pub(crate) on_store_outage: Option<OnOutage>,
    pub(crate) direct: bool,
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) profile: Option<String>,
    pub(crate) ambient_credentials: bool,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) log_level: Option<LogLevel>,
}

impl Words {
    /// Reads lists of words separated by commas; of two that contradict each other the later one wins, as with
    /// mount(8). `sloppy`: words that are not known are passed over.
    pub(crate) fn read(lists: &[String], sloppy: bool) -> Result<Words, String> {
        let mut words = Words::default();
        for word in lists.iter().flat_map(|list| split(list)).filter(|word| !word.is_empty()) {
            if !words.kernel.take(word) && !words.take_own(word)? && !sloppy {
                return Err(unknown(word));
            }
        }
        Ok(words)
    }

    fn take_own(&mut self, word: &str) -> Result<bool, String> {
        let Some((name, value)) = word.split_once('=') else {
            match word {
                "direct" => self.direct = true,
                "ambient-credentials" | "ambientCredentials" => self.ambient_credentials = true,
                _ => return Ok(false),
            }
            return Ok(true);
        };
        let value = value.trim_matches('"');
        if value.is_empty() {
            return Err(format!("mount option '{name}' needs a value: {name}=..."));
        }
        match name {
            "at-time" | "atTime" => self.at_time = Some(value.to_owned()),
            "token" => self.token = Some(value.to_owned()),
            "token-file" | "tokenFile" => self.token_file = Some(value.into()),
            "admin" => self.admin = Some(parse_address(value)?),
            "cluster-file" | "clusterFile" => self.cluster_file = Some(value.into()),
            "cache-dir" | "cacheDir" => self.cache_dir = Some(value.into()),
            "cache-size" | "cacheSize" => self.cache_size = Some(parse_size(value)?),
            "key-file" | "keyFile" => self.key_file = Some(value.into()),
            "passphrase-file" | "passphraseFile" => self.passphrase_file = Some(value.into()),
            "on-store-outage" | "onStoreOutage" => self.on_store_outage = Some(one_of(name, value)?),
            "credentials-file" | "credentialsFile" => self.credentials_file = Some(value.into()),
            "profile" => self.profile = Some(value.to_owned()),
            "log-format" | "logFormat" => self.log_format = Some(one_of(name, value)?),
            "log-level" | "logLevel" => self.log_level = Some(one_of(name, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn one_of<T: ValueEnum>(name: &str, value: &str) -> Result<T, String> {
    T::from_str(value, false).map_err(|_| {
        let known = T::value_variants().iter().filter_map(T::to_possible_value);
        let known: Vec<_> = known.map(|value| value.get_name().to_owned()).collect();
        format!("mount option {name}={value} is not possible: write one of {}", known.join(", "))
    })
}

fn unknown(word: &str) -> String {
    let why = match word {
        "remount" => "a mount cannot be changed; unmount it and mount it again",
        "dirsync" | "mand" => "the kernel does not do this for file systems of this kind; leave it away",
        _ => {
            "chronofs has at-time=T, token-file=FILE, token=TOKEN, admin=HOST:PORT, cluster-file=FILE, cache-dir=DIR, cache-size=SIZE, \
             key-file=FILE, passphrase-file=FILE, on-store-outage=wait|fail, direct, credentials-file=FILE, profile=NAME, ambient-credentials, log-format=F \
             and log-level=L, and knows ro, nosuid, nodev, noexec, noatime, sync and their like"
        }
    };
    format!("mount option '{word}' is not known: {why}")
}

/// At commas that are not within double quotes.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &str) -> Result<Words, String> {
        Words::read(&[list.to_owned()], false)
    }

    #[test]
    fn every_option_of_mount_start_can_be_said_in_fstab() {
        let list = "rw,noauto,x-systemd.automount,_netdev,nofail,atTime=yesterday 17:00,token-file=\"/etc/a,b\",\
                    token=t,admin=h:1,clusterFile=/cf,cache-dir=/c,cacheSize=2G,key-file=/vk,passphraseFile=/vp,onStoreOutage=fail,direct,\
                    credentials-file=/k,profile=p,ambientCredentials,log-format=json,logLevel=debug,ro,noexec";
        let mut kernel = MountOptions::default();
        assert!(kernel.take("ro") && kernel.take("noexec"));
        let expected = Words {
            kernel,
            at_time: Some("yesterday 17:00".to_owned()),
            token: Some("t".to_owned()),
            token_file: Some("/etc/a,b".into()),
            admin: Some("h:1".to_owned()),
            cluster_file: Some("/cf".into()),
            cache_dir: Some("/c".into()),
            cache_size: Some(2 << 30),
            key_file: Some("/vk".into()),
            passphrase_file: Some("/vp".into()),
            on_store_outage: Some(OnOutage::Fail),
            direct: true,
            credentials_file: Some("/k".into()),
            profile: Some("p".to_owned()),
            ambient_credentials: true,
            log_format: Some(LogFormat::Json),
            log_level: Some(LogLevel::Debug),
        };
        assert_eq!(read(list).unwrap(), expected);
        assert_eq!(read("at-time=-1h,at-time=-2h").unwrap().at_time.as_deref(), Some("-2h"), "the later one");
        assert_eq!(read("").unwrap(), Words::default());
    }

    #[test]
    fn what_nobody_knows_is_refused_by_name_unless_mount_8_is_told_to_be_sloppy() {
        for (list, said) in [
            ("shiny", "'shiny' is not known"),
            ("rw,remount", "unmount it"),
            ("dirsync", "does not do this"),
            ("at-time", "'at-time' is not known"),
            ("token-file=", "needs a value"),
            ("admin=a b", "'a b' is not an address"),
            ("cache-size=much", "'much' is not a size"),
            ("log-format=xml", "write one of text, json"),
            ("on-store-outage=panic", "write one of wait, fail"),
            ("log-level=loud", "error, warn, info, debug, trace"),
        ] {
            let error = read(list).unwrap_err();
            assert!(error.contains(said), "{list}: {error}");
        }
        assert_eq!(Words::read(&["shiny,dull=2".to_owned()], true), Ok(Words::default()));
    }
}
