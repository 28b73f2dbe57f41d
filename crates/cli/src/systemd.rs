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
