//! The process group of a program: who is in it, and signals to all of it.

use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group};
use std::fs;

/// The group that a guard leads, and the program that was started in it. Neither is reaped while this is used, so the numbers
/// are surely their own.
#[derive(Debug)]
pub(super) struct Group {
    guard: Pid,
    program: Pid,
}

impl Group {
    pub(super) const fn new(guard: Pid, program: Pid) -> Group {
        Group { guard, program }
    }

    /// To all of the group, and to the program if it has left it.
    pub(super) fn signal(&self, signal: Signal) {
        // It fails only if nobody is left, or for those that have become another user by set-uid, whom root can
        // signal and others cannot: `others` then still counts them.
        let _ = kill_process_group(self.guard, signal);
        match getpgid(Some(self.program)) {
            Ok(group) if group == self.guard => {}
            Ok(group) if group == self.program => drop(kill_process_group(group, signal)),
            _ => drop(kill_process(self.program, signal)),
        }
    }

    /// How many processes of the group live, and of one that the program leads, besides guard and program. There is no call
    /// for it, so /proc is asked.
    pub(super) fn others(&self) -> usize {
        let Ok(processes) = fs::read_dir("/proc") else { return 0 };
        let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter_map(Pid::from_raw).filter(|pid| !self.leaders().contains(pid) && self.has(*pid)).count()
    }

    fn has(&self, pid: Pid) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // After the name in parentheses, which may itself hold anything: state, parent, group.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let dead = matches!(fields.next(), Some("Z" | "X") | None);
        let group = fields.nth(1).and_then(|group| Pid::from_raw(group.parse().ok()?));
        !dead && group.is_some_and(|group| self.leaders().contains(&group))
    }

    const fn leaders(&self) -> [Pid; 2] {
        [self.guard, self.program]
    }

    pub(super) const fn program(&self) -> Pid {
        self.program
    }
}
