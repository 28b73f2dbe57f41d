//! Unit files.

use crate::output;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Where a unit file goes.
#[derive(clap::Args, Debug)]
pub(crate) struct SystemdArgs {
    /// Write the unit into this folder instead of printing it
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Further flags that the unit gives to `start`
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// The unit of a server.
pub(crate) fn server_unit(
    role: &str,
    what: &str,
    folder: &Path,
    after: &str,
    args: &SystemdArgs,
) -> Result<String> {
    let program = std::env::current_exe().context("cannot find the own executable")?;
    let folder = std::path::absolute(folder).with_context(|| format!("cannot find {}", folder.display()))?;
    Ok(format!(
        "[Unit]\n\
         Description=chronofs {what}\n\
         Wants=network-online.target\n\
         After=network-online.target{after}\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         ExecStart={program} {role} start --db-folder {folder} --log-format json{flags}\n\
         Restart=always\n\
         RestartSec=1\n\
         KillSignal=SIGTERM\n\
         TimeoutStopSec=60\n\
         LimitNOFILE=65536\n\
         NoNewPrivileges=yes\n\
         ProtectHome=read-only\n\
         PrivateTmp=yes\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        program = quoted(&program.to_string_lossy()),
        folder = quoted(&folder.to_string_lossy()),
        flags = args.flags.iter().map(|flag| format!(" {}", quoted(flag))).collect::<String>(),
    ))
}

/// One word of ExecStart: systemd splits at blanks and replaces what stands after % and $.
fn quoted(word: &str) -> String {
    let text = word.replace('%', "%%").replace('$', "$$");
    match text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == '"' || c == '\'' || c == '\\')
    {
        true => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        false => text,
    }
}

/// An example of a unit that mounts a volume at boot.
pub(crate) fn mount_unit() -> String {
    "# Name this file after its folder: /mnt/data is mnt-data.mount (systemd-escape -p --suffix=mount DIR).\n\
     # The token comes from chronofs mount init creds --token TOKEN --volume VOLUME, and /sbin/mount.chronofs must\n\
     # be a link to chronofs.\n\
     [Unit]\n\
     Description=chronofs volume data\n\
     Wants=network-online.target\n\
     After=network-online.target\n\
     \n\
     [Mount]\n\
     What=data\n\
     Where=/mnt/data\n\
     Type=chronofs\n\
     Options=_netdev\n\
     \n\
     [Install]\n\
     WantedBy=remote-fs.target\n"
        .to_owned()
}

/// Prints the unit, or writes it and says what to do with it.
pub(crate) fn put(unit: &str, name: &str, args: &SystemdArgs) -> Result<()> {
    let Some(folder) = &args.output else { return output::line(unit.trim_end()) };
    let path = folder.join(name);
    std::fs::write(&path, unit)
        .with_context(|| format!("cannot write {}; name a folder that exists", path.display()))?;
    let own = name.strip_prefix("chronofs-").and_then(|name| name.strip_suffix(".service"));
    let own =
        own.map(|name| format!(", or without systemd chronofs manage start {name}")).unwrap_or_default();
    output::line(format!(
        "wrote {}; next: systemctl daemon-reload && systemctl enable --now {name}{own}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(folder: &str, flags: &[&str]) -> String {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let args = SystemdArgs { output: None, flags };
        server_unit("meta", "metadata server", Path::new(folder), " chronofs-admin.service", &args).unwrap()
    }

    fn value<'a>(unit: &'a str, section: &str, key: &str) -> Vec<&'a str> {
        let (_, rest) = unit.split_once(&format!("[{section}]\n")).unwrap();
        let rest = rest.split("\n[").next().unwrap();
        rest.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    }

    #[test]
    fn a_unit_starts_the_server_after_the_network_and_again_when_it_ends() {
        let unit = unit("/var/lib/chronofs/meta", &["--bind-addr", "0.0.0.0:8444"]);
        let program = std::env::current_exe().unwrap();
        let start = format!(
            "{} meta start --db-folder /var/lib/chronofs/meta --log-format json --bind-addr 0.0.0.0:8444",
            program.display()
        );
        assert_eq!(value(&unit, "Service", "ExecStart"), [start]);
        assert_eq!(value(&unit, "Unit", "After"), ["network-online.target chronofs-admin.service"]);
        assert_eq!(value(&unit, "Unit", "Wants"), ["network-online.target"]);
        assert_eq!(value(&unit, "Service", "Restart"), ["always"]);
        // Without this systemd gives up after five ends in ten seconds.
        assert_eq!(value(&unit, "Unit", "StartLimitIntervalSec"), ["0"]);
        assert_eq!(value(&unit, "Service", "KillSignal"), ["SIGTERM"]);
        assert_eq!(value(&unit, "Install", "WantedBy"), ["multi-user.target"]);
        assert!(unit.lines().all(|line| line.is_empty() || line.starts_with('[') || line.contains('=')));
    }

    #[test]
    fn words_that_mean_something_to_systemd_are_only_words() {
        let unit = unit("/srv/a b", &["--locality", "zone=50%", "$HOME", "", "it's \"so\" \\"]);
        let [start] = value(&unit, "Service", "ExecStart")[..] else { panic!("{unit}") };
        assert!(
            start.ends_with(
                r#"--db-folder "/srv/a b" --log-format json --locality zone=50%% $$HOME "" "it's \"so\" \\""#
            ),
            "{start}"
        );
    }

    #[test]
    fn the_example_of_a_mount_is_one_of_the_file_system_and_waits_for_the_network() {
        let unit = mount_unit();
        assert_eq!(value(&unit, "Mount", "Type"), ["chronofs"]);
        assert_eq!(value(&unit, "Mount", "Options"), ["_netdev"]);
        assert_eq!(value(&unit, "Mount", "Where"), ["/mnt/data"]);
        assert_eq!(value(&unit, "Unit", "After"), ["network-online.target"]);
    }

    #[test]
    fn a_unit_is_written_where_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let args = SystemdArgs { output: Some(folder.path().to_owned()), flags: Vec::new() };
        put("text", "chronofs-meta.service", &args).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("chronofs-meta.service")).unwrap(), "text");
        let args = SystemdArgs { output: Some(folder.path().join("none")), flags: Vec::new() };
        assert!(
            put("text", "chronofs-meta.service", &args)
                .unwrap_err()
                .to_string()
                .contains("folder that exists")
        );
    }
}
