//! What `/proc/TID/status` says about the thread behind a request: its supplementary groups, and whether a signal
//! waits for it.

use std::fs;

/// Supplementary groups of the thread `tid`; `None` when it is gone (or in another pid namespace).
pub(crate) fn groups_of(tid: u32) -> Option<Vec<u32>> {
    parse_groups(&read_status(tid)?)
}

/// Whether a signal waits that the thread `tid` neither blocks nor ignores: its call should end. Also true when the
/// thread is gone.
pub(crate) fn is_interrupted(tid: u32) -> bool {
    // Requests of the kernel itself have no thread and cannot be interrupted.
    if tid == 0 {
        return false;
    }
    match read_status(tid) {
        Some(status) => parse_interrupted(&status),
        None => true,
    }
}

fn read_status(tid: u32) -> Option<String> {
    if tid == 0 {
        return None;
    }
    // A process name may hold any bytes.
    let bytes = fs::read(format!("/proc/{tid}/status")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn parse_groups(status: &str) -> Option<Vec<u32>> {
    field(status, "Groups")?.split_whitespace().map(|group| group.parse().ok()).collect()
}

fn parse_interrupted(status: &str) -> bool {
    let mask = |name| field(status, name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let pending = mask("SigPnd") | mask("ShdPnd");
    pending & !mask("SigBlk") & !mask("SigIgn") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: &str = "Name:\tcat\nUmask:\t0022\nGroups:\t4 24 1000 \nSigQ:\t0/1\nSigPnd:\t0000000000000000\n\
                         ShdPnd:\t0000000000000000\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\n";

    #[test]
    fn groups_are_read_as_listed() {
        assert_eq!(parse_groups(QUIET), Some(vec![4, 24, 1000]));
        assert_eq!(parse_groups("Groups:\t \n"), Some(vec![]));
        assert_eq!(parse_groups("Name:\tx\n"), None);
        assert_eq!(parse_groups("Name:\tGroups: 7\nGroups:\t1\n"), Some(vec![1]));
    }

    #[test]
    fn only_a_pending_signal_that_is_neither_blocked_nor_ignored_interrupts() {
        assert!(!parse_interrupted(QUIET));
        let with = |name: &str, mask: &str| {
            let line = QUIET.lines().find(|line| line.starts_with(name)).unwrap();
            QUIET.replace(line, &format!("{name}:\t{mask}"))
        };
        assert!(parse_interrupted(&with("ShdPnd", "0000000000000002")), "SIGINT for the process");
        assert!(parse_interrupted(&with("SigPnd", "0000000000000100")), "SIGKILL for the thread");
        assert!(!parse_interrupted(&with("ShdPnd", "0000000000001000")), "an ignored one");
        let blocked = with("ShdPnd", "0000000000000002").replace("SigBlk:\t0000000000000000", "SigBlk:\t2");
        assert!(!parse_interrupted(&blocked));
    }

    #[test]
    fn this_very_thread_is_found_and_a_missing_one_is_not() {
        assert!(groups_of(std::process::id()).is_some());
        assert!(!is_interrupted(std::process::id()));
        assert!(is_interrupted(u32::MAX - 1));
        assert!(!is_interrupted(0));
    }
}
