//! Helpers of the tests of the data path.

/// How many cases a property test runs: `CHRONOFS_CASES`, else `default`.
pub(super) fn cases(default: u32) -> u32 {
    std::env::var("CHRONOFS_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
