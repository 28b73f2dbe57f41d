//! The process group of a program: who is in it, and signals to all of it.

use rustix::process::{Pid, Signal, kill_process_group};
use std::fs;

/// The group that a child leads. The child is not reaped while this is used, so the number is surely its own.
#[derive(Debug)]
pub(super) struct Group(Pid);

impl Group {
    pub(super) const fn led_by(pid: Pid) -> Group {
        Group(pid)
    }

    /// To all of the group.
    pub(super) fn signal(&self, signal: Signal) {
        // It fails only if nobody is left, or for those that have become another user by set-uid, whom root can
        // signal and others cannot: `others` then still counts them.
        let _ = kill_process_group(self.0, signal);
    }

    /// How many processes of the group live, besides its leader. There is no call for it, so /proc is asked.
    pub(super) fn others(&self) -> usize {
        let Ok(processes) = fs::read_dir("/proc") else { return 0 };
        let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != self.leader() && self.has(*pid)).count()
    }

    fn has(&self, pid: u32) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // After the name in parentheses, which may itself hold anything: state, parent, group.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let dead = matches!(fields.next(), Some("Z" | "X") | None);
        !dead && fields.nth(1).is_some_and(|group| group == self.leader().to_string())
    }

    pub(super) fn leader(&self) -> u32 {
        self.0.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) const fn leader_pid(&self) -> Pid {
        self.0
    }
}
