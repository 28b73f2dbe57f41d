//! The words of `mount -o` that are the same for every file system: those the kernel is told, and those that only
//! mount(8) and systemd mean. What chronofs adds of its own is not here.

use fuser::MountOption;
use rustix::mount::MountFlags;

const NONE: MountFlags = MountFlags::empty();
const NO_PRIVILEGES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_PRIVILEGES_NO_EXEC: MountFlags = NO_PRIVILEGES.union(MountFlags::NOEXEC);

/// A word, the flags it sets and those it takes back. `user` and its like mean more to mount(8); for the kernel they
/// are what they imply.
const KERNEL_WORDS: &[(&str, MountFlags, MountFlags)] = &[
    ("ro", MountFlags::RDONLY, NONE),
    ("rw", NONE, MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID, NONE),
    ("suid", NONE, MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV, NONE),
    ("dev", NONE, MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC, NONE),
    ("exec", NONE, MountFlags::NOEXEC),
    ("user", NO_PRIVILEGES_NO_EXEC, NONE),
    ("users", NO_PRIVILEGES_NO_EXEC, NONE),
    ("owner", NO_PRIVILEGES, NONE),
    ("group", NO_PRIVILEGES, NONE),
    ("sync", MountFlags::SYNCHRONOUS, NONE),
    ("async", NONE, MountFlags::SYNCHRONOUS),
    ("noatime", MountFlags::NOATIME, MountFlags::STRICTATIME),
    ("atime", NONE, MountFlags::NOATIME),
    ("relatime", NONE, MountFlags::NOATIME.union(MountFlags::STRICTATIME)),
    ("norelatime", NONE, NONE),
    ("strictatime", MountFlags::STRICTATIME, MountFlags::NOATIME),
    ("nostrictatime", NONE, MountFlags::STRICTATIME),
    ("nodiratime", MountFlags::NODIRATIME, NONE),
    ("diratime", NONE, MountFlags::NODIRATIME),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, NONE),
    ("symfollow", NONE, MountFlags::NOSYMFOLLOW),
];

/// Words, or beginnings of words with a value, that mean nothing to a file system, or ask for what is so anyway.
const IGNORED_WORDS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "nousers",
    "noowner",
    "nogroup",
    "silent",
    "loud",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "nomand",
    "allow_other",
    "default_permissions",
];
const IGNORED_STARTS: &[&str] = &["x-", "X-", "comment=", "user=", "helper=", "uhelper="];

/// What fuser does not pass to mount(2): set by a second call.
const LATE: MountFlags = MountFlags::NODIRATIME.union(MountFlags::STRICTATIME).union(MountFlags::NOSYMFOLLOW);

/// What the kernel is told of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountOptions(MountFlags);

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions(NONE)
    }
}

impl MountOptions {
    /// Takes one word, which wins over those before it. Whether it was one of every file system's.
    pub fn take(&mut self, word: &str) -> bool {
        if let Some((_, set, clear)) = KERNEL_WORDS.iter().find(|(known, ..)| *known == word) {
            self.0.remove(*clear);
            self.0.insert(*set);
            return true;
        }
        IGNORED_WORDS.contains(&word) || IGNORED_STARTS.iter().any(|start| word.starts_with(start))
    }

    /// Whether writing is refused.
    pub fn read_only(self) -> bool {
        self.0.contains(MountFlags::RDONLY)
    }

    /// For the call that mounts; `read_only`: also when no word asks for it.
    pub(super) fn for_fuser(self, read_only: bool) -> Vec<MountOption> {
        let pick = |flag, with, without| if self.0.contains(flag) { with } else { without };
        vec![
            if read_only {
                MountOption::RO
            } else {
                pick(MountFlags::RDONLY, MountOption::RO, MountOption::RW)
            },
            pick(MountFlags::NOSUID, MountOption::NoSuid, MountOption::Suid),
            pick(MountFlags::NODEV, MountOption::NoDev, MountOption::Dev),
            pick(MountFlags::NOEXEC, MountOption::NoExec, MountOption::Exec),
            pick(MountFlags::NOATIME, MountOption::NoAtime, MountOption::Atime),
            pick(MountFlags::SYNCHRONOUS, MountOption::Sync, MountOption::Async),
        ]
    }

    /// For a second call, if one is needed: all flags of the mount, since those that are not named are taken back.
    pub(super) fn for_remount(self, read_only: bool) -> Option<MountFlags> {
        let flags = if read_only { self.0 | MountFlags::RDONLY } else { self.0 };
        flags.intersects(LATE).then(|| flags.difference(MountFlags::SYNCHRONOUS) | MountFlags::BIND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> MountOptions {
        let mut options = MountOptions::default();
        for word in words.split(',') {
            assert!(options.take(word), "{word}");
        }
        options
    }

    #[test]
    fn the_last_word_wins_and_user_implies_what_mount_8_says() {
        assert_eq!(of("ro,nosuid,rw,suid"), MountOptions::default());
        assert_eq!(of("user"), of("noexec,nosuid,nodev"));
        assert_eq!(of("user,exec,dev"), of("nosuid"));
        assert_eq!(of("noatime,relatime"), MountOptions::default());
        assert!(of("ro").read_only() && !of("ro,rw").read_only());
    }

    #[test]
    fn what_only_mount_8_and_systemd_mean_changes_nothing_and_the_rest_is_not_taken() {
        let words =
            "defaults,auto,noauto,nofail,_netdev,x-systemd.automount,x-systemd.requires=a.service,comment=b";
        assert_eq!(of(words), MountOptions::default());
        // dirsync and mand are known to the kernel, but not to its FUSE: they would be a promise that nobody keeps.
        for word in ["shiny", "at-time=-2h", "token-file=/t", "", "RO", "dirsync", "mand", "remount", "bind"]
        {
            assert!(!MountOptions::default().take(word), "{word}");
        }
    }

    #[test]
    fn a_second_call_names_all_flags_and_is_made_only_where_it_is_needed() {
        assert_eq!(of("ro,nosuid,noexec,noatime,sync").for_remount(false), None);
        let flags = of("noexec,nodiratime,sync").for_remount(true).unwrap();
        let wanted = MountFlags::NOEXEC | MountFlags::NODIRATIME | MountFlags::RDONLY | MountFlags::BIND;
        assert_eq!(flags, wanted);
    }

    #[test]
    fn fuser_gets_no_two_that_contradict_each_other() {
        for words in ["rw", "ro,nosuid,nodev,noexec,noatime,sync"] {
            let given = of(words).for_fuser(true);
            assert!(given.contains(&MountOption::RO) && !given.contains(&MountOption::RW), "{words}");
            assert_eq!(given.contains(&MountOption::NoExec), !given.contains(&MountOption::Exec), "{words}");
        }
    }
}
